//! Path attributes, and what a malformed one costs (RFC 7606).
//!
//! ```text
//! +---------------+---------------+-------------------------------+
//! | O T P E flags | Type (1)      | Length (1, or 2 if E), value ..
//! +---------------+---------------+-------------------------------+
//! ```
//! Attributes are read without copying: an [`Attributes`] borrows from the message or from the RIB. What a fault means for
//! the session is decided in `update`, by the strongest of the approaches found here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nom::Parser;
use nom::combinator::all_consuming;
use nom::multi::{length_data, many0};
use nom::number::complete::{be_u8, be_u16, be_u32};

use super::Parsed;
use super::as_path::{AsPath, Width};
use super::capability::family;
use super::prefix::{Nlri, PrefixError};
use crate::Family;

/// Type codes.
pub mod kind {
    pub const ORIGIN: u8 = 1;
    pub const AS_PATH: u8 = 2;
    pub const NEXT_HOP: u8 = 3;
    pub const MULTI_EXIT_DISC: u8 = 4;
    pub const LOCAL_PREF: u8 = 5;
    pub const ATOMIC_AGGREGATE: u8 = 6;
    pub const AGGREGATOR: u8 = 7;
    pub const COMMUNITY: u8 = 8;
    pub const ORIGINATOR_ID: u8 = 9;
    pub const CLUSTER_LIST: u8 = 10;
    pub const MP_REACH_NLRI: u8 = 14;
    pub const MP_UNREACH_NLRI: u8 = 15;
    pub const EXTENDED_COMMUNITIES: u8 = 16;
    pub const AS4_PATH: u8 = 17;
    pub const AS4_AGGREGATOR: u8 = 18;
    pub const TRAFFIC_ENGINEERING: u8 = 24;
    pub const IPV6_EXTENDED_COMMUNITIES: u8 = 25;
    pub const AIGP: u8 = 26;
    pub const LARGE_COMMUNITY: u8 = 32;
    pub const ONLY_TO_CUSTOMER: u8 = 35;
    pub const PREFIX_SID: u8 = 40;
    pub const ATTR_SET: u8 = 128;
}

/// Not well-known.
pub const OPTIONAL: u8 = 0x80;
/// Passed on by who does not know it.
pub const TRANSITIVE: u8 = 0x40;
/// Somebody did not know it.
pub const PARTIAL: u8 = 0x20;
/// The length has two octets.
pub const EXTENDED: u8 = 0x10;

/// Where a route came from, at its origin (RFC 4271 section 5.1.1); less is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// From within.
    #[default]
    Igp,
    /// From EGP.
    Egp,
    /// From elsewhere.
    Incomplete,
}

/// What a session negotiated, as far as attributes depend on it.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a capability of its own")]
pub struct Context {
    /// Octets of an AS number.
    pub width: Width,
    /// Whether the neighbour is in another AS.
    pub external: bool,
    /// Whether IPv4 routes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Whether the session carries IPv4 and IPv6.
    pub ipv4: bool,
    /// Whether the session carries IPv6.
    pub ipv6: bool,
    /// Whether the neighbour tells several paths to an IPv4 prefix (RFC 7911).
    pub paths_ipv4: bool,
    /// Whether it tells several to an IPv6 prefix.
    pub paths_ipv6: bool,
}

impl Context {
    /// Whether the session carries `family`.
    pub const fn carries(self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.ipv4,
            Family::Ipv6 => self.ipv6,
        }
    }

    /// Whether prefixes of `family` have path identifiers.
    pub const fn has_paths(self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.paths_ipv4,
            Family::Ipv6 => self.paths_ipv6,
        }
    }
}

/// The next hop of a route: one address, and a link-local one beside it for IPv6 (RFC 2545).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Where packets go.
    pub address: IpAddr,
    /// The same router on the link.
    pub link_local: Option<Ipv6Addr>,
}

