//! TCP between the processes of a world: connects, refusals, arrivals, closes.

use std::net::SocketAddr;

use bytes::BytesMut;
use martlet_bgp::{CloseReason, ConnectionId, Endpoints, Input as BgpInput, NeighborId, NeighborState, Ticket};
use martlet_router::core::{Incoming, Input};

use crate::decode::{Message, is_keepalive};
use crate::gateway::{Brain, Gateway, pod_name};
use crate::link::{End, Node, SMALL_WINDOW, Segment, Stream, WINDOW};
use crate::objects::{gateway_address, pod_address};
use crate::pod::{Kept, Wire};
use crate::world::{Event, MS, World};

/// The port that all listen on.
pub const PORT: u16 = 10179;
/// How long before a kernel says that nobody listens there, or that it cannot connect like that.
const REFUSAL_NS: u64 = 200_000;

fn key(number: usize) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

impl World {
    fn address(node: Node, ipv4: bool, port: u16) -> SocketAddr {
        let address = match node {
            Node::Pod(pod) => pod_address(pod, ipv4),
            Node::Gateway(gateway) => gateway_address(gateway, ipv4),
        };
        SocketAddr::new(address, port)
    }

    /// The connections of a process.
    pub fn wires(&mut self, node: Node) -> &mut std::collections::BTreeMap<u64, Wire> {
        match node {
            Node::Pod(pod) => &mut self.pods[pod].wires,
            Node::Gateway(gateway) => &mut self.gateways[gateway].wires,
        }
    }

    fn tickets(&mut self, node: Node) -> &mut std::collections::BTreeMap<u64, (usize, usize)> {
        match node {
            Node::Pod(pod) => &mut self.pods[pod].tickets,
            Node::Gateway(gateway) => &mut self.gateways[gateway].tickets,
        }
    }

    /// The life of a process; `None`: it is dead.
    fn epoch(&self, node: Node) -> Option<u64> {
        match node {
            Node::Pod(pod) => self.pods[pod].router.is_some().then_some(self.pods[pod].epoch),
            Node::Gateway(gateway) => self.gateways[gateway].brain.is_some().then_some(self.gateways[gateway].epoch),
        }
    }

    /// A process connects.
    pub fn connect(&mut self, from: Node, id: u64, to: Option<Node>, ipv4: bool) {
        let Some(epoch) = self.epoch(from) else { return };
        self.wires(from).insert(id, Wire::default());
        let Some(to) = to else { return };
        let path = self.path(from, to);
        if !path.loses(&mut self.dice) {
            let wait = path.travel(&mut self.dice);
            self.at(self.now + wait, Event::Syn(Box::new((from, epoch, id, to, ipv4))));
        }
    }

    /// A process connects in a way that its kernel refuses, or the other one.
    pub fn connect_in_vain(&mut self, from: Node, id: u64) {
        let Some(epoch) = self.epoch(from) else { return };
        self.wires(from).insert(id, Wire::default());
        self.at(self.now + REFUSAL_NS, Event::SynAnswer(Box::new((from, epoch, id, None))));
    }

    /// From now on one end signs what it says (RFC 2385), or no longer.
    pub fn rekey(&mut self, node: Node, id: u64, signs: bool) {
        let stream = self.wires(node).get(&id).and_then(|wire| wire.stream);
        if let Some(stream) = stream.and_then(|(number, _)| self.streams.get_mut(&number)) {
            stream.muted = signs;
            self.poke_streams();
        }
    }

    /// A connection is gone that a pod had: what was told on it may have to be kept (RFC 4724 section 4.2).
    fn remember(&mut self, node: Node, wire: &Wire) {
        let Some(Node::Gateway(gateway)) = wire.remote.and_then(|remote| self.node_at(remote)) else { return };
        let Node::Pod(pod) = node else { return };
        let heard = wire.received.heard.clone();
        if wire.received.restart_s > 0 && !heard.is_empty() {
            // The pod's clock may be wrong by half a percent.
            let until = self.now + u64::from(wire.received.restart_s) * 1010 * MS + 100 * MS;
            let ipv4 = wire.remote.is_some_and(|remote| remote.is_ipv4());
            self.pods[pod].kept.insert((gateway, ipv4), Kept { until, heard });
        }
    }

