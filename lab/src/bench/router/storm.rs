//! Many learned routes of one session: how long they take into the kernel and out of it, what they cost, and what else has to wait
//! for them. Who tells them does nothing else: its UPDATEs are ready before the clock runs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use martlet_netlink::{Change, Kernel, NextHop, Object, Owner, Route, RouteKind};

use super::super::report::median;
use super::counter::{Counter, TABLE, nlri, prefix};
use super::speed::{Bench, Who, by_turns, millis};
use crate::namespace::Namespace;
use crate::player::{KEEPALIVE, NOTIFICATION, Player, Prefixes, Said, UPDATE, Who as Card, message, path, update};
use crate::stage::{EXTERNAL, PORT, REMOTE_AS, StandIn, VIPS, gateway, pod};
use crate::wait::{LIMIT, Seen, until};

/// How many routes.
const MANY: u32 = 100_000;
/// The kernel's number for who made a route, of nobody else here.
const PROTOCOL: u8 = 201;
/// Octets of the prefixes of one UPDATE: with attributes and header they stay below 4096.
const PREFIXES: usize = 4000;
/// A session whose hold time is 9 s is kept alive so often.
const ALIVE: Duration = Duration::from_secs(2);
/// What starts is left so long before it is measured.
const CALM: Duration = Duration::from_millis(500);
/// VIPs whose readiness changes while routes come and go; on a slow machine all of them do.
const CHANGING: u8 = 200;
/// One of them changes so often.
const PACE: Duration = Duration::from_millis(12);
/// Somebody deletes an object of the router's so long after it came back: more than ten times a second would be a conflict.
const DELETIONS: Duration = Duration::from_millis(70);
/// That object.
const BLACKHOLE: &str = "blackhole default table 4097";

/// What many routes take.
#[derive(Default)]
pub struct Storm {
    /// Seconds from the first UPDATE that is sent until the kernel has told of the last route.
    pub arrival: [Vec<f64>; 2],
    /// Seconds of CPU from the start until all are there.
    pub processor: [Vec<f64>; 2],
    /// Seconds from the NOTIFICATION that ends their session until the kernel has told that none is left.
    pub departure: [Vec<f64>; 2],
    /// Seconds of the kernel alone, which is handed the same routes by somebody who has nothing else to do: in, and out again.
    pub kernel: [Vec<f64>; 2],
}

/// Many routes come, and go with their session.
pub fn many(runs: usize) -> Result<Storm> {
    let mut bench = Bench::new(1, &[VIPS[0]], false)?;
    bench.wish.all = true;
    let feed = feed(true)?;
    let mut storm = Storm::default();
    storm.arrival = by_turns(runs, |who| {
        let mut counter = Counter::open(&bench.stage.pod, MANY)?;
        bench.start(who)?;
        let mut feeder = session(&bench, 1)?;
        bench.up()?;
        std::thread::sleep(CALM);
        let start = Instant::now();
        let come = talking(&mut feeder, &feed, || counter.wait(true, LIMIT))?;
        let index = usize::from(who == Who::Bird);
        storm.processor[index].push(bench.process()?.processor_ms()? / 1000.0);
        let end = Instant::now();
        cease(feeder)?;
        let gone = counter.wait(false, LIMIT)?;
        bench.end()?;
        let arrival = (come.last - start).as_secs_f64();
        println!(
            "  {who:?}: {MANY} routes in {arrival:.3} s, {:.3} s of them from the first to the last",
            (come.last - come.first).as_secs_f64()
        );
        storm.departure[index].push((gone.last - end).as_secs_f64());
        Ok(arrival)
    })?;
    for _ in 0..runs {
        let times = bench.stage.pod.inside(kernel_alone)??;
        for (into, time) in storm.kernel.iter_mut().zip(times) {
            into.push(time.as_secs_f64());
        }
    }
    Ok(storm)
}

/// Puts the routes into the kernel of this thread's namespace, and takes them out again; how long each took. They are ready
/// before the clock runs.
fn kernel_alone() -> Result<[Duration; 2]> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let owner = Owner { protocol: PROTOCOL, tables: vec![TABLE..=TABLE], priorities: Vec::new() };
        let (mut kernel, _events) = Kernel::open(owner)?;
        let links = kernel.links().await?;
        let link =
            links.iter().find(|(_, link)| *link.name == *EXTERNAL).context("the pod has no external interface")?;
        let hop = NextHop { gateway: Some(gateway(1, false)), interface: Some(*link.0), weight: 1, onlink: false };
        let route = |prefix, kind| Object::Route(Route { table: TABLE, prefix, metric: 20, kind });
        let routes: Vec<Object> =
            (0..MANY).map(|number| route(prefix(number), RouteKind::Unicast(vec![hop.clone()]))).collect();
        // It is there in all of them, and without it the kernel takes three times as long to take routes out.
        let blackhole = route(Ipv4Net::default().into(), RouteKind::Blackhole);
        ensure!(kernel.apply(&[Change::Add(blackhole)]).await.is_empty(), "the kernel refused a blackhole");
        let mut times = [Duration::ZERO; 2];
        for (change, time) in [Change::Add, Change::Remove].into_iter().zip(&mut times) {
            let changes: Vec<Change> = routes.iter().cloned().map(change).collect();
            let start = Instant::now();
            let failed = kernel.apply(&changes).await;
            *time = start.elapsed();
            ensure!(
                failed.is_empty(),
                "the kernel refused {} of the routes, the first: {:?}",
                failed.len(),
                failed.first()
            );
        }
        Ok(times)
    })
}

