//! Fragments, extension headers, errors, path MTU, SCTP: what nfqlb gets wrong, on real packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use martlet_lb::engine::FragmentMode;
use socket2::{Domain, Protocol, Socket, Type};

use crate::craft::{self, client, fragments, ip, raw, send, udp};
use crate::expected_of;
use crate::lab::{Lab, PATIENCE, VIP4, VIP6, Way, eventually, serving, serving_by, within};

/// In the client: sends `packets` as they are, and waits for an application's answer to the socket of `port`.
pub fn ask(
    lab: &Lab,
    vip: IpAddr,
    make: impl Fn(u16) -> Vec<Vec<u8>> + Send + 'static,
    count: usize,
) -> Vec<(u16, u8)> {
    let work = move || {
        let raw = raw(vip);
        let sockets: Vec<UdpSocket> = (0..count).map(|_| UdpSocket::bind((client(vip), 0)).expect("bind")).collect();
        let mut answers = Vec::new();
        for socket in sockets {
            let port = socket.local_addr().expect("address").port();
            for packet in make(port) {
                send(&raw, vip, &packet);
            }
            socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
            let mut octet = [0];
            socket.recv(&mut octet).expect("every datagram is answered");
            answers.push((port, octet[0]));
        }
        answers
    };
    within(lab.client(), work).join().expect("client")
}

/// Three orders of the fragments of one datagram.
pub fn orders(mut packets: Vec<Vec<u8>>, port: u16) -> Vec<Vec<u8>> {
    match port % 3 {
        0 => packets.reverse(),
        1 => packets.rotate_left(1),
        _ => {}
    }
    packets
}

#[test]
fn fragments_in_any_order_reach_the_endpoint_of_their_flow() {
    let all: BTreeSet<u8> = [1, 2, 3].into();
    for way in [Way::Queue, Way::Direct] {
        let (lab, lb) = serving_by(way, "frag", 3);
        fragments_arrive(&lab, &all);
        lb.end().unwrap();
    }
}

/// Datagrams of both families in fragments in any order.
pub fn fragments_arrive(lab: &Lab, all: &BTreeSet<u8>) {
    for vip in [VIP4, VIP6] {
        let make = move |port: u16| {
            let datagram = udp(client(vip), vip, [port, 4000], &[7; 4001]);
            orders(fragments(client(vip), vip, 17, port, 1000, &datagram), port)
        };
        for (port, application) in ask(lab, vip, make, 30) {
            assert_eq!(application, expected_of(vip, 17, port, all), "{vip} from port {port}");
        }
    }
}

#[test]
fn fragments_that_the_kernel_puts_together_arrive_too() {
    let all: BTreeSet<u8> = [1, 2].into();
    let (lab, lb) = serving("defrag", 2, |options| options.policy.fragments = FragmentMode::Kernel);
    fragments_arrive(&lab, &all);
    lb.end().unwrap();
}

#[test]
fn fragments_by_addresses_need_no_memory() {
    let (lab, lb) = serving("addr", 3, |options| options.policy.fragments = FragmentMode::Addresses);
    for vip in [VIP4, VIP6] {
        let make = move |port: u16| {
            let datagram = udp(client(vip), vip, [port, 4000], &[7; 4001]);
            orders(fragments(client(vip), vip, 17, port, 1000, &datagram), port)
        };
        let applications: BTreeSet<u8> = ask(&lab, vip, make, 20).into_iter().map(|(_, one)| one).collect();
        assert_eq!(applications.len(), 1, "one client, one endpoint: {applications:?}");
    }
    lb.end().unwrap();
}

#[test]
fn extension_headers_and_options_do_not_hide_the_ports() {
    let all: BTreeSet<u8> = [1, 2, 3].into();
    let (lab, lb) = serving("ext", 3, |_| {});
    // Destination options of 8 octets (PadN) and of 16 (an unknown option that may be skipped).
    let make = |port: u16| {
        let datagram = udp(client(VIP6), VIP6, [port, 4000], b"who?");
        let eight = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &datagram].concat();
        let both = [&[60, 1, 0x1e, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &eight].concat();
        let payload = if port.is_multiple_of(2) { eight } else { both };
        vec![ip(client(VIP6), VIP6, 60, None, &payload)]
    };
    for (port, application) in ask(&lab, VIP6, make, 30) {
        assert_eq!(application, expected_of(VIP6, 17, port, &all));
    }
    // IPv4: three no-operations and an end.
    let make = |port: u16| {
        let mut packet = ip(client(VIP4), VIP4, 17, None, &udp(client(VIP4), VIP4, [port, 4000], b"who?"));
        packet.splice(20..20, [1, 1, 1, 0]);
        packet[0] = 0x46;
        let length = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        vec![packet]
    };
    for (port, application) in ask(&lab, VIP4, make, 30) {
        assert_eq!(application, expected_of(VIP4, 17, port, &all));
    }
    lb.end().unwrap();
}