    /// A connect arrives.
    pub fn syn(&mut self, (from, epoch, id, to, ipv4): (Node, u64, u64, Node, bool)) {
        let (there, back) = (self.path(from, to), self.path(to, from));
        if there.cut || back.cut || there.clog || back.clog || back.loses(&mut self.dice) {
            return;
        }
        let answer = self.now + back.travel(&mut self.dice);
        let listens = match to {
            Node::Pod(pod) => {
                let family = if ipv4 { martlet_bgp::Family::Ipv4 } else { martlet_bgp::Family::Ipv6 };
                let mut there =
                    self.pods[pod].listeners.iter().filter(|(one, _)| one.family == family && one.port == PORT);
                let caller = Self::address(from, ipv4, PORT).ip();
                match there.next().map(|(_, callers)| callers.get(&caller).is_some_and(|caller| caller.key.is_some())) {
                    // Its kernel drops what is not signed.
                    Some(true) => return,
                    listens => listens.is_some(),
                }
            }
            Node::Gateway(gateway) if !self.gateways[gateway].host => return,
            Node::Gateway(_) => true,
        };
        let Some(theirs) = self.epoch(to).filter(|_| listens) else {
            return self.at(answer, Event::SynAnswer(Box::new((from, epoch, id, None))));
        };
        if self.epoch(from) != Some(epoch) || !self.wires(from).contains_key(&id) {
            return;
        }
        self.next += 1;
        let number = self.next;
        let port = 20_000 + u16::try_from(number % 40_000).unwrap_or_default();
        let ours = End { node: from, epoch, id: Some(id), address: Self::address(from, ipv4, port), open: true };
        let other = End { node: to, epoch: theirs, id: None, address: Self::address(to, ipv4, PORT), open: true };
        let mut stream = Stream { ends: [ours, other], directions: <[_; 2]>::default(), muted: false };
        stream.directions[1].last = answer;
        let (local, remote) = (stream.ends[1].address, stream.ends[0].address);
        self.streams.insert(number, stream);
        self.tickets(to).insert(key(number), (number, 1));
        self.at(answer, Event::SynAnswer(Box::new((from, epoch, id, Some(number)))));
        let now = self.local(to);
        let ticket = Ticket(key(number));
        match to {
            Node::Pod(pod) => {
                let Some(name) = self.pods[pod].external().map(|link| link.name.clone()) else { return };
                self.router(pod, Input::Incoming(Incoming { ticket, interface: &name, local, remote }));
            }
            Node::Gateway(gateway) => {
                let Node::Pod(pod) = from else { return };
                let endpoints = Endpoints { local, remote, local_link_local: None, local_other: None };
                match &mut self.gateways[gateway].brain {
                    Some(Brain::Ours(speaker)) => {
                        let name = NeighborId::new(&pod_name(pod, ipv4));
                        speaker.handle(now, BgpInput::Incoming(ticket, &name, endpoints));
                    }
                    Some(Brain::Naive(peer)) => {
                        peer.connected(self.now, number, from, ipv4);
                        self.accept(to, key(number), key(number));
                    }
                    None => {}
                }
                self.after_gateway(gateway);
            }
        }
    }

