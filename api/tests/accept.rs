//! What is accepted of many objects together, and what each refusal says.

use std::collections::BTreeSet;
use std::sync::Arc;

use martlet_api::crd::{GatewayRouterSpec, L34RouteSpec};
use martlet_api::objects::Kind;
use martlet_api::view::{Condition, ObjectName, Protocol, View};
use martlet_api::{Objects, accept};
use proptest::prelude::*;

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: sllb-a}
spec:
  gatewayClassName: meridio-experiment/stateless-load-balancer
  infrastructure: {annotations: {meridio-experiment/network-subnets: '[\"10.0.0.0/24\", \"fd00::/64\"]'}}
";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: service-a, labels: {service.kubernetes.io/service-proxy-name: sllb-a}}
spec: {clusterIP: None}
";

fn route(name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: meridio.experiment.gateway.api.poc/v1alpha1
kind: L34Route
metadata: {{name: {name}}}
spec: {{parentRefs: [{{name: sllb-a}}], backendRefs: [{{name: service-a}}], {spec}}}
"
    )
}

fn router(name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: meridio.experiment.gateway.api.poc/v1alpha1
kind: GatewayRouter
metadata: {{name: {name}, labels: {{service.kubernetes.io/service-proxy-name: sllb-a}}}}
spec: {{{spec}}}
"
    )
}

fn slice(name: &str, family: &str, labels: &str, endpoints: &str) -> String {
    format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, labels: {{kubernetes.io/service-name: service-a{labels}}}}}
addressType: {family}
endpoints: [{endpoints}]
"
    )
}

fn endpoint(pod: &str, address: &str, zone: &str) -> String {
    format!(
        "{{addresses: ['{address}'], targetRef: {{kind: Pod, name: {pod}}}, zone: '{zone}', conditions: {{ready: true}}}}"
    )
}

fn objects(documents: &[&str]) -> Objects {
    let objects = Objects::from_yaml(&documents.join("\n---\n"), "default");
    assert_eq!(objects.conditions, BTreeSet::new(), "the test's own YAML is good");
    objects
}

fn name() -> ObjectName {
    ObjectName::new("default", "sllb-a")
}

fn seen(documents: &[&str]) -> View {
    accept::view(&objects(documents), &name())
}

fn condition<'a>(view: &'a View, kind: Kind, name: &str, of: &str) -> &'a Condition {
    let mut found =
        view.conditions.iter().filter(|c| &*c.kind == kind.name() && &*c.object.name == name && &*c.condition == of);
    let first = found.next().unwrap_or_else(|| panic!("no {of} of {kind} {name} in {:#?}", view.conditions));
    assert_eq!(found.next(), None, "one {of} of {kind} {name}");
    first
}

#[track_caller]
fn says(condition: &Condition, status: bool, reason: &str, words: &[&str]) {
    assert_eq!((condition.status, &*condition.reason), (status, reason), "{condition:?}");
    for word in words {
        assert!(condition.message.contains(word), "{} contains {word}", condition.message);
    }
}

const VIP: &str = "destinationCIDRs: [20.0.0.1/32], protocols: [TCP]";

#[test]
fn a_gateway_that_is_not_there_has_nothing() {
    let view = seen(&[SERVICE, &route("a", VIP), &router("r", "address: 10.0.0.1")]);
    assert!(!view.exists && view.vips.is_empty() && view.routes.is_empty() && view.routers.is_empty());
    says(condition(&view, Kind::Gateway, "sllb-a", "Accepted"), false, "NotFound", &["create it"]);
    says(
        condition(&view, Kind::L34Route, "a", "Accepted"),
        false,
        "NoMatchingParent",
        &["spec.parentRefs[0].name", "`sllb-a`"],
    );
    says(condition(&view, Kind::GatewayRouter, "r", "Accepted"), false, "NoMatchingParent", &["service-proxy-name"]);
}

#[test]
fn who_may_not_read_classes_takes_its_gateway_as_it_is() {
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: sllb-a}\n\
                   spec: {gatewayClassName: by-class}";
    let mut objects = objects(&[gateway]);
    assert!(!accept::view(&objects, &name()).exists, "classes can be read, and there is none of that name");
    objects.absent.insert(Kind::GatewayClass);
    assert!(accept::view(&objects, &name()).exists, "the controller knows the class: it made this pod");
}

