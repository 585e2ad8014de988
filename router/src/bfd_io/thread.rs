//! The loop of the BFD thread: wait, read, let what is due happen, send, tell.
//!
//! It never logs, allocates little, and takes no lock that others hold for long: a state that changed is in the watch
//! channel before the loop goes on. Whatever waits in a socket is read before a deadline counts: a machine that slept does
//! not take its own sleep for the silence of its neighbours, unless the stall guard is switched off.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use martlet_bfd::{Input, Meta, Output, SessionConfig, SessionId, Sessions};
use martlet_clock::Instant;
use tokio::sync::{mpsc, watch};

use super::echo::Echoes;
use super::sockets::{Place, Sockets};
use super::sys::{self, Inbox, Letter};
use super::{Event, Options, Shared, Statistics, Status};

/// A wake-up that is later than this is a stall.
const STALL: Duration = Duration::from_millis(2);
/// A stall that the log is told of.
const TELL_STALL: Duration = Duration::from_millis(10);
/// How often interfaces that are missing are looked for, and the status is compared although nothing changed its state.
const REFRESH: Duration = Duration::from_secs(1);
/// The grain: turns begin no closer to each other than a part of the shortest interval, within these bounds. What comes and
/// what is due meanwhile is read and sent in one batch; a wake-up costs more than the packet that it is for.
const GRAINS: u32 = 50;
pub(super) const COARSEST: Duration = Duration::from_millis(1);
const FINEST: Duration = Duration::from_micros(250);
/// How often the counters are told at most.
const TELL_STATISTICS: Duration = Duration::from_millis(5);
/// Batches that are read from one socket before another has its turn.
const TURN: usize = 8;
/// As many when something is due: after a stall, what proves that the other ends live may be far back in the queue.
const CATCH_UP: usize = 64;

const FIFO: &str = "SCHED_FIFO";

/// The thread.
pub(super) struct Loop {
    pub options: Options,
    pub shared: Arc<Shared>,
    pub wake: UnixStream,
    pub status: watch::Sender<Status>,
    pub events: mpsc::Sender<Event>,
    pub links: OwnedFd,
    pub sessions: Sessions,
    pub sockets: Sockets,
    pub echoes: Echoes,
    /// The sessions that echo, and whether their neighbours know no BFD.
    pub echoing: BTreeMap<SessionId, bool>,
    pub inbox: Inbox,
    pub statistics: Statistics,
    pub refresh_at: Instant,
    /// When the counters were told last.
    pub told_at: Instant,
    /// Turns begin no closer to each other.
    pub grain: Duration,
    /// When nothing waited in the sockets: what is read now came after that, whatever the system's clock says.
    pub emptied_at: Instant,
}

/// However the thread ends, nobody goes on believing what it said last.
impl Drop for Loop {
    fn drop(&mut self) {
        self.status.send_if_modified(|told| !std::mem::take(told).is_empty());
    }
}

impl Loop {
    /// Runs until the handle is dropped.
    pub fn run(mut self) {
        self.become_punctual();
        let (mut turn, mut busy) = (Instant::ORIGIN, false);
        loop {
            let deadline = self.sessions.deadline();
            // Who is busy would be woken within the grain anyway: one sleep a turn instead of two.
            let paused = if busy { self.pause(turn) } else { sys::now() };
            let ready = self.wait(paused, deadline);
            let now = self.pause(turn);
            busy = now.since(turn) < self.grain * 2;
            turn = now;
            let late = deadline.map_or(Duration::ZERO, |deadline| now.since(deadline));
            let (woken, links) = match ready.as_slice() {
                [woken, links, ..] => (*woken, *links),
                _ => (false, false),
            };
            if woken && self.take_wishes(now) {
                return;
            }
            if links {
                sys::drain(self.links.as_fd());
            }
            if links || now >= self.refresh_at {
                self.refresh(now);
            }
            let due = self.sessions.deadline().is_some_and(|deadline| deadline <= now);
            // Unguarded, what the clock says counts, whoever slept.
            let guarded = self.options.stall_guard || late < STALL;
            if due && !guarded {
                self.timeout(late);
            }
            if due || ready.iter().skip(2).any(|&ready| ready) {
                self.read(now, if due { CATCH_UP } else { TURN });
            }
            if due && guarded {
                self.timeout(late);
            }
            self.flush();
            if let Some(deadline) = deadline.filter(|_| due) {
                let lateness = sys::now().since(deadline);
                self.statistics.worst_lateness = self.statistics.worst_lateness.max(lateness);
                self.statistics.lateness.count(lateness);
            }
            if turn.since(self.told_at) >= TELL_STATISTICS {
                self.tell_statistics();
                self.told_at = turn;
            }
        }
    }

