//! What the product's driver touches, over turmoil-net: TCP and UDP of both families, a kernel that is a set, objects and a
//! load balancer in watches.
//!
//! The network itself (delay, loss, partitions, machines that die) is in `driven`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use martlet_api::readiness::Families;
use martlet_api::view::View;
use martlet_bfd::{Input, Meta, Output, SessionConfig, SessionId, SessionStatus, Sessions};
use martlet_bgp::{CloseReason, Family};
use martlet_netlink::{Change, Object};
use martlet_router::core::{Caller, Listener, Listeners};
use martlet_router::driver::{Accepted, Bfd, Clock, Connecting, Kernel, Net, News, Readiness, Source};
use martlet_router::gate::Lb;
use martlet_router::intent::{Key, Transport};
use martlet_router::wires::close_reason;
use tokio::sync::{Notify, watch};
use turmoil_net::shim::tokio::net::{TcpListener, TcpStream, UdpSocket};

/// The addresses of a host: IPv4, IPv6.
pub type Addresses = [IpAddr; 2];
/// RFC 5881 section 4.
const BFD_PORT: u16 = 3784;

/// A listener that waits for the next connection; it comes back with it.
pub type Accepting = Pin<Box<dyn Future<Output = (Option<TcpListener>, std::io::Result<(TcpStream, SocketAddr)>)>>>;

/// TCP of turmoil-net.
pub struct SimNet {
    addresses: Addresses,
    /// Which life of the process: its ports are so much higher (see `hosts`).
    life: u16,
    accepting: BTreeMap<Listener, Accepting>,
}

impl SimNet {
    /// TCP of a host.
    pub fn new(addresses: Addresses, life: u16) -> Self {
        Self { addresses, life, accepting: BTreeMap::new() }
    }
}

/// A stream on its way.
pub type Opening = Pin<Box<dyn Future<Output = std::io::Result<TcpStream>>>>;

/// Opens a connection to `remote`.
pub fn open(remote: SocketAddr) -> Opening {
    Box::pin(TcpStream::connect(remote))
}

