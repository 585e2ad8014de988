//! The queue engine: packets wait in the kernel's nfqueue until a thread has chosen their mark.
//!
//! One thread a queue. The tables are swapped under a counter, the *turn*: whoever changes them, or wants to know that
//! the threads live, raises it and pokes them; a thread takes the tables of the turn before the next packet, and answers
//! by writing the turn down. So a thread that hangs, or a process that is stopped, answers no more, and the readiness
//! that goes to the router ends with it.
//!
//! The product's loop is [`own`]: many packets a system call. [`baseline`] is the same with the crate `nfq`, to compare.

pub mod baseline;
pub mod depth;
pub mod message;
pub mod own;
mod reply;
mod sys;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::Notify;

use martlet_clock::Instant;
use martlet_netlink::Family;

use crate::counters::{Counters, Reason, Tally};
use crate::direct::Bits;
use crate::engine::{FIRST_MARK, Tables};
use crate::fragment::Fragments;
use crate::packet::parse;
use crate::verdict::{Queued, Verdict, verdict};

/// Which loop serves the queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loop {
    /// Batches of packets a system call.
    #[default]
    Own,
    /// The crate `nfq`.
    Nfq,
}

impl std::str::FromStr for Loop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "own" => Ok(Self::Own),
            "nfq" => Ok(Self::Nfq),
            _ => Err(format!("queue loop {text:?}: must be own or nfq")),
        }
    }
}

/// How the queues are served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which loop.
    pub queue_loop: Loop,
    /// The numbers of the queues.
    pub queues: RangeInclusive<u16>,
    /// Octets of each packet that are copied: enough for IP headers, the first of the transport's, and byte matches.
    pub copy_range: u16,
    /// Packets that may wait in each queue.
    pub length: u32,
    /// Octets of the socket's receive buffer.
    pub receive_buffer: i32,
    /// Run the threads before all ordinary ones (`SCHED_FIFO`), if that is permitted.
    pub real_time: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_loop: Loop::Own,
            queues: 0..=0,
            copy_range: 128,
            length: 4096,
            receive_buffer: 4 << 20,
            real_time: true,
        }
    }
}

/// What the threads and their owner share.
#[derive(Debug)]
struct Shared {
    /// Raised after each change of what follows.
    turn: AtomicU64,
    tables: Mutex<Arc<Tables>>,
    stopped: AtomicBool,
    /// Told after each answer.
    answers: Notify,
    counters: Mutex<Counters>,
    fragments: Mutex<Fragments>,
    /// Whose packets go directly.
    direct: Arc<Bits>,
    /// By queue: verdicts that another thread came to.
    mailboxes: BTreeMap<u16, Mailbox>,
    /// Where the clock of the fragments begins.
    origin: std::time::Instant,
}

impl Shared {
    fn now(&self) -> Instant {
        Instant::ORIGIN + self.origin.elapsed()
    }
}

/// Verdicts for packets of a queue that a thread of another queue came to: only the owner of a queue can give them.
#[derive(Debug)]
struct Mailbox {
    is_full: AtomicBool,
    verdicts: Mutex<Vec<(u32, Option<u32>)>>,
    wake: File,
}

impl Mailbox {
    fn put(&self, id: u32, mark: Option<u32>) {
        lock(&self.verdicts).push((id, mark));
        self.is_full.store(true, Ordering::Release);
        wake(&self.wake);
    }

    fn take(&self, verdicts: &mut Vec<(u32, Option<u32>)>) {
        if self.is_full.swap(false, Ordering::AcqRel) {
            verdicts.append(&mut lock(&self.verdicts));
        }
    }
}

/// Ends a thread's sleep.
fn wake(mut event: &File) {
    // Full only if nobody reads it: then the thread is behind anyway.
    let _ = event.write(&1_u64.to_ne_bytes());
}

/// One thread as its owner sees it.
#[derive(Debug)]
struct Thread {
    queue: u16,
    /// The last turn that it has answered.
    answered: Arc<AtomicU64>,
    wake: File,
    handle: JoinHandle<io::Result<()>>,
}

/// The running queues.
#[derive(Debug)]
pub struct Queues {
    shared: Arc<Shared>,
    threads: Vec<Thread>,
}

impl Queues {
    /// Binds all queues and starts their threads, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When a queue cannot be had: another process owns it (`EPERM` or `EBUSY`), or the right is missing.
    pub fn start(settings: &Settings, tables: Arc<Tables>, direct: Arc<Bits>) -> io::Result<Self> {
        let mut mailboxes = BTreeMap::new();
        for queue in settings.queues.clone() {
            let wake = File::from(sys::event()?);
            mailboxes.insert(queue, Mailbox { is_full: AtomicBool::new(false), verdicts: Mutex::default(), wake });
        }
        let shared = Arc::new(Shared {
            turn: AtomicU64::new(1),
            tables: Mutex::new(tables),
            stopped: AtomicBool::new(false),
            answers: Notify::new(),
            counters: Mutex::default(),
            fragments: Mutex::default(),
            direct,
            mailboxes,
            origin: std::time::Instant::now(),
        });
        let mut queues = Self { shared, threads: Vec::new() };
        for queue in settings.queues.clone() {
            let named = |error: io::Error| io::Error::new(error.kind(), format!("nfqueue {queue}: {error}"));
            let thread = queues.spawn(queue, settings).map_err(named)?;
            queues.threads.push(thread);
        }
        Ok(queues)
    }

