//! The load balancer on real packets: a client, the queue, applications; each test in namespaces of its own. Needs root.

#[path = "wire/craft.rs"]
mod craft;
#[path = "wire/direct.rs"]
mod direct;
#[path = "wire/lab.rs"]
mod lab;
#[path = "wire/packets.rs"]
mod packets;
#[path = "wire/ports.rs"]
mod ports;
#[path = "wire/sys.rs"]
mod sys;
#[path = "wire/ways.rs"]
mod ways;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lab::{Connection, Lab, VIP4, VIP6, Way, eventually, serving};
use martlet_lb::control::{Answer, Request};
use martlet_lb::hash::{Flow, Seed};
use martlet_lb::maglev::{Size, Table};
use martlet_lb::offload::Engine;
use martlet_lb::queue::Loop;
use martlet_lb::show::State;
use martlet_lb::status::Status;

/// The application that the wire contract chooses for a flow of the client to port 4000.
fn expected_of(vip: IpAddr, protocol: u8, port: u16, ready: &BTreeSet<u8>) -> u8 {
    expected_at(SocketAddr::new(vip, 4000), protocol, port, ready)
}

/// The same for any port of a VIP.
fn expected_at(to: SocketAddr, protocol: u8, port: u16, ready: &BTreeSet<u8>) -> u8 {
    let (vip, destination_port) = (to.ip(), to.port());
    let seed = Seed::of_gateway("default", "sllb-a");
    let table = Table::new(Size::for_endpoints(100), seed, ready.iter().map(|number| u16::from(*number)));
    let flow = Flow { source: craft::client(vip), destination: vip, protocol, source_port: port, destination_port };
    let identifier = table.lookup(flow.hash(seed)).expect("somebody is ready");
    u8::try_from(identifier).expect("small")
}

/// The same of a TCP connection.
fn expected(vip: IpAddr, port: u16, ready: &BTreeSet<u8>) -> u8 {
    expected_of(vip, 6, port, ready)
}

fn everybody_answers(lab: &Lab, ready: &BTreeSet<u8>) {
    for vip in [VIP4, VIP6] {
        for connection in lab.connect(vip, 60) {
            assert_eq!(connection.application, expected(vip, connection.local.port(), ready), "{}", connection.local);
        }
        let answered: BTreeSet<u8> = lab.exchange(vip, 60).into_iter().collect();
        assert_eq!(answered, *ready, "UDP to {vip}");
    }
}

#[test]
fn every_packet_is_answered_and_flows_of_those_who_stay_stay() {
    let lab = Lab::new("stay", 3);
    let all: BTreeSet<u8> = [1, 2, 3].into();
    lab.configure(&BTreeSet::new());
    let mut lb = lab.start(|_| {});
    lab.wait_ready(false);
    lab.configure(&all);
    lab.wait_ready(true);
    everybody_answers(&lab, &all);
    for vip in [VIP4, VIP6] {
        let (answered, text) = lab.run(&lab.client(), &format!("ping -n -c 3 -i 0.2 -W 10 {vip}"));
        assert!(answered && text.contains(" 0% packet loss"), "{text}");
    }

    // Application 3 leaves.
    let mut connections: Vec<(IpAddr, Connection)> =
        [VIP4, VIP6].into_iter().flat_map(|vip| lab.connect(vip, 60).into_iter().map(move |one| (vip, one))).collect();
    let some: BTreeSet<u8> = [1, 2].into();
    lab.configure(&some);
    for table in ["ip", "ip -6"] {
        eventually("the route to application 3 is gone", || {
            !lab.run(&lab.lb(), &format!("{table} route show table 5003")).1.contains("default")
        });
    }
    let mut stayed = 0;
    for (vip, connection) in &mut connections {
        if connection.application == expected(*vip, connection.local.port(), &some) {
            assert_eq!(connection.ask(), Some(connection.application), "{}", connection.local);
            stayed += 1;
        }
    }
    assert!(stayed > 60, "two thirds of 120 and a few less: {stayed}");
    everybody_answers(&lab, &some);

    // The end: told, forwarded on, then nothing is left.
    let heard = lab.router();
    lb.say_end();
    assert!(heard.take(20).any(|value| value.draining), "the router is told");
    assert_eq!(lab.exchange(VIP4, 5).len(), 5);
    lb.wait().unwrap();
    let (listed, _) = lab.run(&lab.lb(), "nft list table inet martlet-lb");
    assert!(!listed, "the nftables table is gone");
    for family in ["ip", "ip -6"] {
        assert!(!lab.run(&lab.lb(), &format!("{family} rule")).1.contains("fwmark"));
        assert!(!lab.run(&lab.lb(), &format!("{family} route show table all")).1.contains("table 500"));
    }
}

