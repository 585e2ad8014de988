//! A BGP speaker of a few lines that says exactly the octets it is given: for malformed messages and for feeds.
//!
//! It keeps no state machine: who plays it knows what comes next. The octets are made by hand, apart from the product's code.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;
use crate::wait::{LIMIT, Seen, until};

/// OPEN.
pub const OPEN: u8 = 1;
/// UPDATE.
pub const UPDATE: u8 = 2;
/// NOTIFICATION.
pub const NOTIFICATION: u8 = 3;
/// KEEPALIVE.
pub const KEEPALIVE: u8 = 4;

/// What a player says of itself.
#[derive(Clone, Debug)]
pub struct Who {
    /// Its AS number.
    pub asn: u32,
    /// Its BGP identifier.
    pub router_id: Ipv4Addr,
    /// Its hold time, seconds.
    pub hold_time_s: u16,
    /// Its capabilities, as octets.
    pub capabilities: Vec<u8>,
}

impl Who {
    /// With IPv4, IPv6, route refresh and four-octet AS numbers.
    pub fn modern(asn: u32, router_id: Ipv4Addr) -> Self {
        let families = [1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 70, 0];
        let capabilities = [&families[..], &[65, 4], &asn.to_be_bytes()].concat();
        Self { asn, router_id, hold_time_s: 90, capabilities }
    }

    /// The same without four-octet AS numbers (RFC 6793).
    pub fn old(asn: u16, router_id: Ipv4Addr) -> Self {
        let modern = Self::modern(asn.into(), router_id);
        let kept = modern.capabilities.len() - 6;
        Self { capabilities: modern.capabilities.into_iter().take(kept).collect(), ..modern }
    }

    /// The OPEN.
    pub fn open(&self) -> Vec<u8> {
        let mut body = vec![4];
        body.extend(u16::try_from(self.asn).unwrap_or(23456).to_be_bytes());
        body.extend(self.hold_time_s.to_be_bytes());
        body.extend(self.router_id.octets());
        let length = u8::try_from(self.capabilities.len()).unwrap_or(u8::MAX);
        body.extend([length.saturating_add(2), 2, length]);
        body.extend(&self.capabilities);
        message(OPEN, &body)
    }
}

/// A whole message.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap_or(u16::MAX);
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}

/// An UPDATE of prefixes withdrawn, path attributes, and prefixes announced; of nothing at all it is the End-of-RIB of IPv4.
pub fn update(withdrawn: &[u8], attributes: &[u8], announced: &[u8]) -> Vec<u8> {
    let length = |field: &[u8]| u16::try_from(field.len()).unwrap_or(u16::MAX).to_be_bytes();
    message(UPDATE, &[&length(withdrawn), withdrawn, &length(attributes), attributes, announced].concat())
}

