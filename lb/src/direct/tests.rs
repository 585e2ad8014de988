//! Neighbours that come, move, fall silent and go, in any order: nobody is reached directly who should not be.

use proptest::prelude::*;

use super::*;

const LINK: u32 = 3;
const OTHER_LINK: u32 = 4;
const NAME: &str = "int";

fn links() -> BTreeMap<u32, Link> {
    let link = |index, name: &str| {
        let link = Link { index, name: name.into(), up: true, carrier: true, mtu: 1500, addresses: BTreeSet::new() };
        (index, link)
    };
    [link(LINK, NAME), link(OTHER_LINK, "ext")].into()
}

fn hop(mark: u32, address: &str) -> Hop {
    Hop { mark, address: address.parse().unwrap(), interface: LINK, onlink: false }
}

fn targets(hops: &[Hop]) -> Targets {
    let hops: BTreeSet<Hop> = hops.iter().copied().collect();
    Targets { direct: link(&hops, 6000, Some(1)), hops, end_of_marks: 6000, ..Targets::default() }
}

fn entry(address: &str, last: u8, reachability: Reachability) -> Neighbor {
    let link_layer = Some(vec![2, 0, 0, 0, 0, last]);
    Neighbor { interface: LINK, address: address.parse().unwrap(), link_layer, reachability }
}

/// As [`Direct::settle`], with a kernel that does as it is told and knows `neighbors`.
fn settle(direct: &mut Direct, neighbors: &[Neighbor]) {
    direct.settled = true;
    let Some((link, name)) = direct.plan.link.clone() else { return };
    if direct.neighbors.is_none() {
        direct.learn(link, neighbors.to_vec());
    }
    for address in gateways() {
        direct.learn_gateway(link, address);
    }
    direct.write(&name, |_, _| Ok(()));
    direct.open(link);
}

/// The objects of these families, and others.
fn routes(families: &[Family]) -> BTreeSet<Object> {
    let others = rules::objects(&Targets { direct: None, ..targets(&[hop(5001, "10.9.0.1"), hop(5001, "fd09::1")]) });
    others.into_iter().chain(families.iter().flat_map(|family| rules::direct(LINK, *family))).collect()
}

fn started(hops: &[Hop], neighbors: &[Neighbor]) -> Direct {
    let mut direct = Direct::default();
    assert!(!direct.prepare(&targets(hops), &links()), "nobody has to let go of what was not there");
    direct.look_at(&routes(&Family::ALL));
    settle(&mut direct, neighbors);
    direct
}

fn is_direct(direct: &Direct, mark: u32, family: Family) -> bool {
    direct.bits.of(mark, family, OTHER_LINK) == BIT
}

#[test]
fn the_link_with_most_endpoints_is_taken_when_they_are_many_enough() {
    let elsewhere = |mark| Hop { interface: OTHER_LINK, ..hop(mark, "10.8.0.1") };
    let hops: BTreeSet<Hop> = [hop(5001, "10.9.0.1"), hop(5001, "fd09::1"), elsewhere(5002)].into();
    assert_eq!(link(&hops, 5100, Some(2)), Some(LINK));
    assert_eq!(link(&hops, 5100, Some(3)), None, "few");
    assert_eq!(link(&hops, 5100, None), None, "never");
    assert_eq!(
        [BIT, BIT + 1].map(|end| link(&hops, end, Some(1))),
        [Some(LINK), None],
        "marks need the bit themselves"
    );
    assert_eq!(link(&BTreeSet::new(), 5000, Some(1)), None);
}

#[test]
fn who_is_sure_is_reached_directly_but_not_from_its_own_link() {
    let hops = [hop(5001, "10.9.0.1"), hop(5002, "10.9.0.2"), hop(5003, "10.9.0.3"), hop(5001, "fd09::1")];
    let neighbors = [
        entry("10.9.0.1", 1, Reachability::Reachable),
        entry("10.9.0.2", 2, Reachability::Stale),
        entry("fd09::1", 1, Reachability::Permanent),
        Neighbor { interface: OTHER_LINK, ..entry("10.9.0.3", 3, Reachability::Reachable) },
    ];
    let direct = started(&hops, &neighbors);
    assert!(is_direct(&direct, 5001, Family::Ipv4) && is_direct(&direct, 5001, Family::Ipv6));
    assert!(!is_direct(&direct, 5002, Family::Ipv4) && !is_direct(&direct, 5003, Family::Ipv4));
    assert!(!is_direct(&direct, 5002, Family::Ipv6), "it has no such address");
    assert_eq!(direct.bits.of(5001, Family::Ipv4, LINK), 0, "its sender would be told of a better gateway");
    assert_eq!([4999, BIT, u32::MAX].map(|mark| direct.bits.of(mark, Family::Ipv4, OTHER_LINK)), [0; 3]);
    assert_eq!(direct.reached(), Some((2, NAME)));
}

