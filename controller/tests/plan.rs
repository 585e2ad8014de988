//! The plan, as plays on a world: a toy server does what the plan says, until nothing is left to do.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use martlet_controller::deployment::Settings;
use martlet_controller::plan::{Action, Plan, plan};
use martlet_controller::world::{Kind, Rights, World};
use proptest::prelude::*;
use serde_json::{Value, json};

const CLASS: &str = "meridio-experiment/stateless-load-balancer";

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

/// A server with the objects of one namespace. What is put in is JSON, as a user writes it.
struct Server {
    world: World,
    settings: Settings,
    now: i64,
    done: Vec<Action>,
    reasons: Vec<&'static str>,
}

impl Server {
    fn new() -> Self {
        let mut world = World::new("ns", Rights::ALL);
        world.objects.synced = true;
        Self { world, settings: Settings::default(), now: 1000, done: Vec::new(), reasons: Vec::new() }
    }

    /// The seed's example with one pod.
    fn seed() -> Self {
        let mut server = Self::new();
        server.gateway("sllb-a", &json!({}));
        server.service("service-a", &json!({}));
        server.route("vip-a", "sllb-a", "service-a", &["20.0.0.1/32"]);
        server.pod(1);
        server
    }

    fn put(&mut self, mut object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let kind = object["kind"].as_str().unwrap().to_owned();
        object["metadata"]["namespace"] = json!("ns");
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("{kind}-{name}"));
        }
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind).expect("a kind that is read");
        self.world.put(kind, &object);
    }

    fn gateway(&mut self, name: &str, infrastructure: &Value) {
        let mut all = json!({"annotations": {"meridio-experiment/networks": r#"[{"name":"nad","interface":"net1"}]"#,
                                             "meridio-experiment/network-subnets": r#"["10.0.0.0/24"]"#}});
        all.as_object_mut().unwrap().extend(infrastructure.as_object().unwrap().clone());
        self.put(json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": name, "generation": 1},
                        "spec": {"gatewayClassName": CLASS, "infrastructure": all,
                                 "listeners": [{"name": "all", "port": 4000, "protocol": "TCP"}]}}));
    }

    fn service(&mut self, name: &str, annotations: &Value) {
        self.put(json!({"apiVersion": "v1", "kind": "Service",
                        "metadata": {"name": name, "annotations": annotations,
                                     "labels": {"service.kubernetes.io/service-proxy-name": "sllb-a"}},
                        "spec": {"selector": {"app": "target"}}}));
    }

    fn route(&mut self, name: &str, gateway: &str, service: &str, vips: &[&str]) {
        self.put(json!({"apiVersion": "meridio.experiment.gateway.api.poc/v1alpha1", "kind": "L34Route",
                        "metadata": {"name": name, "generation": 1},
                        "spec": {"parentRefs": [{"name": gateway}], "backendRefs": [{"name": service}], "priority": 1,
                                 "destinationCIDRs": vips, "protocols": ["TCP"]}}));
    }

    fn router(&mut self, name: &str, address: &str) {
        self.put(json!({"apiVersion": "meridio.experiment.gateway.api.poc/v1alpha1", "kind": "GatewayRouter",
                        "metadata": {"name": name, "generation": 1,
                                     "labels": {"service.kubernetes.io/service-proxy-name": "sllb-a"}},
                        "spec": {"address": address, "bgp": {"bfd": {"switch": true}}}}));
    }

    fn pod(&mut self, n: u8) {
        let status = format!(r#"[{{"name":"ns/nad","interface":"net1","ips":["10.0.0.{n}"]}}]"#);
        self.put(json!({"apiVersion": "v1", "kind": "Pod",
                        "metadata": {"name": format!("pod-{n}"), "labels": {"app": "target"},
                                     "creationTimestamp": format!("2026-01-01T00:00:{n:02}Z"),
                                     "annotations": {"k8s.v1.cni.cncf.io/network-status": status}},
                        "spec": {"containers": []},
                        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}));
    }

    /// A load-balancer pod as the Deployment makes it.
    fn load_balancer(&mut self, name: &str, address: &str) {
        let made = serde_json::to_value(&**self.world.deployments.get("sllbr-sllb-a").unwrap()).unwrap();
        let mut pod = made["spec"]["template"].clone();
        let status = format!(r#"[{{"name":"ns/nad","interface":"net1","ips":["{address}"]}}]"#);
        pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"] = json!(status);
        pod["metadata"]["name"] = json!(name);
        pod["kind"] = json!("Pod");
        pod["status"] = json!({"phase": "Running"});
        self.put(pod);
    }

    fn state(&mut self, pod: &str, state: &str, ipv4: bool) {
        self.put(json!({"apiVersion": "meridio.experiment.gateway.api.poc/v1alpha1", "kind": "RouterState", "metadata": {"name": pod},
                        "spec": {"gateway": "sllb-a", "pod": pod, "ipv4Connectivity": ipv4, "ipv6Connectivity": false,
                                 "sessions": [{"router": "gateway-a-v4", "up": ipv4, "state": state, "bfd": if ipv4 {"Up"} else {"Down"},
                                               "since": "2026-01-01T00:00:00Z"}]}}));
    }

    fn plan(&self) -> Plan {
        plan(&self.world, &self.settings, 100, &at(self.now))
    }

    /// Does what the plan says until it says nothing.
    fn settle(&mut self) {
        self.done.clear();
        self.reasons.clear();
        for _ in 0..5 {
            self.now += 1;
            let plan = self.plan();
            if plan.actions.is_empty() {
                assert!(plan.notes.is_empty(), "notes without a change: {:?}", plan.notes);
                return;
            }
            self.reasons.extend(plan.notes.iter().map(|note| note.reason));
            for action in plan.actions {
                self.act(action);
            }
        }
        panic!("it does not settle: {:#?}", self.plan().actions);
    }

    fn act(&mut self, action: Action) {
        self.done.push(action.clone());
        match action {
            Action::Create(_, name, mut body) => {
                assert!(self.object(&body["kind"], &name).is_none(), "{name} exists");
                body["status"] = json!({});
                self.put(body);
            }
            Action::Apply(_, _, body) => self.put(body),
            Action::Status(_, name, body) => {
                let mut object = self.object(&body["kind"], &name).expect("status of an object that exists");
                assert_eq!(object["metadata"]["uid"], body["metadata"]["uid"]);
                object["kind"] = body["kind"].clone();
                if body["kind"] == "Pod" {
                    let said = body["status"]["conditions"].as_array().unwrap();
                    let mut all: BTreeMap<String, Value> = BTreeMap::new();
                    for one in object["status"]["conditions"].as_array().into_iter().flatten().chain(said) {
                        all.insert(one["type"].as_str().unwrap().to_owned(), one.clone());
                    }
                    object["status"]["conditions"] = all.into_values().collect();
                } else {
                    object["status"] = body["status"].clone();
                }
                self.put(object);
            }
            Action::Delete(kind, name, _) => self.world.gone(kind, "ns", &name),
        }
    }

    fn object(&self, kind: &Value, name: &str) -> Option<Value> {
        let key = self.world.name(name);
        let objects = &self.world.objects;
        match kind.as_str().unwrap() {
            "Gateway" => {
                // The type of the API keeps the addresses only.
                let mut gateway = json(objects.gateways.get(&key)?);
                let extra = &self.world.gateways[&key];
                gateway["status"] = json(&extra.status);
                gateway["spec"]["listeners"] = extra.listeners.iter().map(|name| json!({"name": name})).collect();
                Some(gateway)
            }
            "L34Route" => objects.routes.get(&key).map(json),
            "GatewayRouter" => objects.routers.get(&key).map(json),
            "EndpointSlice" => objects.slices.get(&key).map(json),
            "Pod" => self.world.pods.get(name).map(json),
            "Deployment" => self.world.deployments.get(name).map(json),
            "PodDisruptionBudget" => self.world.budgets.get(name).map(json),
            other => panic!("{other}"),
        }
    }

    fn condition(&self, kind: &str, name: &str, condition: &str) -> Option<(String, String, String)> {
        let object = self.object(&json!(kind), name).unwrap();
        let at = if kind == "L34Route" { "/status/parents/0/conditions" } else { "/status/conditions" };
        let all = object.pointer(at)?.as_array()?;
        let found = all.iter().find(|found| found["type"] == condition)?;
        let text = |field: &str| found[field].as_str().unwrap().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    #[track_caller]
    fn expect(&self, kind: &str, name: &str, condition: &str, status: &str, reason: &str) -> String {
        let (s, r, message) = self.condition(kind, name, condition).expect("the condition is there");
        assert_eq!((s.as_str(), r.as_str()), (status, reason), "{kind} {name} {condition}: {message}");
        message
    }

    fn addresses(&self) -> Vec<String> {
        let slices = self.world.objects.slices.values();
        slices.flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.addresses[0].clone())).collect()
    }
}

fn json(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).unwrap()
}

