//! The real driver over a simulated network: two routers, one of them in the role of the gateway.
//!
//! The gateway announces a default route; the router announces its VIPs. Everything but the network, the kernel, the
//! objects and the load balancer is the product's own code.

mod stage;

use std::time::Duration;

use ipnet::IpNet;
use martlet_netlink::{Object, Route, RouteKind};

use stage::{Role, Sim, Story, ready};

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn has_route(objects: &std::collections::BTreeSet<Object>, prefix: &str) -> bool {
    let prefix = net(prefix);
    objects.iter().any(|object| match object {
        Object::Route(Route { prefix: of, metric: 20, table: 4096, kind: RouteKind::Unicast(hops) }) => {
            *of == prefix && hops.len() == 1
        }
        _ => false,
    })
}

/// Ready -> announced -> not ready -> withdrawn -> ready -> announced -> SIGTERM -> withdrawn, then closed.
fn perform(seed: u64) -> Story {
    let mut sim = Sim::new(seed);
    let gateway = sim.router("gateway", Role { vips: &["0.0.0.0/0"], peers: &["router"], gated: false });
    let router = sim.router("router", Role { vips: &["20.0.0.1/32"], peers: &["gateway"], gated: true });
    let (outside, own) = (gateway.kernel.clone(), router.kernel.clone());
    sim.script(async move {
        own.until(|objects| has_route(objects, "0.0.0.0/0")).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!has_route(&outside.objects(), "20.0.0.1/32"), "not ready: not announced");
        router.lb.send_replace(ready(&["20.0.0.1/32"]));
        outside.until(|objects| has_route(objects, "20.0.0.1/32")).await;
        let peer = router.status().await.peers["gateway"].clone();
        assert_eq!((peer.hold_time_s, peer.keepalive_s, peer.received, peer.announced), (3, 1, 1, 1));
        assert_eq!((peer.negotiated, peer.end_of_rib), (peer.families.clone(), peer.families));
        router.lb.send_replace(ready(&[]));
        outside.until(|objects| !has_route(objects, "20.0.0.1/32")).await;
        router.lb.send_replace(ready(&["20.0.0.1/32"]));
        outside.until(|objects| has_route(objects, "20.0.0.1/32")).await;
        own.delete(|object| matches!(object, Object::Rule(_)));
        own.until(|objects| objects.iter().filter(|object| matches!(object, Object::Rule(_))).count() == 3).await;
        router.stop().await;
        outside.until(|objects| !has_route(objects, "20.0.0.1/32")).await;
        assert!(has_route(&own.objects(), "0.0.0.0/0"), "withdrawn, and still forwarding");
        router.ended().await;
        let left = own.objects();
        assert!(!has_route(&left, "0.0.0.0/0"), "learned routes go");
        assert_eq!(left.len(), 3 + 4, "rules and blackholes stay");
    });
    sim.run()
}

#[test]
fn a_vip_is_announced_exactly_while_it_is_ready_and_withdrawn_before_the_session_ends() {
    let story = perform(1);
    let place =
        |what: &str| story.iter().position(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {story:#?}"));
    assert!(place("router 20.0.0.1/32 not announced: the router is stopping") < place("router  stopping: sessions"));
}

/// The path breaks for longer than the hold time, and comes back.
fn interrupt(seed: u64) -> Story {
    let mut sim = Sim::new(seed);
    let gateway = sim.router("gateway", Role { vips: &["0.0.0.0/0"], peers: &["router"], gated: false });
    let router = sim.router("router", Role { vips: &["20.0.0.1/32"], peers: &["gateway"], gated: true });
    let (outside, own) = (gateway.kernel.clone(), router.kernel.clone());
    sim.script(async move {
        router.lb.send_replace(ready(&["20.0.0.1/32"]));
        for _ in 0..3 {
            own.until(|objects| has_route(objects, "0.0.0.0/0")).await;
            outside.until(|objects| has_route(objects, "20.0.0.1/32")).await;
            turmoil::partition("gateway", "router");
            own.until(|objects| !has_route(objects, "0.0.0.0/0")).await;
            outside.until(|objects| !has_route(objects, "20.0.0.1/32")).await;
            turmoil::repair("gateway", "router");
        }
        own.until(|objects| has_route(objects, "0.0.0.0/0")).await;
        outside.until(|objects| has_route(objects, "20.0.0.1/32")).await;
    });
    sim.run()
}

#[test]
fn a_broken_path_takes_its_routes_along_and_brings_them_back() {
    let story = interrupt(3);
    let lost = story.iter().filter(|line| line.contains("router  external connectivity: IPv4 down")).count();
    // More than three where both ends call at once and each hangs up on the other's call (RFC 4271 section 6.8).
    assert!(lost >= 3, "{story:#?}");
}

fn has_default(objects: &std::collections::BTreeSet<Object>) -> bool {
    has_route(objects, "0.0.0.0/0")
}

/// Two gateways; each fails in turn.
fn fail_over(seed: u64) -> Story {
    let mut sim = Sim::new(seed);
    let peers = &["router"];
    let one = sim.router("gateway-1", Role { vips: &["0.0.0.0/0"], peers, gated: false });
    let two = sim.router("gateway-2", Role { vips: &["0.0.0.0/0"], peers, gated: false });
    let role = Role { vips: &["20.0.0.1/32"], peers: &["gateway-1", "gateway-2"], gated: true };
    let router = sim.router("router", role);
    let own = router.kernel.clone();
    sim.script(async move {
        router.lb.send_replace(ready(&["20.0.0.1/32"]));
        for (failing, other) in [("gateway-1", &two), ("gateway-2", &one)] {
            one.kernel.until(|objects| has_route(objects, "20.0.0.1/32")).await;
            two.kernel.until(|objects| has_route(objects, "20.0.0.1/32")).await;
            own.until(has_default).await;
            own.always(Some(has_default));
            turmoil::partition(failing, "router");
            // Longer than the hold time: the session ends.
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(has_default(&own.objects()));
            assert!(has_route(&other.kernel.objects(), "20.0.0.1/32"), "the other gateway notices nothing");
            turmoil::repair(failing, "router");
        }
        own.always(None);
    });
    sim.run()
}

#[test]
fn the_next_gateway_takes_over_without_a_moment_without_a_route() {
    let story = fail_over(5);
    assert!(!story.iter().any(|line| line.contains("router  external connectivity: IPv4 down")), "{story:#?}");
}

#[test]
fn the_same_seed_tells_the_same_story() {
    assert_eq!(perform(7), perform(7));
    assert_eq!(interrupt(7), interrupt(7));
}
