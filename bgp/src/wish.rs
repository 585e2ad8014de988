//! What is wanted of the speaker: whole values come in, the difference is made here, with as little harm as it allows.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use martlet_clock::Instant;

use crate::fsm::Event as Fsm;
use crate::intern::{NeighborIndex, SELF};
use crate::learn::Own;
use crate::neighbor::{Env, Neighbor};
use crate::wire::notification::{Cease, Notification};
use crate::wire::prefix::{Prefix, Prefix4, Prefix6};
use crate::wire::refresh::{Refresh, Subtype};
use crate::{BfdState, Family, Local, NeighborConfig, NeighborId, Speaker};

impl Speaker {
    pub(crate) fn set_local(&mut self, now: Instant, local: &Local) {
        let other_id = self.local.router_id != local.router_id;
        self.local = local.clone();
        if other_id {
            // RFC 4271 section 4.2: the identifier is the same on every session, so all begin anew.
            let notification = Notification::cease(Cease::Configuration, "");
            self.everyone(now, |neighbor, env| {
                neighbor.stop(env, Fsm::ManualStop, &notification, "our BGP identifier changed");
            });
        }
    }

    pub(crate) fn set_neighbors(&mut self, now: Instant, wanted: &BTreeMap<NeighborId, NeighborConfig>) {
        let gone: Vec<_> = self
            .names
            .iter()
            .filter(|(name, _)| !wanted.contains_key(*name))
            .map(|(name, &index)| (name.clone(), index))
            .collect();
        for (name, index) in gone {
            self.with(now, index, |neighbor, env| {
                neighbor.config.shutdown = Some(String::new());
                let notification = Notification::cease(Cease::Deconfigured, "");
                neighbor.stop(env, Fsm::ManualStop, &notification, "no longer configured");
            });
            self.each(now, |speaker, _, neighbor, one| {
                if one == index {
                    speaker.flush(neighbor, one, Family::Ipv4, false);
                    speaker.flush(neighbor, one, Family::Ipv6, false);
                }
            });
            self.timers.stop(index);
            self.names.remove(&name);
            if let Some(place) = self.neighbors.get_mut(usize::from(index)) {
                *place = None;
            }
            self.count_listeners();
        }
        for (name, config) in wanted {
            match self.names.get(name).copied() {
                Some(index) => self.change(now, index, config),
                None => self.add(now, name, config),
            }
        }
    }

    fn add(&mut self, now: Instant, name: &NeighborId, config: &NeighborConfig) {
        let free = self.neighbors.iter().position(Option::is_none).unwrap_or(self.neighbors.len());
        // The last number is ours; who configures more neighbours than there are numbers has the first ones.
        let Some(index) = NeighborIndex::try_from(free).ok().filter(|&index| index != SELF) else { return };
        if free == self.neighbors.len() {
            self.neighbors.push(None);
            self.unusable.push(false);
        }
        self.unusable[free] = false;
        self.neighbors[free] = Some(Box::new(Neighbor::new(name.clone(), config.clone(), now)));
        self.names.insert(name.clone(), index);
        let bfd = self.bfd.get(name).copied();
        self.with(now, index, |neighbor, env| neighbor.set_bfd(env, bfd));
    }

