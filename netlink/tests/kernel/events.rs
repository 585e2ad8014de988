//! Hints: what others do is seen, what we do is not.

use std::time::Duration;

use martlet_netlink::{Action, Event, Events, Family, Kernel, Object, ObjectsChanged, Rule};
use tokio::time::timeout;

use crate::sys::{in_namespace, ip};
use crate::{make, objects, owner, route, set, two_links, unicast, via};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

async fn next(events: &mut Events) -> Event {
    timeout(PATIENCE, events.next()).await.expect("a hint")
}

/// Everything that happened so far is out of the way.
async fn settle(events: &mut Events) {
    while timeout(Duration::from_millis(200), events.next()).await.is_ok() {}
}

/// The next hint that is not about links: those come late (carrier, duplicate address detection).
async fn next_but_links(events: &mut Events) -> Event {
    loop {
        match next(events).await {
            Event::LinksChanged => {}
            event => return event,
        }
    }
}

async fn next_objects(events: &mut Events) -> ObjectsChanged {
    match next_but_links(events).await {
        Event::ObjectsChanged(changed) => changed,
        event => panic!("{event:?}"),
    }
}

#[test]
fn our_own_changes_make_no_hint_and_a_deletion_by_another_does() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, mut events) = Kernel::open(owner()).unwrap();
        settle(&mut events).await;
        let four = route("10.0.0.0/8", unicast([via("192.0.2.2", a)]));
        let six = route("2001:db8:f::/48", unicast([via("2001:db8::2", a)]));
        let rule = Rule {
            family: Family::Ipv6,
            priority: 100,
            from: None,
            to: None,
            mark: None,
            invert: false,
            action: Action::Table(4096),
        };
        let want = set([four.clone(), six.clone(), rule.into()]);
        make(&mut kernel, &want).await;
        make(&mut kernel, &set([route("10.0.0.0/8", unicast([via("192.0.2.3", a)]))])).await;
        make(&mut kernel, &set([])).await;
        make(&mut kernel, &want).await;
        // The first hint of all is another's.
        ip("route del 10.0.0.0/8 table 4096");
        assert_eq!(next_objects(&mut events).await, ObjectsChanged { removed: set([four.clone()]), appeared: set([]) });
        ip("-6 route del 2001:db8:f::/48 table 4096");
        assert_eq!(next_objects(&mut events).await, ObjectsChanged { removed: set([six]), appeared: set([]) });
        ip("-6 rule del priority 100");
        let changed = next_objects(&mut events).await;
        assert!(matches!(changed.removed.first(), Some(Object::Rule(_))));
        assert_eq!(objects(&mut kernel).await, set([]));
        ip("route add 10.0.0.0/8 via 192.0.2.2 table 4096 proto 201 metric 20");
        assert_eq!(next_objects(&mut events).await, ObjectsChanged { removed: set([]), appeared: set([four]) });
    });
}

#[test]
fn what_a_snapshot_shows_is_no_hint_any_more() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, mut events) = Kernel::open(owner()).unwrap();
        let (first, second) = (
            route("10.1.0.0/16", unicast([via("192.0.2.2", a)])),
            route("10.2.0.0/16", unicast([via("192.0.2.2", a)])),
        );
        make(&mut kernel, &set([first.clone(), second.clone()])).await;
        ip("route del 10.1.0.0/16 table 4096");
        assert_eq!(objects(&mut kernel).await, set([second.clone()]));
        ip("route del 10.2.0.0/16 table 4096");
        assert_eq!(next_objects(&mut events).await.removed, set([second]));
    });
}

#[test]
fn a_route_of_another_in_our_table_is_a_hint_without_objects() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (_kernel, mut events) = Kernel::open(owner()).unwrap();
        settle(&mut events).await;
        ip("route add 10.0.0.0/8 via 192.0.2.2 table 4096 proto 4");
        assert_eq!(next_objects(&mut events).await, ObjectsChanged::default());
        // One in a table that is not ours is none of our business: only the second one counts.
        ip("route add 10.0.0.0/8 via 192.0.2.2 table 5000 proto 201 metric 20");
        ip("route add 10.1.0.0/16 via 192.0.2.2 table 4096 proto 201 metric 20");
        let ours = set([route("10.1.0.0/16", unicast([via("192.0.2.2", a)]))]);
        assert_eq!(next_objects(&mut events).await, ObjectsChanged { removed: set([]), appeared: ours });
    });
}

