//! Rules from a small vocabulary of expressions, and a builder that reads like `nft`. Pure values.

use crate::Family;

/// One of sixteen 4-octet registers, 0 to 15; a longer value takes those that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Register(pub u8);

/// The register that the builder's tests use.
const SCRATCH: Register = Register(0);

/// What `meta` can load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// The packet mark.
    Mark,
    /// IPv4 (2) or IPv6 (10), one octet.
    Family,
    /// The transport protocol, one octet.
    Protocol,
    /// The name of the interface that the packet came in by, 16 octets.
    InputName,
    /// For whom the link says that the packet is, one octet; 0: for this machine.
    PacketType,
}

/// Where a payload load counts its offset from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The link-layer header.
    LinkLayer,
    /// The IP header.
    Network,
    /// The TCP, UDP, ... header.
    Transport,
}

/// The two ways of saying "to nfqueue".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueForm {
    /// The `queue` expression of nftables (`CONFIG_NFT_QUEUE`).
    Native,
    /// The `NFQUEUE` target of xtables, revision 3, inside of an nftables rule (`CONFIG_NETFILTER_XT_TARGET_NFQUEUE`
    /// and `CONFIG_NFT_COMPAT`).
    Xtables,
}

/// To nfqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The first queue.
    pub first: u16,
    /// How many queues share the packets, from 1.
    pub total: u16,
    /// Whether packets pass on when nobody listens, instead of being dropped.
    pub bypass: bool,
    /// Whether the CPU picks the queue, instead of the hash of the addresses.
    pub fanout: bool,
    /// How the kernel is told.
    pub form: QueueForm,
}

/// How the kernel keeps a checksum right when octets of a packet are written. One that the hardware will fill in is left
/// alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing covers what is written, or nobody looks.
    None,
    /// The Internet checksum at this offset from the same base, changed by the difference.
    Internet(u32),
    /// The `CRC32c` of an SCTP packet, computed anew over all of it.
    Sctp,
}

/// One step of a rule: it loads, tests or acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads `key` into `to`.
    Meta {
        /// What.
        key: MetaKey,
        /// Whereto.
        to: Register,
    },
    /// Sets the packet mark from a register.
    SetMark {
        /// The mark.
        from: Register,
    },
    /// Loads octets of the packet; the rule ends when there are too few.
    Payload {
        /// What the offset counts from.
        base: Base,
        /// Octets.
        offset: u32,
        /// Octets.
        length: u32,
        /// Whereto.
        to: Register,
    },
    /// Writes octets of the packet; the rule ends when there are too few.
    Write {
        /// Wherefrom.
        from: Register,
        /// What the offset counts from.
        base: Base,
        /// Octets.
        offset: u32,
        /// Octets.
        length: u32,
        /// What covers them.
        checksum: Checksum,
    },
    /// `to = from >> bits`, of a number in the machine's order.
    ShiftRight {
        /// Operand.
        from: Register,
        /// Result.
        to: Register,
        /// How far.
        bits: u32,
    },
    /// Goes on when the register is (not) `value`.
    Compare {
        /// Which.
        register: Register,
        /// Equal, or not equal.
        equal: bool,
        /// The octets.
        value: Vec<u8>,
    },
    /// Goes on when the register, as a number in network order, is at least `value`.
    AtLeast {
        /// Which.
        register: Register,
        /// The octets.
        value: Vec<u8>,
    },
    /// `to = (from & mask) ^ xor`; both of one length.
    Bitwise {
        /// Operand.
        from: Register,
        /// Result.
        to: Register,
        /// The octets that stay.
        mask: Vec<u8>,
        /// The octets that turn.
        xor: Vec<u8>,
    },
    /// Loads a constant.
    Immediate {
        /// Whereto.
        to: Register,
        /// The octets.
        value: Vec<u8>,
    },
    /// Goes on when the register is (not) an element of a set.
    Lookup {
        /// The key.
        register: Register,
        /// The set.
        set: String,
        /// In it, or not in it.
        found: bool,
    },
    /// Loads the value of a map; the rule ends when the key is missing.
    Map {
        /// The key.
        register: Register,
        /// The map.
        map: String,
        /// The value.
        to: Register,
    },
    /// `to = jhash(from.., length, seed) * modulus >> 32`.
    Hash {
        /// The first register.
        from: Register,
        /// Octets, a multiple of 4.
        length: u32,
        /// Result range.
        modulus: u32,
        /// The seed.
        seed: u32,
        /// The result.
        to: Register,
    },
    /// Counts packets and octets.
    Counter,
    /// To nfqueue.
    Queue(Queue),
    /// Accept: the next chain or hook goes on.
    Accept,
    /// Drop.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Into another chain, and back.
    Jump(String),
    /// Into another chain.
    Goto(String),
    /// To the map's chain for this number; the rule ends when there is none.
    Choose {
        /// The number.
        register: Register,
        /// The map.
        map: String,
    },
    /// Out of a link to a neighbour, with a hop less, past the rest of the kernel; only in [`Layer::Netdev`](super::Layer).
    Forward {
        /// Of the address.
        family: Family,
        /// The neighbour.
        address: Register,
        /// The index of the link.
        interface: Register,
    },
    /// To a transparent proxy on this machine; in a rule that never matches it makes the kernel defragment.
    Tproxy {
        /// Its family.
        family: Family,
        /// Its port. (It goes through register 0.)
        port: u16,
    },
}

