//! Rules from a small vocabulary of expressions, and a builder that reads like `nft`. Pure values.

use crate::Family;

/// One of sixteen 4-octet registers; a longer value takes those that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Register(pub u8);

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
    /// Goes on when the register is (not) `value`.
    Compare {
        /// Which.
        register: Register,
        /// Equal, or not equal.
        equal: bool,
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
    /// A transparent proxy to `port` of this machine; in a rule that never matches it makes the kernel defragment.
    Tproxy {
        /// Its family.
        family: Family,
        /// Its port.
        port: u16,
    },
}

/// A rule: expressions from left to right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule(pub Vec<Expression>);
