//! The naive peer: a gateway written apart from our speaker, as plainly as it can be.
//!
//! It says OPEN, announces a few prefixes, keeps a plain map of what it hears, and gives up after the hold time. No policy, no
//! collision logic (the pod decides), no errors. On demand it sends what no good peer would.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use martlet_clock::Dice;

use crate::decode::{self, Message, Tap};
use crate::link::Node;

const SECOND: u64 = 1_000_000_000;
/// How long its routes are to be kept over a restart, if it asks for that.
pub const RESTART_S: u8 = 6;

/// What it wants done.
#[derive(Debug)]
pub enum Want {
    /// Send this.
    Send(usize, Vec<u8>),
    /// Close this.
    Close(usize),
    /// Connect to this pod.
    Connect(usize, bool),
}

/// A connection.
#[derive(Debug)]
struct Talk {
    pod: usize,
    ipv4: bool,
    heard: Tap,
    opened: bool,
    established: bool,
    hold_s: u64,
    heard_at: u64,
    said_at: u64,
}

/// The peer.
#[derive(Debug)]
pub struct Peer {
    asn: u32,
    id: Ipv4Addr,
    address: [IpAddr; 2],
    /// What it announces.
    pub routes: Vec<IpNet>,
    talks: BTreeMap<usize, Talk>,
    /// When it was last without a connection to a pod.
    alone: BTreeMap<(usize, bool), u64>,
    /// What it wants done.
    pub wants: Vec<Want>,
    /// Which of the OPENs that no good peer sends it sends.
    pub rude: Option<u64>,
    /// It asks for graceful restart; whether it says that it has kept forwarding.
    pub graceful: Option<bool>,
}

impl Peer {
    /// A peer that nobody has talked to. Its addresses: of IPv6, of IPv4.
    pub fn new(asn: u32, id: Ipv4Addr, address: [IpAddr; 2], routes: Vec<IpNet>) -> Self {
        let (talks, alone) = (BTreeMap::new(), BTreeMap::new());
        Self { asn, id, address, routes, talks, alone, wants: Vec::new(), rude: None, graceful: None }
    }

    /// A connection is there.
    pub fn connected(&mut self, now: u64, stream: usize, from: Node, ipv4: bool) {
        let Node::Pod(pod) = from else { return };
        let restart = self.graceful.map(|kept| {
            // RFC 4724 section 3: the R bit, the time, a family with the F bit.
            let (first, forwards) = if kept { (0x80, 0x80) } else { (0, 0) };
            vec![64, 6, first, RESTART_S, 0, if ipv4 { 1 } else { 2 }, 1, forwards]
        });
        let open = match self.rude {
            None => decode::open_message(self.asn, 3, self.id, ipv4, &restart.unwrap_or_default()),
            Some(kind) => rude_open(kind, self.asn, self.id, ipv4),
        };
        let talk = Talk {
            pod,
            ipv4,
            heard: Tap::default(),
            opened: false,
            established: false,
            hold_s: 240,
            heard_at: now,
            said_at: now,
        };
        self.talks.insert(stream, talk);
        self.wants.push(Want::Send(stream, open));
    }

    /// Bytes came.
    pub fn received(&mut self, now: u64, stream: usize, octets: &[u8]) {
        let Some(talk) = self.talks.get_mut(&stream) else { return };
        talk.heard_at = now;
        for message in talk.heard.feed(octets) {
            let Some(talk) = self.talks.get_mut(&stream) else { return };
            let (pod, ipv4) = (talk.pod, talk.ipv4);
            match message {
                Message::Open { hold_time_s, .. } if !talk.opened => {
                    talk.opened = true;
                    talk.hold_s = u64::from(hold_time_s.min(3));
                    talk.said_at = now;
                    self.wants.push(Want::Send(stream, decode::message(4, &[])));
                }
                Message::Keepalive if talk.opened && !talk.established => {
                    talk.established = true;
                    let older = self.talks.iter().filter(|(other, talk)| {
                        **other != stream && talk.established && (talk.pod, talk.ipv4) == (pod, ipv4)
                    });
                    for other in older.map(|(other, _)| *other).collect::<Vec<_>>() {
                        self.talks.remove(&other);
                        self.wants.push(Want::Close(other));
                    }
                    self.tell(stream, ipv4);
                }
                Message::Refresh => self.tell(stream, ipv4),
                Message::Notification(..) | Message::Garbage => {
                    self.talks.remove(&stream);
                    self.wants.push(Want::Close(stream));
                }
                _ => {}
            }
        }
    }