    /// A connect is answered.
    pub fn syn_answer(&mut self, (node, epoch, id, stream): (Node, u64, u64, Option<usize>)) {
        if self.epoch(node) != Some(epoch) || !self.wires(node).contains_key(&id) {
            // Given up meanwhile: the other end is told.
            if let Some(number) = stream {
                self.send(number, 0, Segment::Reset);
                self.let_go(number, 0);
            }
            return;
        }
        let Some(number) = stream else {
            self.wires(node).remove(&id);
            return self.tell_closed(node, id, CloseReason::Refused);
        };
        let Some(one) = self.streams.get(&number) else { return };
        let (local, remote) = (one.ends[0].address, one.ends[1].address);
        let now = self.now;
        if let Some(wire) = self.wires(node).get_mut(&id) {
            (wire.stream, wire.remote, wire.heard_at) = (Some((number, 0)), Some(remote.ip()), now);
        }
        let local_now = self.local(node);
        match node {
            Node::Pod(pod) => self.router(pod, Input::Connected(ConnectionId(id), local, remote)),
            Node::Gateway(gateway) => {
                let target = self.node_at(remote.ip());
                let Gateway { brain, wires, .. } = &mut self.gateways[gateway];
                match brain {
                    Some(Brain::Ours(speaker)) => {
                        let endpoints = Endpoints { local, remote, local_link_local: None, local_other: None };
                        speaker.handle(local_now, BgpInput::Connected(ConnectionId(id), endpoints));
                    }
                    Some(Brain::Naive(peer)) => {
                        // The naive peer calls a connection by its stream.
                        if let Some(wire) = wires.remove(&id) {
                            wires.insert(key(number), wire);
                        }
                        if let Some(one) = self.streams.get_mut(&number) {
                            one.ends[0].id = Some(key(number));
                        }
                        if let Some(target) = target {
                            peer.connected(now, number, target, remote.is_ipv4());
                        }
                    }
                    None => {}
                }
                self.after_gateway(gateway);
            }
        }
    }

    /// A process takes an incoming connection.
    pub fn accept(&mut self, node: Node, ticket: u64, id: u64) {
        let Some((number, side)) = self.tickets(node).remove(&ticket) else { return };
        let Some(stream) = self.streams.get_mut(&number) else { return };
        stream.ends[side].id = Some(id);
        let remote = stream.ends[1 - side].address.ip();
        let heard_at = self.now;
        let wire = Wire { stream: Some((number, side)), remote: Some(remote), heard_at, ..Wire::default() };
        self.wires(node).insert(id, wire);
    }

    /// A process does not take an incoming connection.
    pub fn refuse(&mut self, node: Node, ticket: u64) {
        if let Some((number, side)) = self.tickets(node).remove(&ticket) {
            self.send(number, side, Segment::Fin);
            self.let_go(number, side);
        }
    }

    /// A core has something to send.
    pub fn make_ready(&mut self, node: Node, id: u64) {
        if let Some(wire) = self.wires(node).get_mut(&id) {
            wire.ready = true;
        }
    }

    /// A process closes a connection, with its last words.
    pub fn close(&mut self, node: Node, id: u64) {
        let (octets, _) = self.transmit(node, id, 4096);
        let Some(wire) = self.wires(node).remove(&id) else { return };
        self.remember(node, &wire);
        if let Node::Pod(pod) = node {
            let others = self.pods[pod].wires.values().filter(|other| other.remote == wire.remote);
            self.check.closed(self.now, pod, &wire, others, &octets);
        }
        let Some((number, side)) = wire.stream else { return };
        if !octets.is_empty() {
            self.check.said(&octets);
            self.send(number, side, Segment::Data(octets));
        }
        self.send(number, side, Segment::Fin);
        self.let_go(number, side);
    }

    /// What the naive peer says.
    pub fn naive_send(&mut self, gateway: usize, number: usize, octets: Vec<u8>) {
        if self.gateways[gateway].wires.contains_key(&key(number))
            && let Some(stream) = self.streams.get(&number)
            && let Some(side) = stream.ends.iter().position(|end| end.node == Node::Gateway(gateway))
        {
            self.send(number, side, Segment::Data(octets));
        }
    }

    /// Sends what a core has, as far as there is room.
    pub fn flush(&mut self, node: Node, id: u64) {
        loop {
            let Some(wire) = self.wires(node).get(&id).filter(|wire| wire.ready) else { return };
            let Some((number, side)) = wire.stream else { return };
            let room = self.streams.get(&number).map_or(0, |stream| {
                let small = self.is_deaf(stream.ends[1 - side].node);
                stream.room(side, if small { SMALL_WINDOW } else { WINDOW })
            });
            if room == 0 {
                return;
            }
            let (octets, more) = self.transmit(node, id, room);
            self.check.transmitted(octets.len(), room);
            let empty = octets.is_empty();
            let now = self.now;
            if let Some(wire) = self.wires(node).get_mut(&id) {
                wire.ready = more && !empty;
                if !empty {
                    wire.sent.feed(&octets);
                    wire.note(now);
                }
            }
            if empty {
                return;
            }
            if !is_keepalive(&octets) {
                self.stir(node);
            }
            self.send(number, side, Segment::Data(octets));
        }
    }

