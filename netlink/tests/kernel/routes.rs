//! Routes: what is ours comes, changes and goes; what is another's stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use martlet_netlink::{Change, Error, Family, Kernel, NextHop, Object, Route, RouteKind, diff};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::sys::{in_namespace, ip};
use crate::{assert_ok, make, objects, owner, route, set, table, two_links, unicast, via, weighing};

#[test]
fn routes_of_both_families_are_added_replaced_and_removed() {
    in_namespace(async || {
        let (a, b) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let first = [
            route("10.0.0.0/8", unicast([via("192.0.2.2", a)])),
            route("2001:db8:f::/48", unicast([via("2001:db8::2", a)])),
        ];
        make(&mut kernel, &set(first)).await;
        assert_eq!(table(Family::Ipv4), ["10.0.0.0/8 via 192.0.2.2 dev left proto 201 metric 20"]);
        assert_eq!(table(Family::Ipv6), ["2001:db8:f::/48 via 2001:db8::2 dev left proto 201 metric 20 pref medium"]);

        let second = [
            route("10.0.0.0/8", unicast([via("198.51.100.2", b)])),
            route("2001:db8:f::/48", unicast([via("2001:db8:1::2", b)])),
        ];
        make(&mut kernel, &set(second)).await;
        assert_eq!(table(Family::Ipv4), ["10.0.0.0/8 via 198.51.100.2 dev right proto 201 metric 20"]);
        assert_eq!(
            table(Family::Ipv6),
            ["2001:db8:f::/48 via 2001:db8:1::2 dev right proto 201 metric 20 pref medium"]
        );

        make(&mut kernel, &set([])).await;
        assert_eq!([table(Family::Ipv4), table(Family::Ipv6)].concat(), Vec::<String>::new());
    });
}

#[test]
fn next_hops_keep_their_weights_and_change_in_number() {
    in_namespace(async || {
        let (a, b) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let hops = [
            ("0.0.0.0/0", via("192.0.2.2", a), via("192.0.2.3", a), via("198.51.100.2", b)),
            ("::/0", via("2001:db8::2", a), via("2001:db8::3", a), via("2001:db8:1::2", b)),
        ];
        let all = |kind: fn(&NextHop, &NextHop, &NextHop) -> RouteKind| {
            hops.iter().map(|(prefix, x, y, z)| route(prefix, kind(x, y, z))).collect()
        };
        make(&mut kernel, &all(|x, _, z| unicast([weighing(1, x), weighing(3, z)]))).await;
        let line = "default proto 201 metric 20 nexthop via 192.0.2.2 dev left weight 1 nexthop via 198.51.100.2 dev right weight 3";
        assert_eq!(table(Family::Ipv4), [line]);
        // Another weight, another hop, one more, one only, none, many again.
        make(&mut kernel, &all(|x, _, z| unicast([weighing(256, x), weighing(3, z)]))).await;
        make(&mut kernel, &all(|x, y, _| unicast([weighing(2, x), weighing(5, y)]))).await;
        make(&mut kernel, &all(|x, y, z| unicast([x.clone(), y.clone(), z.clone()]))).await;
        make(&mut kernel, &all(|_, y, _| unicast([y.clone()]))).await;
        make(&mut kernel, &all(|_, _, _| RouteKind::Blackhole)).await;
        make(&mut kernel, &all(|x, y, z| unicast([x.clone(), y.clone(), z.clone()]))).await;
        make(&mut kernel, &all(|_, _, _| RouteKind::Blackhole)).await;
        make(&mut kernel, &set([])).await;
    });
}

