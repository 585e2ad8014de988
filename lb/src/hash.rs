//! The hash of a flow, and the seed of a Gateway: a wire contract between replicas.
//!
//! Two load balancers of one Gateway must send the same flow to the same endpoint, whichever of their engines decides.
//! So the hash is one that the kernel's nftables can compute too: Bob Jenkins's lookup3, which Linux calls `jhash`, over
//! 32-bit words that nftables builds from a packet:
//!
//! ```text
//!  word     0 .. n-1          n             n+1 .. 2n         2n+1            2n+2
//!      +--------------+---------------+---------------+---------------+---------------+
//!      | source       | source port, 0| destination   | dest. port, 0 | protocol, 0   |   n = 1 (IPv4) or 4 (IPv6)
//!      +--------------+---------------+---------------+---------------+---------------+
//! ```
//!
//! Octets are in network order, a shorter field is padded with zeros to four octets, each word is then read little endian.
//! An ICMP echo carries its identifier as source port and 0 as destination port. The slot of a table of M slots is
//! `hash * M >> 32`. The seed is the same hash of the octets `namespace/name` of the Gateway, with seed 0.
//! The golden vectors in the tests are the contract; changing one breaks every rolling update.

use std::net::IpAddr;

/// What all packets of a flow have in common, in the direction towards the VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Flow {
    /// The client.
    pub source: IpAddr,
    /// The VIP.
    pub destination: IpAddr,
    /// The protocol number of the transport.
    pub protocol: u8,
    /// Source port, or the identifier of an ICMP echo.
    pub source_port: u16,
    /// Destination port, or 0 of an ICMP echo.
    pub destination_port: u16,
}

/// The seed of a Gateway's tables and flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seed(pub u32);

impl Seed {
    /// The seed of the Gateway `namespace/name`.
    pub fn of_gateway(namespace: &str, name: &str) -> Self {
        Self(jhash(format!("{namespace}/{name}").as_bytes(), 0))
    }
}

impl Flow {
    /// The hash of this flow.
    pub fn hash(&self, seed: Seed) -> u32 {
        let source_port = u32::from(self.source_port.swap_bytes());
        let destination_port = u32::from(self.destination_port.swap_bytes());
        let protocol = u32::from(self.protocol);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => jhash_words(
                &[
                    u32::from_le_bytes(source.octets()),
                    source_port,
                    u32::from_le_bytes(destination.octets()),
                    destination_port,
                    protocol,
                ],
                seed.0,
            ),
            (source, destination) => {
                let [s0, s1, s2, s3] = words(source);
                let [d0, d1, d2, d3] = words(destination);
                jhash_words(&[s0, s1, s2, s3, source_port, d0, d1, d2, d3, destination_port, protocol], seed.0)
            }
        }
    }
}

/// The 16 octets of an address as little endian words; of an IPv4 address: the mapped one.
fn words(address: IpAddr) -> [u32; 4] {
    let bits = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    [96, 64, 32, 0].map(|shift| u32::try_from(bits >> shift & 0xffff_ffff).unwrap_or_default().swap_bytes())
}

/// `hash * slots >> 32`: a number below `slots`, as the kernel scales a hash.
pub fn scale(hash: u32, slots: u32) -> u32 {
    u32::try_from((u64::from(hash) * u64::from(slots)) >> 32).unwrap_or_default()
}

/// lookup3 of `octets`.
pub fn jhash(octets: &[u8], seed: u32) -> u32 {
    let mut state = State::new(octets.len(), seed);
    let mut rest = octets;
    while rest.len() > 12 {
        let (block, after) = rest.split_at(12);
        state.add(&little_endian(block));
        state.mix();
        rest = after;
    }
    if rest.is_empty() {
        return state.c;
    }
    state.add(&little_endian(rest));
    state.last()
}

/// lookup3 of little endian words.
pub fn jhash_words(words: &[u32], seed: u32) -> u32 {
    let mut state = State::new(words.len() * 4, seed);
    let mut rest = words;
    while rest.len() > 3 {
        let (block, after) = rest.split_at(3);
        state.add(block);
        state.mix();
        rest = after;
    }
    if rest.is_empty() {
        return state.c;
    }
    state.add(rest);
    state.last()
}

/// Up to 12 octets as three words, padded with zeros.
fn little_endian(octets: &[u8]) -> [u32; 3] {
    let mut words = [0; 3];
    for (word, four) in words.iter_mut().zip(octets.chunks(4)) {
        for octet in four.iter().rev() {
            *word = *word << 8 | u32::from(*octet);
        }
    }
    words
}

/// The three words of lookup3.
struct State {
    a: u32,
    b: u32,
    c: u32,
}

impl State {
    fn new(octets: usize, seed: u32) -> Self {
        let start =
            0xdead_beef_u32.wrapping_add(u32::try_from(octets & 0xffff_ffff).unwrap_or_default()).wrapping_add(seed);
        Self { a: start, b: start, c: start }
    }