#[test]
fn the_seed_becomes_a_deployment_a_slice_and_status() {
    let mut server = Server::seed();
    server.settle();
    assert!(server.world.deployments.contains_key("sllbr-sllb-a") && server.world.budgets.contains_key("sllbr-sllb-a"));
    assert_eq!(server.addresses(), ["10.0.0.1"]);
    server.expect("Gateway", "sllb-a", "Accepted", "True", "Accepted");
    server.expect("Gateway", "sllb-a", "Programmed", "False", "Pending");
    server.expect("Gateway", "sllb-a", "Ready", "False", "NotReady");
    server.expect("L34Route", "vip-a", "Accepted", "True", "Accepted");
    server.expect("L34Route", "vip-a", "ResolvedRefs", "True", "ResolvedRefs");
    let status = &server.world.gateways[&server.world.name("sllb-a")].status;
    assert_eq!(json(&status.addresses), json!([{"type": "IPAddress", "value": "20.0.0.1"}]));
    assert_eq!((status.listeners[0].name.as_str(), status.listeners[0].attached_routes), ("all", 1));
}

#[test]
fn a_gateway_is_ready_with_its_first_available_pod() {
    let mut server = Server::seed();
    server.settle();
    let mut deployment = server.object(&json!("Deployment"), "sllbr-sllb-a").unwrap();
    deployment["kind"] = json!("Deployment");
    deployment["status"] = json!({"availableReplicas": 1});
    server.put(deployment);
    server.settle();
    server.expect("Gateway", "sllb-a", "Programmed", "True", "Programmed");
    server.expect("Gateway", "sllb-a", "Ready", "True", "Ready");
}