#[test]
fn authentication_and_routing_headers_do_not_hide_the_ports_on_any_way() {
    let all: BTreeSet<u8> = [1, 2, 3].into();
    for way in Way::ALL {
        let (lab, lb) = serving_by(way, "ah", 3);
        for vip in [VIP4, VIP6] {
            each_to_its_endpoint(&lab, vip, 51, 17, |vip, port| {
                // RFC 4302: 24 octets, of which 12 are the value that nobody here can check.
                let header = [&[17, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1][..], &[0xaa; 12]].concat();
                let datagram = udp(client(vip), vip, [port, 4000], b"who?");
                ip(client(vip), vip, 51, None, &[header, datagram].concat())
            });
        }
        // A routing header of a type for experiments, with no segment left: its receiver skips it (RFC 8200 section 4.4).
        let make = |port: u16| {
            let datagram = udp(client(VIP6), VIP6, [port, 4000], b"who?");
            vec![ip(client(VIP6), VIP6, 43, None, &[&[17, 0, 253, 0, 0, 0, 0, 0][..], &datagram].concat())]
        };
        for (port, application) in ask(&lab, VIP6, make, 30) {
            assert_eq!(application, expected_of(VIP6, 17, port, &all), "{way:?}");
        }
        lb.end().unwrap();
    }
}

/// In an application: the ports of those ICMP errors (or of SCTP packets, also in UDP, or behind an authentication header) that come within the patience.
fn listen(lab: &Lab, number: u8, vip: IpAddr, protocol: u8) -> std::sync::mpsc::Receiver<u16> {
    let (tell, heard) = std::sync::mpsc::channel();
    let open = move || {
        let domain = if vip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol)))).expect("raw");
        let socket = UdpSocket::from(std::os::fd::OwnedFd::from(socket));
        std::thread::spawn(move || {
            let mut octets = [0; 2048];
            while let Ok(length) = socket.recv(&mut octets) {
                // IPv4 raw sockets see the IP header, IPv6 ones do not.
                let body = &octets[if vip.is_ipv4() { 20 } else { 0 }..length];
                let port = match protocol {
                    132 => body.get(0..2),
                    // SCTP in UDP.
                    17 => body.get(8..10),
                    // Behind an authentication header.
                    51 => body.get(24..26),
                    _ if matches!(body[0], 1 | 3) => body.get(if vip.is_ipv4() { 30..32 } else { 50..52 }),
                    _ => None,
                };
                if let Some(port) = port
                    && tell.send(u16::from_be_bytes([port[0], port[1]])).is_err()
                {
                    break;
                }
            }
        });
    };
    within(lab.application(number), open).join().expect("listener");
    heard
}

/// Sends a packet for each port to a VIP, and checks that the application of each flow, and no other, received it.
pub fn each_to_its_endpoint(lab: &Lab, vip: IpAddr, protocol: u8, of_flow: u8, make: fn(IpAddr, u16) -> Vec<u8>) {
    let all: BTreeSet<u8> = [1, 2, 3].into();
    let heard: BTreeMap<u8, _> = all.iter().map(|number| (*number, listen(lab, *number, vip, protocol))).collect();
    let ports: Vec<u16> = (20_000..20_060).collect();
    let sent = ports.clone();
    let work = move || {
        let raw = raw(vip);
        for port in sent {
            send(&raw, vip, &make(vip, port));
        }
    };
    within(lab.client(), work).join().expect("client");
    for number in all.iter().copied() {
        let mut expected: BTreeSet<u16> =
            ports.iter().copied().filter(|port| expected_of(vip, of_flow, *port, &all) == number).collect();
        assert!(expected.len() > 5, "a test that says something");
        while !expected.is_empty() {
            let port = heard[&number].recv_timeout(PATIENCE).expect("each arrives");
            assert!(expected.remove(&port), "application {number} received the one of port {port}");
        }
        assert!(heard[&number].recv_timeout(Duration::from_millis(50)).is_err(), "nothing else arrives");
    }
}

