//! The program `martlet-lab bfd`: the router's BFD thread without a router, for the lab.
//!
//! The sessions are a file, one JSON value; whenever it says something else they are changed. What happens is told on standard
//! output, a JSON value a line, with `CLOCK_MONOTONIC`. SIGTERM ends it in good order.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use martlet_bfd::{Auth, AuthKey, AuthKind, SessionConfig, SessionId, SessionStatus};
use martlet_router::bfd_io::{BfdThread, Event, Options, Statistics, Status, now};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;

/// How often the file of sessions is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How often the counters are told.
const COUNT: Duration = Duration::from_millis(250);

/// What the program is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The file of sessions: a JSON list.
    #[arg(long)]
    pub sessions: PathBuf,
    /// A stall of this machine is taken for silence of the other end.
    #[arg(long)]
    pub no_stall_guard: bool,
}

/// A session that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// What it is called in the lines.
    pub name: String,
    /// The other end.
    pub remote: IpAddr,
    /// Its interface; none: several hops.
    pub interface: Option<String>,
    /// Our address.
    pub local: Option<IpAddr>,
    /// Desired Min TX Interval.
    pub min_tx_ms: u64,
    /// Required Min RX Interval.
    pub min_rx_ms: u64,
    /// Detect Mult.
    pub multiplier: u8,
    /// Whether it is held down.
    pub admin_down: bool,
    /// Echo interval.
    pub echo_ms: Option<u64>,
    /// How often the other end may echo by way of us.
    pub echo_rx_ms: Option<u64>,
    /// Whether the other end knows no BFD.
    pub unaffiliated: bool,
    /// Least TTL.
    pub min_ttl: u8,
    /// Kind of authentication, in the words of `AUTH`, and keys.
    pub auth: Option<(String, Vec<Key>)>,
}

/// A key: id and secret.
pub type Key = (u8, String);

const AUTH: [(&str, AuthKind); 5] = [
    ("simple", AuthKind::SimplePassword),
    ("keyed md5", AuthKind::KeyedMd5),
    ("meticulous keyed md5", AuthKind::MeticulousKeyedMd5),
    ("keyed sha1", AuthKind::KeyedSha1),
    ("meticulous keyed sha1", AuthKind::MeticulousKeyedSha1),
];

impl Wish {
    /// A session over one hop, 300 ms x 5.
    pub fn to(name: &str, interface: &str, remote: IpAddr) -> Self {
        Self {
            name: name.to_owned(),
            remote,
            interface: Some(interface.to_owned()),
            local: None,
            min_tx_ms: 300,
            min_rx_ms: 300,
            multiplier: 5,
            admin_down: false,
            echo_ms: None,
            echo_rx_ms: None,
            unaffiliated: false,
            min_ttl: 255,
            auth: None,
        }
    }

    /// The same at another pace.
    #[must_use]
    pub fn every(mut self, interval_ms: u64, multiplier: u8) -> Self {
        (self.min_tx_ms, self.min_rx_ms, self.multiplier) = (interval_ms, interval_ms, multiplier);
        self
    }

    fn id(&self) -> SessionId {
        SessionId { remote: self.remote, interface: self.interface.as_deref().map(Into::into), local: self.local }
    }

    fn config(&self) -> Result<SessionConfig> {
        let auth = match &self.auth {
            Some((name, keys)) => {
                let kind = AUTH.iter().find(|(known, _)| known == name).map(|(_, kind)| *kind);
                let keys = keys.iter().map(|(id, secret)| AuthKey { id: *id, secret: secret.clone().into() }).collect();
                Some(Auth { kind: kind.with_context(|| format!("{name} is no kind of authentication"))?, keys })
            }
            None => None,
        };
        Ok(SessionConfig {
            min_tx: Duration::from_millis(self.min_tx_ms),
            min_rx: Duration::from_millis(self.min_rx_ms),
            multiplier: self.multiplier,
            admin_down: self.admin_down,
            auth,
            echo: self.echo_ms.map(Duration::from_millis),
            echo_rx: self.echo_rx_ms.map(Duration::from_millis),
            unaffiliated: self.unaffiliated,
            min_ttl: self.min_ttl,
            ..SessionConfig::default()
        })
    }
}