impl NextHop {
    /// An address that no router can have: RFC 4271 section 6.3 and its like for IPv6.
    fn impossible(&self) -> bool {
        match self.address {
            IpAddr::V4(address) => address.octets()[0] == 0 || address.is_loopback() || address.octets()[0] >= 224,
            IpAddr::V6(address) => address.is_unspecified() || address.is_loopback() || address.is_multicast(),
        }
    }
}

/// `MP_REACH_NLRI` (RFC 4760) of a family that the session carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpReach<'a> {
    /// The family.
    pub family: Family,
    /// The next hop of all the prefixes.
    pub next_hop: NextHop,
    /// The prefixes.
    pub nlri: Nlri<'a>,
}

/// `MP_UNREACH_NLRI` (RFC 4760) of a family that the session carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpUnreach<'a> {
    /// The family.
    pub family: Family,
    /// The prefixes.
    pub nlri: Nlri<'a>,
}

/// Who aggregated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregator {
    /// Its AS.
    pub asn: u32,
    /// Its address.
    pub address: Ipv4Addr,
}

/// An attribute that we do not know, to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown<'a> {
    /// Its flags, without [`EXTENDED`].
    pub flags: u8,
    /// Its type.
    pub kind: u8,
    /// Its value.
    pub value: &'a [u8],
}

/// All attributes of an UPDATE, or of a route. Lists are as the wire has them, of a length that fits their items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    pub origin: Option<Origin>,
    pub as_path: Option<AsPath<'a>>,
    pub next_hop: Option<Ipv4Addr>,
    pub multi_exit_disc: Option<u32>,
    pub local_pref: Option<u32>,
    pub atomic_aggregate: bool,
    pub aggregator: Option<Aggregator>,
    pub communities: &'a [u8],
    pub originator_id: Option<Ipv4Addr>,
    pub cluster_list: &'a [u8],
    pub mp_reach: Option<MpReach<'a>>,
    pub mp_unreach: Option<MpUnreach<'a>>,
    pub extended_communities: &'a [u8],
    pub large_communities: &'a [u8],
    pub only_to_customer: Option<u32>,
    pub unknown: Vec<Unknown<'a>>,
    /// Which of the known attributes (a bit a type) had the partial bit.
    pub partial: u64,
    /// Whether there are prefixes of a family that the session does not carry.
    pub foreign: bool,
}

impl Attributes<'_> {
    /// The standard communities.
    pub fn communities(&self) -> impl Iterator<Item = u32> {
        self.communities.iter().copied().array_chunks_of_four()
    }
}

/// Groups of four octets as numbers.
trait ChunksOfFour: Iterator<Item = u8> + Sized {
    fn array_chunks_of_four(mut self) -> impl Iterator<Item = u32> {
        std::iter::from_fn(move || Some(u32::from_be_bytes([self.next()?, self.next()?, self.next()?, self.next()?])))
    }
}

impl<I: Iterator<Item = u8>> ChunksOfFour for I {}

/// What a malformed attribute costs (RFC 7606 section 2), the cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Approach {
    /// The attribute is as if not there.
    AttributeDiscard,
    /// The routes are as if withdrawn.
    TreatAsWithdraw,
    /// The session ends.
    SessionReset,
}

/// What is wrong with an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// A header or a value that ends beyond the list, or a second `MP_REACH_NLRI` or `MP_UNREACH_NLRI`.
    #[error("malformed attribute list")]
    List,
    /// Well-known, but not to us.
    #[error("unrecognized well-known attribute")]
    Unrecognized,
    /// A mandatory attribute is not there.
    #[error("mandatory attribute missing")]
    Missing,
    /// Optional or transitive where it must not be, or the reverse.
    #[error("attribute flags")]
    Flags,
    /// A length that the attribute cannot have.
    #[error("attribute length")]
    Length,
    /// Not IGP, EGP, INCOMPLETE.
    #[error("undefined ORIGIN")]
    Origin,
    /// Not an address that a router can have.
    #[error("impossible next hop")]
    NextHop,
    /// Something in an optional attribute.
    #[error("malformed value")]
    Optional,
    /// A segment, or AS 0.
    #[error("malformed AS path")]
    AsPath,
    /// Not for a neighbour of this kind.
    #[error("not from an external neighbour")]
    External,
    /// The same attribute again.
    #[error("attribute repeated")]
    Repeated,
}

