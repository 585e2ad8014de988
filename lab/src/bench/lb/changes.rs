//! What a change costs: packets of flows that it does not concern, time and memory of the kernel's tables.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use martlet_lb::hash::{Flow, Seed};
use martlet_lb::maglev::{Size, Table};
use martlet_netlink::nft::{Chain, Connection, Layer, Set, Table as NftTable};

use super::stage::{CLIENT, SERVED, Stage, VIP};
use super::traffic::{FIRST_PORT, as_float, steady};
use crate::lab::Lab;

/// Datagrams a second while tables change.
const RATE: f64 = 20_000.0;
/// Flows that they belong to.
const FLOWS: usize = 200;
/// How long a change may take to be seen.
const SEEN: Duration = Duration::from_secs(30);

/// Changes of the endpoints while flows that no change concerns send on: how many were sent and lost.
pub fn lost(stage: &Stage, changes: u32) -> Result<(u64, u64)> {
    let endpoints = stage.setup.endpoints;
    let all: Vec<u32> = (0..endpoints).collect();
    let fewer: Vec<u32> = (1..endpoints).collect();
    let ports = unaffected(&all, &fewer);
    let result = steady(stage, &ports, RATE, || {
        for change in 0..changes {
            let (ready, count) = if change % 2 == 0 { (&fewer, endpoints - 1) } else { (&all, endpoints) };
            stage.set_endpoints(ready)?;
            // Each change counts: none is overtaken by the next.
            let start = Instant::now();
            while stage.state()?.services.get("bench").map(|service| service.ready_ipv4) != usize::try_from(count).ok()
            {
                anyhow::ensure!(start.elapsed() < SEEN, "a change is not seen");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    })?;
    stage.set_endpoints(&all)?;
    stage.wait_for(endpoints)?;
    Ok(result)
}

/// Source ports whose flows have the same endpoint in both tables.
fn unaffected(all: &[u32], fewer: &[u32]) -> Vec<u16> {
    let seed = Seed::of_gateway("default", "bench");
    let table = |of: &[u32]| {
        Table::new(Size::for_endpoints(100), seed, of.iter().filter_map(|number| u16::try_from(*number).ok()))
    };
    let (one, other) = (table(all), table(fewer));
    let stays = |port: &u16| {
        let hash = Flow {
            source: CLIENT.into(),
            destination: VIP.into(),
            protocol: 17,
            source_port: *port,
            destination_port: SERVED,
        }
        .hash(seed);
        one.lookup(hash) == other.lookup(hash)
    };
    (FIRST_PORT..).filter(stays).take(FLOWS).collect()
}

/// Milliseconds to replace a hundred of 65537 slots, and to load them all; and the memory that they take, MB.
pub fn slots(lab: &Lab, runs: u32) -> Result<(Vec<f64>, Vec<f64>, Vec<f64>)> {
    let namespace = lab.namespace("slots")?;
    namespace.inside(|| -> Result<_> {
        let mut nft = Connection::open()?;
        let (mut replaced, mut loaded, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        let table = |marks: Vec<u32>| {
            NftTable::new("slots").set("slots", Set::Marks(Arc::from(marks))).chain("none", Chain::default())
        };
        let marks: Vec<u32> = (0..65_537).map(|slot| 5000 + slot % 100).collect();
        for _ in 0..runs {
            let before = kernel_memory()?;
            let mut now = table(marks.clone());
            let start = Instant::now();
            nft.apply(&now, None)?;
            loaded.push(start.elapsed().as_secs_f64() * 1e3);
            memory.push(kernel_memory()? - before);
            for step in 1..=10_u32 {
                let mut changed = marks.clone();
                for slot in changed.iter_mut().step_by(656) {
                    *slot += 100 * step;
                }
                let next = table(changed);
                let start = Instant::now();
                nft.apply(&next, Some(&now))?;
                replaced.push(start.elapsed().as_secs_f64() * 1e3);
                now = next;
            }
            nft.delete(Layer::Inet, "slots")?;
        }
        Ok((replaced, loaded, memory))
    })?
}

/// What the kernel has for itself, MB.
fn kernel_memory() -> Result<f64> {
    // What was deleted is freed a little later.
    std::thread::sleep(Duration::from_millis(300));
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
    };
    let kb = of("Slab").context("no Slab")? + of("VmallocUsed").unwrap_or_default();
    Ok(as_float(kb) / 1024.0)
}