/// VIPs that changed while many routes came or went.
#[derive(Clone, Debug)]
pub struct Beside {
    /// What happened.
    pub what: &'static str,
    /// How many changes another gateway had read before the last route was in its place, in the run with the fewest.
    pub least: usize,
    /// The median change of each run, from the load balancer's word until that gateway has read the UPDATE, milliseconds.
    pub millis: Vec<f64>,
}

impl Beside {
    const fn new(what: &'static str) -> Self {
        Self { what, least: usize::MAX, millis: Vec::new() }
    }

    fn add(&mut self, times: &[f64]) {
        self.least = self.least.min(times.len());
        self.millis.push(median(times));
    }
}

/// While many routes come, are withdrawn, and go with their session, the load balancer changes its mind about one VIP after the
/// other.
///
/// # Errors
/// The stage cannot be built, or something of that does not happen in time.
pub fn beside(runs: usize) -> Result<[Beside; 3]> {
    let vips: Vec<String> = (1..=CHANGING).map(|number| format!("20.0.1.{number}")).collect();
    let mut bench = Bench::new(2, &vips.iter().map(String::as_str).collect::<Vec<_>>(), false)?;
    let (announced, withdrawn) = (feed(true)?, feed(false)?);
    let [mut come, mut go, mut end] = [
        "lb ready -> UPDATE while 100 000 routes come",
        "lb unready -> UPDATE while 100 000 routes are withdrawn",
        "lb unready -> UPDATE while a session of 100 000 routes ends",
    ]
    .map(Beside::new);
    for _ in 0..runs {
        let mut counter = Counter::open(&bench.stage.pod, MANY)?;
        bench.start(Who::Martlet)?;
        let (mut feeder, hearer) = (session(&bench, 1)?, session(&bench, 2)?);
        bench.up()?;
        std::thread::sleep(CALM);
        let mut changes = Changes::new(bench.stage.lb.as_ref().context("there is no load balancer")?, &vips, hearer)?;
        come.add(&talking(&mut feeder, &announced, || changes.during(true, || counter.wait(true, LIMIT)))?);
        changes.all(true)?;
        go.add(&talking(&mut feeder, &withdrawn, || changes.during(false, || counter.wait(false, LIMIT)))?);
        changes.all(true)?;
        talking(&mut feeder, &announced, || counter.wait(true, LIMIT))?;
        end.add(&changes.during(false, || cease(feeder).and_then(|()| counter.wait(false, LIMIT)))?);
        bench.end()?;
    }
    Ok([come, go, end])
}

/// While many routes come, somebody deletes the blackhole for packets of VIPs again and again: how often the router has put it
/// back before the last route is there.
///
/// # Errors
/// The stage cannot be built, or something of that does not happen in time.
pub fn repaired_beside() -> Result<usize> {
    let mut bench = Bench::new(1, &[VIPS[0]], false)?;
    bench.wish.all = true;
    let mut counter = Counter::open(&bench.stage.pod, MANY)?;
    bench.start(Who::Martlet)?;
    let mut feeder = session(&bench, 1)?;
    bench.up()?;
    let feed = feed(true)?;
    repaired(&bench.stage.pod)?;
    let (pod, first) = (&bench.stage.pod, prefix(0).to_string());
    let delete = |end: &AtomicBool| {
        shown(pod, "the first route", &["table", "4096", &first])?;
        let mut times = Vec::new();
        loop {
            std::thread::sleep(DELETIONS);
            let start = Instant::now();
            repaired(pod)?;
            if end.load(Ordering::Relaxed) {
                return Ok(times);
            }
            times.push(millis(start.elapsed()));
        }
    };
    let (_, times) = talking(&mut feeder, &feed, || meanwhile(|| counter.wait(true, LIMIT), delete))?;
    println!("  deleted while {MANY} routes came, and back after so many milliseconds: {times:.1?}");
    bench.end()?;
    Ok(times.len())
}

/// Deletes the blackhole and waits until it is back.
fn repaired(pod: &Namespace) -> Result<()> {
    pod.ip(&format!("route del {BLACKHOLE}"))?;
    shown(pod, "the blackhole to be back", &["table", "4097"])
}

/// Waits for a route that `ip route show` finds with these words.
fn shown(pod: &Namespace, what: &str, words: &[&str]) -> Result<()> {
    until(what, LIMIT, || {
        let routes = pod.output("ip", &[&["route", "show"], words].concat())?;
        Ok(if routes.is_empty() { Seen::not_yet("it is not there") } else { Seen::Yes(()) })
    })
}