#[test]
fn flows_of_those_who_stay_lose_nothing_while_tables_change() {
    let lab = Lab::new("change", 3);
    let (all, some): (BTreeSet<u8>, BTreeSet<u8>) = ([1, 2, 3].into(), [1, 2].into());
    let lb = lab.start(|_| {});
    for vip in [VIP4, VIP6] {
        // By way of nobody, so that no table of before is in force when the connections begin.
        lab.configure(&BTreeSet::new());
        lab.wait_ready(false);
        lab.configure(&all);
        lab.wait_ready(true);
        let mut connections = lab.connect(vip, 40);
        // Those whose endpoint is the same in both tables.
        connections.retain(|one| expected(vip, one.local.port(), &some) == one.application);
        assert!(connections.len() > 10);
        for change in 0..30 {
            lab.configure(if change % 2 == 0 { &some } else { &all });
            for connection in &mut connections {
                assert_eq!(connection.ask(), Some(connection.application), "{}", connection.local);
            }
        }
    }
    lb.end().unwrap();
}

#[test]
fn what_a_dead_process_left_is_adopted_and_nothing_of_others_is_touched() {
    let lab = Lab::new("adopt", 2);
    lab.configure(&[1, 2].into());
    let first = lab.start(|_| {});
    lab.wait_ready(true);
    let monitor = |objects: &str| lab.run(&lab.lb(), objects).1;
    let rules = monitor("ip rule");
    first.crash();
    assert_eq!(monitor("ip rule"), rules, "a dead process leaves its rules");
    // Others have rules, tables and marks as well; and application 2 leaves meanwhile.
    for command in [
        "ip rule add fwmark 77 lookup 77 priority 50 protocol static",
        "ip route add 10.77.0.0/16 via 10.9.0.11 table 5001 proto static",
        "nft add table inet other",
    ] {
        assert!(lab.run(&lab.lb(), command).0, "{command}");
    }
    lab.configure(&[1].into());
    let second = lab.start(|_| {});
    lab.wait_ready(true);
    everybody_answers(&lab, &[1].into());
    eventually("the route to application 2 is gone", || !monitor("ip route show table 5002").contains("default"));
    assert!(monitor("ip route show table 5001").contains("default"));
    second.end().unwrap();
    assert!(monitor("ip rule").contains("fwmark 0x4d lookup 77"));
    assert!(monitor("ip route show table 5001").contains("10.77.0.0/16"));
    assert!(monitor("nft list tables").contains("inet other"));
    assert!(!monitor("ip rule").contains("proto 202") && !monitor("nft list tables").contains("martlet-lb"));
}

#[test]
fn a_deleted_rule_is_back_and_a_lost_link_is_told() {
    let (lab, lb) = serving("mend", 1, |_| {});
    let leaf = "ip rule show lookup 5001";
    assert!(lab.run(&lab.lb(), leaf).1.contains("lookup 5001"));
    let (_, priority) = lab.run(&lab.lb(), leaf);
    let priority = priority.split(':').next().unwrap();
    assert!(lab.run(&lab.lb(), &format!("ip rule del priority {priority} lookup 5001")).0);
    assert!(lab.run(&lab.lb(), "ip route flush table 5001").0);
    eventually("rule and route are back", || {
        lab.run(&lab.lb(), leaf).1.contains("lookup 5001")
            && lab.run(&lab.lb(), "ip route show table 5001").1.contains("default")
    });
    everybody_answers(&lab, &[1].into());
    assert!(lab.run(&lab.lb(), "ip link set int down").0);
    lab.wait_ready(false);
    assert!(lab.run(&lab.lb(), "ip link set int up").0);
    // The kernel took the IPv6 address away with the link.
    assert!(lab.run(&lab.lb(), "ip addr replace fd09::fe/64 dev int nodad").0);
    lab.wait_ready(true);
    everybody_answers(&lab, &[1].into());
    lb.end().unwrap();
}

#[test]
fn the_loop_of_the_crate_nfq_serves_as_well() {
    let all: BTreeSet<u8> = [1, 2].into();
    let (lab, lb) = serving("nfq", 2, |options| {
        options.queue.queue_loop = Loop::Nfq;
        options.queue.queues = 0..=0;
    });
    everybody_answers(&lab, &all);
    lb.end().unwrap();
}

