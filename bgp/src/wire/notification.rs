//! NOTIFICATION (RFC 4271 section 4.5): why a session ends.
//!
//! ```text
//! +---------------+---------------+------------------------+
//! | Error code    | Error subcode |   Data (variable) ..
//! +---------------+---------------+------------------------+
//! ```

use bytes::BufMut;
use nom::number::complete::be_u8;

use super::{Type, length8, put_message};

/// Message Header Error.
pub const MESSAGE_HEADER: u8 = 1;
/// OPEN Message Error.
pub const OPEN: u8 = 2;
/// UPDATE Message Error.
pub const UPDATE: u8 = 3;
/// Hold Timer Expired.
pub const HOLD_TIMER_EXPIRED: u8 = 4;
/// Finite State Machine Error; the subcode names the state (RFC 6608).
pub const FSM: u8 = 5;
/// Cease.
pub const CEASE: u8 = 6;
/// ROUTE-REFRESH Message Error (RFC 7313).
pub const ROUTE_REFRESH: u8 = 7;
/// Send Hold Timer Expired (RFC 9687).
pub const SEND_HOLD_TIMER_EXPIRED: u8 = 8;

/// Octets of a shutdown communication (RFC 9003).
pub const COMMUNICATION: usize = 255;

/// Why we end a session in order (5 is only ever received): RFC 4486, 8203, 8538, 9384.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cease {
    /// Maximum Number of Prefixes Reached.
    MaximumPrefixes = 1,
    /// Administrative Shutdown.
    Shutdown = 2,
    /// Peer De-configured.
    Deconfigured = 3,
    /// Administrative Reset.
    Reset = 4,
    /// Other Configuration Change.
    Configuration = 6,
    /// Connection Collision Resolution.
    Collision = 7,
    /// Out of Resources.
    Resources = 8,
    /// Hard Reset: the real one is in the data (RFC 8538).
    HardReset = 9,
    /// BFD Down (RFC 9384).
    BfdDown = 10,
}

impl Cease {
    /// Its subcode.
    pub const fn subcode(self) -> u8 {
        match self {
            Self::MaximumPrefixes => 1,
            Self::Shutdown => 2,
            Self::Deconfigured => 3,
            Self::Reset => 4,
            Self::Configuration => 6,
            Self::Collision => 7,
            Self::Resources => 8,
            Self::HardReset => 9,
            Self::BfdDown => 10,
        }
    }
}

/// A NOTIFICATION.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The error code.
    pub code: u8,
    /// The error subcode, 0 if unspecific.
    pub subcode: u8,
    /// What the code says it is.
    pub data: Vec<u8>,
}

impl Notification {
    /// Without data.
    pub const fn new(code: u8, subcode: u8) -> Self {
        Self { code, subcode, data: Vec::new() }
    }

    /// Cease with a text for a human: a shutdown communication (RFC 9003), cut to 255 octets at a character.
    pub fn cease(cease: Cease, text: &str) -> Self {
        let mut cut = text.len().min(COMMUNICATION);
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        let text = text.get(..cut).unwrap_or_default();
        let mut data = Vec::new();
        // Only these two subcodes have room for a text.
        if matches!(cease, Cease::Shutdown | Cease::Reset) {
            data.put_u8(length8(text.len()));
            data.put_slice(text.as_bytes());
        }
        Self { code: CEASE, subcode: cease.subcode(), data }
    }

    /// The same as a Hard Reset (RFC 8538 section 3.1): the neighbour shall not keep our routes.
    #[must_use]
    pub fn hard(self) -> Self {
        let mut data = vec![self.code, self.subcode];
        data.extend(self.data);
        Self { code: CEASE, subcode: Cease::HardReset.subcode(), data }
    }

    /// Whether this is a Hard Reset.
    pub fn is_hard(&self) -> bool {
        (self.code, self.subcode) == (CEASE, Cease::HardReset.subcode())
    }

    /// The body of a message, of which the framer knows that it has two octets.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let (body, code) = be_u8::<_, ()>(body).ok()?;
        let (body, subcode) = be_u8::<_, ()>(body).ok()?;
        Some(Self { code, subcode, data: body.to_vec() })
    }

    /// Appends the message.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_message(out, Type::Notification, |out| {
            out.put_u8(self.code);
            out.put_u8(self.subcode);
            out.put_slice(&self.data);
        });
    }

    /// What lies inside a Hard Reset, if this is one and something does.
    pub fn inner(&self) -> Option<Self> {
        if self.is_hard() { Self::parse(&self.data) } else { None }
    }

    /// The shutdown communication, if there is a valid one (RFC 9003 section 2). Control characters are replaced: it goes
    /// to a log.
    pub fn communication(&self) -> Option<String> {
        if self.code != CEASE || !matches!(self.subcode, 2 | 4) {
            return self.inner()?.communication();
        }
        let (&length, text) = self.data.split_first()?;
        let text = std::str::from_utf8(text.get(..usize::from(length))?).ok()?;
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Some(clean).filter(|text| !text.is_empty())
    }

    /// In words, for a human.
    pub fn describe(&self) -> String {
        let mut text = name(self.code, self.subcode).to_owned();
        if let Some(inner) = self.inner() {
            text = format!("{text}: {}", name(inner.code, inner.subcode));
        }
        if let Some(said) = self.communication() {
            text = format!("{text}: \"{said}\"");
        }
        text
    }
}

