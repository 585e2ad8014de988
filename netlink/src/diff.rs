//! What must change so that the kernel holds what is wanted, in an order that never leaves a gap.
//!
//! Pure: it knows two sets and no socket. The kernel tells routes apart by table, prefix and metric; a wanted route
//! that finds another one under the same three is *one* replacement.
//!
//! The order, and why: routes come before the rules that lead to them, and rules go before the routes they lead to;
//! what is added comes first, then what is replaced, then what is removed, so that a prefix that was there before and
//! is there after is there all along. Rules are added from the last priority to the first and removed the other way
//! round: a rule that drops stands before the rule that forwards in front of it, and a tree of `goto` rules is entered
//! only when it is complete.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::model::{NextHop, Object, Route, RouteKind, Rule};

/// One step from what is to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing is under its key yet.
    Add(Object),
    /// A route takes the place of our own route of the same table, prefix and metric, without a gap.
    Replace {
        /// What is there.
        from: Object,
        /// What takes its place.
        to: Object,
    },
    /// No longer wanted.
    Remove(Object),
}

/// What tells routes apart: table, prefix, metric.
pub(crate) type Key = (u32, IpNet, u32);

/// The key of `route`.
pub(crate) const fn key(route: &Route) -> Key {
    (route.table, route.prefix, route.metric)
}

/// The changes that turn `have` into `want`, in the order in which they must be made.
///
/// `want` holds at most one route for a table, prefix and metric; of several the greatest counts. A wanted next hop
/// without an interface, and the weight of a single next hop, are satisfied by whatever the kernel shows there.
pub fn diff(have: &BTreeSet<Object>, want: &BTreeSet<Object>) -> Vec<Change> {
    let mut routes: BTreeMap<Key, &Route> = BTreeMap::new();
    let mut rules: BTreeSet<&Rule> = BTreeSet::new();
    for object in want.difference(have) {
        match object {
            Object::Route(route) => drop(routes.insert(key(route), route)),
            Object::Rule(rule) => drop(rules.insert(rule)),
        }
    }
    let mut replaced = Vec::new();
    let mut surplus_routes = Vec::new();
    let mut surplus_rules = Vec::new();
    for object in have.difference(want) {
        match object {
            Object::Rule(rule) => surplus_rules.push(rule),
            Object::Route(route) => match routes.remove(&key(route)) {
                Some(wanted) if satisfies(route, wanted) => {}
                Some(wanted) => replaced.push(Change::Replace { from: object.clone(), to: wanted.clone().into() }),
                None => surplus_routes.push(route),
            },
        }
    }
    let mut new_rules: Vec<_> = rules.into_iter().collect();
    new_rules.sort_by_key(|rule| std::cmp::Reverse(rule.priority));
    surplus_rules.sort_by_key(|rule| rule.priority);

    let add = |object: Object| Change::Add(object);
    let remove = |object: Object| Change::Remove(object);
    let mut changes = Vec::new();
    changes.extend(routes.into_values().map(|route| add(route.clone().into())));
    changes.extend(new_rules.into_iter().map(|rule| add(rule.clone().into())));
    changes.extend(replaced);
    changes.extend(surplus_rules.into_iter().map(|rule| remove(rule.clone().into())));
    changes.extend(surplus_routes.into_iter().map(|route| remove(route.clone().into())));
    changes
}

/// Whether `have`, as the kernel shows it, is what `want` asks for, although it may say more.
fn satisfies(have: &Route, want: &Route) -> bool {
    match (&have.kind, &want.kind) {
        (RouteKind::Blackhole, RouteKind::Blackhole) => true,
        (RouteKind::Unicast(have), RouteKind::Unicast(want)) => {
            let single = have.len() == 1;
            have.len() == want.len() && have.iter().zip(want).all(|(have, want)| hop_satisfies(have, want, single))
        }
        _ => false,
    }
}

