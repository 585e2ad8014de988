//! A speaker among neighbours that say exactly the octets that a test writes, and what it answers them.
//!
//! The octets are made and read here by hand, apart from the speaker's own code.
#![allow(dead_code, reason = "each test file uses its part")]
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::BytesMut;
use martlet_bgp::{
    ConnectionId, Endpoints, Event, Input, Local, NeighborConfig, NeighborId, NeighborState, Output, Speaker, Ticket,
};
use martlet_clock::Instant;

pub const MARKER: [u8; 16] = [0xff; 16];

/// A whole message.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap();
    [&MARKER[..], &length.to_be_bytes(), &[kind], body].concat()
}

pub fn keepalive() -> Vec<u8> {
    message(4, &[])
}

/// An OPEN from 10.0.0.`last`, with these capabilities in one parameter.
pub fn open(asn: u16, last: u8, capabilities: &[u8]) -> Vec<u8> {
    let mut body = vec![4];
    body.extend(asn.to_be_bytes());
    body.extend([0, 90, 10, 0, 0, last]);
    if capabilities.is_empty() {
        body.push(0);
    } else {
        let length = u8::try_from(capabilities.len()).unwrap();
        body.extend([length + 2, 2, length]);
        body.extend(capabilities);
    }
    message(1, &body)
}

/// The capabilities of a modern neighbour: both families, refresh, four octets.
pub fn modern(asn: u32) -> Vec<u8> {
    let mut all = vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 70, 0, 65, 4];
    all.extend(asn.to_be_bytes());
    all
}

pub fn attribute(flags: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    if value.len() > 255 || flags & 0x10 != 0 {
        let length = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[flags | 0x10, kind], &length[..], value].concat()
    } else {
        [&[flags, kind, u8::try_from(value.len()).unwrap()], value].concat()
    }
}

pub fn origin() -> Vec<u8> {
    attribute(0x40, 1, &[0])
}

/// A sequence of four-octet numbers.
pub fn path(numbers: &[u32]) -> Vec<u8> {
    let mut value = vec![2, u8::try_from(numbers.len()).unwrap()];
    value.extend(numbers.iter().flat_map(|asn| asn.to_be_bytes()));
    attribute(0x40, 2, &value)
}

pub fn next_hop(last: u8) -> Vec<u8> {
    attribute(0x40, 3, &[10, 0, 0, last])
}

/// What every route of AS 65001 at 10.0.0.2 has.
pub fn usual() -> Vec<u8> {
    [origin(), path(&[65001]), next_hop(2)].concat()
}

pub fn update(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let length = |field: &[u8]| u16::try_from(field.len()).unwrap().to_be_bytes();
    message(2, &[&length(withdrawn), withdrawn, &length(attributes), attributes, nlri].concat())
}

/// 10.`n`.0.0/16 as a field.
pub fn net(n: u8) -> [u8; 3] {
    [16, 10, n]
}

/// An UPDATE that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    pub withdrawn: BTreeSet<String>,
    /// By type: flags (without the extended length), value. MP attributes are taken out.
    pub attributes: BTreeMap<u8, (u8, Vec<u8>)>,
    pub next_hop: Vec<u8>,
    pub nlri: BTreeSet<String>,
    pub length: usize,
}

fn prefixes(mut field: &[u8], six: bool) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    while let [length, rest @ ..] = field {
        let octets = usize::from(length.div_ceil(8));
        let text = if six {
            let mut bits = [0; 16];
            bits[..octets].copy_from_slice(&rest[..octets]);
            format!("{}/{length}", Ipv6Addr::from(bits))
        } else {
            let mut bits = [0; 4];
            bits[..octets].copy_from_slice(&rest[..octets]);
            format!("{}/{length}", Ipv4Addr::from(bits))
        };
        assert!(all.insert(text), "a prefix twice in a message");
        field = &rest[octets..];
    }
    all
}

/// Reads an UPDATE's body.
pub fn read(body: &[u8]) -> Heard {
    let two = |at: usize| usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
    let withdrawn = two(0);
    let attributes = two(2 + withdrawn);
    let mut heard = Heard { length: body.len() + 19, ..Heard::default() };
    heard.withdrawn = prefixes(&body[2..2 + withdrawn], false);
    let mut field = &body[4 + withdrawn..4 + withdrawn + attributes];
    heard.nlri = prefixes(&body[4 + withdrawn + attributes..], false);
    while !field.is_empty() {
        let (flags, kind) = (field[0], field[1]);
        let (length, start) = if flags & 0x10 == 0 {
            (usize::from(field[2]), 3)
        } else {
            (usize::from(u16::from_be_bytes([field[2], field[3]])), 4)
        };
        let value = &field[start..start + length];
        match kind {
            14 => {
                let hop = usize::from(value[3]);
                heard.next_hop = value[4..4 + hop].to_vec();
                heard.nlri.extend(prefixes(&value[5 + hop..], value[1] == 2));
            }
            15 => heard.withdrawn.extend(prefixes(&value[3..], value[1] == 2)),
            3 => heard.next_hop = value.to_vec(),
            _ => assert!(
                heard.attributes.insert(kind, (flags & !0x10, value.to_vec())).is_none(),
                "attribute {kind} twice"
            ),
        }
        field = &field[start + length..];
    }
    heard
}

/// One speaker, 10.0.0.1, and its neighbours: `n2` at 10.0.0.2, `n3` at 10.0.0.3, ..
pub struct Stage {
    pub now: Instant,
    pub speaker: Speaker,
    pub configs: BTreeMap<NeighborId, NeighborConfig>,
    pub events: Vec<Event>,
    /// By connection: what it was sent.
    pub sent: BTreeMap<ConnectionId, Vec<u8>>,
    pub closed: BTreeSet<ConnectionId>,
    pub accepted: BTreeMap<Ticket, ConnectionId>,
    pub refused: BTreeSet<Ticket>,
    pub connects: Vec<(NeighborId, ConnectionId)>,
    waiting: Vec<ConnectionId>,
    tickets: u64,
    /// How much a connection takes at once; 0: nothing.
    pub room: usize,
}

