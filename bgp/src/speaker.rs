//! All neighbours of one router: what comes in is given to whom it concerns, what follows is gathered.
//!
//! Direction of data: `handle` -> framer -> (`neighbor`, `fsm`) for the session, (`learn`, `rib`) for routes -> `announce` ->
//! `transmit`. RFC 4271 and what amends it; see `docs/rfc.md`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::BytesMut;
use ipnet::IpNet;
use martlet_clock::{Dice, Instant, Timers};

use crate::announce::{AdjRibOut, Audience};
use crate::fsm::Event as Fsm;
use crate::intern::{NeighborIndex, SELF};
use crate::learn::{Excess, Own, exporter};
use crate::neighbor::{Cause, Effect, Env, INCOMING, Neighbor, OUTGOING};
use crate::policy::weights;
use crate::rib::{self, Rib, Table, Tables, multipath, place};
use crate::wire::Type;
use crate::wire::notification::{self, Cease, Notification};
use crate::wire::prefix::{Prefix, Prefix4, Prefix6};
use crate::wire::refresh::{Refresh, Subtype};
use crate::wish::request_refresh;
use crate::{
    BfdState, CloseReason, ConnectionId, Counters, Event, Family, Input, Local, NeighborConfig, NeighborId,
    NeighborState, NeighborStatus, Output, Path,
};

/// How long End-of-RIB waits after a restart for our own prefixes to be known.
const RESTART_PATIENCE: Duration = Duration::from_secs(3);

/// The most octets of attributes that are held: a full table has some 20 MB of them.
const MOST_OCTETS: usize = 1 << 30;

/// A BGP speaker: everything that one router says and hears in BGP.
#[derive(Debug)]
pub struct Speaker {
    pub(crate) local: Local,
    pub(crate) neighbors: Vec<Option<Box<Neighbor>>>,
    pub(crate) rib: Rib,
    /// Never accepted.
    pub(crate) own: Own,
    pub(crate) outputs: VecDeque<Output>,
    /// By neighbour: BFD took its paths out.
    pub(crate) unusable: Vec<bool>,
    /// By family: the neighbours that hear what others tell.
    pub(crate) listeners: [Vec<NeighborIndex>; 2],
    pub(crate) tell_every_route: bool,
    /// The most octets of attributes that all neighbours together may make us hold.
    pub(crate) most_octets: usize,
    pub(crate) names: BTreeMap<NeighborId, NeighborIndex>,
    pub(crate) announced: BTreeSet<IpNet>,
    pub(crate) bfd: BTreeMap<NeighborId, BfdState>,
    connections: BTreeMap<ConnectionId, (NeighborIndex, usize)>,
    /// The last words of connections that are gone for us.
    closing: BTreeMap<ConnectionId, Vec<u8>>,
    next_connection: u64,
    dice: Dice,
    pub(crate) timers: Timers<NeighborIndex>,
    stopping: bool,
    /// When the first thing happened.
    started: Option<Instant>,
    /// End-of-RIB may be told then, or once our own prefixes are known.
    pub(crate) patience: Option<Instant>,
    told_changes: bool,
}

impl Speaker {
    /// A speaker without neighbours; `seed` decides its jitter.
    pub fn new(local: Local, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        Self {
            local,
            neighbors: Vec::new(),
            rib: Rib::new(dice.roll()),
            own: Own::new(&BTreeSet::new()),
            outputs: VecDeque::new(),
            unusable: Vec::new(),
            listeners: [Vec::new(), Vec::new()],
            tell_every_route: false,
            most_octets: MOST_OCTETS,
            names: BTreeMap::new(),
            announced: BTreeSet::new(),
            bfd: BTreeMap::new(),
            connections: BTreeMap::new(),
            closing: BTreeMap::new(),
            next_connection: 0,
            dice,
            timers: Timers::new(),
            stopping: false,
            started: None,
            patience: None,
            told_changes: false,
        }
    }

    /// Tells [`Event::Learned`] and [`Event::Lost`] of every route, and every fault of an attribute, not only a thousand of
    /// a neighbour.
    pub fn tell_every_route(&mut self, every: bool) {
        self.tell_every_route = every;
    }