/// The kernel finds the interface of a next hop that names none, and keeps no weight for a single next hop.
fn hop_satisfies(have: &NextHop, want: &NextHop, single: bool) -> bool {
    have.gateway == want.gateway
        && have.onlink == want.onlink
        && (single || have.weight == want.weight)
        && (want.interface.is_none() || have.interface == want.interface)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{Action, Family, Mark};

    fn hop(gateway: &str, interface: Option<u32>, weight: u16) -> NextHop {
        NextHop { gateway: Some(gateway.parse().unwrap()), interface, weight, onlink: false }
    }

    fn route(prefix: &str, kind: RouteKind) -> Route {
        Route { table: 4096, prefix: prefix.parse().unwrap(), metric: 20, kind }
    }

    fn rule(priority: u32, action: Action) -> Rule {
        Rule { family: Family::Ipv4, priority, from: None, to: None, mark: None, invert: false, action }
    }

    fn set<const N: usize>(objects: [Object; N]) -> BTreeSet<Object> {
        BTreeSet::from(objects)
    }

    /// What a kernel does with the changes; `seen` is asked after each.
    fn play(have: &BTreeSet<Object>, changes: &[Change], mut seen: impl FnMut(&BTreeSet<Object>)) -> BTreeSet<Object> {
        let mut now = have.clone();
        for change in changes {
            match change {
                Change::Add(object) => assert!(now.insert(object.clone()), "{object:?} is added twice"),
                Change::Remove(object) => assert!(now.remove(object), "{object:?} is removed but not there"),
                Change::Replace { from, to } => {
                    assert!(now.remove(from), "{from:?} is replaced but not there");
                    assert!(now.insert(to.clone()), "{to:?} was there already");
                }
            }
            seen(&now);
        }
        now
    }

    fn prefixes(objects: &BTreeSet<Object>) -> BTreeSet<(u32, IpNet)> {
        objects
            .iter()
            .filter_map(|object| match object {
                Object::Route(route) => Some((route.table, route.prefix)),
                Object::Rule(_) => None,
            })
            .collect()
    }

    #[test]
    fn a_changed_next_hop_is_one_replacement() {
        let from: Object = route("10.0.0.0/8", RouteKind::Unicast(vec![hop("192.0.2.1", Some(2), 1)])).into();
        let to: Object = route("10.0.0.0/8", RouteKind::Unicast(vec![hop("192.0.2.2", Some(2), 1)])).into();
        assert_eq!(diff(&set([from.clone()]), &set([to.clone()])), vec![Change::Replace { from, to }]);
    }

    #[test]
    fn a_next_hop_without_interface_is_satisfied_by_the_one_the_kernel_found() {
        let have = set([route("10.0.0.0/8", RouteKind::Unicast(vec![hop("192.0.2.1", Some(2), 1)])).into()]);
        let want = set([route("10.0.0.0/8", RouteKind::Unicast(vec![hop("192.0.2.1", None, 7)])).into()]);
        assert_eq!(diff(&have, &want), vec![]);
    }

    #[test]
    fn the_weights_of_several_next_hops_count() {
        let of = |weight| {
            let hops = vec![hop("192.0.2.1", Some(2), weight), hop("192.0.2.2", Some(2), 1)];
            set([route("10.0.0.0/8", RouteKind::Unicast(hops)).into()])
        };
        assert_eq!(diff(&of(1), &of(3)).len(), 1);
    }

    #[test]
    fn a_new_metric_is_added_before_the_old_one_goes() {
        let old = route("0.0.0.0/0", RouteKind::Blackhole);
        let new = Route { metric: 10, ..old.clone() };
        let changes = diff(&set([old.clone().into()]), &set([new.clone().into()]));
        assert_eq!(changes, vec![Change::Add(new.into()), Change::Remove(old.into())]);
    }

    #[test]
    fn rules_come_after_their_routes_and_the_dropping_rule_before_the_forwarding_one() {
        let hole = route("0.0.0.0/0", RouteKind::Blackhole);
        let (forward, drop) = (rule(100, Action::Table(4096)), rule(101, Action::Table(4097)));
        let want = set([forward.clone().into(), drop.clone().into(), hole.clone().into()]);
        let objects = [Object::from(hole), drop.into(), forward.into()];
        assert_eq!(diff(&BTreeSet::new(), &want), objects.clone().map(Change::Add));
        let mut back = objects.map(Change::Remove);
        back.reverse();
        assert_eq!(diff(&want, &BTreeSet::new()), back);
    }

    #[test]
    fn of_two_wanted_routes_with_one_key_the_greatest_counts() {
        let hole = route("10.0.0.0/8", RouteKind::Blackhole);
        let hop = route("10.0.0.0/8", RouteKind::Unicast(vec![hop("192.0.2.1", Some(2), 1)]));
        let want = set([hop.into(), hole.clone().into()]);
        assert_eq!(diff(&BTreeSet::new(), &want), vec![Change::Add(hole.into())]);
    }

    fn any_hop() -> impl Strategy<Value = NextHop> {
        (1..4u8, 1..3u32, 1..3u16).prop_map(|(host, interface, weight)| NextHop {
            gateway: Some(IpAddr::from([192, 0, 2, host])),
            interface: Some(interface),
            weight,
            onlink: false,
        })
    }

    fn any_kind() -> impl Strategy<Value = RouteKind> {
        let hops = prop::collection::btree_set(any_hop(), 2..4);
        prop_oneof![
            Just(RouteKind::Blackhole),
            any_hop().prop_map(|hop| RouteKind::Unicast(vec![NextHop { weight: 1, ..hop }])),
            hops.prop_map(|hops| RouteKind::Unicast(hops.into_iter().collect())),
        ]
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        (50..54u32, any::<bool>(), 0..3u32).prop_map(|(priority, six, value)| Rule {
            family: if six { Family::Ipv6 } else { Family::Ipv4 },
            priority,
            from: None,
            to: None,
            mark: Some(Mark { value, mask: 0xff }),
            invert: false,
            action: Action::Goto(priority + 100),
        })
    }

    /// At most one route a key, as in a kernel.
    fn any_objects() -> impl Strategy<Value = BTreeSet<Object>> {
        let routes = prop::collection::btree_map((4096..4098u32, 0..4u8, 20..22u32), any_kind(), 0..10);
        (routes, prop::collection::btree_set(any_rule(), 0..6)).prop_map(|(routes, rules)| {
            let routes = routes.into_iter().map(|((table, octet, metric), kind)| {
                let prefix = IpNet::new(IpAddr::from([10, octet, 0, 0]), 16).unwrap();
                Object::from(Route { table, prefix, metric, kind })
            });
            routes.chain(rules.into_iter().map(Object::from)).collect()
        })
    }

    proptest! {
        #[test]
        fn the_changes_turn_what_is_into_what_is_wanted(have in any_objects(), want in any_objects()) {
            let keep: BTreeSet<_> = prefixes(&have).intersection(&prefixes(&want)).copied().collect();
            let now = play(&have, &diff(&have, &want), |now| {
                assert!(keep.is_subset(&prefixes(now)), "a prefix that stays is absent in between");
            });
            prop_assert_eq!(&now, &want);
            prop_assert_eq!(diff(&now, &want), vec![]);
        }
    }
}
