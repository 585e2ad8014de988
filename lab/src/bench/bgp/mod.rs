//! BGP: a full table received, passed on, and what it does to others, beside BIRD 2, FRR and `GoBGP` in the same run.
//!
//! Every subject gets the same octets over TCP from the same player, in a namespace of its own; CPU and memory are the process's, as
//! the kernel counts them. A listener counts prefixes and messages, and compares the sum of what it heard with what was fed.

mod daemon;
mod feed;
pub mod recovery;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::report::median;
use super::{Options, Row};
use crate::lab::{End, Lab};
use crate::namespace::Namespace;
use crate::player::{KEEPALIVE, Player, Prefixes, Said, UPDATE, Who as Card, path, update};
use crate::process::Process;
use daemon::{NEIGHBORS, SUBJECT, VIP, Who};
use feed::{Feed, mark};

/// Prefixes of a full table.
const TABLE: usize = 1_000_000;
/// Prefixes of our own.
const OWN: u32 = 100_000;
/// Enough for the slowest of them.
const PATIENCE: Duration = Duration::from_mins(2);
/// A process whose CPU did not move for so long has done its work.
const CALM: Duration = Duration::from_millis(700);
/// A session is kept alive so often.
const ALIVE: Duration = Duration::from_secs(20);
/// A VIP comes or goes so often while the feed runs.
const PACE: Duration = Duration::from_millis(12);

/// What one run of a subject gave; what it was not asked is not there.
#[derive(Clone, Debug, Default)]
struct Run(BTreeMap<&'static str, f64>);

/// Measures all of them.
pub fn measure(options: &Options) -> Result<Vec<Row>> {
    let count = if options.quick { TABLE / 10 } else { TABLE };
    let feed = Feed::new(count, NEIGHBORS[0].1, NEIGHBORS[0].0);
    println!("  {} prefixes in {} UPDATEs, {} octets", feed.prefixes, feed.updates, feed.octets.len());
    let rounds = if options.quick { 1 } else { 3 };
    let mut runs: BTreeMap<Who, Vec<Run>> = BTreeMap::new();
    for round in 0..rounds {
        for who in Who::ALL {
            // They take minutes, and no goal is set by them.
            let sets_no_goal = matches!(who, Who::Frr | Who::Gobgp);
            if sets_no_goal && round > 0 {
                continue;
            }
            let mut run = Run::default();
            let done = one(who, &feed, options.quick, &mut run).with_context(|| format!("bgp, {}", who.name()));
            match done {
                // One that does not bear the feed has its figures until then.
                Err(error) if sets_no_goal => println!("  {} gave up: {error:#}", who.name()),
                done => done?,
            }
            println!("  {:<8} {:?}", who.name(), run.0);
            runs.entry(who).or_default().push(run);
        }
    }
    Ok(rows(&runs))
}

fn rows(runs: &BTreeMap<Who, Vec<Run>>) -> Vec<Row> {
    let values = |who: Who, name: &str| -> Vec<f64> {
        runs.get(&who).into_iter().flatten().filter_map(|run| run.0.get(name).copied()).collect()
    };
    let row = |name: &str, key: &str, unit: &str, factor: Option<f64>, bound: Option<f64>| {
        let ours = values(Who::Martlet, key);
        let mut row = Row::below(&format!("bgp: {name}"), unit, bound.unwrap_or(f64::INFINITY), ours);
        row.peers = Who::ALL[1..]
            .iter()
            .map(|who| (who.name().to_owned(), values(*who, key)))
            .filter(|(_, values)| !values.is_empty())
            .map(|(name, values)| (name, median(&values)))
            .collect();
        match factor {
            Some(factor) => row.at_most(factor, "bird"),
            None => row,
        }
    };
    vec![
        row("full table received, CPU", "receive_cpu_s", "s", Some(0.8), None),
        row("full table received, time", "receive_s", "s", Some(1.0), None),
        row("full table held, memory", "receive_mb", "MB", Some(1.0), None),
        row("full table held, octets a route", "octets_a_route", "octets", Some(1.0), None),
        row("first dump to a second neighbour, time", "dump_s", "s", Some(1.0), None),
        row("first dump to a second neighbour, messages", "dump_messages", "messages", Some(1.0), None),
        row("relay to a second neighbour, time", "relay_s", "s", Some(1.0), None),
        row("relay to a second neighbour, messages", "relay_messages", "messages", Some(1.0), None),
        row("announce 100 000 of its own, time", "own_s", "s", Some(1.0), None),
        row("announce 100 000 of its own, messages", "own_messages", "messages", Some(1.0), None),
        row("VIP change to another neighbour during the feed", "vip_ms", "ms", None, Some(20.0)),
    ]
}

/// One subject, in three lives: receives then dumps, relays with VIP changes beside, announces its own.
fn one(who: Who, feed: &Feed, quick: bool, run: &mut Run) -> Result<()> {
    let lab = Lab::new(End::Remove)?;
    let done = all(&lab, who, feed, quick, run).inspect_err(|_| lab.mark_failed());
    done.with_context(|| lab.tails(10))
}

fn all(lab: &Lab, who: Who, feed: &Feed, quick: bool, run: &mut Run) -> Result<()> {
    receive_and_dump(&Stage::new(lab, who, "first", 0)?, feed, run).context("receive and dump")?;
    relay(&Stage::new(lab, who, "second", 0)?, feed, run).context("relay")?;
    // GoBGP takes its own routes one at a time from another program.
    if who != Who::Gobgp {
        let own = if quick { OWN / 10 } else { OWN };
        announce(&Stage::new(lab, who, "third", own)?, own, run).context("announce")?;
    }
    Ok(())
}

/// A subject and the namespace of its neighbours.
struct Stage {
    others: Namespace,
    process: Process,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.process.signal(crate::sys::Signal::Kill);
        let _ = self.process.wait(Duration::from_secs(10));
    }
}

