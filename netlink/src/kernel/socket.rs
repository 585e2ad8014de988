//! The sockets to the kernel's routing: changes in batches, hints of changes by others, whole dumps of routes.
//!
//! Changes and hints share one socket on purpose: the kernel writes into a hint which socket made the change, and a
//! filter in the kernel drops our own before they take room. A request is done when `send` returns and its replies wait
//! in the socket, so nothing here ever waits for the kernel; only [`Wire::hint`] waits, for changes by others.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use super::decode::{self, Seen};
use super::encode;
use super::events::{Event, Hints};
use crate::datagram::{self, Reply};
use crate::diff::Key;
use crate::model::{Family, Owner};
use crate::{Error, filter, sys};

/// What others may do that we want to hear of.
const GROUPS: [u32; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
];

/// The largest datagram that the kernel sends.
const DATAGRAM_MAX: usize = 65536;
/// Datagrams read before others may run.
const TURN: usize = 64;
/// A dump that another's change interrupts is repeated this often; each change is a hint as well.
const DUMPS_MAX: usize = 5;
/// A batch whose replies were lost in an overrun is sent again this often.
const SENDS_MAX: usize = 3;

pub(super) type Message = NetlinkMessage<RouteNetlinkMessage>;

/// A socket of the routing family that never blocks.
pub(super) fn open(receive_octets: i32) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    sys::set_buffers(socket.as_fd(), receive_octets)?;
    socket.set_cap_ack(true)?;
    socket.set_ext_ack(true)?;
    Ok(socket)
}