    fn add(&mut self, words: &[u32]) {
        for (state, word) in [&mut self.a, &mut self.b, &mut self.c].into_iter().zip(words) {
            *state = state.wrapping_add(*word);
        }
    }

    fn mix(&mut self) {
        let Self { mut a, mut b, mut c } = *self;
        for (left, right) in [(4, 6), (16, 19)] {
            let third = if left == 4 { 8 } else { 4 };
            a = a.wrapping_sub(c) ^ c.rotate_left(left);
            c = c.wrapping_add(b);
            b = b.wrapping_sub(a) ^ a.rotate_left(right);
            a = a.wrapping_add(c);
            c = c.wrapping_sub(b) ^ b.rotate_left(third);
            b = b.wrapping_add(a);
        }
        *self = Self { a, b, c };
    }

    fn last(self) -> u32 {
        let Self { mut a, mut b, mut c } = self;
        c = (c ^ b).wrapping_sub(b.rotate_left(14));
        a = (a ^ c).wrapping_sub(c.rotate_left(11));
        b = (b ^ a).wrapping_sub(a.rotate_left(25));
        c = (c ^ b).wrapping_sub(b.rotate_left(16));
        a = (a ^ c).wrapping_sub(c.rotate_left(4));
        b = (b ^ a).wrapping_sub(a.rotate_left(14));
        (c ^ b).wrapping_sub(b.rotate_left(24))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// From the comments of Bob Jenkins's lookup3.c.
    #[test]
    fn the_hash_is_lookup3() {
        assert_eq!(jhash(b"", 0), 0xdead_beef);
        assert_eq!(jhash(b"", 0xdead_beef), 0xbd5b_7dde);
        assert_eq!(jhash(b"Four score and seven years ago", 0), 0x1777_0551);
        assert_eq!(jhash(b"Four score and seven years ago", 1), 0xcd62_8161);
    }

    fn flow(source: &str, destination: &str, protocol: u8, source_port: u16, destination_port: u16) -> Flow {
        Flow {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            source_port,
            destination_port,
        }
    }

    /// Each octet of a flow where nftables puts it.
    fn octets(flow: &Flow) -> Vec<u8> {
        let mut octets = Vec::new();
        let address = |octets: &mut Vec<u8>, address| match address {
            IpAddr::V4(address) => octets.extend(address.octets()),
            IpAddr::V6(address) => octets.extend(address.octets()),
        };
        address(&mut octets, flow.source);
        octets.extend(flow.source_port.to_be_bytes());
        octets.extend([0, 0]);
        address(&mut octets, flow.destination);
        octets.extend(flow.destination_port.to_be_bytes());
        octets.extend([0, 0]);
        octets.extend([flow.protocol, 0, 0, 0]);
        octets
    }

    #[test]
    fn golden_vectors_hold_for_ever() {
        let seed = Seed::of_gateway("default", "sllb-a");
        let v4 = flow("192.168.1.1", "20.0.0.1", 6, 40000, 4000);
        let v6 = flow("fd00::1", "2000::1", 17, 40000, 4001);
        let echo = flow("192.168.1.1", "20.0.0.1", 1, 77, 0);
        assert_eq!((seed.0, v4.hash(seed), v6.hash(seed), echo.hash(seed)), GOLDEN);
    }

    /// Seed, IPv4, IPv6, echo; computed by another implementation too.
    const GOLDEN: (u32, u32, u32, u32) = (0xbd91_dfac, 0xb5b8_398a, 0xce94_09f0, 0x33d8_5976);

    #[test]
    fn near_flows_do_not_collide() {
        let hashes: BTreeSet<u32> =
            (0..28_000_u16).map(|port| flow("10.0.0.1", "20.0.0.1", 6, port, 4000).hash(Seed(7))).collect();
        assert!(hashes.len() > 27_990, "{} distinct hashes of 28000 flows", hashes.len());
    }

    proptest! {
        #[test]
        fn words_and_octets_hash_alike(source: u128, destination: u128, ports: (u16, u16), protocol: u8, seed: u32) {
            let v6 = Flow {
                source: IpAddr::V6(source.into()), destination: IpAddr::V6(destination.into()),
                protocol, source_port: ports.0, destination_port: ports.1,
            };
            prop_assert_eq!(v6.hash(Seed(seed)), jhash(&octets(&v6), seed));
            let [s, d] = [source, destination].map(|bits| u32::try_from(bits & 0xffff_ffff).unwrap());
            let v4 = Flow { source: IpAddr::V4(s.into()), destination: IpAddr::V4(d.into()), ..v6 };
            prop_assert_eq!(v4.hash(Seed(seed)), jhash(&octets(&v4), seed));
        }

        #[test]
        fn a_slot_is_below_their_number(hash: u32, slots in 1_u32..) {
            prop_assert!(scale(hash, slots) < slots);
        }
    }
}
