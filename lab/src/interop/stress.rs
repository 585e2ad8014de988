//! Both sides open at once; either side is killed; the path goes and comes back.
//!
//! A collision is made, not hoped for: while it is prepared, segments with data are dropped in both namespaces, so that both sides
//! have a connection with an unanswered OPEN. Then the data passes, and one of the two must go (RFC 4271 section 6.8).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use serde_json::Value;

use super::bed::{Bed, Martlet, Variant, is};
use crate::namespace::{Cut, Namespace};
use crate::peer::{Make, Peer, Setup};
use crate::sys::Signal;
use crate::wait::{Seen, until};

/// Enough for a session.
const SESSION: Duration = Duration::from_mins(2);
/// So long both sides are given to open.
const BOTH: Duration = Duration::from_secs(8);
/// How long the path is gone.
const LOSS: Duration = Duration::from_secs(3);
/// A session that lasts so long is there to stay, milliseconds.
const STAYS: i64 = 1500;
/// What is one session must stay one for this.
const CALM: Duration = Duration::from_millis(500);

/// What the collisions with a peer gave.
#[derive(Clone, Debug)]
pub struct Collisions {
    /// With whom.
    pub make: Make,
    /// How often our speaker was killed and both sides opened.
    pub rounds: u32,
    /// In how many of them both connections were up at the same time.
    pub simultaneous: u32,
    /// In how many of them the first session was given up for the other one: both sides had sent the other's OPEN a KEEPALIVE.
    pub twice: u32,
    /// What was not one session in the end.
    pub faults: Vec<String>,
}

/// How long after the return of the path a session was Established again, milliseconds.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// With whom.
    pub make: Make,
    /// What happened, the milliseconds until the session was there to stay, how often it had come before and gone again.
    pub times: Vec<(&'static str, i64, usize)>,
}

const fn variant(make: Make) -> Variant {
    Variant { make, ipv6: false, internal: false, md5: false, wide: true, old: false }
}

fn gate(namespace: &Namespace, port: u16, closed: bool) -> Result<()> {
    let rule = |side: &str| format!("add rule inet gate in tcp {side} {port} tcp flags & psh == psh drop;");
    let text = if closed {
        format!(
            "add table inet gate; add chain inet gate in {{ type filter hook input priority 0; }}; {}{}",
            rule("dport"),
            rule("sport")
        )
    } else {
        "delete table inet gate".to_owned()
    };
    namespace.output("nft", &[&text]).map(drop)
}

/// Makes both sides open at once, again and again; every time our speaker was killed before. In the end the peer is killed.
///
/// # Errors
/// The stage cannot be built, or no session comes up at all.
pub fn collide(make: Make, rounds: u32) -> Result<Collisions> {
    let variant = variant(make);
    let mut bed = Bed::new(variant)?;
    let setup = variant.setup(2);
    let mut peer = bed.peer(&setup)?;
    let mut found = Collisions { make, rounds, simultaneous: 0, twice: 0, faults: Vec::new() };
    let mut speaker = bed.speaker(&setup)?;
    one_session(&bed, &speaker, peer.as_ref())?;
    for round in 1..=rounds {
        for namespace in [&bed.ours, &bed.theirs] {
            gate(namespace, variant.port(), true)?;
        }
        speaker.process.signal(Signal::Kill)?;
        speaker.process.wait(BOTH)?;
        peer.reset()?;
        speaker = bed.speaker(&setup)?;
        let both = until("both to open", BOTH, || {
            let count = bed.connections()?;
            Ok(if count >= 2 { Seen::Yes(()) } else { Seen::not_yet(count.to_string()) })
        });
        for namespace in [&bed.ours, &bed.theirs] {
            gate(namespace, variant.port(), false)?;
        }
        found.simultaneous += u32::from(both.is_ok());
        match one_session(&bed, &speaker, peer.as_ref()) {
            Ok(1) => {}
            Ok(_) => found.twice += 1,
            Err(error) => found.faults.push(format!("round {round}: {error:#}")),
        }
        if round % 10 == 0 {
            println!(
                "    {}: {round} rounds, {} with both connections up, {} faults",
                make.name(),
                found.simultaneous,
                found.faults.len()
            );
        }
    }
    let before = speaker.events()?.len();
    Bed::kill(&bed.theirs, peer.as_ref())?;
    peer = bed.peer(&setup)?;
    speaker.wait("the session with the peer that was killed", before, SESSION, |event| is(event, "established"))?;
    settled(&bed, peer.as_ref())?;
    if !found.faults.is_empty() {
        bed.lab.mark_failed();
    }
    Ok(found)
}

