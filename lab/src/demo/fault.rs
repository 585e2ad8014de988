//! Steps 7 to 10: the default route, a cut link, SIGTERM, kill -9.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::announce::{announced, in_gateways_kernel, of_families, sessions_up, vips_at_gateway, withdrawn};
use super::topology::{BGP_PORT, EGRESS_PORT, EXTERNAL, FAMILIES, Family, GATEWAY_PORT, INTERNAL, World};
use super::{Demo, show, traffic};
use crate::capture::{Capture, concerns};
use crate::namespace::Cut;
use crate::peer::Gateway;
use crate::probe::{self, Sink, after};
use crate::sys::Signal;
use crate::wait::{LIMIT, Seen, until};
use crate::wire::{Event, What};

/// How long a datagram is waited for that should not come.
const NOTHING: Duration = Duration::from_millis(300);
/// Datagrams that every application sends from every VIP while the link is cut.
const LEAKS: usize = 20;

fn is_default_in_4096(family: &Family, route: &str) -> bool {
    let words: Vec<_> = route.split_whitespace().collect();
    let has = |word: &str| words.contains(&word);
    let on_family = if family.vip.is_ipv4() { !route.contains("::") } else { route.contains(':') };
    words.first() == Some(&"default") && has("4096") && has(EXTERNAL) && on_family
}

/// Waits for the default route of both families in the pod's table 4096; the time of the later one.
fn default_in_pod(world: &World, since: SystemTime, deleted: bool) -> Result<SystemTime> {
    let mut last = since;
    for family in FAMILIES {
        let what =
            format!("the {} default route in table 4096 to {}", family.name, if deleted { "go" } else { "come" });
        let event = world
            .pod_routes
            .wait(&what, since, LIMIT, |event| event.deleted == deleted && is_default_in_4096(&family, &event.route))?;
        last = last.max(event.at);
    }
    let count = usize::from(!deleted);
    until("table 4096 to hold what the events said", LIMIT, || {
        let mut seen = Vec::new();
        for family in FAMILIES {
            let routes = world.pod.routes(family.flag, "4096")?;
            // A blackhole that waits at the worst metric is no way out.
            let leads_out = |route: &&Value| {
                route.get("dst").is_some_and(|to| to == "default")
                    && route.get("type").is_none_or(|kind| kind == "unicast")
            };
            seen.push(routes.iter().filter(leads_out).count());
        }
        Ok(if seen.iter().all(|seen| *seen == count) { Seen::Yes(()) } else { Seen::not_yet(format!("{seen:?}")) })
    })?;
    Ok(last)
}

/// Every application sends from the VIP to an address beyond the default route; which ones arrived, with the VIP as source.
fn egress(world: &World, family: &Family, sink: &Sink, patience: Duration) -> Result<usize> {
    let mut expected = Vec::new();
    for application in &world.applications {
        let text = format!("{} {:?}", application.role(), SystemTime::now());
        application.inside(|| probe::send_from(family.vip, family.sink(), &text))??;
        expected.push(text);
    }
    let mut arrived = 0;
    while arrived < expected.len() {
        let Some((from, text)) = sink.next(patience)? else { break };
        ensure!(from == family.vip, "VIP egress arrived from {from}, not from {}", family.vip);
        arrived += usize::from(expected.contains(&text));
    }
    Ok(arrived)
}

fn sinks(world: &World) -> Result<Vec<Sink>> {
    FAMILIES.iter().map(|family| Sink::open(&world.client, family.sink())).collect()
}

fn all_egress(world: &World, sinks: &[Sink]) -> Result<()> {
    for (family, sink) in FAMILIES.iter().zip(sinks) {
        // Neighbours may have to be found first: again, until all arrive in one go.
        until(&format!("VIP egress over {} of all applications", family.name), LIMIT, || {
            let arrived = egress(world, family, sink, Duration::from_secs(1))?;
            let all = arrived == world.applications.len();
            Ok(if all { Seen::Yes(()) } else { Seen::not_yet(format!("{arrived} arrived")) })
        })?;
    }
    Ok(())
}

/// Step 7.
pub fn default_route(demo: &mut Demo) -> Result<String> {
    let world = &mut demo.world;
    let sinks = sinks(world)?;
    for (family, sink) in FAMILIES.iter().zip(&sinks) {
        let arrived = egress(world, family, sink, NOTHING)?;
        ensure!(arrived == 0, "{arrived} datagrams left over {} without a default route", family.name);
    }
    let start = SystemTime::now();
    world.frr.announce_default(true)?;
    let mut told = start;
    for family in FAMILIES {
        let update = world.capture.wait("the default route from the gateway", start, LIMIT, |event: &Event| {
            let default = matches!(&event.what, What::Update { announced, .. } if announced.contains(&family.default));
            default && event.source == family.gateway
        })?;
        told = told.max(update.at);
    }
    let installed = default_in_pod(world, start, false)?;
    all_egress(world, &sinks)?;
    Ok(format!("in table 4096 {} after the UPDATE; egress of 3 applications arrives", show(after(told, installed))))
}

