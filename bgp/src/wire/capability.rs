//! Capabilities (RFC 5492): what each side can do, told in the OPEN.
//!
//! ```text
//! +---------------+---------------+------------------------+
//! | Code          | Length        | Value (variable) ..
//! +---------------+---------------+------------------------+
//! ```
//! An unknown or malformed capability is ignored, as if it had not been sent.

use bytes::BufMut;
use nom::Parser;
use nom::bytes::complete::take;
use nom::multi::{length_data, many0};
use nom::number::complete::{be_u8, be_u16, be_u32};

use super::{Parsed, length8};
use crate::{Family, Role};

/// The AFI of a unicast family.
pub const fn afi(family: Family) -> u16 {
    match family {
        Family::Ipv4 => 1,
        Family::Ipv6 => 2,
    }
}

/// The unicast family of an AFI and SAFI.
pub const fn family(afi: u16, safi: u8) -> Option<Family> {
    match (afi, safi) {
        (1, 1) => Some(Family::Ipv4),
        (2, 1) => Some(Family::Ipv6),
        _ => None,
    }
}

/// What RFC 4724 (and 8538) tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GracefulRestart {
    /// R: the sender restarted, do not wait for its End-of-RIB.
    pub restarted: bool,
    /// N: a NOTIFICATION is a graceful restart too, unless it is a Hard Reset (RFC 8538).
    pub notification: bool,
    /// Seconds, 12 bits.
    pub time_s: u16,
    /// The families whose forwarding state it keeps, and whether it did (F).
    pub families: Vec<(Family, bool)>,
}

/// What RFC 9494 tells of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongLived {
    /// The family.
    pub family: Family,
    /// Whether its forwarding state was kept (F).
    pub kept: bool,
    /// How long its routes should be kept once the restart time is over, seconds, 24 bits.
    pub time_s: u32,
}

/// One capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Routes of this family (RFC 4760).
    Multiprotocol(Family),
    /// ROUTE-REFRESH (RFC 2918).
    RouteRefresh,
    /// IPv4 routes with an IPv6 next hop (RFC 8950).
    ExtendedNextHop,
    /// Messages of up to 65535 octets (RFC 8654).
    ExtendedMessage,
    /// The sender's role (RFC 9234).
    Role(Role),
    /// Graceful restart (RFC 4724).
    GracefulRestart(GracefulRestart),
    /// AS numbers of four octets, and the sender's (RFC 6793).
    FourOctetAs(u32),
    /// `BoRR` and `EoRR` (RFC 7313).
    EnhancedRouteRefresh,
    /// Several paths to a prefix (RFC 7911): for each family whether the sender takes (1), tells (2), or both (3).
    AddPath(Vec<(Family, u8)>),
    /// Long-lived graceful restart (RFC 9494).
    LongLived(Vec<LongLived>),
    /// The session waits for BFD (draft-ietf-idr-bgp-bfd-strict-mode).
    BfdStrict,
    /// A role that no RFC has given a meaning.
    UnknownRole(u8),
    /// Anything else, or one of the above with a malformed value: its code. Ignored.
    Other(u8),
}

const fn role_number(role: Role) -> u8 {
    match role {
        Role::Provider => 0,
        Role::RouteServer => 1,
        Role::RouteServerClient => 2,
        Role::Customer => 3,
        Role::Peer => 4,
    }
}

const fn role(number: u8) -> Option<Role> {
    match number {
        0 => Some(Role::Provider),
        1 => Some(Role::RouteServer),
        2 => Some(Role::RouteServerClient),
        3 => Some(Role::Customer),
        4 => Some(Role::Peer),
        _ => None,
    }
}

fn multiprotocol(input: &[u8]) -> Parsed<'_, (u16, u8)> {
    (be_u16, be_u8, be_u8).map(|(afi, _, safi)| (afi, safi)).parse(input)
}

fn graceful_restart(value: &[u8]) -> Option<GracefulRestart> {
    let (rest, flags) = be_u16::<_, ()>(value).ok()?;
    let (rest, tuples) = many0((be_u16::<_, ()>, be_u8, be_u8)).parse(rest).ok()?;
    // A cut tuple makes the capability malformed.
    rest.is_empty().then(|| GracefulRestart {
        restarted: flags & 0x8000 != 0,
        notification: flags & 0x4000 != 0,
        time_s: flags & 0x0fff,
        families: tuples
            .into_iter()
            .filter_map(|(afi, safi, flags)| Some((family(afi, safi)?, flags & 0x80 != 0)))
            .collect(),
    })
}