/// The path attributes of a route of one's own: IGP, a path of one AS in four octets, the next hop.
pub fn path(asn: u32, next_hop: Ipv4Addr) -> Vec<u8> {
    let [path, hop] = [asn.to_be_bytes(), next_hop.octets()];
    [&[0x40, 1, 1, 0, 0x40, 2, 6, 2, 1][..], &path, &[0x40, 3, 4], &hop].concat()
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A message: type and body.
    Message(u8, Vec<u8>),
    /// The other side closed, or reset, the connection.
    Closed,
    /// Nothing, for as long as was waited.
    Nothing,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Player {
    stream: TcpStream,
    held: Vec<u8>,
    /// Octets of what is held that were taken already: moved away once a read, not once a message.
    taken: usize,
    /// When it last said something.
    spoke: Instant,
}

impl Player {
    fn new(stream: TcpStream) -> Self {
        Self { stream, held: Vec::new(), taken: 0, spoke: Instant::now() }
    }

    /// Connects from one address to another, in a namespace; tries until somebody listens.
    ///
    /// # Errors
    /// Nobody does, for long.
    pub fn connect(namespace: &Namespace, local: IpAddr, remote: SocketAddr) -> Result<Self> {
        let stream = namespace.inside(|| {
            until(&format!("somebody to listen at {remote}"), LIMIT, || {
                Ok(match connect(local, remote) {
                    Ok(stream) => Seen::Yes(stream),
                    Err(error) => Seen::not_yet(error.to_string()),
                })
            })
        })??;
        Ok(Self::new(stream))
    }

    /// A listener in a namespace.
    ///
    /// # Errors
    /// It cannot be bound.
    pub fn listen(namespace: &Namespace, local: SocketAddr) -> Result<TcpListener> {
        namespace.inside(|| TcpListener::bind(local))?.with_context(|| format!("listen at {local}"))
    }

    /// The connection that a listener takes next.
    ///
    /// # Errors
    /// The socket fails.
    pub fn accept(listener: &TcpListener) -> Result<Self> {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        Ok(Self::new(stream))
    }

    /// Says octets.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn say(&mut self, octets: &[u8]) -> Result<()> {
        self.spoke = Instant::now();
        self.stream.write_all(octets).context("say")
    }

    /// Says a KEEPALIVE, unless it said something within `interval`.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn stay(&mut self, interval: Duration) -> Result<()> {
        if self.spoke.elapsed() > interval { self.say(&message(KEEPALIVE, &[])) } else { Ok(()) }
    }

    /// Keeps a session alive until told to end; what comes is thrown away.
    ///
    /// # Errors
    /// The other side ends it.
    pub fn keep(&mut self, interval: Duration, end: &AtomicBool) -> Result<()> {
        while !end.load(Ordering::Relaxed) {
            match self.next(Duration::from_millis(200))? {
                Said::Closed => bail!("the session was closed"),
                Said::Message(NOTIFICATION, words) => bail!("the session was ended: {words:?}"),
                _ => self.stay(interval)?,
            }
        }
        Ok(())
    }

    /// A second handle for writing, so that one thread feeds while another listens.
    ///
    /// # Errors
    /// The socket cannot be duplicated.
    pub fn mouth(&self) -> Result<TcpStream> {
        Ok(self.stream.try_clone()?)
    }

    /// The next message, waiting for it at most so long.
    ///
    /// # Errors
    /// What came is no message.
    pub fn next(&mut self, limit: Duration) -> Result<Said> {
        let end = Instant::now() + limit;
        loop {
            if let Some(said) = self.whole()? {
                return Ok(said);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Said::Nothing);
            }
            if !self.read(left)? {
                return Ok(Said::Closed);
            }
        }
    }

    /// Reads once; false at the end.
    fn read(&mut self, limit: Duration) -> Result<bool> {
        self.stream.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
        self.held.drain(..self.taken);
        self.taken = 0;
        let held = self.held.len();
        self.held.resize(held + 65536, 0);
        let read = self.stream.read(self.held.get_mut(held..).unwrap_or_default());
        self.held.truncate(held + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Ok(false),
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(true),
            Err(_) => Ok(false),
        }
    }

    fn whole(&mut self) -> Result<Option<Said>> {
        let held = self.held.get(self.taken..).unwrap_or_default();
        let Some((header, _)) = held.split_first_chunk::<19>() else { return Ok(None) };
        let [.., high, low, kind] = *header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < 19 {
            bail!("a message of {length} octets");
        }
        let Some(body) = held.get(19..length) else { return Ok(None) };
        self.taken += length;
        Ok(Some(Said::Message(kind, body.to_vec())))
    }

    /// Exchanges OPENs; the session is in `OpenConfirm` at the other side once its KEEPALIVE is read.
    ///
    /// # Errors
    /// It says something else.
    pub fn open(&mut self, who: &Who) -> Result<()> {
        self.say(&who.open())?;
        for wanted in [OPEN, KEEPALIVE] {
            match self.next(LIMIT)? {
                Said::Message(kind, _) if kind == wanted => {}
                other => bail!("{other:?}, not a message of type {wanted}"),
            }
        }
        Ok(())
    }

    /// Exchanges OPENs and KEEPALIVEs.
    ///
    /// # Errors
    /// It says something else.
    pub fn establish(&mut self, who: &Who) -> Result<()> {
        self.open(who)?;
        self.say(&message(KEEPALIVE, &[]))
    }
}

fn connect(local: IpAddr, remote: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(remote), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(local, 0).into())?;
    socket.connect_timeout(&remote.into(), Duration::from_secs(2))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// The IPv4 and IPv6 prefixes that an UPDATE announces and withdraws, in octets as they stand there; IPv6 ones after a 6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// Announced.
    pub announced: Vec<Vec<u8>>,
    /// Withdrawn.
    pub withdrawn: Vec<Vec<u8>>,
    /// Path attributes by type, with their value; not those that hold prefixes.
    pub attributes: Vec<(u8, Vec<u8>)>,
}

fn split(field: &[u8], at: usize) -> Option<(&[u8], &[u8])> {
    field.split_at_checked(at)
}

fn sixteen(field: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = field.split_first_chunk::<2>()?;
    split(rest, usize::from(u16::from_be_bytes(length)))
}

fn cut(mut field: &[u8], family: &[u8], all: &mut Vec<Vec<u8>>) {
    while let Some(&bits) = field.first() {
        let Some((prefix, rest)) = split(field, 1 + usize::from(bits.div_ceil(8))) else { return };
        all.push([family, prefix].concat());
        field = rest;
    }
}

impl Prefixes {
    /// Of the body of an UPDATE that is well-formed; what is not is left out.
    pub fn of(body: &[u8]) -> Self {
        Self::read(body).unwrap_or_default()
    }

    fn read(body: &[u8]) -> Option<Self> {
        let mut all = Self::default();
        let (withdrawn, rest) = sixteen(body)?;
        let (mut attributes, nlri) = sixteen(rest)?;
        cut(withdrawn, &[], &mut all.withdrawn);
        cut(nlri, &[], &mut all.announced);
        while let Some((&[flags, kind], rest)) = attributes.split_first_chunk::<2>() {
            let (value, rest) = if flags & 0x10 == 0 {
                let (&length, rest) = rest.split_first()?;
                split(rest, usize::from(length))?
            } else {
                sixteen(rest)?
            };
            attributes = rest;
            match kind {
                14 => {
                    let (head, rest) = split(value, 4)?;
                    let (_, nlri) = split(rest, usize::from(*head.get(3)?) + 1)?;
                    let family: &[u8] = if head.get(1) == Some(&2) { &[6] } else { &[] };
                    cut(nlri, family, &mut all.announced);
                }
                15 => {
                    let (head, nlri) = split(value, 3)?;
                    let family: &[u8] = if head.get(1) == Some(&2) { &[6] } else { &[] };
                    cut(nlri, family, &mut all.withdrawn);
                }
                _ => all.attributes.push((kind, value.to_vec())),
            }
        }
        Some(all)
    }
}