#[test]
fn a_route_of_ours_that_another_overwrites_is_not_missed() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, mut events) = Kernel::open(owner()).unwrap();
        let four = route("10.0.0.0/8", unicast([via("192.0.2.2", a)]));
        let six = route("2001:db8:f::/48", unicast([via("2001:db8::2", a)]));
        make(&mut kernel, &set([four.clone(), six.clone()])).await;
        settle(&mut events).await;
        ip("route replace 10.0.0.0/8 via 192.0.2.9 table 4096 proto 4 metric 20");
        assert_eq!(next_but_links(&mut events).await, Event::Overrun);
        assert_eq!(objects(&mut kernel).await, set([six]));
        ip("-6 route replace 2001:db8:f::/48 via 2001:db8::9 table 4096 proto 4 metric 20");
        assert_eq!(next_but_links(&mut events).await, Event::Overrun);
        assert_eq!(objects(&mut kernel).await, set([]));
    });
}

#[test]
fn a_link_that_goes_down_is_a_hint_after_which_its_ipv4_routes_are_gone() {
    in_namespace(async || {
        let (a, b) = two_links();
        let (mut kernel, mut events) = Kernel::open(owner()).unwrap();
        let stays = route("10.2.0.0/16", unicast([via("198.51.100.2", b)]));
        let six = route("2001:db8:f::/48", unicast([via("2001:db8::2", a)]));
        let want = set([route("10.1.0.0/16", unicast([via("192.0.2.2", a)])), stays.clone(), six.clone()]);
        make(&mut kernel, &want).await;
        settle(&mut events).await;
        ip("link set left down");
        assert_eq!(next(&mut events).await, Event::LinksChanged);
        // IPv6 does say it.
        assert_eq!(next_objects(&mut events).await.removed, set([six]));
        assert_eq!(objects(&mut kernel).await, set([stays]));
        ip("link set left up");
        assert_eq!(next(&mut events).await, Event::LinksChanged);
        // Its IPv6 address went with the link.
        ip("addr add 2001:db8::1/64 dev left nodad");
        make(&mut kernel, &want).await;
    });
}

#[test]
fn a_link_that_is_renamed_or_leaves_or_comes_back_is_a_hint() {
    in_namespace(async || {
        let (_, b) = two_links();
        let (mut kernel, mut events) = Kernel::open(owner()).unwrap();
        let here = set([route("10.2.0.0/16", unicast([via("198.51.100.2", b)]))]);
        make(&mut kernel, &here).await;
        settle(&mut events).await;
        let name =
            async |kernel: &mut Kernel| kernel.snapshot().await.unwrap().links.get(&b).map(|link| link.name.clone());
        ip("link property add dev right altname other");
        ip("link set right name ext-vlan");
        assert_eq!(next(&mut events).await, Event::LinksChanged);
        assert_eq!(name(&mut kernel).await.as_deref(), Some("ext-vlan"));
        assert_eq!(objects(&mut kernel).await, here, "a name is not an index");
        settle(&mut events).await;
        ip("link del ext-vlan");
        assert_eq!(next(&mut events).await, Event::LinksChanged);
        assert_eq!(name(&mut kernel).await, None);
        assert_eq!(objects(&mut kernel).await, set([]));
        settle(&mut events).await;
        ip("link add ext-vlan type veth peer name right-far");
        assert_eq!(next(&mut events).await, Event::LinksChanged);
    });
}

#[test]
fn a_lost_address_is_a_hint() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, mut events) = Kernel::open(owner()).unwrap();
        make(&mut kernel, &set([route("10.0.0.0/8", unicast([via("192.0.2.2", a)]))])).await;
        settle(&mut events).await;
        ip("addr del 192.0.2.1/24 dev left");
        assert_eq!(next(&mut events).await, Event::LinksChanged);
        let snapshot = kernel.snapshot().await.unwrap();
        assert!(!snapshot.links[&a].addresses.contains(&"192.0.2.1/24".parse().unwrap()));
    });
}

#[test]
fn a_reader_that_cannot_follow_is_told_and_a_snapshot_shows_all() {
    in_namespace(async || {
        let (a, _) = two_links();
        let (mut kernel, mut events) = Kernel::open_with_buffer(owner(), 4096).unwrap();
        settle(&mut events).await;
        // While nobody reads, another is busy.
        let (mut other, _) = Kernel::open(owner()).unwrap();
        let many = (0..5000u32)
            .map(|i| route(&format!("10.{}.{}.0/24", i / 256, i % 256), unicast([via("192.0.2.2", a)])))
            .collect();
        make(&mut other, &many).await;
        loop {
            if next(&mut events).await == Event::Overrun {
                break;
            }
        }
        assert_eq!(objects(&mut kernel).await, many);
        // And it goes on: changes work with a full socket, later hints come.
        make(&mut kernel, &set([])).await;
        settle(&mut events).await;
        ip("link set right mtu 1400");
        assert_eq!(next(&mut events).await, Event::LinksChanged);
    });
}