#[test]
fn the_blackhole_of_the_highest_metric_stands_behind_the_route() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let hole = |prefix: &str| {
            Object::Route(Route {
                table: 4096,
                prefix: prefix.parse().unwrap(),
                metric: u32::MAX,
                kind: RouteKind::Blackhole,
            })
        };
        let holes = set([hole("0.0.0.0/0"), hole("::/0")]);
        let mut want = holes.clone();
        want.insert(route("0.0.0.0/0", unicast([via("192.0.2.2", a)])));
        want.insert(route("::/0", unicast([via("2001:db8::2", a)])));
        make(&mut kernel, &want).await;
        ip("rule add to 203.0.113.0/24 lookup 4096 priority 50");
        ip("-6 rule add to 2001:db8:f::/48 lookup 4096 priority 50");
        assert!(ip("route get 203.0.113.1").contains("via 192.0.2.2 dev left"));
        assert!(ip("route get 2001:db8:f::1").contains("via 2001:db8::2 dev left"));
        make(&mut kernel, &holes).await;
        assert_eq!(table(Family::Ipv4), ["blackhole default proto 201 metric 4294967295"]);
        assert_eq!(table(Family::Ipv6), ["blackhole default dev lo proto 201 metric 4294967295 pref medium"]);
    });
}

#[test]
fn an_ipv4_route_may_lead_over_ipv6_next_hops() {
    in_namespace(async || {
        let (a, b) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        make(&mut kernel, &set([route("10.0.0.0/8", unicast([via("fe80::2", a)]))])).await;
        assert_eq!(table(Family::Ipv4), ["10.0.0.0/8 via inet6 fe80::2 dev left proto 201 metric 20"]);
        make(&mut kernel, &set([route("10.0.0.0/8", unicast([via("fe80::2", a), weighing(2, &via("fe80::2", b))]))]))
            .await;
        make(&mut kernel, &set([])).await;
    });
}

#[test]
fn a_route_may_lead_to_the_link_itself_or_to_a_gateway_that_no_address_covers() {
    in_namespace(async || {
        let (a, b) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let direct = NextHop { gateway: None, interface: Some(a), weight: 1, onlink: false };
        let onlink = |gateway| NextHop { onlink: true, ..via(gateway, b) };
        let want = set([
            route("10.0.0.0/8", unicast([direct.clone()])),
            route("2001:db8:e::/48", unicast([direct])),
            route("10.1.0.0/16", unicast([onlink("203.0.113.1")])),
            route("10.2.0.0/16", unicast([onlink("203.0.113.1"), onlink("203.0.113.2")])),
            route("2001:db8:f::/48", unicast([onlink("2001:db8:2::1")])),
        ]);
        make(&mut kernel, &want).await;
        make(&mut kernel, &set([])).await;
    });
}

#[test]
fn the_kernel_finds_the_interface_of_a_next_hop_without_one() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let want = set([route("10.0.0.0/8", unicast([NextHop { interface: None, ..via("192.0.2.2", 0) }]))]);
        assert_ok(&kernel.apply(&diff(&set([]), &want)).await);
        let have = objects(&mut kernel).await;
        assert_eq!(have, set([route("10.0.0.0/8", unicast([via("192.0.2.2", a)]))]));
        assert_eq!(diff(&have, &want), vec![]);
    });
}

#[test]
fn routes_of_others_are_neither_seen_nor_touched() {
    in_namespace(async || {
        let (a, b) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        // Another protocol, another metric, another table.
        ip("route add 10.0.0.0/8 via 192.0.2.9 table 4096 proto 4 metric 30");
        ip("route add 10.0.0.0/8 via 192.0.2.9 table 4098 proto 201 metric 20");
        ip("-6 route add 2001:db8:f::/48 via 2001:db8::9 table 4096 proto 4 metric 30");
        ip("-6 route add 2001:db8:f::/48 via 2001:db8::9 table 4098 proto 201 metric 20");
        let others = || {
            [
                ip("route show table 4096 proto 4"),
                ip("route show table 4098"),
                ip("-6 route show table 4096 proto 4"),
                ip("-6 route show table 4098"),
            ]
        };
        let before = others();
        let prefixes = ["10.0.0.0/8", "2001:db8:f::/48"];
        for hops in [["192.0.2.2", "2001:db8::2"], ["192.0.2.3", "2001:db8::3"]] {
            let want = prefixes.iter().zip(hops).map(|(prefix, hop)| route(prefix, unicast([via(hop, a)]))).collect();
            make(&mut kernel, &want).await;
            assert_eq!(others(), before);
        }
        let many = set([
            route("10.0.0.0/8", unicast([via("192.0.2.2", a), via("198.51.100.2", b)])),
            route("2001:db8:f::/48", unicast([via("2001:db8::2", a), via("2001:db8:1::2", b)])),
        ]);
        make(&mut kernel, &many).await;
        assert_eq!(others(), before);
        make(&mut kernel, &set([])).await;
        assert_eq!(others(), before);
    });
}

