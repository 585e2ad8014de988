//! BFD on a thread of its own: the sockets and the clock of a [`martlet_bfd::Sessions`].
//!
//! BFD never waits behind BGP, YAML or a log: an OS thread sleeps in `ppoll` until the next deadline of the sessions (a
//! tokio timer is 1 to 2 ms late, this 0.1 ms), reads and sends in batches, and asks for `SCHED_FIFO`. With many sessions it
//! wakes at most once a grain (a fiftieth of the shortest interval, 0.25 to 1 ms): what is due meanwhile leaves together. What it knows is one
//! whole value in a watch channel: session -> status. What happens besides (changes, stalls, problems with a socket) comes
//! as events for the log; the thread itself never logs.
//!
//! ```text
//!   BfdHandle::set(sessions) --wake--> thread: Sessions + sockets --watch--> status
//!   BfdHandle::statistics()  <--------                            --mpsc---> events
//! ```
//!
//! This module knows nothing of the rest of the router.

mod echo;
mod sockets;
mod sys;
mod thread;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use martlet_bfd::{Change, Discard, SessionConfig, SessionId, SessionStatus, Sessions};
use martlet_clock::Instant;
use tokio::sync::{mpsc, watch};

/// What is known of every session. When the thread ends, by a panic too, nothing is known any more and the channel closes.
pub type Status = Arc<BTreeMap<SessionId, SessionStatus>>;

/// Events that wait for the log before further ones are dropped (and counted).
const EVENTS: usize = 1024;

/// The time that [`SessionStatus::since`] is told in: `CLOCK_MONOTONIC`.
pub fn now() -> Instant {
    sys::now()
}

/// How the thread works.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Makes discriminators, source ports and jitter; must not be guessable.
    pub seed: u64,
    /// Whether, when the machine itself stalled, what waits in the sockets is read before a session is declared down, and the
    /// session is given one interval more.
    pub stall_guard: bool,
    /// The priority that is asked of `SCHED_FIFO`, 1 to 99.
    pub priority: i32,
}

impl Options {
    /// The defaults: the stall guard is on, a low real-time priority.
    pub const fn new(seed: u64) -> Self {
        Self { seed, stall_guard: true, priority: 10 }
    }
}

/// Something for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session changed its state.
    Changed(Change),
    /// The thread woke this much too late (from 10 ms on).
    Stalled(Duration),
    /// An interface has no sockets, or the thread no real-time priority; why.
    Problem(String),
}

/// Counters of the thread: read at scrape, a few milliseconds older than its last turn at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Which scheduler the thread got, and why not `SCHED_FIFO`.
    pub scheduler: String,
    /// Control packets that came.
    pub received: u64,
    /// Control packets that were sent.
    pub sent: u64,
    /// Echo packets that came back.
    pub echoes_received: u64,
    /// Echo packets that were sent.
    pub echoes_sent: u64,
    /// Packets that could not be sent: no interface, no address, no route.
    pub unsent: u64,
    /// Why the last of those was not.
    pub last_send_error: Option<String>,
    /// Sockets that could not be read.
    pub receive_errors: u64,
    /// Packets that were discarded, by the rule that they broke.
    pub discarded: BTreeMap<Discard, u64>,
    /// How often a deadline came.
    pub wakeups: u64,
    /// The worst lateness of a packet: none left later than this after its time.
    pub worst_lateness: Duration,
    /// How late the packets of each turn were.
    pub lateness: Lateness,
    /// How often the thread woke more than 2 ms late.
    pub stalls: u64,
    /// The worst of those.
    pub worst_stall: Duration,
    /// Events that nobody fetched in time.
    pub events_dropped: u64,
}

/// How often something was late, two buckets for each power of two of microseconds. Two readings can be subtracted: what was
/// in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lateness {
    /// Bucket n counts what was less than [`Self::below_us`] (n) late, the last all that was later.
    pub buckets: [u64; 48],
}

impl Default for Lateness {
    fn default() -> Self {
        Self { buckets: [0; 48] }
    }
}

impl Lateness {
    /// Where a bucket ends, microseconds: 1, 2, 2, 3, 4, 6, 8, 12, 16 and so on.
    pub const fn below_us(bucket: usize) -> u64 {
        match bucket {
            0 => 1,
            1 | 2 => 2,
            _ if bucket.is_multiple_of(2) => 1 << (bucket / 2),
            _ => 3 << ((bucket - 3) / 2),
        }
    }

