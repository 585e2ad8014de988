//! What nftables forwarded by itself, by route and by endpoint. Pure: from readings of its counters to sums with names.
//!
//! Counting takes its time, so that the route of a service that no other route leads to is not counted: its endpoints are.
//!
//! A counter stays with its element; an element that goes and comes back, or a table that is made anew, begins at 0. So each
//! reading counts by what it is more than the last one, and there is one before every change of the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::counters::{Count, Counters};
use crate::engine::{FIRST_MARK, Tables};
use crate::hash::jhash;

/// The set of routes that are counted, each by its [`number_of`].
pub const ROUTES: &str = "routes";
/// The set of endpoints, each by its mark.
pub const ENDPOINTS: &str = "endpoints";

/// A reading: packets and octets.
pub type Reading = BTreeMap<u32, (u64, u64)>;

/// A route as an element of a set: the same as long as its name is.
pub fn number_of(route: &str) -> u32 {
    jhash(route.as_bytes(), 0)
}

/// The routes that share their service, and so are counted.
pub fn counted(tables: &Tables) -> BTreeSet<&Arc<str>> {
    let only: BTreeSet<_> = tables.only_routes().into_values().collect();
    tables.classifier().names().iter().filter(|name| !only.contains(name)).collect()
}

/// Sums, and the last readings.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    routes: Reading,
    endpoints: Reading,
    sums: Counters,
}

impl Counts {
    /// Takes readings, made while `tables` were in force.
    pub fn take(&mut self, routes: Reading, endpoints: Reading, tables: &Tables) {
        for name in tables.classifier().names() {
            let more = more(&self.routes, &routes, number_of(name));
            self.sums.routes.entry(Arc::clone(name)).or_default().fold(more);
        }
        let only = tables.only_routes();
        for mark in endpoints.keys() {
            let more = more(&self.endpoints, &endpoints, *mark);
            if more.packets > 0
                && let Some((service, identifier)) =
                    mark.checked_sub(FIRST_MARK).and_then(|number| tables.endpoint(number))
            {
                self.sums.endpoints.entry((Arc::clone(service), identifier)).or_default().fold(more);
                if let Some(route) = only.get(service) {
                    self.sums.routes.entry(Arc::clone(route)).or_default().fold(more);
                }
            }
        }
        (self.routes, self.endpoints) = (routes, endpoints);
    }

    /// Adds the sums to what the queue threads counted.
    pub fn add_to(&self, counters: &mut Counters) {
        for (name, count) in &self.sums.routes {
            counters.routes.entry(Arc::clone(name)).or_default().fold(*count);
        }
        for (endpoint, count) in &self.sums.endpoints {
            counters.endpoints.entry(endpoint.clone()).or_default().fold(*count);
        }
    }
}

fn more(last: &Reading, now: &Reading, key: u32) -> Count {
    let (packets, octets) = now.get(&key).copied().unwrap_or_default();
    let (packets_before, octets_before) = last.get(&key).copied().unwrap_or_default();
    if packets < packets_before {
        return Count { packets, octets };
    }
    Count { packets: packets - packets_before, octets: octets.saturating_sub(octets_before) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::example;

    #[test]
    fn readings_are_summed_also_when_a_counter_begins_again() {
        let tables = Arc::clone(&example().targets.tables);
        let mut counts = Counts::default();
        let mut read = |packets: u64| {
            counts.take(Reading::new(), [(5007, (packets, packets * 100))].into(), &tables);
            let mut sums = Counters::default();
            counts.add_to(&mut sums);
            let route = sums.routes.get("vip").copied().unwrap_or_default();
            let endpoint = sums.endpoints.get(&("a".into(), 7)).copied().unwrap_or_default();
            assert_eq!(route, endpoint, "the only route to the service");
            (route.packets, route.octets)
        };
        assert_eq!(read(3), (3, 300));
        assert_eq!(read(5), (5, 500));
        assert_eq!(read(5), (5, 500));
        assert_eq!(read(2), (7, 700), "made anew in between");
    }
}
