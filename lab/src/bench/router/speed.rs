//! How fast the router is at what its users wait for, and BIRD in its place in the same run. Every figure is taken outside of both:
//! from the kernel's messages and from captures.

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::super::Row;
use super::super::report::median;
use super::bird::{Bird, Wish};
use super::storm::{self, Storm};
use crate::capture::Capture;
use crate::monitor::{RouteEvent, RouteMonitor};
use crate::namespace::Cut;
use crate::peer::Make;
use crate::probe::after;
use crate::process::Process;
use crate::stage::{EXTERNAL, PORT, Stage, VIPS, default_route, gateway, pod, setup, told};
use crate::sys::Signal;
use crate::wait::{LIMIT, Seen, until};
use crate::wire::{Event, What};

/// Whose figures stand beside ours.
const BIRD: &str = "bird";
/// The row of many routes that come.
const ARRIVAL: &str = "router: 100 000 routes into the kernel";
/// The row of many routes that go with their session.
const DEPARTURE: &str = "router: session of 100 000 routes ends -> all gone";

/// Whose figures are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Martlet,
    Bird,
}

/// The router, or BIRD in its place.
enum Running {
    Martlet,
    Bird(Bird),
}

/// A stage with the gateways' BIRDs, and the one who is measured.
pub(super) struct Bench {
    pub(super) stage: Stage,
    pub(super) wish: Wish,
    running: Option<Running>,
}

impl Bench {
    pub(super) fn new(gateways: u8, vips: &[&str], bfd: bool) -> Result<Self> {
        let mut stage = Stage::new(gateways, vips)?;
        let spec = if bfd {
            "bgp: {holdTime: 9s, bfd: {switch: true, minTx: 300ms, minRx: 300ms, multiplier: 3}}"
        } else {
            "bgp: {holdTime: 9s}"
        };
        for number in 1..=gateways {
            stage.put_router(&format!("gw-{number}"), gateway(number, false), spec)?;
        }
        stage.with_lb()?;
        let vips: Vec<String> = vips.iter().map(|vip| (*vip).to_owned()).collect();
        let bench = Self { stage, wish: Wish { gateways, vips, bfd, all: false }, running: None };
        bench.ready(true);
        Ok(bench)
    }

    fn ready(&self, ready: bool) {
        let vips: Vec<(&str, bool)> = self.wish.vips.iter().map(|vip| (vip.as_str(), ready)).collect();
        if let Some(lb) = &self.stage.lb {
            lb.say(&vips);
        }
    }

    pub(super) fn start(&mut self, who: Who) -> Result<()> {
        self.running = Some(match who {
            Who::Martlet => {
                self.stage.start_router(&[])?;
                Running::Martlet
            }
            Who::Bird => Running::Bird(Bird::start(&self.stage, &self.wish)?),
        });
        Ok(())
    }

    pub(super) fn up(&self) -> Result<()> {
        match &self.running {
            Some(Running::Bird(bird)) => bird.up(&self.stage, &self.wish),
            _ => self
                .stage
                .until("all Up", |status| {
                    status.peers.len() == usize::from(self.wish.gateways) && status.peers.values().all(|peer| peer.up)
                })
                .map(drop),
        }
    }

    pub(super) fn process(&self) -> Result<Process> {
        match &self.running {
            Some(Running::Bird(bird)) => Ok(bird.process.clone()),
            _ => self.stage.router.clone().context("the router does not run"),
        }
    }

    /// Ends who is measured, and takes all of it out of the kernel.
    pub(super) fn end(&mut self) -> Result<()> {
        let process = self.process()?;
        process.signal(Signal::Kill)?;
        process.wait(LIMIT)?;
        (self.running, self.stage.router) = (None, None);
        self.stage.pod.run("ip", &["route", "flush", "table", "4096"])?;
        Ok(())
    }

    fn capture(&self) -> Result<Capture> {
        Capture::start(&self.stage.lab, &self.stage.pod, EXTERNAL, PORT, &format!("tcp port {PORT} or udp port 3784"))
    }
}