    fn tell(&mut self, stream: usize, ipv4: bool) {
        let hop = self.address[usize::from(ipv4)];
        let mut all: Vec<u8> = Vec::new();
        for route in self.routes.iter().filter(|route| matches!(route, IpNet::V4(_)) == ipv4) {
            all.extend(decode::announce(self.asn, route, hop));
        }
        all.extend(decode::end_of_rib(ipv4));
        self.wants.push(Want::Send(stream, all));
    }

    /// A connection is gone.
    pub fn closed(&mut self, stream: usize) {
        self.talks.remove(&stream);
    }

    /// From now on it announces these.
    pub fn set_routes(&mut self, routes: Vec<IpNet>) {
        let before = std::mem::replace(&mut self.routes, routes);
        for (stream, talk) in self.talks.iter().filter(|(_, talk)| talk.established) {
            let hop = self.address[usize::from(talk.ipv4)];
            let mut octets = Vec::new();
            let of_family = |route: &&IpNet| matches!(route, IpNet::V4(_)) == talk.ipv4;
            for gone in before.iter().filter(of_family).filter(|route| !self.routes.contains(route)) {
                octets.extend(decode::withdraw(gone));
            }
            for new in self.routes.iter().filter(of_family).filter(|route| !before.contains(route)) {
                octets.extend(decode::announce(self.asn, new, hop));
            }
            if !octets.is_empty() {
                self.wants.push(Want::Send(*stream, octets));
            }
        }
    }

    /// Sends on every connection what no good peer sends.
    pub fn misbehave(&mut self, kind: u64, dice: &mut Dice) {
        for stream in self.talks.keys().copied().collect::<Vec<_>>() {
            let octets = nonsense(kind, self.asn, self.id, dice);
            self.wants.push(Want::Send(stream, octets));
        }
    }

    /// What it heard of a pod, if the session is Established.
    pub fn heard(&self, pod: usize, ipv4: bool) -> Option<&BTreeMap<IpNet, IpAddr>> {
        let mut of = self.talks.values().filter(|talk| talk.established && (talk.pod, talk.ipv4) == (pod, ipv4));
        of.next().map(|talk| &talk.heard.heard)
    }

    /// Announces a prefix by way of an address that nobody can reach, or withdraws it.
    pub fn off_link(&mut self, begins: bool) {
        for (stream, talk) in self.talks.iter().filter(|(_, talk)| talk.established) {
            let (prefix, hop) = if talk.ipv4 { ("40.0.0.0/16", "192.0.2.1") } else { ("2a00::/16", "2001:db8::1") };
            let (Ok(prefix), Ok(hop)) = (prefix.parse(), hop.parse()) else { return };
            let octets = if begins { decode::announce(self.asn, &prefix, hop) } else { decode::withdraw(&prefix) };
            self.wants.push(Want::Send(*stream, octets));
        }
    }

    /// Time passes: keepalives, hold timers, connects to pods that do not connect to us. One that does not read does not
    /// know that it hears nothing.
    pub fn tick(&mut self, now: u64, pods: usize, families: &[bool], deaf: bool) {
        let mut over = Vec::new();
        for (stream, talk) in &mut self.talks {
            if deaf {
                talk.heard_at = now;
            }
            if now >= talk.heard_at + talk.hold_s * SECOND {
                over.push((*stream, talk.opened));
            } else if talk.opened && now >= talk.said_at + SECOND {
                talk.said_at = now;
                self.wants.push(Want::Send(*stream, decode::message(4, &[])));
            }
        }
        for (stream, opened) in over {
            self.talks.remove(&stream);
            if opened {
                self.wants.push(Want::Send(stream, decode::message(3, &[4, 0])));
            }
            self.wants.push(Want::Close(stream));
        }
        for pod in 0..pods {
            for ipv4 in families {
                let key = (pod, *ipv4);
                if self.talks.values().any(|talk| (talk.pod, talk.ipv4) == key) {
                    self.alone.remove(&key);
                } else if now >= *self.alone.entry(key).or_insert(now) + 3 * SECOND {
                    self.alone.insert(key, now);
                    self.wants.push(Want::Connect(pod, *ipv4));
                }
            }
        }
    }
}