    /// The most octets of path attributes that are held, of all neighbours together (1 GiB unless set): the neighbour that
    /// goes beyond is told Cease/Out of Resources and left alone for five minutes.
    pub fn limit_octets(&mut self, most: usize) {
        self.most_octets = most;
    }

    /// Takes note of what happened at `now`; what follows from it is in [`Speaker::poll`].
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        if self.started.is_none() {
            self.started = Some(now);
            self.patience = Some(now + RESTART_PATIENCE);
        }
        match input {
            Input::SetLocal(local) => self.set_local(now, local),
            Input::SetNeighbors(wanted) => self.set_neighbors(now, wanted),
            Input::SetAnnounced(wanted) => self.set_announced(wanted),
            Input::SetOwn(own) => self.set_own(now, own),
            Input::SetBfd(states) => self.set_bfd(now, states),
            Input::Connected(id, endpoints) => {
                self.on(now, id, |neighbor, env, slot| neighbor.connected(env, slot, endpoints));
            }
            Input::Incoming(ticket, name, endpoints) => match self.names.get(name).copied() {
                Some(index) => self.with(now, index, |neighbor, env| neighbor.incoming(env, ticket, endpoints)),
                None => self.outputs.push_back(Output::Refuse(ticket)),
            },
            Input::Received(id, octets) => self.received(now, id, octets),
            Input::Closed(id, reason) => self.closed(now, id, &reason),
            Input::Refresh(name) => {
                if let Some(&index) = self.names.get(name) {
                    self.with(now, index, request_refresh);
                }
            }
            Input::Reset(name, text) => {
                if let Some(&index) = self.names.get(name) {
                    let notification = Notification::cease(Cease::Reset, text);
                    self.with(now, index, |neighbor, env| {
                        neighbor.stop(env, Fsm::ManualStop, &notification, text);
                        neighbor.forgive();
                        neighbor.schedule(env);
                    });
                }
            }
            Input::Stop(text) => {
                self.stopping = true;
                let notification = Notification::cease(Cease::Shutdown, text);
                self.everyone(now, |neighbor, env| neighbor.stop(env, Fsm::ManualStop, &notification, text));
            }
            Input::Timeout => {
                while let Some(index) = self.timers.pop(now) {
                    self.with(now, index, Neighbor::timeout);
                }
            }
        }
        if self.patience.is_some_and(|until| until <= now) {
            self.patience = None;
        }
        self.wake(now);
    }

    /// The next thing to do or to tell; call it until it is `None`.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        [self.timers.deadline(), self.patience].into_iter().flatten().min()
    }

    /// Appends what waits for `connection` to `buffer`: at least one message if one waits, then more while fewer than `room`
    /// octets were appended (so at most one message more than `room`). True while more waits.
    ///
    /// After [`Output::Close`] it gives the last words, a NOTIFICATION, once.
    pub fn transmit(&mut self, now: Instant, connection: ConnectionId, buffer: &mut BytesMut, room: usize) -> bool {
        if let Some(last) = self.closing.remove(&connection) {
            buffer.extend_from_slice(&last);
            return false;
        }
        let Some(&(index, slot)) = self.connections.get(&connection) else { return false };
        let Some(mut neighbor) = self.neighbors.get_mut(usize::from(index)).and_then(Option::take) else {
            return false;
        };
        let start = buffer.len();
        buffer.extend_from_slice(&neighbor.connections[slot].outbox);
        neighbor.connections[slot].outbox.clear();
        let mut waits = false;
        if neighbor.connections[slot].state == NeighborState::Established {
            let room = room.max(1);
            for family in [Family::Ipv4, Family::Ipv6] {
                let left = (start + room).saturating_sub(buffer.len());
                waits |= match family {
                    Family::Ipv4 => self.fill::<Prefix4>(&mut neighbor, index, now, buffer, left),
                    Family::Ipv6 => self.fill::<Prefix6>(&mut neighbor, index, now, buffer, left),
                };
            }
        }
        let taken = buffer.len() - start;
        neighbor.counters.octets_out += u64::try_from(taken).unwrap_or(u64::MAX);
        neighbor.connections[slot].waiting = waits.then_some(now);
        self.put_back(index, neighbor);
        waits
    }

    fn fill<P: Tables>(
        &mut self,
        neighbor: &mut Neighbor,
        index: NeighborIndex,
        now: Instant,
        buffer: &mut BytesMut,
        room: usize,
    ) -> bool {
        if !neighbor.carries(P::FAMILY) {
            return false;
        }
        let hold_end_of_rib = self.holds_end_of_rib(now, &neighbor.config);
        let heard = &mut neighbor.heard[place(P::FAMILY)];
        let Some(exporter) = exporter(index, &neighbor.config, &neighbor.connections, self.local.router_id) else {
            return false;
        };
        let unusable = &self.unusable;
        let usable = |index: NeighborIndex| !unusable.get(usize::from(index)).copied().unwrap_or(false);
        let maximum = exporter.negotiated.maximum();
        let audience = Audience { exporter: &exporter, usable: &usable, maximum, hold_end_of_rib };
        heard.fill::<P>(&mut self.rib, &audience, buffer, room, &mut neighbor.counters)
    }

    fn holds_end_of_rib(&self, now: Instant, config: &NeighborConfig) -> bool {
        config.graceful_restart.restarting && self.patience.is_some_and(|until| now < until)
    }

    /// Takes at most `max` prefixes whose best paths changed; empty when there are no more.
    pub fn changed(&mut self, max: usize) -> Vec<IpNet> {
        let changed = self.rib.changed(max);
        self.told_changes = self.rib.has_changed();
        changed
    }

    /// The best paths to `prefix`, equal-cost ones included, the best first; empty if there is none, or if it is our own.
    pub fn paths(&self, prefix: &IpNet) -> Vec<Path> {
        match prefix {
            IpNet::V4(_) => Prefix4::of(prefix).map_or_else(Vec::new, |prefix| self.family_paths(prefix)),
            IpNet::V6(_) => Prefix6::of(prefix).map_or_else(Vec::new, |prefix| self.family_paths(prefix)),
        }
    }

    fn usable(&self, index: NeighborIndex) -> bool {
        !self.unusable.get(usize::from(index)).copied().unwrap_or(false)
    }

    fn family_paths<P: Tables>(&self, prefix: P) -> Vec<Path> {
        let table = P::table(&self.rib);
        let Some(destination) = table.find(prefix) else { return Vec::new() };
        let all: Vec<rib::Path> = table.paths(destination).collect();
        let count = multipath(&all, &self.rib.interner, &|index| self.usable(index));
        let best = all.get(..count).unwrap_or_default();
        let stored: Vec<_> = best.iter().map(|path| self.rib.interner.get(path.attributes)).collect();
        let weights = weights(&stored);
        let told = best.iter().zip(stored).zip(weights).filter(|((path, _), _)| path.neighbor != SELF);
        told.filter_map(|((path, stored), weight)| {
            let neighbor = self.neighbors.get(usize::from(path.neighbor))?.as_ref()?;
            let family = place(P::FAMILY);
            let renewed = neighbor.carries(P::FAMILY) && path.epoch == neighbor.epochs[family];
            Some(Path {
                next_hop: stored.next_hop.address,
                link_local: stored.next_hop.link_local,
                neighbor: neighbor.id.clone(),
                weight,
                stale: neighbor.stale[family].is_some() && !renewed,
            })
        })
        .collect()
    }

    /// All prefixes with at least one path, for a full comparison.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.family_prefixes(&self.rib.ipv4).chain(self.family_prefixes(&self.rib.ipv6))
    }

    fn family_prefixes<'a, P: Prefix>(&'a self, table: &'a Table<P>) -> impl Iterator<Item = IpNet> + 'a {
        let learned = |destination: &u32| {
            table.paths(*destination).next().is_some_and(|path| path.neighbor != SELF && self.usable(path.neighbor))
        };
        table.destinations().filter(learned).map(|destination| table.prefix(destination).net())
    }

    /// What is to be said of each neighbour.
    pub fn status(&self) -> BTreeMap<NeighborId, NeighborStatus> {
        self.neighbors.iter().flatten().map(|neighbor| (neighbor.id.clone(), status(neighbor))).collect()
    }

    /// What was counted of each neighbour since it was configured.
    pub fn counters(&self) -> BTreeMap<NeighborId, Counters> {
        self.neighbors.iter().flatten().map(|neighbor| (neighbor.id.clone(), neighbor.counters)).collect()
    }

    // ---- the neighbours ----

    /// Does something with one neighbour, and what follows from it.
    pub(crate) fn with(&mut self, now: Instant, index: NeighborIndex, act: impl FnOnce(&mut Neighbor, &mut Env<'_>)) {
        let Some(mut neighbor) = self.neighbors.get_mut(usize::from(index)).and_then(Option::take) else { return };
        self.act(now, index, &mut neighbor, act);
        self.put_back(index, neighbor);
    }

    /// The same with a neighbour that is not in the list.
    pub(crate) fn act(
        &mut self,
        now: Instant,
        index: NeighborIndex,
        neighbor: &mut Neighbor,
        act: impl FnOnce(&mut Neighbor, &mut Env<'_>),
    ) {
        let mut env = Env {
            now,
            local: &self.local,
            index,
            outputs: &mut self.outputs,
            connections: &mut self.connections,
            closing: &mut self.closing,
            next_connection: &mut self.next_connection,
            dice: &mut self.dice,
            stopping: self.stopping,
            restarted: self.started.is_some_and(|started| {
                now - started < Duration::from_secs(neighbor.config.graceful_restart.restart_time_s.into())
            }),
        };
        act(neighbor, &mut env);
        for effect in std::mem::take(&mut neighbor.effects) {
            match effect {
                Effect::Up => self.up(now, index, neighbor),
                Effect::Down { keep } => self.down(neighbor, index, now, &keep),
                Effect::LastResort(family) => self.last_resort(neighbor, index, family),
                Effect::Flush(family) => self.flush(neighbor, index, family, neighbor.carries(family)),
            }
        }
    }

    pub(crate) fn put_back(&mut self, index: NeighborIndex, neighbor: Box<Neighbor>) {
        match neighbor.deadline() {
            Some(at) => self.timers.set(index, at),
            None => self.timers.stop(index),
        }
        if let Some(place) = self.neighbors.get_mut(usize::from(index)) {
            *place = Some(neighbor);
        }
    }

    pub(crate) fn everyone(&mut self, now: Instant, act: impl Fn(&mut Neighbor, &mut Env<'_>)) {
        for index in self.indices() {
            self.with(now, index, &act);
        }
    }

    pub(crate) fn each(&mut self, now: Instant, act: impl Fn(&mut Self, Instant, &mut Neighbor, NeighborIndex)) {
        for index in self.indices() {
            if let Some(mut neighbor) = self.neighbors.get_mut(usize::from(index)).and_then(Option::take) {
                act(self, now, &mut neighbor, index);
                self.put_back(index, neighbor);
            }
        }
    }

    pub(crate) fn indices(&self) -> Vec<NeighborIndex> {
        self.names.values().copied().collect()
    }

    /// Does something with the neighbour of a connection; a late event of a closed one is dropped.
    fn on(&mut self, now: Instant, id: ConnectionId, act: impl FnOnce(&mut Neighbor, &mut Env<'_>, usize)) {
        if let Some(&(index, slot)) = self.connections.get(&id) {
            self.with(now, index, |neighbor, env| act(neighbor, env, slot));
        }
    }

    fn closed(&mut self, now: Instant, id: ConnectionId, reason: &CloseReason) {
        self.closing.remove(&id);
        self.on(now, id, |neighbor, env, slot| neighbor.closed(env, slot, reason.clone()));
    }

    /// Tells the driver of whom something waits for, and of changes.
    pub(crate) fn wake(&mut self, now: Instant) {
        for index in self.indices() {
            let Some(Some(neighbor)) = self.neighbors.get(usize::from(index)) else { continue };
            let Some(slot) = neighbor.established() else { continue };
            if neighbor.connections[slot].waiting.is_some() {
                continue;
            }
            let hold = self.holds_end_of_rib(now, &neighbor.config);
            let waits = |family| neighbor.carries(family) && neighbor.heard[place(family)].waits(hold);
            if waits(Family::Ipv4) || waits(Family::Ipv6) {
                self.with(now, index, |neighbor, env| neighbor.ready(env, slot));
            }
        }
        if self.rib.has_changed() && !self.told_changes {
            self.told_changes = true;
            self.outputs.push_back(Output::RoutesChanged);
        }
    }

    fn up(&mut self, now: Instant, index: NeighborIndex, neighbor: &mut Neighbor) {
        let Some((negotiated, _)) = neighbor.session() else { return };
        let negotiated = negotiated.clone();
        for family in [Family::Ipv4, Family::Ipv6] {
            let carried = negotiated.families.contains(&family);
            let preserved = negotiated.kept(family, neighbor.last_resort[place(family)]);
            neighbor.epochs[place(family)] = neighbor.epochs[place(family)].wrapping_add(1);
            if neighbor.stale[place(family)].is_some() && !(carried && preserved) {
                // RFC 4724 section 4.2: it says that it did not keep them.
                neighbor.fresh(family);
                self.flush(neighbor, index, family, false);
            }
            neighbor.renew_stale(now, family);
            if carried {
                neighbor.heard[place(family)] = AdjRibOut::new();
            }
        }
        // It is not in the list now, so it is added by hand.
        self.count_listeners();
        if !matches!(neighbor.config.export.transit, crate::Import::None) {
            for &family in &negotiated.families {
                self.listeners[place(family)].push(index);
            }
        }
        self.outputs.push_back(Output::Event(Event::Established {
            neighbor: neighbor.id.clone(),
            hold_time_s: negotiated.hold_time_s,
            families: negotiated.families,
        }));
    }

    // ---- what arrives ----

    fn received(&mut self, now: Instant, id: ConnectionId, octets: &[u8]) {
        let Some(&(index, slot)) = self.connections.get(&id) else { return };
        let Some(mut neighbor) = self.neighbors.get_mut(usize::from(index)).and_then(Option::take) else { return };
        neighbor.counters.octets_in += u64::try_from(octets.len()).unwrap_or(u64::MAX);
        let mut framer = std::mem::take(&mut neighbor.connections[slot].framer);
        let mut input = octets;
        loop {
            match framer.next(&mut input) {
                Ok(None) => break,
                Ok(Some(message)) => {
                    neighbor.counters.messages_in += 1;
                    self.message(now, index, &mut neighbor, slot, message.kind, message.body);
                }
                Err(error) => {
                    let cause = Cause::Send(error.notification(), error.to_string());
                    self.act(now, index, &mut neighbor, |neighbor, env| {
                        neighbor.step(env, slot, Fsm::BgpHeaderErr, cause);
                    });
                }
            }
            // The connection may have ended with this message.
            if neighbor.connections[slot].id != Some(id) {
                break;
            }
            framer.extended = neighbor.connections[slot].negotiated.as_ref().is_some_and(|one| one.extended_message);
        }
        if neighbor.connections[slot].id == Some(id) {
            neighbor.connections[slot].framer = framer;
        }
        self.check_limit(now, &mut neighbor, index);
        self.put_back(index, neighbor);
    }

    pub(crate) fn check_limit(&mut self, now: Instant, neighbor: &mut Neighbor, index: NeighborIndex) {
        if neighbor.established().is_none() {
            return;
        }
        match self.over_limit(neighbor) {
            None => (),
            Some(Excess::Prefixes(family, limit)) => {
                self.act(now, index, neighbor, |neighbor, env| {
                    neighbor.limit(env, family, limit.maximum, limit.restart_after);
                });
            }
            Some(Excess::Resources) => self.act(now, index, neighbor, Neighbor::exhaust),
        }
    }

    fn message(
        &mut self,
        now: Instant,
        index: NeighborIndex,
        neighbor: &mut Neighbor,
        slot: usize,
        kind: Type,
        body: &[u8],
    ) {
        if let Some(held) = &mut neighbor.connections[slot].held {
            match kind {
                Type::Keepalive => return held.keepalive = true,
                Type::Notification => (),
                // It does not wait for us: then it must be told what it is told without the other connection.
                _ => self.act(now, index, neighbor, |neighbor, env| neighbor.release(env, slot, true)),
            }
        }
        let established = neighbor.connections[slot].state == NeighborState::Established;
        let (event, cause) = match kind {
            Type::Open => return self.act(now, index, neighbor, |neighbor, env| neighbor.opened(env, slot, body)),
            Type::Keepalive => (Fsm::KeepAliveMsg, Cause::None),
            Type::Notification => {
                let notification = Notification::parse(body).unwrap_or(Notification::new(0, 0));
                return self.act(now, index, neighbor, |neighbor, env| neighbor.notified(env, slot, notification));
            }
            Type::Update if established => match self.update(neighbor, index, body) {
                Ok(()) => (Fsm::UpdateMsg, Cause::None),
                Err(error) if self.disable(neighbor, index, slot, &error, body) => (Fsm::UpdateMsg, Cause::None),
                Err(error) => {
                    let text = error.to_string();
                    (Fsm::UpdateMsgErr, Cause::Send(error.notification(), text))
                }
            },
            Type::Update => (Fsm::UpdateMsg, Cause::None),
            Type::RouteRefresh if established => self.refreshed(neighbor, index, body),
            Type::RouteRefresh => (Fsm::RouteRefreshMsg, Cause::None),
        };
        self.act(now, index, neighbor, |neighbor, env| neighbor.step(env, slot, event, cause));
    }

    /// A ROUTE-REFRESH of an established neighbour.
    fn refreshed(&mut self, neighbor: &mut Neighbor, index: NeighborIndex, body: &[u8]) -> (Fsm, Cause) {
        let done = (Fsm::RouteRefreshMsg, Cause::None);
        let Some((negotiated, _)) = neighbor.session() else { return done };
        let enhanced = negotiated.enhanced_refresh;
        if enhanced && body.len() != 4 && matches!(body.get(2), Some(1 | 2)) {
            // RFC 7313 section 5: the data is the message.
            let mut data = Vec::new();
            crate::wire::put_message(&mut data, Type::RouteRefresh, |out| out.extend_from_slice(body));
            let notification = Notification { code: notification::ROUTE_REFRESH, subcode: 1, data };
            return (Fsm::RouteRefreshMsgErr, Cause::Send(notification, String::new()));
        }
        let Some(refresh) = Refresh::parse(body).filter(|one| neighbor.carries(one.family)) else { return done };
        let family = place(refresh.family);
        match refresh.subtype {
            Subtype::Request => neighbor.heard[family].again(enhanced),
            Subtype::Begin if enhanced => neighbor.epochs[family] = neighbor.epochs[family].wrapping_add(1),
            Subtype::End if enhanced => self.flush(neighbor, index, refresh.family, true),
            Subtype::Begin | Subtype::End => (),
        }
        done
    }
}

fn status(neighbor: &Neighbor) -> NeighborStatus {
    let negotiated = [OUTGOING, INCOMING].iter().find_map(|&slot| neighbor.connections[slot].negotiated.as_ref());
    let session = neighbor.session().map(|(negotiated, _)| negotiated);
    let received: u64 = neighbor.received.iter().map(|&count| u64::from(count)).sum();
    NeighborStatus {
        state: neighbor.state(),
        since: neighbor.since,
        last_error: neighbor.last_error.clone(),
        families: session.map(|one| one.families.clone()).unwrap_or_default(),
        capabilities: session.map(crate::session::Negotiated::words).unwrap_or_default(),
        end_of_rib: neighbor.end_of_rib.clone(),
        hold_time_s: session.map_or(0, |one| one.hold_time_s),
        remote_router_id: negotiated.map(|one| one.router_id),
        received: usize::try_from(received).unwrap_or(usize::MAX),
        announced: neighbor.heard.iter().map(AdjRibOut::announced).sum(),
    }
}
