//! TCP of the kernel: listeners and connections that belong to an interface, with passwords and TTLs.
//!
//! A connection from another interface never arrives; one from an unknown source is closed by the driver before a byte of
//! it is read. It knows no BGP.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::task::{Context, Poll};
use std::time::Duration;

use martlet_bgp::{CloseReason, Family};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tracing::{info, warn};

use crate::core::{Caller, Listener, Listeners};
use crate::driver::{Accepted, Connecting, Net};
use crate::intent::{Key, Transport};
use crate::net_ao::{self, AoKey};
use crate::sys;
use crate::wires::close_reason;

/// Between two attempts to bind a listener that could not be bound.
const RETRY: Duration = Duration::from_secs(1);
/// How long a connect may take. The core tries anew long before.
const CONNECT_TIME: Duration = Duration::from_secs(30);
/// Internetwork control (RFC 4271 section 5 of RFC 1812's precedence; DSCP CS6).
const TOS: u32 = 0xc0;
/// Unsent octets above which a socket does not want more: what is withdrawn must not wait behind a full socket.
const UNSENT: u32 = 64 * 1024;

/// The kernel's TCP.
#[derive(Debug, Default)]
pub struct KernelNet {
    wanted: Listeners,
    bound: BTreeMap<Listener, Bound>,
    retry: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

#[derive(Debug)]
struct Bound {
    socket: TcpListener,
    keys: BTreeMap<IpAddr, Key>,
    ao: BTreeMap<IpAddr, AoKey>,
    /// Whose key the kernel refused.
    unprotected: BTreeSet<IpAddr>,
}

impl KernelNet {
    /// Nothing is listened on.
    pub fn new() -> Self {
        Self::default()
    }

    fn bind_missing(&mut self) {
        let mut failed = false;
        for (listener, callers) in &self.wanted {
            if let Some(bound) = self.bound.get_mut(listener) {
                bound.update_keys(callers);
                continue;
            }
            match bind(listener, callers) {
                Ok(bound) => {
                    info!(interface = %listener.interface, port = listener.port, family = ?listener.family, "listening");
                    self.bound.insert(listener.clone(), bound);
                }
                Err(error) => {
                    if self.retry.is_none() {
                        warn!(interface = %listener.interface, port = listener.port, family = ?listener.family, %error,
                            "cannot listen; tried again every second");
                    }
                    failed = true;
                }
            }
        }
        self.retry = failed.then(|| Box::pin(tokio::time::sleep(RETRY)));
    }
}

impl Bound {
    /// Passwords change on the living socket: sessions that exist keep theirs.
    fn update_keys(&mut self, callers: &BTreeMap<IpAddr, Caller>) {
        let wanted: BTreeMap<IpAddr, Key> =
            callers.iter().filter_map(|(address, caller)| Some((*address, caller.key.clone()?))).collect();
        for address in self.keys.keys().filter(|address| !wanted.contains_key(*address)) {
            log_key(&sys::set_md5(self.socket.as_fd(), *address, &[]), *address);
        }
        for (address, key) in wanted.iter().filter(|(address, key)| self.keys.get(*address) != Some(*key)) {
            let set = log_key(&sys::set_md5(self.socket.as_fd(), *address, &key.0), *address);
            note(&mut self.unprotected, *address, set);
        }
        self.keys = wanted;
        let wanted: BTreeMap<IpAddr, AoKey> =
            callers.iter().filter_map(|(address, caller)| Some((*address, caller.ao.clone()?))).collect();
        for (address, key) in self.ao.iter().filter(|(address, key)| wanted.get(*address) != Some(*key)) {
            log_key(&net_ao::delete(self.socket.as_fd(), *address, key), *address);
        }
        for (address, key) in wanted.iter().filter(|(address, key)| self.ao.get(*address) != Some(*key)) {
            let set = log_key(&net_ao::add(self.socket.as_fd(), *address, key), *address);
            note(&mut self.unprotected, *address, set);
        }
        self.ao = wanted;
        let (keys, ao) = (&self.keys, &self.ao);
        self.unprotected.retain(|address| keys.contains_key(address) || ao.contains_key(address));
    }
}

/// A neighbour whose key the kernel refused must not get in without one.
fn note(unprotected: &mut BTreeSet<IpAddr>, address: IpAddr, is_set: bool) {
    if is_set {
        unprotected.remove(&address);
    } else {
        unprotected.insert(address);
    }
}

/// Whether it is as it should be.
fn log_key(result: &io::Result<()>, address: IpAddr) -> bool {
    if let Err(error) = result {
        warn!(%address, %error, "the kernel did not take the TCP password or key of this neighbour");
    }
    result.is_ok()
}

fn new_socket(address: IpAddr, interface: &str) -> io::Result<Socket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    Ok(socket)
}

