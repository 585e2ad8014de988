//! The load balancer beside plain forwarding, in the same run: throughput, loss, latency, scale, changes.
//!
//! Rows of namespaces stand side by side and take turns, run after run, so that whatever else the machine does meets all of
//! them; what counts are ratios. The sender has CPU 0, the load balancer CPU 1.

mod changes;
pub mod stage;
mod sys;
mod traffic;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::plot::{Bar, bars};
use super::report::median;
use super::{Options, Row};
use crate::demo::topology::workspace;
use crate::lab::{End, Lab};
use stage::{Middle, Setup, Stage};
use traffic::as_float;

const QUEUE: &[&str] = &["--engine", "queue"];
const KERNEL: &[&str] = &["--engine", "kernel"];
const NFQ: &[&str] = &["--engine", "queue", "--queue-loop", "nfq"];

/// Turns that a run is made of.
const TURNS: usize = 3;

/// All values of one figure by the name of the stage.
type Values = BTreeMap<&'static str, Vec<f64>>;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
struct Effort {
    runs: usize,
    time: Duration,
    steps: u32,
    round_trips: usize,
    changes: u32,
}

impl Effort {
    const fn of(quick: bool) -> Self {
        if quick {
            Self { runs: 3, time: Duration::from_millis(400), steps: 4, round_trips: 1000, changes: 40 }
        } else {
            Self { runs: 5, time: Duration::from_secs(1), steps: 7, round_trips: 10_000, changes: 1000 }
        }
    }
}

/// Measures all of it.
///
/// # Errors
/// Something cannot be measured.
pub fn measure(options: &Options) -> Result<Vec<Row>> {
    let effort = Effort::of(options.quick);
    let lab = Lab::new(End::Remove)?;
    let mut rows = rows(&lab, effort).inspect_err(|_| lab.mark_failed()).with_context(|| lab.tails(10))?;
    let folder = if options.quick { workspace().join("target") } else { workspace().join("docs") };
    plot(&folder, &rows)?;
    for row in &mut rows {
        row.name = format!("lb: {}", row.name);
    }
    Ok(rows)
}

fn rows(lab: &Lab, effort: Effort) -> Result<Vec<Row>> {
    let simple = |name, middle| Setup { name, middle, routes: 1, endpoints: 10, through: &[] };
    let setups = [
        simple("plain", Middle::Plain),
        simple("queue", Middle::Balancer(QUEUE)),
        simple("kernel", Middle::Balancer(KERNEL)),
        simple("nfq", Middle::Balancer(NFQ)),
        simple("rule", Middle::Rule),
    ];
    let mut stages: Vec<Stage> = setups.into_iter().map(|setup| Stage::new(lab, setup)).collect::<Result<_>>()?;
    let mut rows = policy(&stages, effort)?;
    // It has said what it can.
    stages.pop();
    rows.extend(throughput(&stages, effort)?);
    rows.extend(streams(&stages, effort)?);
    rows.extend(latency(&stages, effort)?);
    rows.extend(lost(&stages, effort)?);
    for stage in stages {
        stage.end();
    }
    rows.extend(scale(lab, effort)?);
    rows.extend(kernel_tables(lab, effort)?);
    Ok(rows)
}

/// Each stage in turn, `runs` times.
fn in_turns(stages: &[Stage], runs: usize, mut measure: impl FnMut(&Stage) -> Result<f64>) -> Result<Values> {
    let mut values = Values::new();
    for run in 0..runs {
        for place in 0..stages.len() {
            // Another one begins each time.
            let Some(stage) = stages.get((run + place) % stages.len()) else { continue };
            let value = measure(stage).with_context(|| stage.setup.name)?;
            values.entry(stage.setup.name).or_default().push(value);
        }
    }
    Ok(values)
}

/// What passes at most: each run is the median of short turns, so that all stages have their part of whatever weather there is.
fn saturated(stages: &[Stage], effort: Effort) -> Result<Values> {
    let time = effort.time / u32::try_from(TURNS)?;
    let turns = in_turns(stages, effort.runs * TURNS, |stage| traffic::saturated(stage, time))?;
    Ok(turns.into_iter().map(|(name, rates)| (name, rates.chunks(TURNS).map(median).collect())).collect())
}

/// Of each run, this one in units of that one.
fn ratios(values: &Values, of: &str, to: &str) -> Vec<f64> {
    let (of, to) = (values.get(of), values.get(to));
    of.into_iter().flatten().zip(to.into_iter().flatten()).map(|(of, to)| of / to).collect()
}

fn least(name: &str, unit: &str, bound: f64, runs: Vec<f64>) -> Row {
    let martlet = median(&runs);
    Row { goal: format!(">= {bound} {unit}"), holds: martlet >= bound, ..Row::below(name, unit, bound, runs) }
}

fn told(name: &str, unit: &str, runs: Vec<f64>) -> Row {
    Row { goal: "told".into(), holds: true, ..Row::below(name, unit, f64::INFINITY, runs) }
}

