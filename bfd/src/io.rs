//! What the sessions hear, say and tell.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use martlet_clock::Instant;

/// Whom a session supervises: its clients (BGP neighbours, static next hops) share it by this name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// The other end.
    pub remote: IpAddr,
    /// The interface of a single-hop session (RFC 5881); `None`: multihop (RFC 5883).
    pub interface: Option<Arc<str>>,
    /// Our address, where it matters (multihop, or several addresses on the interface).
    pub local: Option<IpAddr>,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.interface {
            Some(interface) => write!(f, "{}%{interface}", self.remote),
            None => write!(f, "{}", self.remote),
        }
    }
}

/// The state of a session (RFC 5880 section 6.2), with its value on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Held down by an operator.
    AdminDown = 0,
    /// Down, or just created.
    #[default]
    Down = 1,
    /// The other end is heard, it does not hear us yet.
    Init = 2,
    /// Both hear each other.
    Up = 3,
}

/// Why a session last left Up (RFC 5880 section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Diagnostic {
    /// No diagnostic.
    #[default]
    None = 0,
    /// Control Detection Time Expired.
    DetectionTimeExpired = 1,
    /// Echo Function Failed.
    EchoFailed = 2,
    /// Neighbor Signaled Session Down.
    NeighborSignaledDown = 3,
    /// Forwarding Plane Reset.
    ForwardingPlaneReset = 4,
    /// Path Down.
    PathDown = 5,
    /// Concatenated Path Down.
    ConcatenatedPathDown = 6,
    /// Administratively Down.
    AdministrativelyDown = 7,
    /// Reverse Concatenated Path Down.
    ReverseConcatenatedPathDown = 8,
}

/// Which authentication (RFC 5880 section 4.2 to 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthKind {
    /// A password in clear.
    SimplePassword,
    /// Keyed MD5.
    KeyedMd5,
    /// Meticulous keyed MD5.
    MeticulousKeyedMd5,
    /// Keyed SHA1.
    KeyedSha1,
    /// Meticulous keyed SHA1.
    MeticulousKeyedSha1,
}

/// One key. `Debug` never shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthKey {
    /// Its id on the wire.
    pub id: u8,
    /// 1 to 16 octets (password, MD5) or 1 to 20 (SHA1).
    pub secret: Vec<u8>,
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthKey {{ id: {}, .. }}", self.id)
    }
}

/// Authentication of a session: the first key signs, every key is accepted (rollover).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// Which.
    pub kind: AuthKind,
    /// At least one key.
    pub keys: Vec<AuthKey>,
}

/// One session, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Desired Min TX Interval once Up; at least 1 ms.
    pub min_tx: Duration,
    /// Required Min RX Interval.
    pub min_rx: Duration,
    /// Detect Mult, 1 to 255.
    pub multiplier: u8,
    /// Whether we only answer (RFC 5880 section 6.1).
    pub passive: bool,
    /// Held AdminDown by an operator.
    pub admin_down: bool,
    /// Authentication.
    pub auth: Option<Auth>,
    /// Echo interval, if we echo (RFC 5880 section 6.4, single hop only).
    pub echo: Option<Duration>,
    /// Whether the other end knows no BFD and only forwards our echo packets back (RFC 9747); wants `echo`.
    pub unaffiliated: bool,
    /// How often the other end may echo by way of us: our kernel must forward. `None`: it may not.
    pub echo_rx: Option<Duration>,
    /// Least TTL or hop limit that is accepted: 255 on a single hop (RFC 5881 section 5).
    pub min_ttl: u8,
    /// How often something other than BFD has shown that the other end is there (BGP is Established). A session that is not
    /// Up when this changes does not wait for its slow packet: it asks at once, as a new one, and wants an answer at once. One
    /// that is in state Init does so only when no answer to what it said last can be under way.
    pub sightings: u32,
}

impl Default for SessionConfig {
    /// The seed's values: 300 ms, 300 ms, 5.
    fn default() -> Self {
        Self {
            min_tx: Duration::from_millis(300),
            min_rx: Duration::from_millis(300),
            multiplier: 5,
            passive: false,
            admin_down: false,
            auth: None,
            echo: None,
            unaffiliated: false,
            echo_rx: None,
            min_ttl: 255,
            sightings: 0,
        }
    }
}

/// What came with a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Who sent it.
    pub remote: IpAddr,
    /// The address it was sent to.
    pub local: IpAddr,
    /// The interface that it came in on.
    pub interface: Option<Arc<str>>,
    /// Its TTL or hop limit.
    pub ttl: u8,
    /// Whether it came to the multihop port (4784).
    pub multihop: bool,
}

/// What happens to the sessions.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// All sessions, as they should be.
    SetSessions(&'a BTreeMap<SessionId, SessionConfig>),
    /// A control packet arrived.
    Received(&'a Meta, &'a [u8]),
    /// A control packet was read that had waited for this long in its socket: it says what it says, but the silence since
    /// then is a silence.
    ReceivedLate(&'a Meta, &'a [u8], Duration),
    /// An echo packet of ours came back.
    EchoReceived(&'a Meta, &'a [u8]),
    /// Something other than BFD is known of the path of a session (RFC 5880 sections 6.8.15 and 6.8.17): a reset of the
    /// forwarding plane or a path that is down takes the session down, a concatenated path is only told to the other end,
    /// `None` takes that back.
    Path(&'a SessionId, Diagnostic),
    /// The driver itself slept through this long. Silence meanwhile proves nothing: a session whose detection time has
    /// passed gets one more interval before it is declared down, once a silence.
    Stalled(Duration),
    /// A deadline has come. The driver has read what waited in its sockets before.
    Timeout,
}

/// A session changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub session: SessionId,
    /// From.
    pub from: State,
    /// To.
    pub to: State,
    /// Why.
    pub diagnostic: Diagnostic,
    /// The state that the other end told last.
    pub remote_state: State,
}

/// What the sessions want done, and what they tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this control packet.
    Transmit(SessionId, Vec<u8>),
    /// Send this echo packet: to ourselves, by way of the other end.
    Echo(SessionId, Vec<u8>),
    /// The state of a session changed.
    Changed(Change),
}

/// What is to be said of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// Our state.
    pub state: State,
    /// Since when. It moves with every change: who reads Up twice with another `since` has missed a Down in between.
    pub since: Instant,
    /// Why it last left Up.
    pub diagnostic: Diagnostic,
    /// The other end's state.
    pub remote_state: State,
    /// The other end's diagnostic.
    pub remote_diagnostic: Diagnostic,
    /// Our discriminator.
    pub local_discriminator: u32,
    /// The other end's discriminator, 0 while unknown.
    pub remote_discriminator: u32,
    /// The interval at which we send now.
    pub transmit_interval: Duration,
    /// After how long a silence the session goes down; zero while not known.
    pub detection_time: Duration,
}
