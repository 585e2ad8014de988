//! A BFD control packet (RFC 5880 section 4.1): octets to a value and back.
//!
//! What the first rules of section 6.8.6 forbid cannot be expressed by a [`Control`]: parsing it gives the [`Discard`] that
//! names the rule. This file knows no session: whether the discriminators mean anything, `sessions` says.

use std::num::{NonZeroU8, NonZeroU32};

use nom::number::complete::{be_u8, be_u32};
use nom::{IResult, Parser};

use crate::auth::AuthSection;
use crate::{Diagnostic, Discard, State};

/// The version that we speak.
const VERSION: u8 = 1;
/// Octets of the mandatory section.
const MANDATORY: usize = 24;
/// The least Length of a packet with an authentication section.
const WITH_AUTH: usize = 26;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const INDEPENDENT: u8 = 0x08;
const AUTHENTICATED: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// A control packet.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |Vers |  Diag   |Sta|P|F|C|A|D|M|  Detect Mult  |    Length     |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                       My Discriminator                        |
/// |                      Your Discriminator                       |
/// |                    Desired Min TX Interval                    |
/// |                   Required Min RX Interval                    |
/// |                 Required Min Echo RX Interval                 |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// | then, if A is set, the authentication section                 |
/// ```
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the header")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    /// Why the sender last changed its state. Values that no RFC 5880 knows read as `None`.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// P: an answer is wanted.
    pub poll: bool,
    /// F: the answer to a poll.
    pub last: bool,
    /// C: the sender's BFD outlives its control plane.
    pub independent: bool,
    /// D: the sender wants no periodic packets.
    pub demand: bool,
    /// Detect Mult.
    pub multiplier: NonZeroU8,
    /// My Discriminator.
    pub mine: NonZeroU32,
    /// Your Discriminator, 0 if the sender does not know it.
    pub yours: u32,
    /// Desired Min TX Interval, microseconds.
    pub desired_min_tx_us: u32,
    /// Required Min RX Interval, microseconds; 0: no periodic packets.
    pub required_min_rx_us: u32,
    /// Required Min Echo RX Interval, microseconds; 0: no echo packets.
    pub required_min_echo_rx_us: u32,
    /// The authentication section.
    pub auth: Option<AuthSection>,
}

impl Control {
    /// Reads a packet from the payload of a datagram by the rules of section 6.8.6, in their order. The slice returned with
    /// it is what Length covers: what a digest was made over.
    pub fn parse(payload: &[u8]) -> Result<(Self, &[u8]), Discard> {
        let (_, header) = Header::parse(payload).map_err(|_| Discard::Truncated)?;
        if header.first >> 5 != VERSION {
            return Err(Discard::Version);
        }
        let authenticated = header.flags & AUTHENTICATED != 0;
        let length = usize::from(header.length);
        if length < if authenticated { WITH_AUTH } else { MANDATORY } {
            return Err(Discard::LengthTooSmall);
        }
        let packet = payload.get(..length).ok_or(Discard::LengthTooLarge)?;
        let multiplier = NonZeroU8::new(header.multiplier).ok_or(Discard::MultiplierZero)?;
        if header.flags & MULTIPOINT != 0 {
            return Err(Discard::Multipoint);
        }
        let after_header = packet.get(HEADER..).ok_or(Discard::Truncated)?;
        let (rest, body) = Body::parse(after_header).map_err(|_| Discard::Truncated)?;
        let mine = NonZeroU32::new(body.mine).ok_or(Discard::MyDiscriminatorZero)?;
        let state = State::from_wire(header.flags >> 6);
        if body.yours == 0 && matches!(state, State::Init | State::Up) {
            return Err(Discard::YourDiscriminatorZero);
        }
        let auth = if authenticated { Some(AuthSection::parse(rest)?) } else { None };
        let control = Self {
            diagnostic: Diagnostic::from_wire(header.first & 0x1f),
            state,
            poll: header.flags & POLL != 0,
            last: header.flags & FINAL != 0,
            independent: header.flags & INDEPENDENT != 0,
            demand: header.flags & DEMAND != 0,
            multiplier,
            mine,
            yours: body.yours,
            desired_min_tx_us: body.desired_min_tx_us,
            required_min_rx_us: body.required_min_rx_us,
            required_min_echo_rx_us: body.required_min_echo_rx_us,
            auth,
        };
        Ok((control, packet))
    }