    fn spawn(&self, queue: u16, settings: &Settings) -> io::Result<Thread> {
        let mailbox = self.shared.mailboxes.get(&queue).ok_or_else(|| io::Error::other("no mailbox"))?;
        let wake = mailbox.wake.try_clone()?;
        let answered = Arc::new(AtomicU64::new(0));
        let seat = Seat {
            queue,
            shared: Arc::clone(&self.shared),
            tables: Arc::clone(&lock(&self.shared.tables)),
            turn: 0,
            answered: Arc::clone(&answered),
            wake: wake.try_clone()?,
            tally: Tally::default(),
            verdicts: Vec::new(),
            sender: reply::Sender::default(),
        };
        let real_time = settings.real_time;
        let prepare = move || {
            if real_time && let Err(error) = sys::real_time(1) {
                tracing::info!(queue, %error, "queue thread runs at ordinary priority");
            }
        };
        let builder = std::thread::Builder::new().name(format!("queue-{queue}"));
        let handle = match settings.queue_loop {
            Loop::Own => {
                let socket = own::bind(queue, settings)?;
                let range = settings.copy_range;
                builder.spawn(move || {
                    prepare();
                    own::run(seat, &socket, range)
                })?
            }
            Loop::Nfq => {
                let bound = baseline::bind(queue, settings)?;
                builder.spawn(move || {
                    prepare();
                    baseline::run(seat, bound)
                })?
            }
        };
        Ok(Thread { queue, answered, wake, handle })
    }

    /// From now on packets are asked against `tables`; the turn that a thread answers when it does so.
    pub fn swap(&self, tables: Arc<Tables>) -> u64 {
        *lock(&self.shared.tables) = tables;
        self.poke()
    }

    /// Asks every thread for a sign of life; the turn to ask [`Queues::have_answered`] about.
    pub fn poke(&self) -> u64 {
        let turn = self.shared.turn.fetch_add(1, Ordering::AcqRel) + 1;
        for thread in &self.threads {
            wake(&thread.wake);
        }
        turn
    }

    /// Whether every thread has answered `turn`.
    pub fn have_answered(&self, turn: u64) -> bool {
        self.threads.iter().all(|thread| thread.answered.load(Ordering::Acquire) >= turn)
    }

    /// Waits until every thread has answered `turn`. Safe to drop.
    pub async fn answered(&self, turn: u64) {
        while !self.have_answered(turn) {
            self.shared.answers.notified().await;
        }
    }

    /// The queues whose thread has not answered `turn`.
    pub fn silent(&self, turn: u64) -> Vec<u16> {
        let is_silent = |thread: &&Thread| thread.answered.load(Ordering::Acquire) < turn;
        self.threads.iter().filter(is_silent).map(|thread| thread.queue).collect()
    }

    /// Whether a thread has ended, which none does by itself unless its socket fails.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(|thread| thread.handle.is_finished())
    }

    /// What was counted up to the last poke.
    pub fn counters(&self) -> Counters {
        lock(&self.shared.counters).clone()
    }

    /// Ends all threads; packets that still wait are dropped by the kernel.
    ///
    /// # Errors
    /// The first that a thread ended with.
    pub fn stop(mut self) -> io::Result<Counters> {
        self.shared.stopped.store(true, Ordering::Release);
        self.poke();
        for thread in self.threads.drain(..) {
            thread.handle.join().unwrap_or_else(|_| Err(io::Error::other("queue thread panicked")))?;
        }
        Ok(lock(&self.shared.counters).clone())
    }
}

/// Whoever forgets to stop them stops them anyway; their sockets close soon after.
impl Drop for Queues {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.poke();
    }
}

/// Of a packet that was parsed.
fn family(octets: &[u8]) -> Family {
    match octets.first() {
        Some(first) if first >> 4 == 6 => Family::Ipv6,
        _ => Family::Ipv4,
    }
}

/// A lock that a panic elsewhere does not take away: what is inside is a whole value at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a thread has: its queue, the tables of the turn, its tally.
struct Seat {
    queue: u16,
    shared: Arc<Shared>,
    tables: Arc<Tables>,
    turn: u64,
    answered: Arc<AtomicU64>,
    wake: File,
    tally: Tally,
    /// Number and mark (`None`: dropped) of packets of this queue that are judged.
    verdicts: Vec<(u32, Option<u32>)>,
    sender: reply::Sender,
}

impl Seat {
    /// To be called before each batch: takes the tables of a new turn and answers it, and verdicts that another thread
    /// came to. False: it is time to end.
    fn next_turn(&mut self) -> bool {
        let turn = self.shared.turn.load(Ordering::Acquire);
        if turn != self.turn {
            self.turn = turn;
            self.tally.fold(self.queue, &self.tables, &mut lock(&self.shared.counters));
            self.tables = Arc::clone(&lock(&self.shared.tables));
            self.answered.store(turn, Ordering::Release);
            self.shared.answers.notify_one();
            self.expire();
        }
        if let Some(mailbox) = self.shared.mailboxes.get(&self.queue) {
            mailbox.take(&mut self.verdicts);
        }
        !self.shared.stopped.load(Ordering::Acquire)
    }