/// Step 8.
pub fn cut(demo: &mut Demo) -> Result<String> {
    let world = &mut demo.world;
    let sinks = sinks(world)?;
    let start = SystemTime::now();
    world.fabric.cut(GATEWAY_PORT, Cut::Silent)?;
    let gone = default_in_pod(world, start, true)?;
    until("BFD not Up and no session at the gateway", LIMIT, || {
        let neighbors = world.frr.neighbors()?;
        let is_down =
            |family: &Family| neighbors.get(&family.pod).is_none_or(|n| !n.established && n.bfd_up != Some(true));
        Ok(if FAMILIES.iter().all(is_down) { Seen::Yes(()) } else { Seen::not_yet(format!("{neighbors:?}")) })
    })?;
    vips_at_gateway(world, false)?;
    let sent = no_leak(world)?;
    let mended = SystemTime::now();
    world.fabric.mend(GATEWAY_PORT)?;
    sessions_up(world)?;
    let back = default_in_pod(world, mended, false)?;
    vips_at_gateway(world, true)?;
    in_gateways_kernel(world, mended)?;
    for family in FAMILIES {
        traffic::exchange(world, &family, 30).context("after the link was mended")?;
    }
    all_egress(world, &sinks)?;
    let (gone, back) = (show(after(start, gone)), show(after(mended, back)));
    Ok(format!("routes gone {gone} after the cut (BFD: 1.5 s); 0 of {sent} leaked; back after {back}"))
}

/// What the applications send from the VIPs reaches the pod, and does not leave by its main table. Returns how much was sent.
fn no_leak(world: &World) -> Result<usize> {
    let mut primary = Capture::start(&world.lab, &world.primary, "eth0", BGP_PORT, "ip or ip6")?;
    let filter = format!("udp dst port {EGRESS_PORT}");
    let mut inside = Capture::start(&world.lab, &world.pod, INTERNAL, BGP_PORT, &filter)?;
    let sent = send_all(world, &mut inside)?;
    control(world, &mut primary)?;
    for capture in [&primary, &inside] {
        capture.stop()?;
    }
    let leaked = primary.count(|event| FAMILIES.iter().any(|family| concerns(event, family.vip)))?;
    ensure!(leaked == 0, "{leaked} packets from or to a VIP left by the main table");
    Ok(sent)
}

/// Every application sends from every VIP; all that was sent reached the pod.
fn send_all(world: &World, inside: &mut Capture) -> Result<usize> {
    let mut sent = 0;
    for family in FAMILIES {
        for application in &world.applications {
            application.inside(|| {
                for number in 0..LEAKS {
                    probe::send_from(family.vip, family.sink(), &format!("{} {number}", application.role()))?;
                }
                anyhow::Ok(())
            })??;
            sent += LEAKS;
        }
    }
    until("all VIP egress to reach the pod", LIMIT, || {
        let seen = inside.count(|event| FAMILIES.iter().any(|family| event.source == family.vip))?;
        Ok(if seen >= sent { Seen::Yes(()) } else { Seen::not_yet(format!("{seen} of {sent}")) })
    })?;
    Ok(sent)
}

/// The pod's own packets do leave by the main table, and are seen: the count of VIPs there means something.
fn control(world: &World, primary: &mut Capture) -> Result<()> {
    for family in FAMILIES {
        let own: IpAddr = if family.vip.is_ipv4() { "10.244.0.10".parse()? } else { "fd00:10:244::10".parse()? };
        until("a packet of the pod's own in the primary network", LIMIT, || {
            world.pod.inside(|| probe::send_from(own, family.sink(), "control"))??;
            let seen = primary.count(|event| event.source == own && event.destination == family.internet)?;
            Ok(if seen > 0 { Seen::Yes(()) } else { Seen::not_yet("none") })
        })?;
    }
    Ok(())
}

/// Step 9.
pub fn terminated(demo: &mut Demo) -> Result<String> {
    let (router, lb) = demo.world.router.take().zip(demo.world.lb.take()).context("router and lb do not run")?;
    let world = &mut demo.world;
    let start = SystemTime::now();
    // As the end of a pod: both are told at once.
    router.signal(Signal::Term)?;
    lb.signal(Signal::Term)?;
    let gone = withdrawn(world, start)?;
    let mut closed = Vec::new();
    for family in FAMILIES {
        let what = format!("the end of the {} session", family.name);
        let ends =
            |event: &Event| event.source == family.pod && matches!(event.what, What::Notification(..) | What::Closed);
        let end = world.capture.wait(&what, start, 2 * LIMIT, ends)?;
        closed.push((after(start, end.at), end.what));
    }
    for ((family, gone), (closed, how)) in FAMILIES.iter().zip(&gone).zip(&closed) {
        if gone >= closed {
            let (gone, closed) = (show(*gone), show(*closed));
            bail!("{}: the session ended after {closed} ({how:?}), the VIP was withdrawn after {gone}", family.name);
        }
    }
    vips_at_gateway(world, false)?;
    for process in [&router, &lb] {
        let status = process.wait(2 * LIMIT)?;
        ensure!(status.success(), "{} ended after SIGTERM with {status}", process.name());
    }
    let sent = no_leak(world).context("nobody routes now, but rules and blackholes stay")?;
    let last = closed.iter().map(|(closed, _)| *closed).max().unwrap_or_default();
    Ok(format!("withdrawn {}; session ended {} after the signal; 0 of {sent} leaked", of_families(&gone), show(last)))
}

/// Step 10.
pub fn lb_killed(demo: &mut Demo) -> Result<String> {
    let again = SystemTime::now();
    demo.start()?;
    announced(&mut demo.world, again).context("after the restart")?;
    vips_at_gateway(&demo.world, true)?;
    let lb = demo.world.lb.take().context("the lb does not run")?;
    let world = &mut demo.world;
    let start = SystemTime::now();
    world.kill(&lb)?;
    let gone = withdrawn(world, start)?;
    vips_at_gateway(world, false)?;
    sessions_up(world).context("the sessions must outlive the lb")?;
    Ok(format!("withdrawn {}", of_families(&gone)))
}
