//! The chains, walked as the kernel walks them, against what the queue engine decides.

mod walk;

use std::collections::BTreeSet;

use ipnet::IpNet;
use martlet_api::view::{ByteMatch, Endpoint, ObjectName, Service, TransportProtocol};
use martlet_netlink::Link;
use martlet_netlink::nft::QueueForm;
use proptest::prelude::*;

use walk::{End, walk, walk_in};

use super::*;
use crate::counters::Reason;
use crate::engine::Choice;
use crate::packet::parse;
use crate::targets::{Hop, Marks, Settings, Targets, targets};

const QUEUE: Queue = Queue { first: 0, total: 1, bypass: false, fanout: false, form: QueueForm::Native };

fn packet(six: bool, source: u8, vip: u8, protocol: u8, ports: [u16; 2]) -> Vec<u8> {
    // Behind the 8 octets of a UDP header: ports of SCTP.
    let transport = [&ports[0].to_be_bytes()[..], &ports[1].to_be_bytes(), &[0; 4], &[0, 3, 0, 4]].concat();
    let mut octets = if six {
        let [from, to] = [format!("fd00::{source:x}"), format!("2000::{vip:x}")]
            .map(|text| text.parse::<std::net::Ipv6Addr>().unwrap().octets());
        [&[0x60, 0, 0, 0, 0, 12, protocol, 64], &from[..], &to].concat()
    } else {
        vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, source, 20, 0, 0, vip]
    };
    octets.extend(transport);
    octets
}

/// An error of a router in between about what an endpoint sent in a flow: `shape` 0 as a rule, 1 to 3 with IPv4 options, as a
/// fragment, as a later fragment (of IPv6: with a fragment header), 4 about what another VIP sent.
fn error(six: bool, kind: u8, shape: u8, flow: (u8, u8, u8), ports: [u16; 2]) -> Vec<u8> {
    let (source, vip, protocol) = flow;
    let mut inner = packet(six, source, vip, protocol, ports);
    let (addresses, at) = if six { (8, 40) } else { (12, 20) };
    let size = (at - addresses) / 2;
    inner[addresses..at].rotate_left(size);
    inner[at..at + 4].rotate_left(2);
    match (shape, six) {
        (1, false) => {
            inner.splice(20..20, [1, 1, 1, 0]);
            inner[0] = 0x46;
            inner[3] += 4;
        }
        (2, false) => inner[6] = 0x20,
        (3, false) => inner[7] = 100,
        (1..4, true) => {
            inner.splice(40..40, [protocol, 0, 0, shape - 1, 0, 0, 0, 1]);
            inner[6] = 44;
            inner[5] += 8;
        }
        (4, _) => inner[addresses + size - 1] ^= 3,
        _ => {}
    }
    let mut outer = packet(six, source, vip, if six { 58 } else { 1 }, [0, 0]);
    outer.truncate(at);
    outer.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    outer.extend(inner);
    let length = u8::try_from(outer.len()).unwrap();
    if six {
        outer[5] = length - 40;
    } else {
        outer[3] = length;
    }
    outer
}

fn nets(prefixes: &[&str]) -> BTreeSet<IpNet> {
    prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect()
}

fn view(routes: Vec<Route>) -> View {
    let endpoint = |number: u32| Endpoint {
        name: "pod".into(),
        ipv4: Some(std::net::Ipv4Addr::new(10, 9, 0, u8::try_from(number).unwrap())),
        // Of service b only one has both families: two tables.
        ipv6: (number != 7).then(|| format!("fd09::{number}").parse().unwrap()),
        ready: true,
        serving: true,
        terminating: false,
    };
    let service = |numbers: &[u32]| Service {
        endpoints: numbers.iter().map(|number| (*number, endpoint(*number))).collect(),
        max_endpoints: 10,
    };
    View {
        gateway: ObjectName { namespace: "default".into(), name: "sllb-a".into() },
        exists: true,
        routers: BTreeMap::new(),
        routes: routes.into_iter().enumerate().map(|(number, route)| (format!("r{number}").into(), route)).collect(),
        services: [("a".into(), service(&[1, 2, 3])), ("b".into(), service(&[6, 7])), ("none".into(), service(&[]))]
            .into(),
        vips: nets(&["20.0.0.1/32", "20.0.0.2/32", "2000::1/128", "2000::2/128"]),
        subnets: BTreeSet::new(),
        conditions: BTreeSet::new(),
    }
}