impl Capability {
    /// Its code.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Multiprotocol(_) => 1,
            Self::RouteRefresh => 2,
            Self::ExtendedNextHop => 5,
            Self::ExtendedMessage => 6,
            Self::Role(_) | Self::UnknownRole(_) => 9,
            Self::GracefulRestart(_) => 64,
            Self::FourOctetAs(_) => 65,
            Self::EnhancedRouteRefresh => 70,
            Self::AddPath(_) => 69,
            Self::LongLived(_) => 71,
            Self::BfdStrict => 74,
            Self::Other(code) => *code,
        }
    }

    fn new(code: u8, value: &[u8]) -> Self {
        let known = match (code, value) {
            (1, [_, _, _, _]) => {
                multiprotocol(value).ok().and_then(|(_, (a, s))| family(a, s)).map(Self::Multiprotocol)
            }
            (2, []) => Some(Self::RouteRefresh),
            // Tuples of AFI, SAFI (two octets), next hop AFI: all that we have is IPv4 unicast by IPv6.
            (5, tuples) if tuples.len() % 6 == 0 => {
                tuples.chunks_exact(6).any(|tuple| tuple == [0, 1, 0, 1, 0, 2]).then_some(Self::ExtendedNextHop)
            }
            (6, []) => Some(Self::ExtendedMessage),
            (9, &[number]) => Some(role(number).map_or(Self::UnknownRole(number), Self::Role)),
            (64, value) => graceful_restart(value).map(Self::GracefulRestart),
            (65, value @ [_, _, _, _]) => be_u32::<_, ()>(value).ok().map(|(_, asn)| Self::FourOctetAs(asn)),
            (70, []) => Some(Self::EnhancedRouteRefresh),
            (69, tuples) => add_path(tuples).map(Self::AddPath),
            (71, tuples) => long_lived(tuples).map(Self::LongLived),
            (74, []) => Some(Self::BfdStrict),
            _ => None,
        };
        known.unwrap_or(Self::Other(code))
    }

    /// All capabilities of one optional parameter; `None` if they do not fill it.
    pub fn parse_all(parameter: &[u8]) -> Option<Vec<Self>> {
        let one = (be_u8::<_, ()>, length_data(be_u8)).map(|(code, value)| Self::new(code, value));
        let (rest, all) = many0(one).parse(parameter).ok()?;
        rest.is_empty().then_some(all)
    }

    /// Appends it.
    pub fn put(&self, out: &mut Vec<u8>) {
        let mut value = Vec::new();
        match self {
            Self::Multiprotocol(family) => {
                value.put_u16(afi(*family));
                value.put_u16(1);
            }
            Self::ExtendedNextHop => value.put_slice(&[0, 1, 0, 1, 0, 2]),
            Self::Role(role) => value.put_u8(role_number(*role)),
            Self::UnknownRole(number) => value.put_u8(*number),
            Self::GracefulRestart(restart) => {
                let flags = u16::from(restart.restarted) << 15 | u16::from(restart.notification) << 14;
                value.put_u16(flags | restart.time_s.min(0x0fff));
                for &(family, forwarding) in &restart.families {
                    value.put_u16(afi(family));
                    value.put_u8(1);
                    value.put_u8(u8::from(forwarding) << 7);
                }
            }
            Self::FourOctetAs(asn) => value.put_u32(*asn),
            Self::AddPath(all) => {
                for &(family, ways) in all {
                    value.put_u16(afi(family));
                    value.put_slice(&[1, ways]);
                }
            }
            Self::LongLived(all) => {
                for one in all {
                    value.put_u16(afi(one.family));
                    value.put_u8(1);
                    // The flags, then the time in three octets.
                    value.put_u32(u32::from(one.kept) << 31 | one.time_s.min(0x00ff_ffff));
                }
            }
            Self::RouteRefresh
            | Self::ExtendedMessage
            | Self::EnhancedRouteRefresh
            | Self::BfdStrict
            | Self::Other(_) => (),
        }
        out.put_u8(self.code());
        out.put_u8(length8(value.len()));
        out.put_slice(&value);
    }
}