/// How many kinds of [`nonsense`] there are; from there on it is [`rude_open`].
pub const NONSENSE: u64 = 21;
/// How many kinds of [`rude_open`] there are.
pub const RUDE: u64 = 9;

/// An OPEN that no good peer sends.
fn rude_open(kind: u64, asn: u32, id: Ipv4Addr, ipv4: bool) -> Vec<u8> {
    // The other role than any that fits ours (RFC 9234): it counts where one is configured.
    let role: &[u8] = if kind % RUDE == 8 { &[9, 1, 3] } else { &[] };
    let mut open = decode::open_message(asn, 3, id, ipv4, role);
    let (place, octets): (usize, &[u8]) = match kind % RUDE {
        0 => (19, &[3]),
        1 => (20, &[0xfd, 0xe8]),
        2 => (22, &[0, 1]),
        3 => (24, &[0, 0, 0, 0]),
        4 => (29, &[9]),
        // A family that is neither.
        5 => (33, &[0, 25]),
        // An UPDATE where a KEEPALIVE is awaited.
        6 => {
            open.extend(decode::update(&[], &[], &[]));
            (19, &[4])
        }
        7 => return decode::message(4, &[]),
        _ => (19, &[4]),
    };
    for (there, octet) in open.iter_mut().skip(place).zip(octets) {
        *there = *octet;
    }
    // Another AS number stands in the capability, too.
    if kind % RUDE == 1
        && let Some(at) = open.windows(2).position(|pair| pair == [65, 4])
    {
        open.splice(at + 2..at + 6, [0, 0, 0xfd, 0xe8]);
    }
    open
}

/// What no good peer sends; each kind has its own NOTIFICATION.
fn nonsense(kind: u64, asn: u32, id: Ipv4Addr, dice: &mut Dice) -> Vec<u8> {
    let default = "0.0.0.0/0".parse().unwrap_or_default();
    let mut good = decode::announce(asn, &default, IpAddr::V4(id));
    match kind % NONSENSE {
        0 => vec![0; 19],
        1 => {
            let mut header = decode::message(4, &[]);
            header[17] = 18;
            header
        }
        2 => decode::message(9, &[]),
        3 => decode::message(4, &[0]),
        4 => decode::open_message(asn, 3, id, true, &[]),
        5 => decode::message(3, &[6, u8::try_from(dice.below(11)).unwrap_or_default()]),
        6 => decode::message(3, &[u8::try_from(dice.below(8)).unwrap_or_default(), 0]),
        7 => decode::message(2, &[0, 9, 0, 0]),
        8 => decode::update(&[], &[0x40, 1, 1, 7, 0x40, 2, 0], &[0]),
        9 => decode::update(&[], &[0x40, 1, 1, 0, 0x40, 1, 1, 0], &[0]),
        10 => decode::update(&[33, 1, 1, 1, 1, 1], &[], &[]),
        11 => decode::update(&[], &[0x00, 200, 1, 0], &[]),
        12 => decode::update(&[], &[0x40, 200, 1, 0], &[0]),
        13 => decode::update(&[], &decode::basics(asn), &[8, 30]),
        14 => decode::message(5, &[0, 1, 9, 1]),
        15 => decode::message(5, &[0]),
        // The begin of an enhanced refresh (RFC 7313) that is too long.
        18 => decode::message(5, &[0, 1, 1, 1, 0]),
        // AS_PATH too long for its attribute, NEXT_HOP of a wrong length.
        19 => decode::update(&[], &[0x40, 1, 1, 0, 0x40, 2, 4, 2, 9, 0, 0, 0x40, 3, 4, 1, 1, 1, 1], &[0]),
        20 => decode::update(&[], &[0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 3, 1, 1, 1], &[0]),
        16 => (0..dice.below(60)).map(|_| u8::try_from(dice.below(256)).unwrap_or_default()).collect(),
        _ => {
            let place = usize::try_from(19 + dice.below(20)).unwrap_or_default();
            if let Some(octet) = good.get_mut(place) {
                *octet ^= u8::try_from(1 + dice.below(255)).unwrap_or(1);
            }
            good
        }
    }
}
