//! What the router core hears, says and tells.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use martlet_api::readiness::Families;
use martlet_bfd::{Diagnostic, SessionConfig, SessionId, SessionStatus, State};
use martlet_bgp::{CloseReason, ConnectionId, Family, NeighborId, Ticket};
use martlet_netlink::{Change, Link, Object, Snapshot};

use crate::gate::{Lb, Reason, words};
use crate::intent::{Intent, Key, Transport};
use crate::mirror::Failure;

/// What happens to a router.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// What the operator wants, whole.
    Intent(&'a Intent),
    /// What the load balancer says, whole.
    Lb(&'a Lb),
    /// What BFD says, whole.
    Bfd(&'a BTreeMap<SessionId, SessionStatus>),
    /// What the kernel holds, whole: at start, when links changed, after an overrun, when [`Output::Dump`] asked for it.
    Kernel(&'a Snapshot),
    /// Its links alone: they changed, and reading all else of a large table takes its time. A snapshot follows.
    Links(&'a BTreeMap<u32, Link>),
    /// Others took objects of ours away, or put some there.
    KernelChanged {
        /// No longer there.
        removed: &'a BTreeSet<Object>,
        /// There although we did not put them there.
        appeared: &'a BTreeSet<Object>,
    },
    /// The batch of [`Output::Apply`] is through; these changes failed.
    Applied(&'a [Failure]),
    /// The connect that [`Output::Connect`] asked for succeeded.
    Connected(ConnectionId, SocketAddr, SocketAddr),
    /// Someone connected to a listener. Answered by [`Output::Accept`] or [`Output::Refuse`]; not a byte is read before.
    Incoming(Incoming<'a>),
    /// Bytes of a connection, in order.
    Received(ConnectionId, &'a [u8]),
    /// A connection is gone.
    Closed(ConnectionId, CloseReason),
    /// Ask a neighbour for its routes again.
    Refresh(&'a NeighborId),
    /// Close the session with a neighbour and start anew.
    Reset(&'a NeighborId, &'a str),
    /// The process is to end: withdraw, drain, say goodbye.
    Stop,
    /// A deadline has come.
    Timeout,
}

/// A connection that a listener took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming<'a> {
    /// The driver's name for it.
    pub ticket: Ticket,
    /// The interface of the listener.
    pub interface: &'a str,
    /// Our end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// On this interface only.
    pub interface: Arc<str>,
    /// Its index: an interface that came anew needs a new listener.
    pub index: u32,
    /// The family.
    pub family: Family,
    /// The port.
    pub port: u16,
}

/// What a listener must know of each neighbour that may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// TCP MD5.
    pub key: Option<Key>,
    /// TCP-AO.
    pub ao: Option<crate::net_ao::AoKey>,
    /// TTL or hop limit of what we send.
    pub ttl: u8,
    /// The least that we accept.
    pub min_ttl: Option<u8>,
}

/// All listeners, as they should be.
pub type Listeners = BTreeMap<Listener, BTreeMap<IpAddr, Caller>>;

/// What a router wants done, and what it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a connection; the answer is [`Input::Connected`] or [`Input::Closed`].
    Connect(ConnectionId, Transport),
    /// The incoming connection is taken, under this id; this is how it is to be set up.
    Accept(Ticket, ConnectionId, Caller),
    /// Close the incoming connection.
    Refuse(Ticket),
    /// The TCP MD5 password of an open connection changed: to this one, or to none.
    Rekey(ConnectionId, IpAddr, Option<Key>),
    /// There are bytes to send: call [`super::Router::transmit`] when the connection has room.
    Ready(ConnectionId),
    /// Close the connection once what was given is written.
    Close(ConnectionId),
    /// Listen there, and nowhere else.
    Listen(Listeners),
    /// These BFD sessions, and no others.
    SetBfd(BTreeMap<SessionId, SessionConfig>),
    /// Change the kernel; the answer is [`Input::Applied`]. The kernel makes batches in their order; at most
    /// [`crate::mirror::DEPTH`] are under way.
    Apply(Vec<Change>),
    /// Dump the kernel; the answer is [`Input::Kernel`].
    Dump,
    /// Tell the load balancer.
    Connectivity(Families),
    /// Something an operator may want to know.
    Event(Event),
    /// The router has said goodbye; the process may end.
    Stopped,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Of BGP.
    Bgp(martlet_bgp::Event),
    /// A BFD session changed.
    Bfd {
        /// Which.
        session: SessionId,
        /// From.
        from: State,
        /// To.
        to: State,
        /// Why it left Up.
        diagnostic: Diagnostic,
        /// What the other end told last.
        remote: State,
    },
    /// A VIP is announced from now on.
    Announced(IpNet),
    /// A VIP is not announced: from now on, or for another reason than before.
    Withheld(IpNet, Reason),
    /// Which family has a gateway router that is Up.
    Connectivity(Families),
    /// The load balancer speaks, or no longer.
    Lb(String),
    /// A `GatewayRouter` is not tried.
    NotTried(Arc<str>, Arc<str>),
    /// What was chosen to be our router id.
    RouterId(std::net::Ipv4Addr),
    /// Routes and rules of a former router were found and are kept for now.
    Adopted(usize),
    /// The adopted routes of a family that nobody told again are removed.
    AdoptionEnded(Family, usize),
    /// A next hop leads nowhere.
    Unresolved(IpNet, NeighborId, String),
    /// The kernel refused a change.
    Refused(Failure),
    /// Someone else keeps deleting an object of ours: it is put back more slowly.
    KernelConflict(Object),
    /// Objects of ours that someone else deleted are put back.
    Repaired(usize),
    /// A neighbour does not answer our connects.
    NoAnswer(NeighborId, String),
    /// A connection came from nowhere that we know, and was closed.
    Stranger(SocketAddr, Arc<str>),
    /// The router ends: for this long VIPs are announced with `GRACEFUL_SHUTDOWN`.
    Leaving(std::time::Duration),
    /// The router ends: VIPs are withdrawn, forwarding goes on for this long.
    Draining(std::time::Duration),
    /// The router says goodbye.
    Stopping,
}

impl Event {
    /// The kind of event, a word for logs and filters.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Bgp(_) | Self::NoAnswer(..) => "bgp",
            Self::Bfd { .. } => "bfd",
            Self::Announced(_) | Self::Withheld(..) => "vip",
            Self::Connectivity(_) => "connectivity",
            Self::Lb(_) => "lb",
            Self::NotTried(..) => "gatewayrouter",
            Self::Unresolved(..) => "route",
            Self::Adopted(_)
            | Self::AdoptionEnded(..)
            | Self::Refused(_)
            | Self::KernelConflict(_)
            | Self::Repaired(_) => "kernel",
            Self::Stranger(..) => "connection",
            Self::RouterId(_) | Self::Leaving(_) | Self::Draining(_) | Self::Stopping => "router",
        }
    }

    /// Whether an operator should look.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::NotTried(..)
            | Self::NoAnswer(..)
            | Self::Unresolved(..)
            | Self::Refused(_)
            | Self::KernelConflict(_)
            | Self::Stranger(..)
            | Self::Bgp(
                martlet_bgp::Event::TreatAsWithdraw { .. }
                | martlet_bgp::Event::AttributeDiscard { .. }
                | martlet_bgp::Event::PrefixWarning { .. },
            ) => true,
            Self::Bgp(martlet_bgp::Event::Closed { was, code, .. }) => {
                *was == martlet_bgp::NeighborState::Established || code.is_some()
            }
            Self::Bfd { from, .. } => *from == State::Up,
            _ => false,
        }
    }

    /// The `GatewayRouter`, VIP or session that it is about.
    pub fn subject(&self) -> String {
        use martlet_bgp::Event as Bgp;
        match self {
            Self::Bgp(
                Bgp::State { neighbor, .. }
                | Bgp::Established { neighbor, .. }
                | Bgp::Closed { neighbor, .. }
                | Bgp::Learned { neighbor, .. }
                | Bgp::Lost { neighbor, .. }
                | Bgp::EndOfRib { neighbor, .. }
                | Bgp::TreatAsWithdraw { neighbor, .. }
                | Bgp::AttributeDiscard { neighbor, .. }
                | Bgp::PrefixWarning { neighbor, .. },
            )
            | Self::NoAnswer(neighbor, _) => neighbor.to_string(),
            Self::Bfd { session, .. } => session.to_string(),
            Self::Announced(vip) | Self::Withheld(vip, _) => vip.to_string(),
            Self::NotTried(name, _) => name.to_string(),
            Self::Unresolved(prefix, ..) => prefix.to_string(),
            Self::Stranger(remote, _) => remote.to_string(),
            _ => String::new(),
        }
    }
}

/// The event in words, without its subject.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bgp(event) => bgp_words(event, f),
            Self::Bfd { from, to, diagnostic, remote, .. } => {
                write!(f, "{from:?} -> {to:?}, the other end says {remote:?}")?;
                if *diagnostic == Diagnostic::None { Ok(()) } else { write!(f, " ({diagnostic:?})") }
            }
            Self::Announced(_) => f.write_str("announced"),
            Self::Withheld(_, reason) => write!(f, "not announced: {reason}"),
            Self::Connectivity(families) => {
                let yes = |up| if up { "up" } else { "down" };
                write!(f, "external connectivity: IPv4 {}, IPv6 {}", yes(families.ipv4), yes(families.ipv6))
            }
            Self::Lb(text) => write!(f, "load balancer: {text}"),
            Self::NotTried(_, reason) => write!(f, "not tried: {reason}"),
            Self::RouterId(id) => write!(f, "router id {id}"),
            Self::Adopted(count) => write!(f, "routes of a former router, kept until they are told again: {count}"),
            Self::AdoptionEnded(family, count) => {
                write!(f, "{} routes of a former router that were not told again are removed: {count}", words(*family))
            }
            Self::Unresolved(_, neighbor, why) => write!(f, "next hop of {neighbor} leads nowhere: {why}"),
            Self::Refused(failure) => write!(f, "the kernel refused {:?}: {}", failure.change, failure.error),
            Self::KernelConflict(object) => write!(f, "someone else keeps deleting {object:?}"),
            Self::Repaired(count) => write!(f, "put back what someone else deleted: {count} routes or rules"),
            Self::NoAnswer(_, text) => f.write_str(text),
            Self::Stranger(_, interface) => write!(f, "no GatewayRouter has this address on {interface}: closed"),
            Self::Leaving(time) => write!(f, "stopping: VIPs are announced with GRACEFUL_SHUTDOWN for {time:?}"),
            Self::Draining(time) => write!(f, "stopping: VIPs are withdrawn, forwarding goes on for {time:?}"),
            Self::Stopping => f.write_str("stopping: sessions are closed, learned routes are removed"),
        }
    }
}

fn bgp_words(event: &martlet_bgp::Event, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use martlet_bgp::Event as Bgp;
    match event {
        Bgp::State { from, to, .. } => write!(f, "{from:?} -> {to:?}"),
        Bgp::Established { hold_time_s, families, .. } => {
            let families: Vec<_> = families.iter().map(|family| words(*family)).collect();
            write!(f, "established, {}, hold time {hold_time_s} s", families.join(" and "))
        }
        Bgp::Closed { was, text, .. } => write!(f, "closed in {was:?}: {text}"),
        Bgp::Learned { prefix, .. } => write!(f, "learned {prefix}"),
        Bgp::Lost { prefix, .. } => write!(f, "lost {prefix}"),
        Bgp::EndOfRib { family, .. } => write!(f, "has told all its {} routes", words(*family)),
        Bgp::TreatAsWithdraw { text, .. } => write!(f, "malformed UPDATE taken as a withdrawal: {text}"),
        Bgp::AttributeDiscard { text, .. } => write!(f, "malformed attribute ignored: {text}"),
        Bgp::PrefixWarning { family, count, .. } => {
            write!(f, "{count} {} prefixes: near the limit", words(*family))
        }
    }
}
