//! The driver's four traits over turmoil, and a stage to play on.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use martlet_api::readiness::{Families, Readiness as Said, VERSION, VipReadiness};
use martlet_api::view::{Bgp, GatewayRouter, ObjectName, Protocol, View};
use martlet_bfd::{SessionConfig, SessionId, SessionStatus};
use martlet_bgp::CloseReason;
use martlet_clock::Instant;
use martlet_netlink::{Change, Link, Object, Snapshot};
use martlet_router::core::{Caller, Config, Listener, Listeners, Router, Status};
use martlet_router::driver::{
    Accepted, Asker, Bfd, Clock, Connecting, Driver, Kernel, Net, News, Readiness, Signal, Source, World,
};
use martlet_router::gate::Lb;
use martlet_router::intent::{Identity, Key, Settings, Transport};
use martlet_router::wires::close_reason;
use tokio::sync::{Notify, mpsc, watch};
use turmoil::net::{TcpListener, TcpStream};

/// What happened, a line an event.
pub type Story = Vec<String>;

type Accepting = Pin<Box<dyn Future<Output = (Option<TcpListener>, std::io::Result<(TcpStream, SocketAddr)>)>>>;

/// TCP of turmoil.
#[derive(Default)]
struct SimNet {
    accepting: BTreeMap<Listener, Accepting>,
}

fn accept(listener: Option<TcpListener>, port: u16) -> Accepting {
    Box::pin(async move {
        let listener = match listener {
            Some(listener) => listener,
            None => match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
                Ok(listener) => listener,
                Err(error) => return (None, Err(error)),
            },
        };
        let accepted = listener.accept().await;
        (Some(listener), accepted)
    })
}

impl Net for SimNet {
    type Stream = TcpStream;

    fn connect(&mut self, transport: &Transport) -> Connecting<TcpStream> {
        let remote = SocketAddr::new(transport.address, transport.remote_port);
        Box::pin(async move {
            let reason = |error: std::io::Error| close_reason(&error);
            let stream = TcpStream::connect(remote).await.map_err(reason)?;
            let (local, remote) = (stream.local_addr().map_err(reason)?, stream.peer_addr().map_err(reason)?);
            Ok::<_, CloseReason>((stream, local, remote))
        })
    }

    fn listen(&mut self, listeners: &Listeners) {
        self.accepting.retain(|listener, _| listeners.contains_key(listener));
        for listener in listeners.keys() {
            self.accepting.entry(listener.clone()).or_insert_with(|| accept(None, listener.port));
        }
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Accepted<TcpStream>> {
        for (listener, accepting) in &mut self.accepting {
            if let Poll::Ready((bound, result)) = accepting.as_mut().poll(cx) {
                *accepting = accept(bound, listener.port);
                cx.waker().wake_by_ref();
                if let Ok((stream, remote)) = result {
                    let local = stream.local_addr().expect("an open stream");
                    return Poll::Ready(Accepted { stream, interface: listener.interface.clone(), local, remote });
                }
            }
        }
        Poll::Pending
    }

    fn set_up(&mut self, _stream: &TcpStream, _caller: &Caller) {}

    fn rekey(&mut self, _stream: &TcpStream, _address: IpAddr, _key: Option<&Key>) {}
}

/// No BFD here.
struct NoBfd;

impl Bfd for NoBfd {
    fn set(&mut self, sessions: BTreeMap<SessionId, SessionConfig>) {
        assert!(sessions.is_empty());
    }

    async fn next(&mut self) -> BTreeMap<SessionId, SessionStatus> {
        std::future::pending().await
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }
}

/// What must hold of a kernel.
type Holds = fn(&BTreeSet<Object>) -> bool;

/// A kernel that is a set.
#[derive(Clone, Default)]
pub struct SimKernel(Rc<Inner>);

#[derive(Default)]
struct Inner {
    objects: RefCell<BTreeSet<Object>>,
    links: RefCell<BTreeMap<u32, Link>>,
    news: RefCell<VecDeque<News>>,
    notify: Notify,
    /// What must hold after every batch.
    always: RefCell<Option<Holds>>,
}

impl SimKernel {
    /// What it holds.
    pub fn objects(&self) -> BTreeSet<Object> {
        self.0.objects.borrow().clone()
    }

