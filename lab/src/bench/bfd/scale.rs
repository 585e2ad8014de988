//! Many sessions at 50 ms x 3 for a minute: false downs, CPU, lateness. The other end is a second endpoint of ours, FRR or BIRD,
//! which thus carries the same load.

use std::fmt::{self, Write};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use martlet_router::bfd_io::Lateness;

use super::{StallDetector, Who, program};
use crate::bench::Row;
use crate::bfd::{Bird, Endpoint, Line, Wish};
use crate::lab::{End, Lab};
use crate::namespace::Namespace;
use crate::peer::frr::Frr;
use crate::process::Process;
use crate::wait::{Seen, until};

const SIZES: [u32; 3] = [100, 300, 1000];
const INTERVAL_MS: u64 = 50;
const MULTIPLIER: u8 = 3;
/// The one address of the other end.
const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 9, 255, 1);
/// A quarter of the interval: so much earlier than it must a packet leaves at most anyway (jitter).
const LATENESS_MS: f64 = 12.5;
/// A CPU that stands still for half an interval may well cost sessions: that is nobody's fault.
const STALL_MS: f64 = 25.0;
/// How long all sessions together may take to come up.
const UP: Duration = Duration::from_mins(2);
/// What a run takes besides the time that is measured.
const AROUND: Duration = Duration::from_secs(12);
/// A run that does not count begins anew while all that is still to be done ends within this time.
const LONGEST: Duration = Duration::from_mins(11);

/// What one run showed.
#[derive(Debug)]
struct Run {
    /// Sessions that went down because we heard nothing.
    our_downs: f64,
    /// Sessions that went down because the other end said so.
    their_downs: f64,
    our_cpu: f64,
    their_cpu: f64,
    worst_lateness_ms: f64,
    stall_ms: f64,
    /// Packets for which the sockets of either end had no room.
    dropped: u64,
}

impl Run {
    /// A CPU stood still for so long that what happened may be nobody's fault. A stall that did no harm does not matter.
    fn is_spoilt(&self) -> bool {
        let fell = self.stall_ms >= STALL_MS && self.our_downs + self.their_downs >= 1.0;
        fell || self.stall_ms >= LATENESS_MS && self.worst_lateness_ms >= LATENESS_MS
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "downs {} (we) {} (they), CPU {:.1} % and {:.1} %, worst lateness < {:.1} ms, a CPU stood still for {:.1} ms, full \
             sockets dropped {}",
            self.our_downs,
            self.their_downs,
            self.our_cpu,
            self.their_cpu,
            self.worst_lateness_ms,
            self.stall_ms,
            self.dropped
        )
    }
}

/// How long the runs take, and how much time is to spare for those that do not count.
struct Time {
    began: Instant,
    /// Of a run.
    window: Duration,
    runs_left: u32,
}

impl Time {
    fn allows_one_more(&self) -> bool {
        self.began.elapsed() + (self.window + AROUND) * self.runs_left + self.window < LONGEST
    }
}

/// Three rows for each number of sessions. `began`: when the whole bench of BFD began.
pub fn measure(quick: bool, began: Instant) -> Result<Vec<Row>> {
    let window = Duration::from_secs(if quick { 10 } else { 60 });
    let mut time = Time { began, window, runs_left: u32::try_from(SIZES.len() * Who::ALL.len())? };
    let mut rows = Vec::new();
    for sessions in SIZES {
        let mut runs = Vec::new();
        for who in Who::ALL {
            time.runs_left -= 1;
            let lab = Lab::new(End::Remove)?;
            let run = one(&lab, who, sessions, &time).inspect_err(|_| lab.mark_failed());
            runs.push((who, run.with_context(|| format!("{sessions} sessions with {}", who.name()))?));
        }
        rows.extend(rows_of(sessions, &runs));
    }
    Ok(rows)
}

fn rows_of(sessions: u32, runs: &[(Who, Run)]) -> Vec<Row> {
    let title = format!("bfd: {sessions} sessions, {INTERVAL_MS} ms x {MULTIPLIER}");
    let all = |value: fn(&Run) -> f64| runs.iter().map(|(_, run)| value(run)).collect::<Vec<f64>>();
    let others = |value: fn(&Run) -> f64| {
        let others = runs.iter().filter(|(who, _)| *who != Who::Martlet);
        others.map(|(who, run)| (who.name().to_owned(), value(run))).collect()
    };
    let mut downs = Row::below(&format!("{title}: false downs"), "", 1.0, all(|run| run.our_downs));
    downs.martlet = downs.runs.iter().sum();
    downs.holds = downs.martlet < 1.0;
    downs.goal = String::from("0");
    downs.peers = others(|run| run.their_downs);
    let mut cpu = Row::below(&format!("{title}: CPU"), "% core", 100.0, all(|run| run.our_cpu));
    cpu.peers = others(|run| run.their_cpu);
    let cpu = cpu.at_most(1.0, Who::Frr.name());
    let lateness = Row::below(&format!("{title}: worst lateness"), "ms", LATENESS_MS, all(|run| run.worst_lateness_ms));
    vec![downs, cpu, lateness]
}