impl AttributeError {
    /// The code and subcode of RFC 4271 section 6.3.
    pub const fn notification(self) -> (u8, u8) {
        let subcode = match self {
            Self::List | Self::Repeated => 1,
            Self::Unrecognized => 2,
            Self::Missing => 3,
            Self::Flags => 4,
            Self::Length => 5,
            Self::Origin => 6,
            Self::NextHop => 8,
            Self::Optional | Self::External => 9,
            Self::AsPath => 11,
        };
        (super::notification::UPDATE, subcode)
    }
}

/// One thing that is wrong, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault<'a> {
    /// What.
    pub error: AttributeError,
    /// What it costs.
    pub approach: Approach,
    /// The type of the attribute.
    pub kind: u8,
    /// The whole attribute: what a NOTIFICATION carries.
    pub octets: &'a [u8],
}

/// The Optional and Transitive bits that an attribute must have, if we know it.
const fn flags_of(kind: u8) -> Option<u8> {
    match kind {
        kind::ORIGIN | kind::AS_PATH | kind::NEXT_HOP | kind::LOCAL_PREF | kind::ATOMIC_AGGREGATE => Some(TRANSITIVE),
        kind::MULTI_EXIT_DISC
        | kind::ORIGINATOR_ID
        | kind::CLUSTER_LIST
        | kind::MP_REACH_NLRI
        | kind::MP_UNREACH_NLRI
        | kind::TRAFFIC_ENGINEERING
        | kind::AIGP => Some(OPTIONAL),
        kind::AGGREGATOR
        | kind::COMMUNITY
        | kind::EXTENDED_COMMUNITIES
        | kind::AS4_PATH
        | kind::AS4_AGGREGATOR
        | kind::IPV6_EXTENDED_COMMUNITIES
        | kind::LARGE_COMMUNITY
        | kind::ONLY_TO_CUSTOMER
        | kind::PREFIX_SID
        | kind::ATTR_SET => Some(OPTIONAL | TRANSITIVE),
        _ => None,
    }
}

struct Raw<'a> {
    flags: u8,
    kind: u8,
    value: &'a [u8],
}

fn raw(input: &[u8]) -> Parsed<'_, Raw<'_>> {
    let (input, (flags, kind)) = (be_u8, be_u8).parse(input)?;
    let (input, value) =
        if flags & EXTENDED == 0 { length_data(be_u8).parse(input) } else { length_data(be_u16).parse(input) }?;
    Ok((input, Raw { flags, kind, value }))
}

type Outcome = Result<(), (AttributeError, Approach)>;

const fn withdraw<T>(error: AttributeError) -> Result<T, (AttributeError, Approach)> {
    Err((error, Approach::TreatAsWithdraw))
}

const fn discard<T>(error: AttributeError) -> Result<T, (AttributeError, Approach)> {
    Err((error, Approach::AttributeDiscard))
}

const fn reset<T>(error: AttributeError) -> Result<T, (AttributeError, Approach)> {
    Err((error, Approach::SessionReset))
}

fn four(value: &[u8]) -> Result<u32, (AttributeError, Approach)> {
    match value {
        &[a, b, c, d] => Ok(u32::from_be_bytes([a, b, c, d])),
        _ => withdraw(AttributeError::Length),
    }
}

/// A list of items of `size` octets each, at least one.
fn list(value: &[u8], size: usize) -> Result<&[u8], (AttributeError, Approach)> {
    if value.is_empty() || !value.len().is_multiple_of(size) { withdraw(AttributeError::Length) } else { Ok(value) }
}