    /// The octets of the packet.
    pub fn emit(&self) -> Vec<u8> {
        let mut flags = self.state.to_wire() << 6;
        for (set, flag) in [
            (self.poll, POLL),
            (self.last, FINAL),
            (self.independent, INDEPENDENT),
            (self.auth.is_some(), AUTHENTICATED),
            (self.demand, DEMAND),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let auth = self.auth.as_ref().map(AuthSection::emit).unwrap_or_default();
        let length = u8::try_from(MANDATORY + auth.len()).unwrap_or(u8::MAX);
        let mut octets = Vec::with_capacity(usize::from(length));
        octets.extend([VERSION << 5 | self.diagnostic.to_wire(), flags, self.multiplier.get(), length]);
        for word in
            [self.mine.get(), self.yours, self.desired_min_tx_us, self.required_min_rx_us, self.required_min_echo_rx_us]
        {
            octets.extend(word.to_be_bytes());
        }
        octets.extend(auth);
        octets
    }
}

/// Octets of [`Header`].
const HEADER: usize = 4;

struct Header {
    first: u8,
    flags: u8,
    multiplier: u8,
    length: u8,
}

impl Header {
    fn parse(octets: &[u8]) -> IResult<&[u8], Self> {
        let (rest, (first, flags, multiplier, length)) = (be_u8, be_u8, be_u8, be_u8).parse(octets)?;
        Ok((rest, Self { first, flags, multiplier, length }))
    }
}

struct Body {
    mine: u32,
    yours: u32,
    desired_min_tx_us: u32,
    required_min_rx_us: u32,
    required_min_echo_rx_us: u32,
}

impl Body {
    fn parse(octets: &[u8]) -> IResult<&[u8], Self> {
        let (rest, (mine, yours, desired_min_tx_us, required_min_rx_us, required_min_echo_rx_us)) =
            (be_u32, be_u32, be_u32, be_u32, be_u32).parse(octets)?;
        Ok((rest, Self { mine, yours, desired_min_tx_us, required_min_rx_us, required_min_echo_rx_us }))
    }
}

impl State {
    /// The state that the two bits of the Sta field mean.
    pub(crate) const fn from_wire(bits: u8) -> Self {
        match bits & 0x03 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }

    /// The two bits of the Sta field.
    pub(crate) const fn to_wire(self) -> u8 {
        match self {
            Self::AdminDown => 0,
            Self::Down => 1,
            Self::Init => 2,
            Self::Up => 3,
        }
    }
}

impl Diagnostic {
    /// Every diagnostic of RFC 5880, at the place of its value.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::DetectionTimeExpired,
        Self::EchoFailed,
        Self::NeighborSignaledDown,
        Self::ForwardingPlaneReset,
        Self::PathDown,
        Self::ConcatenatedPathDown,
        Self::AdministrativelyDown,
        Self::ReverseConcatenatedPathDown,
    ];

    /// What the five bits of the Diag field mean; reserved values mean nothing.
    pub(crate) fn from_wire(bits: u8) -> Self {
        Self::ALL.get(usize::from(bits)).copied().unwrap_or_default()
    }

    /// The five bits of the Diag field.
    pub(crate) const fn to_wire(self) -> u8 {
        match self {
            Self::None => 0,
            Self::DetectionTimeExpired => 1,
            Self::EchoFailed => 2,
            Self::NeighborSignaledDown => 3,
            Self::ForwardingPlaneReset => 4,
            Self::PathDown => 5,
            Self::ConcatenatedPathDown => 6,
            Self::AdministrativelyDown => 7,
            Self::ReverseConcatenatedPathDown => 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet in state Up that breaks no rule.
    fn up() -> Vec<u8> {
        let mut octets = vec![0x20, 0xc0, 3, 24];
        for word in [0x1234_5678_u32, 0xabcd_ef12, 100_000, 200_000, 0] {
            octets.extend(word.to_be_bytes());
        }
        octets
    }

    #[test]
    fn a_packet_reads_as_the_rfc_draws_it() {
        let mut octets = up();
        octets[0] |= 3;
        octets[1] |= POLL | DEMAND;
        let (control, covered) = Control::parse(&octets).unwrap();
        assert_eq!(control.state, State::Up);
        assert_eq!(control.diagnostic, Diagnostic::NeighborSignaledDown);
        assert!(control.poll && control.demand && !control.last);
        assert_eq!((control.mine.get(), control.yours), (0x1234_5678, 0xabcd_ef12));
        assert_eq!((control.desired_min_tx_us, control.required_min_rx_us), (100_000, 200_000));
        assert_eq!(covered, octets);
    }

    #[test]
    fn every_diagnostic_survives_the_wire_and_reserved_values_mean_nothing() {
        for diagnostic in Diagnostic::ALL {
            assert_eq!(Diagnostic::from_wire(diagnostic.to_wire()), diagnostic);
        }
        assert!((9..32).all(|bits| Diagnostic::from_wire(bits) == Diagnostic::None));
    }

    prop_compose! {
        fn controls()(
            (diagnostic, state) in (0u8..9, 0u8..4),
            flags: [bool; 4],
            multiplier: NonZeroU8,
            mine: NonZeroU32,
            yours in 1u32..,
            intervals: [u32; 3],
            auth in prop::option::of(crate::auth::tests::sections()),
        ) -> Control {
            Control {
                diagnostic: Diagnostic::from_wire(diagnostic),
                state: State::from_wire(state),
                poll: flags[0],
                last: flags[1],
                independent: flags[2],
                demand: flags[3],
                multiplier,
                mine,
                yours,
                desired_min_tx_us: intervals[0],
                required_min_rx_us: intervals[1],
                required_min_echo_rx_us: intervals[2],
                auth,
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_emitted_reads_back_as_the_same_value(control in controls(), trailing in prop::collection::vec(any::<u8>(), 0..9)) {
            let octets = control.emit();
            let datagram = [octets.clone(), trailing].concat();
            prop_assert_eq!(Control::parse(&datagram), Ok((control, octets.as_slice())));
        }

        #[test]
        fn any_octets_are_read_or_discarded_without_a_panic(octets in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok((control, covered)) = Control::parse(&octets) {
                prop_assert!(covered.len() >= MANDATORY && covered.len() <= octets.len());
                prop_assert!(control.yours != 0 || control.state <= State::Down);
            }
        }

        #[test]
        fn a_header_with_one_octet_changed_never_panics(at in 0usize..24, value: u8) {
            let mut octets = up();
            octets[at] = value;
            let _ = Control::parse(&octets);
        }
    }
}