#[test]
fn no_change_of_routes_services_or_routers_touches_the_deployment() {
    let mut server = Server::seed();
    server.settle();
    server.route("vip-b", "sllb-a", "service-a", &["20.0.0.2/32", "2000::1/128"]);
    server.service("service-b", &json!({}));
    server.router("gateway-a-v4", "169.254.100.150");
    server.pod(2);
    server.settle();
    assert!(!server.done.is_empty());
    assert!(server.done.iter().all(|action| action.of().0 != Kind::Deployment), "{:?}", server.done);
    // But a change of the infrastructure does.
    server.gateway("sllb-a", &json!({"labels": {"tenant": "blue"}}));
    server.settle();
    assert!(server.done.iter().any(|action| action.of() == (Kind::Deployment, "sllbr-sllb-a")));
}

#[test]
fn a_gateway_of_another_class_is_left_alone_and_one_that_leaves_is_cleaned_up() {
    let mut server = Server::seed();
    server.settle();
    let mut gateway = server.object(&json!("Gateway"), "sllb-a").unwrap();
    gateway["kind"] = json!("Gateway");
    gateway["spec"]["gatewayClassName"] = json!("other");
    server.put(gateway.clone());
    server.settle();
    assert!(
        server.world.deployments.is_empty()
            && server.world.budgets.is_empty()
            && server.world.objects.slices.is_empty()
    );
    let mut server = Server::seed();
    server.put(gateway);
    assert_eq!(server.plan().actions, []);
}

#[test]
fn a_foreign_deployment_is_not_taken_over() {
    let mut server = Server::seed();
    let foreign = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "sllbr-sllb-a"},
                         "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": {"metadata": {}, "spec": {"containers": []}}}});
    server.put(foreign);
    server.settle();
    assert!(server.done.iter().all(|action| action.of().0 != Kind::Deployment));
    let message = server.expect("Gateway", "sllb-a", "Programmed", "False", "Conflict");
    assert!(message.contains("sllbr-sllb-a"), "{message}");
    server.expect("Gateway", "sllb-a", "Accepted", "True", "Accepted");
}

