//! From a new view to the kernel, the queue threads and the router, in the order that loses nothing.
//!
//! First, what is no longer ready is told at once, and what leads past the routing tables without need is removed. Then routes
//! and rules are added, the threads get the new tables, and nftables sends the VIPs' packets to them. Then what is ready now
//! is told. At last, when every thread has let go of the old tables, routes and rules that nobody needs are removed, but
//! nothing before the source has said what exists.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use martlet_api::accept;
use martlet_api::objects::Objects;
use martlet_api::view::{Condition, ObjectName, View};
use martlet_netlink::link::{Reachability, sysctl};
use martlet_netlink::nft::{self, Layer, Queue};
use martlet_netlink::{Change, Family, Kernel, NeighborChange, Object, ObjectsChanged, diff};

use crate::counters::Counters;
use crate::direct::{self, Direct};
use crate::engine::FragmentMode;
use crate::ingress::Ingress;
use crate::offload::counts::{self, Counts};
use crate::offload::{Engine, MOST_ELEMENTS, Offload, ingress, limit, offload};
use crate::queue::Queues;
use crate::readiness::Server;
use crate::ready::{Facts, meanwhile, partially_served, readiness};
use crate::rules::{self, NFT_TABLE, Steer, nftables, steps};
use crate::status::Status;
use crate::targets::{Hop, Marks, Settings, Targets, targets};
use crate::translate;

/// Checks (one a second) without an answer that an endpoint survives.
const UNANSWERED: u32 = 3;
/// How long removals wait for a thread that has not taken the new tables.
const LETTING_GO: Duration = Duration::from_secs(1);

/// Reading what nftables counted takes one part in so many of the time.
const COUNTING: u32 = 40;

/// Everything that is changed by a new view.
pub struct Follower {
    /// Whose view.
    pub gateway: ObjectName,
    /// How to look at it.
    pub settings: Settings,
    /// Routes and rules.
    pub kernel: Kernel,
    /// nftables.
    pub nft: nft::Connection,
    /// What nftables does with packets to VIPs.
    pub queue: Queue,
    /// Who decides.
    pub engine: Engine,
    /// The threads.
    pub queues: Queues,
    /// The socket to the router.
    pub server: Server,
    state: State,
}

/// What is remembered between two views.
#[derive(Default)]
struct State {
    marks: Marks,
    view: Option<Arc<View>>,
    targets: Arc<Targets>,
    facts: Facts,
    /// Our routes and rules in the kernel.
    have: BTreeSet<Object>,
    /// Our nftables table in the kernel.
    table: Option<nft::Table>,
    /// The one of the short way.
    ingress: Ingress,
    /// The direct way.
    direct: Direct,
    /// What nftables forwarded by itself.
    counts: Counts,
    /// Not to be read before.
    count_again: Option<Instant>,
    told: BTreeSet<String>,
    /// Endpoints that the kernel asks for without an answer, and at how many checks in a row it did.
    unanswered: BTreeMap<IpAddr, u32>,
    /// Who decides, in words.
    engine: String,
    draining: bool,
    /// Whether the queue threads answered when they were last asked.
    alive: bool,
    /// Whether the source has said what exists, and can be read now.
    reached: bool,
    /// VIPs that are ready although some of their routes are not served.
    partial: BTreeSet<Condition>,
}

impl Follower {
    /// Nothing is known yet.
    pub fn new(
        gateway: ObjectName,
        settings: Settings,
        (kernel, nft): (Kernel, nft::Connection),
        (engine, queue, queues): (Engine, Queue, Queues),
        server: Server,
        direct: Direct,
    ) -> Self {
        let state = State { direct, ..State::default() };
        Self { gateway, settings, kernel, nft, queue, engine, queues, server, state }
    }

