//! The tree, walked as the kernel walks it.

use martlet_netlink::nft::QueueForm;
use proptest::prelude::*;

use super::*;

/// What the kernel's rules make of a mark: the last action, and how many rules it looked at. `None`: nothing of ours.
fn walk(rules: &BTreeSet<Rule>, mark: u32) -> (Option<Action>, usize) {
    let mut sorted: Vec<&Rule> = rules.iter().collect();
    sorted.sort_by_key(|rule| rule.priority);
    let (mut at, mut looked) = (0, 0);
    while let Some(rule) = sorted.get(at) {
        // What lies beyond the main table is reached by goto only.
        if rule.priority > 32_767 && looked == at {
            break;
        }
        looked += 1;
        let selector = rule.mark.unwrap();
        if mark & selector.mask != selector.value {
            at += 1;
            continue;
        }
        match rule.action {
            Action::Goto(target) => {
                assert!(target > rule.priority, "the kernel goes forward only");
                at = sorted.iter().position(|rule| rule.priority == target).expect("a goto that leads somewhere");
                looked += 1_000_000;
            }
            action => return (Some(action), looked % 1_000_000),
        }
    }
    (None, looked % 1_000_000)
}

proptest! {
    #[test]
    fn each_leaf_finds_its_table_and_no_other_mark_of_ours_leaves(
        leaves in prop::collection::btree_set(5000_u32..6900, 0..80), beyond in 0_u32..300,
        foreign in prop::collection::vec(any::<u32>(), 20),
    ) {
        let end = leaves.last().map_or(5000, |last| last + 1) + beyond;
        let rules = tree(Family::Ipv4, &leaves, end);
        for mark in (4096..7000).chain(foreign) {
            let wanted = match mark {
                mark if leaves.contains(&mark) => Some(Action::Table(table(mark))),
                mark if (5000..end).contains(&mark) => Some(Action::Blackhole),
                mark if (5000..end.next_multiple_of(256)).contains(&mark) && end > 5000 => Some(Action::Blackhole),
                _ => None,
            };
            prop_assert_eq!(walk(&rules, mark).0, wanted, "mark {}", mark);
        }
    }

    #[test]
    fn an_endpoint_more_touches_nothing_of_the_others(
        leaves in prop::collection::btree_set(5000_u32..9000, 0..60), more in 5000_u32..9000,
    ) {
        let before = tree(Family::Ipv6, &leaves, 9000);
        let after = tree(Family::Ipv6, &leaves.iter().copied().chain([more]).collect(), 9000);
        let gone: Vec<&Rule> = before.difference(&after).collect();
        prop_assert!(gone.iter().all(|rule| rule.priority == ENTRY && rule.action == Action::Blackhole), "{:?}", gone);
    }

    #[test]
    fn entries_are_exactly_the_marks(end in 5001_u32..50_000) {
        let mut next = 5000;
        for (first, bits) in entries(5000, end) {
            prop_assert_eq!(first, next);
            prop_assert_eq!(first % (1 << bits), 0);
            next += 1 << bits;
        }
        prop_assert_eq!(next, end.next_multiple_of(256).min(END_OF_MARKS));
    }
}

#[test]
fn ten_thousand_endpoints_cost_a_packet_a_few_dozen_rules() {
    let leaves: BTreeSet<u32> = (5000..15_000).collect();
    let rules = tree(Family::Ipv4, &leaves, 15_000);
    let longest = leaves.iter().map(|leaf| walk(&rules, *leaf).1).max().unwrap();
    assert!(longest <= 60, "{longest}");
    assert!(entries(5000, 15_000).len() <= 10, "what an unmarked packet walks");
    let owner = owner();
    assert!(rules.iter().all(|rule| owner.priorities.iter().any(|range| range.contains(&rule.priority))));
}

#[test]
fn every_mark_has_a_table_of_its_own_and_few_are_where_every_packet_looks() {
    let owner = owner();
    let tables: BTreeSet<u32> = (FIRST_MARK..END_OF_MARKS).map(table).collect();
    assert_eq!(tables.len(), usize::try_from(END_OF_MARKS - FIRST_MARK).unwrap(), "no two share one");
    assert!(tables.iter().all(|table| owner.tables.iter().any(|range| range.contains(table))));
    assert_eq!(tables.iter().filter(|table| **table % 256 >= 253).count(), 15, "of the first thousand endpoints");
    assert_eq!([5000, 5117, 6143, 6144, 6396].map(table), [5000, 5117, 6143, 6144, 6396], "of the mark's number");
    assert_eq!([6397, 6398, 6653, 49_919].map(table), [65_536, 65_537, 65_539, 66_054]);
}

