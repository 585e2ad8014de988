//! TCP of a plain speaker: listeners at addresses, connections that belong to no interface.
//!
//! What it shares with the router's network ([`crate::net`]) is the loop above it; it knows no BGP.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::task::{Context, Poll};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tracing::warn;

use crate::core::{Caller, Listeners};
use crate::driver::{Accepted, Connecting, Net};
use crate::intent::{Key, Transport};
use crate::net::connecting;
use crate::sys;

/// Unsent octets above which a socket does not want more.
const UNSENT: u32 = 64 * 1024;

/// Listeners that are bound once, at the start.
#[derive(Debug)]
pub struct PlainNet {
    listeners: Vec<TcpListener>,
}

impl PlainNet {
    /// Listens at `addresses`, with the passwords of those neighbours that have one.
    ///
    /// # Errors
    /// When an address cannot be bound, or the kernel knows no TCP MD5; names the address.
    pub fn bind(addresses: &[SocketAddr], keys: &BTreeMap<IpAddr, Key>) -> io::Result<Self> {
        let named =
            |address: SocketAddr| move |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
        let listeners = addresses.iter().map(|address| listen(*address, keys).map_err(named(*address)));
        Ok(Self { listeners: listeners.collect::<io::Result<_>>()? })
    }
}

fn listen(address: SocketAddr, keys: &BTreeMap<IpAddr, Key>) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    for (neighbor, key) in keys.iter().filter(|(neighbor, _)| neighbor.is_ipv4() == address.is_ipv4()) {
        sys::set_md5(socket.as_fd(), *neighbor, &key.0)?;
    }
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

fn tune(socket: &SockRef<'_>, is_v4: bool, ttl: u8, min_ttl: Option<u8>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    sys::set_unsent_low_water(socket.as_fd(), UNSENT)?;
    if is_v4 {
        socket.set_ttl_v4(u32::from(ttl))?;
    } else {
        socket.set_unicast_hops_v6(u32::from(ttl))?;
    }
    min_ttl.map_or(Ok(()), |min_ttl| sys::set_min_ttl(socket.as_fd(), is_v4, min_ttl))
}

fn prepare(transport: &Transport) -> io::Result<(TcpSocket, SocketAddr)> {
    let remote = SocketAddr::new(transport.address, transport.remote_port);
    let socket = Socket::new(Domain::for_address(remote), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    tune(&SockRef::from(&socket), remote.is_ipv4(), transport.ttl, transport.min_ttl)?;
    if let Some(key) = &transport.key {
        sys::set_md5(socket.as_fd(), transport.address, &key.0)?;
    }
    if let Some(source) = transport.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok((TcpSocket::from_std_stream(socket.into()), remote))
}

impl Net for PlainNet {
    type Stream = TcpStream;

    fn connect(&mut self, transport: &Transport) -> Connecting<TcpStream> {
        connecting(prepare(transport))
    }

    fn listen(&mut self, _listeners: &Listeners) {}

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Accepted<TcpStream>> {
        for listener in &self.listeners {
            while let Poll::Ready(result) = listener.poll_accept(cx) {
                let Ok((stream, remote)) = result else { continue };
                let Ok(local) = stream.local_addr() else { continue };
                return Poll::Ready(Accepted { stream, interface: "".into(), local, remote });
            }
        }
        Poll::Pending
    }

    fn set_up(&mut self, stream: &TcpStream, caller: &Caller) {
        let is_v4 = stream.local_addr().is_ok_and(|local| local.is_ipv4());
        if let Err(error) = tune(&SockRef::from(stream), is_v4, caller.ttl, caller.min_ttl) {
            warn!(%error, "an accepted connection could not be set up");
        }
    }

    fn rekey(&mut self, stream: &TcpStream, address: IpAddr, key: Option<&Key>) {
        let secret = key.map_or(&[][..], |key| &key.0);
        if let Err(error) = sys::set_md5(stream.as_fd(), address, secret) {
            warn!(%address, %error, "the password of this neighbour could not be changed");
        }
    }
}