#[test]
fn a_route_of_another_with_the_same_metric_is_left_alone_and_told() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        ip("route add 10.0.0.0/8 via 192.0.2.9 table 4096 proto 4 metric 20");
        ip("-6 route add 2001:db8:f::/48 via 2001:db8::9 table 4096 proto 4 metric 20");
        let before = [table(Family::Ipv4), table(Family::Ipv6)];
        let want = set([
            route("10.0.0.0/8", unicast([via("192.0.2.2", a)])),
            route("2001:db8:f::/48", unicast([via("2001:db8::2", a)])),
        ]);
        let have = objects(&mut kernel).await;
        assert_eq!(have, set([]));
        let failed = kernel.apply(&diff(&have, &want)).await;
        assert_eq!(failed.len(), 2);
        for (_, error) in failed {
            assert!(matches!(error, Error::Foreign { .. }), "{error}");
        }
        assert_eq!([table(Family::Ipv4), table(Family::Ipv6)], before);
        // A removal of what we do not have leaves it alone too.
        assert_ok(&kernel.apply(&diff(&want, &set([]))).await);
        assert_eq!([table(Family::Ipv4), table(Family::Ipv6)], before);
    });
}

#[test]
fn a_replacement_never_overwrites_what_another_put_in_the_place_of_ours() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let want = |v4: &str, v6: &str| {
            set([route("10.0.0.0/8", unicast([via(v4, a)])), route("2001:db8:f::/48", unicast([via(v6, a)]))])
        };
        let ours = want("192.0.2.2", "2001:db8::2");
        make(&mut kernel, &ours).await;
        // Behind our back, after our last look.
        ip("route replace 10.0.0.0/8 via 192.0.2.9 table 4096 proto 4 metric 20");
        ip("-6 route del 2001:db8:f::/48 table 4096 metric 20");
        ip("-6 route add 2001:db8:f::/48 via 2001:db8::9 table 4096 proto 4 metric 20");
        let failed = kernel.apply(&diff(&ours, &want("192.0.2.3", "2001:db8::3"))).await;
        let foreign = |error: &Error| matches!(error, Error::Foreign { .. });
        assert!(failed.iter().all(|(_, error)| foreign(error)) && failed.len() == 1, "{failed:?}");
        assert!(table(Family::Ipv4).contains(&"10.0.0.0/8 via 192.0.2.9 dev left proto static metric 20".to_owned()));
        assert_eq!(
            table(Family::Ipv6),
            ["2001:db8:f::/48 via 2001:db8::9 dev left proto static metric 20 pref medium"]
        );
    });
}

#[test]
fn what_is_there_already_or_gone_already_is_done() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let want = set([
            route("10.0.0.0/8", unicast([via("192.0.2.2", a)])),
            route("2001:db8:f::/48", unicast([via("2001:db8::2", a)])),
        ]);
        make(&mut kernel, &want).await;
        // A caller that forgot all: equal ones stay, others of ours give way.
        assert_ok(&kernel.apply(&diff(&set([]), &want)).await);
        assert_eq!(objects(&mut kernel).await, want);
        let six = set([route("2001:db8:f::/48", unicast([via("2001:db8::3", a)]))]);
        assert_ok(&kernel.apply(&diff(&set([]), &six)).await);
        assert!(objects(&mut kernel).await.is_superset(&six));
        make(&mut kernel, &set([])).await;
        assert_ok(&kernel.apply(&diff(&want, &set([]))).await);
    });
}

