//! Ports that are others at the endpoint: every protocol, both directions, fragments, errors, both engines.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::craft::{self, client, fragments, ip, raw, sctp, sctp_is_right, send, udp};
use crate::lab::{Lab, PATIENCE, VIP4, VIP6, Way, within};
use crate::packets::{ask, orders};
use crate::{everybody_answers, expected_at};

/// Port 80 of the VIPs is 8080 at the endpoints, where they listen; port 81 is 8081, where nobody does.
const ROUTE: &str = r#"---
apiVersion: meridio.experiment.gateway.api.poc/v1alpha1
kind: L34Route
metadata:
  name: web
spec:
  parentRefs: [{name: sllb-a}]
  backendRefs: [{name: a}]
  priority: 2
  destinationCIDRs: ["20.0.0.1/32", "2000::1/128"]
  destinationPorts: ["80-90"]
  protocols: [TCP, UDP, SCTP]
  destinationPortTranslation:
  - {port: 80, protocol: TCP, targetPort: 8080}
  - {port: 80, protocol: UDP, targetPort: 8080}
  - {port: 80, protocol: SCTP, targetPort: 8080}
  - {port: 81, protocol: UDP, targetPort: 8081}
"#;

/// Everything that both engines must do.
fn ports_are_translated(lab: &Lab) {
    let all: BTreeSet<u8> = [1, 2, 3].into();
    for vip in [VIP4, VIP6] {
        let web = SocketAddr::new(vip, 80);
        for mut connection in lab.connect_to(web, 20) {
            assert_eq!(connection.application, expected_at(web, 6, connection.local.port(), &all));
            assert_eq!(connection.ask_long(100_000), Some(connection.application), "many segments");
        }
        let whole = move |port| vec![ip(client(vip), vip, 17, None, &udp(client(vip), vip, [port, 80], b"who?"))];
        let parts = move |port: u16| {
            let datagram = udp(client(vip), vip, [port, 80], &[7; 4001]);
            orders(fragments(client(vip), vip, 17, port, 1000, &datagram), port)
        };
        for (port, application) in ask(lab, vip, whole, 20).into_iter().chain(ask(lab, vip, parts, 20)) {
            assert_eq!(application, expected_at(web, 17, port, &all), "{vip} from port {port}");
        }
        nobody_listens_is_told(lab, vip);
        an_error_says_the_port_of_the_endpoint(lab, vip);
        sctp_goes_both_ways(lab, vip);
    }
    // No checksum is no checksum afterwards.
    let without = |port: u16| {
        let mut datagram = udp(client(VIP4), VIP4, [port, 80], b"who?");
        datagram[6..8].fill(0);
        vec![ip(client(VIP4), VIP4, 17, None, &datagram)]
    };
    assert_eq!(ask(lab, VIP4, without, 10).len(), 10);
    // And what is not translated stays as it is.
    everybody_answers(lab, &all);
}

/// The endpoint says that nobody listens: the client's socket understands it.
fn nobody_listens_is_told(lab: &Lab, vip: IpAddr) {
    let work = move || {
        let socket = UdpSocket::bind((client(vip), 0)).expect("bind");
        socket.connect((vip, 81)).expect("connect");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        socket.send(b"who?").expect("send");
        socket.recv(&mut [0]).expect_err("nobody").kind()
    };
    let kind = within(lab.client(), work).join().expect("client");
    assert_eq!(kind, std::io::ErrorKind::ConnectionRefused, "{vip}");
}

fn listener(vip: IpAddr, protocol: u8) -> UdpSocket {
    let domain = if vip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol)))).expect("raw");
    let socket = UdpSocket::from(std::os::fd::OwnedFd::from(socket));
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    socket
}

/// The next packet of a raw socket that `is` wanted, without its IP header.
fn hear(socket: &UdpSocket, vip: IpAddr, is: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut octets = [0; 2048];
    loop {
        let length = socket.recv(&mut octets).expect("it arrives");
        let body = &octets[if vip.is_ipv4() { 20 } else { 0 }..length];
        if is(body) {
            return body.to_vec();
        }
    }
}

