//! Steps 1, 2, 3 and 6: sessions, and when a VIP is announced.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::folder::Endpoint;
use super::topology::{FAMILIES, Family, World};
use super::{Demo, show};
use crate::peer::{Gateway, Neighbor};
use crate::probe::after;
use crate::wait::{LIMIT, Seen, until};
use crate::wire::{Event, What};

/// For how long nothing may be announced while no endpoint is ready.
const QUIET: Duration = Duration::from_secs(2);

/// Step 1.
pub(super) fn sessions(demo: &mut Demo) -> Result<String> {
    demo.world.start_lb()?;
    let start = SystemTime::now();
    demo.world.start_router()?;
    sessions_up(&demo.world)?;
    let (mut established, mut bfd_up) = (Vec::new(), Vec::new());
    for family in FAMILIES {
        let (pod, gateway) = (family.pod, family.gateway);
        let mut first = |what: What, from, to| {
            let is = |event: &Event| event.what == what && event.source == from && event.destination == to;
            demo.world
                .capture
                .wait(&format!("{what:?} from {from}"), start, LIMIT, is)
                .map(|event| after(start, event.at))
        };
        // Established: both have sent the KEEPALIVE that answers an OPEN.
        established.push(first(What::Keepalive, pod, gateway)?.max(first(What::Keepalive, gateway, pod)?));
        bfd_up.push(first(What::Bfd(3), pod, gateway)?.max(first(What::Bfd(3), gateway, pod)?));
    }
    let all = |times: &[Duration]| times.iter().map(|time| show(*time)).collect::<Vec<_>>().join(", ");
    Ok(format!("Established {}; BFD Up {} after the start", all(&established), all(&bfd_up)))
}

/// Waits until the gateway sees both sessions Established and both BFD sessions Up.
pub(crate) fn sessions_up(world: &World) -> Result<()> {
    until("both sessions Established with BFD Up at the gateway", 2 * LIMIT, || {
        world.check_alive()?;
        let neighbors = world.frr.neighbors()?;
        let up = Neighbor { established: true, bfd_up: Some(true) };
        let all = FAMILIES.iter().all(|family| neighbors.get(&family.pod) == Some(&up));
        Ok(if all { Seen::Yes(()) } else { Seen::not_yet(format!("{neighbors:?}")) })
    })
}

/// Waits until the gateway's BGP table has both VIPs, or neither.
pub(crate) fn vips_at_gateway(world: &World, there: bool) -> Result<()> {
    let what = if there { "both VIPs in the gateway's BGP table" } else { "no VIP in the gateway's BGP table" };
    until(what, LIMIT, || {
        let learned = world.frr.learned()?;
        let holds = FAMILIES.iter().all(|family| {
            let from = learned.get(&family.vip_prefix());
            if there { from.is_some_and(|from| from.contains(&family.pod)) } else { from.is_none() }
        });
        Ok(if holds { Seen::Yes(()) } else { Seen::not_yet(format!("{learned:?}")) })
    })
}

/// Step 2.
pub(super) fn silence(demo: &mut Demo) -> Result<String> {
    // Somebody must say that the fourth endpoint has no identifier, by its name.
    let logs = [&demo.world.lb, &demo.world.router];
    let line = until("a line of the log that names app-4, which has no identifier", LIMIT, || {
        let found = logs.into_iter().flatten().find(|process| process.log().contains("app-4"));
        Ok(found.map_or_else(|| Seen::not_yet("none"), |process| Seen::Yes(process.name().to_owned())))
    })?;
    let start = SystemTime::now();
    std::thread::sleep(QUIET);
    for family in FAMILIES {
        if let Some(event) = demo.world.capture.events()?.iter().find(|event| announces(event, &family)) {
            bail!("no endpoint is ready, but {} was announced: {event:?}", family.vip);
        }
    }
    vips_at_gateway(&demo.world, false)?;
    // Both sessions are still there: it is not silent because it is gone.
    sessions_up(&demo.world)?;
    let looked = show(after(start, SystemTime::now()));
    Ok(format!("0 UPDATEs with a VIP; looked for {looked}; {line} names app-4 (no zone)"))
}

fn announces(event: &Event, family: &Family) -> bool {
    event.source == family.pod
        && matches!(&event.what, What::Update { announced, .. } if announced.contains(&family.vip_prefix()))
}

fn withdraws(event: &Event, family: &Family) -> bool {
    event.source == family.pod
        && matches!(&event.what, What::Update { withdrawn, .. } if withdrawn.contains(&family.vip_prefix()))
}

/// Waits for the UPDATEs that announce both VIPs: how long after `since` each was at the gateway.
pub(crate) fn announced(world: &mut World, since: SystemTime) -> Result<Vec<Duration>> {
    let of = |family: &Family| {
        let what = format!("an UPDATE that announces {}", family.vip);
        world.capture.wait(&what, since, LIMIT, |event| announces(event, family)).map(|event| after(since, event.at))
    };
    FAMILIES.iter().map(of).collect()
}

/// Waits for the UPDATEs that withdraw both VIPs: how long after `since` each was at the gateway.
pub(crate) fn withdrawn(world: &mut World, since: SystemTime) -> Result<Vec<Duration>> {
    let of = |family: &Family| {
        let what = format!("an UPDATE that withdraws {}", family.vip);
        world.capture.wait(&what, since, LIMIT, |event| withdraws(event, family)).map(|event| after(since, event.at))
    };
    FAMILIES.iter().map(of).collect()
}

/// `IPv4 12.3 ms, IPv6 12.5 ms`.
pub(super) fn of_families(times: &[Duration]) -> String {
    let each = FAMILIES.iter().zip(times).map(|(family, time)| format!("{} {}", family.name, show(*time)));
    each.collect::<Vec<_>>().join(", ")
}

/// Step 3.
pub(super) fn ready(demo: &mut Demo) -> Result<String> {
    let world = &mut demo.world;
    let start = SystemTime::now();
    world.folder.set(&[Endpoint::Ready; 3])?;
    let times = announced(world, start)?;
    vips_at_gateway(world, true)?;
    let installed = in_gateways_kernel(world, start)?;
    Ok(format!("UPDATE {}; in its kernel {} after the edit", of_families(&times), show(installed)))
}

/// Waits until the gateway forwards to both VIPs: how long after `since` the later one was installed.
pub(crate) fn in_gateways_kernel(world: &World, since: SystemTime) -> Result<Duration> {
    let mut last = Duration::ZERO;
    for family in FAMILIES {
        let vip = family.vip.to_string();
        let event = world.gateway_routes.wait(&format!("a route to {vip}"), since, LIMIT, |event| {
            !event.deleted && event.route.split_whitespace().next() == Some(&vip)
        })?;
        last = last.max(after(since, event.at));
    }
    Ok(last)
}

/// Step 6.
pub(super) fn withdrawn_and_back(demo: &mut Demo) -> Result<String> {
    let world = &mut demo.world;
    let start = SystemTime::now();
    // One says that it is not ready, one is gone from the list; app-2 has left before.
    world.folder.set(&[Endpoint::NotReady, Endpoint::NotReady, Endpoint::Removed])?;
    let gone = withdrawn(world, start).context("the last application left")?;
    vips_at_gateway(world, false)?;
    sessions_up(world).context("a VIP that goes must not touch a session")?;
    let again = SystemTime::now();
    world.folder.set(&[Endpoint::Ready; 3])?;
    let back = announced(world, again).context("the applications came back")?;
    vips_at_gateway(world, true)?;
    in_gateways_kernel(world, again)?;
    Ok(format!("withdrawn {}; announced {}", of_families(&gone), of_families(&back)))
}