/// What the program tells. States and diagnostics are the names of the product's values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Line {
    /// A session changed its state.
    Changed {
        /// When it was told.
        at_us: u64,
        /// Which.
        session: String,
        /// Before.
        from: String,
        /// Now.
        to: String,
        /// Why.
        diagnostic: String,
        /// What the other end said last.
        remote_state: String,
    },
    /// What is known of a session, when it changed.
    Status {
        /// When it was told.
        at_us: u64,
        /// Which.
        session: String,
        /// Its state.
        state: String,
        /// The interval at which we send.
        transmit_interval_us: u64,
        /// The Detection Time.
        detection_time_us: u64,
    },
    /// The thread woke this much too late.
    Stalled {
        /// When it was told.
        at_us: u64,
        /// How late.
        late_us: u64,
    },
    /// Something is wrong.
    Problem {
        /// When it was told.
        at_us: u64,
        /// What.
        text: String,
    },
    /// The counters since the start.
    Counters {
        /// When they were told.
        at_us: u64,
        /// The scheduler of the thread.
        scheduler: String,
        /// Packets received.
        received: u64,
        /// Packets sent.
        sent: u64,
        /// Packets that could not be sent.
        unsent: u64,
        /// Echo packets that came back.
        echoes_received: u64,
        /// The worst lateness of a turn.
        worst_lateness_us: u64,
        /// How late the turns were, by the buckets of `Lateness`.
        lateness: Vec<u64>,
        /// Packets discarded, by reason.
        discarded: BTreeMap<String, u64>,
    },
}

/// Runs until SIGTERM.
///
/// # Errors
/// The file of sessions cannot be read, or the thread not be started.
pub fn serve(arguments: &Arguments) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(arguments))
}

async fn run(arguments: &Arguments) -> Result<()> {
    let mut end = signal(SignalKind::terminate())?;
    let seed = now().as_nanos() ^ u64::from(std::process::id()).rotate_left(40);
    let options = Options { stall_guard: !arguments.no_stall_guard, ..Options::new(seed) };
    let (mut handle, mut statuses, mut events) = BfdThread::spawn_with(options)?;
    let (mut names, mut read) = (BTreeMap::new(), None);
    let (mut look, mut count) = (interval(LOOK), interval(COUNT));
    let mut told = Status::default();
    loop {
        tokio::select! {
            biased;
            _ = end.recv() => break,
            event = events.recv() => match event {
                Some(event) => say(&told_of(&names, &event))?,
                None => bail!("the BFD thread ended"),
            },
            changed = statuses.changed() => {
                changed.context("the BFD thread ended")?;
                let status = statuses.borrow_and_update().clone();
                for (id, status) in status.iter().filter(|(id, status)| told.get(*id) != Some(*status)) {
                    say(&status_of(&names, id, status))?;
                }
                told = status;
            }
            _ = look.tick() => {
                // A new one is moved to its place: it is another file.
                let file = std::fs::metadata(&arguments.sessions).context("look at the sessions")?.ino();
                if read != Some(file) {
                    let wishes = parse(&arguments.sessions)?;
                    names = wishes.iter().map(|wish| (wish.id(), wish.name.clone())).collect();
                    handle.set(wishes.iter().map(|wish| Ok((wish.id(), wish.config()?))).collect::<Result<_>>()?);
                    read = Some(file);
                }
            }
            _ = count.tick() => say(&counters(&handle.statistics()))?,
        }
    }
    drop(handle);
    while let Some(event) = events.recv().await {
        say(&told_of(&names, &event))?;
    }
    Ok(())
}

fn parse(path: &Path) -> Result<Vec<Wish>> {
    let read = || Ok::<_, anyhow::Error>(serde_json::from_str(&std::fs::read_to_string(path)?)?);
    read().with_context(|| format!("read {}", path.display()))
}

fn say(line: &Line) -> Result<()> {
    println!("{}", serde_json::to_string(line)?);
    Ok(())
}

fn told_of(names: &BTreeMap<SessionId, String>, event: &Event) -> Line {
    let at_us = micros_now();
    match event {
        Event::Changed(change) => Line::Changed {
            at_us,
            session: name_of(names, &change.session),
            from: format!("{:?}", change.from),
            to: format!("{:?}", change.to),
            diagnostic: format!("{:?}", change.diagnostic),
            remote_state: format!("{:?}", change.remote_state),
        },
        Event::Stalled(late) => Line::Stalled { at_us, late_us: micros(*late) },
        Event::Problem(text) => Line::Problem { at_us, text: text.clone() },
    }
}

fn status_of(names: &BTreeMap<SessionId, String>, id: &SessionId, status: &SessionStatus) -> Line {
    Line::Status {
        at_us: micros_now(),
        session: name_of(names, id),
        state: format!("{:?}", status.state),
        transmit_interval_us: micros(status.transmit_interval),
        detection_time_us: micros(status.detection_time),
    }
}

fn counters(statistics: &Statistics) -> Line {
    Line::Counters {
        at_us: micros_now(),
        scheduler: statistics.scheduler.clone(),
        received: statistics.received,
        sent: statistics.sent,
        unsent: statistics.unsent,
        echoes_received: statistics.echoes_received,
        worst_lateness_us: micros(statistics.worst_lateness),
        lateness: statistics.lateness.buckets.into(),
        discarded: statistics.discarded.iter().map(|(why, count)| (why.name().to_owned(), *count)).collect(),
    }
}

fn name_of(names: &BTreeMap<SessionId, String>, id: &SessionId) -> String {
    names.get(id).cloned().unwrap_or_else(|| id.to_string())
}

/// The time of the lines.
pub(super) fn micros_now() -> u64 {
    now().as_nanos() / 1000
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