/// VIPs, the load balancer's word on them, and a gateway that hears of them.
struct Changes<'a> {
    lb: &'a StandIn,
    vips: Vec<(&'a str, bool)>,
    hearer: Player,
    heard: BTreeSet<Vec<u8>>,
}

impl<'a> Changes<'a> {
    /// None of them is ready, and the gateway knows that.
    fn new(lb: &'a StandIn, vips: &'a [String], hearer: Player) -> Result<Self> {
        let vips = vips.iter().map(|vip| (vip.as_str(), false)).collect();
        let mut changes = Self { lb, vips, hearer, heard: BTreeSet::new() };
        changes.all(true)?;
        changes.all(false)?;
        Ok(changes)
    }

    /// All of them become ready, or none is.
    fn all(&mut self, ready: bool) -> Result<()> {
        self.vips.iter_mut().for_each(|(_, is)| *is = ready);
        self.lb.say(&self.vips);
        let wanted = if ready { self.vips.len() } else { 0 };
        self.hear(|heard| heard.len() == wanted)
    }

    /// One after the other changes while `work` is done: how long each took that was through before the work was, milliseconds.
    fn during<T>(&mut self, ready: bool, work: impl FnOnce() -> Result<T>) -> Result<Vec<f64>> {
        Ok(meanwhile(work, |end| self.change(ready, end))?.1)
    }

    fn change(&mut self, ready: bool, end: &AtomicBool) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        while let Some((vip, is)) = self.vips.get_mut(times.len()) {
            *is = ready;
            let octets = [&[32][..], &vip.parse::<Ipv4Addr>()?.octets()].concat();
            let start = Instant::now();
            self.lb.say(&self.vips);
            self.hear(|heard| heard.contains(&octets) == ready)?;
            if end.load(Ordering::Relaxed) {
                break;
            }
            times.push(millis(start.elapsed()));
            std::thread::sleep(PACE);
        }
        let slowest = times.iter().copied().fold(0.0, f64::max);
        println!("  {} VIPs changed meanwhile, the slowest in {slowest:.1} ms", times.len());
        Ok(times)
    }

    /// Listens until it has heard what is wanted.
    fn hear(&mut self, wanted: impl Fn(&BTreeSet<Vec<u8>>) -> bool) -> Result<()> {
        self.hearer.stay(ALIVE)?;
        while !wanted(&self.heard) {
            match self.hearer.next(LIMIT)? {
                Said::Message(UPDATE, body) => {
                    let Prefixes { announced, withdrawn, .. } = Prefixes::of(&body);
                    self.heard.retain(|vip| !withdrawn.contains(vip));
                    self.heard.extend(announced);
                }
                Said::Message(KEEPALIVE, _) => {}
                other => bail!("{other:?}, waiting for a change of VIPs"),
            }
        }
        Ok(())
    }
}

/// UPDATEs that announce, or withdraw, all routes, and an End-of-RIB.
fn feed(announced: bool) -> Result<Vec<u8>> {
    let IpAddr::V4(next_hop) = gateway(1, false) else { bail!("the gateway is not IPv4") };
    let attributes = path(REMOTE_AS, next_hop);
    let nlri: Vec<u8> = (0..MANY).flat_map(nlri).collect();
    let one = |prefixes| if announced { update(&[], &attributes, prefixes) } else { update(prefixes, &[], &[]) };
    Ok(nlri.chunks(PREFIXES).flat_map(one).chain(update(&[], &[], &[])).collect())
}

/// A session of gateway 1, 2, .. with who is measured, which connects too and finds nobody: the one connection stays.
fn session(bench: &Bench, number: u8) -> Result<Player> {
    let IpAddr::V4(address) = gateway(number, false) else { bail!("the gateway is not IPv4") };
    let card = Card::modern(REMOTE_AS, address);
    let namespace = bench.stage.gateways.get(usize::from(number) - 1).context("there is no such gateway")?;
    until("a session", LIMIT, || {
        let mut player = Player::connect(namespace, address.into(), (pod(false), PORT).into())?;
        // It may not be ready, though it listens.
        let tried = player.establish(&card);
        Ok(tried.map_or_else(|error| Seen::not_yet(error.to_string()), |()| Seen::Yes(player)))
    })
}

/// Does `work` while the feeder says its words, and then keeps its session.
fn talking<T>(feeder: &mut Player, words: &[u8], work: impl FnOnce() -> Result<T>) -> Result<T> {
    Ok(meanwhile(work, |end| feeder.say(words).and_then(|()| feeder.keep(ALIVE, end)))?.0)
}

/// Does `work`, and `other` beside it until the work is done and its flag says so.
fn meanwhile<T, U: Send>(
    work: impl FnOnce() -> Result<T>,
    other: impl FnOnce(&AtomicBool) -> Result<U> + Send,
) -> Result<(T, U)> {
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| other(&end));
        let done = work();
        end.store(true, Ordering::Relaxed);
        let other = joined(other);
        Ok((done?, other?))
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Ends a session: Administrative Shutdown.
fn cease(mut feeder: Player) -> Result<()> {
    feeder.say(&message(NOTIFICATION, &[6, 2]))
}
