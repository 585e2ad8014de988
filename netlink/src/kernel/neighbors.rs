//! Neighbour entries (ARP, ND): what the kernel knows, what becomes of it, and what it is to do about it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, NetlinkPayload};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use tokio::io::unix::AsyncFd;

use super::{Kernel, decode, socket};
use crate::link::{Neighbor, Reachability};
use crate::{Error, datagram, sys};

/// Changes wait in this much kernel memory.
const RECEIVE_OCTETS: i32 = 16 << 20;
/// Datagrams read before others may run.
const TURN: usize = 64;

/// What became of a neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NeighborChange {
    /// It is so now.
    Is(Neighbor),
    /// It is gone, or says nothing any more.
    Gone(u32, IpAddr),
    /// More changed than the socket could hold, or nothing more is seen: read [`Kernel::neighbors`] anew.
    Overrun,
}

/// The stream of changes of neighbour entries, whoever made them.
#[derive(Debug)]
pub struct Neighbors {
    socket: AsyncFd<Socket>,
    /// Nothing more is seen.
    is_broken: bool,
}

impl Neighbors {
    /// Opens the stream in the network namespace of the calling thread, which runs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Io`] when netlink cannot be opened.
    pub fn watch() -> Result<Self, Error> {
        let open = || {
            let socket = socket::open(RECEIVE_OCTETS)?;
            socket.add_membership(libc::RTNLGRP_NEIGH)?;
            sys::watch(socket)
        };
        let socket = open().map_err(Error::io("changes of neighbours cannot be watched"))?;
        Ok(Self { socket, is_broken: false })
    }

    /// Waits for changes, in their order. Safe to drop at any time (`select!`). Should the socket break, it says so in the log, and
    /// [`NeighborChange::Overrun`] is the last that is seen.
    pub async fn changes(&mut self) -> Vec<NeighborChange> {
        loop {
            if self.is_broken {
                return std::future::pending().await;
            }
            let read = match self.socket.readable().await {
                Ok(mut ready) => self.read().inspect(|(_, empty)| {
                    if *empty {
                        ready.clear_ready();
                    }
                }),
                Err(error) => Err(error),
            };
            match read {
                Ok((changes, _)) if !changes.is_empty() => return changes,
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => return self.broken(&error),
            }
        }
    }

    /// The changes that wait, all of them.
    pub fn waiting(&mut self) -> Vec<NeighborChange> {
        let mut all = Vec::new();
        while !self.is_broken {
            match self.read() {
                Ok((changes, empty)) => {
                    all.extend(changes);
                    if empty {
                        break;
                    }
                }
                Err(error) => all = self.broken(&error),
            }
        }
        all
    }

    fn broken(&mut self, error: &io::Error) -> Vec<NeighborChange> {
        tracing::error!(%error, "changes of neighbours are no longer seen");
        self.is_broken = true;
        vec![NeighborChange::Overrun]
    }