/// All rows.
pub fn rows(quick: bool) -> Result<Vec<Row>> {
    let runs = if quick { 2 } else { 5 };
    let mut rows = Vec::new();
    let [start, route] = sessions(runs)?;
    rows.push(row("router: start -> Established", "ms", 20.0, Ok(start))?);
    rows.push(row("router: UPDATE -> route in the kernel", "ms", 5.0, Ok(route))?);
    rows.push(row("router: lb ready -> UPDATE", "ms", 5.0, ready(runs))?);
    rows.push(row("router: foreign deletion -> repaired", "ms", 20.0, repair(runs, quick))?);
    rows.push(row("router: BFD detection time over -> route gone", "ms", 1.0, silent(runs))?);
    rows.push(row("router: carrier lost -> route gone", "ms", 5.0, carrier(runs))?);
    rows.push(row("router: peer killed -> route gone", "ms", 2.0, killed(runs))?);
    rows.push(row(
        "router: path back after 3 s of silence -> route back",
        "ms",
        300.0,
        recovered(2 * runs + 1, quick),
    )?);
    // It waits for FRR's BFD session, which FRR makes anew when BGP is Established.
    let vip = recovery(Make::Frr, Back::Vip, Who::Martlet, runs).map(|ours| [ours, Vec::new()]);
    rows.push(row("router: path back after 3 s of silence, gateway FRR -> VIP announced", "ms", 300.0, vip)?);
    let Storm { arrival, processor, departure, kernel: [into, out] } = storm::many(runs.min(3))?;
    // The goal is of a machine on which BIRD takes 0.40 s: the next row says what it is worth beside the BIRD of this one.
    rows.push(row(ARRIVAL, "s", 0.45, Ok(arrival.clone()))?);
    rows.push(
        row("router: 100 000 routes into the kernel, beside BIRD", "s", f64::INFINITY, Ok(arrival))?
            .at_most(1.125, BIRD),
    );
    // All of it since the process started; it does not depend on what else the machine does.
    rows.push(row("router: CPU of 100 000 routes", "s", f64::INFINITY, Ok(processor))?.at_most(1.0, BIRD));
    rows.push(row(DEPARTURE, "s", f64::INFINITY, Ok(departure))?.at_most(1.125, BIRD));
    for storm::Beside { what, millis, .. } in storm::beside(runs.min(3))? {
        rows.push(row(&format!("router: {what}"), "ms", 20.0, Ok([millis, Vec::new()]))?);
    }
    let [memory, processor] = idle()?;
    rows.push(row("router: memory, 4 peers, 100 VIPs", "MB", 50.0, Ok(memory))?);
    rows.push(row("router: CPU a second when idle, 4 peers, 100 VIPs", "ms", 10.0, Ok(processor))?);
    for (name, times) in [(ARRIVAL, into), (DEPARTURE, out)] {
        let row = rows.iter_mut().find(|row| row.name == name).context("a row of many routes is missing")?;
        row.peers.insert("kernel alone".into(), median(&times));
    }
    Ok(rows)
}

/// A row of ours, with BIRD's figure beside it if there is one.
fn row(name: &str, unit: &str, bound: f64, figures: Result<[Vec<f64>; 2]>) -> Result<Row> {
    let [ours, theirs] = figures.with_context(|| name.to_owned())?;
    let mut row = Row::below(name, unit, bound, ours);
    if !theirs.is_empty() {
        row.peers.insert(BIRD.into(), median(&theirs));
    }
    Ok(row)
}

pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// One after the other, by turns: both have the same weather.
pub(super) fn by_turns(runs: usize, mut one: impl FnMut(Who) -> Result<f64>) -> Result<[Vec<f64>; 2]> {
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..runs {
        for (who, into) in [Who::Martlet, Who::Bird].into_iter().zip(&mut figures) {
            into.push(one(who)?);
        }
    }
    Ok(figures)
}

