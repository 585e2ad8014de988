//! Both sides open at once, and the network delivers in any order: one session, and it stays (RFC 4271 section 6.8).
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::BytesMut;
use martlet_bgp::{
    CloseReason, ConnectionId, Endpoints, Event, Family, Input, Local, NeighborConfig, NeighborId, NeighborState,
    Output, Speaker, Ticket,
};
use martlet_clock::{Dice, Instant};

/// What travels on a connection, in order.
#[derive(Clone, Debug)]
enum Item {
    Syn,
    Ack,
    Message(Vec<u8>),
    Fin,
}

/// What a side wants of the network.
enum Wish {
    Connect(u64),
    Say(u64, Vec<u8>),
    Close(u64),
    Accept(u64),
    Refuse(u64),
}

/// A side: connections are numbered by the network, an even number is one that side 0 opened.
trait Side {
    fn begin(&mut self, now: Instant) -> Vec<Wish>;
    fn arrives(&mut self, now: Instant, connection: u64, item: Item) -> Vec<Wish>;
    fn times_out(&mut self, now: Instant) -> Vec<Wish>;
    fn deadline(&self) -> Option<Instant>;
    /// How often it was Established, and whether it is.
    fn established(&self) -> (usize, bool);
}

struct Ours {
    side: u64,
    speaker: Speaker,
    ids: BTreeMap<u64, ConnectionId>,
    next: u64,
    count: usize,
}

fn name() -> NeighborId {
    NeighborId::new("other")
}

impl Ours {
    fn new(side: u64, seed: u64, last: u8) -> Self {
        let local = Local { router_id: Ipv4Addr::new(10, 0, 0, last), forwarding_preserved: false };
        Self { side, speaker: Speaker::new(local, seed), ids: BTreeMap::new(), next: side, count: 0 }
    }

    fn number(&self, id: ConnectionId) -> u64 {
        *self.ids.iter().find(|(_, one)| **one == id).unwrap().0
    }

    fn handle(&mut self, now: Instant, input: Input<'_>) -> Vec<Wish> {
        self.speaker.handle(now, input);
        let mut wishes = Vec::new();
        while let Some(output) = self.speaker.poll() {
            match output {
                Output::Connect(_, id) => {
                    self.ids.insert(self.next, id);
                    wishes.push(Wish::Connect(self.next));
                    self.next += 2;
                }
                Output::Accept(ticket, id) => {
                    self.ids.insert(ticket.0, id);
                    wishes.push(Wish::Accept(ticket.0));
                }
                Output::Refuse(ticket) => wishes.push(Wish::Refuse(ticket.0)),
                Output::Ready(id) => self.say(now, id, &mut wishes),
                Output::Close(id) => {
                    self.say(now, id, &mut wishes);
                    wishes.push(Wish::Close(self.number(id)));
                }
                Output::Event(Event::Established { .. }) => self.count += 1,
                Output::Event(_) | Output::RoutesChanged => (),
            }
        }
        wishes
    }

    fn say(&mut self, now: Instant, id: ConnectionId, wishes: &mut Vec<Wish>) {
        let mut buffer = BytesMut::new();
        while self.speaker.transmit(now, id, &mut buffer, 1 << 16) {}
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let length = usize::from(u16::from_be_bytes([rest[16], rest[17]]));
            wishes.push(Wish::Say(self.number(id), rest[..length].to_vec()));
            rest = &rest[length..];
        }
    }
}

impl Side for Ours {
    fn begin(&mut self, now: Instant) -> Vec<Wish> {
        let own = u32::try_from(65000 + self.side).unwrap();
        let config = NeighborConfig {
            connect_retry: Duration::from_secs(5),
            ..NeighborConfig::new(own, 130_001 - own, [Family::Ipv4])
        };
        self.handle(now, Input::SetNeighbors(&BTreeMap::from([(name(), config)])))
    }

    fn arrives(&mut self, now: Instant, connection: u64, item: Item) -> Vec<Wish> {
        let ends = Endpoints {
            local: "10.0.0.1:179".parse().unwrap(),
            remote: "10.0.0.2:179".parse().unwrap(),
            local_link_local: None,
            local_other: None,
        };
        let known = self.ids.get(&connection).copied();
        match (item, known) {
            (Item::Syn, _) => self.handle(now, Input::Incoming(Ticket(connection), &name(), ends)),
            (Item::Ack, Some(id)) => self.handle(now, Input::Connected(id, ends)),
            (Item::Message(octets), Some(id)) => self.handle(now, Input::Received(id, &octets)),
            (Item::Fin, Some(id)) => self.handle(now, Input::Closed(id, CloseReason::EndOfFile)),
            (_, None) => Vec::new(),
        }
    }

