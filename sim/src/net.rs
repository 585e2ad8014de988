//! What the product's driver touches, over turmoil: TCP, a kernel that is a set, objects and a load balancer in watches.
//!
//! The network is turmoil's: latency, partitions, held links, hosts that crash. There is no BFD here: `world` has it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use martlet_api::readiness::Families;
use martlet_api::view::View;
use martlet_bfd::{SessionConfig, SessionId, SessionStatus};
use martlet_bgp::CloseReason;
use martlet_netlink::{Change, Object};
use martlet_router::core::{Caller, Listener, Listeners};
use martlet_router::driver::{Accepted, Bfd, Connecting, Kernel, Net, News, Readiness, Source};
use martlet_router::gate::Lb;
use martlet_router::intent::{Key, Transport};
use martlet_router::wires::close_reason;
use tokio::sync::{Notify, watch};
use turmoil::net::{TcpListener, TcpStream};

type Accepting = Pin<Box<dyn Future<Output = (Option<TcpListener>, std::io::Result<(TcpStream, SocketAddr)>)>>>;

/// TCP of turmoil.
#[derive(Default)]
pub struct SimNet {
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
                if let Ok((stream, remote)) = result
                    && let Ok(local) = stream.local_addr()
                {
                    return Poll::Ready(Accepted { stream, interface: listener.interface.clone(), local, remote });
                }
            }
        }
        Poll::Pending
    }

    fn set_up(&mut self, _stream: &TcpStream, _caller: &Caller) {}

    fn rekey(&mut self, _stream: &TcpStream, _address: IpAddr, _key: Option<&Key>) {}
}

/// No BFD.
#[derive(Debug)]
pub struct NoBfd;

impl Bfd for NoBfd {
    fn set(&mut self, _sessions: BTreeMap<SessionId, SessionConfig>) {}

    async fn next(&mut self) -> BTreeMap<SessionId, SessionStatus> {
        std::future::pending().await
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