fn aggregator(value: &[u8]) -> Option<Aggregator> {
    let (asn, address) = match *value {
        [a, b, ref address @ ..] if value.len() == 6 => (u32::from(u16::from_be_bytes([a, b])), address),
        [a, b, c, d, ref address @ ..] if value.len() == 8 => (u32::from_be_bytes([a, b, c, d]), address),
        _ => return None,
    };
    let (_, address) = be_u32::<_, ()>(address).ok()?;
    Some(Aggregator { asn, address: Ipv4Addr::from(address) })
}

fn v6(octets: &[u8]) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?))
}

/// A next hop of a length that its family allows (RFC 4760, 2545, 8950).
fn next_hop(family: Family, octets: &[u8], context: Context) -> Option<NextHop> {
    if family == Family::Ipv4 {
        if let Ok(four) = <[u8; 4]>::try_from(octets) {
            return Some(NextHop { address: Ipv4Addr::from(four).into(), link_local: None });
        }
        if !context.extended_next_hop {
            return None;
        }
    }
    if octets.len() == 16 {
        return Some(NextHop { address: v6(octets)?.into(), link_local: None });
    }
    let (global, link_local) = octets.split_at_checked(16)?;
    let (global, link_local) = (v6(global)?, v6(link_local)?);
    // A session between link-local addresses may have no global one, and some leave the second half empty.
    let link_local = link_local.is_unicast_link_local().then_some(link_local);
    let address = if global.is_unspecified() { link_local.unwrap_or(global) } else { global };
    Some(NextHop { address: address.into(), link_local })
}

type Reach<'a> = (u16, u8, &'a [u8], &'a [u8]);

fn mp_reach(value: &[u8]) -> Parsed<'_, Reach<'_>> {
    let (nlri, (afi, safi, next_hop, _reserved)) = (be_u16, be_u8, length_data(be_u8), be_u8).parse(value)?;
    Ok((&[], (afi, safi, next_hop, nlri)))
}

fn mp_unreach(value: &[u8]) -> Parsed<'_, (u16, u8)> {
    (be_u16, be_u8).parse(value)
}

/// Whether the attributes inside an `ATTR_SET` (RFC 6368) can be told apart.
fn attr_set(value: &[u8]) -> bool {
    (be_u32::<_, ()>, all_consuming(many0(raw))).parse(value).is_ok_and(|(_, (_, inner))| {
        inner.iter().all(|one| !matches!(one.kind, kind::MP_REACH_NLRI | kind::MP_UNREACH_NLRI | kind::ATTR_SET))
    })
}

/// Whether the TLVs (type of one octet, length of two) fill the value.
fn tlvs(value: &[u8]) -> bool {
    !value.is_empty() && all_consuming(many0((be_u8::<_, ()>, length_data(be_u16)))).parse(value).is_ok()
}

/// What is read before everything is known: an old speaker's four-octet attributes.
#[derive(Default)]
struct Old<'a> {
    path: Option<AsPath<'a>>,
    aggregator: Option<Aggregator>,
}

