//! OPEN (RFC 4271 section 4.2, RFC 9072): who is there, and what it can do.
//!
//! ```text
//! +---------------+-------------------------------+-------------------------------+
//! | Version (1)   | My Autonomous System (2)      | Hold Time (2)                 |
//! +---------------+-------------------------------+---------------+---------------+
//! | BGP Identifier (4)                                            | Parameters length (1), parameters ..
//! +---------------------------------------------------------------+---------------+
//! ```
//! The AS number is the true one: `AS_TRANS` and the four-octet capability are the wire's affair (RFC 6793).

use std::net::Ipv4Addr;

use bytes::BufMut;
use nom::Parser;
use nom::bytes::complete::take;
use nom::number::complete::{be_u8, be_u16, be_u32};

use super::capability::{Capability, parameters};
use super::{Parsed, Type, length8, length16, put_message};
use crate::HoldTime;

/// What stands in two octets for an AS number that needs four (RFC 6793).
pub const AS_TRANS: u16 = 23456;

/// The only version.
const VERSION: u8 = 4;
/// The optional parameter that holds capabilities.
const CAPABILITIES: u8 = 2;
/// In place of the parameters' length and of the first parameter's type: lengths have two octets (RFC 9072).
const EXTENDED: u8 = 255;

/// Why an OPEN is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not version 4.
    #[error("version {0}, we speak 4")]
    Version(u8),
    /// AS 0 (RFC 7607), or two different ones in one message.
    #[error("AS {0} in the OPEN, AS {1} in the four-octet capability")]
    PeerAs(u32, u32),
    /// The identifier is zero (RFC 6286).
    #[error("the BGP identifier is 0.0.0.0")]
    Identifier,
    /// A parameter other than capabilities.
    #[error("optional parameter {0}")]
    Parameter(u8),
    /// One or two seconds.
    #[error("a hold time of {0} s, it must be 0 or at least 3")]
    HoldTime(u16),
    /// Two different roles (RFC 9234 section 4.2).
    #[error("two different roles")]
    Roles,
    /// Lengths that do not fit.
    #[error("the optional parameters do not fit the message")]
    Malformed,
}

impl OpenError {
    /// The code and subcode of RFC 4271 section 6.2.
    pub const fn notification(self) -> (u8, u8) {
        let subcode = match self {
            Self::Malformed => 0,
            Self::Version(_) => 1,
            Self::PeerAs(..) => 2,
            Self::Identifier => 3,
            Self::Parameter(_) => 4,
            Self::HoldTime(_) => 6,
            Self::Roles => 11,
        };
        (super::notification::OPEN, subcode)
    }

    /// What the NOTIFICATION carries: for a wrong version the one that we speak.
    pub fn data(self) -> Vec<u8> {
        match self {
            Self::Version(_) => vec![0, VERSION],
            _ => Vec::new(),
        }
    }
}

/// An OPEN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The sender's AS number: not zero.
    pub asn: u32,
    /// The hold time that it proposes.
    pub hold_time: HoldTime,
    /// Its BGP identifier: not zero.
    pub router_id: Ipv4Addr,
    /// What it can do.
    pub capabilities: Vec<Capability>,
}

struct Raw<'a> {
    version: u8,
    asn: u16,
    hold_time: u16,
    router_id: u32,
    extended: bool,
    parameters: &'a [u8],
}

fn raw(input: &[u8]) -> Parsed<'_, Raw<'_>> {
    let (input, (version, asn, hold_time, router_id, length)) = (be_u8, be_u16, be_u16, be_u32, be_u8).parse(input)?;
    // RFC 9072: the extended form is known by the first parameter's type; its length octet should be 255, but is ignored.
    let (extended, (input, length)) = match (length, input) {
        (1.., [EXTENDED, ..]) => (true, (be_u8, be_u16).map(|(_, length)| length).parse(input)?),
        (length, input) => (false, (input, u16::from(length))),
    };
    let (input, parameters) = take(length)(input)?;
    Ok((input, Raw { version, asn, hold_time, router_id, extended, parameters }))
}