    /// What waits, as far as one turn goes; true: it was all.
    fn read(&self) -> io::Result<(Vec<NeighborChange>, bool)> {
        let (mut changes, mut buffer) = (Vec::new(), Vec::new());
        for _ in 0..TURN {
            match socket::receive(self.socket.get_ref(), &mut buffer) {
                Ok(true) => changes.extend(datagram::messages(&buffer).filter_map(change)),
                Ok(false) => return Ok((changes, true)),
                Err(error) if is_overrun(&error) => {
                    // The kernel drops messages, without another word, until the socket is empty; those that wait are of
                    // the past.
                    while socket::receive(self.socket.get_ref(), &mut buffer)
                        .or_else(|error| if is_overrun(&error) { Ok(true) } else { Err(error) })?
                    {}
                    return Ok((vec![NeighborChange::Overrun], true));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((changes, false))
    }
}

fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

fn change(message: &[u8]) -> Option<NeighborChange> {
    match socket::decode(message)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) => {
            decode::neighbor(&entry).map(NeighborChange::Is).or_else(|| gone(&entry))
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(entry)) => gone(&entry),
        _ => None,
    }
}

/// `None`: it has no address, and so it is none of IP.
fn gone(entry: &NeighbourMessage) -> Option<NeighborChange> {
    Some(NeighborChange::Gone(entry.header.ifindex, decode::neighbor_address(entry)?))
}

impl Kernel {
    /// The neighbour entries (ARP, ND) of all links.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel cannot be asked.
    pub async fn neighbors(&mut self) -> Result<Vec<Neighbor>, Error> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.ask(request, "the kernel's neighbours cannot be read").await?;
        let entries = answers.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(entry) => decode::neighbor(entry),
            _ => None,
        });
        Ok(entries.collect())
    }

    /// Has the kernel resolve `address` on `interface` now, or confirm what it knows; [`Self::neighbors`] shows later
    /// what came of it.
    ///
    /// # Errors
    /// [`Error::Refused`], for instance when there is no such interface.
    pub fn probe_neighbor(&mut self, interface: u32, address: IpAddr) -> Result<(), Error> {
        let what = format!("a probe of {address} on interface {interface}");
        // A known entry is asked again at once; an unknown one is resolved as if a packet had come for it.
        let again = (probe(interface, address, NeighbourState::Probe), NLM_F_REPLACE);
        let resolve = (probe(interface, address, NeighbourState::None), NLM_F_CREATE);
        for request in [again, resolve] {
            let last = request.1 == NLM_F_CREATE;
            match self.wire.exchange(vec![request])?.pop() {
                Some(reply) if reply.errno != 0 && last => return Err(Error::refused(what, reply.errno, reply.detail)),
                Some(reply) if reply.errno != 0 => {}
                _ => break,
            }
        }
        Ok(())
    }

    /// Has the kernel forget the addresses on `interfaces` that it asked for in vain: the next packet asks anew, at once,
    /// instead of when the last question is a second old. Without `CAP_NET_ADMIN` nothing is forgotten.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel cannot be asked.
    pub async fn forget_unresolved(&mut self, interfaces: &BTreeSet<u32>) -> Result<(), Error> {
        let in_vain = |entry: &Neighbor| matches!(entry.reachability, Reachability::Incomplete | Reachability::Failed);
        let entries = self.neighbors().await?.into_iter();
        let forget = entries.filter(|entry| interfaces.contains(&entry.interface) && in_vain(entry)).map(|entry| {
            let message = neighbor(entry.interface, entry.address);
            (RouteNetlinkMessage::DelNeighbour(message), 0)
        });
        self.wire.exchange(forget.collect()).map(drop)
    }

    /// Writes down that `address` on `interface` has this link-layer address, for good.
    ///
    /// # Errors
    /// [`Error::Refused`], for instance when the interface is down.
    pub fn write_neighbor(&mut self, interface: u32, address: IpAddr, link_layer: &[u8]) -> Result<(), Error> {
        let mut message = neighbor(interface, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(link_layer.to_vec()));
        let request = (RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE);
        let what = || format!("neighbour {address} on interface {interface}");
        match self.wire.exchange(vec![request])?.pop() {
            Some(reply) if reply.errno != 0 => Err(Error::refused(what(), reply.errno, reply.detail)),
            _ => Ok(()),
        }
    }

    /// Has the kernel forget `addresses` where they were written down with this link-layer address, on whatever link.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel cannot be asked.
    pub async fn forget_neighbors(&mut self, addresses: &[IpAddr], link_layer: &[u8]) -> Result<(), Error> {
        let entries = self.neighbors().await?.into_iter();
        let is_it =
            |entry: &Neighbor| addresses.contains(&entry.address) && entry.link_layer.as_deref() == Some(link_layer);
        let forget = entries.filter(is_it);
        let forget =
            forget.map(|entry| (RouteNetlinkMessage::DelNeighbour(neighbor(entry.interface, entry.address)), 0));
        self.wire.exchange(forget.collect()).map(drop)
    }
}

fn probe(interface: u32, address: IpAddr, state: NeighbourState) -> RouteNetlinkMessage {
    let mut message = neighbor(interface, address);
    message.header.state = state;
    if state == NeighbourState::None {
        message.header.flags = NeighbourFlags::Use;
    }
    RouteNetlinkMessage::NewNeighbour(message)
}

fn neighbor(interface: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = interface;
    let (family, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    message
}