fn made(view: &View) -> (Tables, Offload) {
    let (targets, links) = followed(view);
    let offload = offload(view, &targets.tables, QUEUE, limit(&targets.hops, &links));
    (Tables::clone(&targets.tables), offload)
}

/// Endpoints behind link `int`, VIPs by way of `ext`; `big` takes longer packets than `int`.
fn followed(view: &View) -> (Targets, BTreeMap<u32, Link>) {
    let addresses = ["10.9.0.254/24", "fd09::fe/64"].map(|address| address.parse().unwrap()).into();
    let link = |index, name: &str, mtu, addresses| {
        (index, Link { index, name: name.into(), up: true, carrier: true, mtu, addresses })
    };
    let none = BTreeSet::new;
    let links = [
        link(1, "lo", 1500, none()),
        link(2, "ext", 1500, none()),
        link(3, "int", 1500, addresses),
        link(4, "big", 9000, none()),
    ];
    let links = links.into();
    let settings = Settings { size: Some(crate::maglev::Size::new(251).unwrap()), ..Settings::default() };
    (targets(view, &links, &mut Marks::default(), &settings, &Tables::default()), links)
}

prop_compose! {
    fn route()(
        priority in 0..3_i32, vips in 1_usize..4, sources in 0_usize..4, protocols in 1_u8..8,
        source_ports in prop::collection::btree_set((0_u16..8, 0_u16..9), 0..2),
        destination_ports in prop::collection::btree_set((0_u16..8, 0_u16..9), 0..3),
        backend in prop::sample::select(vec!["a", "b", "none", "missing"]), byte in 0_u8..5, in_udp in 0_u16..30,
        translated in prop::collection::btree_map((0_usize..3, 0_u16..9), 0_u16..9, 0..3),
    ) -> Route {
        let range = |ranges: BTreeSet<(u16, u16)>| ranges.into_iter().map(|(first, more)| (first, first + more)).collect();
        let all = [TransportProtocol::Tcp, TransportProtocol::Udp, TransportProtocol::Sctp];
        let protocols: BTreeSet<_> =
            all.into_iter().zip([1, 2, 4]).filter(|(_, bit)| protocols & bit != 0).map(|(one, _)| one).collect();
        let first = *protocols.first().unwrap();
        Route {
            priority,
            destinations: nets([&["20.0.0.1/32", "2000::1/128"][..], &["20.0.0.2/32"], &["20.0.0.1/32", "20.0.0.2/32", "2000::2/128"]][vips - 1]),
            sources: nets([&[][..], &["0.0.0.0/0"], &["10.0.0.0/30", "fd00::/126"], &["::/0"]][sources]),
            protocols,
            source_ports: range(source_ports),
            destination_ports: range(destination_ports),
            byte_matches: if byte == 0 {
                vec![ByteMatch { protocol: first, offset: 1, octets: 1, mask: 1, value: 1 }]
            } else { vec![] },
            backend: backend.into(),
            port_translations: translated.into_iter().map(|((of, port), to)| ((all[of], port), to)).collect(),
            sctp_in_udp_port: (in_udp < 6).then_some(in_udp),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn both_engines_send_a_flow_to_the_same_endpoint(
        routes in prop::collection::vec(route(), 0..8),
        packets in prop::collection::vec((any::<bool>(), 0_u8..8, 1_u8..3, 0_usize..4, 0_u16..18, 0_u16..18), 1..40),
    ) {
        let (tables, offload) = made(&view(routes));
        for (six, source, vip, transport, from, to) in packets {
            let protocol = [6, 17, 132, if six { 58 } else { 1 }][transport];
            let octets = packet(six, source, vip, protocol, [from, to]);
            let family = if six { Family::Ipv6 } else { Family::Ipv4 };
            let by_queue = parse(&octets).map_err(Reason::from).and_then(|packet| tables.fate(&packet));
            match walk(&offload, family, &octets, if six { 40 } else { 20 }, protocol) {
                End::Mark(mark) => prop_assert_eq!(by_queue.map(Choice::told), Ok(mark)),
                // The queue engine decides all that comes to it.
                End::Queue => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn the_short_way_ends_at_the_endpoint_of_the_long_one(
        routes in prop::collection::vec(route(), 0..8),
        packets in prop::collection::vec(
            (any::<bool>(), 0_u8..8, 1_u8..4, 0_usize..4, (0_u16..18, 0_u16..18), 0_u8..10), 1..40),
    ) {
        let view = view(routes);
        let (Targets { tables, hops, .. }, links) = followed(&view);
        let Some(table) = ingress("t", &view, &tables, &hops, &links) else { return Ok(()) };
        for (six, source, vip, transport, ports, shape) in packets {
            let protocol = [6, 17, 132, if six { 58 } else { 1 }][transport];
            let mut octets = packet(six, source, vip, protocol, ports.into());
            let hop_limit = if six { 7 } else { 8 };
            match (shape, six) {
                // Options, a first and a later fragment; of IPv6 a fragment header.
                (0, false) => octets[0] = 0x46,
                (1, false) => octets[6] = 0x20,
                (2, false) => octets[7] = 1,
                (0..3, true) => octets[6] = 44,
                (3, _) => octets[hop_limit] = 1,
                _ => {}
            }
            let family = if six { Family::Ipv6 } else { Family::Ipv4 };
            match walk_in(&table, family, &octets, protocol) {
                End::Forward(address, interface) => {
                    prop_assert!(shape > 3, "that needs more than forwarding");
                    let choice = parse(&octets).map_err(Reason::from).and_then(|packet| tables.fate(&packet));
                    let mark = choice.map(Choice::told).unwrap();
                    prop_assert!(hops.iter().any(|hop| (hop.mark, hop.address, hop.interface) == (mark, address, interface)));
                }
                End::On | End::Mark(_) => {}
                End::Queue => prop_assert!(false, "there is no queue here"),
            }
        }
    }
}

/// Two ports of the first VIP of each family.
fn two_ports() -> Route {
    Route {
        destinations: nets(&["20.0.0.1/32", "2000::1/128"]),
        protocols: [TransportProtocol::Tcp, TransportProtocol::Udp].into(),
        destination_ports: [(4000, 4001)].into(),
        backend: "a".into(),
        ..Route::default()
    }
}

#[test]
fn each_endpoint_is_forwarded_to_by_its_own_link() {
    let view = view(vec![two_ports()]);
    let (Targets { tables, hops, .. }, links) = followed(&view);
    let hops: BTreeSet<Hop> = hops.into_iter().map(|hop| Hop { interface: 3 + hop.mark % 2, ..hop }).collect();
    let table = ingress("t", &view, &tables, &hops, &links).unwrap();
    let mut seen = BTreeSet::new();
    for port in 1..100 {
        match walk_in(&table, Family::Ipv4, &packet(false, 1, 1, 6, [port, 4000]), 6) {
            End::Forward(address, interface) => {
                assert!(hops.iter().any(|hop| (hop.address, hop.interface) == (address, interface)));
                seen.insert(interface);
            }
            end => panic!("{end:?}"),
        }
    }
    assert_eq!(seen, [3, 4].into());
}

#[test]
fn plain_packets_take_the_short_way() {
    let route = Route { port_translations: [((TransportProtocol::Udp, 4001), 9)].into(), ..two_ports() };
    let view = view(vec![route]);
    let (Targets { tables, hops, .. }, links) = followed(&view);
    let table = ingress("t", &view, &tables, &hops, &links).unwrap();
    let place = table.chains["ingress"].hook.clone().unwrap().place;
    let links_in = ["ext".to_owned()].into();
    assert_eq!(place, martlet_netlink::nft::Place::Ingress(links_in), "no endpoints behind it, no longer packets");
    for (six, family) in [(false, Family::Ipv4), (true, Family::Ipv6)] {
        let end = |vip, protocol, port| walk_in(&table, family, &packet(six, 1, vip, protocol, [1, port]), protocol);
        assert!(matches!(end(1, 6, 4000), End::Forward(_, 3)) && matches!(end(1, 17, 4000), End::Forward(_, 3)));
        assert_eq!(
            [end(1, 17, 4001), end(1, 6, 4002), end(3, 6, 4000), end(1, 1, 4000)],
            [End::On, End::On, End::On, End::On]
        );
    }
    assert!(ingress("t", &view, &tables, &BTreeSet::new(), &links).is_none(), "nobody to forward to");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn both_engines_send_an_error_to_the_endpoint_that_it_is_about(
        routes in prop::collection::vec(route(), 0..8),
        errors in prop::collection::vec(
            (any::<bool>(), prop::sample::select(vec![0_u8, 1, 2, 3, 4, 5, 8, 11, 12, 128]), 0..5_u8,
             (0_u8..8, 1_u8..3, prop::sample::select(vec![6_u8, 17, 132, 1])), 0_u16..18, 0_u16..18), 1..40),
    ) {
        let (tables, offload) = made(&view(routes));
        for (six, kind, shape, flow, from, to) in errors {
            let octets = error(six, kind, shape, flow, [from, to]);
            let family = if six { Family::Ipv6 } else { Family::Ipv4 };
            let by_queue = parse(&octets).map_err(Reason::from).and_then(|packet| tables.fate(&packet));
            if let End::Mark(mark) = walk(&offload, family, &octets, if six { 40 } else { 20 }, if six { 58 } else { 1 }) {
                prop_assert_eq!(by_queue.map(Choice::told), Ok(mark));
            }
        }
    }
}

#[test]
fn what_the_kernel_can_decide_does_not_come_to_the_queue() {
    let (_, offload) = made(&view(vec![two_ports()]));
    for six in [false, true] {
        let family = if six { Family::Ipv6 } else { Family::Ipv4 };
        let end = |protocol, port| {
            walk(&offload, family, &packet(six, 1, 1, protocol, [1, port]), if six { 40 } else { 20 }, protocol)
        };
        assert!(matches!(end(6, 4000), End::Mark(_)) && matches!(end(17, 4001), End::Mark(_)));
        assert_eq!((end(6, 4002), end(132, 4000), end(1, 4000)), (End::Queue, End::Queue, End::Queue));
        let about = |kind, shape, port| {
            let octets = error(six, kind, shape, (1, 1, 6), [1, port]);
            walk(&offload, family, &octets, if six { 40 } else { 20 }, if six { 58 } else { 1 })
        };
        let (kinds, echo) = if six { ([1, 2, 3, 4].to_vec(), 128) } else { ([3, 4, 5, 11, 12].to_vec(), 8) };
        for kind in kinds {
            assert_eq!(about(kind, 0, 4000), end(6, 4000), "an error goes where its flow goes");
        }
        assert_eq!((about(echo, 0, 4000), about(3, 0, 4002)), (End::Queue, End::Queue));
        for shape in 1..5 {
            assert_eq!(about(3, shape, 4000), End::Queue, "not where the ports are looked for, or foreign: {shape}");
        }
    }
    assert_eq!((offload.elements, offload.excess()), (251, None), "both families share one map");
}

#[test]
fn what_is_too_long_for_an_endpoint_is_answered_by_the_queue() {
    let view = view(vec![two_ports()]);
    let (Targets { tables, hops, .. }, mut links) = followed(&view);
    for (more, wanted) in [(0, Some(1500)), (7500, None)] {
        links.get_mut(&3).unwrap().mtu += more;
        assert_eq!(limit(&hops, &links), wanted, "of link `big`, only what fits");
    }
    let made = offload(&view, &tables, QUEUE, Some(1500));
    for (six, at, fits) in [(false, 2, 1500_u16), (true, 4, 1460)] {
        let family = if six { Family::Ipv6 } else { Family::Ipv4 };
        let ends = [fits, fits + 1].map(|length| {
            let mut octets = packet(six, 1, 1, 6, [1, 4000]);
            octets[at..at + 2].copy_from_slice(&length.to_be_bytes());
            walk(&made, family, &octets, if six { 40 } else { 20 }, 6)
        });
        assert!(matches!(ends, [End::Mark(_), End::Queue]), "{ends:?}");
    }
}

#[test]
fn what_is_too_much_says_so() {
    let huge = Offload { elements: MOST_ELEMENTS + 1, ..Offload::default() };
    assert!(huge.excess().unwrap().contains("2000001 slots"));
    let long = Offload { rules: MOST_RULES + 1, ..Offload::default() };
    assert!(long.excess().unwrap().contains("513 rules"));
}

proptest! {
    #[test]
    fn blocks_are_exactly_the_ranges(first: u16, more in 0_u16..500, port: u16) {
        let last = first.saturating_add(more);
        for port in [port, first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
            let inside = blocks(&[(first, last)].into()).iter().filter(|(start, mask)| port & mask == *start).count();
            prop_assert_eq!(inside, usize::from((first..=last).contains(&port)));
        }
    }
}