    /// Waits until it holds what is wanted, a minute at most.
    pub async fn until(&self, wanted: impl Fn(&BTreeSet<Object>) -> bool) {
        for _ in 0..60_000 {
            if wanted(&self.0.objects.borrow()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("the kernel holds {:#?}", self.0.objects.borrow());
    }

    /// From now on this must hold after every batch.
    pub fn always(&self, holds: Option<Holds>) {
        *self.0.always.borrow_mut() = holds;
    }

    /// Someone else deletes objects.
    pub fn delete(&self, which: impl Fn(&Object) -> bool) {
        let removed: BTreeSet<Object> =
            self.0.objects.borrow().iter().filter(|object| which(object)).cloned().collect();
        self.0.objects.borrow_mut().retain(|object| !removed.contains(object));
        self.tell(News::Changed(removed, BTreeSet::new()));
    }

    fn tell(&self, news: News) {
        self.0.news.borrow_mut().push_back(news);
        self.0.notify.notify_one();
    }
}

impl Kernel for SimKernel {
    fn apply(&mut self, changes: Vec<Change>) {
        let mut objects = self.0.objects.borrow_mut();
        for change in &changes {
            match change {
                Change::Add(object) => assert!(objects.insert(object.clone()), "{object:?} is added twice"),
                Change::Remove(object) => assert!(objects.remove(object), "{object:?} is not there"),
                Change::Replace { from, to } => {
                    assert!(objects.remove(from) && objects.insert(to.clone()), "{change:?}");
                }
            }
        }
        if let Some(holds) = *self.0.always.borrow() {
            assert!(holds(&objects), "after {changes:?}");
        }
        drop(objects);
        self.tell(News::Applied(Vec::new()));
    }

    fn dump(&mut self) {
        let (links, objects) = (self.0.links.borrow().clone(), self.objects());
        self.tell(News::Snapshot(Snapshot { links, objects, ..Snapshot::default() }));
    }

    async fn next(&mut self) -> News {
        loop {
            let news = self.0.news.borrow_mut().pop_front();
            match news {
                Some(news) => return news,
                None => self.0.notify.notified().await,
            }
        }
    }
}

struct Folder(watch::Receiver<Option<View>>);

impl Source for Folder {
    async fn next(&mut self) -> View {
        loop {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(view) = self.0.borrow_and_update().clone() {
                return view;
            }
        }
    }

    fn is_reached(&self) -> bool {
        true
    }
}

struct SimLb(watch::Receiver<Lb>);

impl Readiness for SimLb {
    async fn next(&mut self) -> Lb {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().clone()
    }

    fn tell(&mut self, _connectivity: Families) {}
}

/// A load balancer that is ready for `vips`.
pub fn ready(vips: &[&str]) -> Lb {
    let ready = |vip: &&str| (vip.parse().expect("a VIP"), VipReadiness { ready: true, reason: String::new() });
    let vips = vips.iter().map(ready).collect();
    Lb::Said(Said { version: VERSION, gateway: "sllb-a".into(), draining: false, vips })
}

/// What a router is on the stage.
#[derive(Clone, Copy)]
pub struct Role {
    /// What it announces.
    pub vips: &'static [&'static str],
    /// The hosts of its neighbours.
    pub peers: &'static [&'static str],
    /// Whether a load balancer is asked first.
    pub gated: bool,
}

/// A hold on a router on the stage.
pub struct Handle {
    /// Its kernel.
    pub kernel: SimKernel,
    /// Its load balancer.
    pub lb: Rc<watch::Sender<Lb>>,
    signals: mpsc::Sender<Signal>,
    ended: Rc<Cell<bool>>,
    asker: Asker,
}

impl Handle {
    /// What `martlet show status` would print.
    pub async fn status(&self) -> Status {
        self.asker.ask(|look| look.router.status(look.now)).await.expect("a driver")
    }

    /// SIGTERM.
    pub async fn stop(&self) {
        self.signals.send(Signal::Stop).await.expect("a driver");
    }

