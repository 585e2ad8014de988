//! What a speaker hears, says and tells.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use martlet_clock::Instant;

use crate::{Family, Local, NeighborConfig, NeighborId};

/// One TCP connection. The speaker hands them out, never twice: a late event of a closed connection is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// The driver's name for a connection that it accepted and that the speaker has not yet taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The two ends of a connection: our address is the `NEXT_HOP` of what we announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Our end.
    pub local: SocketAddr,
    /// The neighbour's end.
    pub remote: SocketAddr,
    /// Our link-local address on the same interface, where the session is IPv6 (RFC 2545), if the driver knows it.
    pub local_link_local: Option<std::net::Ipv6Addr>,
    /// Our address of the other family on the same interface, for routes of the other family, if there is one.
    pub local_other: Option<IpAddr>,
}

/// Why a connection is gone, or never came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The neighbour closed it in order (end of file).
    EndOfFile,
    /// It was reset.
    Reset,
    /// Nobody listens there: the connect was refused.
    Refused,
    /// The connect was not answered: address, port, filter, or a password that differs.
    NoAnswer,
    /// Anything else, in the words of the operating system.
    Other(Arc<str>),
}

/// What BFD says of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BfdState {
    /// Not Up yet, or Down at start.
    Down,
    /// Up.
    Up,
    /// Administratively down, at either end: says nothing about the path (RFC 5882 section 3.2).
    AdminDown,
}