    fn become_punctual(&mut self) {
        match sys::become_punctual(self.options.priority) {
            Ok(()) => self.statistics.scheduler = String::from(FIFO),
            Err(error) => self.lack_punctuality(&error.to_string()),
        }
    }

    fn lack_punctuality(&mut self, why: &str) {
        self.statistics.scheduler = format!("default ({FIFO}: {why})");
        self.tell(Event::Problem(format!(
            "the BFD thread runs without {FIFO} ({why}): packets may be late while the machine is busy; CAP_SYS_NICE gives it"
        )));
    }

    /// Whoever takes the priority away while we run (`chrt`, a container runtime) is not seen otherwise.
    fn check_punctuality(&mut self) {
        let had = self.statistics.scheduler == FIFO;
        match (had, sys::is_punctual()) {
            (true, false) => self.lack_punctuality("taken away"),
            (false, true) => self.statistics.scheduler = String::from(FIFO),
            _ => {}
        }
    }

    /// Sleeps for the rest of the grain; what comes meanwhile waits. Gives the time after that.
    fn pause(&self, turn: Instant) -> Instant {
        let now = sys::now();
        let rest = self.grain.saturating_sub(now.since(turn));
        if rest.is_zero() {
            return now;
        }
        sys::pause(rest);
        sys::now()
    }

    fn wait(&self, now: Instant, deadline: Option<Instant>) -> Vec<bool> {
        let mut sockets: Vec<BorrowedFd<'_>> = vec![self.wake.as_fd(), self.links.as_fd()];
        sockets.extend(self.sockets.open().values().map(super::sockets::Pair::receive));
        sockets.extend(self.echoes.descriptors());
        let refresh_at = (!self.shared.is_idle()).then_some(self.refresh_at);
        let limit = deadline.into_iter().chain(refresh_at).min().map(|at| at.since(now));
        // A wait that fails would spin: then all sockets are read, and the failure shows as load, not as silence.
        sys::wait(&sockets, limit).unwrap_or_else(|_| vec![true; sockets.len()])
    }

    /// Takes what the handle wants; whether the thread is to end.
    fn take_wishes(&mut self, now: Instant) -> bool {
        sys::drain(self.wake.as_fd());
        let (wanted, stop) = self.shared.take();
        let wanted = if stop { Some(BTreeMap::new()) } else { wanted };
        if let Some(wanted) = wanted {
            self.set(now, &wanted);
        }
        if stop {
            self.flush();
            self.tell_statistics();
        }
        stop
    }

    fn set(&mut self, now: Instant, wanted: &BTreeMap<SessionId, SessionConfig>) {
        let echoes = wanted.iter().filter(|(id, config)| config.echo.is_some() && id.interface.is_some());
        self.echoing = echoes.map(|(id, config)| (id.clone(), config.unaffiliated)).collect();
        let intervals =
            wanted.values().flat_map(|config| [config.min_tx, config.min_rx].into_iter().chain(config.echo));
        self.grain = intervals.min().map_or(COARSEST, |shortest| (shortest / GRAINS).clamp(FINEST, COARSEST));
        self.sessions.handle(now, Input::SetSessions(wanted));
        self.refresh(now);
        self.flush();
        self.tell_status();
    }

    fn refresh(&mut self, now: Instant) {
        self.refresh_at = now + REFRESH;
        self.check_punctuality();
        // With those of sessions that still say AdminDown.
        let places: BTreeSet<Place> = self.sessions.ids().map(Place::of).collect();
        self.sockets.want(places);
        let mut problems = self.sockets.refresh();
        let echo_places: BTreeSet<Place> = self.echoing.keys().map(Place::of).collect();
        problems.extend(self.echoes.refresh(&echo_places));
        for problem in problems {
            self.tell(Event::Problem(problem));
        }
        self.tell_status();
    }