#[test]
fn a_mark_that_is_another_endpoints_now_is_not_reached_at_the_old_place() {
    let neighbors = [entry("10.9.0.1", 1, Reachability::Reachable), entry("10.9.0.2", 2, Reachability::Reachable)];
    let mut direct = started(&[hop(5001, "10.9.0.1")], &neighbors);
    assert!(is_direct(&direct, 5001, Family::Ipv4));
    assert!(!direct.prepare(&targets(&[hop(5001, "10.9.0.2")]), &links()), "only that mark is concerned");
    assert!(!is_direct(&direct, 5001, Family::Ipv4));
    settle(&mut direct, &neighbors);
    assert!(is_direct(&direct, 5001, Family::Ipv4));
    assert_eq!(direct.map[&5001][5], 2);
}

#[test]
fn another_link_waits_for_the_threads() {
    let neighbors = [entry("10.9.0.1", 1, Reachability::Reachable)];
    let mut direct = started(&[hop(5001, "10.9.0.1")], &neighbors);
    let elsewhere = Hop { interface: OTHER_LINK, ..hop(5001, "10.9.0.1") };
    assert!(direct.prepare(&targets(&[elsewhere]), &links()));
    assert_eq!(direct.reached(), Some((0, "ext")));
    assert!(direct.prepare(&targets(&[]), &links()));
    assert_eq!((direct.reached(), direct.settled), (None, false), "what is there is to be removed");
}

#[test]
fn a_kernel_that_cannot_is_not_asked_again_until_something_changes() {
    let mut direct = Direct::default();
    direct.prepare(&targets(&[hop(5001, "10.9.0.1")]), &links());
    direct.look_at(&routes(&Family::ALL));
    direct.learn(LINK, vec![entry("10.9.0.1", 1, Reachability::Reachable)]);
    direct.learn_gateway(LINK, gateway(Family::Ipv4));
    direct.settled = true;
    direct.write(NAME, |_, _| Err(Error::Unsupported("no egress hook".into())));
    direct.open(LINK);
    assert!(!is_direct(&direct, 5001, Family::Ipv4));
    assert!(direct.refused.is_some() && direct.settled);
    settle(&mut direct, &[]);
    assert!(!is_direct(&direct, 5001, Family::Ipv4) && direct.settled, "not so soon");
    direct.forget();
    settle(&mut direct, &[]);
    assert!(is_direct(&direct, 5001, Family::Ipv4) && direct.refused.is_none(), "now it can");
}

#[test]
fn without_its_route_and_its_rules_a_family_is_reached_by_the_tables() {
    let neighbors = [entry("10.9.0.1", 1, Reachability::Reachable), entry("fd09::1", 1, Reachability::Reachable)];
    for missing in rules::direct(LINK, Family::Ipv4) {
        let mut direct = started(&[hop(5001, "10.9.0.1"), hop(5001, "fd09::1")], &neighbors);
        let have = &routes(&Family::ALL) - &[missing.clone()].into();
        direct.look_at(&have);
        let now = |direct: &Direct| Family::ALL.map(|family| is_direct(direct, 5001, family));
        assert_eq!((now(&direct), direct.settled), ([false; 2], false), "{missing:?}");
        // A beat, while the objects are not put back because somebody keeps deleting them.
        settle(&mut direct, &neighbors);
        assert_eq!(now(&direct), [false, true], "{missing:?}");
        direct.look_at(&routes(&Family::ALL));
        assert!(!direct.settled);
        settle(&mut direct, &neighbors);
        assert_eq!(now(&direct), [true; 2]);
    }
}

#[test]
fn who_is_being_asked_stays_where_it_was_and_who_does_not_answer_does_not() {
    let mut direct = started(&[hop(5001, "10.9.0.1")], &[entry("10.9.0.1", 1, Reachability::Reachable)]);
    let mut says = |last, reachability| {
        direct.neighbors_changed(vec![NeighborChange::Is(entry("10.9.0.1", last, reachability))]);
        is_direct(&direct, 5001, Family::Ipv4)
    };
    assert!(says(1, Reachability::Probe), "the kernel asks and uses it");
    assert!(!says(1, Reachability::Failed));
    assert!(!says(1, Reachability::Probe), "its next packet takes its table until it has answered");
    assert!(says(1, Reachability::Reachable));
    assert!(!says(2, Reachability::Probe), "another place");
}

#[test]
fn a_pod_at_two_places_is_reached_by_its_tables_and_keeps_nobody_busy() {
    let neighbors = [entry("10.9.0.1", 1, Reachability::Reachable), entry("fd09::1", 2, Reachability::Reachable)];
    let direct = started(&[hop(5001, "10.9.0.1"), hop(5001, "fd09::1")], &neighbors);
    assert_eq!(Family::ALL.map(|family| is_direct(&direct, 5001, family)), [false; 2]);
    assert!(direct.settled);
}

#[derive(Clone, Debug)]
enum Step {
    /// The kernel says so of a neighbour.
    Says(Neighbor),
    Gone(IpAddr),
    Overrun,
    /// Endpoints: of each its mark, and the number in its address.
    Plan(Vec<(u32, u8)>),
    Settle,
    Flushed,
    /// The families that have their objects.
    Routed(Vec<Family>),
}

