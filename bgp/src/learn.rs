//! What an UPDATE does to the RIB, and what the RIB's changes do to what others hear.

use martlet_clock::Instant;

use crate::connection::Connection;
use crate::intern::{AttributesId, NeighborIndex, Teller};
use crate::neighbor::{Keep, Neighbor};
use crate::policy::{Exporter, OwnPrefixes, Stance, accepts, marked, refused};
use crate::rib::{self, Change, Destination, Tables, place};
use crate::speaker::Speaker;
use crate::wire::attribute::{Approach, Attributes, NextHop};
use crate::wire::prefix::{Nlri, Prefix, Prefix4, Prefix6};
use crate::wire::update::{Update, UpdateError};
use crate::{Event, Family, Import, NeighborState, Output, PrefixLimit};

/// Above so many routes of a neighbour, or faults of a session, single ones are no news.
const NEWS: u32 = 1000;

/// How many prefixes of a malformed message are told.
const PREFIXES_TOLD: usize = 32;

/// The most prefixes of a family from a neighbour without a configured limit: several times what the Internet has.
const MOST_PREFIXES: u32 = 5_000_000;

/// What there is too much of.
#[derive(Clone, Copy, Debug)]
pub enum Excess {
    /// Prefixes, by the neighbour's configuration.
    Prefixes(Family, PrefixLimit),
    /// Whatever, by what a process should take.
    Resources,
}

/// Our own prefixes of both families.
#[derive(Clone, Debug)]
pub struct Own {
    ipv4: OwnPrefixes<Prefix4>,
    ipv6: OwnPrefixes<Prefix6>,
}

impl Own {
    /// Of all of them.
    pub fn new(prefixes: &std::collections::BTreeSet<ipnet::IpNet>) -> Self {
        Self { ipv4: OwnPrefixes::new(prefixes), ipv6: OwnPrefixes::new(prefixes) }
    }
}

/// A family of prefixes with all that the speaker keeps of it.
pub trait Known: Tables {
    /// Our own ones.
    fn own(own: &Own) -> &OwnPrefixes<Self>;
}

impl Known for Prefix4 {
    fn own(own: &Own) -> &OwnPrefixes<Self> {
        &own.ipv4
    }
}

impl Known for Prefix6 {
    fn own(own: &Own) -> &OwnPrefixes<Self> {
        &own.ipv6
    }
}

/// The policy towards a neighbour whose session is up.
pub fn exporter<'a>(
    index: NeighborIndex,
    config: &'a crate::NeighborConfig,
    connections: &'a [Connection; 2],
    router_id: std::net::Ipv4Addr,
) -> Option<Exporter<'a>> {
    let connection = connections.iter().find(|one| one.state == NeighborState::Established)?;
    let (negotiated, endpoints) = (connection.negotiated.as_ref()?, connection.endpoints.as_ref()?);
    Some(Exporter { neighbor: index, config, negotiated, endpoints, router_id })
}

fn count<P: Prefix>(nlri: Nlri<'_>) -> u64 {
    u64::try_from(nlri.iter::<P>().count()).unwrap_or(u64::MAX)
}

/// The first prefixes that a message announces.
fn first_prefixes(update: &Update<'_>) -> Vec<ipnet::IpNet> {
    let reach = update.attributes.mp_reach;
    let of = |family| reach.filter(|reach| reach.family == family).map(|reach| reach.nlri).unwrap_or_default();
    let ipv4 = update.nlri.iter::<Prefix4>().chain(of(Family::Ipv4).iter()).map(Prefix::net);
    ipv4.chain(of(Family::Ipv6).iter::<Prefix6>().map(Prefix::net)).take(PREFIXES_TOLD).collect()
}

/// The routes of one message for one next hop: what they share, or nothing if they are as good as withdrawn.
type Shared = Option<AttributesId>;

