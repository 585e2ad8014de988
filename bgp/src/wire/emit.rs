//! Path attributes as octets: in the order of their types, with the flags of their RFCs.
//!
//! `MP_REACH_NLRI` comes first (RFC 7606 section 5.1); its prefixes are the last octets of what is emitted for it, so the
//! reader of a damaged message finds them.

use std::net::IpAddr;

use bytes::BufMut;

use super::as_path::{AsPath, Width};
use super::attribute::{
    Attributes, EXTENDED, MpReach, MpUnreach, NextHop, OPTIONAL, Origin, PARTIAL, TRANSITIVE, kind,
};
use super::capability::afi;
use super::open::AS_TRANS;
use super::{length8, length16};

/// Appends an attribute.
pub fn put_attribute(out: &mut Vec<u8>, flags: u8, kind: u8, value: &[u8]) {
    if let Ok(length) = u8::try_from(value.len()) {
        out.put_slice(&[flags, kind, length]);
    } else {
        out.put_slice(&[flags | EXTENDED, kind]);
        out.put_u16(length16(value.len()));
    }
    out.put_slice(value);
}

/// Appends the value of an `MP_REACH_NLRI` up to its prefixes.
pub fn put_mp_reach_head(out: &mut Vec<u8>, family: crate::Family, hop: &NextHop) {
    out.put_u16(afi(family));
    out.put_u8(1);
    match (hop.address, hop.link_local) {
        (IpAddr::V4(address), _) => {
            out.put_u8(4);
            out.put_slice(&address.octets());
        }
        (IpAddr::V6(address), None) => {
            out.put_u8(16);
            out.put_slice(&address.octets());
        }
        (IpAddr::V6(address), Some(link_local)) => {
            out.put_u8(32);
            out.put_slice(&address.octets());
            out.put_slice(&link_local.octets());
        }
    }
    out.put_u8(0);
}

/// Appends the value of an `MP_UNREACH_NLRI` up to its prefixes.
pub fn put_mp_unreach_head(out: &mut Vec<u8>, family: crate::Family) {
    out.put_u16(afi(family));
    out.put_u8(1);
}

fn mp_reach(reach: &MpReach<'_>, out: &mut Vec<u8>) {
    let mut value = Vec::new();
    put_mp_reach_head(&mut value, reach.family, &reach.next_hop);
    value.put_slice(reach.nlri.octets());
    put_attribute(out, OPTIONAL, kind::MP_REACH_NLRI, &value);
}

fn mp_unreach(unreach: &MpUnreach<'_>, out: &mut Vec<u8>) {
    let mut value = Vec::new();
    put_mp_unreach_head(&mut value, unreach.family);
    value.put_slice(unreach.nlri.octets());
    put_attribute(out, OPTIONAL, kind::MP_UNREACH_NLRI, &value);
}