impl Open {
    /// The body of a message, of which the framer knows that it has ten octets.
    pub fn parse(body: &[u8]) -> Result<Self, OpenError> {
        // The version decides what the rest is.
        match body.first() {
            None => return Err(OpenError::Malformed),
            Some(&VERSION) => (),
            Some(&version) => return Err(OpenError::Version(version)),
        }
        let Ok(([], raw)) = raw(body) else { return Err(OpenError::Malformed) };
        debug_assert_eq!(raw.version, VERSION);
        let mut capabilities = Vec::new();
        for (kind, value) in parameters(raw.extended, raw.parameters).ok_or(OpenError::Malformed)? {
            if kind != CAPABILITIES {
                return Err(OpenError::Parameter(kind));
            }
            capabilities.extend(Capability::parse_all(value).ok_or(OpenError::Malformed)?);
        }
        let asn = u32::from(raw.asn);
        let four = capabilities.iter().find_map(|capability| match capability {
            Capability::FourOctetAs(asn) => Some(*asn),
            _ => None,
        });
        let asn = match four {
            Some(four) if four == 0 || asn == 0 || (asn != four && raw.asn != AS_TRANS) => {
                return Err(OpenError::PeerAs(asn, four));
            }
            Some(four) => four,
            None if asn == 0 => return Err(OpenError::PeerAs(0, 0)),
            None => asn,
        };
        if raw.router_id == 0 {
            return Err(OpenError::Identifier);
        }
        let hold_time = HoldTime::new(raw.hold_time).ok_or(OpenError::HoldTime(raw.hold_time))?;
        let mut roles = capabilities.iter().filter(|capability| capability.code() == 9);
        if let Some(first) = roles.next()
            && roles.any(|other| other != first)
        {
            return Err(OpenError::Roles);
        }
        Ok(Self { asn, hold_time, router_id: Ipv4Addr::from(raw.router_id), capabilities })
    }

    /// Appends the message; all capabilities in one parameter, in the extended form only if they need it.
    pub fn put(&self, out: &mut Vec<u8>) {
        let mut capabilities = Vec::new();
        self.capabilities.iter().for_each(|capability| capability.put(&mut capabilities));
        put_message(out, Type::Open, |out| {
            out.put_u8(VERSION);
            out.put_u16(u16::try_from(self.asn).unwrap_or(AS_TRANS));
            out.put_u16(self.hold_time.seconds());
            out.put_u32(self.router_id.to_bits());
            match capabilities.len() {
                0 => out.put_u8(0),
                length @ ..=253 => {
                    out.put_u8(length8(length + 2));
                    out.put_u8(CAPABILITIES);
                    out.put_u8(length8(length));
                }
                length => {
                    out.put_slice(&[EXTENDED, EXTENDED]);
                    out.put_u16(length16(length + 3));
                    out.put_u8(CAPABILITIES);
                    out.put_u16(length16(length));
                }
            }
            out.put_slice(&capabilities);
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::capability::tests::capability;
    use super::*;
    use crate::wire::HEADER;

    fn open(asn: u32, capabilities: Vec<Capability>) -> Open {
        Open { asn, hold_time: HoldTime::DEFAULT, router_id: Ipv4Addr::new(10, 0, 0, 2), capabilities }
    }

    fn octets(open: &Open) -> Vec<u8> {
        let mut out = Vec::new();
        open.put(&mut out);
        out[HEADER..].to_vec()
    }

    #[test]
    fn an_open_is_what_the_rfc_draws() {
        let octets = octets(&open(4_248_829_953, vec![Capability::FourOctetAs(4_248_829_953)]));
        assert_eq!(octets, [4, 0x5b, 0xa0, 0, 90, 10, 0, 0, 2, 8, 2, 6, 65, 4, 0xfd, 0x40, 0, 1]);
    }

    #[test]
    fn a_role_told_twice_must_be_the_same_role() {
        let twice = |one, two| Open::parse(&octets(&open(1, vec![Capability::Role(one), Capability::Role(two)])));
        assert!(twice(crate::Role::Peer, crate::Role::Peer).is_ok());
        assert_eq!(twice(crate::Role::Peer, crate::Role::Customer), Err(OpenError::Roles));
    }

    proptest! {
        #[test]
        fn what_is_emitted_parses_to_the_same(
            asn in 1u32..,
            hold in prop_oneof![Just(0u16), 3u16..],
            router_id in 1u32..,
            capabilities in prop::collection::vec(capability(), 0..60),
        ) {
            // One role and one AS number: an OPEN with two is refused.
            let mut capabilities = capabilities;
            capabilities.retain(|one| !matches!(one.code(), 9 | 65));
            capabilities.push(Capability::FourOctetAs(asn));
            let open = Open { asn, hold_time: HoldTime::new(hold).unwrap(), router_id: router_id.into(), capabilities };
            let octets = octets(&open);
            prop_assert_eq!(Open::parse(&octets), Ok(open));
            for cut in 0..octets.len() {
                prop_assert!(Open::parse(&octets[..cut]).is_err());
            }
        }

        #[test]
        fn any_octets_parse_or_are_refused(octets: Vec<u8>) {
            let _ = Open::parse(&octets);
        }
    }
}