    /// Another configuration, with as little harm as it allows.
    fn change(&mut self, now: Instant, index: NeighborIndex, config: &NeighborConfig) {
        let Some(Some(neighbor)) = self.neighbors.get(usize::from(index)) else { return };
        if neighbor.config == *config {
            return;
        }
        let old = neighbor.config.clone();
        let bfd = self.bfd.get(&neighbor.id).copied();
        let session = |one: &NeighborConfig| {
            (
                one.local_as,
                one.remote_as,
                one.families.clone(),
                one.role,
                one.route_reflector_client,
                one.graceful_restart.restarting,
                one.add_path_receive,
                one.long_lived.is_some(),
            )
        };
        self.with(now, index, |neighbor, env| {
            neighbor.config = config.clone();
            if let Some(text) = &config.shutdown {
                if old.shutdown.is_none() {
                    let notification = Notification::cease(Cease::Shutdown, text);
                    neighbor.stop(env, Fsm::ManualStop, &notification, text);
                }
            } else if session(&old) != session(config)
                || (!old.passive && config.passive && neighbor.established().is_none())
            {
                let notification = Notification::cease(Cease::Configuration, "");
                neighbor.stop(env, Fsm::ManualStop, &notification, "the configuration changed");
                neighbor.forgive();
            } else if old.passive && !config.passive && neighbor.established().is_none() {
                neighbor.stop(
                    env,
                    Fsm::ManualStop,
                    &Notification::cease(Cease::Configuration, ""),
                    "no longer passive",
                );
            }
            if old.maximum_prefixes != config.maximum_prefixes {
                neighbor.forgive();
            }
            if old.export != config.export {
                neighbor.heard.iter_mut().for_each(|heard| heard.again(false));
            }
            neighbor.set_bfd(env, bfd);
            neighbor.schedule(env);
        });
        self.count_listeners();
        self.each(now, |speaker, now, neighbor, one| {
            if one != index {
                return;
            }
            if old.import != config.import {
                speaker.filter(neighbor, one);
                // What was not let in was not kept: it must be told again.
                let refresh = neighbor.session().is_none_or(|(negotiated, _)| negotiated.refresh);
                speaker.act(now, one, neighbor, |neighbor, env| {
                    if refresh {
                        request_refresh(neighbor, env);
                    } else {
                        let notification = Notification::cease(Cease::Configuration, "");
                        neighbor.stop(env, Fsm::ManualStop, &notification, "the import policy changed");
                    }
                });
            }
            speaker.check_limit(now, neighbor, one);
            speaker.set_out(neighbor, one);
        });
        self.wake(now);
    }

    pub(crate) fn set_own(&mut self, now: Instant, own: &BTreeSet<IpNet>) {
        self.own = Own::new(own);
        self.each(now, |speaker, now, neighbor, index| {
            speaker.filter(neighbor, index);
            // What was refused for being ours was not kept: it must be told again.
            if neighbor.refused_own.iter().any(|net| !own.contains(net)) {
                neighbor.refused_own.retain(|net| own.contains(net));
                speaker.act(now, index, neighbor, request_refresh);
            }
        });
    }

    pub(crate) fn set_announced(&mut self, wanted: &BTreeSet<IpNet>) {
        self.patience = None;
        let old = std::mem::take(&mut self.announced);
        for gone in old.difference(wanted) {
            self.originate_net(gone, false);
        }
        for new in wanted.difference(&old) {
            self.originate_net(new, true);
        }
        self.announced.clone_from(wanted);
    }

    fn originate_net(&mut self, net: &IpNet, announced: bool) {
        if let Some(prefix) = Prefix4::of(net) {
            self.originate(prefix, announced);
        } else if let Some(prefix) = Prefix6::of(net) {
            self.originate(prefix, announced);
        }
    }

    pub(crate) fn set_bfd(&mut self, now: Instant, states: &BTreeMap<NeighborId, BfdState>) {
        let old = std::mem::replace(&mut self.bfd, states.clone());
        for index in self.indices() {
            let Some(Some(neighbor)) = self.neighbors.get(usize::from(index)) else { continue };
            let (before, state) = (old.get(&neighbor.id), states.get(&neighbor.id).copied());
            if before.copied() != state {
                self.with(now, index, |neighbor, env| neighbor.set_bfd(env, state));
                self.each(now, |speaker, _, neighbor, one| {
                    if one == index {
                        speaker.set_out(neighbor, one);
                    }
                });
            }
        }
    }

    /// A neighbour's hop is out, or in again.
    fn set_out(&mut self, neighbor: &mut Neighbor, index: NeighborIndex) {
        if let Some(unusable) = self.unusable.get_mut(usize::from(index))
            && *unusable != neighbor.out
        {
            *unusable = neighbor.out;
            self.reselect(neighbor, index);
        }
    }
}

/// Asks a neighbour that can for its routes again.
pub fn request_refresh(neighbor: &mut Neighbor, env: &mut Env<'_>) {
    let Some(slot) = neighbor.established() else { return };
    let Some((negotiated, _)) = neighbor.session().filter(|(negotiated, _)| negotiated.refresh) else { return };
    for family in negotiated.families.clone() {
        // Operators repeat themselves: one that waits says it all.
        if neighbor.connections[slot].outbox.len() < crate::wire::MAXIMUM {
            Refresh { family, subtype: Subtype::Request }.put(&mut neighbor.connections[slot].outbox);
            neighbor.counters.messages_out += 1;
        }
    }
    neighbor.ready(env, slot);
}