    /// Waits until its driver has ended, a minute at most.
    pub async fn ended(&self) {
        for _ in 0..60_000 {
            if self.ended.get() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("it does not end");
    }
}

/// The stage.
pub struct Sim {
    network: turmoil::Sim<'static>,
    story: Rc<RefCell<Story>>,
    seed: u64,
}

impl Sim {
    /// An empty stage.
    pub fn new(seed: u64) -> Self {
        let sim = turmoil::Builder::new()
            .rng_seed(seed)
            .simulation_duration(Duration::from_mins(5))
            .tick_duration(Duration::from_millis(1))
            .build();
        Self { network: sim, story: Rc::default(), seed }
    }

    /// Puts a router on the stage.
    pub fn router(&mut self, name: &'static str, role: Role) -> Handle {
        let kernel = SimKernel::default();
        let (lb, lb_receiver) = watch::channel(if role.gated { ready(&[]) } else { Lb::Ungated });
        let (signals, signals_receiver) = mpsc::channel(1);
        let ended = Rc::new(Cell::new(false));
        let (asker, questions) = Asker::new();
        let handle = Handle { kernel: kernel.clone(), lb: Rc::new(lb), signals, ended: ended.clone(), asker };
        let story = self.story.clone();
        let seed = self.seed;
        // Taken by the only start of the host.
        let once = RefCell::new(Some((signals_receiver, questions)));
        self.network.host(name, move || {
            let (kernel, story, ended) = (kernel.clone(), story.clone(), ended.clone());
            let mut lb = lb_receiver.clone();
            lb.mark_changed();
            let (signals, questions) = once.borrow_mut().take().expect("a host starts once");
            async move {
                let own = turmoil::lookup(name);
                let (views, mut receiver) = watch::channel(Some(view(&role)));
                receiver.mark_changed();
                kernel.0.links.borrow_mut().insert(1, link(own));
                let mut first = kernel.clone();
                first.dump();
                let world = World {
                    net: SimNet::default(),
                    bfd: NoBfd,
                    kernel,
                    source: Folder(receiver),
                    readiness: SimLb(lb),
                    signals,
                    questions,
                    vital: watch::Sender::default(),
                    clock: Clock::new(Instant::ORIGIN),
                };
                let driver = Driver::new(router(name, seed), settings(name), world, move |now, event| {
                    story.borrow_mut().push(format!("{now} {name} {} {event}", event.subject()));
                });
                driver.run().await;
                ended.set(true);
                drop(views);
                std::future::pending().await
            }
        });
        handle
    }

    /// What happens on the stage; the play ends with it.
    pub fn script(&mut self, script: impl Future<Output = ()> + 'static) {
        self.network.client("script", async move {
            script.await;
            Ok(())
        });
    }

    /// Plays.
    pub fn run(mut self) -> Story {
        self.network.run().expect("a play without a fault");
        self.story.borrow().clone()
    }
}

fn settings(name: &str) -> Settings {
    let (local_as, remote_as) = if name.starts_with("gateway") { (65_002, 65_001) } else { (65_001, 65_002) };
    Settings { external_interface: "eth0".into(), local_as, remote_as, ..Settings::default() }
}

fn router(name: &str, seed: u64) -> Router {
    Router::new(Config {
        identity: Identity { router_id: None, name: name.into() },
        external_interface: "eth0".into(),
        table: 4096,
        adopt: Duration::from_secs(10),
        leave: Duration::ZERO,
        drain: Duration::from_secs(2),
        seed,
    })
}

fn link(address: IpAddr) -> Link {
    let IpAddr::V4(v4) = address else { unreachable!("turmoil gives IPv4 unless told otherwise") };
    let addresses = [IpNet::V4(Ipv4Net::new(v4, 16).expect("16 bits"))].into();
    Link { index: 1, name: "eth0".into(), up: true, carrier: true, mtu: 1500, addresses }
}

fn view(role: &Role) -> View {
    let router = |peer: &&'static str| {
        let protocol = Protocol::Bgp(Box::<Bgp>::default());
        let address = turmoil::lookup(*peer);
        (Arc::from(*peer), GatewayRouter { address, interface: None, description: None, protocol })
    };
    View {
        gateway: ObjectName { namespace: "default".into(), name: "sllb-a".into() },
        exists: true,
        routers: role.peers.iter().map(router).collect(),
        routes: BTreeMap::new(),
        services: BTreeMap::new(),
        vips: role.vips.iter().map(|vip| vip.parse().expect("a VIP")).collect(),
        subnets: BTreeSet::new(),
        conditions: BTreeSet::new(),
    }
}