    fn times_out(&mut self, now: Instant) -> Vec<Wish> {
        self.handle(now, Input::Timeout)
    }

    fn deadline(&self) -> Option<Instant> {
        self.speaker.deadline()
    }

    fn established(&self) -> (usize, bool) {
        (self.count, self.speaker.status()[&name()].state == NeighborState::Established)
    }
}

/// A speaker that follows the letter: it looks at connections in `OpenConfirm` and Established when an OPEN comes, and else answers.
#[derive(Default)]
struct Letter {
    last: u8,
    other: u8,
    states: BTreeMap<u64, NeighborState>,
    next: u64,
    again: Option<Instant>,
    count: usize,
}

impl Letter {
    fn open(&self) -> Vec<u8> {
        let mut octets = vec![0xff; 16];
        octets.extend([0, 29, 1, 4, 0xfd, 0xe9, 0, 90, 10, 0, 0, self.last, 0]);
        octets
    }

    fn end(&mut self, connection: u64, wishes: &mut Vec<Wish>) {
        self.states.remove(&connection);
        let cease = [&[0xff; 16][..], &[0, 21, 3, 6, 7]].concat();
        wishes.extend([Wish::Say(connection, cease), Wish::Close(connection)]);
    }
}

impl Side for Letter {
    fn begin(&mut self, _now: Instant) -> Vec<Wish> {
        self.next += 2;
        self.states.insert(self.next - 2, NeighborState::Connect);
        vec![Wish::Connect(self.next - 2)]
    }

    fn arrives(&mut self, now: Instant, connection: u64, item: Item) -> Vec<Wish> {
        use NeighborState::{Established, OpenConfirm, OpenSent};
        let mut wishes = Vec::new();
        let others: Vec<(u64, NeighborState)> =
            self.states.iter().filter(|(one, _)| **one != connection).map(|(one, state)| (*one, *state)).collect();
        match item {
            Item::Syn => {
                if others.iter().any(|(_, state)| *state == Established) {
                    return vec![Wish::Refuse(connection)];
                }
                self.states.insert(connection, OpenSent);
                wishes.extend([Wish::Accept(connection), Wish::Say(connection, self.open())]);
            }
            Item::Ack if self.states.contains_key(&connection) => {
                self.states.insert(connection, OpenSent);
                wishes.push(Wish::Say(connection, self.open()));
            }
            Item::Fin => drop(self.states.remove(&connection)),
            Item::Message(octets) if self.states.contains_key(&connection) => match octets[18] {
                1 => {
                    let mine = connection % 2 == 1;
                    let wins = mine == (self.last > self.other);
                    for (other, state) in others {
                        if state == Established || state == OpenConfirm && !wins {
                            self.end(connection, &mut wishes);
                            return wishes;
                        }
                        if state == OpenConfirm {
                            self.end(other, &mut wishes);
                        }
                    }
                    self.states.insert(connection, OpenConfirm);
                    wishes.push(Wish::Say(connection, [&[0xff; 16][..], &[0, 19, 4]].concat()));
                }
                4 if self.states[&connection] == OpenConfirm => {
                    self.states.insert(connection, Established);
                    self.count += 1;
                    for (other, _) in others {
                        self.end(other, &mut wishes);
                    }
                }
                3 => {
                    self.states.remove(&connection);
                    wishes.push(Wish::Close(connection));
                }
                _ => (),
            },
            _ => (),
        }
        if self.states.is_empty() {
            self.again = Some(now + Duration::from_secs(5));
        }
        wishes
    }

    fn times_out(&mut self, now: Instant) -> Vec<Wish> {
        self.again = None;
        if self.states.is_empty() { self.begin(now) } else { Vec::new() }
    }

    fn deadline(&self) -> Option<Instant> {
        self.again
    }

    fn established(&self) -> (usize, bool) {
        (self.count, self.states.values().any(|state| *state == NeighborState::Established))
    }
}

