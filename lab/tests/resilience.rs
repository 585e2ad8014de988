//! What must not hurt: processes that are killed or hang, links that flap, gateways that die, others who delete our routes, and a
//! pod with few rights. Needs root, FRR, BIRD, and the product (`MARTLET_BIN`, else `target/lab/martlet`).
//!
//! What the demo and `weakness` show is not repeated: cut and mended link, kill -9 of the load balancer, adoption of leftovers.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, SystemTime};

use martlet_lab::bench::router::{beside, repaired_beside};
use martlet_lab::capture::{Capture, concerns};
use martlet_lab::namespace::Namespace;
use martlet_lab::pair::Pair;
use martlet_lab::peer::{Make, Peer};
use martlet_lab::stage::{EXTERNAL, PORT, Stage, VIPS, frr_config, gateway, gateway_router, pod, setup, told};
use martlet_lab::stream::Stream;
use martlet_lab::wait::{LIMIT, Seen, until};
use martlet_lab::{Cut, Signal, preflight};

const BFD: [&str; 2] = ["neighbor POD bfd", "neighbor POD bfd profile lab"];
/// Where VIP egress is caught: an address of every gateway's loopback.
const SINK: &str = "198.51.100.1:5000";

fn bird(number: u8, ipv6: bool, stage: &Stage) -> Box<dyn Peer + Send> {
    stage.peer(number, Make::Bird, &setup(number, ipv6)).unwrap()
}

/// A pod with these VIPs; BIRD as gateway 1, whose session is up and whose default route is in the kernel.
fn established_with(vips: &[&str]) -> (Stage, Box<dyn Peer + Send>) {
    preflight::check().unwrap();
    let mut stage = Stage::new(1, vips).unwrap();
    let bird = bird(1, false, &stage);
    stage.put_router("gw", gateway(1, false), "").unwrap();
    stage.start_router(&[]).unwrap();
    is_whole(&stage);
    (stage, bird)
}

fn is_whole(stage: &Stage) {
    stage.up("gw").unwrap();
    stage.until_hops(false, &[gateway(1, false)]).unwrap();
}

/// An application behind the pod, and what a load balancer would do for it: `to VIP` leads there before all other rules.
fn application(stage: &Stage) -> Namespace {
    let app = stage.lab.namespace("app").unwrap();
    stage.lab.link((&stage.pod, "net1"), (&app, "net1")).unwrap();
    let vip = VIPS[0];
    stage
        .pod
        .ip(&format!(
            "addr add 169.111.100.1/24 dev net1\nrule add to {vip} lookup 6000 priority 50\n\
             route add {vip}/32 via 169.111.100.11 table 6000"
        ))
        .unwrap();
    app.ip(&format!(
        "addr add 169.111.100.11/24 dev net1\naddr add {vip}/32 dev lo\nrule add from {vip} lookup 5000\n\
         route add default via 169.111.100.1 table 5000"
    ))
    .unwrap();
    app
}

fn vip() -> IpAddr {
    VIPS[0].parse().unwrap()
}

fn sink() -> SocketAddr {
    SINK.parse().unwrap()
}

fn established(stage: &Stage, peer: &str) -> u64 {
    let said = stage.ask(&["show", "counters", "-o", "json"]).unwrap();
    let all: serde_json::Value = serde_json::from_str(&said).unwrap();
    all[peer]["established"].as_u64().unwrap_or_else(|| panic!("{all}"))
}