/// Our addresses: as many as sessions.
fn addresses(sessions: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..sessions)
        .map(|number| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 0, 1)) + number / 250 * 256 + number % 250))
}

fn one(lab: &Lab, who: Who, sessions: u32, time: &Time) -> Result<Run> {
    let (ours, theirs) = (lab.namespace("ours")?, lab.namespace("theirs")?);
    lab.link((&ours, "eth0"), (&theirs, "eth0"))?;
    theirs.ip(&format!("addr add {THEIRS}/16 dev eth0"))?;
    let links = ours.ip_json(&["link", "show", "dev", "eth0"])?;
    let mac = links.first().and_then(|link| link.get("address")?.as_str()).context("eth0 has no address")?;
    let (mut own, mut neighbors) = (String::new(), String::new());
    for address in addresses(sessions) {
        let _ = writeln!(own, "addr add {address}/16 dev eth0");
        // The kernel's table of neighbours holds 1024 that it learned itself.
        let _ = writeln!(neighbors, "neigh add {address} lladdr {mac} nud permanent dev eth0");
    }
    ours.ip(&own)?;
    theirs.ip(&neighbors)?;

    let program = program()?;
    let (other, _keep) = other_end(lab, &theirs, who, sessions, &program)?;
    let wishes: Vec<_> = addresses(sessions)
        .map(|local| {
            let wish = Wish::to(&local.to_string(), "eth0", THEIRS.into()).every(INTERVAL_MS, MULTIPLIER);
            Wish { local: Some(local.into()), ..wish }
        })
        .collect();
    let mut endpoint = Endpoint::start(lab, &ours, &program, "ours", &wishes, &[])?;
    let count = usize::try_from(sessions)?;
    loop {
        until(&format!("{sessions} sessions to be Up"), UP, || {
            let up = endpoint.up()?;
            Ok(if up == count { Seen::Yes(()) } else { Seen::not_yet(format!("{up} are")) })
        })?;
        std::thread::sleep(Duration::from_secs(3));
        let run = window(&mut endpoint, &other, time.window)?;
        println!("  {sessions:>4} sessions with {:<7}: {run}", who.name());
        if !run.is_spoilt() || !time.allows_one_more() {
            return Ok(run);
        }
        println!("  that run does not count: a CPU stood still");
    }
}

/// Looks at sessions that are Up for a while.
fn window(endpoint: &mut Endpoint, other: &Process, time: Duration) -> Result<Run> {
    let stalls = StallDetector::start();
    let (since_us, late_before) = (Endpoint::now_us(), lateness(endpoint)?);
    let before = (cpu(&endpoint.process)?, cpu(other)?);
    let dropped_before = dropped(&endpoint.process)? + dropped(other)?;
    std::thread::sleep(time);
    let after = (cpu(&endpoint.process)?, cpu(other)?);
    let dropped_after = dropped(&endpoint.process)? + dropped(other)?;
    let stall = stalls.worst();
    let late_after = lateness(endpoint)?;
    let percent = |from: Duration, to: Duration| (to.saturating_sub(from)).as_secs_f64() / time.as_secs_f64() * 100.0;
    Ok(Run {
        our_downs: as_f64(endpoint.downs_because(since_us, "DetectionTimeExpired")?),
        their_downs: as_f64(endpoint.downs_because(since_us, "NeighborSignaledDown")?),
        our_cpu: percent(before.0, after.0),
        their_cpu: percent(before.1, after.1),
        worst_lateness_ms: worst(&late_before, &late_after),
        stall_ms: stall.as_secs_f64() * 1000.0,
        dropped: dropped_after.saturating_sub(dropped_before),
    })
}