fn address(number: u8) -> IpAddr {
    if number < 3 {
        IpAddr::from([10, 9, 0, number])
    } else {
        IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number.into()))
    }
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![5 => (0..6_u8).prop_map(address), 1 => prop::sample::select(gateways().to_vec())]
}

fn any_step() -> impl Strategy<Value = Step> {
    let states = vec![
        Reachability::Incomplete,
        Reachability::Reachable,
        Reachability::Permanent,
        Reachability::Stale,
        Reachability::Probe,
        Reachability::Failed,
    ];
    let place = prop_oneof![
        8 => (0..3_u8).prop_map(|last| Some(vec![2, 0, 0, 0, 0, last])),
        1 => Just(Some(vec![1, 2, 3])),
        1 => Just(None)
    ];
    let interface = prop_oneof![9 => Just(LINK), 1 => Just(OTHER_LINK)];
    let says = (any_address(), place, prop::sample::select(states), interface).prop_map(
        |(address, link_layer, reachability, interface)| {
            Step::Says(Neighbor { interface, address, link_layer, reachability })
        },
    );
    prop_oneof![
        10 => says,
        2 => any_address().prop_map(Step::Gone),
        1 => Just(Step::Overrun),
        2 => prop::collection::vec((5000..5004_u32, 0..6_u8), 0..6).prop_map(Step::Plan),
        6 => Just(Step::Settle),
        1 => Just(Step::Flushed),
        1 => prop::sample::subsequence(Family::ALL.to_vec(), 0..=2).prop_map(Step::Routed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn nobody_is_reached_directly_unless_the_kernel_is_sure_of_the_very_address_that_nftables_holds(
        steps in prop::collection::vec(any_step(), 1..60)
    ) {
        let mut direct = Direct::default();
        // What the kernel knows, by link and address.
        let mut kernel: BTreeMap<(u32, IpAddr), Neighbor> = BTreeMap::new();
        let mut hops: Vec<Hop> = Vec::new();
        let mut routed: Vec<Family> = Vec::new();
        for step in steps {
            match step {
                Step::Says(entry) => {
                    kernel.insert((entry.interface, entry.address), entry.clone());
                    direct.neighbors_changed(vec![NeighborChange::Is(entry)]);
                }
                Step::Gone(address) => {
                    kernel.remove(&(LINK, address));
                    direct.neighbors_changed(vec![NeighborChange::Gone(LINK, address)]);
                }
                Step::Overrun => direct.neighbors_changed(vec![NeighborChange::Overrun]),
                Step::Plan(endpoints) => {
                    let made = endpoints.into_iter().map(|(mark, number)| Hop {
                        mark,
                        address: address(number),
                        interface: LINK,
                        onlink: false,
                    });
                    hops = made.collect();
                    direct.prepare(&targets(&hops), &links());
                }
                Step::Settle => {
                    for address in gateways() {
                        let place = (LINK, address);
                        kernel.insert(place, Neighbor {
                            interface: LINK,
                            address,
                            link_layer: Some(NOBODY.to_vec()),
                            reachability: Reachability::Permanent,
                        });
                    }
                    settle(&mut direct, &kernel.values().cloned().collect::<Vec<_>>());
                }
                Step::Flushed => direct.forget(),
                Step::Routed(families) => {
                    direct.look_at(&routes(&families));
                    routed = families;
                }
            }
            let has = |address: IpAddr| {
                let used = [Reachability::Reachable, Reachability::Permanent, Reachability::Probe];
                let entry = kernel.get(&(LINK, address)).filter(|entry| used.contains(&entry.reachability));
                entry.and_then(|entry| entry.link_layer.clone())
            };
            for mark in 5000..5004 {
                for family in Family::ALL.into_iter().filter(|family| is_direct(&direct, mark, *family)) {
                    let its = |hop: &&Hop| hop.mark == mark && family_of(hop.address) == family;
                    let held = direct.map.get(&mark).expect("nftables knows it");
                    let is_there = hops.iter().filter(its).any(|hop| has(hop.address).as_deref() == Some(&held[..]));
                    prop_assert!(is_there, "mark {} is at {:?}", mark, held);
                    prop_assert_eq!(has(gateway(family)), Some(NOBODY.to_vec()));
                    prop_assert!(routed.contains(&family));
                }
            }
        }
        // And in the end everybody is who could be: of marks with one address.
        direct.look_at(&routes(&Family::ALL));
        settle(&mut direct, &kernel.values().cloned().collect::<Vec<_>>());
        for hop in &hops {
            let is_alone = hops.iter().filter(|other| other.mark == hop.mark).all(|other| other == hop);
            let is_sure = kernel.get(&(LINK, hop.address)).is_some_and(|entry| {
                matches!(entry.reachability, Reachability::Reachable | Reachability::Permanent)
                    && entry.link_layer.as_ref().is_some_and(|place| place.len() == 6)
            });
            let now = is_direct(&direct, hop.mark, family_of(hop.address));
            prop_assert!(!is_alone || !is_sure || now, "{:?} is not reached directly", hop);
        }
    }
}
