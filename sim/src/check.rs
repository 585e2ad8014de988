//! The invariants: what must hold after every event, and what must come true after the last fault.
//!
//! Each has a name, a counter and a message for a human. What was *sent* and *heard* is read from the wires by a second,
//! naive decoder, readiness from the plain model: the product's own opinion is asked only for what it says of its sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use martlet_bfd::{Change, Diagnostic, State};
use martlet_bgp::{Event as BgpEvent, NeighborState};
use martlet_clock::Instant;
use martlet_router::core::Event;
use martlet_router::mirror::{BATCH, DEPTH};

use crate::decode::{Message, Tap};
use crate::objects::Api;
use crate::pod::{ADOPT, Pod, Wire};
use crate::world::MS;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub time: u64,
    /// The name of the invariant.
    pub invariant: &'static str,
    /// What happened, for a human.
    pub message: String,
}

/// The invariants, with their names and what they say.
pub const INVARIANTS: &[(&str, &str)] = &[
    (
        "withdrawn",
        "no VIP stays announced once the router was told that it may not be: the withdrawal leaves in that step",
    ),
    (
        "truthful",
        "no VIP stays announced while its load balancer cannot forward it, beyond the time that its silence takes",
    ),
    ("backed", "every learned route in the kernel was told by an Established session, or is adopted, or static and Up"),
    ("no-leak", "rules and blackholes of every VIP are in the kernel, or back in time"),
    ("adopted", "routes of a former router stay until someone tells them anew or their time is over"),
    (
        "collision",
        "of two connections that both talk one is closed within a second: the right one (RFC 4271 section 6.8)",
    ),
    ("hold-time", "a session that hears nothing for its hold time is not Established"),
    ("supervised", "a session whose BFD goes down ends with it (RFC 5882 section 4.2)"),
    ("detection", "BFD goes down after the detection time: not earlier, not later"),
    ("poll", "a changed BFD interval is announced with a Poll"),
    ("jitter", "BFD intervals are jittered"),
    ("deadline", "no deadline in the past remains, no deadline is asked for without end"),
    ("bounded", "outputs of one step, batches, connections and queues are bounded"),
    ("farewell", "a router that ends has withdrawn its VIPs and taken its learned routes along"),
    ("liveness", "after the last fault everything is well in time"),
    ("sometimes", "over 2000 seeds every fault, FSM transition, NOTIFICATION and BFD diagnostic was seen"),
];

/// What is seen of one BFD session from outside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bfd {
    ours: [u8; 4],
    state: u8,
    intervals: (u64, u64),
    changed_at: u64,
    owes_poll: bool,
    sent_at: u64,
    gap: u64,
    equal: u32,
    /// When it heard a good packet last.
    pub heard_at: u64,
    /// What the second reading makes the detection time.
    pub detection: u64,
    /// The multiplier and the interval that the other end told last.
    pub told: (u64, u64),
}

/// What was broken, what was counted, what was seen.
#[derive(Debug, Default)]
pub struct Check {
    /// The first broken promise.
    pub failure: Option<Failure>,
    /// How often each invariant was asked.
    asked: Vec<(&'static str, u64)>,
    /// What was seen at least once.
    pub seen: BTreeSet<String>,
    /// A session ended since the last look: that may be shorter than what lies between two.
    pub disturbed: Option<String>,
    /// The time of the event.
    pub now: u64,
    /// By pod and gateway's address.
    pub bfd: BTreeMap<(usize, IpAddr), Bfd>,
}

fn word(payload: &[u8], at: usize) -> u64 {
    payload.get(at..at + 4).map_or(0, |octets| octets.iter().fold(0, |sum, octet| sum << 8 | u64::from(*octet)))
}

impl Check {
    /// A promise is broken; the first counts.
    pub fn fail(&mut self, now: u64, invariant: &'static str, message: String) {
        self.failure.get_or_insert(Failure { time: now, invariant, message });
    }