#[test]
fn what_the_kernel_refuses_is_told_with_its_words_and_stops_nothing() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let good = route("10.2.0.0/16", unicast([via("192.0.2.2", a)]));
        let want = set([route("10.1.0.0/16", unicast([via("203.0.113.1", a)])), good.clone()]);
        let failed = kernel.apply(&diff(&set([]), &want)).await;
        let texts: Vec<_> = failed.iter().map(|(_, error)| error.to_string()).collect();
        let text = "the kernel refuses route 10.1.0.0/16 table 4096 metric 20 via 203.0.113.1 dev";
        assert!(texts.len() == 1 && texts[0].starts_with(text), "{texts:?}");
        assert!(
            texts[0].contains("Network is unreachable") && texts[0].contains("Nexthop has invalid gateway"),
            "{texts:?}"
        );
        assert_eq!(objects(&mut kernel).await, set([good.clone()]));
        // A replacement that is refused leaves the old route.
        let bad = set([route("10.2.0.0/16", unicast([via("203.0.113.1", a)]))]);
        assert_eq!(kernel.apply(&diff(&set([good.clone()]), &bad)).await.len(), 1);
        assert_eq!(objects(&mut kernel).await, set([good]));
    });
}

#[test]
fn nothing_outside_of_the_owners_range_is_even_tried() {
    in_namespace(async || {
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let elsewhere = |table| {
            Object::Route(Route {
                table,
                prefix: "10.0.0.0/8".parse().unwrap(),
                metric: 20,
                kind: RouteKind::Blackhole,
            })
        };
        let zero = Object::Route(Route {
            table: 4096,
            prefix: "::/0".parse().unwrap(),
            metric: 0,
            kind: RouteKind::Blackhole,
        });
        let changes = [Change::Add(elsewhere(254)), Change::Remove(elsewhere(254)), Change::Add(zero)];
        let failed = kernel.apply(&changes).await;
        assert_eq!(failed.len(), 3);
        assert_eq!(
            failed[0].1.to_string(),
            "route blackhole 10.0.0.0/8 table 254 metric 20: outside of what protocol 201 owns"
        );
    });
}

#[test]
fn a_prefix_that_changes_its_next_hops_is_never_without_a_route() {
    in_namespace(async || {
        let (a, b) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        ip("rule add to 203.0.113.0/24 lookup 4096 priority 50");
        ip("-6 rule add to 2001:db8:f::/48 lookup 4096 priority 50");
        let kinds = [
            [unicast([via("192.0.2.2", a)]), unicast([via("2001:db8::2", a)])],
            [unicast([via("198.51.100.2", b)]), unicast([via("2001:db8:1::2", b)])],
            [
                unicast([via("192.0.2.2", a), weighing(3, &via("198.51.100.2", b))]),
                unicast([via("2001:db8::2", a), weighing(3, &via("2001:db8:1::2", b))]),
            ],
            [
                unicast([via("192.0.2.2", a), via("192.0.2.3", a)]),
                unicast([via("2001:db8::2", a), via("2001:db8::3", a)]),
            ],
        ];
        let want = kinds.map(|[four, six]| set([route("203.0.113.0/24", four), route("2001:db8:f::/48", six)]));
        make(&mut kernel, &want[0]).await;
        // A thread that looks the prefixes up all the time, in this namespace.
        let stop = Arc::new(AtomicBool::new(false));
        let looker = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let four = UdpSocket::bind("0.0.0.0:0").unwrap();
                let six = UdpSocket::bind("[::]:0").unwrap();
                let mut looks = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    four.connect("203.0.113.1:9").unwrap();
                    // A lookup that is under way while Linux frees the old IPv6 route finds nothing, whatever took its
                    // place (`fib6_info_hold_safe`); the next one must find the new one.
                    let found = (0..4).any(|_| six.connect("[2001:db8:f::1]:9").is_ok());
                    assert!(found, "no IPv6 route after {looks} looks");
                    looks += 1;
                }
                looks
            }
        });
        for _ in 0..200 {
            for (from, to) in want.iter().zip(want.iter().cycle().skip(1)) {
                assert_ok(&kernel.apply(&diff(from, to)).await);
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(looker.join().unwrap() > 0);
        assert_eq!(objects(&mut kernel).await, want[0]);
    });
}

