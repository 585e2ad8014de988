//! The sockets of the BFD thread: one to receive and one to send, for each interface and family.
//!
//! They follow the interfaces: one that comes back with another index gets new sockets. RFC 5881 wants a source port of its
//! own for each session (a SHOULD); one socket for all of them lets sends go out in batches instead.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use martlet_bfd::SessionId;
use martlet_clock::Dice;
use socket2::{Domain, Protocol, Socket, Type};

use super::sys;

/// Control packets of one hop (RFC 5881 section 4).
const SINGLE_HOP: u16 = 3784;
/// Control packets of several hops (RFC 5883 section 5).
const MULTIHOP: u16 = 4784;
/// Source ports (RFC 5881 section 4): from here to the last.
const FIRST_SOURCE_PORT: u16 = 49152;
/// How many source ports are tried before we give up until the next refresh.
const TRIES: usize = 64;
/// Room for what waits in a receiving socket: a thousand sessions at 50 ms send 20 packets a millisecond, and each takes up
/// almost 1 KiB. The kernel's default holds 14 ms of that, this a quarter of a second.
const ROOM: i32 = 2 << 20;
/// Class selector 6, network control.
const CS6: u32 = 48 << 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    Ipv4,
    Ipv6,
}

/// Where packets come and go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The interface of single-hop sessions; `None`: several hops.
    pub interface: Option<Arc<str>>,
    family: Family,
}

impl Place {
    /// Where the packets of a session come and go.
    pub fn of(session: &SessionId) -> Self {
        let family = if session.remote.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        Self { interface: session.interface.clone(), family }
    }

    pub const fn is_ipv6(&self) -> bool {
        matches!(self.family, Family::Ipv6)
    }
}

/// The two sockets of a place.
#[derive(Debug)]
pub(super) struct Pair {
    receive: Socket,
    transmit: Socket,
    index: u32,
}

impl Pair {
    pub fn transmit(&self) -> BorrowedFd<'_> {
        self.transmit.as_fd()
    }

    pub fn receive(&self) -> BorrowedFd<'_> {
        self.receive.as_fd()
    }

    /// The address that a packet of this session goes to.
    pub fn destination(&self, session: &SessionId) -> SocketAddr {
        let port = if session.interface.is_some() { SINGLE_HOP } else { MULTIHOP };
        match session.remote {
            IpAddr::V6(remote) if remote.is_unicast_link_local() => {
                SocketAddrV6::new(remote, port, 0, self.index).into()
            }
            remote => SocketAddr::new(remote, port),
        }
    }
}

/// All sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    wanted: BTreeSet<Place>,
    open: BTreeMap<Place, Pair>,
    /// Why a place has no sockets, as it was reported.
    failed: BTreeMap<Place, String>,
    dice: Dice,
}

impl Sockets {
    pub const fn new(seed: u64) -> Self {
        Self { wanted: BTreeSet::new(), open: BTreeMap::new(), failed: BTreeMap::new(), dice: Dice::new(seed) }
    }

    /// The places that are used from now on.
    pub fn want(&mut self, wanted: BTreeSet<Place>) {
        self.open.retain(|place, _| wanted.contains(place));
        self.failed.retain(|place, _| wanted.contains(place));
        self.wanted = wanted;
    }

    pub fn open(&self) -> &BTreeMap<Place, Pair> {
        &self.open
    }

    pub fn get(&self, place: &Place) -> Option<&Pair> {
        self.open.get(place)
    }

    /// Closes the sockets of interfaces that went, opens those of interfaces that came; says what newly went wrong.
    pub fn refresh(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        for place in &self.wanted {
            let index = match &place.interface {
                Some(interface) => sys::interface_index(interface),
                None => Some(0),
            };
            if self.open.get(place).is_some_and(|pair| Some(pair.index) != index) {
                self.open.remove(place);
            }
            if self.open.contains_key(place) {
                continue;
            }
            let opened = match index {
                Some(index) => open(place, index, &mut self.dice).map_err(|error| error.to_string()),
                None => Err(String::from("no such interface")),
            };
            match opened {
                Ok(pair) => {
                    self.open.insert(place.clone(), pair);
                    self.failed.remove(place);
                }
                Err(error) => {
                    let told = format!("{}: {error}", place.interface.as_deref().unwrap_or("multihop"));
                    if self.failed.insert(place.clone(), error.clone()).as_ref() != Some(&error) {
                        problems.push(told);
                    }
                }
            }
        }
        problems
    }
}

fn open(place: &Place, index: u32, dice: &mut Dice) -> io::Result<Pair> {
    let port = if place.interface.is_some() { SINGLE_HOP } else { MULTIHOP };
    let receive = socket(place)?;
    sys::tell_ttl_and_destination(receive.as_fd(), place.family == Family::Ipv6)?;
    sys::tell_arrival(receive.as_fd())?;
    sys::make_room(receive.as_fd(), ROOM)?;
    receive.bind(&any(place.family, port).into())?;
    let transmit = socket(place)?;
    match place.family {
        Family::Ipv4 => {
            transmit.set_ttl_v4(255)?;
            transmit.set_tos_v4(CS6)?;
        }
        Family::Ipv6 => {
            transmit.set_unicast_hops_v6(255)?;
            transmit.set_tclass_v6(CS6)?;
        }
    }
    bind_source_port(&transmit, place.family, dice)?;
    Ok(Pair { receive, transmit, index })
}

fn socket(place: &Place) -> io::Result<Socket> {
    let domain = match place.family {
        Family::Ipv4 => Domain::IPV4,
        Family::Ipv6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if place.family == Family::Ipv6 {
        socket.set_only_v6(true)?;
    }
    if let Some(interface) = &place.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    Ok(socket)
}

fn any(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::Ipv4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        Family::Ipv6 => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// Binds a random port of the range, whatever the kernel's own range of ephemeral ports is.
fn bind_source_port(socket: &Socket, family: Family, dice: &mut Dice) -> io::Result<()> {
    let mut last = io::ErrorKind::AddrInUse.into();
    for _ in 0..TRIES {
        let above = dice.below(u64::from(u16::MAX - FIRST_SOURCE_PORT) + 1);
        let port = FIRST_SOURCE_PORT + u16::try_from(above).unwrap_or_default();
        match socket.bind(&any(family, port).into()) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}
