//! Speakers connected back to back in memory: a play in time, without sockets.
#![allow(dead_code, reason = "each test file uses its part")]
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};

use bytes::BytesMut;
use ipnet::IpNet;
use martlet_bgp::{
    CloseReason, ConnectionId, Endpoints, Event, Input, Local, NeighborConfig, NeighborId, NeighborState, Output,
    Speaker, Ticket,
};
use martlet_clock::Instant;

/// `millis` after the beginning.
pub fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

pub fn nets(all: &[&str]) -> BTreeSet<IpNet> {
    all.iter().map(|net| net.parse().unwrap()).collect()
}

pub fn id(name: &str) -> NeighborId {
    NeighborId::new(name)
}

pub fn local(last: u8) -> Local {
    Local { router_id: Ipv4Addr::new(10, 0, 0, last), forwarding_preserved: false }
}

pub fn endpoints(local: &str, remote: &str) -> Endpoints {
    Endpoints {
        local: SocketAddr::new(local.parse().unwrap(), 179),
        remote: SocketAddr::new(remote.parse().unwrap(), 179),
        local_link_local: None,
        local_other: None,
    }
}

/// One end of a wire: which speaker, under which id.
type End = (usize, ConnectionId);

/// A speaker and what it calls the other.
pub struct Side {
    pub speaker: Speaker,
    pub events: Vec<Event>,
    pub address: &'static str,
    pub other: Option<std::net::IpAddr>,
    /// Whether its neighbour's connects and octets reach it.
    pub listens: bool,
    pub bytes: u64,
}

/// Two speakers: 0 is called `a`, 1 is called `b`.
pub struct World {
    pub now: Instant,
    pub sides: [Side; 2],
    wires: BTreeMap<End, End>,
    asking: BTreeMap<u64, End>,
    tickets: u64,
    ready: VecDeque<End>,
    /// Nothing passes: neither octets nor connects nor their refusal.
    pub cut: bool,
    lost: Vec<(End, Vec<u8>)>,
    pub room: usize,
}

pub const NAMES: [&str; 2] = ["b", "a"];

impl World {
    pub fn new(a: NeighborConfig, b: NeighborConfig) -> Self {
        Self::with(a, b, ["10.0.0.1", "10.0.0.2"])
    }