#[test]
fn a_broken_or_unknown_template_is_told_and_rolls_nothing() {
    let mut server = Server::seed();
    server.settle();
    let with = |kind: &str| json!({"parametersRef": {"group": "", "kind": kind, "name": "template"}});
    for kind in ["Secret", "ConfigMap"] {
        server.gateway("sllb-a", &with(kind));
        server.settle();
        server.expect("Gateway", "sllb-a", "Accepted", "False", "InvalidParameters");
        assert!(server.done.iter().all(|action| action.of().0 != Kind::Deployment));
    }
    assert!(server.reasons.contains(&"ConfigRejected"));
    let map = |text: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "template"}, "data": {"deployment": text}});
    server.put(map("spec: {replicas: many}"));
    server.settle();
    server.expect("Gateway", "sllb-a", "Accepted", "False", "InvalidParameters");
    server.put(map("spec: {replicas: 3}"));
    server.settle();
    server.expect("Gateway", "sllb-a", "Accepted", "True", "Accepted");
    assert_eq!(server.world.deployments["sllbr-sllb-a"].spec.as_ref().unwrap().replicas, Some(3));
}

#[test]
fn forty_vips_are_cut_to_sixteen_and_counted() {
    let mut server = Server::seed();
    let vips: Vec<_> = (1..=40).map(|n| format!("20.0.0.{n}/32")).collect();
    server.route("vip-a", "sllb-a", "service-a", &vips.iter().map(String::as_str).collect::<Vec<_>>());
    server.settle();
    let status = &server.world.gateways[&server.world.name("sllb-a")].status;
    assert_eq!((status.addresses.len(), status.addresses[15].value.as_str()), (16, "20.0.0.16"));
    let message = server.expect("Gateway", "sllb-a", "AddressesTruncated", "True", "TooManyAddresses");
    assert!(message.contains("40"), "{message}");
    server.route("vip-a", "sllb-a", "service-a", &["20.0.0.1/32"]);
    server.settle();
    assert_eq!(server.condition("Gateway", "sllb-a", "AddressesTruncated"), None);
}

#[test]
fn a_vip_of_which_only_some_routes_are_served_is_told() {
    let mut server = Server::seed();
    server.put(json!({"apiVersion": "v1", "kind": "Service",
                      "metadata": {"name": "service-b", "labels": {"service.kubernetes.io/service-proxy-name": "sllb-a"}},
                      "spec": {"selector": {"app": "nobody"}}}));
    server.put(json!({"apiVersion": "meridio.experiment.gateway.api.poc/v1alpha1", "kind": "L34Route",
                      "metadata": {"name": "vip-b", "generation": 1},
                      "spec": {"parentRefs": [{"name": "sllb-a"}], "backendRefs": [{"name": "service-b"}], "priority": 2,
                               "destinationCIDRs": ["20.0.0.1/32"], "protocols": ["UDP"]}}));
    server.settle();
    let told = server.expect("Gateway", "sllb-a", "PartiallyServed", "True", "NoEndpoint");
    assert!(told.contains("20.0.0.1") && told.contains("vip-b") && !told.contains("vip-a"), "{told}");
    server.route("vip-b", "sllb-a", "service-a", &["20.0.0.2/32"]);
    server.settle();
    assert_eq!(server.condition("Gateway", "sllb-a", "PartiallyServed"), None);
}

#[test]
fn a_service_that_loses_its_label_loses_our_slices_only() {
    let mut server = Server::seed();
    let foreign = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
                         "metadata": {"name": "foreign", "labels": {"kubernetes.io/service-name": "service-a"}}});
    server.put(foreign);
    server.settle();
    assert_eq!(server.world.objects.slices.len(), 2);
    server.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "service-a"}, "spec": {"selector": {"app": "target"}}}));
    server.settle();
    assert_eq!(server.world.objects.slices.keys().map(|name| &*name.name).collect::<Vec<_>>(), ["foreign"]);
}