/// A rule: expressions from left to right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule(pub Vec<Expression>);

/// An address of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

impl Address {
    /// The step that loads the address of `family` into `to`, and how many registers it takes.
    const fn load(self, family: Family, to: Register) -> (Expression, u8) {
        let (offset, length, registers) = match (family, self) {
            (Family::Ipv4, Self::Source) => (12, 4, 1),
            (Family::Ipv4, Self::Destination) => (16, 4, 1),
            (Family::Ipv6, Self::Source) => (8, 16, 4),
            (Family::Ipv6, Self::Destination) => (24, 16, 4),
        };
        (Expression::Payload { base: Base::Network, offset, length, to }, registers)
    }
}

impl Rule {
    /// An empty rule: matches everything, does nothing.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Goes on with one more step.
    #[must_use]
    pub fn then(mut self, expression: Expression) -> Self {
        self.0.push(expression);
        self
    }

    /// `meta nfproto ipv4` or `ipv6`.
    #[must_use]
    pub fn family(self, family: Family) -> Self {
        self.meta(MetaKey::Family, vec![protocol_family(family)])
    }

    /// `meta l4proto 6`: behind the extension headers of IPv6 too.
    #[must_use]
    pub fn protocol(self, number: u8) -> Self {
        self.meta(MetaKey::Protocol, vec![number])
    }

    /// `meta mark 7`.
    #[must_use]
    pub fn mark(self, mark: u32) -> Self {
        self.meta(MetaKey::Mark, mark.to_ne_bytes().to_vec())
    }

    /// `iifname "ext-vlan"`: of more than 15 octets only the first count, as in the kernel.
    #[must_use]
    pub fn input(self, interface: &str) -> Self {
        let mut name = interface.as_bytes().to_vec();
        name.truncate(15);
        name.resize(16, 0);
        self.meta(MetaKey::InputName, name)
    }

    /// `ip daddr @set`, with the test of the family that it needs.
    #[must_use]
    pub fn address_in(self, family: Family, address: Address, set: &str) -> Self {
        let (load, _) = address.load(family, SCRATCH);
        let lookup = Expression::Lookup { register: SCRATCH, set: set.to_owned(), found: true };
        self.family(family).then(load).then(lookup)
    }

    /// `ip frag-off & 0x1fff == 0`: not a later fragment of an IPv4 datagram, whose payload is no transport header.
    #[must_use]
    pub fn first_fragment(self) -> Self {
        let load = Expression::Payload { base: Base::Network, offset: 6, length: 2, to: SCRATCH };
        let mask = Expression::Bitwise { from: SCRATCH, to: SCRATCH, mask: vec![0x1f, 0xff], xor: vec![0, 0] };
        self.then(load).then(mask).then(Expression::Compare { register: SCRATCH, equal: true, value: vec![0, 0] })
    }

    /// `counter`.
    #[must_use]
    pub fn counter(self) -> Self {
        self.then(Expression::Counter)
    }

    /// `meta mark set 7`.
    #[must_use]
    pub fn set_mark(self, mark: u32) -> Self {
        let value = mark.to_ne_bytes().to_vec();
        self.then(Expression::Immediate { to: SCRATCH, value }).then(Expression::SetMark { from: SCRATCH })
    }

    /// To nfqueue.
    #[must_use]
    pub fn queue(self, queue: Queue) -> Self {
        self.then(Expression::Queue(queue))
    }

    /// `accept`.
    #[must_use]
    pub fn accept(self) -> Self {
        self.then(Expression::Accept)
    }

    /// `drop`. (Not `drop`, which Rust keeps for itself.)
    #[must_use]
    pub fn discard(self) -> Self {
        self.then(Expression::Drop)
    }

    /// A rule that never matches, but whose presence in a table makes the kernel put the fragments of `family` together
    /// before any hook after priority -400, without connection tracking: a transparent proxy needs whole datagrams.
    pub fn defragment(family: Family) -> Self {
        Self::new().family(family).input("no such link").protocol(6).then(Expression::Tproxy { family, port: 1 })
    }

    fn meta(self, key: MetaKey, value: Vec<u8>) -> Self {
        self.then(Expression::Meta { key, to: SCRATCH }).then(Expression::Compare {
            register: SCRATCH,
            equal: true,
            value,
        })
    }
}

/// The number that netfilter has for a family.
pub(super) const fn protocol_family(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    }
}
