//! The Deployment of a Gateway: what it is made of, what an operator may change, and what changes nothing.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use k8s_openapi::api::apps::v1::Deployment;
use martlet_api::crd::Gateway;
use martlet_controller::deployment::{GATES, MADE_OF, Settings, Sysctls, budget, deployment, holds, name_of};
use serde_json::{Value, json};

fn gateway() -> Gateway {
    serde_json::from_value(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "sllb-a", "namespace": "ns", "uid": "g-1"},
        "spec": {"gatewayClassName": "meridio-experiment/stateless-load-balancer",
                 "infrastructure": {"labels": {"tenant": "red"}, "annotations": {
                     "k8s.v1.cni.cncf.io/networks": r#"[{"name":"vlan-100","interface":"vlan-100"}]"#,
                     "meridio-experiment/networks": r#"[{"name":"macvlan-nad-1","interface":"net1"}]"#}}},
    }))
    .unwrap()
}

fn made(settings: &Settings, template: Option<&str>) -> Value {
    let made = deployment(&gateway(), settings, template, false).unwrap();
    serde_json::from_value::<Deployment>(made.clone()).expect("a Deployment");
    made
}

fn plain() -> Value {
    made(&Settings::default(), None)
}

#[test]
fn it_has_both_containers_with_least_privilege() {
    let made = plain();
    let containers = made["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.iter().map(|c| c["name"].as_str().unwrap()).collect::<Vec<_>>(), ["router", "lb"]);
    for container in containers {
        let context = &container["securityContext"];
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(context["readOnlyRootFilesystem"], true);
        // Shut, it would take from a user other than root what its file carries.
        assert_eq!(context["allowPrivilegeEscalation"], true);
    }
    let pod = &made["spec"]["template"]["spec"]["securityContext"];
    assert_eq!((&pod["runAsNonRoot"], &pod["runAsUser"]), (&json!(true), &json!(65532)));
    assert_eq!(
        containers[0]["securityContext"]["capabilities"]["add"],
        json!(["NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW"])
    );
    assert_eq!(containers[1]["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));
}

#[test]
fn labels_and_annotations_of_the_infrastructure_reach_the_pods() {
    let pod = &plain()["spec"]["template"]["metadata"];
    assert_eq!(pod["labels"]["tenant"], "red");
    assert_eq!(pod["annotations"]["meridio-experiment/networks"], r#"[{"name":"macvlan-nad-1","interface":"net1"}]"#);
}

#[test]
fn the_sysctls_come_by_an_attachment_or_by_the_pod() {
    let networks =
        |made: &Value| made["spec"]["template"]["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"].clone();
    let list: Vec<Value> = serde_json::from_str(networks(&plain()).as_str().unwrap()).unwrap();
    assert_eq!(list[0]["name"], "vlan-100");
    assert_eq!(list[1], json!({"name": "sllbr-tuning", "interface": "tuning0"}));
    let by_pod = made(&Settings { sysctls: Sysctls::Pod, ..Settings::default() }, None);
    assert_eq!(networks(&by_pod), r#"[{"name":"vlan-100","interface":"vlan-100"}]"#);
    let sysctls = by_pod["spec"]["template"]["spec"]["securityContext"]["sysctls"].as_array().unwrap();
    for name in [
        "net.ipv4.conf.all.forwarding",
        "net.ipv6.conf.default.forwarding",
        "net.ipv4.conf.default.rp_filter",
        "net.ipv4.fib_multipath_hash_policy",
        "net.ipv6.fib_multipath_hash_policy",
        "net.ipv4.fwmark_reflect",
    ] {
        assert!(sysctls.iter().any(|sysctl| sysctl["name"] == name), "{name}");
    }
    let short = json!({"k8s.v1.cni.cncf.io/networks": "vlan-100@vlan-100"});
    let mut gateway = gateway();
    gateway.spec.infrastructure.as_mut().unwrap().annotations = serde_json::from_value(short).unwrap();
    let made = deployment(&gateway, &Settings::default(), None, false).unwrap();
    assert_eq!(networks(&made), "vlan-100@vlan-100,sllbr-tuning@tuning0");
}

#[test]
fn a_pod_lives_as_long_as_it_drains_and_ten_seconds() {
    let made = made(&Settings { drain_s: 30, ..Settings::default() }, None);
    assert_eq!(made["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 40);
}

#[test]
fn readiness_gates_are_there_if_they_can_be_set() {
    let gates = plain()["spec"]["template"]["spec"]["readinessGates"].clone();
    assert_eq!(gates, json!([{"conditionType": GATES[0]}, {"conditionType": GATES[1]}]));
    let without = made(&Settings { gates: false, ..Settings::default() }, None);
    assert!(without["spec"]["template"]["spec"].get("readinessGates").is_none());
}

#[test]
fn an_operator_changes_replicas_resources_and_containers_by_name() {
    let template = "
spec:
  replicas: 4
  template:
    metadata: {annotations: {extra: 'yes'}}
    spec:
      nodeSelector: {disk: fast}
      affinity: null
      containers:
      - {name: lb, resources: {limits: {memory: 2Gi}}}
      - {name: sidecar, image: busybox}
";
    let made = made(&Settings::default(), Some(template));
    let spec = &made["spec"]["template"]["spec"];
    assert_eq!(made["spec"]["replicas"], 4);
    assert_eq!(spec["containers"][1]["resources"]["limits"]["memory"], "2Gi");
    assert_eq!(spec["containers"][1]["resources"]["requests"]["cpu"], "100m", "what is not said stays");
    assert_eq!(spec["containers"][2]["name"], "sidecar");
    assert_eq!(spec["nodeSelector"]["disk"], "fast");
    assert!(spec.get("affinity").is_none());
    assert_eq!(made["spec"]["template"]["metadata"]["annotations"]["extra"], "yes");
}

#[test]
fn an_operator_cannot_change_what_finds_the_pods() {
    let template = "
metadata: {name: other, ownerReferences: []}
spec:
  selector: {matchLabels: {app: other}}
  template: {metadata: {labels: {gateway.networking.k8s.io/gateway-name: other}}}
";
    let (made, plain) = (made(&Settings::default(), Some(template)), plain());
    for at in ["/metadata/name", "/metadata/ownerReferences", "/spec/selector", "/spec/template/metadata/labels"] {
        assert_eq!(made.pointer(at), plain.pointer(at), "{at}");
    }
}

#[test]
fn a_broken_template_is_refused_in_words() {
    for (template, word) in [("{", "no YAML"), ("- a", "must be a part"), ("spec: {replicas: many}", "no Deployment")] {
        let error = deployment(&gateway(), &Settings::default(), Some(template), false).unwrap_err();
        assert!(error.contains(word) && error.contains("data[deployment]"), "{error}");
    }
}

#[test]
fn replicas_that_someone_else_set_are_left_alone() {
    let made = deployment(&gateway(), &Settings::default(), Some("spec: {replicas: 4}"), true).unwrap();
    assert!(made["spec"].get("replicas").is_none());
}

#[test]
fn what_is_made_says_what_it_is_made_of() {
    let of = |made: &Value| made["metadata"]["annotations"][MADE_OF].as_str().unwrap().to_owned();
    assert_eq!(of(&plain()), of(&plain()));
    assert_ne!(of(&plain()), of(&made(&Settings { drain_s: 11, ..Settings::default() }, None)));
}

#[test]
fn the_budget_selects_the_pods() {
    let budget = budget(&gateway());
    assert_eq!(budget["spec"]["selector"], plain()["spec"]["selector"]);
    assert_eq!(budget["metadata"]["name"], name_of("sllb-a"));
}

#[test]
fn what_the_server_adds_changes_nothing_and_what_it_lacks_does() {
    let wanted = json!({"a": {"b": 1}, "list": [{"name": "x"}], "empty": {}});
    let mut existing = json!({"a": {"b": 1, "c": 2}, "list": [{"name": "x", "default": true}], "status": 1});
    assert!(holds(&existing, &wanted));
    existing["list"][0]["name"] = json!("y");
    assert!(!holds(&existing, &wanted));
    assert!(!holds(&json!({"a": {"b": 1}, "list": [{"name": "x"}, {"name": "y"}]}), &wanted));
}