#[test]
fn the_kernel_engine_chooses_the_same_endpoints() {
    let lab = Lab::new("kernel", 3);
    let (all, some): (BTreeSet<u8>, BTreeSet<u8>) = ([1, 2, 3].into(), [1, 3].into());
    lab.configure(&all);
    let control = lab.folder.join("control.sock");
    let path = control.clone();
    let lb = lab.start(|options| {
        options.engine = Engine::Kernel;
        options.control_socket = Some(path);
    });
    lab.wait_ready(true);
    everybody_answers(&lab, &all);
    eventually("what the kernel forwarded is shown by endpoint and by route", || {
        let state = state(&control);
        let packets = |count: martlet_lb::counters::Count| count.packets;
        let of_all: u64 = state.endpoints.iter().map(|endpoint| packets(endpoint.count)).sum();
        state.endpoints.iter().all(|endpoint| packets(endpoint.count) > 20)
            && state.flows.first().is_some_and(|flow| packets(flow.count) == of_all)
    });
    packets::fragments_arrive(&lab, &all);
    let listed = |what: &str| lab.run(&lab.lb(), &format!("nft list {what}")).1;
    let flows = listed("chain inet martlet-lb flows-4");
    assert!(flows.contains("vmap @slots-5000-65537-chains"), "{flows}");
    // Most of it did not come so far.
    for family in [4, 6] {
        let endpoints = listed(&format!("map netdev martlet-lb endpoints-{family}"));
        assert!(endpoints.contains("counter packets ") && !endpoints.contains("packets 0 "), "{endpoints}");
    }
    lab.run(&lab.lb(), "nft flush ruleset");
    eventually("the short way is back", || listed("tables").contains("table netdev martlet-lb"));
    for vip in [VIP4, VIP6] {
        let (answered, text) = lab.run(&lab.client(), &format!("ping -n -c 3 -i 0.2 -W 10 {vip}"));
        assert!(answered && text.contains(" 0% packet loss"), "an echo goes by the queue: {text}");
    }
    lab.configure(&some);
    eventually("application 2 is gone", || !lab.run(&lab.lb(), "ip route show table 5002").1.contains("default"));
    everybody_answers(&lab, &some);
    lb.end().unwrap();
    assert_eq!(listed("ruleset"), "", "nothing is left");
}

#[test]
fn with_bypass_the_kernel_goes_on_when_the_process_is_dead() {
    let all: BTreeSet<u8> = [1, 2].into();
    let (lab, lb) = serving("bypass", 2, |options| options.bypass = true);
    everybody_answers(&lab, &all);
    lb.crash();
    eventually("the queues are closed", || {
        lab.run(&lab.lb(), "cat /proc/net/netfilter/nfnetlink_queue").1.trim().is_empty()
    });
    everybody_answers(&lab, &all);
}

#[test]
fn without_bypass_a_dead_queue_ends_the_way_and_the_main_table_gets_nothing() {
    let (lab, lb) = serving("end", 1, |_| {});
    // The main table would lead there as well.
    for command in ["ip route add 20.0.0.1/32 via 10.9.0.11", "ip -6 route add 2000::1/128 via fd09::11"] {
        assert!(lab.run(&lab.lb(), command).0, "{command}");
    }
    everybody_answers(&lab, &[1].into());
    lb.crash();
    eventually("the queues are closed", || {
        lab.run(&lab.lb(), "cat /proc/net/netfilter/nfnetlink_queue").1.trim().is_empty()
    });
    for vip in [VIP4, VIP6] {
        assert_eq!([31_000, 31_001, 31_002].map(|port| lab.ask_from(vip, port)), [None; 3], "{vip}");
    }
    assert!(lab.run(&lab.lb(), "nft delete table inet martlet-lb").0);
    // That there is no other reason for the silence.
    eventually("the main table leads there", || lab.ask_from(VIP4, 31_003) == Some(1));
}

#[test]
fn twenty_thousand_packets_a_second_lose_none_while_tables_change() {
    for way in [Way::Queue, Way::Direct] {
        none_is_lost(way);
    }
}

