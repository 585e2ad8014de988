//! Learned routes on their way to the kernel: pulled from the speaker in batches, planned, applied batch by batch.
//!
//! Nothing here grows with what a peer sends but the table itself: changed prefixes wait in the speaker, batches under way
//! hold back the next. It also ends the adoption of a former router's routes.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use martlet_api::readiness::Families;
use martlet_bgp::{BfdState, Family, NeighborId};
use martlet_clock::Instant;

use super::{Event, Output, Router};
use crate::intent::default_prefix;
use crate::mirror::{BATCH, Failure, Key, object_of};
use crate::plan::{self, Ways};

/// Batches of prefixes that are planned in one step while they change nothing in the kernel.
const PULLS: usize = 16;
/// Unresolved prefixes that are remembered for the status; more only count.
const UNRESOLVED: usize = 100;

/// What waits to be planned.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// The speaker has more.
    pub(super) changed: bool,
    /// To be planned anew because links, static gateways or the Intent changed.
    pub(super) prefixes: BTreeSet<IpNet>,
    /// There was more than one step may do: the next is due now.
    pub(super) deadline: Option<Instant>,
    /// When adopted routes end at the latest.
    pub(super) adoption: Option<Instant>,
    /// Prefixes whose next hops lead nowhere, and why.
    pub(super) unresolved: BTreeMap<IpNet, (NeighborId, String)>,
}

impl Router {
    /// Everything learned is to be planned anew.
    pub(super) fn replan(&mut self) {
        let prefixes: BTreeSet<IpNet> = self.speaker.prefixes().chain(self.mirror.learned()).collect();
        self.routes.prefixes.extend(prefixes);
        self.replan_defaults();
    }

    /// The default routes are to be planned anew.
    pub(super) fn replan_defaults(&mut self) {
        self.routes.prefixes.extend([Family::Ipv4, Family::Ipv6].map(default_prefix));
    }

    /// Plans what changed and gives the kernel its next batch. While that has enough to do, the next is planned, no more.
    pub(super) fn plan_routes(&mut self, now: Instant) {
        if !self.configured {
            return;
        }
        self.routes.deadline = None;
        if self.mirror.is_busy() {
            if !self.mirror.is_full() {
                let prefixes = self.pull();
                self.plan_all(now, &prefixes);
                self.plan_ahead(now);
            }
            return;
        }
        // What was planned ahead goes at once: the kernel works while more is planned. What is to be planned anew is urgent.
        if self.mirror.is_full() && self.routes.prefixes.is_empty() && self.apply_batch(now) {
            return;
        }
        for _ in 0..PULLS {
            let prefixes = self.pull();
            if prefixes.is_empty() {
                self.end_adoption(now);
            }
            self.plan_all(now, &prefixes);
            if self.apply_batch(now) || prefixes.is_empty() {
                return;
            }
        }
        self.routes.deadline = Some(now);
    }

    /// Gives the kernel its next batch; false: there is none.
    fn apply_batch(&mut self, now: Instant) -> bool {
        let changes = self.mirror.batch();
        if changes.is_empty() {
            return false;
        }
        self.outputs.push_back(Output::Apply(changes));
        self.plan_ahead(now);
        true
    }

    /// The step after this one hands out the batch that is full, or plans more, if more waits and there is room for it.
    fn plan_ahead(&mut self, now: Instant) {
        let waits = self.routes.changed || !self.routes.prefixes.is_empty();
        let due = if self.mirror.is_full() { !self.mirror.is_busy() } else { waits };
        self.routes.deadline = due.then_some(now);
    }

    fn plan_all(&mut self, now: Instant, prefixes: &[IpNet]) {
        let defaults = prefixes.iter().any(|prefix| prefix.prefix_len() == 0);
        let before = defaults.then(|| self.egress());
        for prefix in prefixes {
            self.plan_route(*prefix);
        }
        if before.is_some_and(|before| before != self.egress()) {
            self.decide(now);
            self.drain_speaker(now);
        }
    }