impl Speaker {
    /// An UPDATE of an established neighbour, which is not in the list while we look at it.
    pub(crate) fn update(
        &mut self,
        neighbor: &mut Neighbor,
        index: NeighborIndex,
        body: &[u8],
    ) -> Result<(), UpdateError> {
        let Some((negotiated, _)) = neighbor.session() else { return Ok(()) };
        let update = Update::parse(body, negotiated.context())?;
        neighbor.counters.updates_in += 1;
        self.tell_faults(neighbor, &update);
        if let Some(family) = update.end_of_rib() {
            self.end_of_rib(neighbor, index, family);
            return Ok(());
        }
        self.learn::<Prefix4>(neighbor, index, update.withdrawn, None);
        neighbor.counters.withdrawals_in += count::<Prefix4>(update.withdrawn);
        if let Some(unreach) = update.attributes.mp_unreach {
            neighbor.counters.withdrawals_in += count::<Prefix6>(unreach.nlri);
            match unreach.family {
                Family::Ipv4 => self.learn::<Prefix4>(neighbor, index, unreach.nlri, None),
                Family::Ipv6 => self.learn::<Prefix6>(neighbor, index, unreach.nlri, None),
            }
        }
        if !update.nlri.is_empty() && neighbor.session().is_some_and(|(one, _)| one.hears(Family::Ipv4)) {
            let shared = update.next_hop().and_then(|hop| self.share(neighbor, index, &update, hop));
            self.learn::<Prefix4>(neighbor, index, update.nlri, shared);
            self.drop_share(shared);
        }
        if let Some(reach) = update.attributes.mp_reach {
            let shared = self.share(neighbor, index, &update, reach.next_hop);
            match reach.family {
                Family::Ipv4 => self.learn::<Prefix4>(neighbor, index, reach.nlri, shared),
                Family::Ipv6 => self.learn::<Prefix6>(neighbor, index, reach.nlri, shared),
            }
            self.drop_share(shared);
        }
        Ok(())
    }

    fn tell_faults(&mut self, neighbor: &mut Neighbor, update: &Update<'_>) {
        for fault in &update.faults {
            let discarded = fault.approach == Approach::AttributeDiscard;
            neighbor.counters.attributes_discarded += u64::from(discarded);
            // A neighbour that is wrong in each of its messages is counted, not told for ever.
            neighbor.faults = neighbor.faults.saturating_add(1);
            if neighbor.faults > NEWS && !self.tell_every_route {
                continue;
            }
            let text = format!("attribute {}: {}", fault.kind, fault.error);
            let (neighbor, kind, raw) = (neighbor.id.clone(), fault.kind, fault.octets.to_vec());
            self.outputs.push_back(Output::Event(if discarded {
                Event::AttributeDiscard { neighbor, kind, raw, text }
            } else {
                Event::TreatAsWithdraw { neighbor, kind, raw, prefixes: first_prefixes(update), text }
            }));
        }
        neighbor.counters.treated_as_withdraw += u64::from(update.treat_as_withdraw);
    }

    /// The shared attributes of the routes of an UPDATE, unless they are to be taken as withdrawn or may not come in.
    fn share(&mut self, neighbor: &Neighbor, index: NeighborIndex, update: &Update<'_>, hop: NextHop) -> Shared {
        let (negotiated, endpoints) = neighbor.session()?;
        let stance = Stance { negotiated, endpoints, router_id: self.local.router_id };
        if update.treat_as_withdraw || refused(&update.attributes, &hop, &neighbor.config, &stance).is_some() {
            return None;
        }
        let teller = Teller {
            neighbor: index,
            external: negotiated.external,
            client: neighbor.config.route_reflector_client,
            router_id: negotiated.router_id,
        };
        let otc = marked(neighbor.config.role, negotiated.remote_as).filter(|_| negotiated.external);
        if otc.is_some() && update.attributes.only_to_customer.is_none() {
            let attributes = Attributes { only_to_customer: otc, ..update.attributes.clone() };
            return Some(self.rib.interner.intern(&attributes, hop, teller));
        }
        Some(self.rib.interner.intern(&update.attributes, hop, teller))
    }