impl<'a> Attributes<'a> {
    /// Reads the attributes of an UPDATE. Whatever is wrong is in the faults; what is right can still be used, as far as
    /// the strongest approach allows.
    pub fn parse(field: &'a [u8], context: Context) -> (Self, Vec<Fault<'a>>) {
        let mut all = Self::default();
        let mut old = Old::default();
        let mut faults = Vec::new();
        let mut seen = [false; 256];
        let mut rest = field;
        while !rest.is_empty() {
            let Ok((after, one)) = raw(rest) else {
                // RFC 7606 section 4: the prefixes can be found all the same.
                let kind = rest.get(1).copied().unwrap_or(0);
                let (error, approach) = (AttributeError::List, Approach::TreatAsWithdraw);
                faults.push(Fault { error, approach, kind, octets: rest });
                break;
            };
            let octets = rest.get(..rest.len() - after.len()).unwrap_or(rest);
            rest = after;
            let mut fault = |(error, approach)| faults.push(Fault { error, approach, kind: one.kind, octets });
            if let Some(seen) = seen.get_mut(usize::from(one.kind))
                && std::mem::replace(seen, true)
            {
                // RFC 7606 section 3 g.
                fault(match one.kind {
                    kind::MP_REACH_NLRI | kind::MP_UNREACH_NLRI => (AttributeError::List, Approach::SessionReset),
                    _ => (AttributeError::Repeated, Approach::AttributeDiscard),
                });
                continue;
            }
            if let Some(flags) = flags_of(one.kind)
                && flags != one.flags & (OPTIONAL | TRANSITIVE)
            {
                // RFC 7311 section 3, RFC 8669 section 6: whatever is wrong with these, only they go.
                if matches!(one.kind, kind::AIGP | kind::PREFIX_SID) {
                    fault((AttributeError::Flags, Approach::AttributeDiscard));
                    continue;
                }
                // RFC 7606 section 3 c.
                fault((AttributeError::Flags, Approach::TreatAsWithdraw));
            }
            if let Err(error) = all.take(&one, context, &mut old) {
                fault(error);
            }
            if one.flags & PARTIAL != 0 && one.kind < 64 {
                all.partial |= 1 << one.kind;
            }
        }
        all.reconstruct(&old, context.width);
        (all, faults)
    }

    /// RFC 6793 section 4.2.3: what an old speaker could not read.
    fn reconstruct(&mut self, old: &Old<'a>, width: Width) {
        let trans = u32::from(super::open::AS_TRANS);
        if width == Width::Four {
            return;
        }
        if let (Some(two), Some(_)) = (self.aggregator, old.aggregator)
            && two.asn != trans
        {
            return;
        }
        if self.aggregator.is_some() && old.aggregator.is_some() {
            self.aggregator = old.aggregator;
        }
        if let (Some(path), Some(four)) = (&self.as_path, &old.path) {
            self.as_path = Some(path.merged(four));
        }
    }