fn is_default(event: &RouteEvent) -> bool {
    event.route.starts_with("default") && event.route.contains("table 4096") && !event.route.contains("blackhole")
}

/// The start until the session, with a gateway that listens; and from the gateway's UPDATE to the route.
fn sessions(runs: usize) -> Result<[[Vec<f64>; 2]; 2]> {
    let mut bench = Bench::new(1, &[VIPS[0]], false)?;
    let _gateway = bench.stage.peer(1, Make::Bird, &setup(1, false))?;
    let mut capture = bench.capture()?;
    let routes = RouteMonitor::start(&bench.stage.lab, &bench.stage.pod)?;
    let mut to_route = [Vec::new(), Vec::new()];
    let start = by_turns(runs, |who| {
        let start = SystemTime::now();
        bench.start(who)?;
        let mut last = start;
        for from in [pod(false), gateway(1, false)] {
            let is = |event: &Event| event.what == What::Keepalive && event.source == from;
            last = last.max(capture.wait("a KEEPALIVE that answers an OPEN", start, 2 * LIMIT, is)?.at);
        }
        let update = capture.wait("the default route", start, LIMIT, announces_default)?;
        let route = routes.wait("the route", update.at, LIMIT, |event| !event.deleted && is_default(event))?;
        to_route[usize::from(who == Who::Bird)].push(millis(after(update.at, route.at)));
        bench.end()?;
        Ok(millis(after(start, last)))
    })?;
    Ok([start, to_route])
}

fn announces_default(event: &Event) -> bool {
    matches!(&event.what, What::Update { announced, .. } if announced.contains(&default_route(false)))
}

/// The word of the load balancer until the UPDATE; of BIRD: `birdc configure`, which its frontend calls then.
fn ready(runs: usize) -> Result<[Vec<f64>; 2]> {
    let mut bench = Bench::new(1, &[VIPS[0]], false)?;
    let far = bench.stage.peer(1, Make::Bird, &setup(1, false))?;
    let mut capture = bench.capture()?;
    let vip = VIPS[0].parse::<std::net::IpAddr>()?.into();
    by_turns(runs, |who| {
        bench.ready(false);
        let with = bench.wish.clone();
        bench.wish.vips.clear();
        bench.start(who)?;
        bench.up()?;
        bench.wish = with;
        told(&*far, &[])?;
        let start = SystemTime::now();
        match &bench.running {
            Some(Running::Bird(bird)) => bird.configure(&bench.stage, &bench.wish)?,
            _ => bench.ready(true),
        }
        let update = capture.wait(
            "the VIP",
            start,
            LIMIT,
            |event| matches!(&event.what, What::Update { announced, .. } if announced.contains(&vip)),
        )?;
        bench.end()?;
        Ok(millis(after(start, update.at)))
    })
}

/// BIRD looks every 60 s: one run of it is enough, and none in a hurry.
fn repair(runs: usize, quick: bool) -> Result<[Vec<f64>; 2]> {
    let mut bench = Bench::new(1, &[VIPS[0]], false)?;
    let _far = bench.stage.peer(1, Make::Bird, &setup(1, false))?;
    let routes = RouteMonitor::start(&bench.stage.lab, &bench.stage.pod)?;
    let mut figures = [Vec::new(), Vec::new()];
    for (who, runs) in [(Who::Martlet, runs), (Who::Bird, usize::from(!quick))] {
        if runs == 0 {
            continue;
        }
        bench.start(who)?;
        bench.up()?;
        bench.stage.until_hops(false, &[gateway(1, false)])?;
        for _ in 0..runs {
            std::thread::sleep(Duration::from_millis(300));
            let start = SystemTime::now();
            let metric: &[&str] = if who == Who::Martlet { &["metric", "20"] } else { &[] };
            bench.stage.pod.output("ip", &[&["route", "del", "default", "table", "4096"], metric].concat())?;
            let gone = routes.wait("the deletion", start, LIMIT, |event| event.deleted && is_default(event))?;
            let back = routes.wait("the repair", gone.at, 3 * LIMIT, |event| !event.deleted && is_default(event))?;
            figures[usize::from(who == Who::Bird)].push(millis(after(gone.at, back.at)));
        }
        bench.end()?;
    }
    Ok(figures)
}