    /// A promise was asked for.
    pub fn ask(&mut self, invariant: &'static str) {
        // Few, and asked after every event: a search that mostly compares addresses.
        match self.asked.iter_mut().find(|(name, _)| std::ptr::eq(*name, invariant) || *name == invariant) {
            Some((_, count)) => *count += 1,
            None => self.asked.push((invariant, 1)),
        }
    }

    /// How often each invariant was asked.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.asked.iter().copied().collect()
    }

    /// Something that should happen sometimes happened.
    pub fn saw(&mut self, what: String) {
        self.seen.insert(what);
    }

    /// The deadline of a core after a timeout.
    pub fn deadline(&mut self, who: &str, now: Instant, deadline: Option<Instant>) {
        self.ask("deadline");
        if deadline.is_some_and(|at| at < now) {
            let time = self.now;
            self.fail(time, "deadline", format!("{who} leaves a deadline in the past after its timeout: {deadline:?}"));
        }
    }

    /// Timeouts in a row at one instant.
    pub fn spins(&mut self, who: &str, count: u32) {
        if count > 100 {
            let time = self.now;
            self.fail(time, "deadline", format!("{who} asks for a timeout at the same instant more than 100 times"));
        }
    }

    /// Outputs of one step.
    pub fn outputs(&mut self, pod: usize, count: usize) {
        if count > 1000 {
            let time = self.now;
            self.fail(time, "bounded", format!("the router of pod-{pod} made {count} outputs in one step"));
        }
    }

    /// The size of a batch, and how many are under way.
    pub fn batch(&mut self, count: usize, batches: usize) {
        if count > BATCH || batches > DEPTH {
            let time = self.now;
            let message = format!("a batch of {count} changes for the kernel, and {batches} batches under way");
            self.fail(time, "bounded", message);
        }
    }

    /// What a core gave for sending.
    pub fn transmitted(&mut self, octets: usize, room: usize) {
        self.ask("bounded");
        if octets > room + 4096 + 19 {
            let time = self.now;
            self.fail(time, "bounded", format!("{octets} octets were given where there was room for {room}"));
        }
    }

    /// The last words of a connection.
    pub fn said(&mut self, octets: &[u8]) {
        let messages = Tap::default().feed(octets);
        for message in messages {
            if let Message::Notification(code, subcode) = message {
                self.saw(format!("notification sent {code}/{subcode}"));
            }
        }
    }

    /// Messages that arrived.
    pub fn heard(&mut self, messages: &[Message]) {
        for message in messages {
            if let Message::Notification(code, subcode) = message {
                self.saw(format!("notification received {code}/{subcode}"));
            }
        }
    }

    /// Something that a speaker told.
    pub fn bgp_event(&mut self, event: &BgpEvent) {
        match event {
            BgpEvent::State { from, to, .. } => self.saw(format!("fsm {from:?} -> {to:?}")),
            BgpEvent::TreatAsWithdraw { .. } => self.saw("treat-as-withdraw".into()),
            BgpEvent::AttributeDiscard { .. } => self.saw("attribute-discard".into()),
            BgpEvent::PrefixWarning { .. } => self.saw("prefix-warning".into()),
            _ => {}
        }
    }