/// One session comes up and stays the only connection. Returns how often it was Established, at most twice.
fn one_session(bed: &Bed, speaker: &Martlet, peer: &dyn Peer) -> Result<usize> {
    speaker.wait("the session", 0, SESSION, |event| is(event, "established"))?;
    settled(bed, peer)?;
    let events = speaker.events()?;
    let count = events.iter().filter(|event| is(event, "established")).count();
    if count > 2 {
        bail!("Established {count} times: {events:?}");
    }
    Ok(count)
}

fn settled(bed: &Bed, peer: &dyn Peer) -> Result<()> {
    let look = || -> Result<Seen<()>> {
        let (count, established) = (bed.connections()?, peer.established()?);
        let seen = format!("{count} connections, the peer Established: {established}");
        Ok(if count == 1 && established { Seen::Yes(()) } else { Seen::NotYet(seen) })
    };
    until("one connection", SESSION, look)?;
    std::thread::sleep(CALM);
    if let Seen::NotYet(seen) = look()? {
        bail!("one connection did not stay: {seen}");
    }
    Ok(())
}

/// Breaks the path in three ways, with BFD of 300 ms three times, and measures until the session is Established again.
///
/// # Errors
/// The stage cannot be built, or the session does not come back.
pub fn recover(make: Make) -> Result<Recovery> {
    let variant = variant(make);
    let mut bed = Bed::new(variant)?;
    let setup = Setup { bfd: true, ..variant.setup(2) };
    let mut peer = bed.peer(&setup)?;
    let speaker = bed.speaker(&setup)?;
    speaker.wait("the session", 0, SESSION, |event| is(event, "established"))?;
    let mut times = Vec::new();
    for (what, port, cut) in
        [("3 s silent loss", "to-peer", Cut::Silent), ("3 s carrier loss", "to-ours", Cut::Carrier)]
    {
        bfd_up(peer.as_ref())?;
        let before = speaker.events()?.len();
        bed.fabric.cut(port, cut)?;
        speaker.wait("the end of the session", before, LOSS, |event| is(event, "closed"))?;
        std::thread::sleep(LOSS.saturating_sub(Duration::from_millis(900)));
        let back = SystemTime::now();
        bed.fabric.mend(port)?;
        let (event, flaps) = again(&speaker, before)?;
        times.push((what, since(back, &event)?, flaps));
    }
    bfd_up(peer.as_ref())?;
    let before = speaker.events()?.len();
    Bed::kill(&bed.theirs, peer.as_ref())?;
    peer = bed.peer(&setup)?;
    let back = SystemTime::now();
    let (event, flaps) = again(&speaker, before)?;
    times.push(("peer killed and started", since(back, &event)?, flaps));
    for (what, time, flaps) in &times {
        println!("    {}: {what}: Established after {time} ms, {flaps} flaps before", make.name());
    }
    drop(peer);
    Ok(Recovery { make, times })
}

fn bfd_up(peer: &dyn Peer) -> Result<()> {
    let start = Instant::now();
    until("BFD Up at the peer", SESSION, || {
        Ok(if peer.bfd_up()? { Seen::Yes(()) } else { Seen::not_yet(format!("not Up after {:?}", start.elapsed())) })
    })
}

/// The event of the session that is there to stay, and how often it came before and went again.
///
/// # Errors
/// It does not come.
pub fn again(speaker: &Martlet, before: usize) -> Result<(Value, usize)> {
    speaker.wait("the session again", before, SESSION, |event| is(event, "established"))?;
    let start = Instant::now();
    until("a session that stays", SESSION, || {
        let events: Vec<_> = speaker.events()?.split_off(before);
        let last = events.iter().rposition(|event| is(event, "established") || is(event, "closed"));
        let last = last.and_then(|index| events.get(index)).filter(|event| is(event, "established")).cloned();
        let Some(event) = last else { return Ok(Seen::not_yet("closed again")) };
        if since(SystemTime::now(), &event)? > -STAYS {
            return Ok(Seen::not_yet(format!("{event} for less than {STAYS} ms, {:?} in all", start.elapsed())));
        }
        let count = events.iter().filter(|event| is(event, "established")).count();
        Ok(Seen::Yes((event, count.saturating_sub(1))))
    })
}

/// Milliseconds from a moment to an event.
///
/// # Errors
/// It is years away.
pub fn since(moment: SystemTime, event: &Value) -> Result<i64> {
    let at = event.get("time").and_then(Value::as_f64).unwrap_or_default();
    let at = UNIX_EPOCH + Duration::from_secs_f64(at);
    // A session may be there before the peer's first answer: a negative time.
    Ok(match at.duration_since(moment) {
        Ok(later) => i64::try_from(later.as_millis())?,
        Err(earlier) => -i64::try_from(earlier.duration().as_millis())?,
    })
}