#[test]
fn a_gateway_is_ours_by_name_or_by_a_class_of_our_controller() {
    let class = |name: &str, controller: &str| {
        format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {{name: {name}}}, spec: {{controllerName: {controller}}}}}"
        )
    };
    let of = |class_name: &str| GATEWAY.replace("meridio-experiment/stateless-load-balancer", class_name);
    let ours = "meridio-experiment/stateless-load-balancer";
    assert!(seen(&[GATEWAY]).exists);
    assert!(seen(&[&of("fast"), &class("fast", ours)]).exists);
    let other = seen(&[&of("fast"), &class("fast", "example.com/slow")]);
    assert!(!other.exists);
    says(
        condition(&other, Kind::Gateway, "sllb-a", "Accepted"),
        false,
        "InvalidClass",
        &["spec.gatewayClassName: `fast`", ours],
    );
    assert!(!seen(&[&of("fast")]).exists, "a class that is not there");
    assert!(!seen(&[GATEWAY, &class(ours, "example.com/slow")]).exists, "our name, but someone else's class");
}

#[test]
fn a_gateway_that_is_being_deleted_has_nothing_any_more() {
    let leaving = GATEWAY.replace("{name: sllb-a}", "{name: sllb-a, deletionTimestamp: '2026-01-01T00:00:00Z'}");
    let view = seen(&[&leaving, SERVICE, &route("a", VIP)]);
    assert!(!view.exists && view.vips.is_empty());
    says(condition(&view, Kind::Gateway, "sllb-a", "Accepted"), false, "Deleting", &["withdrawn"]);
}

#[test]
fn objects_of_other_gateways_and_namespaces_do_not_count() {
    let other = router("other", "address: 10.0.0.1").replace("proxy-name: sllb-a", "proxy-name: sllb-b");
    let far = router("far", "address: 10.0.0.2").replace("{name: far,", "{name: far, namespace: tenant,");
    let view = seen(&[GATEWAY, &other, &far, &router("near", "address: 10.0.0.3")]);
    assert_eq!(view.routers.keys().map(|name| &**name).collect::<Vec<_>>(), ["near"]);
}

#[test]
fn an_endpoint_of_both_families_is_one_pod() {
    let v4 = slice("v4", "IPv4", "", &endpoint("app-1", "10.0.0.11", "7"));
    let v6 = slice("v6", "IPv6", "", &endpoint("app-1", "fd00::11", "7"));
    let view = seen(&[GATEWAY, SERVICE, &v4, &v6]);
    let endpoints = &view.services["service-a"].endpoints;
    assert_eq!(endpoints.keys().copied().collect::<Vec<_>>(), [7]);
    let pod = &endpoints[&7];
    assert_eq!((&*pod.name, pod.ready, pod.serving, pod.terminating), ("app-1", true, true, false));
    assert_eq!((pod.ipv4, pod.ipv6), ("10.0.0.11".parse().ok(), "fd00::11".parse().ok()));
}

#[test]
fn a_pod_is_ready_when_the_slices_of_both_families_say_so() {
    let v4 = slice("v4", "IPv4", "", &endpoint("app-1", "10.0.0.11", "7"));
    let leaving =
        endpoint("app-1", "fd00::11", "7").replace("{ready: true}", "{ready: false, serving: true, terminating: true}");
    let view = seen(&[GATEWAY, SERVICE, &v4, &slice("v6", "IPv6", "", &leaving)]);
    let pod = &view.services["service-a"].endpoints[&7];
    assert_eq!((pod.ready, pod.serving, pod.terminating), (false, true, true));
}