/// With the medians of others.
fn beside(row: Row, values: &Values, others: &[&str], scale: f64) -> Row {
    let one = |name: &&str| Some(((*name).to_owned(), median(values.get(*name)?) / scale));
    Row { peers: others.iter().filter_map(one).collect(), ..row }
}

/// What routing by mark costs before anything of ours is done: a single policy rule makes the kernel ask rules and tables for
/// each packet and for its source. The queue engine has to pay that; the kernel engine's short way has not.
fn policy(stages: &[Stage], effort: Effort) -> Result<Vec<Row>> {
    let full = saturated(stages, effort)?;
    Ok(vec![
        told("saturated, plain with one policy rule", "x plain", ratios(&full, "rule", "plain")),
        told(
            "saturated, kernel engine beside one policy rule",
            "x plain with one rule",
            ratios(&full, "kernel", "rule"),
        ),
    ])
}

fn throughput(stages: &[Stage], effort: Effort) -> Result<Vec<Row>> {
    let full = saturated(stages, effort)?;
    let kpps = |name: &str| full.get(name).into_iter().flatten().map(|rate| rate / 1e3).collect::<Vec<_>>();
    let plain = full.get("plain").map_or(f64::NAN, |values| median(values));
    let calm = in_turns(stages, effort.runs, |stage| {
        traffic::loss_free(stage, plain, effort.time / 2, effort.steps).map(|rate| rate / plain)
    })?;
    let calm_of = |name: &str| calm.get(name).cloned().unwrap_or_default();
    let nfq = |row: Row, value: Vec<f64>| Row { peers: [("nfq crate".to_owned(), median(&value))].into(), ..row };
    let unit = "x plain";
    Ok(vec![
        beside(told("64 B UDP, queue engine", "kpps", kpps("queue")), &full, &["plain", "nfq"], 1e3),
        beside(told("64 B UDP, kernel engine", "kpps", kpps("kernel")), &full, &["plain"], 1e3),
        nfq(
            least("saturated, queue engine", unit, 0.58, ratios(&full, "queue", "plain")),
            ratios(&full, "nfq", "plain"),
        ),
        nfq(least("loss-free, queue engine", unit, 0.5, calm_of("queue")), calm_of("nfq")),
        least("saturated, kernel engine", unit, 0.9, ratios(&full, "kernel", "plain")),
        beside(told("loss-free, kernel engine", unit, calm_of("kernel")), &calm, &["plain"], 1.0),
    ])
}

/// One TCP connection without segmentation offload: each segment is a packet.
fn streams(stages: &[Stage], effort: Effort) -> Result<Vec<Row>> {
    for stage in stages {
        stage.client.ip("link set eth0 gso_max_segs 1")?;
    }
    let values = in_turns(stages, effort.runs, |stage| traffic::stream(stage, effort.time))?;
    for stage in stages {
        stage.client.ip("link set eth0 gso_max_segs 65535")?;
    }
    let whole = in_turns(stages, effort.runs, |stage| traffic::stream(stage, effort.time))?;
    let of = |values: &Values, name: &str| values.get(name).cloned().unwrap_or_default();
    Ok(vec![
        beside(told("TCP, GSO off, queue engine", "Gbit/s", of(&values, "queue")), &values, &["plain", "nfq"], 1.0),
        least("TCP, GSO off, queue engine, ratio", "x plain", 0.6, ratios(&values, "queue", "plain")),
        least("TCP, GSO off, kernel engine, ratio", "x plain", 0.9, ratios(&values, "kernel", "plain")),
        beside(
            told("TCP, GSO on, queue engine", "Gbit/s", of(&whole, "queue")),
            &whole,
            &["plain", "kernel", "nfq"],
            1.0,
        ),
    ])
}

fn latency(stages: &[Stage], effort: Effort) -> Result<Vec<Row>> {
    let mut late = Values::new();
    let middle = in_turns(stages, effort.runs, |stage| {
        let times = traffic::round_trips(stage, effort.round_trips)?;
        let at = |part: usize| times.get(times.len().saturating_sub(1) * part / 100).copied().unwrap_or(f64::NAN);
        late.entry(stage.setup.name).or_default().push(at(99));
        Ok(at(50))
    })?;
    let mut rows = Vec::new();
    for (what, values) in [("p50", &middle), ("p99", &late)] {
        for (engine, others) in [("queue", &["plain", "nfq"][..]), ("kernel", &["plain"])] {
            let runs = values.get(engine).cloned().unwrap_or_default();
            rows.push(beside(told(&format!("round trip {what}, {engine} engine"), "us", runs), values, others, 1.0));
        }
    }
    Ok(rows)
}

fn lost(stages: &[Stage], effort: Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for stage in stages.iter().filter(|stage| matches!(stage.setup.name, "queue" | "kernel")) {
        let (sent, lost) = changes::lost(stage, effort.changes)?;
        let name = format!("lost of flows that {} changes do not concern, {} engine", effort.changes, stage.setup.name);
        println!("  {name}: {lost} of {sent}");
        let row = Row::below(&name, "packets", 1.0, vec![as_float(lost)]);
        rows.push(Row { goal: "0 packets".into(), ..row });
    }
    Ok(rows)
}