    /// Something that a router told.
    pub fn event(&mut self, now: u64, pod: &mut Pod, event: &Event) {
        self.now = now;
        match event {
            Event::Bgp(event) => {
                self.bgp_event(event);
                if let BgpEvent::State { neighbor, from: NeighborState::Established, .. } = event {
                    self.disturbed = Some(format!("the session {neighbor} of a pod ended, nobody knows why"));
                }
                if let BgpEvent::State { neighbor, to, .. } = event
                    && let Some((gateway, family)) = neighbor.0.strip_prefix('g').and_then(|name| name.split_once("-v"))
                    && let Ok(gateway) = gateway.parse()
                {
                    pod.sessions.insert((gateway, family == "4"), *to);
                    if *to == NeighborState::Established {
                        pod.established_at.insert((gateway, family == "4"), now);
                        pod.untold.retain(|prefix| family_of(prefix) != (family == "4"));
                    }
                }
            }
            Event::Withheld(_, reason) => self.saw(format!("withheld {}", reason.word())),
            Event::Draining(_) | Event::Stopping => pod.draining = true,
            Event::Announced(_) => self.saw("announced".into()),
            Event::Bfd { from, to, diagnostic, .. } => {
                self.saw(format!("bfd {from:?} -> {to:?}"));
                self.saw(format!("bfd diagnostic {diagnostic:?}"));
            }
            Event::KernelConflict(_) => self.saw("kernel conflict".into()),
            Event::Refused(_) => self.saw("kernel refusal".into()),
            Event::Adopted(count) => {
                pod.took = *count;
                self.saw("adoption".into());
            }
            Event::AdoptionEnded(..) => {
                let by_time = now + 100 * MS
                    >= pod.configured.unwrap_or(pod.started) + u64::try_from(ADOPT.as_nanos()).unwrap_or_default();
                self.saw(if by_time { "adoption ended by time" } else { "adoption ended by End-of-RIB" }.into());
            }
            Event::Repaired(_) => self.saw("repair".into()),
            Event::Unresolved(..) => self.saw("unresolved next hop".into()),
            Event::NotTried(..) => self.saw("not tried".into()),
            _ => {}
        }
    }

    /// Since when a load balancer cannot forward what it could.
    pub fn note_truth(&mut self, now: u64, api: &Api, pod: &mut Pod) {
        self.now = now;
        let version = api.versions.get(pod.lb.version).filter(|_| pod.lb.view.is_some());
        let works = pod.lb.alive && pod.internal_up();
        let ready = version.filter(|_| works).map(|version| &*version.ready);
        for vip in &api.vips_ever {
            if ready.is_some_and(|ready| ready.contains(vip)) {
                pod.bad_since.remove(vip);
            } else {
                pod.bad_since.entry(*vip).or_insert(now);
            }
        }
        if let Some(said) = &pod.lb.word
            && let Some(version) = version.filter(|_| works)
        {
            let ready = said.vips.iter().filter(|(_, vip)| vip.ready).map(|(vip, _)| vip);
            self.ask("truthful");
            if !ready.clone().eq(version.ready.iter()) {
                let ready: BTreeSet<&IpNet> = ready.collect();
                let message =
                    format!("the load balancer says {ready:?} is ready, the objects make it {:?}", version.ready);
                self.fail(now, "truthful", message);
            }
        }
    }

    /// A BFD packet of a pod.
    pub fn bfd_sent(&mut self, now: u64, pod: usize, remote: IpAddr, payload: &[u8]) {
        self.now = now;
        let bfd = self.bfd.entry((pod, remote)).or_default();
        let (state, poll, last) = (payload[1] >> 6, payload[1] & 0x20 != 0, payload[1] & 0x10 != 0);
        let intervals = (word(payload, 12), word(payload, 16));
        let ours = [payload[4], payload[5], payload[6], payload[7]];
        let before = *bfd;
        let same = before.ours == ours && before.state == 3 && state == 3;
        if intervals != before.intervals {
            bfd.changed_at = now;
        }
        // An answer may tell of the change first; the next packet of our own must ask.
        bfd.owes_poll = same && !poll && (before.owes_poll || intervals != before.intervals);
        let overdue = bfd.owes_poll && !last;
        let gap = now - before.sent_at;
        let periodic = same && !poll && !last;
        // A longer detection time counts at once, a shorter one when the Poll is answered (section 6.8.3).
        bfd.detection = bfd.detection.max(bfd.told.0 * intervals.1.max(bfd.told.1) * 1000);
        bfd.equal = if periodic && gap == before.gap { before.equal + 1 } else { 0 };
        let even = bfd.equal >= 5;
        (bfd.ours, bfd.state, bfd.intervals, bfd.sent_at, bfd.gap) = (ours, state, intervals, now, gap);
        self.ask("poll");
        self.ask("jitter");
        if overdue {
            let message =
                format!("pod-{pod} changed its BFD intervals towards {remote} to {intervals:?} us without a Poll");
            self.fail(now, "poll", message);
        }
        if even {
            self.fail(now, "jitter", format!("pod-{pod} sends BFD to {remote} every {gap} ns without jitter"));
        }
    }

