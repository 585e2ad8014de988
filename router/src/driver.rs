//! The one loop that drives the core: what happens outside goes in, what the core wants is done.
//!
//! It is generic over everything that it touches ([`Net`] with [`Bfd`] beside it, [`Kernel`], [`Source`], [`Readiness`]), so
//! that a simulation runs this very loop. The order of the `select!` is the order of urgency: BFD, readiness, signals,
//! netlink, deadlines, BGP (at most 64 KiB of one neighbour a turn), sources, questions. It decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use martlet_api::readiness::Families;
use martlet_api::view::View;
use martlet_bfd::{SessionConfig, SessionId, SessionStatus};
use martlet_bgp::{CloseReason, Ticket};
use martlet_clock::Instant;
use martlet_netlink::{Change, Link, Object, Snapshot};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};

use crate::core::{Caller, Event, Incoming, Input, Listeners, Output, Router};
use crate::gate::Lb;
use crate::health::Vital;
use crate::intent::{Intent, Key, Settings, Transport};
use crate::mirror::Failure;
use crate::wires::{Happened, Wires};

use std::net::{IpAddr, SocketAddr};

/// Turns in a row that BGP may have while others wait.
const BGP_TURNS: u32 = 64;

/// Room for the last words of a connection, octets: a NOTIFICATION is at most 4096.
const LAST_WORDS: usize = 4096;

/// An open stream, our end and the other.
pub type Opened<S> = (S, SocketAddr, SocketAddr);
/// A connect under way. Dropped: given up.
pub type Connecting<S> = Pin<Box<dyn Future<Output = Result<Opened<S>, CloseReason>>>>;

/// A connection that a listener took; not a byte of it has been read.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The stream.
    pub stream: S,
    /// The interface of the listener.
    pub interface: std::sync::Arc<str>,
    /// Our end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// TCP.
pub trait Net {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;

    /// Opens a connection.
    fn connect(&mut self, transport: &Transport) -> Connecting<Self::Stream>;
    /// Listens there and nowhere else.
    fn listen(&mut self, listeners: &Listeners);
    /// The next connection that a listener took.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Accepted<Self::Stream>>;
    /// Sets an accepted connection up for the neighbour that it turned out to be.
    fn set_up(&mut self, stream: &Self::Stream, caller: &Caller);
    /// Changes the TCP MD5 password of an open connection.
    fn rekey(&mut self, stream: &Self::Stream, address: IpAddr, key: Option<&Key>);
}

/// BFD: the other half of the network.
pub trait Bfd {
    /// These sessions and no others.
    fn set(&mut self, sessions: BTreeMap<SessionId, SessionConfig>);
    /// Waits for a change; what is known of every session. Safe to drop at any time.
    fn next(&mut self) -> impl Future<Output = BTreeMap<SessionId, SessionStatus>>;
    /// What was counted, by name.
    fn counters(&self) -> BTreeMap<&'static str, u64>;
}

/// What the kernel has to say.
#[derive(Debug)]
pub enum News {
    /// What it holds, whole.
    Snapshot(Snapshot),
    /// Its links, which changed; a snapshot follows.
    Links(BTreeMap<u32, Link>),
    /// Others took objects of ours away, or put some there.
    Changed(BTreeSet<Object>, BTreeSet<Object>),
    /// The batch is through; these failed.
    Applied(Vec<Failure>),
}

/// Routes, rules and links.
pub trait Kernel {
    /// Makes these changes; answered by [`News::Applied`].
    fn apply(&mut self, changes: Vec<Change>);
    /// Dumps the kernel; answered by [`News::Snapshot`].
    fn dump(&mut self);
    /// Waits for news; the first is a snapshot. Safe to drop at any time.
    fn next(&mut self) -> impl Future<Output = News>;
}

/// Where the operator's wish comes from.
pub trait Source {
    /// Waits for a change; everything accepted, whole. Safe to drop at any time.
    fn next(&mut self) -> impl Future<Output = View>;
    /// Whether the source can be read now.
    fn is_reached(&self) -> bool;
}

/// The load balancer.
pub trait Readiness {
    /// Waits for its word, or for its silence. Safe to drop at any time.
    fn next(&mut self) -> impl Future<Output = Lb>;
    /// Tells it which family has external connectivity.
    fn tell(&mut self, connectivity: Families);
}

