//! Routes as users write them, and the classifier against the simplest thing that is right: asking one after the other.

use proptest::prelude::*;

use super::*;

fn any_route() -> Route {
    Route {
        priority: 1,
        destinations: ["20.0.0.1/32", "2000::1/128"].map(|vip| vip.parse().unwrap()).into(),
        sources: BTreeSet::new(),
        source_ports: BTreeSet::new(),
        destination_ports: BTreeSet::new(),
        protocols: [TransportProtocol::Tcp].into(),
        byte_matches: Vec::new(),
        backend: "service-a".into(),
        ..Route::default()
    }
}

fn classifier(routes: &[(&str, Route)]) -> Classifier {
    let routes: Vec<(Arc<str>, Route)> = routes.iter().map(|(name, route)| ((*name).into(), route.clone())).collect();
    Classifier::new(routes.iter().map(|(name, route)| (name, route)))
}

fn flow(source: &str, destination: &str, protocol: u8, source_port: u16, destination_port: u16) -> Flow {
    Flow {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol,
        source_port,
        destination_port,
    }
}

/// The name of the route that serves a TCP packet of 10.0.0.1:1000.
fn serves(classifier: &Classifier, destination: &str, port: u16) -> Option<String> {
    let source = if destination.contains(':') { "fd00::1" } else { "10.0.0.1" };
    first(classifier, &flow(source, destination, 6, 1000, port), &[])
}

fn first(classifier: &Classifier, flow: &Flow, transport: &[u8]) -> Option<String> {
    let rank = classifier.matches(flow, Some(transport)).next()?;
    Some(classifier.names()[usize::try_from(rank).unwrap()].to_string())
}

#[test]
fn the_highest_priority_wins_then_the_name() {
    let of_priority = |priority| Route { priority, ..any_route() };
    let table =
        classifier(&[("b", of_priority(5)), ("c", of_priority(-7)), ("a", of_priority(5)), ("d", of_priority(6))]);
    assert_eq!(serves(&table, "20.0.0.1", 4000), Some("d".into()));
    let table = classifier(&[("b", of_priority(5)), ("c", of_priority(-7)), ("a", of_priority(5))]);
    assert_eq!(serves(&table, "20.0.0.1", 4000), Some("a".into()));
}

#[test]
fn what_a_route_does_not_say_is_any() {
    let table = classifier(&[("a", any_route())]);
    for port in [0, 1, 65535] {
        assert_eq!(serves(&table, "20.0.0.1", port), Some("a".into()));
        assert_eq!(serves(&table, "2000::1", port), Some("a".into()));
    }
    assert_eq!(serves(&table, "20.0.0.2", 1), None);
    assert_eq!(first(&table, &flow("10.0.0.1", "20.0.0.1", 17, 1, 1), &[]), None, "UDP was not asked for");
}

#[test]
fn all_of_ipv4_is_nothing_of_ipv6() {
    let route = Route { sources: ["0.0.0.0/0".parse().unwrap()].into(), ..any_route() };
    let table = classifier(&[("a", route)]);
    assert_eq!(serves(&table, "20.0.0.1", 1), Some("a".into()));
    assert_eq!(serves(&table, "2000::1", 1), None);
}

#[test]
fn port_0_and_ranges_are_inclusive() {
    let route = Route { destination_ports: [(0, 0), (4000, 4001), (65535, 65535)].into(), ..any_route() };
    let table = classifier(&[("a", route)]);
    let matched: Vec<u16> = [0, 1, 3999, 4000, 4001, 4002, 65534, 65535]
        .into_iter()
        .filter(|port| serves(&table, "20.0.0.1", *port).is_some())
        .collect();
    assert_eq!(matched, [0, 4000, 4001, 65535]);
}

#[test]
fn a_hundred_source_networks_are_as_good_as_one() {
    let sources: BTreeSet<IpNet> = (0..100).map(|net| format!("10.{net}.0.0/16").parse().unwrap()).collect();
    let table = classifier(&[("a", Route { sources, ..any_route() })]);
    for (source, matched) in
        [("10.0.0.0", true), ("10.99.255.255", true), ("10.100.0.0", false), ("9.255.255.255", false)]
    {
        assert_eq!(first(&table, &flow(source, "20.0.0.1", 6, 1, 1), &[]).is_some(), matched, "{source}");
    }
}

#[test]
fn an_echo_belongs_to_any_route_of_the_vip_that_takes_its_source() {
    let near = Route { sources: ["10.0.0.0/8".parse().unwrap()].into(), priority: 9, ..any_route() };
    let narrow = Route { destination_ports: [(1, 1)].into(), ..any_route() };
    let table = classifier(&[("near", near), ("all", narrow)]);
    assert_eq!(first(&table, &flow("10.0.0.1", "20.0.0.1", 1, 77, 0), &[]), Some("near".into()));
    assert_eq!(first(&table, &flow("11.0.0.1", "20.0.0.1", 1, 77, 0), &[]), Some("all".into()));
    assert_eq!(first(&table, &flow("fd00::1", "2000::1", 58, 77, 0), &[]), Some("all".into()));
}

#[test]
fn octets_of_the_transport_are_matched_under_their_mask() {
    let wanted = |offset, octets, mask, value| {
        let byte_match = ByteMatch { protocol: TransportProtocol::Tcp, offset, octets, mask, value };
        Route { byte_matches: vec![byte_match], ..any_route() }
    };
    let header = [0x12, 0x34, 0x0f, 0xa0, 0xde, 0xad, 0xbe, 0xef];
    let matched =
        |route| first(&classifier(&[("a", route)]), &flow("10.0.0.1", "20.0.0.1", 6, 1, 1), &header).is_some();
    assert!(matched(wanted(0, 2, 0xff00, 0x1200)));
    assert!(!matched(wanted(0, 2, 0xff00, 0x1300)));
    assert!(matched(wanted(4, 4, 0xffff_ffff, 0xdead_beef)));
    assert!(matched(wanted(7, 1, 0xff, 0xef)));
    assert!(!matched(wanted(7, 2, 0, 0)), "beyond the octets that there are");
    let udp = ByteMatch { protocol: TransportProtocol::Udp, offset: 0, octets: 1, mask: 0, value: 0 };
    assert!(!matched(Route { byte_matches: vec![udp], ..any_route() }), "a byte match of UDP in TCP");
}