#[test]
fn routes_say_why_they_do_not_work() {
    let mut server = Server::seed();
    server.route("a-lost", "nowhere", "service-a", &["20.0.0.9/32"]);
    server.route("unknown-service", "sllb-a", "nothing", &["20.0.0.8/32"]);
    server.route("vip-b-loses", "sllb-a", "service-b", &["20.0.0.1/32"]);
    server.service("service-b", &json!({"meridio-experiment/service-max-endpoints": "1"}));
    server.route("vip-c", "sllb-a", "service-b", &["20.0.0.7/32"]);
    server.pod(2);
    server.settle();
    server.expect("L34Route", "a-lost", "Accepted", "False", "NoMatchingParent");
    server.expect("L34Route", "unknown-service", "ResolvedRefs", "False", "BackendNotFound");
    let message = server.expect("L34Route", "vip-b-loses", "Accepted", "False", "Overlap");
    assert!(message.contains("vip-a"), "{message}");
    server.expect("L34Route", "vip-c", "ResolvedRefs", "True", "CapacityExceeded");
    let message = server.expect("Gateway", "sllb-a", "EndpointsAccepted", "False", "CapacityExceeded");
    assert!(message.contains("service-b") && message.contains("pod-2"), "{message}");
    assert!(server.reasons.contains(&"CapacityExceeded") && server.reasons.contains(&"ConfigRejected"));
}

#[test]
fn broken_annotations_are_told_on_the_gateway() {
    for (annotations, reason) in [
        (json!({}), "AnnotationMissing"),
        (
            json!({"meridio-experiment/networks": "x", "meridio-experiment/network-subnets": "[]"}),
            "AnnotationMalformed",
        ),
    ] {
        let mut server = Server::seed();
        server.gateway("sllb-a", &json!({"annotations": annotations}));
        server.settle();
        server.expect("Gateway", "sllb-a", "NetworksResolved", "False", reason);
    }
}

#[test]
fn a_load_balancer_without_an_internal_address_is_named_with_the_subnet() {
    let mut server = Server::seed();
    server.settle();
    server.load_balancer("sllbr-1", "10.0.0.100");
    server.load_balancer("sllbr-2", "192.168.0.1");
    server.settle();
    let message = server.expect("Gateway", "sllb-a", "PodsAttached", "False", "AddressMissing");
    assert!(
        message.contains("sllbr-2") && message.contains("10.0.0.0/24") && !message.contains("sllbr-1"),
        "{message}"
    );
}

#[test]
fn sessions_of_all_pods_are_gathered_and_open_the_readiness_gates() {
    let mut server = Server::seed();
    server.router("gateway-a-v4", "169.254.100.150");
    server.settle();
    server.expect("GatewayRouter", "gateway-a-v4", "Programmed", "False", "Pending");
    server.load_balancer("sllbr-1", "10.0.0.100");
    server.load_balancer("sllbr-2", "10.0.0.101");
    server.settle();
    let gate = |server: &Server, pod: &str, n: usize| {
        let conditions = json(&server.world.pods[pod])["status"]["conditions"].clone();
        let gate = martlet_controller::deployment::GATES[n];
        let found = conditions.as_array().unwrap().iter().find(|c| c["type"] == gate).unwrap().clone();
        (found["status"].as_str().unwrap().to_owned(), found["reason"].as_str().unwrap().to_owned())
    };
    assert_eq!(gate(&server, "sllbr-1", 0), ("False".into(), "Pending".into()));
    assert_eq!(gate(&server, "sllbr-1", 1), ("True".into(), "NoGatewayRouter".into()));
    server.state("sllbr-1", "Established", true);
    server.state("sllbr-2", "Active", false);
    server.settle();
    assert_eq!(gate(&server, "sllbr-1", 0).0, "True");
    assert_eq!(gate(&server, "sllbr-2", 0), ("False".into(), "NotConnected".into()));
    let status = server.object(&json!("GatewayRouter"), "gateway-a-v4").unwrap()["status"].clone();
    assert_eq!((&status["bgp"], &status["bfd"]), (&json!("1/2 Established"), &json!("1/2 Up")));
    assert_eq!(status["pods"].as_array().unwrap().len(), 2);
    server.expect("GatewayRouter", "gateway-a-v4", "Programmed", "True", "Degraded");
}