#[test]
fn an_endpoint_without_a_number_is_unused_and_named() {
    for zone in ["", "eu-north-1", "-1", "+1", "1.5", "99999999999"] {
        let view = seen(&[
            GATEWAY,
            SERVICE,
            &slice("s", "IPv4", "", &(endpoint("app-1", "10.0.0.1", zone) + "," + &endpoint("app-2", "10.0.0.2", "2"))),
        ]);
        assert_eq!(view.services["service-a"].endpoints.len(), 1, "{zone}: the other one is used");
        let told = condition(&view, Kind::EndpointSlice, "s", "EndpointAccepted");
        says(told, false, "NoIdentifier", &["endpoints[0] (app-1)", &format!("zone: `{zone}`"), "must be the number"]);
    }
}

#[test]
fn identifiers_are_below_the_capacity_and_the_route_is_told() {
    let service =
        SERVICE.replace("metadata: {", "metadata: {annotations: {meridio-experiment/service-max-endpoints: '2'}, ");
    let both = endpoint("app-1", "10.0.0.1", "1") + "," + &endpoint("app-2", "10.0.0.2", "2");
    let view = seen(&[GATEWAY, &service, &slice("s", "IPv4", "", &both), &route("a", VIP)]);
    assert_eq!(view.services["service-a"].max_endpoints, 2);
    assert_eq!(view.services["service-a"].endpoints.keys().copied().collect::<Vec<_>>(), [1]);
    says(
        condition(&view, Kind::Service, "service-a", "CapacityExceeded"),
        true,
        "CapacityExceeded",
        &["1 endpoints", "permits 2"],
    );
    says(
        condition(&view, Kind::EndpointSlice, "s", "EndpointAccepted"),
        false,
        "CapacityExceeded",
        &["app-2", "below 2"],
    );
    says(condition(&view, Kind::L34Route, "a", "ResolvedRefs"), true, "CapacityExceeded", &["service-a"]);
}

#[test]
fn of_two_pods_with_one_identifier_the_first_by_name_wins() {
    let both = endpoint("app-b", "10.0.0.2", "1") + "," + &endpoint("app-a", "10.0.0.1", "1");
    let view = seen(&[GATEWAY, SERVICE, &slice("s", "IPv4", "", &both)]);
    assert_eq!(&*view.services["service-a"].endpoints[&1].name, "app-a");
    says(
        condition(&view, Kind::Service, "service-a", "EndpointAccepted"),
        false,
        "Conflict",
        &["identifier 1", "app-b is unused", "app-a"],
    );
}

#[test]
fn addresses_outside_of_the_subnets_are_unused() {
    let view = seen(&[GATEWAY, SERVICE, &slice("s", "IPv4", "", &endpoint("app-1", "192.168.0.1", "1"))]);
    assert!(view.services["service-a"].endpoints.is_empty());
    says(
        condition(&view, Kind::EndpointSlice, "s", "EndpointAccepted"),
        false,
        "OutsideSubnets",
        &["`192.168.0.1`", "10.0.0.0/24"],
    );
    let anywhere = GATEWAY.replace("  infrastructure:", "  #");
    let view = seen(&[&anywhere, SERVICE, &slice("s", "IPv4", "", &endpoint("app-1", "192.168.0.1", "1"))]);
    assert_eq!(view.services["service-a"].endpoints.len(), 1, "no annotation: anywhere");
}

#[test]
fn slices_of_the_built_in_controller_do_not_count() {
    let managed = |by: &str| format!(", endpointslice.kubernetes.io/managed-by: {by}");
    for (labels, used) in [
        (managed("endpointslice-controller.k8s.io"), 0),
        (managed("martlet"), 1),
        (managed("someone.else"), 1),
        (String::new(), 1),
    ] {
        let view = seen(&[GATEWAY, SERVICE, &slice("s", "IPv4", &labels, &endpoint("app-1", "10.0.0.1", "1"))]);
        assert_eq!(view.services["service-a"].endpoints.len(), used, "{labels}");
    }
}

#[test]
fn an_endpoint_without_a_pod_is_known_by_its_host_name_or_its_number() {
    let bare = "{addresses: [10.0.0.1], zone: '3'}, {addresses: [10.0.0.2], zone: '4', hostname: web-0}";
    let view = seen(&[GATEWAY, SERVICE, &slice("s", "IPv4", "", bare)]);
    let endpoints = &view.services["service-a"].endpoints;
    assert_eq!((&*endpoints[&3].name, &*endpoints[&4].name), ("#3", "web-0"));
    assert!(endpoints[&3].ready, "no condition: ready, as Kubernetes has it");
}