fn none_is_lost(way: Way) {
    let lab = Lab::new(&format!("rate-{}", way.letter()), 3);
    let (all, some): (BTreeSet<u8>, BTreeSet<u8>) = ([1, 2, 3].into(), [1, 2].into());
    lab.configure(&all);
    let lb = lab.start(|options| {
        way.choose(options);
        // A machine that stands still for a moment is no lost packet.
        options.queue.length = 65_536;
        options.queue.receive_buffer = 128 << 20;
    });
    lab.wait_ready(true);
    lab.wait_for_way(way);
    everybody_answers(&lab, &all);
    let ports = (32_000..).filter(|port| expected_of(VIP4, 17, *port, &all) == expected_of(VIP4, 17, *port, &some));
    let before = lab.arrived();
    let flood = lab.flood(VIP4, ports.take(100).collect(), 20_000);
    for change in 0..40 {
        lab.configure(if change % 2 == 0 { &some } else { &all });
        std::thread::sleep(std::time::Duration::from_millis(60));
    }
    let sent = flood.end();
    assert!(sent > 20_000, "{sent} packets say something");
    let mut arrived = 0;
    eventually(&format!("all {sent} arrive"), || {
        arrived = lab.arrived() - before;
        arrived >= sent
    });
    assert_eq!(arrived, sent);
    lb.end().expect("it ends in order");
}

/// A hundred networks of sources, ports that say "any", and the port 0 of nobody.
const NETWORKS: &str = r#"---
apiVersion: meridio.experiment.gateway.api.poc/v1alpha1
kind: L34Route
metadata:
  name: networks
spec:
  parentRefs: [{name: sllb-a}]
  backendRefs: [{name: a}]
  priority: 2
  destinationCIDRs: ["20.0.0.1/32", "2000::1/128"]
  sourceCIDRs: [NETS]
  sourcePorts: [any]
  destinationPorts: ["0", "8080"]
  protocols: [TCP, UDP]
"#;

#[test]
fn a_hundred_networks_and_any_port_match_in_both_engines() {
    for engine in [Engine::Queue, Engine::Kernel] {
        let lab = Lab::new(&format!("nets-{engine:?}").to_lowercase(), 2);
        let mut nets: Vec<String> = (0..99).map(|net| format!("\"172.16.{net}.0/24\"")).collect();
        nets.extend(["\"192.168.1.1/32\"", "\"::/0\""].map(str::to_owned));
        lab.add("networks.yaml", &NETWORKS.replace("NETS", &nets.join(", ")));
        let all: BTreeSet<u8> = [1, 2].into();
        lab.configure(&all);
        let lb = lab.start(|options| options.engine = engine);
        lab.wait_ready(true);
        for vip in [VIP4, VIP6] {
            let to = SocketAddr::new(vip, 8080);
            for connection in lab.connect_to(to, 20) {
                assert_eq!(connection.application, expected_at(to, 6, connection.local.port(), &all));
            }
        }
        // Without the network of the client nothing matches any more.
        nets.remove(99);
        lab.add("networks.yaml", &NETWORKS.replace("NETS", &nets.join(", ")));
        eventually("nobody answers the client", || lab.ask_at((VIP4, 8080).into(), 33_000).is_none());
        assert!(lab.ask_at((VIP6, 8080).into(), 33_000).is_some());
        lb.end().unwrap();
    }
}

#[test]
fn a_flushed_rule_set_is_back() {
    let (lab, lb) = serving("flush", 1, |_| {});
    everybody_answers(&lab, &[1].into());
    for command in ["nft flush ruleset", "nft flush chain inet martlet-lb prerouting"] {
        assert!(lab.run(&lab.lb(), command).0, "{command}");
        eventually("the rules are back", || {
            lab.run(&lab.lb(), "nft list table inet martlet-lb").1.contains("vips-6")
                && lab.run(&lab.lb(), "nft list chain inet martlet-lb prerouting").1.contains("counter")
        });
        everybody_answers(&lab, &[1].into());
    }
    lb.end().unwrap();
}

#[test]
fn an_endpoint_that_does_not_answer_on_its_link_gets_no_flows() {
    let lab = Lab::new("dead", 3);
    let (all, some): (BTreeSet<u8>, BTreeSet<u8>) = ([1, 2, 3].into(), [1, 3].into());
    lab.configure(&all);
    let lb = lab.start(|options| options.liveness = true);
    lab.wait_ready(true);
    everybody_answers(&lab, &all);
    // The objects still say that it is ready. Its port of the bridge is cut, so that only silence tells.
    assert!(lab.run(&lab.lb(), "ip link set p2 nomaster").0);
    // A source port whose endpoint is the dead one now, and another when that is known; of each family.
    for vip in [VIP4, VIP6] {
        let moved = |port: &u16| expected_of(vip, 17, *port, &all) == 2;
        let port = (30_000..40_000).find(moved).unwrap();
        eventually("its flows move", || lab.ask_from(vip, port) == Some(expected_of(vip, 17, port, &some)));
    }
    everybody_answers(&lab, &some);
    assert!(lab.run(&lab.lb(), "ip link set p2 master int").0);
    for vip in [VIP4, VIP6] {
        let port = (30_000..40_000).find(|port| expected_of(vip, 17, *port, &all) == 2).unwrap();
        eventually("it is back", || lab.ask_from(vip, port) == Some(2));
    }
    everybody_answers(&lab, &all);
    lb.end().unwrap();
}