#[test]
fn the_packet_in_an_error_is_matched_without_its_octets() {
    let byte_match = ByteMatch { protocol: TransportProtocol::Tcp, offset: 40, octets: 1, mask: 0xff, value: 1 };
    let table = classifier(&[("a", Route { byte_matches: vec![byte_match], ..any_route() })]);
    assert_eq!(table.matches(&flow("10.0.0.1", "20.0.0.1", 6, 1, 1), None).next(), Some(0));
}

/// Asks one route after the other.
fn slow<'a>(routes: &'a BTreeMap<Arc<str>, Route>, flow: &Flow, transport: &[u8]) -> Vec<&'a str> {
    let mut found: Vec<(&Arc<str>, &Route)> = routes
        .iter()
        .filter(|(_, route)| {
            let in_ranges = |ranges: &BTreeSet<(u16, u16)>, port| {
                ranges.is_empty() || ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
            };
            let transport_protocol = match flow.protocol {
                6 => TransportProtocol::Tcp,
                17 => TransportProtocol::Udp,
                _ => TransportProtocol::Sctp,
            };
            route.destinations.iter().any(|vip| vip.addr() == flow.destination)
                && route.protocols.contains(&transport_protocol)
                && (route.sources.is_empty() || route.sources.iter().any(|source| source.contains(&flow.source)))
                && in_ranges(&route.source_ports, flow.source_port)
                && in_ranges(&route.destination_ports, flow.destination_port)
                && route.byte_matches.iter().all(|m| m.protocol == transport_protocol && is_met(m, transport))
        })
        .collect();
    found.sort_by_key(|(name, route)| (std::cmp::Reverse(route.priority), *name));
    found.into_iter().map(|(name, _)| &**name).collect()
}

prop_compose! {
    fn ports()(ranges in prop::collection::btree_set((0_u16..12, 0_u16..6), 0..3)) -> BTreeSet<(u16, u16)> {
        // Small numbers meet often; the last port is an edge of its own.
        ranges.into_iter().map(|(first, more)| if first == 11 { (first, u16::MAX) } else { (first, first + more) }).collect()
    }
}

prop_compose! {
    fn route()(
        priority in -1..2_i32, vips in 1_u8..4, sources in prop::collection::btree_set((0_u8..8, 28_u8..33), 0..3),
        source_ports in ports(), destination_ports in ports(), protocols in 1_u8..8, byte: Option<bool>,
    ) -> Route {
        let protocols: BTreeSet<TransportProtocol> =
            [TransportProtocol::Tcp, TransportProtocol::Udp, TransportProtocol::Sctp].into_iter().zip([1, 2, 4])
            .filter(|(_, bit)| protocols & bit != 0).map(|(protocol, _)| protocol).collect();
        let protocol = *protocols.first().unwrap();
        Route {
            priority,
            destinations: ["20.0.0.1/32", "20.0.0.2/32"].into_iter().zip([1, 2])
                .filter(|(_, bit)| vips & bit != 0).map(|(vip, _)| vip.parse().unwrap()).collect(),
            sources: sources.into_iter().map(|(host, length)| format!("10.0.0.{host}/{length}").parse().unwrap()).collect(),
            source_ports, destination_ports, protocols,
            byte_matches: byte.into_iter()
                .map(|odd| ByteMatch { protocol, offset: 0, octets: 1, mask: 1, value: u32::from(odd) }).collect(),
            backend: "service-a".into(),
            ..Route::default()
        }
    }
}

proptest! {
    #[test]
    fn it_finds_what_asking_one_after_the_other_finds(
        routes in prop::collection::vec(route(), 0..90),
        packets in prop::collection::vec((0_u8..10, 1_u8..4, 0_u8..3, 0_u16..14, 0_u16..14, 0_u8..2), 1..20),
    ) {
        let routes: BTreeMap<Arc<str>, Route> =
            routes.into_iter().enumerate().map(|(number, route)| (format!("route-{number}").into(), route)).collect();
        let table = Classifier::new(&routes);
        for (source, vip, transport, source_port, destination_port, octet) in packets {
            let number = [6, 17, 132][usize::from(transport)];
            let packet = flow(&format!("10.0.0.{source}"), &format!("20.0.0.{vip}"), number, source_port, destination_port);
            let found: Vec<&str> = table.matches(&packet, Some(&[octet]))
                .map(|rank| &*table.names()[usize::try_from(rank).unwrap()]).collect();
            prop_assert_eq!(found, slow(&routes, &packet, &[octet]));
        }
    }
}

#[test]
fn ten_thousand_routes_are_all_found() {
    let routes: BTreeMap<Arc<str>, Route> = (1..=10_000_u16)
        .map(|port| {
            (format!("route-{port:05}").into(), Route { destination_ports: [(port, port)].into(), ..any_route() })
        })
        .collect();
    let table = Classifier::new(&routes);
    for port in [1, 64, 65, 4096, 4097, 9999, 10_000] {
        assert_eq!(serves(&table, "20.0.0.1", port), Some(format!("route-{port:05}")));
    }
    assert_eq!(serves(&table, "20.0.0.1", 10_001), None);
}