pub fn name(last: u8) -> NeighborId {
    NeighborId::new(&format!("n{last}"))
}

pub fn endpoints(last: u8) -> Endpoints {
    Endpoints {
        local: "10.0.0.1:179".parse().unwrap(),
        remote: format!("10.0.0.{last}:179").parse().unwrap(),
        local_link_local: None,
        local_other: Some("2001:db8::1".parse().unwrap()),
    }
}

impl Stage {
    pub fn new(configs: impl IntoIterator<Item = (u8, NeighborConfig)>) -> Self {
        let local = Local { router_id: Ipv4Addr::new(10, 0, 0, 1), forwarding_preserved: false };
        let mut stage = Self {
            now: Instant::from_millis(1),
            speaker: Speaker::new(local, 1),
            configs: configs
                .into_iter()
                .map(|(last, config)| (name(last), NeighborConfig { passive: true, ..config }))
                .collect(),
            events: Vec::new(),
            sent: BTreeMap::new(),
            closed: BTreeSet::new(),
            accepted: BTreeMap::new(),
            refused: BTreeSet::new(),
            connects: Vec::new(),
            waiting: Vec::new(),
            tickets: 0,
            room: 1 << 20,
        };
        let configs = stage.configs.clone();
        stage.handle(Input::SetNeighbors(&configs));
        stage.handle(Input::SetAnnounced(&BTreeSet::new()));
        stage
    }

    pub fn handle(&mut self, input: Input<'_>) {
        self.speaker.handle(self.now, input);
        assert!(self.speaker.deadline().is_none_or(|at| at > self.now), "a deadline in the past");
        while let Some(output) = self.speaker.poll() {
            match output {
                Output::Connect(name, id) => self.connects.push((name, id)),
                Output::Accept(ticket, id) => drop(self.accepted.insert(ticket, id)),
                Output::Refuse(ticket) => drop(self.refused.insert(ticket)),
                Output::Ready(id) => self.waiting.push(id),
                Output::Close(id) => {
                    self.take(id);
                    self.closed.insert(id);
                }
                Output::RoutesChanged => (),
                Output::Event(event) => self.events.push(event),
            }
        }
        self.drain();
    }

    /// Takes what waits, as far as there is room.
    pub fn drain(&mut self) {
        while self.room > 0
            && let Some(id) = self.waiting.pop()
        {
            if self.take(id) {
                self.waiting.push(id);
            }
        }
    }

    fn take(&mut self, id: ConnectionId) -> bool {
        let mut buffer = BytesMut::new();
        let more = self.speaker.transmit(self.now, id, &mut buffer, self.room.max(1));
        self.sent.entry(id).or_default().extend_from_slice(&buffer);
        more
    }

    /// A connection from a neighbour.
    pub fn connect(&mut self, last: u8) -> Option<ConnectionId> {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.handle(Input::Incoming(ticket, &name(last), endpoints(last)));
        self.accepted.get(&ticket).copied()
    }

    pub fn say(&mut self, id: ConnectionId, octets: &[u8]) {
        self.handle(Input::Received(id, octets));
    }

    /// A session with the neighbour 10.0.0.`last`, which says that it is AS `asn` and has `capabilities`.
    pub fn establish(&mut self, last: u8, asn: u16, capabilities: &[u8]) -> ConnectionId {
        let id = self.connect(last).unwrap();
        self.say(id, &open(asn, last, capabilities));
        self.say(id, &keepalive());
        assert_eq!(self.state(last), NeighborState::Established);
        id
    }

    pub fn state(&self, last: u8) -> NeighborState {
        self.speaker.status()[&name(last)].state
    }

    /// Lets time pass.
    pub fn until(&mut self, millis: u64) {
        while let Some(next) = self.speaker.deadline().filter(|&next| next <= Instant::from_millis(millis)) {
            self.now = next;
            self.handle(Input::Timeout);
        }
        self.now = Instant::from_millis(millis);
    }

    /// All messages that a connection was sent, and forgets them.
    pub fn messages(&mut self, id: ConnectionId) -> Vec<(u8, Vec<u8>)> {
        let octets = self.sent.remove(&id).unwrap_or_default();
        let mut rest = &octets[..];
        let mut all = Vec::new();
        while !rest.is_empty() {
            assert_eq!(rest[..16], MARKER);
            let length = usize::from(u16::from_be_bytes([rest[16], rest[17]]));
            all.push((rest[18], rest[19..length].to_vec()));
            rest = &rest[length..];
        }
        all
    }

    /// All UPDATEs that a connection was sent but for End-of-RIB, and forgets all messages.
    pub fn heard(&mut self, id: ConnectionId) -> Vec<Heard> {
        let all = self.messages(id).into_iter().filter(|(kind, _)| *kind == 2);
        let all = all.map(|(_, body)| read(&body));
        all.filter(|heard| !heard.nlri.is_empty() || !heard.withdrawn.is_empty()).collect()
    }

    /// The NOTIFICATION that a connection was sent: code, subcode, data.
    pub fn notification(&mut self, id: ConnectionId) -> Option<(u8, u8, Vec<u8>)> {
        let (_, body) = self.messages(id).into_iter().find(|(kind, _)| *kind == 3)?;
        Some((body[0], body[1], body[2..].to_vec()))
    }

    pub fn routes(&self) -> BTreeSet<String> {
        self.speaker.prefixes().map(|net| net.to_string()).collect()
    }
}
