//! An owner's routes and rules in the running kernel, and the links around them: dump, apply, watch.
//!
//! `encode` and `decode` turn our values into messages and back, `socket` moves them, `events` coalesces what others
//! do, `neighbors` is for ARP and ND. What is small (links, addresses, rules, neighbours) is asked through `rtnetlink`; what may be large goes through
//! a socket of our own, in batches.
//!
//! # Whose is it?
//! An object is ours if it carries the owner's protocol number *and* lies in its tables or priorities; nothing else is
//! ever changed. That takes care, because the kernel tells routes apart by table, prefix and metric only:
//! - adding is exclusive: where another's route has the same three, ours is refused ([`Error::Foreign`]);
//! - an IPv4 "replace" would overwrite whatever stands first, so ours is appended and the old one deleted, spelt out to
//!   the protocol number and the next hops: the prefix is never without a route;
//! - an IPv6 "append" would merge into what is there, so ours is replaced, but only while no other's route is known
//!   under the same three;
//! - a deletion spells everything out.
//!
//! What is already as wanted counts as done: an equal route or rule that is there, one to be removed that is gone.

mod decode;
mod encode;
mod events;
mod neighbors;
mod socket;
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use netlink_packet_core::{
    NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{RouteNetlinkMessage, address, link};
use tokio::task::JoinHandle;

pub use events::{Event, Events, ObjectsChanged};
pub use neighbors::{NeighborChange, Neighbors};
pub use whole::{Row, Whole};

use crate::Error;
use crate::datagram::Reply;
use crate::diff::{Change, key};
use crate::model::{Family, Link, Object, Owner, RouteKind, Snapshot};
use decode::Seen;
use socket::{Dump, Wire};

/// Hints and replies wait in this much kernel memory.
const RECEIVE_OCTETS: i32 = 16 << 20;
/// Changes in one batch; others run in between.
const BATCH: usize = 1000;
/// An interrupted dump is repeated this often.
const DUMPS_MAX: usize = 5;

/// An owner's hands and eyes in the kernel. Needs `NET_ADMIN` to change anything.
#[derive(Debug)]
pub struct Kernel {
    owner: Owner,
    wire: Arc<Wire>,
    dump: Dump,
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

impl Kernel {
    /// Opens the sockets in the network namespace of the calling thread, which runs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Io`] when netlink cannot be opened.
    pub fn open(owner: Owner) -> Result<(Self, Events), Error> {
        Self::open_with_buffer(owner, RECEIVE_OCTETS)
    }

    /// [`Self::open`] with another receive buffer, in octets: a small one overruns soon.
    ///
    /// # Errors
    /// [`Error::Io`] when netlink cannot be opened.
    pub fn open_with_buffer(owner: Owner, receive_octets: i32) -> Result<(Self, Events), Error> {
        let failed = "the socket to the kernel's routing cannot be opened";
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::io(failed))?;
        let wire = Wire::open(owner.clone(), receive_octets).map_err(Error::io(failed))?;
        let dump = Dump::open(receive_octets).map_err(Error::io(failed))?;
        let connection = tokio::spawn(connection);
        Ok((Self { owner, wire: Arc::clone(&wire), dump, handle, connection }, Events::new(wire)))
    }

    /// All links with their addresses, and the owner's routes and rules. Hints of what happened before are dropped, the
    /// snapshot shows it; what others change meanwhile is a hint of [`Events`] as well.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel cannot be asked.
    pub async fn snapshot(&mut self) -> Result<Snapshot, Error> {
        self.wire.forget();
        let links = self.links().await?;
        let mut objects = self.rules().await?;
        let mut foreign = BTreeSet::new();
        let mut main: BTreeMap<_, (u32, _)> = BTreeMap::new();
        for family in Family::ALL {
            let routes = self.dump.routes(family, |route| match decode::route(&self.owner, route) {
                Seen::Ours(object) => drop(objects.insert(object)),
                Seen::Foreign(key) => drop(foreign.insert(key)),
                Seen::Main(prefix, metric, hop) => {
                    if main.get(&prefix).is_none_or(|(known, _)| metric < *known) {
                        main.insert(prefix, (metric, hop));
                    }
                }
                Seen::Elsewhere => {}
            });
            routes.await.map_err(Error::io("the kernel's routes cannot be read"))?;
        }
        self.wire.learn_foreign(foreign);
        let main = main.into_iter().map(|(prefix, (_, hop))| (prefix, hop)).collect();
        Ok(Snapshot { links, objects, main })
    }

    /// All links with their addresses: soon told, however large the tables are.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel cannot be asked.
    pub async fn links(&mut self) -> Result<BTreeMap<u32, Link>, Error> {
        let request = RouteNetlinkMessage::GetLink(link::LinkMessage::default());
        let mut links = BTreeMap::new();
        for message in self.ask(request, "the kernel's links cannot be read").await? {
            if let RouteNetlinkMessage::NewLink(link) = message {
                links.insert(link.header.index, decode::link(&link));
            }
        }
        let request = RouteNetlinkMessage::GetAddress(address::AddressMessage::default());
        for message in self.ask(request, "the kernel's addresses cannot be read").await? {
            let RouteNetlinkMessage::NewAddress(address) = message else { continue };
            let Some((index, address)) = decode::link_address(&address) else { continue };
            if let Some(link) = links.get_mut(&index) {
                link.addresses.insert(address);
            }
        }
        Ok(links)
    }

    async fn rules(&mut self) -> Result<BTreeSet<Object>, Error> {
        let mut rules = BTreeSet::new();
        for family in Family::ALL {
            let mut request = RuleMessage::default();
            request.header.family = encode::family(family);
            let request = RouteNetlinkMessage::GetRule(request);
            for message in self.ask(request, "the kernel's rules cannot be read").await? {
                if let RouteNetlinkMessage::NewRule(rule) = message {
                    rules.extend(decode::rule(&self.owner, &rule));
                }
            }
        }
        Ok(rules)
    }

    /// The answers to a short dump.
    async fn ask(&mut self, message: RouteNetlinkMessage, failed: &str) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut answers = Vec::new();
        for _ in 0..DUMPS_MAX {
            answers.clear();
            let mut whole = true;
            let mut request = NetlinkMessage::from(message.clone());
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut stream = self.handle.request(request).map_err(std::io::Error::other).map_err(Error::io(failed))?;
            while let Some(answer) = stream.next().await {
                whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) if socket::without_family(&error) => {}
                    NetlinkPayload::Error(error) => return Err(Error::io(failed)(error.to_io())),
                    _ => {}
                }
            }
            if self.connection.is_finished() {
                // What we have may be half of it: not a whole value.
                return Err(Error::io(failed)(std::io::ErrorKind::UnexpectedEof.into()));
            }
            if whole {
                break;
            }
        }
        Ok(answers)
    }

    /// Makes the changes in their order; returns those that failed, and why. A failure stops nothing: what comes after
    /// is tried too.
    pub async fn apply(&mut self, changes: &[Change]) -> Vec<(Change, Error)> {
        let mut failed = Vec::new();
        for changes in changes.chunks(BATCH) {
            self.wire.catch_up();
            let mut todo = Vec::new();
            for change in changes {
                match self.step(change) {
                    Ok(request) => todo.push((change, request)),
                    Err(error) => failed.push((change.clone(), error)),
                }
            }
            // The second round: what the kernel's first answer calls for.
            let todo = self.round(todo, &mut failed);
            self.round(todo, &mut failed);
            tokio::task::yield_now().await;
        }
        failed
    }

    /// One batch; returns what must follow.
    fn round<'a>(&self, todo: Vec<(&'a Change, Step)>, failed: &mut Vec<(Change, Error)>) -> Vec<(&'a Change, Step)> {
        let (steps, requests): (Vec<_>, Vec<_>) =
            todo.into_iter().map(|(change, step)| ((change, step.kind), step.request)).unzip();
        let replies = match self.wire.exchange(requests) {
            Ok(replies) => replies,
            Err(error) => {
                // None of them is known to be done.
                let lost = |change| Error::io(what(change))(std::io::Error::other(error.to_string()));
                failed.extend(steps.into_iter().map(|(change, _)| (change.clone(), lost(change))));
                return Vec::new();
            }
        };
        let mut next = Vec::new();
        for ((change, kind), reply) in steps.into_iter().zip(replies) {
            match self.follow(change, kind, reply) {
                Ok(step) => next.extend(step.map(|step| (change, step))),
                Err(error) => failed.push((change.clone(), error)),
            }
        }
        next
    }

    /// The first request of a change.
    fn step(&self, change: &Change) -> Result<Step, Error> {
        match change {
            Change::Add(object) => {
                self.check(object)?;
                Ok(self.put(object, Kind::Add, NLM_F_CREATE | NLM_F_EXCL))
            }
            Change::Remove(object) => {
                self.check(object)?;
                Ok(self.take(object))
            }
            Change::Replace { from: Object::Route(from), to: to @ Object::Route(route) } if key(from) == key(route) => {
                self.check(to)?;
                match Family::of(&route.prefix) {
                    Family::Ipv4 => Ok(self.put(to, Kind::Append, NLM_F_CREATE | NLM_F_APPEND)),
                    Family::Ipv6 if self.wire.is_foreign(&key(route)) => Err(Error::Foreign { what: to.to_string() }),
                    Family::Ipv6 => Ok(self.put(to, Kind::Last, NLM_F_CREATE | NLM_F_REPLACE)),
                }
            }
            Change::Replace { from, to } => Err(Error::Unsupported(format!(
                "{from} cannot be replaced by {to}: only a route of the same table, prefix and metric"
            ))),
        }
    }

    /// What must follow after the kernel's reply.
    fn follow(&self, change: &Change, kind: Kind, reply: Reply) -> Result<Option<Step>, Error> {
        let refused = |reply: Reply| Error::refused(what(change), reply.errno, reply.detail);
        match (kind, change, reply.errno) {
            // Appended, or there already: the old one may go.
            (Kind::Append, Change::Replace { from, .. }, 0 | libc::EEXIST) => Ok(Some(self.take(from))),
            (Kind::Add, Change::Add(object @ Object::Route(route)), libc::EEXIST) => {
                if self.wire.is_foreign(&key(route)) {
                    return Err(Error::Foreign { what: object.to_string() });
                }
                // One of ours, that the caller did not know: equal, or it gives way.
                Ok(Some(match Family::of(&route.prefix) {
                    Family::Ipv4 => self.put(object, Kind::Last, NLM_F_CREATE | NLM_F_APPEND),
                    Family::Ipv6 => self.put(object, Kind::Last, NLM_F_CREATE | NLM_F_REPLACE),
                }))
            }
            // An equal rule, or an equal route of ours, is there already.
            (Kind::Add, Change::Add(Object::Rule(_)), libc::EEXIST) | (Kind::Last, _, libc::EEXIST) | (_, _, 0) => {
                Ok(None)
            }
            // Gone already, or its interface is.
            (Kind::Remove, _, libc::ESRCH | libc::ENOENT | libc::ENODEV) => Ok(None),
            _ => Err(refused(reply)),
        }
    }

    fn put(&self, object: &Object, kind: Kind, flags: u16) -> Step {
        Step { kind, request: (encode::add(&self.owner, object), flags) }
    }

    fn take(&self, object: &Object) -> Step {
        Step { kind: Kind::Remove, request: (encode::remove(&self.owner, object), 0) }
    }

    /// Refuses what is not the owner's, and what the kernel would silently make something else of.
    fn check(&self, object: &Object) -> Result<(), Error> {
        let not_ours =
            || Err(Error::Unsupported(format!("{object}: outside of what protocol {} owns", self.owner.protocol)));
        match object {
            Object::Rule(rule) if !self.owner.priorities.iter().any(|range| range.contains(&rule.priority)) => {
                not_ours()
            }
            Object::Route(route) if !self.owner.tables.iter().any(|range| range.contains(&route.table)) => not_ours(),
            Object::Route(route) if route.metric == 0 && Family::of(&route.prefix) == Family::Ipv6 => {
                Err(Error::Unsupported(format!("{object}: metric 0 is 1024 for IPv6")))
            }
            Object::Route(route) => match &route.kind {
                RouteKind::Unicast(hops) if hops.is_empty() => {
                    Err(Error::Unsupported(format!("{object}: without a next hop")))
                }
                _ => Ok(()),
            },
            Object::Rule(_) => Ok(()),
        }
    }
}

/// A request and what it is part of.
struct Step {
    kind: Kind,
    request: (RouteNetlinkMessage, u16),
}

/// What a request is, in the life of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Exclusive.
    Add,
    /// The first half of an IPv4 replacement.
    Append,
    /// Ours takes its place, whatever is there of ours.
    Last,
    /// A removal, or the second half of an IPv4 replacement.
    Remove,
}

/// The object that a change is about.
fn what(change: &Change) -> String {
    match change {
        Change::Add(object) | Change::Replace { to: object, .. } | Change::Remove(object) => object.to_string(),
    }
}