    fn drop_share(&mut self, shared: Shared) {
        if let Some(id) = shared {
            self.rib.interner.release(id);
        }
    }

    fn learn<P: Known>(&mut self, neighbor: &mut Neighbor, index: NeighborIndex, nlri: Nlri<'_>, shared: Shared) {
        let family = place(P::FAMILY);
        let epoch = neighbor.epochs[family];
        let spread = self.listens(P::FAMILY);
        for (id, prefix) in nlri.paths::<P>() {
            let path = (index, id);
            let own = shared.is_some() && P::own(&self.own).contains(prefix);
            if own {
                neighbor.refused_own.insert(prefix.net());
            }
            let wanted = shared.filter(|_| !own && !prefix.martian() && accepts(&neighbor.config.import, prefix));
            let (table, interner) = P::tables(&mut self.rib);
            let usable = |index: NeighborIndex| !self.unusable.get(usize::from(index)).copied().unwrap_or(false);
            let change = if let Some(attributes) = wanted {
                neighbor.counters.prefixes_in += 1;
                interner.retain(attributes);
                table.set(prefix, path, epoch, attributes, interner, &usable)
            } else {
                table.find(prefix).map_or(Change::None, |found| table.remove(found, path, interner, &usable))
            };
            self.count_change(neighbor, prefix, change);
            if let (true, Change::Added(destination) | Change::Replaced(destination) | Change::Removed(destination)) =
                (spread, change)
            {
                self.spread::<P>(neighbor, index, destination);
            }
        }
    }