#[test]
fn a_route_to_an_unknown_service_is_accepted_but_unresolved() {
    let view = seen(&[GATEWAY, &route("a", VIP)]);
    says(condition(&view, Kind::L34Route, "a", "Accepted"), true, "Accepted", &[]);
    says(
        condition(&view, Kind::L34Route, "a", "ResolvedRefs"),
        false,
        "BackendNotFound",
        &["spec.backendRefs[0].name: `service-a`"],
    );
    assert!(view.services.is_empty() && view.routes.contains_key("a"));
}

#[test]
fn who_may_not_read_services_says_nothing_of_them() {
    let mut all = objects(&[GATEWAY, &route("a", VIP)]);
    all.absent.insert(Kind::Service);
    let view = accept::view(&all, &name());
    assert!(view.routes.contains_key("a"));
    assert!(view.conditions.iter().all(|condition| condition.status), "{:#?}", view.conditions);
}

#[test]
fn a_service_of_another_gateway_is_no_backend() {
    let view = seen(&[GATEWAY, &SERVICE.replace("sllb-a", "sllb-b"), &route("a", VIP)]);
    says(
        condition(&view, Kind::L34Route, "a", "ResolvedRefs"),
        false,
        "ServiceOfAnotherGateway",
        &["`sllb-a`", "`sllb-b`"],
    );
}

#[test]
fn references_to_other_namespaces_and_kinds_are_refused() {
    let far = route("far", VIP).replace("[{name: service-a}]", "[{name: service-a, namespace: tenant}]");
    let config = route("odd", VIP).replace("[{name: service-a}]", "[{name: service-a, kind: ConfigMap}]");
    let lost = route("lost", VIP).replace("[{name: sllb-a}]", "[{name: sllb-a, namespace: tenant}]");
    let mesh = route("mesh", VIP).replace("[{name: sllb-a}]", "[{name: sllb-a, kind: Service, group: ''}]");
    for (document, name, of, reason) in [
        (&far, "far", "ResolvedRefs", "RefNotPermitted"),
        (&config, "odd", "ResolvedRefs", "InvalidKind"),
        (&lost, "lost", "Accepted", "RefNotPermitted"),
        (&mesh, "mesh", "Accepted", "InvalidKind"),
    ] {
        let view = seen(&[GATEWAY, SERVICE, document]);
        says(condition(&view, Kind::L34Route, name, of), false, reason, &["must be"]);
        let found = view.routes.get(name).is_some_and(|route| view.services.contains_key(&route.backend));
        assert!(!found, "{name} finds no service");
    }
}

#[test]
fn of_two_equal_routes_the_first_by_name_wins_all() {
    let view = seen(&[GATEWAY, SERVICE, &route("b", VIP), &route("a", VIP)]);
    assert_eq!(view.routes.keys().map(|name| &**name).collect::<Vec<_>>(), ["a"]);
    says(
        condition(&view, Kind::L34Route, "b", "Accepted"),
        false,
        "Overlap",
        &["spec.priority: `0`", "L34Route a", "higher priority"],
    );
}

#[test]
fn a_partial_overlap_is_told_on_the_later_route() {
    let other = SERVICE.replace("service-a", "service-b");
    let b =
        route("b", &format!("{VIP}, destinationPorts: ['100-200']")).replace("{name: service-a}", "{name: service-b}");
    let view = seen(&[GATEWAY, SERVICE, &other, &route("a", &format!("{VIP}, destinationPorts: ['150-300']")), &b]);
    assert_eq!(view.routes.len(), 2);
    says(condition(&view, Kind::L34Route, "a", "Accepted"), true, "Accepted", &[]);
    says(condition(&view, Kind::L34Route, "b", "Accepted"), true, "Overlap", &["L34Route a", "different priorities"]);
}