/// What happens to a speaker.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// The speaker itself.
    SetLocal(&'a Local),
    /// All neighbours, as they should be. One that vanished is closed (Cease/Peer De-configured); one that changed is
    /// changed with as little harm as the change allows.
    SetNeighbors(&'a BTreeMap<NeighborId, NeighborConfig>),
    /// All prefixes of our own, as they should be announced: each on every session of its family.
    SetAnnounced(&'a BTreeSet<IpNet>),
    /// Our own prefixes, announced or not: never accepted from a neighbour.
    SetOwn(&'a BTreeSet<IpNet>),
    /// What BFD says, of every neighbour that it supervises.
    SetBfd(&'a BTreeMap<NeighborId, BfdState>),
    /// The connect that [`Output::Connect`] asked for succeeded.
    Connected(ConnectionId, Endpoints),
    /// A neighbour connected to us; the answer is [`Output::Accept`] or [`Output::Refuse`].
    Incoming(Ticket, &'a NeighborId, Endpoints),
    /// Bytes of a connection, in order.
    Received(ConnectionId, &'a [u8]),
    /// A connection is gone; nothing of it follows.
    Closed(ConnectionId, CloseReason),
    /// Ask the neighbour for its routes again (RFC 2918).
    Refresh(&'a NeighborId),
    /// Close the session (Cease/Administrative Reset) and start anew.
    Reset(&'a NeighborId, &'a str),
    /// The process ends: Cease/Administrative Shutdown with this text to all, no session starts any more.
    Stop(&'a str),
    /// A deadline has come.
    Timeout,
}

/// What a speaker wants done, and what it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a connection to the neighbour; the answer is [`Input::Connected`] or [`Input::Closed`].
    Connect(NeighborId, ConnectionId),
    /// The incoming connection is taken, under this id.
    Accept(Ticket, ConnectionId),
    /// The incoming connection is not wanted: close it.
    Refuse(Ticket),
    /// There are bytes to send: call [`crate::Speaker::transmit`] when the connection has room.
    Ready(ConnectionId),
    /// Close the connection once what [`crate::Speaker::transmit`] gave is written; no event of it matters any more.
    Close(ConnectionId),
    /// Best paths changed: pull [`crate::Speaker::changed`].
    RoutesChanged,
    /// Something an operator may want to know.
    Event(Event),
}

/// The state of a neighbour, in the words of RFC 4271 section 8.2.2 (of its most advanced connection).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NeighborState {
    /// No connection is tried.
    #[default]
    Idle,
    /// A connection is being opened.
    Connect,
    /// Waiting for a connection, or for the next attempt.
    Active,
    /// OPEN sent.
    OpenSent,
    /// OPEN received, KEEPALIVE awaited.
    OpenConfirm,
    /// Routes are exchanged.
    Established,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "`neighbor`, `prefix`, `family`, `from`, `to` say what they are; the rest is in the variants"
)]
pub enum Event {
    /// The state changed.
    State { neighbor: NeighborId, from: NeighborState, to: NeighborState },
    /// A session is up: what was negotiated, in words.
    Established { neighbor: NeighborId, hold_time_s: u16, families: BTreeSet<Family> },
    /// A connection or session ended. `code` and `subcode` of the NOTIFICATION, if one was `sent` by us or received;
    /// `text` is for a human and names the remedy where there is one.
    Closed { neighbor: NeighborId, was: NeighborState, code: Option<(u8, u8)>, sent: bool, text: String },
    /// A route was learned or changed.
    Learned { neighbor: NeighborId, prefix: IpNet },
    /// A route is gone.
    Lost { neighbor: NeighborId, prefix: IpNet },
    /// The neighbour told all it has (RFC 4724 section 2).
    EndOfRib { neighbor: NeighborId, family: Family },
    /// A malformed UPDATE was taken as a withdrawal (RFC 7606): the attribute's type, its octets as they came (none if it is
    /// missing), and the first of the message's prefixes.
    TreatAsWithdraw { neighbor: NeighborId, kind: u8, raw: Vec<u8>, prefixes: Vec<IpNet>, text: String },
    /// A malformed attribute was ignored (RFC 7606): its type, its octets as they came.
    AttributeDiscard { neighbor: NeighborId, kind: u8, raw: Vec<u8>, text: String },
    /// More prefixes than the warning threshold.
    PrefixWarning { neighbor: NeighborId, family: Family, count: u32 },
}

/// One best path to a prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    /// Where packets go.
    pub next_hop: IpAddr,
    /// The link-local address that came with it (RFC 2545), on the neighbour's interface.
    pub link_local: Option<std::net::Ipv6Addr>,
    /// Who told.
    pub neighbor: NeighborId,
    /// Share of the traffic (link bandwidth community), 1 if none was told.
    pub weight: u16,
    /// Kept over the neighbour's graceful restart.
    pub stale: bool,
}

/// What is to be said of a neighbour, without counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighborStatus {
    /// Its state.
    pub state: NeighborState,
    /// Since when.
    pub since: Instant,
    /// Why it is not, or last was not, Established: in words.
    pub last_error: Option<String>,
    /// The families that were negotiated.
    pub families: BTreeSet<Family>,
    /// What else was negotiated, in words: `four-octet-as`, `route-refresh`, ..
    pub capabilities: BTreeSet<&'static str>,
    /// Families whose End-of-RIB arrived.
    pub end_of_rib: BTreeSet<Family>,
    /// The negotiated hold time, seconds.
    pub hold_time_s: u16,
    /// Its router id, once it sent an OPEN.
    pub remote_router_id: Option<std::net::Ipv4Addr>,
    /// Prefixes held from it.
    pub received: usize,
    /// Prefixes that it has been told.
    pub announced: usize,
}

/// What was counted of a neighbour since it was configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages received.
    pub messages_in: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// UPDATEs received.
    pub updates_in: u64,
    /// UPDATEs sent.
    pub updates_out: u64,
    /// NOTIFICATIONs received.
    pub notifications_in: u64,
    /// NOTIFICATIONs sent.
    pub notifications_out: u64,
    /// Prefixes announced by the neighbour, changes included.
    pub prefixes_in: u64,
    /// Prefixes withdrawn by the neighbour.
    pub withdrawals_in: u64,
    /// Prefixes announced to the neighbour, changes included.
    pub prefixes_out: u64,
    /// Prefixes withdrawn from the neighbour.
    pub withdrawals_out: u64,
    /// UPDATEs taken as withdrawals (RFC 7606).
    pub treated_as_withdraw: u64,
    /// Attributes discarded (RFC 7606).
    pub attributes_discarded: u64,
    /// Times that the session became Established.
    pub established: u64,
    /// Connections tried.
    pub connects: u64,
    /// Octets received.
    pub octets_in: u64,
    /// Octets given for sending.
    pub octets_out: u64,
}