#[test]
fn a_router_that_is_killed_and_comes_back_gracefully_loses_no_packet() {
    preflight::check().unwrap();
    let mut stage = Stage::new(1, &[VIPS[0]]).unwrap();
    let _frr = stage.frr(1, &frr_config(1, false, &[], &["network 0.0.0.0/0"])).unwrap();
    let app = application(&stage);
    let gate = stage.gateways[0].clone();
    gate.ip("addr add 198.51.100.1/32 dev lo").unwrap();
    stage.put_router("gw", gateway(1, false), "bgp: {gracefulRestart: {restartTime: 60s}}").unwrap();
    stage.start_router(&[]).unwrap();
    stage.up("gw").unwrap();
    stage.until_hops(false, &[gateway(1, false)]).unwrap();
    let forwards = |namespace: &Namespace| {
        until("the gateway to forward to the VIP", LIMIT, || {
            let routes = namespace.ip_json(&["route", "show", "20.0.0.1/32"])?;
            Ok(if routes.is_empty() { Seen::not_yet("no route") } else { Seen::Yes(()) })
        })
        .unwrap();
    };
    forwards(&gate);
    let every = Duration::from_millis(2);
    let inward = Stream::start((&gate, gateway(1, false)), 4, (&app, SocketAddr::new(vip(), 4000)), every).unwrap();
    let outward = Stream::start((&app, vip()), 4, (&gate, sink()), every).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    stage.stop_router(Signal::Kill).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    stage.start_router(&[]).unwrap();
    stage.up("gw").unwrap();
    until("the default route to be told anew", LIMIT, || {
        let said = stage.ask(&["show", "events"])?;
        Ok(if said.contains("has told all") { Seen::Yes(()) } else { Seen::not_yet(said) })
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    for (way, stream) in [("to the VIP", inward), ("from the VIP", outward)] {
        let report = stream.stop().unwrap();
        println!("{way}: {} of {} lost", report.lost.len(), report.sent);
        assert!(report.lost.is_empty() && report.sent > 300, "{way}: {} of {}", report.lost.len(), report.sent);
    }
}

#[test]
fn two_gateways_with_ecmp_one_dies_and_nothing_is_lost_beyond_the_detection_time() {
    preflight::check().unwrap();
    let mut stage = Stage::new(2, &[VIPS[0]]).unwrap();
    let config = |number| frr_config(number, false, &BFD, &["network 0.0.0.0/0"]);
    let _frr = [1, 2].map(|number| stage.frr(number, &config(number)).unwrap());
    let app = application(&stage);
    // Behind both gateways: one place that counts.
    let behind = stage.lab.namespace("behind").unwrap();
    behind.ip("addr add 198.51.100.1/32 dev lo").unwrap();
    for (index, gate) in stage.gateways.iter().enumerate() {
        let number = index + 1;
        stage.lab.link((gate, "inner"), (&behind, &format!("g{number}"))).unwrap();
        gate.ip(&format!("addr add 172.16.{number}.1/24 dev inner\nroute add 198.51.100.1/32 via 172.16.{number}.2"))
            .unwrap();
        behind.ip(&format!("addr add 172.16.{number}.2/24 dev g{number}")).unwrap();
    }
    let spec = "bgp: {bfd: {switch: true, minTx: 300ms, minRx: 300ms, multiplier: 3}}";
    for (name, number) in [("gw-1", 1), ("gw-2", 2)] {
        stage.put_router(name, gateway(number, false), spec).unwrap();
    }
    stage.start_router(&["--ecmp"]).unwrap();
    for name in ["gw-1", "gw-2"] {
        stage.up(name).unwrap();
    }
    stage.until_hops(false, &[gateway(1, false), gateway(2, false)]).unwrap();
    let flows = 40;
    let stream = Stream::start((&app, vip()), flows, (&behind, sink()), Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let dead = SystemTime::now();
    stage.fabric.cut("gateway-1", Cut::Silent).unwrap();
    stage.until_hops(false, &[gateway(2, false)]).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let report = stream.stop().unwrap();
    let last = report.lost.last().map_or(Duration::ZERO, |last| last.duration_since(dead).unwrap_or_default());
    println!("{} of {} lost, the last {last:.0?} after the cut; detection time 900 ms", report.lost.len(), report.sent);
    // Both were used: or nothing would have been lost.
    assert!(!report.lost.is_empty() && report.lost.len() < report.sent);
    assert!(report.lost.iter().all(|at| *at + Duration::from_millis(20) >= dead), "lost before the cut");
    // The machine may be busy; that much more is not the router's way to wait (its hold time is 9 s).
    assert!(last < Duration::from_millis(900 + 600), "{last:?}");
    // And the next one at once, where there is one next hop only.
    stage.fabric.mend("gateway-1").unwrap();
    stage.up("gw-1").unwrap();
    stage.until_hops(false, &[gateway(1, false), gateway(2, false)]).unwrap();
}

#[test]
fn a_flap_of_a_second_goes_by_unseen() {
    preflight::check().unwrap();
    let mut stage = Stage::new(1, &[VIPS[0]]).unwrap();
    // Five packets may be lost in a second of silence: the detection time must be well above that, on a machine that stalls too.
    let ten = frr_config(1, false, &BFD, &["network 0.0.0.0/0"]).replace("multiplier 3", "multiplier 10");
    let _frr = stage.frr(1, &ten).unwrap();
    stage
        .put_router("gw", gateway(1, false), "bgp: {bfd: {switch: true, minTx: 300ms, minRx: 300ms, multiplier: 10}}")
        .unwrap();
    stage.start_router(&[]).unwrap();
    stage.up("gw").unwrap();
    stage.until_hops(false, &[gateway(1, false)]).unwrap();
    let mut capture = Capture::start(&stage.lab, &stage.pod, EXTERNAL, PORT, &format!("tcp port {PORT}")).unwrap();
    let before = established(&stage, "gw");
    let start = SystemTime::now();
    stage.fabric.cut("gateway-1", Cut::Silent).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    stage.fabric.mend("gateway-1").unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    let updates = capture
        .events()
        .unwrap()
        .iter()
        .filter(|event| event.at > start && matches!(event.what, martlet_lab::wire::What::Update { .. }))
        .count();
    assert!(stage.status().unwrap().peers["gw"].up);
    assert_eq!((established(&stage, "gw"), updates), (before, 0), "neither session nor VIP moved");
}

#[test]
fn one_family_fails_and_the_other_does_not_notice() {
    preflight::check().unwrap();
    let mut stage = Stage::new(2, &[VIPS[0], VIPS[2]]).unwrap();
    let (four, six) = (bird(1, false, &stage), bird(2, true, &stage));
    stage.put_router("four", gateway(1, false), "").unwrap();
    stage.put_router("six", gateway(2, true), "").unwrap();
    stage.start_router(&[]).unwrap();
    for name in ["four", "six"] {
        stage.up(name).unwrap();
    }
    told(&*four, &[VIPS[0]]).unwrap();
    told(&*six, &[VIPS[2]]).unwrap();
    stage.until_hops(true, &[gateway(2, true)]).unwrap();
    let before = established(&stage, "four");
    for process in six.processes() {
        process.signal(Signal::Kill).unwrap();
    }
    let status = stage.until("IPv6 to be gone", |status| !status.connectivity.ipv6).unwrap();
    assert!(status.connectivity.ipv4 && status.peers["four"].up);
    let reason = |vip: &str| status.vips[&vip.parse::<IpAddr>().unwrap().into()].reason.clone();
    assert_eq!([reason(VIPS[0]), reason(VIPS[2])], ["", "NoConnectivity"]);
    stage.until_hops(true, &[]).unwrap();
    assert_eq!(stage.default_hops(false).unwrap(), [gateway(1, false)]);
    told(&*four, &[VIPS[0]]).unwrap();
    assert_eq!(established(&stage, "four"), before);
    // And back.
    let six = bird(2, true, &stage);
    stage.up("six").unwrap();
    told(&*six, &[VIPS[2]]).unwrap();
}

#[test]
fn an_interface_goes_down_loses_its_address_is_renamed_and_comes_back() {
    let (stage, four) = established_with(&[VIPS[0]]);
    let back = || {
        is_whole(&stage);
        told(&*four, &[VIPS[0]]).unwrap();
    };
    back();
    let address = format!("{}/24 dev {EXTERNAL}", pod(false));
    let faults = [
        ("link set ext-vlan down", "interface ext-vlan is down", "link set ext-vlan up"),
        (
            "link set ext-vlan down\nlink set ext-vlan name other\nlink set other up",
            "there is no interface ext-vlan",
            "link set other down\nlink set other name ext-vlan\nlink set ext-vlan up",
        ),
        (&format!("addr del {address}"), "has no IPv4 address", &format!("addr add {address}")),
    ];
    for (fault, said, mend) in faults {
        stage.pod.ip(fault).unwrap();
        let is_told = |peer: &martlet_router::core::PeerView| {
            !peer.up && peer.last_error.as_deref().is_some_and(|error| error.contains(said))
        };
        stage.until_peer("gw", said, is_told).unwrap();
        stage.until_hops(false, &[]).unwrap();
        stage.pod.ip(mend).unwrap();
        back();
    }
}

#[test]
fn a_gateway_is_killed_and_comes_back() {
    let (stage, first) = established_with(&[VIPS[0]]);
    for process in first.processes() {
        process.signal(Signal::Kill).unwrap();
    }
    stage.until_hops(false, &[]).unwrap();
    let down = stage
        .until_peer("gw", "refused", |peer| peer.last_error.as_deref().is_some_and(|e| e.contains("refused")))
        .unwrap();
    assert!(!down.up);
    let again = bird(1, false, &stage);
    stage.up("gw").unwrap();
    told(&*again, &[VIPS[0]]).unwrap();
    stage.until_hops(false, &[gateway(1, false)]).unwrap();
}

#[test]
fn with_the_router_stopped_no_packet_of_a_vip_leaves_by_the_main_table() {
    let (mut stage, _bird) = established_with(&[VIPS[0]]);
    let app = application(&stage);
    // The load balancer's rules are still there, and forward to the application; it answers into nothing.
    stage.stop_router(Signal::Term).unwrap();
    assert_eq!(stage.default_hops(false).unwrap(), Vec::<IpAddr>::new());
    let primary = stage.primary.clone();
    primary.ip("addr add 198.51.100.1/32 dev lo").unwrap();
    let mut capture = Capture::start(&stage.lab, &primary, "eth0", PORT, "ip").unwrap();
    let every = Duration::from_millis(2);
    let report = {
        let stream = Stream::start((&app, vip()), 4, (&primary, sink()), every).unwrap();
        std::thread::sleep(Duration::from_millis(400));
        stream.stop().unwrap()
    };
    assert_eq!(report.lost.len(), report.sent, "some arrived through the primary network");
    // It would have been seen: the pod's own packets do arrive there.
    let own = Stream::start((&stage.pod, "10.244.0.10".parse().unwrap()), 1, (&primary, sink()), every).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(own.stop().unwrap().lost.is_empty());
    capture.stop().unwrap();
    assert_eq!(capture.count(|event| concerns(event, vip())).unwrap(), 0);
    assert!(capture.count(|event| concerns(event, "10.244.0.10".parse().unwrap())).unwrap() > 0);
    // Who cleans up says so.
    let output = stage.pod.inside(|| stage.martlet().args(["router", "--clean"]).output()).unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("routes and rules removed") && !said.starts_with('0'), "{said}");
    assert!(stage.pod.routes("-4", "4097").unwrap().is_empty());
}

#[test]
fn a_kernel_that_says_more_than_can_be_heard_is_read_anew() {
    let (stage, _bird) = established_with(&[VIPS[0]]);
    let router = stage.router.clone().unwrap();
    router.signal(Signal::Stop).unwrap();
    // While it does not listen: far more events than its socket holds, then our route is gone.
    let flood: Vec<String> = (0..40_000_u32)
        .map(|n| format!("route add blackhole 10.{}.{}.{}/32 table 77", 100 + (n >> 16), (n >> 8) & 255, n & 255))
        .collect();
    stage.pod.ip(&flood.join("\n")).unwrap();
    stage.pod.ip("route flush table 77\nroute del default table 4096 metric 20").unwrap();
    router.signal(Signal::Cont).unwrap();
    stage.until_hops(false, &[gateway(1, false)]).unwrap();
    until("the log to tell of it", LIMIT, || {
        let log = router.log();
        Ok(if log.contains("more to say than we could hear") { Seen::Yes(()) } else { Seen::not_yet("not told") })
    })
    .unwrap();
}

#[test]
fn what_others_delete_is_back_and_who_keeps_deleting_is_named() {
    let (stage, _bird) = established_with(&[VIPS[0]]);
    let count = |what: &str, command: &[&str], wanted: usize| {
        until(what, LIMIT, || {
            let seen = stage.pod.output("ip", command)?.lines().count();
            Ok(if seen == wanted { Seen::Yes(()) } else { Seen::not_yet(seen.to_string()) })
        })
        .unwrap();
    };
    let rule = ["rule", "show", "priority", "100"];
    let blackhole = ["route", "show", "table", "4097"];
    for (delete, show) in
        [("rule del priority 100", rule.as_slice()), ("route del blackhole default table 4097", &blackhole)]
    {
        stage.pod.ip(delete).unwrap();
        count(delete, show, 1);
    }
    // A route of another owner in our table is nobody's business of ours.
    stage.pod.ip("route add 203.0.113.0/24 via 10.1.0.11 table 4096").unwrap();
    let conflict = |status: &martlet_router::core::Status| status.notes.contains("KernelConflict");
    let end = SystemTime::now() + LIMIT;
    let status = loop {
        match stage.status() {
            Ok(status) if conflict(&status) => break status,
            _ => assert!(SystemTime::now() < end, "no conflict is told"),
        }
        for _ in 0..40 {
            let _ = stage.pod.ip("route del default table 4096 metric 20");
        }
    };
    assert!(
        status.kernel.iter().any(|line| line.contains("0.0.0.0/0") && line.contains("keeps deleting")),
        "{status:#?}"
    );
    // It waits, and then it is put back all the same.
    stage.until_hops(false, &[gateway(1, false)]).unwrap();
    stage.until("the conflict to be over", |status| !conflict(status)).unwrap();
    assert!(stage.pod.output("ip", &["route", "show", "table", "4096"]).unwrap().contains("203.0.113.0/24"));
}

#[test]
fn a_hangup_has_a_read_only_folder_read_anew() {
    preflight::check().unwrap();
    let mut stage = Stage::new(1, &[VIPS[0]]).unwrap();
    let bird = bird(1, false, &stage);
    // Behind a link: a change there is no event of the folder.
    let behind = stage.lab.dir().join("behind.yaml");
    std::fs::write(&behind, gateway_router("gw", gateway(1, false), "description: before")).unwrap();
    std::os::unix::fs::symlink(&behind, stage.objects().join("gw.yaml")).unwrap();
    let folder = stage.objects().display().to_string();
    let script = format!(
        "set -e; mount --make-rprivate /; mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}
        if touch {folder}/written 2>/dev/null; then exit 9; fi; exec \"$@\""
    );
    let plain = stage.router_command(&[]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh"]).arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    stage.router = Some(stage.lab.spawn("router", Some(&stage.pod), command).unwrap());
    is_whole(&stage);
    told(&*bird, &[VIPS[0]]).unwrap();
    let session = established(&stage, "gw");
    std::fs::write(&behind, gateway_router("gw", gateway(1, false), "description: after")).unwrap();
    stage.router.as_ref().unwrap().signal(Signal::Hup).unwrap();
    let described = |peer: &martlet_router::core::PeerView| peer.description.as_deref() == Some("after");
    stage.until_peer("gw", "what stands there now", described).unwrap();
    assert_eq!(established(&stage, "gw"), session, "its session did not move");
}

#[test]
fn a_gateway_several_hops_away_is_reached_as_the_main_table_leads() {
    preflight::check().unwrap();
    let mut stage = Stage::new(1, &[VIPS[0]]).unwrap();
    let lines = ["neighbor POD ebgp-multihop 5", "neighbor POD update-source 10.9.0.1"];
    stage.gateways[0].ip("addr add 10.9.0.1/32 dev lo").unwrap();
    let _frr = stage.frr(1, &frr_config(1, false, &lines, &["network 0.0.0.0/0"])).unwrap();
    stage.put_router("far", "10.9.0.1".parse().unwrap(), "bgp: {multihop: {}}").unwrap();
    stage.pod.ip(&format!("route add 10.9.0.0/24 via {} dev {EXTERNAL}", gateway(1, false))).unwrap();
    stage.start_router(&[]).unwrap();
    stage.up("far").unwrap();
    stage.until_hops(false, &[gateway(1, false)]).unwrap();
    // Without the way there the default route into the primary network is none.
    stage.pod.ip("route del 10.9.0.0/24").unwrap();
    stage.until_hops(false, &[]).unwrap();
    stage.pod.ip(&format!("route add 10.9.0.0/24 via {} dev {EXTERNAL}", gateway(1, false))).unwrap();
    stage.until_hops(false, &[gateway(1, false)]).unwrap();
}

#[test]
fn a_user_without_rights_a_read_only_root_and_three_capabilities_are_enough() {
    preflight::check().unwrap();
    let mut stage = Stage::new(1, &[VIPS[0]]).unwrap();
    let privileged = martlet_lab::peer::Setup { port: 179, bfd: true, ..setup(1, false) };
    let bird = stage.peer(1, Make::Bird, &privileged).unwrap();
    let spec = "bgp: {localPort: 179, remotePort: 179, bfd: {switch: true}}";
    stage.put_router("gw", gateway(1, false), spec).unwrap();
    let writable = stage.lab.dir().join("run");
    std::fs::create_dir(&writable).unwrap();
    let run = writable.display();
    let plain = stage.router_command(&["--control-socket", &format!("{run}/router.sock")]);
    let caps = "+net_admin,+net_bind_service,+net_raw";
    let script = format!(
        "set -e; chown 65534:65534 {run}; mount --make-rprivate /; mount --bind {run} {run}; mount -o remount,bind,ro /
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --bounding-set -all,{caps} --inh-caps -all,{caps} \
         --ambient-caps -all,{caps} -- \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh"]).arg(plain.get_program()).args(plain.get_args());
    for (key, value) in plain.get_envs().filter_map(|(key, value)| Some((key, value?))) {
        command.env(key, value);
    }
    stage.router = Some(stage.lab.spawn("router", Some(&stage.pod), command).unwrap());
    std::os::unix::fs::symlink(writable.join("router.sock"), stage.lab.dir().join("router.sock")).unwrap();
    let status = stage.until("Up with BFD", |status| status.peers.get("gw").is_some_and(|gw| gw.up)).unwrap();
    assert!(status.bfd.values().all(|bfd| bfd.state == "Up"), "{status:#?}");
    told(&*bird, &[VIPS[0]]).unwrap();
    stage.until_hops(false, &[gateway(1, false)]).unwrap();
    let process = format!("/proc/{}/status", stage.router.as_ref().unwrap().pid());
    let rights = std::fs::read_to_string(process).unwrap();
    // CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW: bits 10, 12, 13.
    for line in ["Uid:\t65534\t65534", "CapEff:\t0000000000003400", "CapBnd:\t0000000000003400"] {
        assert!(rights.contains(line), "{line} in {rights}");
    }
}

/// A stream of datagrams from the client to the VIP, from many ports, one a millisecond.
fn to_the_vip(pair: &Pair) -> Stream {
    let client = "200.100.0.100".parse().unwrap();
    let target = SocketAddr::new(vip(), 4000);
    Stream::start((&pair.client, client), 64, (&pair.app, target), Duration::from_millis(1)).unwrap()
}

#[test]
fn a_pod_of_two_ends_its_load_balancer_dies_or_hangs() {
    preflight::check().unwrap();
    let pair = Pair::build(3).unwrap();
    let [one, two] = &pair.pods;
    // A load balancer that hangs is not ready, although its sockets are open.
    let hung = SystemTime::now();
    one.lb.signal(Signal::Stop).unwrap();
    pair.announced(&[2]).unwrap();
    println!("a hung load balancer: withdrawn {:.1?} after SIGSTOP", hung.elapsed().unwrap());
    one.lb.signal(Signal::Cont).unwrap();
    pair.announced(&[1, 2]).unwrap();
    // Both containers are told to end at once: nothing is lost.
    let stream = to_the_vip(&pair);
    std::thread::sleep(Duration::from_millis(500));
    for process in [&one.router, &one.lb] {
        process.signal(Signal::Term).unwrap();
    }
    pair.announced(&[2]).unwrap();
    for process in [&one.router, &one.lb] {
        assert!(process.wait(LIMIT).unwrap().success());
    }
    std::thread::sleep(Duration::from_millis(300));
    let report = stream.stop().unwrap();
    println!("SIGTERM of router and lb: {} of {} lost", report.lost.len(), report.sent);
    assert!(report.lost.is_empty() && report.sent > 1000, "{} of {} lost", report.lost.len(), report.sent);
    // What is killed is missed within milliseconds; the gateway has no other pod now.
    two.lb.signal(Signal::Kill).unwrap();
    pair.announced(&[]).unwrap();
}

#[test]
fn vips_change_while_a_hundred_thousand_routes_come_and_go() {
    preflight::check().unwrap();
    for storm in beside(1).unwrap() {
        // Some 50, on a calm machine. Whoever first takes all routes and then looks around has none.
        assert!(storm.least >= 5, "only {} of: {}", storm.least, storm.what);
    }
}

#[test]
fn what_others_delete_is_back_while_a_hundred_thousand_routes_come() {
    preflight::check().unwrap();
    // Two to five, on a calm machine. Whoever first takes all routes has put back none.
    assert!(repaired_beside().unwrap() > 0, "nothing was put back before the last route was there");
}