#[test]
fn two_ports_of_a_vip_cannot_become_one_port_of_the_endpoint() {
    let translated = |ports: &str| format!("{VIP}, destinationPorts: ['80-81'], destinationPortTranslation: [{ports}]");
    let (a, b) = ("{port: 80, protocol: TCP, targetPort: 8080}", "{port: 81, protocol: TCP, targetPort: 8080}");
    let view = seen(&[GATEWAY, SERVICE, &route("a", &translated(a)), &route("b", &translated(b))]);
    assert_eq!(view.routes.keys().map(|name| &**name).collect::<Vec<_>>(), ["a"]);
    let why = ["spec.destinationPortTranslation: `81`", "L34Route a", "targetPort of its own"];
    says(condition(&view, Kind::L34Route, "b", "Accepted"), false, "Conflict", &why);
    // In one route it is the same; of another protocol, or of a port that the route does not take, it is no clash.
    let view = seen(&[GATEWAY, SERVICE, &route("a", &translated(&format!("{a}, {b}")))]);
    assert!(view.routes.is_empty());
    for other in ["{port: 81, protocol: UDP, targetPort: 8080}", "{port: 82, protocol: TCP, targetPort: 8080}"] {
        let view = seen(&[GATEWAY, SERVICE, &route("a", &translated(&format!("{a}, {other}")))]);
        says(condition(&view, Kind::L34Route, "a", "Accepted"), true, "Accepted", &[]);
    }
}

#[test]
fn a_port_that_can_no_longer_be_reached_is_told() {
    let web = format!(
        "{VIP}, priority: 2, destinationPorts: ['80'], \
         destinationPortTranslation: [{{port: 80, protocol: TCP, targetPort: 8080}}]"
    );
    let view = seen(&[GATEWAY, SERVICE, &route("all", VIP), &route("web", &web)]);
    assert_eq!(view.routes.len(), 2);
    let why = ["L34Route all", "port 8080 of 20.0.0.1"];
    says(condition(&view, Kind::L34Route, "web", "Accepted"), true, "PortHidden", &why);
    says(condition(&view, Kind::L34Route, "all", "Accepted"), true, "Accepted", &[]);
}

#[test]
fn what_differs_in_anything_does_not_overlap() {
    for (a, b) in [
        ("destinationPorts: ['1-10']", "destinationPorts: ['11-20']"),
        ("sourcePorts: ['1']", "sourcePorts: ['2']"),
        ("sourceCIDRs: [10.0.0.0/8]", "sourceCIDRs: [11.0.0.0/8]"),
        ("sourceCIDRs: ['::/0']", "sourceCIDRs: [0.0.0.0/0]"),
        ("priority: 1", "priority: 2"),
        ("byteMatches: ['tcp[0:2] = 1']", "byteMatches: ['tcp[0:2] = 2']"),
    ] {
        let other = SERVICE.replace("service-a", "service-b");
        let b = route("b", &format!("{VIP}, {b}")).replace("{name: service-a}", "{name: service-b}");
        let view = seen(&[GATEWAY, SERVICE, &other, &route("a", &format!("{VIP}, {a}")), &b]);
        says(condition(&view, Kind::L34Route, "b", "Accepted"), true, "Accepted", &[]);
    }
}

#[test]
fn of_two_routers_with_one_address_the_first_by_name_wins() {
    let view = seen(&[GATEWAY, &router("b", "address: 10.0.0.1"), &router("a", "address: 10.0.0.1")]);
    assert_eq!(view.routers.keys().map(|name| &**name).collect::<Vec<_>>(), ["a"]);
    says(
        condition(&view, Kind::GatewayRouter, "b", "Accepted"),
        false,
        "Conflict",
        &["spec.address: `10.0.0.1`", "GatewayRouter a"],
    );
    let view = seen(&[
        GATEWAY,
        &router("b", "address: 'fe80::1', interface: b"),
        &router("a", "address: 'fe80::1', interface: a"),
    ]);
    assert_eq!(view.routers.len(), 2, "link-local on two links");
}