#[test]
fn an_error_reaches_the_endpoint_that_sent_what_it_is_about() {
    let (lab, lb) = serving("error", 3, |_| {});
    errors_reach_their_endpoints(&lab);
    lb.end().unwrap();
}

/// Errors about flows of all three applications, of both families.
pub fn errors_reach_their_endpoints(lab: &Lab) {
    each_to_its_endpoint(lab, VIP4, 1, 17, |vip, port| {
        let inner = ip(vip, client(vip), 17, None, &udp(vip, client(vip), [4000, port], b"hello"));
        let mut error = [&[3, 1, 0, 0, 0, 0, 0, 0][..], &inner].concat();
        let sum = craft::checksum(&error);
        error[2..4].copy_from_slice(&sum);
        ip(client(vip), vip, 1, None, &error)
    });
    each_to_its_endpoint(lab, VIP6, 58, 17, |vip, port| {
        let inner = ip(vip, client(vip), 17, None, &udp(vip, client(vip), [4000, port], b"hello"));
        // Raw ICMPv6 sockets check the sum.
        let mut error = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &inner].concat();
        let mut pseudo = ip(client(vip), vip, 58, None, &error);
        let addresses: Vec<u8> = pseudo.drain(..40).skip(8).collect();
        let length = u16::try_from(error.len()).expect("a length of 16 bits").to_be_bytes();
        let sum = craft::checksum(&[&addresses[..], &[0, 58], &length, &error].concat());
        error[2..4].copy_from_slice(&sum);
        ip(client(vip), vip, 58, None, &error)
    });
}

#[test]
fn sctp_associations_are_spread_by_addresses_and_ports() {
    let (lab, lb) = serving("sctp", 3, |_| {});
    for vip in [VIP4, VIP6] {
        each_to_its_endpoint(&lab, vip, 132, 132, |vip, port| {
            // A common header and an INIT chunk.
            let body = [&port.to_be_bytes()[..], &4000_u16.to_be_bytes(), &[0; 8], &[1, 0, 0, 20], &[0; 16]].concat();
            ip(client(vip), vip, 132, None, &body)
        });
    }
    lb.end().unwrap();
}

#[test]
fn the_client_learns_the_path_mtu_from_the_vip_on_every_way() {
    for way in Way::ALL {
        let lab = Lab::new(&format!("mtu-{}", way.letter()), 1);
        lab.configure(&[1].into());
        assert!(lab.run(&lab.lb(), "ip link set int mtu 1400").0);
        // Only the VIP is believed.
        for command in [
            "nft add table inet f",
            "nft add chain inet f i { type filter hook input priority 0 ; }",
            "nft add rule inet f i ip protocol icmp ip saddr != 20.0.0.1 drop",
            "nft add rule inet f i icmpv6 type packet-too-big ip6 saddr != 2000::1 drop",
        ] {
            let (done, text) = lab.run(&lab.client(), command);
            assert!(done, "{command}: {text}");
        }
        let lb = lab.start(|options| way.choose(options));
        lab.wait_ready(true);
        lab.wait_for_way(way);
        for vip in [VIP4, VIP6] {
            let mut connection = lab.connect(vip, 1).remove(0);
            assert_eq!(connection.ask_long(200_000), Some(1), "a long line passes");
            eventually("the client knows the MTU", || {
                lab.run(&lab.client(), &format!("ip route get {vip}")).1.contains("mtu 1400")
            });
        }
        lb.end().unwrap();
    }
}

#[test]
fn nobody_there_is_told_or_not_as_configured() {
    let (lab, lb) = serving("reject", 1, |options| options.policy.reject = true);
    for vip in [VIP4, VIP6] {
        let work = move || {
            let to = SocketAddr::new(vip, 4999);
            let tcp = std::net::TcpStream::connect_timeout(&to, PATIENCE).expect_err("nobody");
            let socket = UdpSocket::bind((client(vip), 0)).expect("bind");
            socket.connect(to).expect("connect");
            socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
            socket.send(b"who?").expect("send");
            (tcp.kind(), socket.recv(&mut [0]).expect_err("nobody").kind())
        };
        let refused = std::io::ErrorKind::ConnectionRefused;
        assert_eq!(within(lab.client(), work).join().expect("client"), (refused, refused), "{vip}");
    }
    lb.end().unwrap();
}