/// Plays until nothing is under way for a minute; `dice` decides what arrives next.
fn play(mut sides: [Box<dyn Side>; 2], dice: &mut Dice) -> [(usize, bool); 2] {
    let mut now = Instant::from_millis(1);
    let mut pipes: BTreeMap<(u64, usize), VecDeque<Item>> = BTreeMap::new();
    let mut closed: BTreeSet<(u64, usize)> = BTreeSet::new();
    let mut todo: Vec<(usize, Wish)> = Vec::new();
    for (index, side) in sides.iter_mut().enumerate() {
        todo.extend(side.begin(now).into_iter().map(|wish| (index, wish)));
    }
    loop {
        for (side, wish) in todo.drain(..) {
            let (connection, item) = match wish {
                Wish::Connect(connection) => (connection, Item::Syn),
                Wish::Accept(connection) => (connection, Item::Ack),
                Wish::Say(connection, octets) => (connection, Item::Message(octets)),
                Wish::Refuse(connection) | Wish::Close(connection) => {
                    closed.insert((connection, side));
                    (connection, Item::Fin)
                }
            };
            pipes.entry((connection, 1 - side)).or_default().push_back(item);
        }
        let waiting: Vec<(u64, usize)> =
            pipes.iter().filter(|(_, pipe)| !pipe.is_empty()).map(|(key, _)| *key).collect();
        let (side, wishes) = if waiting.is_empty() {
            let due = [0, 1].map(|side| sides[side].deadline());
            let side = usize::from(due[0].is_none_or(|at| due[1].is_some_and(|other| other < at)));
            let Some(at) = due[side].filter(|at| *at < Instant::from_millis(60_000)) else { break };
            now = at.max(now);
            (side, sides[side].times_out(now))
        } else {
            let (connection, side) =
                waiting[usize::try_from(dice.below(u64::try_from(waiting.len()).unwrap())).unwrap()];
            let item = pipes.get_mut(&(connection, side)).unwrap().pop_front().unwrap();
            now += Duration::from_micros(100);
            if closed.contains(&(connection, side)) {
                (side, Vec::new())
            } else {
                (side, sides[side].arrives(now, connection, item))
            }
        };
        todo.extend(wishes.into_iter().map(|wish| (side, wish)));
    }
    sides.map(|side| side.established())
}

/// Higher and lower identifier on our side.
const IDS: [(u8, u8); 2] = [(1, 2), (2, 1)];

#[test]
fn against_the_letter_of_the_rfc_one_session_comes_up_and_stays_in_any_order_of_arrival() {
    for (last, other) in IDS {
        for seed in 0..3000 {
            let peer = Letter { last: other, other: last, next: 1, ..Letter::default() };
            let end = play([Box::new(Ours::new(0, seed, last)), Box::new(peer)], &mut Dice::new(seed));
            assert_eq!(end, [(1, true); 2], "seed {seed}, our identifier ends in {last}");
        }
    }
}

#[test]
fn against_ourselves_one_session_comes_up_and_stays_in_any_order_of_arrival() {
    for (last, other) in IDS {
        for seed in 0..3000 {
            let sides: [Box<dyn Side>; 2] = [Box::new(Ours::new(0, seed, last)), Box::new(Ours::new(1, seed, other))];
            assert_eq!(play(sides, &mut Dice::new(seed)), [(1, true); 2], "seed {seed}, identifiers {last}, {other}");
        }
    }
}

/// Found by simulation: the OPEN that we owed left when the other connection went, and theirs was then judged as if it had not.
#[test]
fn an_open_held_on_a_connection_that_owes_its_own_is_answered_when_the_other_one_goes() {
    let at = Instant::from_millis;
    let (mut us, mut them) = (Ours::new(0, 1, 9), Ours::new(1, 2, 1));
    us.begin(at(0));
    them.begin(at(0));
    let said = them.arrives(at(0), 1, Item::Ack);
    let open =
        said.into_iter().find_map(|wish| if let Wish::Say(_, octets) = wish { Some(octets) } else { None }).unwrap();
    us.arrives(at(1), 1, Item::Syn);
    us.arrives(at(1), 1, Item::Message(open.clone()));
    us.arrives(at(2), 0, Item::Ack);
    us.arrives(at(2), 0, Item::Message(open));
    let mut kinds = Vec::new();
    while let Some(due) = us.deadline().filter(|due| *due < at(1200)) {
        kinds.extend(us.times_out(due).into_iter().filter_map(|wish| match wish {
            Wish::Say(0, octets) => Some(octets[18]),
            _ => None,
        }));
    }
    assert_eq!(kinds, [1, 4], "OPEN and KEEPALIVE, no NOTIFICATION");
    assert_eq!(us.speaker.status()[&name()].state, NeighborState::OpenConfirm);
}