    /// Counts and tells a change of one route.
    pub(crate) fn count_change<P: Prefix>(&mut self, neighbor: &mut Neighbor, prefix: P, change: Change) {
        let received = &mut neighbor.received[place(P::FAMILY)];
        match change {
            Change::None => return,
            Change::Added(_) => *received += 1,
            Change::Replaced(_) => (),
            Change::Removed(_) => *received -= 1,
        }
        if *received <= NEWS || self.tell_every_route {
            let (neighbor, prefix) = (neighbor.id.clone(), prefix.net());
            let event = match change {
                Change::Removed(_) => Event::Lost { neighbor, prefix },
                _ => Event::Learned { neighbor, prefix },
            };
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// Whether anybody may hear of what others tell.
    fn listens(&self, family: Family) -> bool {
        !self.listeners[place(family)].is_empty()
    }

    /// Makes what the neighbours should hear of one prefix known to them. `away` is not in the list now.
    pub(crate) fn spread<P: Tables>(&mut self, away: &mut Neighbor, index: NeighborIndex, destination: Destination) {
        let router_id = self.local.router_id;
        let usable = |index: NeighborIndex| !self.unusable.get(usize::from(index)).copied().unwrap_or(false);
        let (table, interner) = P::tables(&mut self.rib);
        let best = table.best(destination, &usable);
        let prefix = table.prefix(destination);
        for &listener in &self.listeners[place(P::FAMILY)] {
            let neighbor = if listener == index {
                &mut *away
            } else if let Some(Some(neighbor)) = self.neighbors.get_mut(usize::from(listener)) {
                neighbor
            } else {
                continue;
            };
            let Some(exporter) = exporter(listener, &neighbor.config, &neighbor.connections, router_id) else {
                continue;
            };
            let wanted = exporter.wanted(prefix, best, interner);
            neighbor.heard[place(P::FAMILY)].mark(table, destination, wanted);
        }
    }

    /// Who is told of what others tell has changed.
    pub(crate) fn count_listeners(&mut self) {
        for family in [Family::Ipv4, Family::Ipv6] {
            self.listeners[place(family)] = self
                .neighbors
                .iter()
                .enumerate()
                .filter(|(_, neighbor)| {
                    neighbor
                        .as_ref()
                        .is_some_and(|one| one.carries(family) && !matches!(one.config.export.transit, Import::None))
                })
                .filter_map(|(index, _)| NeighborIndex::try_from(index).ok())
                .collect();
        }
    }

    fn end_of_rib(&mut self, neighbor: &mut Neighbor, index: NeighborIndex, family: Family) {
        if !neighbor.carries(family) {
            return;
        }
        neighbor.end_of_rib.insert(family);
        self.outputs.push_back(Output::Event(Event::EndOfRib { neighbor: neighbor.id.clone(), family }));
        if neighbor.stale[place(family)].is_some() {
            neighbor.fresh(family);
            self.flush(neighbor, index, family, true);
        }
    }

    /// Removes the routes of a neighbour: all of a family, or those of an earlier life.
    pub(crate) fn flush(&mut self, neighbor: &mut Neighbor, index: NeighborIndex, family: Family, stale: bool) {
        match family {
            Family::Ipv4 => {
                self.flush_family::<Prefix4>(neighbor, index, |epoch, current, _| !stale || epoch != current);
            }
            Family::Ipv6 => {
                self.flush_family::<Prefix6>(neighbor, index, |epoch, current, _| !stale || epoch != current);
            }
        }
    }

    /// Removes the routes of a neighbour that its import policy, or our own prefixes, no longer let in.
    pub(crate) fn filter(&mut self, neighbor: &mut Neighbor, index: NeighborIndex) {
        let (import, own) = (neighbor.config.import.clone(), self.own.clone());
        self.flush_family::<Prefix4>(neighbor, index, |_, _, prefix| {
            !accepts(&import, prefix) || own.ipv4.contains(prefix)
        });
        self.flush_family::<Prefix6>(neighbor, index, |_, _, prefix| {
            !accepts(&import, prefix) || own.ipv6.contains(prefix)
        });
    }

    fn flush_family<P: Known>(
        &mut self,
        neighbor: &mut Neighbor,
        index: NeighborIndex,
        unwanted: impl Fn(u16, u16, P) -> bool,
    ) {
        if neighbor.received[place(P::FAMILY)] == 0 {
            return;
        }
        let current = neighbor.epochs[place(P::FAMILY)];
        let bound = u32::try_from(P::table(&self.rib).bound()).unwrap_or(u32::MAX);
        for destination in 0..bound {
            let table = P::table(&self.rib);
            if !table.live(destination) {
                continue;
            }
            let prefix = table.prefix(destination);
            let flushed = |path: &rib::Path| path.neighbor == index && unwanted(path.epoch, current, prefix);
            loop {
                let found = P::table(&self.rib).paths(destination).find(flushed);
                let Some(path) = found else { break };
                let usable = |index: NeighborIndex| !self.unusable.get(usize::from(index)).copied().unwrap_or(false);
                let (table, interner) = P::tables(&mut self.rib);
                let change = table.remove(destination, (index, path.id), interner, &usable);
                self.count_change(neighbor, prefix, change);
                self.spread::<P>(neighbor, index, destination);
            }
        }
    }

    /// A neighbour's paths may be used again, or no more: the best are chosen anew.
    pub(crate) fn reselect(&mut self, neighbor: &mut Neighbor, index: NeighborIndex) {
        self.reselect_family::<Prefix4>(neighbor, index);
        self.reselect_family::<Prefix6>(neighbor, index);
    }

    fn reselect_family<P: Known>(&mut self, neighbor: &mut Neighbor, index: NeighborIndex) {
        if neighbor.received[place(P::FAMILY)] == 0 {
            return;
        }
        let bound = u32::try_from(P::table(&self.rib).bound()).unwrap_or(u32::MAX);
        for destination in 0..bound {
            let usable = |index: NeighborIndex| !self.unusable.get(usize::from(index)).copied().unwrap_or(false);
            let (table, interner) = P::tables(&mut self.rib);
            if table.live(destination) && table.paths(destination).any(|path| path.neighbor == index) {
                table.select(destination, interner, &usable);
                self.spread::<P>(neighbor, index, destination);
            }
        }
    }

    /// Our own prefix appears or goes.
    pub(crate) fn originate<P: Known>(&mut self, prefix: P, announced: bool) {
        let usable = |index: NeighborIndex| !self.unusable.get(usize::from(index)).copied().unwrap_or(false);
        let (table, interner) = P::tables(&mut self.rib);
        let destination = if announced {
            interner.retain(crate::intern::OWN);
            match table.set(prefix, (crate::intern::SELF, 0), 0, crate::intern::OWN, interner, &usable) {
                Change::Added(destination) | Change::Replaced(destination) | Change::Removed(destination) => {
                    destination
                }
                Change::None => return,
            }
        } else {
            let Some(destination) = table.find(prefix) else { return };
            table.remove(destination, (crate::intern::SELF, 0), interner, &usable);
            destination
        };
        let best = table.best(destination, &usable);
        for (index, neighbor) in self.neighbors.iter_mut().enumerate() {
            let (Some(neighbor), Ok(index)) = (neighbor, NeighborIndex::try_from(index)) else { continue };
            let carried = neighbor.carries(P::FAMILY);
            let exporter = exporter(index, &neighbor.config, &neighbor.connections, self.local.router_id);
            if let Some(exporter) = exporter.filter(|_| carried) {
                let wanted = exporter.wanted(prefix, best, interner);
                neighbor.heard[place(P::FAMILY)].mark(table, destination, wanted);
            }
        }
    }

    /// Whether a neighbour told more than it may, or than we can hold; warns before.
    pub(crate) fn over_limit(&mut self, neighbor: &mut Neighbor) -> Option<Excess> {
        let limit = neighbor.config.maximum_prefixes;
        for family in [Family::Ipv4, Family::Ipv6] {
            let count = neighbor.received[place(family)];
            let Some(limit) = limit else {
                if count > MOST_PREFIXES {
                    return Some(Excess::Resources);
                }
                continue;
            };
            if count > limit.maximum {
                return Some(Excess::Prefixes(family, limit));
            }
            let threshold = u64::from(limit.maximum) * u64::from(limit.warning_percent);
            let warn = u64::from(count) * 100 >= threshold && count > 0;
            let warned = &mut neighbor.warned[place(family)];
            if warn && !*warned {
                let neighbor = neighbor.id.clone();
                self.outputs.push_back(Output::Event(Event::PrefixWarning { neighbor, family, count }));
            }
            *warned = warn;
        }
        (self.rib.interner.octets() > self.most_octets).then_some(Excess::Resources)
    }

    /// Lets a session's end be felt: what it heard is forgotten, what it told goes or waits.
    pub(crate) fn down(
        &mut self,
        neighbor: &mut Neighbor,
        index: NeighborIndex,
        now: Instant,
        keep: &std::collections::BTreeMap<Family, Keep>,
    ) {
        self.count_listeners();
        neighbor.heard[place(Family::Ipv4)].clear(&mut self.rib.ipv4);
        neighbor.heard[place(Family::Ipv6)].clear(&mut self.rib.ipv6);
        for family in [Family::Ipv4, Family::Ipv6] {
            neighbor.warned[place(family)] = false;
            match keep.get(&family).filter(|_| !neighbor.out) {
                // It went again before it was renewed: what it told meanwhile is no better.
                Some(_) if neighbor.last_resort[place(family)] => self.last_resort(neighbor, index, family),
                Some(&Keep { restart, long: Some(long) }) if restart.is_zero() => {
                    neighbor.stale[place(family)] = Some(now + long);
                    neighbor.last_resort[place(family)] = true;
                    self.last_resort(neighbor, index, family);
                }
                Some(&Keep { restart, long }) => {
                    let at = now + restart;
                    let stale = &mut neighbor.stale[place(family)];
                    *stale = Some(stale.map_or(at, |before| before.min(at)));
                    neighbor.long[place(family)] = long;
                }
                None => {
                    neighbor.fresh(family);
                    self.flush(neighbor, index, family, false);
                }
            }
        }
    }
}