/// What every connection has.
fn tune(socket: &socket2::SockRef<'_>, is_v4: bool, ttl: u8, min_ttl: Option<u8>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    sys::set_unsent_low_water(socket.as_fd(), UNSENT)?;
    if is_v4 {
        socket.set_ttl_v4(u32::from(ttl))?;
        socket.set_tos_v4(TOS)?;
    } else {
        socket.set_unicast_hops_v6(u32::from(ttl))?;
        socket.set_tclass_v6(TOS)?;
    }
    match min_ttl {
        Some(min_ttl) => sys::set_min_ttl(socket.as_fd(), is_v4, min_ttl),
        None => Ok(()),
    }
}

fn bind(listener: &Listener, callers: &BTreeMap<IpAddr, Caller>) -> io::Result<Bound> {
    let any = match listener.family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = new_socket(any, &listener.interface)?;
    socket.set_reuse_address(true)?;
    if any.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The answer to a SYN goes out before we know whose it is: with the TTL that the strictest neighbour asks for.
    let ttl = callers.values().map(|caller| caller.ttl).max().unwrap_or(1);
    tune(&socket2::SockRef::from(&socket), any.is_ipv4(), ttl, None)?;
    socket.bind(&SocketAddr::new(any, listener.port).into())?;
    socket.listen(64)?;
    let socket = TcpListener::from_std(socket.into())?;
    let mut bound = Bound { socket, keys: BTreeMap::new(), ao: BTreeMap::new(), unprotected: BTreeSet::new() };
    bound.update_keys(callers);
    Ok(bound)
}

fn prepare(transport: &Transport) -> io::Result<(TcpSocket, SocketAddr)> {
    let address = transport.address;
    let socket = new_socket(address, &transport.interface)?;
    tune(&socket2::SockRef::from(&socket), address.is_ipv4(), transport.ttl, transport.min_ttl)?;
    if let Some(key) = &transport.key {
        sys::set_md5(socket.as_fd(), address, &key.0)?;
    }
    if let Some(key) = &transport.ao {
        net_ao::add(socket.as_fd(), address, key)?;
    }
    if let Some(source) = transport.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    let remote = match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            let scope = sys::interface_index(&transport.interface)?;
            SocketAddr::V6(SocketAddrV6::new(v6, transport.remote_port, 0, scope))
        }
        address => SocketAddr::new(address, transport.remote_port),
    };
    Ok((TcpSocket::from_std_stream(socket.into()), remote))
}

/// Connects a socket that is ready to, or says why it is not.
pub(crate) fn connecting(prepared: io::Result<(TcpSocket, SocketAddr)>) -> Connecting<TcpStream> {
    Box::pin(async move {
        let reason = |error: io::Error| close_reason(&error);
        let (socket, remote) = prepared.map_err(reason)?;
        let connect = tokio::time::timeout(CONNECT_TIME, socket.connect(remote));
        let stream = connect.await.map_err(|_| CloseReason::NoAnswer)?.map_err(reason)?;
        let (local, remote) = (stream.local_addr().map_err(reason)?, stream.peer_addr().map_err(reason)?);
        Ok((stream, local, remote))
    })
}

impl Net for KernelNet {
    type Stream = TcpStream;

    fn connect(&mut self, transport: &Transport) -> Connecting<TcpStream> {
        connecting(prepare(transport))
    }