/// What a process is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Drain and end.
    Stop,
}

/// A look at the router, taken between two turns of the loop.
pub type Question = Box<dyn FnOnce(&mut Look<'_>) + Send>;

/// What a question sees, and what it may do.
#[derive(Debug)]
pub struct Look<'a> {
    /// The core.
    pub router: &'a mut Router,
    /// The time.
    pub now: Instant,
    /// Whether the source can be read.
    pub source_reached: bool,
    /// What BFD counted, by name.
    pub bfd: BTreeMap<&'static str, u64>,
}

/// Hears every event.
type Listener = Box<dyn FnMut(Instant, &Event)>;

/// Asks the loop of a driver; cheap to clone.
#[derive(Clone, Debug)]
pub struct Asker(mpsc::Sender<Question>);

impl Asker {
    /// An asker, and what the driver answers from.
    pub fn new() -> (Self, mpsc::Receiver<Question>) {
        let (sender, receiver) = mpsc::channel(16);
        (Self(sender), receiver)
    }

    /// What `look` sees; `None` if the driver has ended.
    pub async fn ask<T: Send + 'static>(&self, look: impl FnOnce(&mut Look<'_>) -> T + Send + 'static) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let question: Question = Box::new(move |seen| drop(reply.send(look(seen))));
        self.0.send(question).await.ok()?;
        answer.await.ok()
    }
}

/// The driver's clock: the time of the runtime, told in the core's way.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: tokio::time::Instant,
    base: Instant,
}

impl Clock {
    /// A clock that shows `base` now. To be called in a runtime.
    pub fn new(base: Instant) -> Self {
        Self { origin: tokio::time::Instant::now(), base }
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.base + self.origin.elapsed()
    }

    /// Waits until `deadline`; for ever if there is none.
    pub async fn sleep_until(&self, deadline: Option<Instant>) {
        match deadline {
            // The timers of the runtime are a millisecond coarse.
            Some(at) if at <= self.now() => {}
            Some(at) => tokio::time::sleep_until(self.origin + at.since(self.base)).await,
            None => std::future::pending().await,
        }
    }
}

/// Everything that the loop touches.
#[derive(Debug)]
pub struct World<N, B, K, S, R> {
    /// TCP.
    pub net: N,
    /// BFD.
    pub bfd: B,
    /// The kernel.
    pub kernel: K,
    /// The operator.
    pub source: S,
    /// The load balancer.
    pub readiness: R,
    /// What the process is told.
    pub signals: mpsc::Receiver<Signal>,
    /// What others want to know.
    pub questions: mpsc::Receiver<Question>,
    /// What health is made of, told at every change.
    pub vital: watch::Sender<Vital>,
    /// The time.
    pub clock: Clock,
}

/// The loop and what it holds.
pub struct Driver<N: Net, B, K, S, R> {
    router: Router,
    settings: Settings,
    world: World<N, B, K, S, R>,
    wires: Wires<N::Stream>,
    waiting: BTreeMap<Ticket, N::Stream>,
    tickets: u64,
    tell: Listener,
    stopped: bool,
}

impl<N: Net, B: Bfd, K: Kernel, S: Source, R: Readiness> Driver<N, B, K, S, R> {
    /// A driver of `router` in `world`; `tell` hears every event.
    pub fn new(
        router: Router,
        settings: Settings,
        world: World<N, B, K, S, R>,
        tell: impl FnMut(Instant, &Event) + 'static,
    ) -> Self {
        Self {
            router,
            settings,
            wires: Wires::default(),
            waiting: BTreeMap::new(),
            tickets: 0,
            tell: Box::new(tell),
            stopped: false,
            world,
        }
    }