    /// Reads links, routes and rules anew.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn look(&mut self) -> anyhow::Result<()> {
        let snapshot = self.kernel.snapshot().await.context("the kernel's state cannot be read")?;
        self.state.facts.links = snapshot.links;
        self.state.have = snapshot.objects;
        self.state.direct.look_at(&self.state.have);
        Ok(())
    }

    /// Takes note of what another did to our objects.
    pub fn objects_changed(&mut self, changed: ObjectsChanged) {
        for object in &changed.removed {
            tracing::warn!(%object, "somebody deleted a kernel object of ours");
            self.state.have.remove(object);
        }
        self.state.have.extend(changed.appeared);
        self.state.direct.look_at(&self.state.have);
    }

    /// Makes everything follow `objects` and the links.
    pub async fn follow(&mut self, objects: &Objects) {
        let view = accept::view(objects, &self.gateway);
        self.state.reached = objects.is_reached();
        let before = Arc::clone(&self.state.targets.tables);
        let next = targets(&view, &self.state.facts.links, &mut self.state.marks, &self.settings, &before);
        self.log(&view, &next);
        let new_hops: Vec<Hop> = next.hops.difference(&self.state.targets.hops).copied().collect();
        self.state.facts.blocked = unforwarded();
        self.state.facts.refused = BTreeSet::new();
        let wanted = readiness(&view, &next, &self.state.facts, self.state.draining);
        if let Some(last) = self.server.last() {
            let meanwhile = meanwhile(last, &wanted);
            if *last != meanwhile {
                self.publish(&meanwhile);
            }
        }
        self.state.view = Some(Arc::new(view));
        self.state.targets = Arc::new(next);

        if self.state.direct.prepare(&self.state.targets, &self.state.facts.links) {
            let turn = self.queues.poke();
            self.wait_for(turn).await;
        }
        let want = rules::objects(&self.state.targets);
        let [past_the_tables, additions, removals] = in_order(diff(&self.state.have, &want));
        self.apply(&past_the_tables).await;
        self.apply(&additions).await;
        self.state.direct.look_at(&self.state.have);
        let turn = self.queues.swap(Arc::clone(&self.state.targets.tables));
        self.apply_nftables().await;
        self.tell();
        self.resolve(&new_hops).await;
        self.settle_direct().await;
        if objects.synced && !removals.is_empty() {
            self.wait_for(turn).await;
            self.apply(&removals).await;
            self.tell();
        }
    }

    /// Waits for a while until every thread has answered.
    async fn wait_for(&self, turn: u64) {
        if tokio::time::timeout(LETTING_GO, self.queues.answered(turn)).await.is_err() {
            tracing::warn!(queues = ?self.queues.silent(turn), "queue threads do not answer");
        }
    }

    /// Takes note of what became of neighbours.
    pub fn neighbors_changed(&mut self, changes: Vec<NeighborChange>) {
        self.state.direct.neighbors_changed(changes);
    }

    /// Makes the direct way follow, if there is news for it.
    pub async fn settle_direct(&mut self) {
        self.state.direct.settle(&mut self.kernel, &mut self.nft).await;
    }

    /// Asks for the neighbours of new hops, so that the first packet finds them known; a kernel that cannot do it will ask by
    /// itself.
    async fn resolve(&mut self, hops: &[Hop]) {
        if hops.is_empty() {
            return;
        }
        let known = self.kernel.neighbors().await.unwrap_or_default();
        // What somebody wrote down would be overwritten.
        let permanent: BTreeSet<(u32, IpAddr)> = known
            .iter()
            .filter(|neighbor| neighbor.reachability == Reachability::Permanent)
            .map(|neighbor| (neighbor.interface, neighbor.address))
            .collect();
        for hop in hops.iter().filter(|hop| !permanent.contains(&(hop.interface, hop.address))) {
            let _ = self.kernel.probe_neighbor(hop.interface, hop.address);
        }
    }

    /// Tells the router what is ready, if that is news.
    pub fn tell(&mut self) {
        if let Some(view) = &self.state.view {
            let now = readiness(view, &self.state.targets, &self.state.facts, self.state.draining);
            let partial = partially_served(view, &self.state.targets, &self.state.facts);
            if self.server.last() != Some(&now) {
                self.publish(&now);
            }
            for condition in partial.difference(&self.state.partial) {
                tracing::warn!(condition = &*condition.condition, "{}", condition.message);
            }
            self.state.partial = partial;
        }
    }

    /// A sign of life: tells the router again.
    pub fn beat(&mut self) {
        if !self.state.alive {
            tracing::info!("all queue threads answer");
            self.state.alive = true;
        }
        if let Some(view) = &self.state.view {
            let now = readiness(view, &self.state.targets, &self.state.facts, self.state.draining);
            self.server.publish(&now);
        }
    }

    /// Asks every endpoint's address for a sign of life on its link; true: somebody died or came back. An endpoint is dead
    /// when the kernel gave up on it (about 3 s), and alive again when it answers.
    pub async fn check_endpoints(&mut self) -> bool {
        let neighbors = match self.kernel.neighbors().await {
            Ok(neighbors) => neighbors,
            Err(error) => {
                tracing::warn!(%error, "neighbours cannot be read");
                return false;
            }
        };
        let known: BTreeMap<(u32, IpAddr), Reachability> =
            neighbors.iter().map(|neighbor| ((neighbor.interface, neighbor.address), neighbor.reachability)).collect();
        let hops = &self.state.targets.hops;
        let unanswered = &mut self.state.unanswered;
        let mut dead: BTreeSet<IpAddr> = &self.settings.dead & &hops.iter().map(|hop| hop.address).collect();
        for Hop { address, interface, .. } in hops {
            match known.get(&(*interface, *address)) {
                Some(Reachability::Failed) => drop(dead.insert(*address)),
                Some(Reachability::Reachable) => drop(dead.remove(address)),
                // To ask for it would overwrite what somebody wrote down.
                Some(Reachability::Permanent) => {
                    dead.remove(address);
                    continue;
                }
                // While packets come for it the kernel goes from "failed" back to "incomplete" at once, so that waiting for
                // "failed" could take for ever. As patient as the kernel: a link that just came up answers late.
                Some(Reachability::Incomplete) => {
                    let checks = unanswered.entry(*address).or_default();
                    *checks += 1;
                    if *checks > UNANSWERED {
                        dead.insert(*address);
                    }
                    continue;
                }
                // Being asked: it keeps what it was until that is decided.
                Some(Reachability::Probe) => continue,
                Some(Reachability::Stale) | None => {}
            }
            unanswered.remove(address);
            let _ = self.kernel.probe_neighbor(*interface, *address);
        }
        for address in dead.symmetric_difference(&self.settings.dead) {
            tracing::warn!(%address, answers = !dead.contains(address), "endpoint");
        }
        let changed = dead != self.settings.dead;
        self.settings.dead = dead;
        changed
    }

    /// Reads what nftables counted, unless it was read a moment ago: of ten thousand endpoints that takes a tenth of a second,
    /// which packets would miss.
    pub fn count(&mut self) {
        let started = Instant::now();
        if self.state.count_again.is_some_and(|at| started < at) {
            return;
        }
        if let Err(error) = self.read_counters() {
            // Somebody deleted the table: that is told elsewhere.
            tracing::debug!(%error, "counters cannot be read");
        }
        self.state.count_again = Some(Instant::now() + started.elapsed() * COUNTING);
    }

    fn read_counters(&mut self) -> Result<(), martlet_netlink::Error> {
        let State { table, ingress, counts, targets, .. } = &mut self.state;
        if table.as_ref().is_some_and(|table| table.sets.contains_key(counts::ENDPOINTS)) {
            let mut read = |set| self.nft.counts(Layer::Inet, NFT_TABLE, set);
            counts.take(read(counts::ROUTES)?, read(counts::ENDPOINTS)?, &targets.tables);
        }
        ingress.count(&mut self.nft, &targets.tables)
    }

    /// Another had a hand in our nftables table: it is made anew.
    pub fn table_changed(&mut self) {
        tracing::warn!("somebody changed our nftables table");
        self.state.table = None;
        self.state.ingress.forget();
        self.state.direct.forget();
    }

    /// Whether the kernel has refused something, or forwards now what it did not, so that it is worth trying again.
    pub fn is_incomplete(&self) -> bool {
        let State { facts, table, ingress, .. } = &self.state;
        // A family that is off for good is no reason: many a pod has but one.
        let is_other = facts.blocked != unforwarded();
        !facts.refused.is_empty() || is_other || table.is_none() || !ingress.is_known()
    }

    /// All that is known.
    pub fn status(&self) -> Status {
        let State { view, targets, facts, engine, alive, reached, partial, direct, .. } = &self.state;
        let mut counters = self.queues.counters();
        self.state.counts.add_to(&mut counters);
        self.state.ingress.add_to(&mut counters);
        Status {
            view: view.clone(),
            targets: targets.clone(),
            facts: facts.clone(),
            readiness: self.server.last().cloned(),
            connectivity: *self.server.connectivity().borrow(),
            engine: engine.clone(),
            direct: direct.reached().map(|(addresses, link)| (addresses, link.into())),
            alive: *alive,
            counters,
            dead: self.settings.dead.clone(),
            source_reached: *reached,
            partial: partial.clone(),
        }
    }

    /// The queue threads did not answer: the router hears nothing more, whatever changes.
    pub fn fall_silent(&mut self, queues: &[u16]) {
        if self.state.alive {
            tracing::error!(?queues, "queue threads do not answer: the router is told nothing");
            self.server.fall_silent();
        }
        self.state.alive = false;
    }

    /// Says that we are about to end.
    pub fn drain(&mut self) {
        self.state.draining = true;
        self.tell();
    }

    /// Removes everything that is ours and ends the threads: what they counted.
    ///
    /// # Errors
    /// When something could not be removed.
    pub async fn end(mut self) -> anyhow::Result<Counters> {
        self.state.direct.forget();
        self.wait_for(self.queues.poke()).await;
        let cleaned = remove(&mut self.kernel, &mut self.nft).await;
        let counters = self.queues.stop().context("a queue thread failed")?;
        cleaned.map(|()| counters)
    }

    /// Publishes, unless the queue threads have fallen silent.
    fn publish(&mut self, value: &martlet_api::readiness::Readiness) {
        if !self.state.alive {
            return;
        }
        for (vip, now) in &value.vips {
            let before = self.server.last().and_then(|last| last.vips.get(vip));
            if before.map(|before| before.ready) != Some(now.ready) {
                tracing::info!(%vip, ready = now.ready, reason = now.reason, "VIP");
            }
        }
        self.server.publish(value);
    }

    async fn apply(&mut self, changes: &[Change]) {
        let failed = self.kernel.apply(changes).await;
        let failed: Vec<(&Change, String)> = failed.iter().map(|(change, error)| (change, error.to_string())).collect();
        for change in changes {
            let error = failed.iter().find(|(failed, _)| *failed == change).map(|(_, error)| error);
            let (gone, new) = match change {
                Change::Add(object) => (None, Some(object)),
                Change::Replace { from, to } => (Some(from), Some(to)),
                Change::Remove(object) => (Some(object), None),
            };
            if let Some(error) = error {
                tracing::error!(%error, "the kernel did not follow");
                // Nobody needs to be reached directly.
                self.state.facts.refused.extend(new.filter(|object| !rules::is_direct(object)).cloned());
            } else {
                gone.map(|object| self.state.have.remove(object));
                self.state.have.extend(new.cloned());
            }
        }
    }

    async fn apply_nftables(&mut self) {
        let defragment = self.settings.policy.fragments == FragmentMode::Kernel;
        let (offload, why) = self.offload();
        let steer = match &offload {
            None => Steer::Queue,
            Some(offload) if self.engine == Engine::Queue => Steer::QueueOr(offload),
            Some(offload) => Steer::Kernel(offload),
        };
        let replies = self.state.view.as_deref().map(translate::replies).unwrap_or_default();
        let vips = &self.state.targets.vips;
        let table = nftables(vips, &replies, self.queue, defragment, steer);
        let short = self.state.view.as_ref().filter(|_| matches!(steer, Steer::Kernel(_))).and_then(|view| {
            let Targets { tables, hops, .. } = &*self.state.targets;
            ingress(NFT_TABLE, view, tables, hops, &self.state.facts.links)
        });
        let is_there = self.state.table.as_ref() == Some(&table) || {
            let plain = nftables(vips, &replies, self.queue, defragment, Steer::Queue);
            self.apply_steps(table, plain).await
        };
        let engine = why + &self.state.ingress.apply(&mut self.nft, short.filter(|_| is_there));
        if engine != self.state.engine {
            tracing::info!(engine, "packets to VIPs");
            self.state.engine = engine;
        }
    }

    /// Makes `table` true; false: the kernel refuses.
    async fn apply_steps(&mut self, table: nft::Table, plain: nft::Table) -> bool {
        let mut steps = steps(self.state.table.as_ref(), table, plain).into_iter().peekable();
        while let Some(table) = steps.next() {
            match self.nft.apply(&table, self.state.table.as_ref()) {
                Ok(()) => self.state.table = Some(table),
                Err(error) => {
                    tracing::error!(%error, "nftables does not follow");
                    self.state.table = None;
                    let reason = format!("nftables: {error}");
                    self.state.facts.blocked = Family::ALL.into_iter().map(|family| (family, reason.clone())).collect();
                    return false;
                }
            }
            if steps.peek().is_some() {
                self.give_sign_of_life().await;
            }
        }
        true
    }

    /// In the midst of long work: asks the threads, and tells the router again, so that nobody takes us for dead.
    async fn give_sign_of_life(&mut self) {
        let turn = self.queues.poke();
        let answered = tokio::time::timeout(LETTING_GO, self.queues.answered(turn)).await.is_ok();
        if answered && let (true, Some(last)) = (self.state.alive, self.server.last().cloned()) {
            self.server.publish(&last);
        }
        // The connections are served by tasks of this very thread.
        tokio::task::yield_now().await;
    }

    /// What the kernel engine is to do, and in words who decides and why.
    fn offload(&self) -> (Option<Offload>, String) {
        if self.engine == Engine::Queue && !self.queue.bypass {
            return (None, "queue".into());
        }
        let Some(view) = &self.state.view else { return (None, "queue".into()) };
        let Targets { tables, hops, .. } = &*self.state.targets;
        let offload = offload(view, tables, self.queue, limit(hops, &self.state.facts.links));
        match (offload.excess(), self.engine) {
            (Some(excess), _) => (None, format!("queue: {excess}")),
            (None, Engine::Queue) => (Some(offload), "queue, and the kernel while nobody listens there".into()),
            (None, _) => {
                let Offload { elements, rules, .. } = &offload;
                let smaller = match self.state.targets.part {
                    0 | 1 => String::new(),
                    part => format!(" (tables of 1/{part} of their size, so that they fit into {MOST_ELEMENTS} slots)"),
                };
                let words = format!("kernel: {rules} rules, {elements} slots{smaller}");
                (Some(offload), words)
            }
        }
    }

    /// One line for each thing that changed.
    fn log(&mut self, view: &View, next: &Targets) {
        for complaint in next.complaints.difference(&self.state.told) {
            tracing::warn!("{complaint}");
        }
        self.state.told.clone_from(&next.complaints);
        for backend in next.tables.services() {
            let was = self.state.targets.tables.services().iter().find(|old| old.service == backend.service);
            for (family, now, was) in
                [("IPv4", &backend.ipv4, was.map(|was| &was.ipv4)), ("IPv6", &backend.ipv6, was.map(|was| &was.ipv6))]
            {
                if was.is_some_and(|was| was.identifiers() == now.identifiers()) {
                    continue;
                }
                let (identifiers, slots) = (now.identifiers(), now.size().slots());
                let moved = was.map(|was| was.moves(now));
                tracing::info!(service = %backend.service, family, ?identifiers, slots, ?moved, "Maglev table");
            }
        }
        let empty = BTreeSet::new();
        let known = self.state.view.as_ref().map_or(&empty, |view| &view.conditions);
        for condition in view.conditions.difference(known).filter(|condition| !condition.status) {
            tracing::warn!(
                kind = &*condition.kind,
                object = %condition.object,
                condition = &*condition.condition,
                reason = &*condition.reason,
                "{}",
                condition.message
            );
        }
        if self.state.view.as_ref().map(|view| view.exists) != Some(view.exists) {
            tracing::info!(gateway = %view.gateway, exists = view.exists, "Gateway");
        }
    }
}