/// Many routes, many endpoints: against one route and ten endpoints.
fn scale(lab: &Lab, effort: Effort) -> Result<Vec<Row>> {
    let setup = |name, engine, routes, endpoints| Setup {
        name,
        middle: Middle::Balancer(engine),
        routes,
        endpoints,
        through: &[],
    };
    let setups = [
        setup("few", QUEUE, 1, 10),
        setup("routes-1000", QUEUE, 1000, 10),
        setup("endpoints-1000", QUEUE, 1, 1000),
        setup("endpoints-10000", QUEUE, 1, 10_000),
        setup("kernel-few", KERNEL, 1, 10),
        setup("kernel-1000", KERNEL, 1, 1000),
        setup("kernel-10000", KERNEL, 1, 10_000),
    ];
    let stages: Vec<Stage> = setups.into_iter().map(|setup| Stage::new(lab, setup)).collect::<Result<_>>()?;
    let values = saturated(&stages, effort)?;
    let idle = |name: &str| stages.iter().find(|stage| stage.setup.name == name).context("no such stage")?.idle();
    let idle = [idle("endpoints-10000")?, idle("kernel-10000")?];
    for stage in stages {
        stage.end();
    }
    let few = "x one route, ten endpoints";
    Ok(vec![
        least("1000 routes, queue engine", few, 0.9, ratios(&values, "routes-1000", "few")),
        least("1000 endpoints, queue engine", few, 0.85, ratios(&values, "endpoints-1000", "few")),
        least("10000 endpoints, queue engine", few, 0.85, ratios(&values, "endpoints-10000", "few")),
        least("1000 endpoints, kernel engine", few, 0.85, ratios(&values, "kernel-1000", "kernel-few")),
        least("10000 endpoints, kernel engine", few, 0.85, ratios(&values, "kernel-10000", "kernel-few")),
        Row::below("CPU a second when idle, 10000 endpoints, queue engine", "ms", 10.0, vec![idle[0]]),
        // It reads what nftables counted.
        Row::below("CPU a second when idle, 10000 endpoints, kernel engine", "ms", 30.0, vec![idle[1]]),
    ])
}

fn kernel_tables(lab: &Lab, effort: Effort) -> Result<Vec<Row>> {
    let (replaced, loaded, memory) = changes::slots(lab, u32::try_from(effort.runs)?)?;
    Ok(vec![
        Row::below("100 of 65537 slots replaced, kernel engine", "ms", 2.0, replaced),
        told("65537 slots loaded, kernel engine", "ms", loaded),
        told("memory of 65537 slots, kernel engine", "MB", memory),
    ])
}

/// The figures as bars.
fn plot(folder: &Path, rows: &[Row]) -> Result<()> {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let of = |name: &str, label: &str| find(name).map(|row| (label.to_owned(), row.martlet, true));
    let peer = |name: &str, peer: &str, label: &str| {
        find(name).and_then(|row| Some((label.to_owned(), *row.peers.get(peer)?, false)))
    };
    let write = |name: &str, title: &str, unit: &str, figure: Vec<Option<Bar>>| -> Result<()> {
        let figure: Vec<Bar> = figure.into_iter().flatten().collect();
        let path = folder.join(name);
        fs::write(&path, bars(title, unit, &figure)).with_context(|| format!("write {}", path.display()))?;
        println!("  drawn: {}", path.display());
        Ok(())
    };
    let (queue, kernel) = ("64 B UDP, queue engine", "64 B UDP, kernel engine");
    write(
        "lb-throughput.svg",
        "64 B UDP through one CPU",
        "kpps",
        vec![
            peer(queue, "plain", "plain forwarding"),
            of(kernel, "kernel engine"),
            of(queue, "queue engine"),
            peer(queue, "nfq", "queue engine, crate nfq"),
        ],
    )?;
    let (queue, kernel) = ("round trip p50, queue engine", "round trip p50, kernel engine");
    write(
        "lb-latency.svg",
        "Round trip of a small datagram, median",
        "us",
        vec![
            peer(queue, "plain", "plain forwarding"),
            of(kernel, "kernel engine"),
            of(queue, "queue engine"),
            peer(queue, "nfq", "queue engine, crate nfq"),
        ],
    )?;
    write(
        "lb-scale.svg",
        "Throughput, of that with one route and ten endpoints",
        "x",
        vec![
            of("1000 routes, queue engine", "queue engine, 1000 routes"),
            of("1000 endpoints, queue engine", "queue engine, 1000 endpoints"),
            of("10000 endpoints, queue engine", "queue engine, 10 000 endpoints"),
            of("1000 endpoints, kernel engine", "kernel engine, 1000 endpoints"),
            of("10000 endpoints, kernel engine", "kernel engine, 10 000 endpoints"),
        ],
    )
}
