//! One VIP of each family, and everything that can be in its way.

use martlet_api::view::{Endpoint, ObjectName, Route, Service};

use super::*;
use crate::engine::Tables;
use crate::targets::{Marks, Settings, targets};

fn view(endpoints: &[(u32, Option<&str>, Option<&str>)]) -> View {
    let route = |backend: &str| Route {
        destinations: ["20.0.0.1/32", "2000::1/128"].map(|vip| vip.parse().unwrap()).into(),
        protocols: [martlet_api::view::TransportProtocol::Tcp].into(),
        backend: backend.into(),
        ..Route::default()
    };
    let endpoints = endpoints.iter().map(|(identifier, ipv4, ipv6)| {
        let endpoint = Endpoint {
            name: "pod".into(),
            ipv4: ipv4.map(|address| address.parse().unwrap()),
            ipv6: ipv6.map(|address| address.parse().unwrap()),
            ready: true,
            serving: true,
            terminating: false,
        };
        (*identifier, endpoint)
    });
    View {
        gateway: ObjectName { namespace: "default".into(), name: "sllb-a".into() },
        exists: true,
        routers: BTreeMap::new(),
        routes: [("one".into(), route("a")), ("two".into(), route("nosuch"))].into(),
        services: [("a".into(), Service { endpoints: endpoints.collect(), max_endpoints: 10 })].into(),
        vips: ["20.0.0.1/32", "2000::1/128"].map(|vip| vip.parse().unwrap()).into(),
        subnets: BTreeSet::new(),
        conditions: BTreeSet::new(),
    }
}

fn facts(carrier: bool) -> Facts {
    let addresses = ["10.0.0.9/24", "fd00::9/64"].map(|address| address.parse().unwrap()).into();
    let link = Link { index: 3, name: "int".into(), up: true, carrier, mtu: 1500, addresses };
    Facts { links: [(3, link)].into(), ..Facts::default() }
}

fn look(view: &View, facts: &Facts) -> (Targets, Readiness) {
    let made = targets(view, &facts.links, &mut Marks::default(), &Settings::default(), &Tables::default());
    let readiness = readiness(view, &made, facts, false);
    (made, readiness)
}

fn of(readiness: &Readiness, vip: &str) -> (bool, String) {
    let vip = &readiness.vips[&vip.parse().unwrap()];
    (vip.ready, vip.reason.clone())
}

#[test]
fn a_vip_is_ready_when_one_route_has_an_endpoint_of_its_family() {
    let (_, told) = look(&view(&[(1, Some("10.0.0.1"), None)]), &facts(true));
    assert_eq!(of(&told, "20.0.0.1/32"), (true, String::new()));
    let (ready, reason) = of(&told, "2000::1/128");
    assert!(!ready);
    assert_eq!(
        reason,
        "L34Route one: Service a has no ready endpoint with an IPv6 address; \
         L34Route two: Service nosuch does not exist or is not of this Gateway"
    );
    assert_eq!((told.gateway.as_str(), told.draining), ("sllb-a", false));
}

#[test]
fn without_carrier_nothing_is_ready() {
    let (_, told) = look(&view(&[(1, Some("10.0.0.1"), None)]), &facts(false));
    let (ready, reason) = of(&told, "20.0.0.1/32");
    assert!(!ready && reason.contains("interface int to endpoint 10.0.0.1 has no carrier"), "{reason}");
}

#[test]
fn what_the_kernel_refused_does_not_serve() {
    // The table of the second is not of its mark's number.
    for identifier in [1, 1397] {
        let mut view = view(&[(identifier, Some("10.0.0.1"), Some("fd00::1"))]);
        view.services.values_mut().for_each(|service| service.max_endpoints = 2000);
        let (made, _) = look(&view, &facts(true));
        let refused = crate::rules::objects(&made)
            .into_iter()
            .filter(|object| matches!(object, Object::Route(route) if route.prefix.addr().is_ipv4()))
            .collect();
        let told = readiness(&view, &made, &Facts { refused, ..facts(true) }, false);
        assert!(of(&told, "20.0.0.1/32").1.contains("the kernel refused the way to endpoint 10.0.0.1"));
        assert!(of(&told, "2000::1/128").0);
    }
}

#[test]
fn what_blocks_a_family_blocks_its_vips() {
    let facts = Facts { blocked: [(Family::Ipv6, "net.ipv6 is off".to_owned())].into(), ..facts(true) };
    let (_, told) = look(&view(&[(1, Some("10.0.0.1"), Some("fd00::1"))]), &facts);
    assert_eq!((of(&told, "20.0.0.1/32").0, of(&told, "2000::1/128")), (true, (false, "net.ipv6 is off".into())));
}

#[test]
fn bad_news_travels_before_the_work_and_good_news_after_it() {
    let (_, none) = look(&view(&[]), &facts(true));
    let (_, four) = look(&view(&[(1, Some("10.0.0.1"), None)]), &facts(true));
    let (_, six) = look(&view(&[(1, None, Some("fd00::1"))]), &facts(true));
    let ready = |readiness: &Readiness| readiness.vips.values().map(|vip| vip.ready).collect::<Vec<_>>();
    assert_eq!(ready(&meanwhile(&none, &four)), [false, false]);
    assert_eq!(ready(&meanwhile(&four, &six)), [false, false]);
    assert_eq!(ready(&meanwhile(&four, &none)), [false, false]);
    assert_eq!(meanwhile(&four, &four), four);
}

#[test]
fn a_vip_with_a_route_to_nobody_is_partially_served_and_one_that_is_not_ready_is_not() {
    let view = view(&[(1, Some("10.0.0.1"), None)]);
    let facts = facts(true);
    let (targets, _) = look(&view, &facts);
    let told: Vec<Condition> = partially_served(&view, &targets, &facts).into_iter().collect();
    assert_eq!(told.len(), 1, "nobody serves IPv6 at all: {told:?}");
    assert_eq!((&*told[0].condition, told[0].status, &*told[0].reason), ("PartiallyServed", true, "NoEndpoint"));
    assert_eq!(
        &*told[0].message,
        "VIP 20.0.0.1: L34Route two: Service nosuch does not exist or is not of this Gateway"
    );
    let mut whole = view;
    whole.routes.remove("two");
    let (targets, _) = look(&whole, &facts);
    assert!(partially_served(&whole, &targets, &facts).is_empty());
}