/// What leads past the tables and is not wanted any more, before anything else changes: marks may become an endpoint's that are
/// such a packet's now. Then what comes, and what another takes the place of; then what goes.
fn in_order(changes: Vec<Change>) -> [Vec<Change>; 3] {
    let mut ordered = <[Vec<Change>; 3]>::default();
    for change in changes {
        let [past_the_tables, additions, removals] = &mut ordered;
        match &change {
            Change::Remove(object) if rules::is_direct(object) => past_the_tables.push(change),
            Change::Remove(_) => removals.push(change),
            Change::Add(_) | Change::Replace { .. } => additions.push(change),
        }
    }
    ordered
}

/// The families that this namespace does not forward, in words.
fn unforwarded() -> BTreeMap<Family, String> {
    [(Family::Ipv4, "ipv4/ip_forward"), (Family::Ipv6, "ipv6/conf/all/forwarding")]
        .into_iter()
        .filter_map(|(family, name)| match sysctl::read(name) {
            Ok(value) if value == "0" => Some((family, format!("sysctl net/{name} is 0: nothing is forwarded"))),
            Ok(_) => None,
            Err(error) => Some((family, error.to_string())),
        })
        .collect()
}

/// Removes everything that carries our protocol number, and our nftables table.
///
/// # Errors
/// When something could not be removed.
pub async fn remove(kernel: &mut Kernel, nft: &mut nft::Connection) -> anyhow::Result<()> {
    // A kernel without that family holds nothing of it, and says so.
    let _ = nft.delete(Layer::Netdev, NFT_TABLE);
    nft.delete(Layer::Inet, NFT_TABLE).context("the nftables table cannot be deleted")?;
    let have = kernel.snapshot().await.context("the kernel's state cannot be read")?.objects;
    let failed = kernel.apply(&diff(&have, &BTreeSet::new())).await;
    direct::remove(kernel, nft).await?;
    match failed.first() {
        Some((_, error)) => anyhow::bail!("{} objects cannot be removed: {error}", failed.len()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Hop;

    #[test]
    fn what_leads_past_the_tables_goes_before_anything_comes() {
        let hop =
            |mark: u32, address: &str| Hop { mark, address: address.parse().unwrap(), interface: 3, onlink: false };
        let few = Targets { hops: [hop(5001, "10.9.0.1")].into(), end_of_marks: 5100, ..Targets::default() };
        let direct = Targets { direct: Some(3), ..few.clone() };
        // Mark 37769 is 5001 with the bit.
        let many = Targets { hops: [hop(37_769, "10.9.0.2")].into(), end_of_marks: 45_000, ..Targets::default() };
        let objects = |targets| rules::objects(targets);
        let [first, second, third] = in_order(diff(&objects(&direct), &objects(&many)));
        let gone: BTreeSet<Object> = first
            .into_iter()
            .filter_map(|change| match change {
                Change::Remove(object) => Some(object),
                Change::Add(_) | Change::Replace { .. } => None,
            })
            .collect();
        assert_eq!(gone, &objects(&direct) - &objects(&few));
        assert!(second.iter().all(|change| matches!(change, Change::Add(_))) && !second.is_empty());
        assert!(third.iter().all(|change| matches!(change, Change::Remove(_))) && !third.is_empty());
    }
}