impl Stage {
    fn new(lab: &Lab, who: Who, life: &str, own: u32) -> Result<Self> {
        let (subject, others) = (lab.namespace(&format!("subject-{life}"))?, lab.namespace(&format!("others-{life}"))?);
        lab.link((&subject, "eth0"), (&others, "eth0"))?;
        subject.ip(&format!("address add {SUBJECT}/24 dev eth0"))?;
        for (address, _) in NEIGHBORS {
            others.ip(&format!("address add {address}/24 dev eth0"))?;
        }
        let process = who.start(lab, &subject, own)?;
        Ok(Self { others, process })
    }

    /// A session as the neighbour with that number.
    fn neighbor(&self, index: usize) -> Result<Player> {
        let (address, asn) = NEIGHBORS[index];
        let who = Card {
            // IPv4, route refresh, four octets: what all of them speak.
            capabilities: [&[1, 4, 0, 1, 0, 1, 2, 0, 65, 4][..], &asn.to_be_bytes()].concat(),
            ..Card::modern(asn, address)
        };
        let end = Instant::now() + PATIENCE;
        loop {
            let player = Player::connect(&self.others, IpAddr::V4(address), SocketAddr::from((SUBJECT, 179)));
            let tried = player.and_then(|mut player| player.establish(&who).map(|()| player));
            match tried {
                Ok(player) => return Ok(player),
                // It may not be ready, though it listens.
                Err(error) if Instant::now() > end || self.process.ended().is_some() => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// Seconds of CPU so far, of all threads.
    fn cpu(&self) -> Result<f64> {
        let mut nanos = 0_u64;
        for task in fs::read_dir(format!("/proc/{}/task", self.process.pid()))? {
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            nanos += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(Duration::from_nanos(nanos).as_secs_f64())
    }

    /// Megabytes of resident memory.
    fn memory(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = text.lines().find(|line| line.starts_with("VmRSS")).context("no VmRSS")?;
        let kilobytes: u32 = line.split_whitespace().nth(1).context("no number")?.parse()?;
        Ok(f64::from(kilobytes) / 1024.0)
    }

    /// Waits until the process does no more; how much CPU it has used then, and when it last did anything.
    fn calm(&self) -> Result<(f64, Instant)> {
        let (mut used, mut since) = (self.cpu()?, Instant::now());
        let end = since + PATIENCE;
        while since.elapsed() < CALM {
            std::thread::sleep(Duration::from_millis(10));
            let now = self.cpu()?;
            // Timers cost a little all the time.
            if now - used > 0.002 {
                (used, since) = (now, Instant::now());
            }
            if Instant::now() > end {
                bail!("it does not become calm");
            }
        }
        Ok((self.cpu()?, since))
    }
}

/// What a listener heard.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    prefixes: usize,
    messages: u32,
    sum: u64,
}

impl Heard {
    /// Counts an UPDATE with classic IPv4 prefixes.
    fn count(&mut self, body: &[u8]) {
        let heard = Prefixes::of(body);
        if heard.announced.is_empty() {
            return;
        }
        self.messages += 1;
        self.prefixes += heard.announced.len();
        for prefix in heard.announced {
            let Some((bits, octets)) = prefix.split_first() else { continue };
            let mut address = [0; 4];
            address.iter_mut().zip(octets).for_each(|(to, from)| *to = *from);
            self.sum = self.sum.wrapping_add(mark(*bits, u32::from_be_bytes(address)));
        }
    }
}

/// Listens until so many prefixes came; the VIP, which comes and goes meanwhile, is not counted.
fn listen(player: &mut Player, count: usize) -> Result<Heard> {
    let vip = [&[32][..], &VIP.octets()].concat();
    let mut heard = Heard::default();
    let start = Instant::now();
    while heard.prefixes < count {
        match player.next(Duration::from_secs(1))? {
            Said::Message(UPDATE, body) if body.ends_with(&vip) => {}
            Said::Message(UPDATE, body) => heard.count(&body),
            Said::Message(KEEPALIVE, _) | Said::Nothing if start.elapsed() < PATIENCE => {}
            other => bail!("{other:?} after {} prefixes", heard.prefixes),
        }
        player.stay(ALIVE)?;
    }
    Ok(heard)
}

/// Does `work` while the player keeps its session.
fn beside<T>(player: &mut Player, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let keeper = scope.spawn(|| player.keep(ALIVE, &end));
        let result = work();
        end.store(true, Ordering::Relaxed);
        let kept = keeper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and_then(|value| kept.map(|()| value))
    })
}

fn receive_and_dump(stage: &Stage, feed: &Feed, run: &mut Run) -> Result<()> {
    let mut feeder = stage.neighbor(0)?;
    let (idle, before) = (stage.memory()?, stage.calm()?.0);
    let start = Instant::now();
    let mut mouth = feeder.mouth()?;
    beside(&mut feeder, || {
        mouth.write_all(&feed.octets)?;
        let (cpu, done) = stage.calm()?;
        let held = stage.memory()?;
        run.0.insert("receive_cpu_s", cpu - before);
        run.0.insert("receive_s", (done - start).as_secs_f64());
        run.0.insert("receive_mb", held);
        run.0.insert("octets_a_route", (held - idle) * 1024.0 * 1024.0 / f64::from(u32::try_from(feed.prefixes)?));
        let mut listener = stage.neighbor(1)?;
        let start = Instant::now();
        let heard = listen(&mut listener, feed.prefixes)?;
        run.0.insert("dump_s", start.elapsed().as_secs_f64());
        run.0.insert("dump_messages", heard.messages.into());
        if heard.sum != feed.sum {
            bail!("the listener heard {} prefixes, but others than were fed", heard.prefixes);
        }
        Ok(())
    })
}

fn relay(stage: &Stage, feed: &Feed, run: &mut Run) -> Result<()> {
    let mut listener = stage.neighbor(1)?;
    let (mut teller, mut hearer) = (stage.neighbor(2)?, stage.neighbor(3)?);
    let feeder = stage.neighbor(0)?;
    stage.calm()?;
    let mut mouth = feeder.mouth()?;
    let end = AtomicBool::new(false);
    let (relayed, times) = std::thread::scope(|scope| {
        let vips = scope.spawn(|| vip_changes(&mut teller, &mut hearer, &end));
        let start = Instant::now();
        let writer = scope.spawn(move || mouth.write_all(&feed.octets));
        let heard = listen(&mut listener, feed.prefixes);
        let time = start.elapsed();
        end.store(true, Ordering::Relaxed);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let times = vips.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (heard.and_then(|heard| written.map_err(Into::into).map(|()| (heard, time))), times)
    });
    let (heard, time) = relayed?;
    if heard.sum != feed.sum {
        bail!("the listener heard {} prefixes, but others than were fed", heard.prefixes);
    }
    run.0.insert("relay_s", time.as_secs_f64());
    run.0.insert("relay_messages", heard.messages.into());
    let times = times?;
    println!(
        "    {} VIP changes while the feed ran, the slowest {:.1} ms",
        times.len(),
        times.iter().copied().fold(0.0, f64::max)
    );
    run.0.insert("vip_ms", median(&times));
    Ok(())
}

/// Announces and withdraws the VIP in turn, and measures until the other neighbour hears of it, in milliseconds.
fn vip_changes(teller: &mut Player, hearer: &mut Player, end: &AtomicBool) -> Result<Vec<f64>> {
    let vip = [&[32][..], &VIP.octets()].concat();
    let (address, asn) = NEIGHBORS[2];
    let announce = update(&[], &path(asn, address), &vip);
    let withdraw = update(&vip, &[], &[]);
    let mut times = Vec::new();
    let mut there = false;
    while !end.load(Ordering::Relaxed) {
        let start = Instant::now();
        teller.say(if there { &withdraw } else { &announce })?;
        there = !there;
        loop {
            match hearer.next(PATIENCE)? {
                Said::Message(UPDATE, body) => {
                    let heard = Prefixes::of(&body);
                    let all = if there { heard.announced } else { heard.withdrawn };
                    if all.contains(&vip) {
                        break;
                    }
                }
                Said::Message(KEEPALIVE, _) => {}
                other => bail!("{other:?}, waiting for the VIP"),
            }
        }
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        std::thread::sleep(PACE);
    }
    Ok(times)
}

fn announce(stage: &Stage, own: u32, run: &mut Run) -> Result<()> {
    let mut listener = stage.neighbor(1)?;
    let start = Instant::now();
    let heard = listen(&mut listener, usize::try_from(own)?)?;
    run.0.insert("own_s", start.elapsed().as_secs_f64());
    run.0.insert("own_messages", heard.messages.into());
    Ok(())
}