/// The path falls silent: from the end of the detection time (counted from the last packet that came) until the route is gone.
fn silent(runs: usize) -> Result<[Vec<f64>; 2]> {
    let mut bench = Bench::new(1, &[VIPS[0]], true)?;
    let far = crate::peer::Setup { bfd: true, ..setup(1, false) };
    let _far = bench.stage.peer(1, Make::Bird, &far)?;
    let mut capture = bench.capture()?;
    let routes = RouteMonitor::start(&bench.stage.lab, &bench.stage.pod)?;
    by_turns(runs, |who| {
        bench.start(who)?;
        bench.up()?;
        bench.stage.until_hops(false, &[gateway(1, false)])?;
        std::thread::sleep(Duration::from_secs(1));
        let start = SystemTime::now();
        bench.stage.fabric.cut("gateway-1", Cut::Silent)?;
        let gone = routes.wait("the end of the route", start, LIMIT, |event| event.deleted && is_default(event))?;
        let heard = |event: &&Event| matches!(event.what, What::Bfd(3)) && event.source == gateway(1, false);
        let last = capture.events()?.iter().filter(heard).map(|event| event.at).max().context("no BFD was seen")?;
        bench.stage.fabric.mend("gateway-1")?;
        bench.end()?;
        // The neighbour's multiplier times the greater of both intervals.
        Ok(millis(after(last, gone.at)) - 900.0)
    })
}

/// The kernel tells of carriers at most once a second, of all namespaces together, unless it thinks that it is urgent: nothing
/// has happened for so long: the namespaces of the rows before are gone, and the links of this one have come up.
fn carrier(runs: usize) -> Result<[Vec<f64>; 2]> {
    let mut bench = Bench::new(1, &[VIPS[0]], false)?;
    let _far = bench.stage.peer(1, Make::Bird, &setup(1, false))?;
    let routes = RouteMonitor::start(&bench.stage.lab, &bench.stage.pod)?;
    std::thread::sleep(Duration::from_secs(3));
    by_turns(runs, |who| {
        bench.start(who)?;
        bench.up()?;
        bench.stage.until_hops(false, &[gateway(1, false)])?;
        // It waits while the link is quiet: to start it would take longer than what is measured.
        let mut ip = bench.stage.fabric.ip_waiting(&[])?;
        std::thread::sleep(Duration::from_millis(1100));
        let start = SystemTime::now();
        ip.tell("link set pod down")?;
        let gone = routes.wait("the end of the route", start, LIMIT, |event| event.deleted && is_default(event))?;
        ip.end()?;
        bench.stage.fabric.mend("pod")?;
        bench.end()?;
        Ok(millis(after(start, gone.at)))
    })
}

fn killed(runs: usize) -> Result<[Vec<f64>; 2]> {
    let mut bench = Bench::new(1, &[VIPS[0]], false)?;
    let mut capture = bench.capture()?;
    let routes = RouteMonitor::start(&bench.stage.lab, &bench.stage.pod)?;
    by_turns(runs, |who| {
        let far = bench.stage.peer(1, Make::Bird, &setup(1, false))?;
        bench.start(who)?;
        bench.up()?;
        bench.stage.until_hops(false, &[gateway(1, false)])?;
        let start = SystemTime::now();
        for process in far.processes() {
            process.signal(Signal::Kill)?;
        }
        let is_end = |event: &Event| event.what == What::Closed && event.source == gateway(1, false);
        let end = capture.wait("the end of the connection", start, LIMIT, is_end)?;
        let gone = routes.wait("the end of the route", start, LIMIT, |event| event.deleted && is_default(event))?;
        bench.end()?;
        Ok(millis(after(end.at, gone.at)))
    })
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    /// The gateway's route, in our kernel.
    Route,
    /// Our VIP, on the wire. (FRR keeps its routes to itself for a second after Established: `coalesce-time`.)
    Vip,
}