#[test]
fn a_hung_queue_thread_takes_the_vips_with_it_and_brings_them_back() {
    let lab = Lab::new("hang", 1);
    lab.configure(&[1].into());
    let control = lab.folder.join("control.sock");
    let path = control.clone();
    // A number of its own: the threads of all tests are in one process.
    let lb = lab.start(|options| {
        options.queue.queues = 4711..=4711;
        options.control_socket = Some(path);
    });
    lab.wait_ready(true);
    assert_eq!(lab.exchange(VIP4, 3), [1, 1, 1]);
    eventually("what was forwarded is shown", || {
        state(&control).endpoints.first().is_some_and(|endpoint| endpoint.count.packets >= 3)
    });
    assert!(state(&control).queues[&4711].waiting.is_some(), "root may know the depth");
    let trace = ask(&control, &Request::Trace(flow_to_vip(40_000)));
    assert!(matches!(trace, Answer::Trace(ref trace) if trace.choice.identifier == 1), "{trace:?}");

    let mut debugger = sys::hang(thread_named("queue-4711")).expect("ptrace: needs root");
    eventually("the silence is noticed", || !state(&control).alive);
    // Whoever connects now hears nothing until the thread lives again, whatever was true before.
    let heard = std::thread::spawn({
        let mut heard = lab.router();
        move || heard.next().map(|value| (value, std::time::Instant::now()))
    });
    let shown = state(&control);
    assert!(!shown.alive && shown.vips.values().all(|vip| vip.ready), "silent, not contradicted: {shown:?}");
    let resumed = std::time::Instant::now();
    debugger.kill().expect("our own child");
    debugger.wait().expect("our own child");
    let (value, at) = heard.join().expect("no panic").expect("a value");
    assert!(at >= resumed && value.vips.values().all(|vip| vip.ready), "{value:?}");
    eventually("all queue threads answer", || state(&control).alive);
    assert_eq!(lab.exchange(VIP4, 3), [1, 1, 1]);
    lb.end().unwrap();
}

#[test]
fn a_family_that_is_off_keeps_nobody_busy_and_is_served_once_it_is_on() {
    let lab = Lab::new("off", 1);
    let forward = |on: u8| assert!(lab.run(&lab.lb(), &format!("sysctl -qw net.ipv6.conf.all.forwarding={on}")).0);
    forward(0);
    lab.configure(&[1].into());
    let (sender, mut seen) = tokio::sync::watch::channel(Arc::<Status>::default());
    let lb = lab.start(|options| options.status = Some(sender));
    let ready = |status: &Status, vip: IpAddr| {
        status.readiness.as_ref().is_some_and(|now| now.vips.iter().any(|(its, now)| its.addr() == vip && now.ready))
    };
    eventually("IPv4 is served, IPv6 is not", || ready(&seen.borrow(), VIP4) && !ready(&seen.borrow(), VIP6));
    // The view is made anew whenever everything is gone through, at the start because links settle; the state is with each beat.
    eventually("four beats go by without that", || {
        let first = seen.borrow_and_update().view.clone().expect("there is one");
        (0..4).all(|_| {
            eventually("a beat", || seen.has_changed().expect("it runs"));
            seen.borrow_and_update().view.as_ref().is_some_and(|view| Arc::ptr_eq(view, &first))
        })
    });
    forward(1);
    eventually("IPv6 is served", || ready(&seen.borrow(), VIP6));
    lb.end().unwrap();
}

fn ask(control: &Path, request: &Request) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(martlet_lb::control::ask(control, request)).expect("the load balancer answers")
}

fn state(control: &Path) -> State {
    match ask(control, &Request::Status) {
        Answer::Status(state) => *state,
        other => panic!("{other:?}"),
    }
}

fn flow_to_vip(source_port: u16) -> Flow {
    Flow { source: craft::client(VIP4), destination: VIP4, protocol: 6, source_port, destination_port: 4000 }
}

/// A thread of this process.
fn thread_named(name: &str) -> i32 {
    let threads = std::fs::read_dir("/proc/self/task").expect("proc").map(|thread| thread.expect("thread").path());
    let is_it = |thread: &PathBuf| std::fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let thread = threads.into_iter().find(is_it).expect("the thread runs");
    thread.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number")
}
