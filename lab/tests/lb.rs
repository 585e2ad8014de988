//! The load balancer as users run it: many endpoints, many services, two pods behind one gateway. Needs root and the product
//! (`MARTLET_BIN`, else `target/lab/martlet`).

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

#[path = "lb_suite/pods.rs"]
mod pods;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use martlet_lab::bench::lb::stage::{CLIENT, Middle, SERVED, Setup, Stage, VIP};
use martlet_lab::wait::{LIMIT, Seen, until};
use martlet_lab::{End, Lab, preflight};
use martlet_lb::hash::{Flow, Seed};
use martlet_lb::maglev::{Size, Table};

/// Namespaces that vanish with the test.
fn lab() -> Lab {
    preflight::check().unwrap();
    Lab::new(End::Remove).unwrap()
}

/// The endpoint of each flow from these ports, by the wire contract, counted.
fn predicted(ports: impl Iterator<Item = u16>, endpoints: u32, vip: Ipv4Addr, port: u16) -> BTreeMap<u32, u64> {
    let seed = Seed::of_gateway("default", "bench");
    let identifiers = (0..endpoints).map(|number| u16::try_from(number).unwrap());
    let table = Table::new(Size::for_endpoints(endpoints.max(100)), seed, identifiers);
    let mut counts = BTreeMap::new();
    for source_port in ports {
        let (source, destination) = (CLIENT.into(), vip.into());
        let flow = Flow { source, destination, protocol: 17, source_port, destination_port: port };
        *counts.entry(table.lookup(flow.hash(seed)).unwrap().into()).or_default() += 1;
    }
    counts
}

/// One datagram from each of these ports.
fn send(stage: &Stage, ports: impl Iterator<Item = u16> + Send, vip: Ipv4Addr, port: u16) {
    let work = || {
        for from in ports {
            UdpSocket::bind((CLIENT, from)).unwrap().send_to(b"x", (vip, port)).unwrap();
        }
    };
    stage.client.inside(work).unwrap();
}

/// Waits until the load balancer has counted what is wanted for each endpoint of a service.
fn wait_for_counts(stage: &Stage, service: &str, wanted: &BTreeMap<u32, u64>) {
    until(&format!("the counters of {service}"), LIMIT, || {
        let Ok(shown) = stage.state() else { return Ok(Seen::not_yet("no answer")) };
        let of_service = shown.endpoints.iter().filter(|endpoint| endpoint.service == service);
        let counted: BTreeMap<u32, u64> = of_service
            .filter(|endpoint| endpoint.count.packets > 0)
            .map(|endpoint| (endpoint.identifier, endpoint.count.packets))
            .collect();
        let (now, all) = (counted.values().sum::<u64>(), wanted.values().sum::<u64>());
        Ok(if counted == *wanted {
            Seen::Yes(())
        } else {
            Seen::not_yet(format!("{now} of {all} packets: {counted:?}"))
        })
    })
    .unwrap();
}

#[test]
fn of_a_thousand_endpoints_each_gets_its_flows_and_no_others_by_both_engines() {
    let lab = lab();
    for (name, arguments) in [("queue", &["--engine", "queue"][..]), ("kernel", &["--engine", "kernel"])] {
        let stage = Stage::new(
            &lab,
            Setup { name, middle: Middle::Balancer(arguments), routes: 1, endpoints: 1000, through: &[] },
        )
        .unwrap();
        assert!(stage.state().unwrap().engine.starts_with(name));
        let wanted = predicted(20_000..23_000, 1000, VIP, SERVED);
        assert!(wanted.len() > 900, "three flows for each: {}", wanted.len());
        send(&stage, 20_000..23_000, VIP, SERVED);
        wait_for_counts(&stage, "bench", &wanted);
        stage.end();
    }
}