    /// Sleeps until there is a packet or a poke.
    fn wait(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.wait_raw(socket.as_raw_fd())
    }

    /// The same for a socket that is somebody else's.
    fn wait_raw(&mut self, socket: RawFd) -> io::Result<()> {
        sys::wait(socket, self.wake.as_fd())?;
        let mut pokes = [0; 8];
        // Would block if it was a packet.
        let _ = self.wake.read(&mut pokes);
        Ok(())
    }

    /// Judges a packet: its verdict, and those of packets that waited for it, are put into `verdicts`, or into the mailbox
    /// of the thread that holds them. Counts, and sends what is to be answered. `link`: that it came in by.
    fn judge(&mut self, id: u32, octets: &[u8], gso: bool, link: u32) {
        let queued = Queued { queue: self.queue, id, octets, gso };
        let shared = &self.shared;
        let outcome = verdict(&self.tables, &shared.fragments, || shared.now(), queued);
        for (held, verdict) in outcome.released {
            self.settle(held.queue, held.id, verdict, 0);
        }
        let direct = match outcome.verdict {
            Verdict::Forward(choice, _) => self.shared.direct.of(choice.mark, family(octets), link),
            _ => 0,
        };
        self.settle(self.queue, id, outcome.verdict, direct);
        if let Some(answer) = outcome.answer
            && let Ok(packet) = parse(&answer)
        {
            self.sender.send(packet.source, packet.destination, &answer);
        }
    }

    /// Counts a verdict and hands it to the thread that can give it. `direct`: see [`Bits::of`].
    fn settle(&mut self, queue: u16, id: u32, verdict: Verdict, direct: u32) {
        let mark = match verdict {
            Verdict::Hold => return,
            Verdict::Forward(choice, length) => {
                self.tally.forwarded(choice.rank, choice.mark - FIRST_MARK, length);
                Some(choice.told() | direct)
            }
            Verdict::Drop(reason) => {
                self.tally.dropped(reason);
                None
            }
        };
        if queue == self.queue {
            self.verdicts.push((id, mark));
        } else if let Some(mailbox) = self.shared.mailboxes.get(&queue) {
            mailbox.put(id, mark);
        }
    }

    /// Packets that waited for a first fragment for too long.
    fn expire(&mut self) {
        let late = lock(&self.shared.fragments).expire(self.shared.now());
        for held in late {
            self.settle(held.queue, held.id, Verdict::Drop(Reason::FragmentLost), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Queues with one thread that takes no turn by itself.
    fn hung() -> (Queues, Arc<AtomicU64>) {
        let wake = File::from(sys::event().unwrap());
        let answered = Arc::new(AtomicU64::new(0));
        let shared = Shared {
            turn: AtomicU64::new(1),
            tables: Mutex::default(),
            stopped: AtomicBool::new(false),
            answers: Notify::new(),
            counters: Mutex::default(),
            fragments: Mutex::default(),
            direct: Arc::default(),
            mailboxes: BTreeMap::new(),
            origin: std::time::Instant::now(),
        };
        let handle = std::thread::spawn(|| {
            // As long as the test: nobody unparks it.
            std::thread::park_timeout(std::time::Duration::from_hours(1));
            Ok(())
        });
        let thread = Thread { queue: 7, answered: Arc::clone(&answered), wake, handle };
        (Queues { shared: Arc::new(shared), threads: vec![thread] }, answered)
    }

    #[tokio::test]
    async fn a_thread_that_hangs_does_not_answer_and_is_named() {
        let (queues, answered) = hung();
        let turn = queues.poke();
        assert!(!queues.have_answered(turn));
        assert_eq!((queues.silent(turn), queues.has_failed()), (vec![7], false));
        answered.store(turn, Ordering::Release);
        queues.shared.answers.notify_one();
        queues.answered(turn).await;
        assert_eq!(queues.silent(turn), Vec::<u16>::new());
        let next = queues.swap(Arc::new(Tables::default()));
        assert!(next > turn && !queues.have_answered(next), "an old answer is no answer to a new turn");
    }

    #[test]
    fn what_another_thread_decided_waits_in_the_mailbox() {
        let wake = File::from(sys::event().unwrap());
        let mailbox = Mailbox { is_full: AtomicBool::new(false), verdicts: Mutex::default(), wake };
        let mut verdicts = vec![(1, Some(5000))];
        mailbox.take(&mut verdicts);
        mailbox.put(2, None);
        mailbox.put(3, Some(5001));
        mailbox.take(&mut verdicts);
        mailbox.take(&mut verdicts);
        assert_eq!(verdicts, [(1, Some(5000)), (2, None), (3, Some(5001))]);
        assert_eq!((&mailbox.wake).read(&mut [0; 8]).unwrap(), 8, "its owner is woken");
    }
}