/// A router complains to the VIP about what the endpoint sent from its port: the endpoint must know it again.
fn an_error_says_the_port_of_the_endpoint(lab: &Lab, vip: IpAddr) {
    let (all, port) = ([1, 2, 3].into(), 25_000);
    let number = expected_at(SocketAddr::new(vip, 80), 17, port, &all);
    let protocol = if vip.is_ipv4() { 1 } else { 58 };
    let heard = within(lab.application(number), move || listener(vip, protocol)).join().expect("listener");
    let work = move || {
        let inner = ip(vip, client(vip), 17, None, &udp(vip, client(vip), [80, port], b"hello"));
        let mut error = [&[if vip.is_ipv4() { 3 } else { 1 }, 1, 0, 0, 0, 0, 0, 0][..], &inner].concat();
        let sum = if vip.is_ipv4() {
            craft::checksum(&error)
        } else {
            let addresses: Vec<u8> = ip(client(vip), vip, 58, None, &[]).drain(8..40).collect();
            let length = u16::try_from(error.len()).expect("short").to_be_bytes();
            craft::checksum(&[&addresses[..], &[0, 58], &length, &error].concat())
        };
        error[2..4].copy_from_slice(&sum);
        send(&raw(vip), vip, &ip(client(vip), vip, protocol, None, &error));
    };
    within(lab.client(), work).join().expect("client");
    let at = if vip.is_ipv4() { 28 } else { 48 };
    let wanted = [8080_u16.to_be_bytes(), port.to_be_bytes()].concat();
    let error = hear(&heard, vip, |body| body.get(at + 2..at + 4) == Some(&wanted[2..]));
    assert_eq!(error[at..at + 4], wanted[..], "{vip}");
    // Of IPv6 the kernel has checked the sum before it gave us the packet.
    assert!(vip.is_ipv6() || craft::checksum(&error) == [0, 0], "the checksum of the error");
}

fn sctp_goes_both_ways(lab: &Lab, vip: IpAddr) {
    let (all, port) = ([1, 2, 3].into(), 26_000);
    let number = expected_at(SocketAddr::new(vip, 80), 132, port, &all);
    let endpoint = within(lab.application(number), move || listener(vip, 132)).join().expect("listener");
    let answers = within(lab.client(), move || {
        let answers = listener(vip, 132);
        send(&raw(vip), vip, &ip(client(vip), vip, 132, None, &sctp([port, 80])));
        answers
    });
    let answers = answers.join().expect("client");
    let packet = hear(&endpoint, vip, |_| true);
    assert_eq!(packet[..4], [port.to_be_bytes(), 8080_u16.to_be_bytes()].concat());
    assert!(sctp_is_right(&packet), "{vip}: the checksum at the endpoint");
    let reply = move || send(&raw(vip), client(vip), &ip(vip, client(vip), 132, None, &sctp([8080, port])));
    within(lab.application(number), reply).join().expect("endpoint");
    let packet = hear(&answers, vip, |_| true);
    assert_eq!(packet[..4], [80_u16.to_be_bytes(), port.to_be_bytes()].concat());
    assert!(sctp_is_right(&packet), "{vip}: the checksum at the client");
}

#[test]
fn ports_are_others_at_the_endpoint_in_both_directions_by_the_queue() {
    for way in [Way::Queue, Way::Direct] {
        let lab = Lab::new(&format!("ports-{}", way.letter()), 3);
        lab.add("web.yaml", ROUTE);
        lab.configure(&[1, 2, 3].into());
        let lb = lab.start(|options| way.choose(options));
        lab.wait_ready(true);
        lab.wait_for_way(way);
        ports_are_translated(&lab);
        lb.end().unwrap();
    }
}

#[test]
fn ports_are_others_at_the_endpoint_in_both_directions_by_the_kernel() {
    let lab = Lab::new("ports-k", 3);
    lab.add("web.yaml", ROUTE);
    lab.configure(&[1, 2, 3].into());
    let lb = lab.start(|options| Way::Kernel.choose(options));
    lab.wait_ready(true);
    let chain = lab.run(&lab.lb(), "nft list chain inet martlet-lb flows-4").1;
    assert!(chain.contains("dport 80") || chain.contains("0x50"), "the kernel decides: {chain}");
    ports_are_translated(&lab);
    lb.end().unwrap();
}
