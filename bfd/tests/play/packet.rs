//! Control packets as a test writes and reads them: every field at hand, also those that break a rule.

/// P, F, A, D and M.
pub const POLL: u8 = 0x20;
pub const FINAL: u8 = 0x10;
pub const AUTHENTICATED: u8 = 0x04;
pub const DEMAND: u8 = 0x02;
pub const MULTIPOINT: u8 = 0x01;

/// What the other end calls itself.
pub const THEIRS: u32 = 0x1234_5678;

/// A control packet, field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub version: u8,
    pub diagnostic: u8,
    pub state: u8,
    pub flags: u8,
    pub multiplier: u8,
    pub length: u8,
    pub mine: u32,
    pub yours: u32,
    pub min_tx_us: u32,
    pub min_rx_us: u32,
    pub min_echo_rx_us: u32,
    pub auth: Vec<u8>,
}

pub const ADMIN_DOWN: u8 = 0;
pub const DOWN: u8 = 1;
pub const INIT: u8 = 2;
pub const UP: u8 = 3;

/// What the other end says in `state`, to whom it knows as `yours`.
pub fn packet(state: u8, yours: u32) -> Packet {
    Packet {
        version: 1,
        diagnostic: 0,
        state,
        flags: 0,
        multiplier: 3,
        length: 24,
        mine: THEIRS,
        yours,
        min_tx_us: 100_000,
        min_rx_us: 100_000,
        min_echo_rx_us: 0,
        auth: Vec::new(),
    }
}

impl Packet {
    pub fn octets(&self) -> Vec<u8> {
        let first = self.version << 5 | self.diagnostic;
        let mut octets = vec![first, self.state << 6 | self.flags, self.multiplier, self.length];
        for word in [self.mine, self.yours, self.min_tx_us, self.min_rx_us, self.min_echo_rx_us] {
            octets.extend(word.to_be_bytes());
        }
        octets.extend(&self.auth);
        octets
    }

    /// A packet of ours: well formed, or the test is wrong.
    pub fn read(octets: &[u8]) -> Self {
        let word = |at: usize| u32::from_be_bytes(octets[at..at + 4].try_into().expect("four octets"));
        Self {
            version: octets[0] >> 5,
            diagnostic: octets[0] & 0x1f,
            state: octets[1] >> 6,
            flags: octets[1] & 0x3f,
            multiplier: octets[2],
            length: octets[3],
            mine: word(4),
            yours: word(8),
            min_tx_us: word(12),
            min_rx_us: word(16),
            min_echo_rx_us: word(20),
            auth: octets[24..].to_vec(),
        }
    }

    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}