    /// A BFD packet for a pod: what a second reading makes of it.
    pub fn bfd_heard(&mut self, now: u64, pod: usize, remote: IpAddr, payload: &[u8]) {
        let Some(bfd) = self.bfd.get_mut(&(pod, remote)) else { return };
        let good = payload.len() == 24 && payload[0] >> 5 == 1 && payload[3] == 24 && payload[2] != 0;
        if good && payload.get(8..12) == Some(&bfd.ours) {
            bfd.heard_at = now;
            bfd.told = (u64::from(payload[2]), word(payload, 12));
            bfd.detection = bfd.told.0 * bfd.intervals.1.max(bfd.told.1) * 1000;
        }
    }

    /// BFD of a pod changed.
    pub fn bfd_changed(&mut self, now: u64, _api: &Api, pod: usize, change: &Change) {
        let Some(bfd) = self.bfd.get(&(pod, change.session.remote)).copied() else { return };
        let settled = now > bfd.changed_at + 3000 * MS;
        self.saw(format!("bfd {:?} -> {:?}", change.from, change.to));
        self.saw(format!("bfd diagnostic {:?}", change.diagnostic));
        if change.from == State::Up && change.diagnostic == Diagnostic::DetectionTimeExpired && settled {
            self.ask("detection");
            let (silence, detection) = (now - bfd.heard_at, bfd.detection);
            if silence * 1000 < detection * 985 || silence > detection / 1000 * 1015 + 10 * MS {
                let message = format!(
                    "BFD of pod-{pod} to {} went down after {silence} ns of silence, the detection time is {detection} ns",
                    change.session.remote
                );
                self.fail(now, "detection", message);
            }
        }
    }

    /// A router has seen its kernel for the first time, which held so many learned routes.
    pub fn took(&mut self, now: u64, pod: usize, found: Option<usize>, took: usize) {
        if let Some(found) = found {
            self.ask("adopted");
            if found != took {
                let message = format!("pod-{pod} found {found} routes of its former router and took over {took}");
                self.fail(now, "adopted", message);
            }
        }
    }

    /// A pod closed a connection with these last words; `others` are what it has to the same gateway.
    pub fn closed<'a>(
        &mut self,
        now: u64,
        pod: usize,
        wire: &Wire,
        mut others: impl Iterator<Item = &'a Wire>,
        words: &[u8],
    ) {
        let collision = Tap::default().feed(words).contains(&Message::Notification(6, 7));
        let (Some((_, side)), Some(ours), Some(theirs)) = (wire.stream, wire.sent.open, wire.received.open) else {
            return;
        };
        let talks = |other: &&Wire| {
            let (sent, received) = (&other.sent, &other.received);
            sent.open.is_some() && received.open.is_some() && !received.confirmed
        };
        if collision && others.any(|other| talks(&other)) {
            self.ask("collision");
            // Who has the higher identifier keeps the connection that it opened (RFC 6286 section 2.3).
            let stays = usize::from(ours <= theirs);
            if side == stays {
                let message = format!(
                    "pod-{pod} closed the connection to {:?} that had to stay: it is {ours:?}, the gateway {theirs:?}",
                    wire.remote
                );
                self.fail(now, "collision", message);
            }
        }
    }

    /// A router has ended.
    pub fn router_ended(&mut self, now: u64, pod: &Pod) {
        self.ask("farewell");
        let left: Vec<_> = pod.kernel.learned().keys().collect();
        let hurt = pod.kernel.hurt.is_some_and(|hurt| now < hurt + 40_000 * MS) || pod.kernel.refuses;
        // One that had no objects when it was told to end owns nothing.
        if !left.is_empty() && !hurt && pod.configured.is_some() {
            self.fail(now, "farewell", format!("a router has ended and left its learned routes: {left:?}"));
        }
    }
}

/// Whether it is IPv4.
pub fn family_of(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V4(_))
}
