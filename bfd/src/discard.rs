//! Why a packet was discarded: each value is a rule of RFC 5880 section 6.8.6, 6.7, 6.8.8 or RFC 5881 section 5.

use std::fmt;

/// The rule that a discarded packet broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Discard {
    /// The datagram ends before the mandatory section does.
    Truncated,
    /// The version number is not 1.
    Version,
    /// Length is less than 24, or 26 with an authentication section.
    LengthTooSmall,
    /// Length is more than the datagram holds.
    LengthTooLarge,
    /// Detect Mult is zero.
    MultiplierZero,
    /// The Multipoint bit is set.
    Multipoint,
    /// My Discriminator is zero.
    MyDiscriminatorZero,
    /// Your Discriminator is zero in a state in which the sender must know it.
    YourDiscriminatorZero,
    /// Your Discriminator is none of ours.
    UnknownDiscriminator,
    /// Your Discriminator is zero, and no session is with this sender.
    NoSession,
    /// It came to the port of the other kind of session: single hop and multihop.
    WrongPort,
    /// Its TTL or hop limit is less than the session accepts (RFC 5881 section 5).
    Ttl,
    /// It is authenticated and the session is not.
    AuthUnexpected,
    /// The session is authenticated and it is not.
    AuthMissing,
    /// Its kind of authentication is not that of the session, or unknown.
    AuthType,
    /// The authentication section has the wrong length for its kind.
    AuthLength,
    /// No key of the session has this id.
    AuthKeyId,
    /// The password or digest is not that of the key.
    AuthDigest,
    /// The sequence number is old, or too far ahead.
    AuthSequence,
    /// The session is held AdminDown by us: what was told is kept, nothing else is done.
    AdminDown,
    /// An echo packet that is none of ours.
    Echo,
}

impl Discard {
    /// Its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Version => "version",
            Self::LengthTooSmall => "length-too-small",
            Self::LengthTooLarge => "length-too-large",
            Self::MultiplierZero => "multiplier-zero",
            Self::Multipoint => "multipoint",
            Self::MyDiscriminatorZero => "my-discriminator-zero",
            Self::YourDiscriminatorZero => "your-discriminator-zero",
            Self::UnknownDiscriminator => "unknown-discriminator",
            Self::NoSession => "no-session",
            Self::WrongPort => "wrong-port",
            Self::Ttl => "ttl",
            Self::AuthUnexpected => "auth-unexpected",
            Self::AuthMissing => "auth-missing",
            Self::AuthType => "auth-type",
            Self::AuthLength => "auth-length",
            Self::AuthKeyId => "auth-key-id",
            Self::AuthDigest => "auth-digest",
            Self::AuthSequence => "auth-sequence",
            Self::AdminDown => "admin-down",
            Self::Echo => "echo",
        }
    }
}

impl fmt::Display for Discard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