/// The next datagram in `buffer`; `false`: none waits.
pub(super) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<bool> {
    buffer.clear();
    buffer.reserve(DATAGRAM_MAX);
    match socket.recv(buffer, 0) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn decode(octets: &[u8]) -> Option<Message> {
    Message::deserialize(octets)
        .inspect_err(|error| tracing::warn!(%error, "a netlink message was not understood"))
        .ok()
}

/// Whether the kernel does not know the family at all, so that nothing of it can be there: IPv6 may be left out.
pub(super) fn without_family(error: &ErrorMessage) -> bool {
    matches!(Reply::of(error).errno, libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
}

/// The socket of changes and hints.
#[derive(Debug)]
pub(super) struct Wire {
    owner: Owner,
    socket: AsyncFd<Socket>,
    state: Mutex<State>,
    hints: Hints,
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    sequence: u32,
    /// Where others have routes in our tables. It only grows until the next snapshot: of two foreign routes under one
    /// key one may stay.
    foreign: BTreeSet<Key>,
}

impl Wire {
    pub(super) fn open(owner: Owner, receive_octets: i32) -> io::Result<Arc<Self>> {
        let socket = open(receive_octets)?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        filter::drop_messages_of(&socket, filter::port(&socket)?)?;
        let socket = sys::watch(socket)?;
        Ok(Arc::new(Self { owner, socket, state: Mutex::default(), hints: Hints::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends requests with their flags as one batch. The kernel makes them in their order, whether or not one fails;
    /// the replies have the order of the requests.
    pub(super) fn exchange(&self, requests: Vec<(RouteNetlinkMessage, u16)>) -> Result<Vec<Reply>, Error> {
        let mut state = self.state();
        let first = state.sequence;
        let count = requests.len();
        let mut batch = Vec::new();
        for (left, (message, flags)) in (0..count).rev().zip(requests) {
            // A refusal is always told; only the last request asks to be told that all is done.
            let acknowledge = if left == 0 { NLM_F_ACK } else { 0 };
            datagram::append(&mut batch, message, NLM_F_REQUEST | acknowledge | flags, state.sequence);
            state.sequence = state.sequence.wrapping_add(1);
        }
        let failed = "routes and rules cannot be changed";
        for _ in 0..SENDS_MAX {
            let replies = self.attempt(&mut state, &batch, first, count).map_err(Error::io(failed))?;
            if let Some(replies) = replies {
                return Ok(replies);
            }
        }
        Err(Error::io(failed)(io::Error::new(ErrorKind::TimedOut, "the replies of the kernel were lost")))
    }

    /// `None`: the replies were lost in an overrun.
    fn attempt(&self, state: &mut State, batch: &[u8], first: u32, count: usize) -> io::Result<Option<Vec<Reply>>> {
        let mut replies = Vec::new();
        replies.resize_with(count, Reply::default);
        let Some(last) = count.checked_sub(1) else { return Ok(Some(replies)) };
        // Hints that wait must not take the room of the replies.
        self.read(state, usize::MAX, |_, _| {})?;
        self.socket.get_ref().send(batch, 0)?;
        let mut done = false;
        self.read(state, usize::MAX, |sequence, reply| {
            let index = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
            if let Some(slot) = replies.get_mut(index) {
                *slot = reply;
                done |= index == last;
            }
        })?;
        Ok(done.then_some(replies))
    }

    /// Reads up to `limit` datagrams: hints go to the hints, replies to `reply`. `true`: nothing more waits.
    fn read(&self, state: &mut State, limit: usize, mut reply: impl FnMut(u32, Reply)) -> io::Result<bool> {
        for _ in 0..limit {
            let mut buffer = std::mem::take(&mut state.buffer);
            let received = receive(self.socket.get_ref(), &mut buffer);
            let empty = match received {
                Ok(received) => !received,
                // The kernel had more to say than the socket could hold.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.hints.overrun();
                    false
                }
                Err(error) => return Err(error),
            };
            for message in datagram::messages(&buffer).filter_map(decode) {
                match message.payload {
                    NetlinkPayload::Error(error) => reply(message.header.sequence_number, Reply::of(&error)),
                    NetlinkPayload::InnerMessage(inner) => self.notice(state, &inner, message.header.flags),
                    _ => {}
                }
            }
            state.buffer = buffer;
            if empty {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Another changed something.
    fn notice(&self, state: &mut State, message: &RouteNetlinkMessage, flags: u16) {
        match message {
            RouteNetlinkMessage::NewRoute(route) => {
                let replaced = flags & NLM_F_REPLACE != 0;
                if replaced && matches!(decode::route(&self.owner, route), Seen::Ours(_) | Seen::Foreign(_)) {
                    // The kernel does not say what is gone, and it may have been ours.
                    self.hints.overrun();
                }
                self.notice_route(state, route, false);
            }
            RouteNetlinkMessage::DelRoute(route) => self.notice_route(state, route, true),
            RouteNetlinkMessage::NewRule(rule) => self.notice_rule(rule, false),
            RouteNetlinkMessage::DelRule(rule) => self.notice_rule(rule, true),
            RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_) => self.hints.links(),
            _ => {}
        }
    }

    fn notice_rule(&self, rule: &RuleMessage, gone: bool) {
        if let Some(rule) = decode::rule(&self.owner, rule) {
            self.hints.object(rule, gone);
        }
    }

    fn notice_route(&self, state: &mut State, route: &RouteMessage, gone: bool) {
        match decode::route(&self.owner, route) {
            Seen::Ours(object) => self.hints.object(object, gone),
            Seen::Foreign(key) => {
                state.foreign.insert(key);
                self.hints.foreign();
            }
            // Where the links lead.
            Seen::Main(..) => self.hints.links(),
            Seen::Elsewhere => {}
        }
    }

    /// The next hint, as [`Events::next`](super::Events::next) has it.
    pub(super) async fn hint(&self) -> Event {
        loop {
            if let Some(event) = self.hints.take() {
                return event;
            }
            tokio::select! {
                biased;
                () = self.hints.wait() => {}
                ready = self.socket.readable() => {
                    let read = ready.and_then(|mut ready| {
                        let empty = self.read(&mut self.state(), TURN, |_, _| {})?;
                        if empty {
                            ready.clear_ready();
                        }
                        Ok(())
                    });
                    if let Err(error) = read {
                        tracing::error!(%error, "changes of the kernel are no longer seen");
                        return std::future::pending().await;
                    }
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Forgets where others have routes and what they did so far: a dump begins that will show it.
    pub(super) fn forget(&self) {
        self.catch_up();
        self.state().foreign.clear();
        self.hints.forget();
    }

    /// Others have routes there.
    pub(super) fn learn_foreign(&self, keys: BTreeSet<Key>) {
        self.state().foreign.extend(keys);
    }

    /// Reads what others did so far; an error shows at the next exchange.
    pub(super) fn catch_up(&self) {
        let _ = self.read(&mut self.state(), usize::MAX, |_, _| {});
    }

    /// Whether another's route is known at `key`.
    pub(super) fn is_foreign(&self, key: &Key) -> bool {
        self.state().foreign.contains(key)
    }
}

/// The socket of route dumps, which may be long: nothing else comes in between.
#[derive(Debug)]
pub(super) struct Dump {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Dump {
    pub(super) fn open(receive_octets: i32) -> io::Result<Self> {
        Ok(Self { socket: open(receive_octets)?, buffer: Vec::new(), sequence: 0 })
    }

    /// Every route of `family`, one after the other; others run in between. An interrupted dump begins again.
    pub(super) async fn routes(&mut self, family: Family, mut each: impl FnMut(&RouteMessage)) -> io::Result<()> {
        for _ in 0..DUMPS_MAX {
            let mut request = RouteMessage::default();
            request.header.address_family = encode::family(family);
            self.sequence = self.sequence.wrapping_add(1);
            let mut octets = Vec::new();
            let request = RouteNetlinkMessage::GetRoute(request);
            datagram::append(&mut octets, request, NLM_F_REQUEST | NLM_F_DUMP, self.sequence);
            self.socket.send(&octets, 0)?;
            if self.read(&mut each).await? {
                return Ok(());
            }
        }
        // The table never stood still; each change was a hint too, so the reader will ask again.
        Ok(())
    }

    /// `false`: the table changed meanwhile.
    async fn read(&mut self, each: &mut impl FnMut(&RouteMessage)) -> io::Result<bool> {
        let mut whole = true;
        for turn in 1.. {
            if !receive(&self.socket, &mut self.buffer)? {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "a dump of routes ended early"));
            }
            for message in datagram::messages(&self.buffer).filter_map(decode) {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
                    }
                    NetlinkPayload::Done(_) => return Ok(whole),
                    NetlinkPayload::Error(error) if without_family(&error) => return Ok(true),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => each(&route),
                    _ => {}
                }
            }
            if turn % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(whole)
    }
}