/// The RFCs' name of a code and subcode.
pub const fn name(code: u8, subcode: u8) -> &'static str {
    match (code, subcode) {
        (1, 1) => "Message Header Error/Connection Not Synchronized",
        (1, 2) => "Message Header Error/Bad Message Length",
        (1, 3) => "Message Header Error/Bad Message Type",
        (1, _) => "Message Header Error",
        (2, 1) => "OPEN Message Error/Unsupported Version Number",
        (2, 2) => "OPEN Message Error/Bad Peer AS",
        (2, 3) => "OPEN Message Error/Bad BGP Identifier",
        (2, 4) => "OPEN Message Error/Unsupported Optional Parameter",
        (2, 6) => "OPEN Message Error/Unacceptable Hold Time",
        (2, 7) => "OPEN Message Error/Unsupported Capability",
        (2, 11) => "OPEN Message Error/Role Mismatch",
        (2, _) => "OPEN Message Error",
        (3, 1) => "UPDATE Message Error/Malformed Attribute List",
        (3, 2) => "UPDATE Message Error/Unrecognized Well-known Attribute",
        (3, 3) => "UPDATE Message Error/Missing Well-known Attribute",
        (3, 4) => "UPDATE Message Error/Attribute Flags Error",
        (3, 5) => "UPDATE Message Error/Attribute Length Error",
        (3, 6) => "UPDATE Message Error/Invalid ORIGIN Attribute",
        (3, 8) => "UPDATE Message Error/Invalid NEXT_HOP Attribute",
        (3, 9) => "UPDATE Message Error/Optional Attribute Error",
        (3, 10) => "UPDATE Message Error/Invalid Network Field",
        (3, 11) => "UPDATE Message Error/Malformed AS_PATH",
        (3, _) => "UPDATE Message Error",
        (4, _) => "Hold Timer Expired",
        (5, 1) => "FSM Error/Unexpected Message in OpenSent State",
        (5, 2) => "FSM Error/Unexpected Message in OpenConfirm State",
        (5, 3) => "FSM Error/Unexpected Message in Established State",
        (5, _) => "FSM Error",
        (6, 1) => "Cease/Maximum Number of Prefixes Reached",
        (6, 2) => "Cease/Administrative Shutdown",
        (6, 3) => "Cease/Peer De-configured",
        (6, 4) => "Cease/Administrative Reset",
        (6, 5) => "Cease/Connection Rejected",
        (6, 6) => "Cease/Other Configuration Change",
        (6, 7) => "Cease/Connection Collision Resolution",
        (6, 8) => "Cease/Out of Resources",
        (6, 9) => "Cease/Hard Reset",
        (6, 10) => "Cease/BFD Down",
        (6, _) => "Cease",
        (7, 1) => "ROUTE-REFRESH Message Error/Invalid Message Length",
        (7, _) => "ROUTE-REFRESH Message Error",
        (8, _) => "Send Hold Timer Expired",
        _ => "an unknown error code",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::HEADER;

    #[test]
    fn a_shutdown_communication_is_cut_at_a_character() {
        let long = "é".repeat(200);
        let notification = Notification::cease(Cease::Shutdown, &long);
        assert_eq!(notification.data.len(), 255);
        assert_eq!(notification.communication(), Some("é".repeat(127)));
    }

    #[test]
    fn a_communication_whose_length_lies_is_no_text_but_still_a_cease() {
        let notification = Notification { code: CEASE, subcode: 2, data: vec![200, b'a'] };
        assert_eq!(notification.communication(), None);
        assert_eq!(notification.describe(), "Cease/Administrative Shutdown");
    }

    #[test]
    fn a_hard_reset_carries_the_real_reason() {
        let hard = Notification::cease(Cease::Reset, "again").hard();
        assert_eq!((hard.code, hard.subcode), (6, 9));
        assert_eq!(hard.data, [6, 4, 5, b'a', b'g', b'a', b'i', b'n']);
        assert_eq!(hard.describe(), "Cease/Hard Reset: Cease/Administrative Reset: \"again\"");
    }

    proptest! {
        #[test]
        fn what_is_emitted_parses_to_the_same(code: u8, subcode: u8, data in prop::collection::vec(any::<u8>(), 0..300)) {
            let notification = Notification { code, subcode, data };
            let mut out = Vec::new();
            notification.put(&mut out);
            prop_assert_eq!(Notification::parse(&out[HEADER..]), Some(notification.clone()));
            prop_assert!(!notification.describe().is_empty());
        }
    }
}