#[test]
fn a_bgp_neighbour_may_be_a_static_next_hop_too_unless_their_bfd_sessions_contradict_each_other() {
    let both = |one: &str, other: &str| {
        let bgp = router("a", &format!("address: 10.0.0.1, bgp: {{bfd: {{switch: true, {one}}}}}"));
        let hop = router("b", &format!("address: 10.0.0.1, protocol: Static, static: {{bfd: {{{other}}}}}"));
        seen(&[GATEWAY, SECRET, &bgp, &hop])
    };
    let auth = |kind: &str| format!("authentication: {{type: {kind}, keyID: 1, keySource: keys, keyName: md5}}");
    let view = both(&auth("KeyedSHA1"), &format!("switch: true, minRx: 50ms, {}", auth("KeyedSHA1")));
    assert_eq!(view.routers.len(), 2, "{:#?}", view.conditions);
    let view = both(&auth("KeyedSHA1"), "switch: false");
    assert_eq!(view.routers.len(), 2, "who uses no session contradicts nobody");
    for (one, other, field) in [
        (auth("KeyedSHA1"), auth("KeyedMD5"), "authentication"),
        (String::new(), auth("KeyedMD5"), "authentication"),
        (String::new(), "echo: 50ms, unaffiliated: true".to_owned(), "unaffiliated"),
    ] {
        let view = both(&one, &format!("switch: true, {other}"));
        assert_eq!(view.routers.keys().map(|name| &**name).collect::<Vec<_>>(), ["a"]);
        let field = format!("spec.static.bfd.{field}");
        says(condition(&view, Kind::GatewayRouter, "b", "Accepted"), false, "Conflict", &[&field, "GatewayRouter a"]);
    }
}

const SECRET: &str =
    "{apiVersion: v1, kind: Secret, metadata: {name: keys}, data: {md5: c2VjcmV0}, stringData: {empty: ''}}";

#[test]
fn a_key_comes_from_its_secret_and_is_never_shown() {
    let with = |key: &str, source: &str| {
        let router = router("r", &format!("address: 10.0.0.1, bgp: {{auth: {{keyName: {key}, keySource: {source}}}}}"));
        seen(&[GATEWAY, SECRET, &router])
    };
    let password = |view: &View| match &view.routers["r"].protocol {
        Protocol::Bgp(bgp) => bgp.password.clone().unwrap(),
        Protocol::Static(_) => panic!("no BGP"),
    };
    let good = with("md5", "keys");
    assert_eq!(password(&good).secret.as_deref(), Some(&b"secret"[..]));
    says(condition(&good, Kind::GatewayRouter, "r", "ResolvedRefs"), true, "ResolvedRefs", &[]);
    for shown in [format!("{good:?}"), format!("{:?}", objects(&[SECRET]))] {
        assert!(!shown.contains("secret\"") && !shown.contains("115, 101, 99"), "{shown}");
    }
    for (key, source, words) in
        [("md5", "gone", "keySource: `gone`"), ("sha", "keys", "keyName: `sha`"), ("empty", "keys", "has 0 octets")]
    {
        let view = with(key, source);
        assert_eq!(password(&view).secret, None, "the session must not come up without its key");
        says(condition(&view, Kind::GatewayRouter, "r", "ResolvedRefs"), false, "InvalidKey", &[words, "must"]);
    }
}

#[test]
fn a_bad_bfd_key_is_too_long() {
    let secret =
        format!("{{apiVersion: v1, kind: Secret, metadata: {{name: keys}}, stringData: {{long: {}}}}}", "x".repeat(21));
    let bfd = "bfd: {switch: true, authentication: {type: KeyedSHA1, keyID: 1, keySource: keys, keyName: long}}";
    let view = seen(&[GATEWAY, &secret, &router("r", &format!("address: 10.0.0.1, static: {{{bfd}}}"))]);
    says(
        condition(&view, Kind::GatewayRouter, "r", "ResolvedRefs"),
        false,
        "InvalidKey",
        &["spec.static.bfd.authentication.keyName", "21 octets", "1 to 20"],
    );
}