    /// Drives until the router has stopped and every connection is closed.
    pub async fn run(mut self) {
        let mut turns = 0;
        let (mut signals_open, mut questions_open) = (true, true);
        loop {
            self.act();
            if self.stopped && self.wires.is_empty() {
                return;
            }
            self.tell_vital();
            let deadline = self.router.deadline();
            let tired = turns >= BGP_TURNS;
            let world = &mut self.world;
            let clock = world.clock;
            tokio::select! {
                biased;
                sessions = world.bfd.next() => self.router.handle(clock.now(), Input::Bfd(&sessions)),
                lb = world.readiness.next() => self.router.handle(clock.now(), Input::Lb(&lb)),
                signal = world.signals.recv(), if signals_open => match signal {
                    Some(Signal::Stop) => self.router.handle(clock.now(), Input::Stop),
                    None => signals_open = false,
                },
                news = world.kernel.next() => match news {
                    News::Snapshot(snapshot) => self.router.handle(clock.now(), Input::Kernel(&snapshot)),
                    News::Links(links) => self.router.handle(clock.now(), Input::Links(&links)),
                    News::Changed(removed, appeared) => {
                        let input = Input::KernelChanged { removed: &removed, appeared: &appeared };
                        self.router.handle(clock.now(), input);
                    }
                    News::Applied(failures) => self.router.handle(clock.now(), Input::Applied(&failures)),
                },
                () = clock.sleep_until(deadline) => self.router.handle(clock.now(), Input::Timeout),
                happened = self.wires.next(&mut world.net, &mut self.router, clock), if !tired => {
                    turns += 1;
                    self.on_wire(happened);
                    continue;
                }
                view = world.source.next() => {
                    let intent = Intent::new(&view, &self.settings);
                    self.router.handle(clock.now(), Input::Intent(&intent));
                }
                question = world.questions.recv(), if questions_open => match question {
                    Some(question) => {
                        let source_reached = world.source.is_reached();
                        let bfd = world.bfd.counters();
                        question(&mut Look { router: &mut self.router, now: clock.now(), source_reached, bfd });
                    }
                    None => questions_open = false,
                },
                () = std::future::ready(()), if tired => {}
            }
            turns = 0;
        }
    }

    fn tell_vital(&self) {
        let now = Vital {
            running: self.router.is_running(),
            source_reached: self.world.source.is_reached(),
            connectivity: self.router.connectivity(),
        };
        self.world.vital.send_if_modified(|last| std::mem::replace(last, now) != now);
    }

    fn on_wire(&mut self, happened: Happened<N::Stream>) {
        let now = self.world.clock.now();
        match happened {
            Happened::Sent => {}
            Happened::Connected(id, local, remote) => self.router.handle(now, Input::Connected(id, local, remote)),
            Happened::Received(id) => {
                let bytes = self.wires.received();
                self.router.handle(now, Input::Received(id, bytes));
            }
            Happened::Closed(id, reason) => self.router.handle(now, Input::Closed(id, reason)),
            Happened::Accepted(Accepted { stream, interface, local, remote }) => {
                self.tickets += 1;
                let ticket = Ticket(self.tickets);
                self.waiting.insert(ticket, stream);
                let incoming = Incoming { ticket, interface: &interface, local, remote };
                self.router.handle(now, Input::Incoming(incoming));
            }
        }
    }

    /// Does what the core wants.
    fn act(&mut self) {
        while let Some(output) = self.router.poll() {
            let world = &mut self.world;
            match output {
                Output::Connect(id, transport) => self.wires.connect(id, world.net.connect(&transport)),
                Output::Accept(ticket, id, caller) => {
                    if let Some(stream) = self.waiting.remove(&ticket) {
                        world.net.set_up(&stream, &caller);
                        self.wires.open(id, stream);
                    }
                }
                Output::Refuse(ticket) => drop(self.waiting.remove(&ticket)),
                Output::Rekey(id, address, key) => {
                    if let Some(stream) = self.wires.stream(id) {
                        world.net.rekey(stream, address, key.as_ref());
                    }
                }
                Output::Ready(id) => self.wires.ready(id),
                Output::Close(id) => {
                    let (router, now) = (&mut self.router, world.clock.now());
                    self.wires.close(id, |out| router.transmit(now, id, out, LAST_WORDS));
                }
                Output::Listen(listeners) => world.net.listen(&listeners),
                Output::SetBfd(sessions) => world.bfd.set(sessions),
                Output::Apply(changes) => world.kernel.apply(changes),
                Output::Dump => world.kernel.dump(),
                Output::Connectivity(families) => world.readiness.tell(families),
                Output::Event(event) => (self.tell)(world.clock.now(), &event),
                Output::Stopped => self.stopped = true,
            }
        }
    }
}

impl<N: Net, B, K, S, R> std::fmt::Debug for Driver<N, B, K, S, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("router", &self.router).finish_non_exhaustive()
    }
}
