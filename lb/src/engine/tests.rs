//! Packets of a client, of an endpoint's path, and of nobody.

use std::net::Ipv4Addr;

use martlet_api::view::{Route, TransportProtocol};

use super::*;
use crate::maglev::Size;
use crate::packet::Malformed;

/// Service a with endpoints 0, 1, 2 (IPv4 only) behind 20.0.0.1 TCP 4000; service b without any behind UDP.
fn tables() -> Tables {
    let seed = Seed(7);
    let table = |identifiers: &[u16]| Arc::new(Table::new(Size::new(251).unwrap(), seed, identifiers.iter().copied()));
    let backend = |service: &str, first_mark, identifiers: &[u16]| {
        let (ipv4, ipv6) = (table(identifiers), table(&[]));
        Arc::new(Backend { service: service.into(), first_mark, marks: 100, ipv4, ipv6 })
    };
    let route = |protocol, port| Route {
        destinations: ["20.0.0.1/32", "2000::1/128"].map(|vip| vip.parse().unwrap()).into(),
        protocols: [protocol].into(),
        destination_ports: [(port, port)].into(),
        ..Route::default()
    };
    let routes = [
        ("empty".into(), Route { priority: 9, ..route(TransportProtocol::Udp, 53) }),
        ("full".into(), route(TransportProtocol::Tcp, 4000)),
    ];
    let classifier = Classifier::new(routes.iter().map(|(name, route)| (name, route)));
    Tables::new(seed, classifier, vec![Some(backend("b", 5100, &[])), Some(backend("a", 5000, &[0, 1, 2]))])
}

impl Tables {
    /// What becomes of a whole packet.
    fn decide(&self, octets: &[u8]) -> Result<(Choice, u32), Reason> {
        let packet = parse(octets)?;
        Ok((self.fate(&packet)?, packet.length))
    }
}

fn flow(protocol: u8, source_port: u16, destination_port: u16) -> Flow {
    let (source, destination) = (Ipv4Addr::new(192, 168, 1, 1).into(), Ipv4Addr::new(20, 0, 0, 1).into());
    Flow { source, destination, protocol, source_port, destination_port }
}

fn ipv4(protocol: u8, [source, destination]: [[u8; 4]; 2], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let header = [&[0x45, 0], &length[..], &[0, 0, 0x40, 0, 64, protocol, 0, 0], &source, &destination].concat();
    [&header, payload].concat()
}

const CLIENT: [u8; 4] = [192, 168, 1, 1];
const VIP: [u8; 4] = [20, 0, 0, 1];

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0; 4]].concat()
}

#[test]
fn a_packet_goes_where_its_flow_goes() {
    let tables = tables();
    let packet = ipv4(6, [CLIENT, VIP], &ports(40000, 4000));
    let choice = tables.choose(&flow(6, 40000, 4000), Some(&[])).unwrap();
    assert_eq!(tables.decide(&packet), Ok((choice, 28)));
    assert_eq!(choice.mark, 5000 + u32::from(choice.identifier));
    assert_eq!(tables.endpoint(choice.mark - FIRST_MARK), Some((&"a".into(), choice.identifier)));
}

#[test]
fn flows_spread_over_all_endpoints() {
    let tables = tables();
    let mut hits = [0; 3];
    for port in 0..300 {
        hits[usize::from(tables.choose(&flow(6, port, 4000), None).unwrap().identifier)] += 1;
    }
    assert!(hits.iter().all(|hits| (60..=140).contains(hits)), "{hits:?}");
}

#[test]
fn an_error_goes_to_the_endpoint_that_sent_what_it_is_about() {
    let tables = tables();
    for port in 1000..1100 {
        // The endpoint answered the client; a router on the way complains to the VIP.
        let inner = ipv4(6, [VIP, CLIENT], &ports(4000, port));
        let error = ipv4(1, [[10, 9, 9, 9], VIP], &[&[3, 4, 0, 0, 0, 0, 5, 0], &inner[..]].concat());
        let (choice, _) = tables.decide(&error).unwrap();
        assert_eq!(Ok(choice), tables.choose(&flow(6, port, 4000), None));
    }
}

