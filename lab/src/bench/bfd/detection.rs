//! From the last packet of an end that stands still to the first Down of the other, by the kernel's time stamps.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use super::{StallDetector, Who, program};
use crate::bench::Row;
use crate::bfd::{Bird, Endpoint, Kind, Stage, Wish, bird_config, frr_config};
use crate::capture::Capture;
use crate::lab::{End, Lab};
use crate::peer::frr::Frr;
use crate::sys::Signal;
use crate::wait::LIMIT;
use crate::wire::{Event, What};

/// Interval and multiplier.
const PROFILES: [(u64, u8); 3] = [(300, 5), (50, 3), (10, 3)];
/// The states on the wire.
const DOWN: u8 = 1;
const UP: u8 = 3;
/// As often is a run that is worth nothing tried again.
const TRIES: usize = 5;
/// After this time the runs of a profile that there are must do.
const LONGEST: Duration = Duration::from_secs(45);

/// One row for each profile.
pub fn measure(quick: bool) -> Result<Vec<Row>> {
    PROFILES
        .iter()
        .map(|(interval_ms, multiplier)| profile(*interval_ms, *multiplier, if quick { 3 } else { 5 }))
        .collect()
}

fn profile(interval_ms: u64, multiplier: u8, runs: usize) -> Result<Row> {
    // Side by side: none of them takes more than a few percent of a CPU.
    let measured = std::thread::scope(|scope| {
        let alone = |who: Who| {
            let lab = Lab::new(End::Remove)?;
            let found = detector(&lab, who, interval_ms, multiplier, runs).inspect_err(|_| lab.mark_failed());
            found.with_context(|| format!("{interval_ms} ms x {multiplier}, {}", who.name()))
        };
        let threads = Who::ALL.map(|who| (who, scope.spawn(move || alone(who))));
        threads.map(|(who, thread)| {
            (who, thread.join().unwrap_or_else(|_| bail!("the thread of {} panicked", who.name())))
        })
    });
    let mut times = BTreeMap::new();
    for (who, found) in measured {
        let found = found?;
        println!("  {interval_ms} ms x {multiplier}, {}: {}", who.name(), list(&found));
        times.insert(who.name(), found);
    }
    let detection_ms = f64::from(u32::try_from(interval_ms)?) * f64::from(multiplier);
    let name = format!("bfd: silence -> Down at {interval_ms} ms x {multiplier}");
    // A tenth of an interval for the way and the waking.
    let bound = detection_ms + f64::from(u32::try_from(interval_ms)?) / 10.0;
    let mut row = Row::below(&name, "ms", bound, times.remove(Who::Martlet.name()).unwrap_or_default());
    row.peers = times.into_iter().map(|(who, found)| (who.to_owned(), super::super::report::median(&found))).collect();
    Ok(row)
}

fn list(times: &[f64]) -> String {
    times.iter().map(|time| format!("{time:.1}")).collect::<Vec<_>>().join(" ") + " ms"
}

/// `who` supervises an endpoint of ours that is stopped again and again.
fn detector(lab: &Lab, who: Who, interval_ms: u64, multiplier: u8, runs: usize) -> Result<Vec<f64>> {
    let stage = Stage::build(lab)?;
    let mut capture = Capture::start(lab, &stage.fabric, "right", 179, "udp port 3784")?;
    let [standing, supervisor] = stage.addresses(Kind::Ipv4);
    // Whoever is stopped waits long: it must not be the one that says Down first when it goes on.
    let mut stopped = stage.wish(Kind::Ipv4).every(interval_ms, multiplier);
    stopped.name = String::from("stopped");
    let program = program()?;
    let _keep: Box<dyn std::any::Any> = match who {
        Who::Martlet => {
            let wish = Wish::to("supervisor", "eth0", standing).every(interval_ms, multiplier);
            Box::new(Endpoint::start(lab, &stage.theirs, &program, "supervisor", &[wish], &[])?)
        }
        Who::Frr => {
            let file = lab.dir().join("frr.conf");
            fs::write(&file, frr_config(&stage, &[Kind::Ipv4], interval_ms, multiplier, ""))?;
            Box::new(Frr::start(lab, &stage.theirs, &file, 179, "")?)
        }
        Who::Bird => Box::new(Bird::start(lab, &stage.theirs, &bird_config(&stage, interval_ms, multiplier, ""))?),
    };
    let mut ours = Endpoint::start(lab, &stage.ours, &program, "stopped", std::slice::from_ref(&stopped), &[])?;
    let mut times = Vec::new();
    let mut worthless = 0;
    let began = Instant::now();
    while times.len() < runs && (times.is_empty() || began.elapsed() < LONGEST) {
        ours.wait_up(&["stopped"])?;
        ours.wait_negotiated(&["stopped"], interval_ms, interval_ms * u64::from(multiplier))?;
        // Both ends are through with their Poll Sequences.
        std::thread::sleep(Duration::from_millis(500));
        let stalls = StallDetector::start();
        let (start, since_us) = (SystemTime::now(), Endpoint::now_us());
        ours.process.signal(Signal::Stop)?;
        let is_down = |event: &Event| event.source == supervisor && event.what == What::Bfd(DOWN);
        let down = capture.wait("Down", start, LIMIT, is_down)?;
        let stall = stalls.worst();
        let before = capture.events()?.iter().filter(|event| event.at < down.at);
        let last = |of| before.clone().rfind(|event: &&Event| event.source == of);
        let (last_heard, last_said) = (last(standing).cloned(), last(supervisor).cloned());
        ours.process.signal(Signal::Cont)?;
        ours.wait_change("stopped", since_us, "Up")?;
        let last_heard = last_heard.context("the stopped end never spoke")?;
        // It was Up when the other end was stopped, and so was this machine.
        let counts = last_said.is_some_and(|said| said.what == What::Bfd(UP))
            && last_heard.what == What::Bfd(UP)
            && stall < Duration::from_millis(interval_ms) / 2;
        if counts || worthless >= TRIES * runs {
            times.push(down.at.duration_since(last_heard.at)?.as_secs_f64() * 1000.0);
        } else {
            worthless += 1;
            println!(
                "  a run that does not count: this machine stood still for {:.1} ms",
                stall.as_secs_f64() * 1000.0
            );
        }
    }
    Ok(times)
}
