//! What a packet is like where it arrives, and where that is: hop limits, octets, SCTP in UDP, neighbours, errors by nftables.

use std::collections::BTreeSet;

use crate::craft::{client, ip, sctp, udp};
use crate::lab::{Lab, PATIENCE, VIP4, VIP6, Way, bound, eventually, serving, serving_by, within};
use crate::packets::{each_to_its_endpoint, errors_reach_their_endpoints};
use crate::{everybody_answers, expected_of};

/// Packets that came to the queues since they were bound.
fn queued(lab: &Lab) -> u64 {
    let (_, text) = lab.run(&lab.lb(), "cat /proc/net/netfilter/nfnetlink_queue");
    let of = |line: &str| line.split_whitespace().nth(7).and_then(|count| count.parse::<u64>().ok()).expect("a number");
    text.lines().map(of).sum()
}

#[test]
fn the_kernel_engine_sends_errors_by_what_they_quote_and_the_queue_sees_none() {
    let (lab, lb) = serving_by(Way::Kernel, "errors", 3);
    let before = queued(&lab);
    errors_reach_their_endpoints(&lab);
    assert_eq!(queued(&lab), before);
    lb.end().unwrap();
}

#[test]
fn a_packet_makes_exactly_one_hop() {
    for way in Way::ALL {
        let (lab, lb) = serving_by(way, "hop", 1);
        let one = lab.application(1);
        for command in [
            "nft add table inet hops",
            "nft add chain inet hops in { type filter hook input priority 0 ; }",
            "nft add rule inet hops in ip ttl 63 udp dport 4000 counter",
            "nft add rule inet hops in ip6 hoplimit 63 udp dport 4000 counter",
            "nft add rule inet hops in udp dport 4000 counter",
        ] {
            let (done, text) = lab.run(&one, command);
            assert!(done, "{command}: {text}");
        }
        for vip in [VIP4, VIP6] {
            assert_eq!(lab.exchange(vip, 20), [1; 20]);
        }
        let (_, text) = lab.run(&one, "nft list chain inet hops in");
        let counted: Vec<&str> =
            text.split("packets ").skip(1).filter_map(|rest| rest.split_whitespace().next()).collect();
        assert_eq!(counted, ["20", "20", "40"], "{way:?}: {text}");
        lb.end().unwrap();
    }
}

/// Datagrams that begin with "gol" have an endpoint of their own.
const BYTES: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: b, labels: {service.kubernetes.io/service-proxy-name: sllb-a}}
spec: {clusterIP: None, selector: {app: b}}
---
apiVersion: meridio.experiment.gateway.api.poc/v1alpha1
kind: L34Route
metadata: {name: gold}
spec:
  parentRefs: [{name: sllb-a}]
  backendRefs: [{name: b}]
  priority: 5
  destinationCIDRs: ["20.0.0.1/32", "2000::1/128"]
  destinationPorts: ["4000"]
  protocols: [UDP]
  byteMatches: ["udp[8:4] & 0xffffff00 = 0x676f6c00"]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b-4, labels: {kubernetes.io/service-name: b}}