#[test]
fn bfd_is_off_unless_it_is_switched_on() {
    let bfd = |spec: &str| match &seen(&[GATEWAY, &router("r", &format!("address: 10.0.0.1, bgp: {{{spec}}}"))]).routers
        ["r"]
        .protocol
    {
        Protocol::Bgp(bgp) => bgp.bfd.clone(),
        Protocol::Static(_) => panic!("no BGP"),
    };
    assert_eq!(bfd(""), None);
    assert_eq!(bfd("bfd: {minTx: 10ms}"), None);
    assert_eq!(bfd("bfd: {switch: false}"), None);
    assert_eq!(bfd("bfd: {switch: true}").map(|bfd| bfd.multiplier), Some(5));
}

#[test]
fn a_pod_that_may_not_read_routes_takes_the_addresses_of_the_gateway() {
    let gateway = GATEWAY.to_owned()
        + "status: {addresses: [{type: IPAddress, value: 20.0.0.9}, {value: '2000::9'}, {value: nowhere}]}\n";
    let view = seen(&[&gateway]);
    assert_eq!(view.vips, ["20.0.0.9/32", "2000::9/128"].map(|vip| vip.parse().unwrap()).into());
    says(condition(&view, Kind::Gateway, "sllb-a", "AddressesAccepted"), false, "InvalidAddress", &["`nowhere`"]);
    let view = seen(&[&gateway, &route("a", VIP)]);
    assert_eq!(view.vips, ["20.0.0.1/32".parse().unwrap()].into(), "routes say more than addresses");
}

#[test]
fn listeners_change_nothing() {
    let odd = GATEWAY.replace("spec:\n", "spec:\n  listeners: [{name: x, port: -7, protocol: HTTP/9}, 12]\n");
    assert_eq!(seen(&[&odd, &router("r", "address: 10.0.0.1")]), seen(&[GATEWAY, &router("r", "address: 10.0.0.1")]));
}

/// Four objects of each kind; the bits say which of them are bad, as an older definition in a cluster might permit.
fn mixed(bad: u16, with_bad: bool) -> Objects {
    let mut all = objects(&[GATEWAY, SERVICE]);
    for number in 0..4_u16 {
        let name = ObjectName::new("default", format!("o{number}"));
        let [bad_router, bad_route, bad_slice] = [0, 4, 8].map(|shift| bad >> (number + shift) & 1 == 1);
        let text = router(&name.name, &format!("address: 10.0.0.{}", number + 1))
            + "---"
            + &route(&name.name, &format!("destinationCIDRs: [20.0.0.{number}/32], protocols: [UDP]"))
            + "---"
            + &slice(
                &name.name,
                "IPv4",
                "",
                &endpoint(&format!("app-{number}"), &format!("10.0.0.{number}"), &number.to_string()),
            );
        let one = objects(&[&text]);
        let mut object = one.routers[&name].as_ref().clone();
        if bad_router {
            object.spec = GatewayRouterSpec { address: "'; drop".to_owned(), ..GatewayRouterSpec::default() };
        }
        if with_bad || !bad_router {
            all.routers.insert(name.clone(), Arc::new(object));
        }
        let mut object = one.routes[&name].as_ref().clone();
        if bad_route {
            object.spec = L34RouteSpec { destination_cidrs: vec!["0/0".to_owned()], ..object.spec };
        }
        if with_bad || !bad_route {
            all.routes.insert(name.clone(), Arc::new(object));
        }
        let mut object = one.slices[&name].as_ref().clone();
        if bad_slice {
            "FQDN".clone_into(&mut object.address_type);
        }
        if with_bad || !bad_slice {
            all.slices.insert(name.clone(), Arc::new(object));
        }
    }
    all.absent.clear();
    all
}

proptest! {
    #[test]
    fn one_bad_object_never_hurts_another(bad in 0_u16..4096) {
        let with = accept::view(&mixed(bad, true), &name());
        let without = accept::view(&mixed(bad, false), &name());
        prop_assert_eq!(&with.routers, &without.routers);
        prop_assert_eq!(&with.routes, &without.routes);
        prop_assert_eq!(&with.services, &without.services);
        prop_assert_eq!(&with.vips, &without.vips);
        let more: Vec<_> = with.conditions.difference(&without.conditions).filter(|c| !c.status).collect();
        prop_assert_eq!(more.len(), usize::try_from(bad.count_ones()).unwrap(), "each bad one is told: {:?}", more);
    }
}