    /// Reads every socket until it is empty, or has had its turn of `batches`. The turn began at `turn`.
    fn read(&mut self, turn: Instant, batches: usize) {
        let mut emptied = true;
        for (place, pair) in self.sockets.open() {
            for batch in 1..=batches {
                let Ok(read) = self.inbox.receive(pair.receive()) else {
                    self.statistics.receive_errors += 1;
                    break;
                };
                let now = sys::now();
                // The system's clock may jump: nothing waited longer than since the sockets were last found empty.
                let longest = now.since(self.emptied_at);
                for datagram in self.inbox.datagrams() {
                    let remote = datagram.from.ip();
                    let meta = Meta {
                        remote,
                        local: datagram.to.unwrap_or(remote),
                        interface: place.interface.clone(),
                        ttl: datagram.ttl.unwrap_or_default(),
                        multihop: place.interface.is_none(),
                    };
                    self.statistics.received += 1;
                    let waited = datagram.waited.min(longest);
                    self.sessions.handle(now, Input::ReceivedLate(&meta, datagram.payload, waited));
                }
                if read < sys::BATCH {
                    break;
                }
                emptied &= batch < batches;
            }
        }
        if emptied {
            self.emptied_at = turn;
        }
        let (sessions, statistics) = (&mut self.sessions, &mut self.statistics);
        self.echoes.receive(batches * sys::BATCH, |meta, payload| {
            statistics.echoes_received += 1;
            sessions.handle(sys::now(), Input::EchoReceived(meta, payload));
        });
    }

    fn send_echo(&mut self, session: &SessionId, payload: &[u8]) {
        match self.echoes.send(sys::now(), session, payload) {
            Ok(()) => self.statistics.echoes_sent += 1,
            Err(error) => {
                self.count_sent(1, &[error]);
                // A neighbour that gets no control packets is not looked for by anybody: an empty datagram does that.
                if self.echoing.get(session) == Some(&true) {
                    self.look_for(session);
                }
            }
        }
    }

    fn look_for(&self, session: &SessionId) {
        if let Some(pair) = self.sockets.get(&Place::of(session)) {
            let mut to = pair.destination(session);
            to.set_port(super::echo::PORT);
            sys::send(pair.transmit(), &[Letter { to, from: session.local, payload: Vec::new() }]);
        }
    }

    fn timeout(&mut self, late: Duration) {
        let now = sys::now();
        self.statistics.wakeups += 1;
        if late >= STALL {
            self.statistics.stalls += 1;
            self.statistics.worst_stall = self.statistics.worst_stall.max(late);
            if self.options.stall_guard {
                self.sessions.handle(now, Input::Stalled(late));
            }
        }
        if late >= TELL_STALL {
            self.tell(Event::Stalled(late));
        }
        self.sessions.handle(now, Input::Timeout);
    }

    /// Sends what the sessions want sent, in batches, and tells what changed.
    fn flush(&mut self) {
        let mut letters: BTreeMap<Place, Vec<Letter>> = BTreeMap::new();
        let mut changed = false;
        while let Some(output) = self.sessions.poll() {
            match output {
                Output::Transmit(session, payload) => {
                    let place = Place::of(&session);
                    if let Some(pair) = self.sockets.get(&place) {
                        let to = pair.destination(&session);
                        letters.entry(place).or_default().push(Letter { to, from: session.local, payload });
                    } else {
                        self.statistics.unsent += 1;
                    }
                }
                Output::Echo(session, payload) => self.send_echo(&session, &payload),
                Output::Changed(change) => {
                    changed = true;
                    self.tell(Event::Changed(change));
                }
            }
        }
        for (place, letters) in &letters {
            let Some(pair) = self.sockets.get(place) else { continue };
            let errors = sys::send(pair.transmit(), letters);
            self.count_sent(letters.len(), &errors);
        }
        if changed {
            self.tell_status();
        }
    }

    fn count_sent(&mut self, letters: usize, errors: &[io::Error]) {
        let failed = u64::try_from(errors.len()).unwrap_or_default();
        self.statistics.sent += u64::try_from(letters).unwrap_or_default().saturating_sub(failed);
        self.statistics.unsent += failed;
        if let Some(error) = errors.last() {
            self.statistics.last_send_error = Some(error.to_string());
        }
    }

    fn tell_status(&self) {
        let status = self.sessions.status();
        self.status.send_if_modified(|told| {
            let differs = **told != status;
            if differs {
                *told = Arc::new(status);
            }
            differs
        });
    }

    fn tell(&mut self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.statistics.events_dropped += 1;
        }
    }

    fn tell_statistics(&mut self) {
        if let Ok(mut told) = self.shared.statistics.try_lock() {
            told.clone_from(&self.statistics);
            told.discarded.clone_from(self.sessions.discarded());
        }
    }
}