#[test]
fn a_hundred_services_have_a_hundred_vips_and_auto_takes_smaller_tables_or_the_queue() {
    let lab = lab();
    let setup =
        Setup { name: "auto", middle: Middle::Balancer(&["--engine", "auto"]), routes: 1, endpoints: 10, through: &[] };
    let stage = Stage::new(&lab, setup).unwrap();
    assert!(stage.state().unwrap().engine.starts_with("kernel: "), "one service is little");
    let service = |number: u16| format!("s{number:03}");
    let vip = |number: u16| Ipv4Addr::from_bits(Ipv4Addr::new(20, 0, 1, 0).to_bits() + u32::from(number));
    let put = |count: u16| {
        let mut text = String::new();
        for number in 0..count {
            text += &SERVICE.replace("NAME", &service(number)).replace("VIP", &vip(number).to_string());
        }
        stage.put("services.yaml", &text).unwrap();
    };
    let wait = |count: usize, engine: &str| {
        until(&format!("{count} services, {engine}"), LOADED, || {
            let Ok(shown) = stage.state() else { return Ok(Seen::not_yet("no answer")) };
            let ready = shown.vips.values().filter(|vip| vip.ready).count();
            let is_so = ready == count + 1 && shown.engine.starts_with("kernel: ") == (engine == "kernel");
            Ok(if is_so { Seen::Yes(shown.engine) } else { Seen::not_yet(format!("{ready} ready, {}", shown.engine)) })
        })
        .unwrap()
    };
    put(20);
    assert!(wait(20, "kernel").contains("1/2 of their size"));
    put(100);
    // A hundred tables of a sixth are still too many: 101 * 2 * 10937 slots.
    let words = wait(100, "queue");
    assert!(words.contains("more than 2000000") || words.contains("more than 512"), "{words}");
    for number in [0, 1, 50, 98, 99] {
        send(&stage, 24_000..24_100, vip(number), SERVED);
        let wanted: u64 = predicted(24_000..24_100, 1, vip(number), SERVED).values().sum();
        wait_for_counts(&stage, &service(number), &BTreeMap::from([(0, wanted)]));
    }
    stage.end();
}

#[test]
fn nobody_with_net_admin_alone_serves_on_a_read_only_root() {
    let lab = lab();
    // Its own folder is all that can be written.
    let script = r#"for word; do case "$word" in */martlet) folder=$(dirname "$word");; esac; done
        mount --bind "$folder" "$folder" && mount -o remount,bind,ro / || exit 1
        if touch /written 2>/dev/null; then echo "the root can be written"; exit 1; fi
        exec "$@""#;
    let through: &'static [&'static str] = Box::leak(Box::new([
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all,+net_admin",
        "--ambient-caps=-all,+net_admin",
        "--bounding-set=-all,+net_admin",
        "--no-new-privs",
    ]));
    for (name, arguments) in [("nobody-queue", &["--engine", "queue"][..]), ("nobody-kernel", &["--engine", "kernel"])]
    {
        let stage =
            Stage::new(&lab, Setup { name, middle: Middle::Balancer(arguments), routes: 1, endpoints: 10, through })
                .unwrap();
        send(&stage, 20_000..20_100, VIP, SERVED);
        wait_for_counts(&stage, "bench", &predicted(20_000..20_100, 10, VIP, SERVED));
        stage.end();
    }
}

/// Large tables take their time on a busy machine.
const LOADED: Duration = Duration::from_mins(3);

/// A Service with one endpoint behind a VIP of its own.
const SERVICE: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: NAME, labels: {service.kubernetes.io/service-proxy-name: bench}}
spec: {clusterIP: None}
---
apiVersion: meridio.experiment.gateway.api.poc/v1alpha1
kind: L34Route
metadata: {name: NAME}
spec:
  parentRefs: [{name: bench}]
  backendRefs: [{name: NAME}]
  destinationCIDRs: [VIP/32]
  protocols: [TCP, UDP]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: NAME, labels: {kubernetes.io/service-name: NAME}}
addressType: IPv4
endpoints: [{addresses: [10.9.0.1], conditions: {ready: true}, zone: "0", targetRef: {kind: Pod, name: app-0}}]
"#;