/// Starts the other end; gives the process that does the work, and what keeps it.
fn other_end(
    lab: &Lab,
    theirs: &Namespace,
    who: Who,
    sessions: u32,
    program: &Path,
) -> Result<(Process, Box<dyn std::any::Any>)> {
    match who {
        Who::Martlet => {
            let to = |address: Ipv4Addr| {
                Wish::to(&address.to_string(), "eth0", address.into()).every(INTERVAL_MS, MULTIPLIER)
            };
            let wishes: Vec<_> = addresses(sessions).map(to).collect();
            let endpoint = Endpoint::start(lab, theirs, program, "theirs", &wishes, &[])?;
            Ok((endpoint.process.clone(), Box::new(endpoint)))
        }
        Who::Frr => {
            let mut config = String::from("bfd\n");
            for address in addresses(sessions) {
                let _ = write!(
                    config,
                    " peer {address} local-address {THEIRS} interface eth0\n  detect-multiplier {MULTIPLIER}\n  \
                     receive-interval {INTERVAL_MS}\n  transmit-interval {INTERVAL_MS}\n exit\n"
                );
            }
            let frr = Frr::start_bfd(lab, theirs, &(config + "exit\n"))?;
            let bfdd = frr.daemons.iter().find(|daemon| daemon.name().contains("bfdd")).context("no bfdd")?.clone();
            Ok((bfdd, Box::new(frr)))
        }
        Who::Bird => {
            let mut config = format!(
                "router id {THEIRS};\nprotocol device {{}}\nprotocol bfd {{\ninterface \"eth0\" {{ \
                 min rx interval {INTERVAL_MS} ms; min tx interval {INTERVAL_MS} ms; idle tx interval 1 s; \
                 multiplier {MULTIPLIER}; }};\n"
            );
            for address in addresses(sessions) {
                let _ = writeln!(config, "neighbor {address} dev \"eth0\" local {THEIRS};");
            }
            let bird = Bird::start(lab, theirs, &(config + "}\n"))?;
            Ok((bird.process.clone(), Box::new(bird)))
        }
    }
}

/// How long the threads of a process have run.
fn cpu(process: &Process) -> Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{}/task", process.pid()))? {
        let said = fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += said.split_whitespace().next().context("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Control packets that a process did not read in time: its namespace's sockets of port 3784 were full.
fn dropped(process: &Process) -> Result<u64> {
    let mut sum = 0;
    for table in ["udp", "udp6"] {
        sum += drops(&fs::read_to_string(format!("/proc/{}/net/{table}", process.pid()))?)?;
    }
    Ok(sum)
}

/// The last column of the sockets of port 3784 in the kernel's table.
fn drops(table: &str) -> Result<u64> {
    let ours = table
        .lines()
        .skip(1)
        .filter(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(":0EC8")));
    let drops = ours.filter_map(|line| line.split_whitespace().last());
    Ok(drops.map(str::parse::<u64>).sum::<Result<_, _>>()?)
}

fn lateness(endpoint: &mut Endpoint) -> Result<Vec<u64>> {
    match endpoint.counters()? {
        Line::Counters { lateness, .. } => Ok(lateness),
        line => bail!("no counters: {line:?}"),
    }
}

/// An upper bound of the worst lateness between two readings, in milliseconds.
fn worst(before: &[u64], after: &[u64]) -> f64 {
    let last = before.iter().zip(after).rposition(|(before, after)| before != after).unwrap_or(0);
    Duration::from_micros(Lateness::below_us(last)).as_secs_f64() * 1000.0
}

fn as_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_session_has_an_address_of_its_own_and_none_is_the_other_ends() {
        let all: std::collections::BTreeSet<_> = addresses(1000).collect();
        assert!(all.len() == 1000 && !all.contains(&THEIRS));
        assert!(all.iter().all(|address| ![0, 255].contains(&address.octets()[3])));
    }

    #[test]
    fn a_run_is_spoilt_by_a_standstill_that_did_harm_and_by_nothing_else() {
        let run = |stall_ms, our_downs, worst_lateness_ms| {
            let nothing = Run {
                our_downs,
                their_downs: 0.0,
                our_cpu: 1.0,
                their_cpu: 1.0,
                worst_lateness_ms,
                stall_ms,
                dropped: 0,
            };
            nothing.is_spoilt()
        };
        assert!(run(30.0, 1.0, 1.0) && run(14.0, 0.0, 13.0));
        assert!(!run(30.0, 0.0, 1.0) && !run(3.0, 1.0, 1.0) && !run(3.0, 0.0, 13.0));
    }

    #[test]
    fn what_full_sockets_dropped_is_read_from_the_table_of_the_kernel() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            3785: 00000000:0EC8 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 7\n\
            3786: 00000000:0EC9 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 2 2 0 9\n";
        assert_eq!(drops(table).unwrap(), 7);
    }

    #[test]
    fn the_worst_lateness_is_that_of_the_time_between_two_readings() {
        assert!((worst(&[1, 5, 0, 9], &[1, 6, 2, 9]) - 0.002).abs() < f64::EPSILON);
    }
}