    fn listen(&mut self, listeners: &Listeners) {
        self.bound.retain(|listener, _| listeners.contains_key(listener));
        self.wanted.clone_from(listeners);
        self.retry = None;
        self.bind_missing();
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Accepted<TcpStream>> {
        while self.retry.as_mut().is_some_and(|retry| retry.as_mut().poll(cx).is_ready()) {
            self.bind_missing();
        }
        for (listener, bound) in &self.bound {
            // What was reset before we took it is no news.
            while let Poll::Ready(result) = bound.socket.poll_accept(cx) {
                let Ok((stream, remote)) = result else { continue };
                if bound.unprotected.contains(&remote.ip()) {
                    continue;
                }
                let Ok(local) = stream.local_addr() else { continue };
                return Poll::Ready(Accepted { stream, interface: listener.interface.clone(), local, remote });
            }
        }
        Poll::Pending
    }

    fn set_up(&mut self, stream: &TcpStream, caller: &Caller) {
        let is_v4 = stream.local_addr().is_ok_and(|local| local.is_ipv4());
        if let Err(error) = tune(&socket2::SockRef::from(stream), is_v4, caller.ttl, caller.min_ttl) {
            warn!(%error, "an accepted connection could not be set up");
        }
    }

    fn rekey(&mut self, stream: &TcpStream, address: IpAddr, key: Option<&Key>) {
        let key = key.map(|key| &*key.0).unwrap_or_default();
        let _ = log_key(&sys::set_md5(stream.as_fd(), address, key), address);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const GENEROUS: Duration = Duration::from_secs(20);

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn key(text: &str) -> Key {
        Key(text.as_bytes().into())
    }

    fn listeners(port: u16, key: Option<Key>) -> Listeners {
        let listener = Listener { interface: "lo".into(), index: 1, family: Family::Ipv4, port };
        let caller = Caller { key, ao: None, ttl: 1, min_ttl: None };
        [(listener, [(IpAddr::V4(Ipv4Addr::LOCALHOST), caller)].into())].into()
    }

    fn transport(port: u16, key: Option<Key>) -> Transport {
        Transport {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            interface: Arc::from("lo"),
            local_port: port,
            remote_port: port,
            source: None,
            ttl: 1,
            min_ttl: None,
            multihop: false,
            key,
            ao: None,
        }
    }

    async fn accept(net: &mut KernelNet) -> Accepted<TcpStream> {
        tokio::time::timeout(GENEROUS, poll_fn(|cx| net.poll_accept(cx))).await.expect("a connection")
    }

    #[tokio::test]
    async fn a_connection_belongs_to_its_interface_and_carries_bytes() {
        let port = free_port();
        let mut net = KernelNet::new();
        net.listen(&listeners(port, None));
        let mut other = KernelNet::new();
        let connecting = other.connect(&transport(port, None));
        let (accepted, opened) = tokio::join!(accept(&mut net), connecting);
        let (mut stream, local, remote) = opened.unwrap();
        assert_eq!(&*accepted.interface, "lo");
        assert_eq!((accepted.remote, accepted.local), (local, remote));
        net.set_up(&accepted.stream, &Caller { key: None, ao: None, ttl: 255, min_ttl: None });
        stream.write_all(b"open").await.unwrap();
        let mut bytes = [0; 4];
        let mut theirs = accepted.stream;
        theirs.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"open");
    }

    #[tokio::test]
    async fn nobody_listening_is_a_refusal_and_no_interface_has_a_name() {
        let mut net = KernelNet::new();
        let refused = net.connect(&transport(free_port(), None)).await;
        assert_eq!(refused.unwrap_err(), CloseReason::Refused);
        let missing = Transport { interface: "no-such-link".into(), ..transport(1, None) };
        let Err(CloseReason::Other(text)) = net.connect(&missing).await else { panic!("connected") };
        assert!(text.contains("No such device"), "{text}");
    }

    #[tokio::test]
    async fn a_wrong_password_is_never_answered_and_one_rolled_on_the_living_listener_is() {
        let port = free_port();
        let mut net = KernelNet::new();
        net.listen(&listeners(port, Some(key("old"))));
        let mut other = KernelNet::new();
        // The kernel drops the SYN: nothing ever comes back.
        let wrong = other.connect(&transport(port, Some(key("new"))));
        tokio::select! {
            biased;
            opened = wrong => panic!("{opened:?}"),
            _ = poll_fn(|cx| net.poll_accept(cx)) => panic!("accepted with a wrong password"),
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
        net.listen(&listeners(port, Some(key("new"))));
        let right = other.connect(&transport(port, Some(key("new"))));
        let (accepted, opened) = tokio::join!(accept(&mut net), right);
        let (mut stream, ..) = opened.unwrap();
        let mut theirs = accepted.stream;
        // And on the living connection, both ends: no new session.
        net.rekey(&theirs, stream.local_addr().unwrap().ip(), Some(&key("newer")));
        other.rekey(&stream, theirs.local_addr().unwrap().ip(), Some(&key("newer")));
        stream.write_all(b"still").await.unwrap();
        let mut bytes = [0; 5];
        tokio::time::timeout(GENEROUS, theirs.read_exact(&mut bytes)).await.unwrap().unwrap();
        assert_eq!(&bytes, b"still");
    }

    #[tokio::test]
    async fn what_is_no_longer_wanted_is_no_longer_listened_on() {
        let port = free_port();
        let mut net = KernelNet::new();
        net.listen(&listeners(port, None));
        net.listen(&Listeners::new());
        let refused = KernelNet::new().connect(&transport(port, None)).await;
        assert_eq!(refused.unwrap_err(), CloseReason::Refused);
    }
}