/// Next hops over the two links for either family: none, one, or several with weights.
fn any_kind((a, b): (u32, u32), six: bool) -> impl Strategy<Value = RouteKind> {
    let gateways =
        if six { ["2001:db8::2", "2001:db8::3", "2001:db8:1::2"] } else { ["192.0.2.2", "192.0.2.3", "198.51.100.2"] };
    prop::collection::vec(1..4u16, 3).prop_flat_map(move |weights| {
        let all = [(gateways[0], a), (gateways[1], a), (gateways[2], b)];
        let hops: Vec<_> =
            all.iter().zip(weights).map(|(&(gateway, link), weight)| weighing(weight, &via(gateway, link))).collect();
        prop::sample::subsequence(hops, 0..=3).prop_map(|mut hops| match hops.as_mut_slice() {
            [] => RouteKind::Blackhole,
            [hop] => {
                hop.weight = 1;
                RouteKind::Unicast(hops)
            }
            _ => {
                hops.sort();
                RouteKind::Unicast(hops)
            }
        })
    })
}

#[test]
fn whatever_was_there_the_kernel_ends_with_what_is_wanted_and_others_keep_theirs() {
    in_namespace(async || {
        let links = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        for prefix in ["10.0.0.0/16", "10.1.0.0/16", "2001:db8:0::/48", "2001:db8:1::/48"] {
            let (family, gateway) = if prefix.contains(':') { ("-6", "2001:db8::9") } else { ("-4", "192.0.2.9") };
            ip(&format!("{family} route add {prefix} via {gateway} table 4096 proto 4 metric 15"));
            ip(&format!("{family} route add {prefix} via {gateway} table 4096 proto 4 metric 25"));
        }
        let others = || [ip("route show table 4096 proto 4"), ip("-6 route show table 4096 proto 4")];
        let before = others();
        // Prefix number, family, metric -> kind.
        let keys = (0..2u8, any::<bool>(), prop_oneof![Just(20u32), Just(21)]);
        let entry = keys.prop_flat_map(move |key| (Just(key), any_kind(links, key.1)));
        let wants = prop::collection::vec(entry, 0..8).prop_map(|entries| {
            let entries: BTreeMap<_, _> = entries.into_iter().collect();
            let object = |((number, six, metric), kind)| {
                let prefix = if six { format!("2001:db8:{number}::/48") } else { format!("10.{number}.0.0/16") };
                Object::Route(Route { table: 4096, prefix: prefix.parse().unwrap(), metric, kind })
            };
            entries.into_iter().map(object).collect()
        });
        let mut runner = TestRunner::deterministic();
        for _ in 0..300 {
            let want: BTreeSet<Object> = wants.new_tree(&mut runner).unwrap().current();
            make(&mut kernel, &want).await;
        }
        assert_eq!(others(), before);
    });
}

#[test]
fn twenty_thousand_routes_come_change_and_go() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let all = |v4: &str, v6: &str| {
            let v4 = (0..10_000u32).map(|i| (format!("10.{}.{}.0/24", i / 256, i % 256), unicast([via(v4, a)])));
            let v6 = (0..10_000u32).map(|i| (format!("2001:db9:{i:x}::/48"), unicast([via(v6, a)])));
            v4.chain(v6).map(|(prefix, kind)| route(&prefix, kind)).collect()
        };
        make(&mut kernel, &all("192.0.2.2", "2001:db8::2")).await;
        make(&mut kernel, &all("192.0.2.3", "2001:db8::3")).await;
        make(&mut kernel, &set([])).await;
    });
}
