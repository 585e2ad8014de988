//! Bytes and values: every message of BGP, one a file.
//!
//! A value parsed here cannot be wrong, and emitting it gives the same value back. An error knows its NOTIFICATION. Nothing
//! here knows of sessions or time: what a session negotiated comes in as a parameter.
//!
//! ```text
//!  0                   1                   2                   3
//! +---------------------------------------------------------------+
//! |                      Marker, 16 octets of ones                |
//! +-------------------------------+---------------+---------------+
//! |            Length             |     Type      |  body ..
//! +-------------------------------+---------------+
//! ```
#![warn(clippy::indexing_slicing)]

pub mod as_path;
pub mod attribute;
pub mod capability;
pub mod emit;
pub mod notification;
pub mod open;
pub mod prefix;
pub mod refresh;
pub mod update;

use bytes::BufMut;

/// Octets of the header that every message has.
pub const HEADER: usize = 19;
/// Octets of the largest message without RFC 8654.
pub const MAXIMUM: usize = 4096;
/// Octets of the largest message with RFC 8654.
pub const MAXIMUM_EXTENDED: usize = 65535;

/// What a nom parser of this crate gives: the errors are made by who asked.
pub type Parsed<'a, T> = nom::IResult<&'a [u8], T, ()>;

/// The type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Type {
    /// The first message.
    Open = 1,
    /// Routes.
    Update = 2,
    /// The last message.
    Notification = 3,
    /// Still here.
    Keepalive = 4,
    /// Tell me again (RFC 2918).
    RouteRefresh = 5,
}

impl Type {
    /// The type with this number.
    pub const fn new(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Open),
            2 => Some(Self::Update),
            3 => Some(Self::Notification),
            4 => Some(Self::Keepalive),
            5 => Some(Self::RouteRefresh),
            _ => None,
        }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Update => 2,
            Self::Notification => 3,
            Self::Keepalive => 4,
            Self::RouteRefresh => 5,
        }
    }
}

/// Appends a message of `kind` whose body `body` writes.
pub fn put_message(out: &mut Vec<u8>, kind: Type, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_bytes(0xff, 16);
    out.put_u16(0);
    out.put_u8(kind.number());
    body(out);
    let length = length16(out.len() - start);
    if let Some(field) = out.get_mut(start + 16..start + 18) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends a KEEPALIVE: a header and nothing else.
pub fn put_keepalive(out: &mut Vec<u8>) {
    put_message(out, Type::Keepalive, |_| ());
}

/// `length` in a 16-bit field: what we emit is bounded by the size of a message.
pub(crate) fn length16(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// `length` in an 8-bit field: what we emit there is bounded by its parser.
pub(crate) fn length8(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}