/// Of the router, and of BIRD in its place with its error wait time: one run is enough, and none in a hurry. It takes many runs
/// until the median says something: now and then the gateway's BIRD sleeps over its UPDATE until it is time for a KEEPALIVE, up
/// to three seconds.
fn recovered(runs: usize, quick: bool) -> Result<[Vec<f64>; 2]> {
    let ours = recovery(Make::Bird, Back::Route, Who::Martlet, runs)?;
    Ok([ours, recovery(Make::Bird, Back::Route, Who::Bird, usize::from(!quick))?])
}

/// Silence of 3 s, BFD and BGP are down; from its end until what should come back is there again. A gateway that has seen a
/// failure before takes no connection for seconds (BIRD's error wait time): each run has its own.
fn recovery(far: Make, what: Back, who: Who, runs: usize) -> Result<Vec<f64>> {
    let mut bench = Bench::new(1, &[VIPS[0]], true)?;
    let setup = crate::peer::Setup { bfd: true, ..setup(1, false) };
    let routes = RouteMonitor::start(&bench.stage.lab, &bench.stage.pod)?;
    let mut capture = bench.capture()?;
    let mut figures = Vec::new();
    for _ in 0..runs {
        let own = bench.stage.peer(1, far, &setup)?;
        bench.start(who)?;
        bench.up()?;
        bench.stage.until_hops(false, &[gateway(1, false)])?;
        // BFD at the other end too, at its interval: without it the gateway would not notice the silence in time.
        until("the gateway's BFD", LIMIT, || Ok(if own.bfd_up()? { Seen::Yes(()) } else { Seen::not_yet("not Up") }))?;
        std::thread::sleep(Duration::from_secs(1));
        let start = SystemTime::now();
        bench.stage.fabric.cut("gateway-1", Cut::Silent)?;
        routes.wait("the end of the route", start, LIMIT, |event| event.deleted && is_default(event))?;
        std::thread::sleep(Duration::from_secs(3).saturating_sub(start.elapsed()?));
        let mended = SystemTime::now();
        bench.stage.fabric.mend("gateway-1")?;
        let back = match what {
            Back::Route => routes.wait("the route", mended, 4 * LIMIT, |event| !event.deleted && is_default(event))?.at,
            Back::Vip => {
                let is_vip = |event: &Event| {
                    event.source == pod(false)
                        && matches!(&event.what, What::Update { announced, .. } if !announced.is_empty())
                };
                capture.wait("the VIP", mended, 4 * LIMIT, is_vip)?.at
            }
        };
        figures.push(millis(after(mended, back)));
        bench.end()?;
        for process in own.processes() {
            process.signal(Signal::Kill)?;
            process.wait(LIMIT)?;
        }
    }
    Ok(figures)
}

/// Memory in MB and CPU in ms a second.
fn idle() -> Result<[[Vec<f64>; 2]; 2]> {
    let vips: Vec<String> = (1..=100).map(|number| format!("20.0.1.{number}")).collect();
    let mut bench = Bench::new(4, &vips.iter().map(String::as_str).collect::<Vec<_>>(), true)?;
    let far = |number| crate::peer::Setup { bfd: true, ..setup(number, false) };
    let _far: Vec<_> =
        (1..=4).map(|number| bench.stage.peer(number, Make::Bird, &far(number))).collect::<Result<_>>()?;
    let (mut memory, mut processor) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for (who, index) in [(Who::Martlet, 0), (Who::Bird, 1)] {
        bench.start(who)?;
        bench.up()?;
        std::thread::sleep(Duration::from_secs(2));
        let process = bench.process()?;
        processor[index].push(process.load()?);
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = resident.trim().trim_end_matches("kB").trim().parse()?;
        memory[index].push(kib / 1024.0);
        bench.end()?;
    }
    Ok([memory, processor])
}