/// The tuples of the capability: families that we have, and ways that RFC 7911 knows; others are ignored.
fn add_path(value: &[u8]) -> Option<Vec<(Family, u8)>> {
    let one = (be_u16::<_, ()>, be_u8, be_u8);
    let (rest, all) = many0(one).parse(value).ok()?;
    let known = all.into_iter().filter(|(.., ways)| (1..=3).contains(ways));
    rest.is_empty().then(|| known.filter_map(|(afi, safi, ways)| Some((family(afi, safi)?, ways))).collect())
}

/// The tuples of the capability: families that we have; others are ignored.
fn long_lived(value: &[u8]) -> Option<Vec<LongLived>> {
    let (rest, all) = many0((be_u16::<_, ()>, be_u8, be_u32)).parse(value).ok()?;
    let known = all.into_iter().filter_map(|(afi, safi, told)| {
        let (kept, time_s) = (told & 0x8000_0000 != 0, told & 0x00ff_ffff);
        family(afi, safi).map(|family| LongLived { family, kept, time_s })
    });
    rest.is_empty().then(|| known.collect())
}

/// The optional parameters of an OPEN as (type, value), with lengths of one octet, or two (RFC 9072).
pub(super) fn parameters(extended: bool, input: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let length = move |input| if extended { be_u16(input) } else { be_u8.map(u16::from).parse(input) };
    let mut all = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        let (after, (kind, length)) = (be_u8::<_, ()>, length).parse(rest).ok()?;
        let (after, value) = take::<_, _, ()>(length)(after).ok()?;
        all.push((kind, value));
        rest = after;
    }
    Some(all)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn capability() -> impl Strategy<Value = Capability> {
        let family = prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)];
        let restart =
            (any::<bool>(), any::<bool>(), 0u16..4096, prop::collection::vec((family.clone(), any::<bool>()), 0..3))
                .prop_map(|(restarted, notification, time_s, families)| {
                    Capability::GracefulRestart(GracefulRestart { restarted, notification, time_s, families })
                });
        prop_oneof![
            family.prop_map(Capability::Multiprotocol),
            Just(Capability::RouteRefresh),
            Just(Capability::ExtendedNextHop),
            Just(Capability::ExtendedMessage),
            (0u8..5).prop_map(|number| Capability::Role(role(number).unwrap())),
            (5u8..).prop_map(Capability::UnknownRole),
            restart,
            any::<u32>().prop_map(Capability::FourOctetAs),
            Just(Capability::EnhancedRouteRefresh),
            Just(Capability::BfdStrict),
            prop::collection::vec(
                (prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)], any::<bool>(), 0u32..0x0100_0000)
                    .prop_map(|(family, kept, time_s)| LongLived { family, kept, time_s }),
                0..3
            )
            .prop_map(Capability::LongLived),
            prop::collection::vec((prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)], 1u8..4), 0..3)
                .prop_map(Capability::AddPath),
            (75u8..).prop_map(Capability::Other),
        ]
    }

    #[test]
    fn a_malformed_or_unknown_capability_is_as_if_not_sent() {
        for octets in [
            &[1u8, 3, 0, 1, 0][..],
            &[64, 3, 0, 0, 0],
            &[64, 1, 0],
            &[65, 2, 0, 1],
            &[2, 1, 0],
            &[71, 3, 0, 1, 1],
            &[200, 2, 1, 2],
        ] {
            assert_eq!(Capability::parse_all(octets), Some(vec![Capability::Other(octets[0])]));
        }
        assert_eq!(Capability::parse_all(&[1, 4, 0, 1]), None);
    }

    proptest! {
        #[test]
        fn what_is_emitted_parses_to_the_same(all in prop::collection::vec(capability(), 0..8)) {
            let mut out = Vec::new();
            for one in &all {
                one.put(&mut out);
            }
            prop_assert_eq!(Capability::parse_all(&out), Some(all));
        }

        #[test]
        fn any_octets_parse_or_are_refused(octets: Vec<u8>) {
            let _ = Capability::parse_all(&octets);
        }
    }
}