    pub fn with(a: NeighborConfig, b: NeighborConfig, addresses: [&'static str; 2]) -> Self {
        let side = |index: u8, address| Side {
            speaker: Speaker::new(local(index), index.into()),
            events: Vec::new(),
            address,
            other: None,
            listens: true,
            bytes: 0,
        };
        let mut world = Self {
            now: at(1),
            sides: [side(1, addresses[0]), side(2, addresses[1])],
            wires: BTreeMap::new(),
            asking: BTreeMap::new(),
            tickets: 0,
            ready: VecDeque::new(),
            cut: false,
            lost: Vec::new(),
            room: 65536,
        };
        world.configure(0, a);
        world.configure(1, b);
        world
    }

    pub fn configure(&mut self, side: usize, config: NeighborConfig) {
        let all = BTreeMap::from([(id(NAMES[side]), config)]);
        self.handle(side, Input::SetNeighbors(&all));
    }

    pub fn announce(&mut self, side: usize, all: &[&str]) {
        self.handle(side, Input::SetAnnounced(&nets(all)));
    }

    /// A new life for one side: its connections are reset, or just vanish.
    pub fn restart(&mut self, side: usize, config: NeighborConfig, reset: bool) {
        self.sides[side].speaker = Speaker::new(local(u8::try_from(side).unwrap() + 1), 77);
        let gone: Vec<End> = self.wires.keys().copied().filter(|end| end.0 == side).collect();
        for end in gone {
            let other = self.wires.remove(&end).unwrap();
            self.wires.remove(&other);
            if reset {
                self.feed(other.0, Input::Closed(other.1, CloseReason::Reset));
            }
        }
        self.asking.retain(|_, end| end.0 != side);
        self.configure(side, config);
    }

    pub fn handle(&mut self, side: usize, input: Input<'_>) {
        self.feed(side, input);
        self.settle();
    }

    fn feed(&mut self, side: usize, input: Input<'_>) {
        let now = self.now;
        let speaker = &mut self.sides[side].speaker;
        speaker.handle(now, input);
        assert!(speaker.deadline().is_none_or(|at| at > now), "a deadline in the past");
        let mut outputs = 0;
        while let Some(output) = self.sides[side].speaker.poll() {
            outputs += 1;
            assert!(outputs < 20_000, "too many outputs");
            self.output(side, output);
        }
    }

    fn ends(&self, side: usize) -> Endpoints {
        Endpoints {
            local_other: self.sides[side].other,
            ..endpoints(self.sides[side].address, self.sides[1 - side].address)
        }
    }

    fn output(&mut self, side: usize, output: Output) {
        match output {
            Output::Connect(_, connection) => {
                self.tickets += 1;
                self.asking.insert(self.tickets, (side, connection));
                if !self.cut && self.sides[1 - side].listens {
                    let ends = self.ends(1 - side);
                    let ticket = Ticket(self.tickets);
                    self.feed(1 - side, Input::Incoming(ticket, &id(NAMES[1 - side]), ends));
                } else if !self.cut {
                    self.asking.remove(&self.tickets);
                    self.feed(side, Input::Closed(connection, CloseReason::Refused));
                }
            }
            Output::Accept(ticket, connection) => {
                let Some(asker) = self.asking.remove(&ticket.0) else { return };
                self.wires.insert(asker, (side, connection));
                self.wires.insert((side, connection), asker);
                let ends = self.ends(asker.0);
                self.feed(asker.0, Input::Connected(asker.1, ends));
            }
            Output::Refuse(ticket) => {
                if let Some(asker) = self.asking.remove(&ticket.0) {
                    self.feed(asker.0, Input::Closed(asker.1, CloseReason::Reset));
                }
            }
            Output::Ready(connection) => self.ready.push_back((side, connection)),
            Output::Close(connection) => {
                self.send((side, connection));
                self.asking.retain(|_, end| *end != (side, connection));
                if let Some(other) = self.wires.remove(&(side, connection)) {
                    self.wires.remove(&other);
                    if !self.cut {
                        self.feed(other.0, Input::Closed(other.1, CloseReason::EndOfFile));
                    }
                }
            }
            Output::RoutesChanged => (),
            Output::Event(event) => self.sides[side].events.push(event),
        }
    }

    fn send(&mut self, end: End) {
        let mut buffer = BytesMut::new();
        let more = self.sides[end.0].speaker.transmit(self.now, end.1, &mut buffer, self.room);
        self.sides[end.0].bytes += u64::try_from(buffer.len()).unwrap();
        if more {
            self.ready.push_back(end);
        }
        if let Some(&other) = self.wires.get(&end)
            && !buffer.is_empty()
        {
            if self.cut {
                self.lost.push((other, buffer.to_vec()));
            } else {
                self.feed(other.0, Input::Received(other.1, &buffer));
            }
        }
    }

    /// Lets everything happen that happens at once.
    pub fn settle(&mut self) {
        let mut rounds = 0;
        while let Some(end) = self.ready.pop_front() {
            rounds += 1;
            assert!(rounds < 100_000, "it never becomes quiet");
            self.send(end);
        }
    }

    /// The path is whole again: what TCP held back arrives.
    pub fn mend(&mut self) {
        self.cut = false;
        for (end, octets) in std::mem::take(&mut self.lost) {
            if self.wires.contains_key(&end) {
                self.feed(end.0, Input::Received(end.1, &octets));
            }
        }
        self.settle();
    }

    /// Lets time pass until `millis`.
    pub fn until(&mut self, millis: u64) {
        self.settle();
        loop {
            let deadlines = [0, 1].map(|side| self.sides[side].speaker.deadline());
            let Some(next) = deadlines.into_iter().flatten().min().filter(|&next| next <= at(millis)) else { break };
            self.now = next;
            for (side, deadline) in deadlines.into_iter().enumerate() {
                if deadline == Some(next) {
                    self.handle(side, Input::Timeout);
                }
            }
        }
        self.now = at(millis);
    }

    pub fn state(&self, side: usize) -> NeighborState {
        self.sides[side].speaker.status()[&id(NAMES[side])].state
    }

    pub fn both_established(&self) -> bool {
        [0, 1].into_iter().all(|side| self.state(side) == NeighborState::Established)
    }

    /// What a side knows: prefix, next hop.
    pub fn routes(&self, side: usize) -> BTreeMap<String, String> {
        let speaker = &self.sides[side].speaker;
        let hops =
            |net: &IpNet| speaker.paths(net).iter().map(|path| path.next_hop.to_string()).collect::<Vec<_>>().join(" ");
        speaker.prefixes().map(|net| (net.to_string(), hops(&net))).collect()
    }

    /// The codes of all ends of connections that a side was told of.
    pub fn closes(&self, side: usize) -> Vec<(Option<(u8, u8)>, bool)> {
        let close = |event: &Event| match event {
            Event::Closed { code, sent, .. } => Some((*code, *sent)),
            _ => None,
        };
        self.sides[side].events.iter().filter_map(close).collect()
    }

    pub fn established_count(&self, side: usize) -> usize {
        self.sides[side].events.iter().filter(|event| matches!(event, Event::Established { .. })).count()
    }
}