    fn pull(&mut self) -> Vec<IpNet> {
        let mut prefixes = Vec::new();
        while let Some(prefix) = self.routes.prefixes.pop_first() {
            prefixes.push(prefix);
            if prefixes.len() == BATCH {
                return prefixes;
            }
        }
        if self.routes.changed {
            let room = BATCH - prefixes.len();
            let changed = self.speaker.changed(room);
            self.routes.changed = !changed.is_empty();
            prefixes.extend(changed);
        }
        prefixes
    }

    fn plan_route(&mut self, prefix: IpNet) {
        let Some(intent) = &self.intent else { return };
        let paths = if self.life.has_routes() { self.speaker.paths(&prefix) } else { Vec::new() };
        let none = BTreeSet::new();
        let statics = if self.life.has_routes() { &self.statics_up } else { &none };
        let ways = Ways { intent, links: &self.links, statics };
        let route = plan::learned(prefix, &paths, &ways);
        let failed = match (&route, paths.first()) {
            (None, Some(path)) => ways.hop(path).err().map(|error| (path.neighbor.clone(), error.to_string())),
            _ => None,
        };
        self.mirror.want_learned(prefix, route);
        match failed {
            None => drop(self.routes.unresolved.remove(&prefix)),
            Some(failed) if self.routes.unresolved.len() < UNRESOLVED => {
                // One line for a next hop, not one for each of its prefixes.
                let told = self.routes.unresolved.values().any(|other| *other == failed);
                self.routes.unresolved.insert(prefix, failed.clone());
                if !told {
                    self.tell(Event::Unresolved(prefix, failed.0, failed.1));
                }
            }
            Some(_) => {}
        }
    }

    /// Which family has a default route.
    pub(super) fn egress(&self) -> Families {
        let has = |family| self.mirror.learned_route(default_prefix(family)).is_some();
        Families { ipv4: has(Family::Ipv4), ipv6: has(Family::Ipv6) }
    }

    /// The kernel is through with a batch.
    pub(super) fn on_applied(&mut self, now: Instant, failures: &[Failure]) {
        // The first of many is enough, and once: all are in the status until they work.
        let news =
            failures.iter().find(|failure| !self.mirror.waits().contains_key(&Key::of(object_of(&failure.change))));
        if let Some(failure) = news.cloned() {
            self.tell(Event::Refused(failure));
        }
        if self.mirror.done(now, failures) {
            self.outputs.push_back(Output::Dump);
        }
    }

    /// Adopted routes are kept from now on until their family has spoken, or this long.
    pub(super) fn start_adoption(&mut self, now: Instant) {
        if self.mirror.adopted() > 0 {
            self.routes.adoption = Some(now + self.config.adopt);
        }
    }

    /// Ends the adoption of each family that has been told anew: every neighbour's End-of-RIB is here and nothing waits to
    /// be planned; static gateways are Up or need no BFD.
    pub(super) fn end_adoption(&mut self, now: Instant) {
        let Some(until) = self.routes.adoption else { return };
        let over = until <= now || !self.life.has_routes();
        for (family, kernel_family) in
            [(Family::Ipv4, martlet_netlink::Family::Ipv4), (Family::Ipv6, martlet_netlink::Family::Ipv6)]
        {
            if over || self.has_spoken(family) {
                let count = self.mirror.end_adoption(kernel_family);
                if count > 0 {
                    self.tell(Event::AdoptionEnded(family, count));
                }
            }
        }
        if over || self.mirror.adopted() == 0 {
            self.routes.adoption = None;
        }
    }

    fn has_spoken(&self, family: Family) -> bool {
        let Some(intent) = &self.intent else { return false };
        let told = |id: &NeighborId| self.sessions.get(id).is_some_and(|session| session.end_of_rib.contains(&family));
        let neighbors = intent
            .neighbors
            .iter()
            .filter(|(_, neighbor)| neighbor.config.families.contains(&family) && neighbor.config.shutdown.is_none());
        let statics = intent.statics.values().filter(|gateway| gateway.address.is_ipv4() == (family == Family::Ipv4));
        let is_waiting = |session| self.bfd_state(session) == BfdState::Down;
        neighbors.into_iter().all(|(id, _)| told(id)) && !statics.filter_map(|s| s.bfd.as_ref()).any(is_waiting)
    }
}