    /// Pulls what a core has for a connection.
    pub fn transmit(&mut self, node: Node, id: u64, room: usize) -> (Vec<u8>, bool) {
        let now = self.local(node);
        let id = martlet_bgp::ConnectionId(id);
        let mut buffer = BytesMut::new();
        let more = match node {
            Node::Pod(pod) => {
                self.pods[pod].router.as_mut().is_some_and(|router| router.transmit(now, id, &mut buffer, room))
            }
            Node::Gateway(gateway) => match &mut self.gateways[gateway].brain {
                Some(Brain::Ours(speaker)) => speaker.transmit(now, id, &mut buffer, room),
                _ => false,
            },
        };
        (buffer.into(), more)
    }

    /// Puts a segment on its way.
    pub fn send(&mut self, number: usize, side: usize, segment: Segment) {
        let Some(stream) = self.streams.get(&number) else { return };
        let (from, to) = (&stream.ends[side], &stream.ends[1 - side]);
        self.log.segment(self.now, from.address, to.address, &segment);
        let path = self.path(from.node, to.node);
        if let Some(stream) = self.streams.get_mut(&number) {
            let at = stream.send(side, self.now, &path, &mut self.dice, segment);
            self.at(at, Event::Arrive(number, side));
        }
    }

    /// A process no longer holds its end.
    fn let_go(&mut self, number: usize, side: usize) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.ends[side].open = false;
        }
    }

    /// The first segment of a direction may have arrived.
    pub fn arrive(&mut self, number: usize, side: usize) {
        let Some(stream) = self.streams.get(&number) else { return };
        let (from, to) = (stream.ends[side], stream.ends[1 - side]);
        if stream.directions[side].queue.front().is_none_or(|(at, _)| *at > self.now) {
            return;
        }
        let path = self.path(from.node, to.node);
        if stream.is_over() && stream.muted {
            self.streams.remove(&number);
            return;
        }
        if path.cut || path.clog || stream.muted || (self.is_deaf(to.node) && to.open) {
            return;
        }
        // Not before its end knows that it is connected.
        if to.open && to.id.is_some_and(|id| self.wires(to.node).get(&id).is_some_and(|wire| wire.stream.is_none())) {
            return self.at(self.now + MS, Event::Arrive(number, side));
        }
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let Some((_, segment)) = stream.directions[side].queue.pop_front() else { return };
        if let Segment::Data(octets) = &segment {
            let left = stream.directions[side].octets.saturating_sub(octets.len());
            stream.directions[side].octets = left;
        }
        if !matches!(&segment, Segment::Data(octets) if is_keepalive(octets)) {
            self.stir_all();
        }
        let Some(stream) = self.streams.get(&number) else { return };
        let over = stream.is_over() && stream.directions.iter().all(|direction| direction.queue.is_empty());
        if over {
            self.streams.remove(&number);
            return;
        }
        let alive = to.open && self.epoch(to.node) == Some(to.epoch);
        match (to.id.filter(|_| alive), segment) {
            (Some(id), Segment::Data(octets)) => self.deliver(to.node, id, &octets),
            (Some(id), Segment::Fin) => self.lost(number, 1 - side, id, CloseReason::EndOfFile),
            (Some(id), Segment::Reset) => self.lost(number, 1 - side, id, CloseReason::Reset),
            (None, Segment::Data(_)) => {
                let answers = !matches!(to.node, Node::Gateway(gateway) if !self.gateways[gateway].host);
                if from.open && answers && !alive {
                    self.send(number, 1 - side, Segment::Reset);
                }
            }
            (None, _) => {}
        }
        // There is room again.
        if let Some(id) = from.id.filter(|_| from.open && self.epoch(from.node) == Some(from.epoch)) {
            self.flush(from.node, id);
        }
    }

    fn lost(&mut self, number: usize, side: usize, id: u64, reason: CloseReason) {
        let Some(stream) = self.streams.get(&number) else { return };
        let node = stream.ends[side].node;
        if reason == CloseReason::EndOfFile && stream.ends[1 - side].open {
            self.send(number, side, Segment::Fin);
        }
        self.let_go(number, side);
        if let Some(wire) = self.wires(node).remove(&id) {
            self.remember(node, &wire);
            self.tell_closed(node, id, reason);
        }
    }

    fn is_deaf(&self, node: Node) -> bool {
        matches!(node, Node::Gateway(gateway) if self.gateways[gateway].deaf > 0)
    }

    fn tell_closed(&mut self, node: Node, id: u64, reason: CloseReason) {
        let now = self.local(node);
        match node {
            Node::Pod(pod) => self.router(pod, Input::Closed(ConnectionId(id), reason)),
            Node::Gateway(gateway) => {
                match &mut self.gateways[gateway].brain {
                    Some(Brain::Ours(speaker)) => speaker.handle(now, BgpInput::Closed(ConnectionId(id), reason)),
                    Some(Brain::Naive(peer)) => peer.closed(usize::try_from(id).unwrap_or_default()),
                    None => {}
                }
                self.after_gateway(gateway);
            }
        }
    }

    fn deliver(&mut self, node: Node, id: u64, octets: &[u8]) {
        let now = self.now;
        let local = self.local(node);
        let mut told = None;
        if let Some(wire) = self.wires(node).get_mut(&id) {
            wire.heard_at = now;
            let messages = wire.received.feed(octets);
            wire.note(now);
            let remote = wire.remote.and_then(|remote| Some((self.node_at(remote)?, remote.is_ipv4())));
            self.check.heard(&messages);
            if let (Node::Pod(_), Some((Node::Gateway(gateway), ipv4))) = (node, remote)
                && messages.contains(&Message::EndOfRib { ipv4 })
            {
                told = Some((gateway, ipv4));
            }
        }
        match node {
            Node::Pod(pod) => {
                self.pods[pod].dirty |= !is_keepalive(octets);
                self.router(pod, Input::Received(ConnectionId(id), octets));
                // What was told before the restart has been told anew, or is gone.
                if let Some(key) =
                    told.filter(|key| self.pods[pod].sessions.get(key) == Some(&NeighborState::Established))
                {
                    self.pods[pod].kept.remove(&key);
                }
            }
            Node::Gateway(gateway) => {
                match &mut self.gateways[gateway].brain {
                    Some(Brain::Ours(speaker)) => speaker.handle(local, BgpInput::Received(ConnectionId(id), octets)),
                    Some(Brain::Naive(peer)) => peer.received(now, usize::try_from(id).unwrap_or_default(), octets),
                    None => {}
                }
                self.after_gateway(gateway);
            }
        }
    }

    /// The process of `node` is gone; if the machine is still there, the other ends are told.
    pub fn drop_streams(&mut self, node: Node, told: bool) {
        let held: Vec<(usize, usize)> = self
            .streams
            .iter()
            .flat_map(|(number, stream)| (0..2).map(|side| (*number, side, stream.ends[side])))
            .filter(|(_, _, end)| end.node == node && end.open)
            .map(|(number, side, _)| (number, side))
            .collect();
        for (number, side) in held {
            if told {
                self.send(number, side, Segment::Reset);
            }
            self.let_go(number, side);
        }
    }

    /// Everything that waits in streams may move again.
    pub fn poke_streams(&mut self) {
        let waiting: Vec<(usize, usize, u64)> = self
            .streams
            .iter()
            .flat_map(|(number, stream)| (0..2).map(move |side| (*number, side, &stream.directions[side])))
            .filter_map(|(number, side, direction)| {
                Some((number, side, direction.queue.front()?.0, direction.queue.len()))
            })
            .flat_map(|(number, side, at, count)| std::iter::repeat_n((number, side, at), count))
            .collect();
        let wait = MS + self.dice.below(200 * MS);
        for (number, side, at) in waiting {
            self.at(at.max(self.now + wait), Event::Arrive(number, side));
        }
    }
}