#[test]
fn an_error_about_another_s_packet_is_dropped() {
    let tables = tables();
    for inner in [ipv4(6, [CLIENT, VIP], &ports(4000, 1)), ipv4(47, [VIP, CLIENT], &[]), vec![0x45]] {
        let error = ipv4(1, [[10, 9, 9, 9], VIP], &[&[3, 4, 0, 0, 0, 0, 5, 0], &inner[..]].concat());
        assert_eq!(tables.decide(&error), Err(Reason::ForeignError));
    }
}

#[test]
fn an_echo_asks_on_until_a_service_has_an_endpoint() {
    let echo = ipv4(1, [CLIENT, VIP], &[8, 0, 0, 0, 0, 77, 0, 1]);
    let (choice, _) = tables().decide(&echo).unwrap();
    assert_eq!(choice.rank, 1, "route `empty` is better, and has nobody to answer");
    assert_eq!(tables().choose(&flow(1, 77, 0), None), Ok(choice));
}

#[test]
fn what_cannot_be_forwarded_has_a_reason() {
    let tables = tables();
    let decide = |protocol, octets: &[u8]| tables.decide(&ipv4(protocol, [CLIENT, VIP], octets)).unwrap_err();
    assert_eq!(decide(6, &ports(1, 4001)), Reason::NoRoute);
    assert_eq!(decide(17, &ports(1, 53)), Reason::NoEndpoint);
    assert_eq!(decide(6, &[]), Reason::Malformed(Malformed::TruncatedTransport));
    assert_eq!(Tables::default().decide(&ipv4(6, [CLIENT, VIP], &ports(1, 4000))), Err(Reason::NoRoute));
}

#[test]
fn sctp_in_udp_is_balanced_as_sctp() {
    let tables = tables();
    let route = |protocol, priority, port, in_udp: Option<u16>| Route {
        priority,
        destinations: ["20.0.0.1/32".parse().unwrap()].into(),
        protocols: [protocol].into(),
        destination_ports: [(port, port)].into(),
        sctp_in_udp_port: in_udp,
        ..Route::default()
    };
    let routes = [
        ("encapsulated".into(), route(TransportProtocol::Sctp, 5, 3868, Some(9899))),
        ("plain".into(), route(TransportProtocol::Udp, 1, 9899, None)),
    ];
    let classifier = Classifier::new(routes.iter().map(|(name, route)| (name, route)));
    let backend = Arc::clone(tables.backend(1).unwrap());
    let tables = Tables::new(Seed(7), classifier, vec![Some(Arc::clone(&backend)), Some(backend)]);
    let udp = |sctp: [u16; 2]| [&ports(5000, 9899)[..], &sctp[0].to_be_bytes(), &sctp[1].to_be_bytes()].concat();
    for port in 0..50 {
        let inside = tables.choose(&flow(132, port, 3868), None).unwrap();
        assert_eq!(tables.decide(&ipv4(17, [CLIENT, VIP], &udp([port, 3868]))).map(|(choice, _)| choice), Ok(inside));
        // An error about what the endpoint answered.
        let answer = [&ports(9899, 5000)[..], &3868_u16.to_be_bytes(), &port.to_be_bytes()].concat();
        let error = [&[3, 3, 0, 0, 0, 0, 0, 0], &ipv4(17, [VIP, CLIENT], &answer)[..]].concat();
        assert_eq!(tables.decide(&ipv4(1, [CLIENT, VIP], &error)).map(|(choice, _)| choice), Ok(inside));
    }
    let (other, _) = tables.decide(&ipv4(17, [CLIENT, VIP], &udp([1, 1]))).unwrap();
    assert_eq!(other.rank, 1, "not the association of the route: plain UDP");
    let (other, _) = tables.decide(&ipv4(17, [CLIENT, VIP], &ports(1, 9899))).unwrap();
    assert_eq!(other.rank, 1, "nothing inside");
}