addressType: IPv4
endpoints: [{addresses: ["10.9.0.13"], conditions: {ready: true}, zone: "3", targetRef: {kind: Pod, name: app-3}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b-6, labels: {kubernetes.io/service-name: b}}
addressType: IPv6
endpoints: [{addresses: ["fd09::13"], conditions: {ready: true}, zone: "3", targetRef: {kind: Pod, name: app-3}}]
"#;

#[test]
fn octets_of_the_payload_choose_the_route_on_every_way() {
    let all: BTreeSet<u8> = [1, 2, 3].into();
    for way in Way::ALL {
        let (lab, lb) = serving_by(way, "bytes", 3);
        lab.add("bytes.yaml", BYTES);
        // A source port whose flow is not application 3's by itself.
        let port = (24_000..25_000).find(|port| expected_of(VIP4, 17, *port, &all) != 3).expect("one");
        eventually("the route is in force", || lab.say(VIP4, port, b"gold") == Some(3));
        for vip in [VIP4, VIP6] {
            for port in 25_000..25_020 {
                let own = expected_of(vip, 17, port, &all);
                let said = [&b"gold"[..], b"gola", b"silver"].map(|word| lab.say(vip, port, word));
                assert_eq!(said, [Some(3), Some(3), Some(own)], "{way:?}: {vip} from {port}");
            }
        }
        lb.end().unwrap();
    }
}

/// SCTP associations in UDP packets to port 9899.
const TUNNEL: &str = r#"---
apiVersion: meridio.experiment.gateway.api.poc/v1alpha1
kind: L34Route
metadata: {name: tunnel}
spec:
  parentRefs: [{name: sllb-a}]
  backendRefs: [{name: a}]
  priority: 5
  destinationCIDRs: ["20.0.0.1/32", "2000::1/128"]
  destinationPorts: ["4000"]
  protocols: [SCTP]
  sctpInUdpPort: 9899
"#;

#[test]
fn sctp_in_udp_goes_by_the_ports_of_the_association_on_every_way() {
    for way in Way::ALL {
        let lab = Lab::new(&format!("tunnel-{}", way.letter()), 3);
        lab.add("tunnel.yaml", TUNNEL);
        lab.configure(&[1, 2, 3].into());
        let lb = lab.start(|options| way.choose(options));
        lab.wait_ready(true);
        lab.wait_for_way(way);
        for vip in [VIP4, VIP6] {
            // The UDP ports are the same of all of them.
            each_to_its_endpoint(&lab, vip, 17, 132, |vip, port| {
                let datagram = udp(client(vip), vip, [9899, 9899], &sctp([port, 4000]));
                ip(client(vip), vip, 17, None, &datagram)
            });
        }
        lb.end().unwrap();
    }
}

#[test]
fn an_endpoint_that_changes_its_address_or_its_hardware_is_found() {
    let all: BTreeSet<u8> = [1, 2].into();
    let (lab, lb) = serving("moved", 2, |_| {});
    let two = lab.application(2);
    let change = |commands: &[&str]| {
        for command in commands {
            assert!(lab.run(&two, command).0, "{command}");
        }
    };
    let port = |vip| (26_000..27_000).find(|port| expected_of(vip, 17, *port, &all) == 2).expect("one");
    // Another address: the identifier, and so the flows, are the same.
    change(&[
        "ip addr del 10.9.0.12/24 dev eth0",
        "ip addr add 10.9.0.22/24 dev eth0",
        "ip route replace default via 10.9.0.254",
        "ip addr add fd09::22/64 dev eth0 nodad",
        "ip addr del fd09::12/64 dev eth0",
    ]);
    let objects = std::fs::read_to_string(lab.folder.join("config/objects.yaml")).expect("objects");
    lab.add("objects.yaml", &objects.replace("10.9.0.12", "10.9.0.22").replace("fd09::12", "fd09::22"));
    // Nothing was sent to it yet: the load balancer itself has asked who that is.
    for (address, vip) in [("10.9.0.22", VIP4), ("fd09::22", VIP6)] {
        let neighbor = format!("ip neigh show {address} dev int");
        eventually("the new neighbour is known", || lab.run(&lab.lb(), &neighbor).1.contains("REACHABLE"));
        eventually("its flows arrive", || lab.ask_from(vip, port(vip)) == Some(2));
    }
    everybody_answers(&lab, &all);
    // The same address, another pod: gone, and back from another link-layer address.
    let objects = std::fs::read_to_string(lab.folder.join("config/objects.yaml")).expect("objects");
    lab.configure(&[1].into());
    eventually("application 2 is gone", || !lab.run(&lab.lb(), "ip route show table 5002").1.contains("default"));
    change(&["ip link set eth0 address 02:00:00:00:02:22"]);
    lab.add("objects.yaml", &objects);
    for (address, vip) in [("10.9.0.22", VIP4), ("fd09::22", VIP6)] {
        eventually("its flows arrive", || lab.ask_from(vip, port(vip)) == Some(2));
        let (_, text) = lab.run(&lab.lb(), &format!("ip neigh show {address} dev int"));
        assert!(text.contains("02:00:00:00:02:22"), "{text}");
    }
    everybody_answers(&lab, &all);
    lb.end().unwrap();
}

#[test]
fn an_endpoint_beyond_the_first_thousand_is_reached_by_a_table_that_not_every_packet_walks_past() {
    let lab = Lab::new("beside", 1);
    lab.configure(&[1].into());
    let objects = std::fs::read_to_string(lab.folder.join("config/objects.yaml")).expect("objects");
    // Mark 6397 is 0x18fd: a table of this number would share a list with the kernel's own.
    let many = objects
        .replace("zone: \"1\"", "zone: \"1397\"")
        .replace("  name: a\n", "  name: a\n  annotations: {meridio-experiment/service-max-endpoints: \"2000\"}\n");
    lab.add("objects.yaml", &many);
    let lb = lab.start(|_| {});
    lab.wait_ready(true);
    let has_way = |table: u32| {
        ["ip", "ip -6"].map(|ip| lab.run(&lab.lb(), &format!("{ip} route show table {table}")).1.contains("default"))
    };
    assert_eq!([65_536, 6397].map(has_way), [[true; 2], [false; 2]]);
    for vip in [VIP4, VIP6] {
        assert_eq!(lab.exchange(vip, 20), [1; 20], "{vip}");
    }
    assert!(lab.run(&lab.lb(), "ip route flush table 65536").0);
    eventually("the route is back", || has_way(65_536) == [true; 2]);
    lb.end().unwrap();
    assert_eq!(has_way(65_536), [false; 2], "nothing is left");
}

impl Lab {
    /// In the client: one datagram of these octets from a port; who answered.
    fn say(&self, vip: std::net::IpAddr, port: u16, word: &'static [u8]) -> Option<u8> {
        let ask = move || {
            let socket = bound((client(vip), port));
            socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
            socket.connect((vip, 4000)).expect("connect");
            let mut octet = [0];
            socket.send(word).and_then(|_| socket.recv(&mut octet)).ok()?;
            Some(octet[0])
        };
        within(self.client(), ask).join().expect("client")
    }
}