impl Attributes<'_> {
    /// Appends all attributes for a neighbour whose AS numbers have `width`; towards an old speaker with `AS4_PATH` and
    /// `AS4_AGGREGATOR` where they say more (RFC 6793 section 4.2.2).
    pub fn put(&self, width: Width, out: &mut Vec<u8>) {
        if let Some(reach) = &self.mp_reach {
            mp_reach(reach, out);
        }
        if let Some(unreach) = &self.mp_unreach {
            mp_unreach(unreach, out);
        }
        if let Some(origin) = self.origin {
            let origin = match origin {
                Origin::Igp => 0,
                Origin::Egp => 1,
                Origin::Incomplete => 2,
            };
            put_attribute(out, TRANSITIVE, kind::ORIGIN, &[origin]);
        }
        if let Some(path) = &self.as_path {
            self.path(kind::AS_PATH, TRANSITIVE, path, width, out);
        }
        if let Some(address) = self.next_hop {
            put_attribute(out, TRANSITIVE, kind::NEXT_HOP, &address.octets());
        }
        if let Some(med) = self.multi_exit_disc {
            put_attribute(out, OPTIONAL, kind::MULTI_EXIT_DISC, &med.to_be_bytes());
        }
        if let Some(preference) = self.local_pref {
            put_attribute(out, TRANSITIVE, kind::LOCAL_PREF, &preference.to_be_bytes());
        }
        if self.atomic_aggregate {
            put_attribute(out, TRANSITIVE, kind::ATOMIC_AGGREGATE, &[]);
        }
        self.aggregator(kind::AGGREGATOR, width, out);
        self.list(kind::COMMUNITY, OPTIONAL | TRANSITIVE, self.communities, out);
        if let Some(id) = self.originator_id {
            put_attribute(out, OPTIONAL, kind::ORIGINATOR_ID, &id.octets());
        }
        self.list(kind::CLUSTER_LIST, OPTIONAL, self.cluster_list, out);
        self.list(kind::EXTENDED_COMMUNITIES, OPTIONAL | TRANSITIVE, self.extended_communities, out);
        if let Some(path) = self.as_path.as_ref().filter(|path| width == Width::Two && path.wide()) {
            self.path(kind::AS4_PATH, OPTIONAL | TRANSITIVE, path, Width::Four, out);
        }
        if width == Width::Two && self.aggregator.is_some_and(|one| one.asn > u32::from(u16::MAX)) {
            self.aggregator(kind::AS4_AGGREGATOR, Width::Four, out);
        }
        self.list(kind::LARGE_COMMUNITY, OPTIONAL | TRANSITIVE, self.large_communities, out);
        if let Some(asn) = self.only_to_customer {
            let flags = self.flags(kind::ONLY_TO_CUSTOMER, OPTIONAL | TRANSITIVE);
            put_attribute(out, flags, kind::ONLY_TO_CUSTOMER, &asn.to_be_bytes());
        }
        for one in &self.unknown {
            put_attribute(out, one.flags, one.kind, one.value);
        }
    }

    fn flags(&self, kind: u8, flags: u8) -> u8 {
        let partial = flags & OPTIONAL != 0 && kind < 64 && self.partial >> kind & 1 == 1;
        flags | if partial { PARTIAL } else { 0 }
    }

    fn list(&self, kind: u8, flags: u8, value: &[u8], out: &mut Vec<u8>) {
        if !value.is_empty() {
            put_attribute(out, self.flags(kind, flags), kind, value);
        }
    }

    fn path(&self, kind: u8, flags: u8, path: &AsPath<'_>, width: Width, out: &mut Vec<u8>) {
        let mut value = Vec::new();
        path.put(width, &mut value);
        put_attribute(out, self.flags(kind, flags), kind, &value);
    }

    fn aggregator(&self, kind: u8, width: Width, out: &mut Vec<u8>) {
        let Some(aggregator) = self.aggregator else { return };
        let flags = self.flags(kind, OPTIONAL | TRANSITIVE);
        out.put_slice(&[flags, kind]);
        match width {
            Width::Two => {
                out.put_u8(length8(6));
                out.put_u16(u16::try_from(aggregator.asn).unwrap_or(AS_TRANS));
            }
            Width::Four => {
                out.put_u8(length8(8));
                out.put_u32(aggregator.asn);
            }
        }
        out.put_slice(&aggregator.address.octets());
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::super::as_path::tests::path;
    use super::super::attribute::{Aggregator, Context, Unknown};
    use super::super::prefix::Nlri;
    use super::*;
    use crate::Family;

    const CONTEXT: Context = Context {
        width: Width::Four,
        external: false,
        extended_next_hop: true,
        ipv4: true,
        ipv6: true,
        paths_ipv4: false,
        paths_ipv6: false,
    };

    /// Owned octets to build attributes from.
    #[derive(Clone, Debug)]
    struct Parts {
        numbers: [Option<u32>; 4],
        path: Option<Vec<u8>>,
        lists: [Vec<u8>; 4],
        origin: Option<u8>,
        next_hop: bool,
        aggregator: Option<u32>,
        reach: Option<(bool, Vec<u8>)>,
        unknown: Option<Vec<u8>>,
        partial: bool,
    }

    fn parts() -> impl Strategy<Value = Parts> {
        let octets = |size: usize| {
            prop::collection::vec(any::<u8>(), 0..40usize).prop_map(move |mut all| {
                all.truncate(all.len() / size * size);
                all
            })
        };
        (
            any::<[Option<u32>; 4]>(),
            prop::option::of(path()),
            (octets(4), octets(4), octets(8), octets(12)),
            (prop::option::of(0u8..3), any::<bool>(), prop::option::of(1u32..)),
            prop::option::of((any::<bool>(), prop::collection::vec(any::<u8>(), 0..5))),
            prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
            any::<bool>(),
        )
            .prop_map(|(numbers, path, lists, (origin, next_hop, aggregator), reach, unknown, partial)| {
                Parts {
                    numbers,
                    path,
                    lists: [lists.0, lists.1, lists.2, lists.3],
                    origin,
                    next_hop,
                    aggregator,
                    reach: reach.map(|(link_local, hosts)| {
                        (link_local, hosts.into_iter().flat_map(|host| [32, 0x20, 0, 0, host]).collect())
                    }),
                    unknown,
                    partial,
                }
            })
    }

    fn attributes(parts: &Parts) -> Attributes<'_> {
        let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
        Attributes {
            origin: parts.origin.map(|origin| [Origin::Igp, Origin::Egp, Origin::Incomplete][usize::from(origin)]),
            as_path: parts.path.as_ref().map(|octets| AsPath::parse(octets, Width::Four).unwrap()),
            next_hop: parts.next_hop.then_some(Ipv4Addr::new(10, 0, 0, 1)),
            multi_exit_disc: parts.numbers[0],
            local_pref: parts.numbers[1],
            atomic_aggregate: parts.partial,
            aggregator: parts.aggregator.map(|asn| Aggregator { asn, address: Ipv4Addr::LOCALHOST }),
            communities: &parts.lists[0],
            originator_id: parts.numbers[2].map(Ipv4Addr::from),
            cluster_list: &parts.lists[1],
            mp_reach: parts.reach.as_ref().map(|(link_local, nlri)| MpReach {
                family: Family::Ipv6,
                next_hop: NextHop {
                    address: address.into(),
                    link_local: link_local.then(|| "fe80::1".parse().unwrap()),
                },
                nlri: Nlri::parse(Family::Ipv6, nlri).unwrap(),
            }),
            mp_unreach: None,
            extended_communities: &parts.lists[2],
            large_communities: &parts.lists[3],
            only_to_customer: parts.numbers[3],
            unknown: parts
                .unknown
                .as_deref()
                .map(|value| Unknown { flags: OPTIONAL | TRANSITIVE | PARTIAL, kind: 99, value })
                .into_iter()
                .collect(),
            foreign: false,
            partial: if parts.partial && !parts.lists[0].is_empty() { 1 << kind::COMMUNITY } else { 0 },
        }
    }

    proptest! {
        #[test]
        fn what_is_emitted_parses_to_the_same(parts in parts()) {
            let attributes = attributes(&parts);
            let mut out = Vec::new();
            attributes.put(Width::Four, &mut out);
            let (parsed, faults) = Attributes::parse(&out, CONTEXT);
            prop_assert_eq!(faults, []);
            prop_assert_eq!(parsed, attributes);
        }

        #[test]
        fn an_old_speaker_loses_nothing(parts in parts()) {
            let mut attributes = attributes(&parts);
            attributes.partial = 0;
            let mut out = Vec::new();
            attributes.put(Width::Two, &mut out);
            let (parsed, faults) = Attributes::parse(&out, Context { width: Width::Two, ..CONTEXT });
            prop_assert_eq!(faults, []);
            let path = |attributes: &Attributes<'_>| attributes.as_path.as_ref().map(ToString::to_string);
            prop_assert_eq!(path(&parsed), path(&attributes));
            prop_assert_eq!(parsed.aggregator, attributes.aggregator);
        }

        #[test]
        fn any_octets_parse_to_attributes_or_faults(octets: Vec<u8>) {
            for width in [Width::Two, Width::Four] {
                for external in [false, true] {
                    let context = Context { width, external, ..CONTEXT };
                    let (parsed, faults) = Attributes::parse(&octets, context);
                    prop_assert!(!faults.is_empty() || octets.is_empty() || parsed.clone() == parsed);
                    prop_assert!(faults.len() <= octets.len());
                }
            }
        }
    }
}