    fn take(&mut self, one: &Raw<'a>, context: Context, old: &mut Old<'a>) -> Outcome {
        use AttributeError::{
            AsPath as Path, External, Length, NextHop as Hop, Optional, Origin as Undefined, Unrecognized,
        };
        let value = one.value;
        match one.kind {
            kind::ORIGIN => {
                self.origin = Some(match value {
                    [0] => Origin::Igp,
                    [1] => Origin::Egp,
                    [2] => Origin::Incomplete,
                    [_] => return withdraw(Undefined),
                    _ => return withdraw(Length),
                });
            }
            kind::AS_PATH => {
                self.as_path = AsPath::parse(value, context.width);
                if self.as_path.is_none() {
                    return withdraw(Path);
                }
            }
            kind::NEXT_HOP => {
                let address = Ipv4Addr::from(four(value)?);
                self.next_hop = Some(address);
                if (NextHop { address: address.into(), link_local: None }).impossible() {
                    return withdraw(Hop);
                }
            }
            kind::MULTI_EXIT_DISC => self.multi_exit_disc = Some(four(value)?),
            // RFC 7606 sections 7.5, 7.9, 7.10: none of these crosses the border of an AS.
            kind::LOCAL_PREF | kind::ORIGINATOR_ID | kind::CLUSTER_LIST if context.external => {
                return discard(External);
            }
            kind::LOCAL_PREF => self.local_pref = Some(four(value)?),
            kind::ORIGINATOR_ID => self.originator_id = Some(Ipv4Addr::from(four(value)?)),
            kind::CLUSTER_LIST => self.cluster_list = list(value, 4)?,
            kind::ATOMIC_AGGREGATE if value.is_empty() => self.atomic_aggregate = true,
            kind::ATOMIC_AGGREGATE => return discard(Length),
            kind::AGGREGATOR => {
                let length = if context.width == Width::Four { 8 } else { 6 };
                match aggregator(value).filter(|_| value.len() == length) {
                    Some(Aggregator { asn: 0, .. }) => return discard(Path),
                    Some(aggregator) => self.aggregator = Some(aggregator),
                    None => return discard(Length),
                }
            }
            kind::COMMUNITY => self.communities = list(value, 4)?,
            kind::EXTENDED_COMMUNITIES => self.extended_communities = list(value, 8)?,
            kind::LARGE_COMMUNITY => self.large_communities = list(value, 12)?,
            kind::MP_REACH_NLRI => {
                let Ok((_, (afi, safi, hop, nlri))) = mp_reach(value) else { return reset(Optional) };
                // A family that was not negotiated is no error, and no route (RFC 4760 section 7).
                self.foreign = true;
                if let Some(family) = family(afi, safi).filter(|&family| context.carries(family)) {
                    let Some(hop) = next_hop(family, hop, context) else { return reset(Optional) };
                    let nlri = Nlri::parse_paths(family, nlri, context.has_paths(family)).map_err(prefix_error)?;
                    self.foreign = false;
                    self.mp_reach = Some(MpReach { family, next_hop: hop, nlri });
                    if hop.impossible() {
                        return withdraw(Hop);
                    }
                }
            }
            kind::MP_UNREACH_NLRI => {
                let Ok((nlri, (afi, safi))) = mp_unreach(value) else { return reset(Optional) };
                if let Some(family) = family(afi, safi).filter(|&family| context.carries(family)) {
                    let nlri = Nlri::parse_paths(family, nlri, context.has_paths(family)).map_err(prefix_error)?;
                    self.mp_unreach = Some(MpUnreach { family, nlri });
                }
            }
            // RFC 6793 section 4.1: from a speaker of four octets these are to be discarded, whatever they hold.
            kind::AS4_PATH | kind::AS4_AGGREGATOR if context.width == Width::Four => (),
            kind::AS4_PATH => match AsPath::parse(value, Width::Four) {
                Some(path) if !value.is_empty() => old.path = Some(path),
                _ => return discard(Path),
            },
            kind::AS4_AGGREGATOR => match aggregator(value).filter(|one| value.len() == 8 && one.asn != 0) {
                Some(aggregator) => old.aggregator = Some(aggregator),
                None => return discard(Length),
            },
            kind::ONLY_TO_CUSTOMER => self.only_to_customer = Some(four(value)?),
            // Not known to us beyond their shape; optional and transitive ones are passed on.
            kind::IPV6_EXTENDED_COMMUNITIES => return list(value, 20).map(|_| self.pass_on(one)),
            kind::ATTR_SET if !attr_set(value) => return withdraw(Optional),
            kind::PREFIX_SID if !tlvs(value) => return discard(Optional),
            kind::TRAFFIC_ENGINEERING if value.len() < 36 => return withdraw(Length),
            // RFC 7311 section 3.3: not enabled, so as if it were unknown and not transitive.
            kind::AIGP | kind::TRAFFIC_ENGINEERING => (),
            _ if one.flags & OPTIONAL == 0 && flags_of(one.kind).is_none() => return reset(Unrecognized),
            _ if one.flags & TRANSITIVE != 0 => self.pass_on(one),
            _ => (),
        }
        Ok(())
    }

    fn pass_on(&mut self, one: &Raw<'a>) {
        let flags = one.flags & (OPTIONAL | TRANSITIVE | PARTIAL);
        self.unknown.push(Unknown { flags, kind: one.kind, value: one.value });
    }
}

/// RFC 7606 section 5.3: where prefixes cannot be told apart nothing can be withdrawn in their stead.
fn prefix_error(_: PrefixError) -> (AttributeError, Approach) {
    (AttributeError::Optional, Approach::SessionReset)
}