    fn count(&mut self, late: Duration) {
        let micros = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        let last = self.buckets.len() - 1;
        let bucket = (0..last).find(|bucket| micros < Self::below_us(*bucket)).unwrap_or(last);
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
    }
}

/// What handle and thread share.
#[derive(Debug, Default)]
struct Shared {
    wish: Mutex<Option<BTreeMap<SessionId, SessionConfig>>>,
    stop: AtomicBool,
    idle: AtomicBool,
    statistics: Mutex<Statistics>,
}

impl Shared {
    /// What was wished since the last call, and whether the thread is to end.
    fn take(&self) -> (Option<BTreeMap<SessionId, SessionConfig>>, bool) {
        let wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner).take();
        (wish, self.stop.load(Ordering::Acquire))
    }

    /// Whether no session is wanted.
    fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Acquire)
    }
}

/// The thread that drives BFD.
#[derive(Debug)]
pub struct BfdThread;

impl BfdThread {
    /// Starts the thread with default options.
    ///
    /// # Errors
    /// When the kernel gives no thread or no descriptor.
    pub fn spawn(seed: u64) -> io::Result<(BfdHandle, watch::Receiver<Status>, mpsc::Receiver<Event>)> {
        Self::spawn_with(Options::new(seed))
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When the kernel gives no thread or no descriptor.
    pub fn spawn_with(options: Options) -> io::Result<(BfdHandle, watch::Receiver<Status>, mpsc::Receiver<Event>)> {
        let shared = Arc::new(Shared { idle: AtomicBool::new(true), ..Shared::default() });
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let (status, statuses) = watch::channel(Status::default());
        let (events, received) = mpsc::channel(EVENTS);
        let turn = thread::Loop {
            options,
            shared: Arc::clone(&shared),
            wake: theirs,
            status,
            events,
            links: sys::link_events()?,
            sessions: Sessions::new(options.seed),
            sockets: sockets::Sockets::new(options.seed),
            echoes: echo::Echoes::default(),
            echoing: BTreeMap::new(),
            inbox: sys::Inbox::new(),
            statistics: Statistics::default(),
            refresh_at: Instant::ORIGIN,
            told_at: Instant::ORIGIN,
            grain: thread::COARSEST,
            emptied_at: sys::now(),
        };
        let thread = std::thread::Builder::new().name(String::from("bfd")).spawn(move || turn.run())?;
        let handle = BfdHandle { shared, wake: ours, thread: Some(thread), wanted: BTreeMap::new() };
        Ok((handle, statuses, received))
    }
}

/// The rest of the router's hold on the thread. Dropped: every session says `AdminDown`, then the thread ends.
#[derive(Debug)]
pub struct BfdHandle {
    shared: Arc<Shared>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
    wanted: BTreeMap<SessionId, SessionConfig>,
}

impl BfdHandle {
    /// The sessions that there should be from now on: all of them. Repeating a wish does nothing.
    pub fn set(&mut self, sessions: BTreeMap<SessionId, SessionConfig>) {
        if sessions == self.wanted {
            return;
        }
        self.wanted.clone_from(&sessions);
        self.shared.idle.store(sessions.is_empty(), Ordering::Release);
        *self.shared.wish.lock().unwrap_or_else(PoisonError::into_inner) = Some(sessions);
        self.wake();
    }

    /// The counters.
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A full pipe wakes as well as one more octet would.
    fn wake(&self) {
        let _ = (&self.wake).write(&[1]);
    }
}

impl Drop for BfdHandle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_counted_twice_a_power_of_two_of_microseconds() {
        let mut lateness = Lateness::default();
        for micros in [0, 1, 2, 3, 4, 250, 12_000, u64::MAX] {
            lateness.count(Duration::from_micros(micros));
        }
        let counted: Vec<_> = lateness.buckets.iter().enumerate().filter(|(_, count)| **count > 0).collect();
        assert_eq!(counted, [(0, &1), (1, &1), (3, &1), (4, &1), (5, &1), (16, &1), (27, &1), (47, &1)]);
        let ends: Vec<u64> = (0..12).map(Lateness::below_us).collect();
        assert_eq!(ends, [1, 2, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]);
    }
}
