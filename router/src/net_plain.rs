//! TCP of a plain speaker: listeners at addresses, connections that belong to no interface.
//!
//! What it shares with the router's network ([`crate::net`]) is the loop above it; it knows no BGP.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::task::{Context, Poll};

use ipnet::IpNet;
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
    /// Listens at `addresses`, with the passwords of those neighbours, or prefixes of them, that have one.
    ///
    /// # Errors
    /// When an address cannot be bound, or the kernel knows no TCP MD5; names the address.
    pub fn bind(addresses: &[SocketAddr], keys: &BTreeMap<IpNet, Key>) -> io::Result<Self> {
        let named =
            |address: SocketAddr| move |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
        let listeners = addresses.iter().map(|address| listen(*address, keys).map_err(named(*address)));
        Ok(Self { listeners: listeners.collect::<io::Result<_>>()? })
    }
}

fn listen(address: SocketAddr, keys: &BTreeMap<IpNet, Key>) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    for (neighbor, key) in keys.iter().filter(|(neighbor, _)| neighbor.addr().is_ipv4() == address.is_ipv4()) {
        if neighbor.prefix_len() == neighbor.max_prefix_len() {
            sys::set_md5(socket.as_fd(), neighbor.addr(), &key.0)?;
        } else {
            sys::set_md5_prefix(socket.as_fd(), *neighbor, &key.0)?;
        }
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn transport(port: u16, key: &str) -> Transport {
        Transport {
            address: "127.0.0.1".parse().unwrap(),
            interface: Arc::from(""),
            local_port: 0,
            remote_port: port,
            source: Some("127.0.0.7".parse().unwrap()),
            ttl: 64,
            min_ttl: None,
            multihop: false,
            key: Some(Key(key.as_bytes().into())),
            ao: None,
        }
    }

    #[tokio::test]
    async fn a_password_of_a_prefix_is_asked_of_every_address_of_it() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let keys = [("127.0.0.0/24".parse().unwrap(), Key((*b"secret").into()))].into();
        let mut net = PlainNet::bind(&[SocketAddr::from(([127, 0, 0, 1], port))], &keys).unwrap();
        let mut other = PlainNet::bind(&[], &BTreeMap::new()).unwrap();
        let wrong = other.connect(&transport(port, "wrong"));
        tokio::select! {
            biased;
            opened = wrong => panic!("{opened:?}"),
            _ = poll_fn(|cx| net.poll_accept(cx)) => panic!("accepted with a wrong password"),
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
        let right = other.connect(&transport(port, "secret"));
        let accept = tokio::time::timeout(Duration::from_secs(20), poll_fn(|cx| net.poll_accept(cx)));
        let (accepted, opened) = tokio::join!(accept, right);
        assert_eq!(accepted.unwrap().remote, opened.unwrap().1);
    }
}