/// Its session may be as good as it likes: what it attracts it cannot forward.
#[test]
fn a_pod_without_an_address_where_the_endpoints_are_keeps_its_gate_shut() {
    let mut server = Server::new();
    server.gateway(
        "sllb-a",
        &json!({"annotations": {"meridio-experiment/networks": r#"[{"name":"nad","interface":"net1"}]"#,
                                "meridio-experiment/network-subnets": r#"["10.0.0.0/24","10.0.1.0/24","fd00::/64"]"#}}),
    );
    server.router("gateway-a-v4", "169.254.100.150");
    server.router("gateway-a-v6", "100:100::150");
    server.settle();
    let told = |server: &Server| {
        let conditions = json(&server.world.pods["sllbr-1"])["status"]["conditions"].clone();
        let of = |gate| conditions.as_array().unwrap().iter().find(|c| c["type"] == gate).unwrap().clone();
        martlet_controller::deployment::GATES.map(of)
    };
    let state = json!({"apiVersion": "meridio.experiment.gateway.api.poc/v1alpha1", "kind": "RouterState", "metadata": {"name": "sllbr-1"},
                       "spec": {"gateway": "sllb-a", "pod": "sllbr-1", "ipv4Connectivity": true, "ipv6Connectivity": true, "sessions": []}});
    server.put(state);
    server.load_balancer("sllbr-1", "10.0.0.100");
    server.settle();
    let [ipv4, ipv6] = told(&server);
    assert_eq!(
        (&ipv4["status"], &ipv4["reason"]),
        (&json!("True"), &json!("Connected")),
        "one of two subnets is enough"
    );
    assert_eq!((&ipv6["status"], &ipv6["reason"]), (&json!("False"), &json!("AddressMissing")));
    let message = server.expect("Gateway", "sllb-a", "PodsAttached", "False", "AddressMissing");
    assert!(message.contains("sllbr-1 has no address in 10.0.1.0/24, fd00::/64"), "{message}");
    assert_eq!(ipv6["message"].as_str(), Some(message.as_str()));
    server.load_balancer("sllbr-1", "192.168.0.1");
    server.settle();
    assert!(told(&server).iter().all(|gate| gate["reason"] == "AddressMissing"));
    server.load_balancer("sllbr-1", r#"10.0.0.100","10.0.1.100","fd00::100"#);
    server.settle();
    assert!(told(&server).iter().all(|gate| gate["reason"] == "Connected" && gate["status"] == "True"));
}

#[test]
fn without_the_extra_rights_what_the_seed_asks_still_works() {
    let mut server = Server::seed();
    server.world.rights = Rights::BASE;
    server.settings.gates = false;
    server.router("gateway-a-v4", "169.254.100.150");
    server.settle();
    let written: std::collections::BTreeSet<_> = server.done.iter().map(|action| action.of().0).collect();
    assert_eq!(written, [Kind::Gateway, Kind::Deployment, Kind::Slice].into());
}

#[test]
fn a_name_that_is_no_label_is_refused() {
    let name = "a".repeat(64);
    let mut server = Server::new();
    server.gateway(&name, &json!({}));
    server.settle();
    server.expect("Gateway", &name, "Accepted", "False", "Invalid");
    assert!(server.world.deployments.is_empty());
}

#[test]
fn other_namespaces_are_untouched() {
    let mut server = Server::seed();
    server.world.namespace = Arc::from("tenant");
    assert_eq!(server.plan().actions, []);
}

/// What a user, or the cluster, does.
#[derive(Clone, Debug)]
enum Step {
    Gateway(bool),
    Service(u8),
    Route(u8, u8, u8),
    Router(u8),
    Pod(u8),
    LoadBalancer(u8),
    State(u8, bool),
    Gone(usize),
    Scaled(i32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<bool>().prop_map(Step::Gateway),
        (0_u8..3).prop_map(Step::Service),
        (0_u8..6, 0_u8..4, 1_u8..5).prop_map(|(route, service, vip)| Step::Route(route, service, vip)),
        (0_u8..3).prop_map(Step::Router),
        (1_u8..12).prop_map(Step::Pod),
        (1_u8..3).prop_map(Step::LoadBalancer),
        (1_u8..3, any::<bool>()).prop_map(|(pod, up)| Step::State(pod, up)),
        any::<usize>().prop_map(Step::Gone),
        (1_i32..5).prop_map(Step::Scaled),
    ]
}

impl Server {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Gateway(whole) => {
                let annotations = if *whole { json!({}) } else { json!({"annotations": {}}) };
                self.gateway("sllb-a", &annotations);
            }
            Step::Service(n) => {
                self.service(&format!("service-{n}"), &json!({"meridio-experiment/service-max-endpoints": "8"}));
            }
            Step::Route(n, service, vip) => {
                self.route(
                    &format!("route-{n}"),
                    "sllb-a",
                    &format!("service-{service}"),
                    &[&format!("20.0.0.{vip}/32")],
                );
            }
            Step::Router(n) => self.router(&format!("router-{n}"), &format!("169.254.100.{n}")),
            Step::Pod(n) => self.pod(*n),
            Step::LoadBalancer(n) if self.world.deployments.contains_key("sllbr-sllb-a") => {
                self.load_balancer(&format!("sllbr-{n}"), &format!("10.0.0.10{n}"));
            }
            Step::State(n, up) => self.state(&format!("sllbr-{n}"), if *up { "Established" } else { "Idle" }, *up),
            Step::Gone(which) => {
                let all: Vec<_> = Kind::ALL.into_iter().flat_map(|kind| self.names(kind)).collect();
                if let Some((kind, name)) = all.get(which % all.len().max(1)) {
                    self.world.gone(*kind, "ns", name);
                }
            }
            Step::Scaled(replicas) => {
                if let Some(mut deployment) = self.object(&json!("Deployment"), "sllbr-sllb-a") {
                    deployment["kind"] = json!("Deployment");
                    deployment["spec"]["replicas"] = json!(replicas);
                    deployment["metadata"]["managedFields"] =
                        json!([{"manager": "autoscaler", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]);
                    self.put(deployment);
                }
            }
            Step::LoadBalancer(_) => {}
        }
    }

    fn names(&self, kind: Kind) -> Vec<(Kind, String)> {
        let objects = &self.world.objects;
        let of = |names: Vec<&str>| names.into_iter().map(|name| (kind, name.to_owned())).collect();
        match kind {
            Kind::Gateway => of(objects.gateways.keys().map(|name| &*name.name).collect()),
            Kind::Service => of(objects.services.keys().map(|name| &*name.name).collect()),
            Kind::L34Route => of(objects.routes.keys().map(|name| &*name.name).collect()),
            Kind::GatewayRouter => of(objects.routers.keys().map(|name| &*name.name).collect()),
            Kind::Slice => of(objects.slices.keys().map(|name| &*name.name).collect()),
            Kind::Pod => of(self.world.pods.keys().map(String::as_str).collect()),
            Kind::Deployment => of(self.world.deployments.keys().map(String::as_str).collect()),
            Kind::RouterState => of(self.world.states.keys().map(String::as_str).collect()),
            _ => Vec::new(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happens_in_whatever_order_it_settles(steps in prop::collection::vec(step(), 1..40)) {
        let mut server = Server::new();
        for step in &steps {
            server.step(step);
            // That it settles is asserted inside.
            server.settle();
            let gateway = server.world.objects.gateways.contains_key(&server.world.name("sllb-a"));
            let services: Vec<_> = server.world.objects.services.keys().map(|name| name.name.to_string()).collect();
            for slice in server.world.objects.slices.values() {
                let service = &slice.metadata.labels.as_ref().unwrap()["kubernetes.io/service-name"];
                prop_assert!(gateway && services.contains(service), "a slice of {} is left", service);
            }
            prop_assert!(!gateway || server.world.deployments.contains_key("sllbr-sllb-a"));
            for (name, route) in &server.world.objects.routes {
                prop_assert!(route.status.as_ref().is_some_and(|status| !status.parents.is_empty()), "{} is told nothing", name);
            }
        }
    }
}