#[test]
fn what_goes_directly_has_a_table_of_its_own_and_leads_nowhere_without_it() {
    let hop = |mark, address: &str| Hop { mark, address: address.parse().unwrap(), interface: 3, onlink: false };
    let hops = [hop(5001, "10.9.0.1"), hop(32_767, "10.9.0.2")].into();
    let targets = Targets { hops, end_of_marks: 32_768, direct: Some(3), ..Targets::default() };
    let (objects, owner) = (objects(&targets), owner());
    let rules: BTreeSet<Rule> = objects
        .iter()
        .filter_map(|object| match object {
            Object::Rule(rule) if rule.family == Family::Ipv4 => Some(rule.clone()),
            _ => None,
        })
        .collect();
    assert!(rules.iter().all(|rule| owner.priorities.iter().any(|range| range.contains(&rule.priority))));
    for mark in [5001, 32_767] {
        assert_eq!(walk(&rules, mark).0, Some(Action::Table(table(mark))));
        assert_eq!(walk(&rules, mark | direct::BIT), (Some(Action::Table(DIRECT_TABLE)), 1));
        assert_eq!(walk(&rules, mark | direct::BIT | 1 << 16).0, None, "a mark of another's");
    }
    let without: BTreeSet<Rule> = rules.iter().filter(|rule| rule.priority != DIRECT).cloned().collect();
    assert_eq!(walk(&without, direct::BIT + 5001).0, Some(Action::Blackhole), "as if its table had no route");
    assert!(
        !objects.iter().any(
            |object| matches!(object, Object::Rule(rule) if rule.family == Family::Ipv6 && rule.priority == DIRECT)
        )
    );
    // The table is where no other is in the way, and no endpoint's.
    assert!(owner.tables.iter().any(|range| range.contains(&DIRECT_TABLE)));
    assert!((FIRST_MARK..END_OF_MARKS).all(|mark| table(mark) != DIRECT_TABLE));
    let in_its_list = (FIRST_MARK..direct::BIT).filter(|mark| table(*mark) % 256 == DIRECT_TABLE % 256).count();
    assert_eq!((in_its_list, DIRECT_TABLE % 256), (5, 253));
}

#[test]
fn without_services_there_is_nothing() {
    assert_eq!(objects(&Targets::default()), BTreeSet::new());
}

#[test]
fn an_endpoint_is_a_table_and_a_leaf_in_its_family() {
    let hop = Hop { mark: 5001, address: "fd00::7".parse().unwrap(), interface: 3, onlink: false };
    let targets = Targets { hops: [hop].into(), end_of_marks: 5100, ..Targets::default() };
    let objects = objects(&targets);
    let routes: Vec<&Route> = objects
        .iter()
        .filter_map(|object| match object {
            Object::Route(route) => Some(route),
            Object::Rule(_) => None,
        })
        .collect();
    assert_eq!(routes.len(), 1);
    assert_eq!((routes[0].table, routes[0].prefix, routes[0].metric), (5001, "::/0".parse().unwrap(), 20));
    let leads = |family| {
        objects.iter().any(|object| {
        matches!(object, Object::Rule(rule) if rule.family == family && rule.action == Action::Table(5001))
    })
    };
    assert!(leads(Family::Ipv6) && !leads(Family::Ipv4));
    assert!(
        objects.iter().any(|object| matches!(object, Object::Rule(rule) if rule.family == Family::Ipv4)),
        "IPv4 drops it"
    );
}

#[test]
fn each_vip_is_in_the_set_of_its_family() {
    let vips: BTreeSet<IpNet> = ["20.0.0.1/32", "2000::1/128"].map(|vip| vip.parse().unwrap()).into();
    let queue = Queue { first: 0, total: 2, bypass: false, fanout: false, form: QueueForm::Native };
    let table = nftables(&vips, &BTreeMap::new(), queue, false, Steer::Queue);
    let set = |family, vip: &str| Set::Addresses { family, elements: [vip.parse().unwrap()].into() };
    assert_eq!(table.sets["vips-4"], set(Family::Ipv4, "20.0.0.1"));
    assert_eq!(table.sets["vips-6"], set(Family::Ipv6, "2000::1"));
    assert!(table.chains["prerouting"].rules.iter().all(|rule| rule.0.last() == Some(&Expression::Queue(queue))));
}

#[test]
fn large_maps_are_loaded_one_at_a_time_behind_the_queue() {
    let plain = Table::new("t").set("vips", Set::Counted([1].into()));
    let slots = || Set::Marks(vec![5000; 65_537].into());
    let with = |maps: u32| (0..maps).fold(plain.clone(), |table, map| table.set(&format!("slots-{map}"), slots()));
    let counts = |from: Option<&Table>, to: Table| -> Vec<usize> {
        steps(from, to, plain.clone()).iter().map(|table| table.sets.len()).collect()
    };
    assert_eq!(counts(None, with(2)), [3], "little is one batch");
    assert_eq!(counts(None, with(4)), [1, 2, 3, 4, 5, 5]);
    assert_eq!(counts(Some(&with(3)), with(4)), [5], "only what is missing counts");
    assert_eq!(counts(Some(&with(1)), with(4)), [3, 4, 5, 5]);
    let other = with(4).set("slots-0", Set::Marks(vec![5000; 11].into()));
    assert_eq!(counts(Some(&other), with(4)), [1, 2, 3, 4, 5, 5], "what cannot grow is left by way of the queue");
}
