//! Steps 4 and 5: the client's connections.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use super::folder::Endpoint;
use super::predict::{Prediction, Transport};
use super::topology::{APPLICATIONS, FAMILIES, Family, PORTS, World};
use super::{Demo, show};
use crate::probe::{self, Answer, Connection, PATIENCE, after};
use crate::wait::LIMIT;

/// Connections and exchanges of each family in step 4.
const MANY: usize = 300;
/// UDP flows of each family in step 5.
const FLOWS: u16 = 300;
/// TCP connections of each family that stay open in step 5.
const OPEN: u16 = 60;
/// Source ports of step 5. Below the ephemeral range, which the other probes use.
const FIRST_PORT: u16 = 20_000;
/// How long an open connection is given to show that it lives.
const ALIVE: Duration = Duration::from_secs(3);

/// Step 4.
pub fn all_answered(demo: &mut Demo) -> Result<String> {
    let (mut hits, start) = (BTreeMap::new(), Instant::now());
    for family in FAMILIES {
        for (name, hit) in exchange(&demo.world, &family, MANY)? {
            *hits.entry(name).or_insert(0_usize) += hit;
        }
        let count = 5;
        let received = probe::ping(&demo.world.client, family.vip, count)?;
        ensure!(received == count, "{received} of {count} pings of {} were answered", family.vip);
    }
    let hits: Vec<_> = hits.iter().map(|(name, hit)| format!("{name} {hit}")).collect();
    Ok(format!("{} in {}", hits.join(", "), show(start.elapsed())))
}

/// `count` TCP connections and as many UDP exchanges: all must be answered, and every application take part in both.
pub fn exchange(world: &World, family: &Family, count: usize) -> Result<BTreeMap<String, usize>> {
    let ask = |transport: Transport| {
        let mut hits = BTreeMap::new();
        for (number, port) in (0..count).zip(PORTS.into_iter().cycle()) {
            let target = family.target(port);
            let name = match transport {
                Transport::Tcp => probe::ask_tcp(target, PATIENCE),
                Transport::Udp => probe::ask_udp(target, 0, PATIENCE),
            };
            let name = name.with_context(|| format!("{transport:?} {} of {count}, {}", number + 1, family.name))?;
            *hits.entry(name).or_insert(0) += 1;
        }
        anyhow::Ok(hits)
    };
    let (tcp, udp) = world.client.inside(|| anyhow::Ok((ask(Transport::Tcp)?, ask(Transport::Udp)?)))??;
    for (transport, hits) in [("TCP", &tcp), ("UDP", &udp)] {
        let all = (1..=APPLICATIONS).all(|number| hits.contains_key(&format!("app-{number}")));
        ensure!(all, "{transport} over {}: not every application was hit: {hits:?}", family.name);
    }
    let mut both = tcp;
    for (name, hit) in udp {
        *both.entry(name).or_insert(0) += hit;
    }
    Ok(both)
}

/// The state of a TCP connection that stayed open.
struct Open {
    family: Family,
    connection: Connection,
}

/// Step 5: app-2 leaves.
pub fn one_leaves(demo: &mut Demo) -> Result<String> {
    let (before, later) = (Prediction::of([1, 2, 3]), Prediction::of([1, 3]));
    let port = PORTS[0];
    let world = &demo.world;
    // Everything of a client is done in its namespace.
    let (told, first_moved) = world.client.inside(|| {
        for family in FAMILIES {
            ask_flows(&family, &before).context("before app-2 leaves")?;
        }
        let mut open = Vec::new();
        for family in FAMILIES {
            for source_port in FIRST_PORT..FIRST_PORT + OPEN {
                let connection = Connection::open(family.target(port), source_port, PATIENCE)?;
                let predicted = before.application(&family, Transport::Tcp, source_port, port);
                let got = &connection.application;
                ensure!(*got == predicted, "TCP port {source_port}, {}: {got} answered, not {predicted}", family.name);
                open.push(Open { family, connection });
            }
        }
        let start = SystemTime::now();
        world.folder.set(&[Endpoint::Ready, Endpoint::NotReady, Endpoint::Ready])?;
        let first_moved = until_moved(start, &before)?;
        for family in FAMILIES {
            ask_flows(&family, &later).context("after app-2 left")?;
        }
        anyhow::Ok((ask_open(open, &before, &later)?, first_moved))
    })??;
    let moves = before.moves(&later);
    Ok(format!(
        "after {}; {told}; {} of {} slots move besides app-2's {}",
        show(first_moved),
        moves.disturbed,
        moves.slots,
        moves.must
    ))
}

/// Asks from every source port of step 5: each flow must be answered by the application that the table says.
fn ask_flows(family: &Family, prediction: &Prediction) -> Result<()> {
    let port = PORTS[0];
    for source_port in FIRST_PORT..FIRST_PORT + FLOWS {
        let got = probe::ask_udp(family.target(port), source_port, PATIENCE)?;
        let predicted = prediction.application(family, Transport::Udp, source_port, port);
        ensure!(got == predicted, "UDP port {source_port} over {}: {got} answered, not {predicted}", family.name);
    }
    Ok(())
}

/// Asks from ports whose flows app-2 served, until another answers in both families: how long after `start` that was.
fn until_moved(start: SystemTime, before: &Prediction) -> Result<Duration> {
    let port = PORTS[0];
    let mut last = Duration::ZERO;
    for family in FAMILIES {
        let is_of_the_leaver = |from: &u16| before.application(&family, Transport::Udp, *from, port) == "app-2";
        let source_port = (FIRST_PORT..FIRST_PORT + FLOWS).find(is_of_the_leaver).context("app-2 has no flow")?;
        loop {
            // While the tables change one answer may be lost; the next comes at once.
            let got = probe::ask_udp(family.target(port), source_port, Duration::from_millis(200));
            let so_far = after(start, SystemTime::now());
            match got {
                Ok(name) if name != "app-2" => break last = last.max(so_far),
                _ if so_far > LIMIT => bail!("{got:?} still answers over {} after {}", family.name, show(so_far)),
                _ => {}
            }
        }
    }
    Ok(last)
}

/// What became of the open connections: those whose slot stayed go on; those whose slot moved are refused by the application that
/// does not know them, and come back to where the table says.
fn ask_open(open: Vec<Open>, before: &Prediction, later: &Prediction) -> Result<String> {
    let port = PORTS[0];
    let (mut stayed, mut left, mut disturbed) = (0, 0, 0);
    for Open { family, mut connection } in open {
        let source_port = connection.source_port;
        let was = before.application(&family, Transport::Tcp, source_port, port);
        let is = later.application(&family, Transport::Tcp, source_port, port);
        let answer = connection.ask(ALIVE)?;
        let whose = format!("the TCP connection from port {source_port} over {} to {was}", family.name);
        if was == is {
            ensure!(answer == Answer::From(was), "{whose}: should have stayed, but: {answer:?}");
            stayed += 1;
            continue;
        }
        ensure!(answer == Answer::Reset, "{whose}: should be refused by {is}, but: {answer:?}");
        drop(connection);
        let again = Connection::open(family.target(port), source_port, PATIENCE).context(whose)?;
        ensure!(again.application == is, "port {source_port} came back to {}, not to {is}", again.application);
        if was == "app-2" { left += 1 } else { disturbed += 1 }
    }
    ensure!(stayed > 0 && left > 0, "{stayed} connections stayed, {left} moved: too few to tell");
    let udp = usize::from(FLOWS) * FAMILIES.len();
    Ok(format!("TCP {left} of app-2 moved, {disturbed} other, {stayed} stayed; UDP {udp} of {udp} as predicted"))
}