/// Waits for a connection at `at`.
pub fn accept(listener: Option<TcpListener>, at: SocketAddr) -> Accepting {
    Box::pin(async move {
        let listener = match listener {
            Some(listener) => listener,
            None => match TcpListener::bind(at).await {
                Ok(listener) => listener,
                Err(error) => {
                    // What held the port goes soon.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    return (None, Err(error));
                }
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
            let stream = open(remote).await.map_err(reason)?;
            let (local, remote) = (stream.local_addr().map_err(reason)?, stream.peer_addr().map_err(reason)?);
            Ok::<_, CloseReason>((stream, local, remote))
        })
    }

    fn listen(&mut self, listeners: &Listeners) {
        self.accepting.retain(|listener, _| listeners.contains_key(listener));
        for listener in listeners.keys() {
            let address = self.addresses[usize::from(listener.family == Family::Ipv6)];
            let at = SocketAddr::new(address, listener.port + self.life);
            self.accepting.entry(listener.clone()).or_insert_with(|| accept(None, at));
        }
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Accepted<TcpStream>> {
        for (listener, accepting) in &mut self.accepting {
            if let Poll::Ready((bound, result)) = accepting.as_mut().poll(cx) {
                let address = self.addresses[usize::from(listener.family == Family::Ipv6)];
                *accepting = accept(bound, SocketAddr::new(address, listener.port + self.life));
                cx.waker().wake_by_ref();
                if let Ok((stream, remote)) = result
                    && let Ok(mut local) = stream.local_addr()
                {
                    local.set_port(listener.port);
                    return Poll::Ready(Accepted { stream, interface: listener.interface.clone(), local, remote });
                }
            }
        }
        Poll::Pending
    }

    fn set_up(&mut self, _stream: &TcpStream, _caller: &Caller) {}

    fn rekey(&mut self, _stream: &TcpStream, _address: IpAddr, _key: Option<&Key>) {}
}

/// BFD in the task of the driver: the product's sessions over UDP.
pub struct SimBfd {
    sessions: Sessions,
    sockets: [UdpSocket; 2],
    addresses: Addresses,
    clock: Clock,
    told: BTreeMap<SessionId, SessionStatus>,
}

impl SimBfd {
    /// BFD of a host; to be called on it.
    pub async fn new(addresses: Addresses, clock: Clock, seed: u64) -> std::io::Result<Self> {
        let [four, six] = addresses;
        let sockets = [UdpSocket::bind((four, BFD_PORT)).await?, UdpSocket::bind((six, BFD_PORT)).await?];
        Ok(Self { sessions: Sessions::new(seed), sockets, addresses, clock, told: BTreeMap::new() })
    }

    /// Sends what is due. A datagram that cannot be sent is one that is lost.
    fn flush(&mut self) {
        while let Some(output) = self.sessions.poll() {
            if let Output::Transmit(id, payload) = output {
                let socket = &self.sockets[usize::from(id.remote.is_ipv6())];
                let _ = socket.try_send_to(&payload, SocketAddr::new(id.remote, BFD_PORT));
            }
        }
    }
}

impl Bfd for SimBfd {
    fn set(&mut self, sessions: BTreeMap<SessionId, SessionConfig>) {
        self.sessions.handle(self.clock.now(), Input::SetSessions(&sessions));
        self.flush();
    }

    async fn next(&mut self) -> BTreeMap<SessionId, SessionStatus> {
        loop {
            self.flush();
            let status = self.sessions.status();
            if status != self.told {
                self.told.clone_from(&status);
                return status;
            }
            let (mut four, mut six) = ([0; 128], [0; 128]);
            let heard = tokio::select! {
                biased;
                heard = self.sockets[0].recv_from(&mut four) => heard.map(|(count, from)| (0, count, from)),
                heard = self.sockets[1].recv_from(&mut six) => heard.map(|(count, from)| (1, count, from)),
                () = self.clock.sleep_until(self.sessions.deadline()) => {
                    self.sessions.handle(self.clock.now(), Input::Timeout);
                    continue;
                }
            };
            let Ok((family, count, from)) = heard else { continue };
            let octets = if family == 0 { &four } else { &six };
            let meta = Meta {
                remote: from.ip(),
                local: self.addresses[family],
                interface: Some("eth0".into()),
                ttl: 255,
                multihop: false,
            };
            self.sessions.handle(self.clock.now(), Input::Received(&meta, octets.get(..count).unwrap_or_default()));
        }
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }
}

/// A kernel that outlives the process above it.
#[derive(Clone, Default)]
pub struct SharedKernel(Rc<Inner>);

#[derive(Default)]
struct Inner {
    kernel: RefCell<crate::kernel::Kernel>,
    news: RefCell<VecDeque<News>>,
    notify: Notify,
}

impl SharedKernel {
    /// Looks at it.
    pub fn look<T>(&self, look: impl FnOnce(&mut crate::kernel::Kernel) -> T) -> T {
        look(&mut self.0.kernel.borrow_mut())
    }

    /// A new process reads it.
    pub fn open(&self) {
        self.0.news.borrow_mut().clear();
        self.clone().dump();
    }

    /// Someone else deletes every `nth` object.
    pub fn delete(&self, nth: usize) {
        let removed = self.0.kernel.borrow_mut().foreign_delete(nth);
        self.tell(News::Changed(removed, BTreeSet::<Object>::new()));
    }

    fn tell(&self, news: News) {
        self.0.news.borrow_mut().push_back(news);
        self.0.notify.notify_one();
    }
}

impl Kernel for SharedKernel {
    fn apply(&mut self, changes: Vec<Change>) {
        let failures = self.0.kernel.borrow_mut().apply(&changes);
        self.tell(News::Applied(failures));
    }

    fn dump(&mut self) {
        let snapshot = self.0.kernel.borrow().snapshot();
        self.tell(News::Snapshot(snapshot));
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

/// Objects that never change.
#[derive(Debug)]
pub struct Fixed(pub Option<View>);

impl Source for Fixed {
    async fn next(&mut self) -> View {
        match self.0.take() {
            Some(view) => view,
            None => std::future::pending().await,
        }
    }

    fn is_reached(&self) -> bool {
        true
    }
}

/// The word of a load balancer.
#[derive(Debug)]
pub struct Word(pub watch::Receiver<Lb>);

impl Readiness for Word {
    async fn next(&mut self) -> Lb {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().clone()
    }

    fn tell(&mut self, _connectivity: Families) {}
}
