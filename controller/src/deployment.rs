//! The Deployment of the load-balancer pods of a Gateway, and its `PodDisruptionBudget`.
//!
//! Pure: made of the Gateway's infrastructure, the settings of the controller and the operator's template, and of nothing else.
//! A change of a VIP, a route, a Service or a `GatewayRouter` cannot reach the template of the pods, so it rolls none.
//!
//! The template of an operator is a part of a Deployment in YAML, laid over ours: maps are merged, a list of things with names is
//! merged by name, any other value replaces ours, null removes it.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use martlet_api::crd::{Gateway, POD_NETWORKS_ANNOTATION};
use serde_json::{Map, Value, json};

use crate::gateway::LONGEST_NAME;

/// The key in the `ConfigMap` of an operator that holds the template.
pub const TEMPLATE_KEY: &str = "deployment";
/// Says of what text a Deployment was made: what differs is applied again.
pub const MADE_OF: &str = "meridio-experiment/made-of";
/// Names the Gateway of a pod, as the Gateway API has it.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// The readiness gates of a load-balancer pod.
pub const GATES: [&str; 2] = ["meridio-experiment/ipv4-connectivity", "meridio-experiment/ipv6-connectivity"];
/// Where router and load balancer meet.
const SOCKET_FOLDER: &str = "/var/lib/meridio";
/// The user of the product's image.
const USER: u32 = 65532;
const HEALTH_PORT_ROUTER: u16 = 2225;
const HEALTH_PORT_LB: u16 = 2227;

/// What the pod's network namespace must have: the list of the seed, both families.
pub const SYSCTLS: [(&str, &str); 9] = [
    ("net.ipv4.conf.all.forwarding", "1"),
    ("net.ipv4.conf.default.forwarding", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.conf.default.forwarding", "1"),
    ("net.ipv4.fib_multipath_hash_policy", "1"),
    ("net.ipv6.fib_multipath_hash_policy", "1"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.fwmark_reflect", "1"),
];
/// As above: what came to the list later.
pub const MORE_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv6.fwmark_reflect", "1"), ("net.ipv4.ip_local_port_range", "49152 65535")];

/// How the sysctls of the pods are set; most of them are unsafe for a kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sysctls {
    /// By the `tuning` plugin of this `NetworkAttachmentDefinition`, attached as the interface `tuning0`.
    Attachment(String),
    /// By `securityContext.sysctls`: the kubelet must allow them.
    Pod,
    /// Not by us.
    None,
}

/// What the controller is told about the pods it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The image of both containers.
    pub image: String,
    /// Pods of a Gateway, unless its template or an autoscaler says so.
    pub replicas: i32,
    /// How the sysctls are set.
    pub sysctls: Sysctls,
    /// How long a pod forwards on after its end was asked for, seconds.
    pub drain_s: u32,
    /// The pods' `ServiceAccount`; `None`: the default of the namespace.
    pub service_account: Option<String>,
    /// Whether the pods have readiness gates: only if the controller has the right to set them.
    pub gates: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: concat!("martlet:", env!("CARGO_PKG_VERSION")).to_owned(),
            replicas: 2,
            sysctls: Sysctls::Attachment("sllbr-tuning".to_owned()),
            drain_s: 10,
            service_account: None,
            gates: true,
        }
    }
}

/// The name of the Deployment (and of the budget) of a Gateway.
pub fn name_of(gateway: &str) -> String {
    format!("sllbr-{gateway}")
}

/// The labels by which a Gateway's pods are selected.
pub fn selector_of(gateway: &str) -> BTreeMap<String, String> {
    [(GATEWAY_NAME, gateway), ("app.kubernetes.io/name", "stateless-load-balancer-router")]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The Deployment of a Gateway, to be applied. `template` is the operator's, if there is one; `scaled` says that someone else
/// (an autoscaler, a human) has set the replicas of the existing one: they are left alone.
///
/// # Errors
/// What is wrong with the template (or, if the name is too long for a label, with the Gateway).
pub fn deployment(
    gateway: &Gateway,
    settings: &Settings,
    template: Option<&str>,
    scaled: bool,
) -> Result<Value, String> {
    let name = gateway.metadata.name.as_deref().unwrap_or_default();
    if name.len() > LONGEST_NAME {
        return Err(format!("metadata.name: `{name}`: must have at most {LONGEST_NAME} characters"));
    }
    let mut made = ours(gateway, name, settings);
    if let Some(text) = template {
        let over: Value =
            serde_saphyr::from_str(text).map_err(|error| format!("data[{TEMPLATE_KEY}]: this is no YAML: {error}"))?;
        if !over.is_object() {
            return Err(format!(
                "data[{TEMPLATE_KEY}]: must be a part of a Deployment, such as `spec: {{replicas: 3}}`"
            ));
        }
        overlay(&mut made, &over);
        let fixed = ours(gateway, name, settings);
        // What finds the pods, and what the parts agree on, is not the operator's to change.
        for at in [
            "/apiVersion",
            "/kind",
            "/metadata/name",
            "/metadata/namespace",
            "/metadata/ownerReferences",
            "/spec/selector",
        ] {
            if let (Some(made), Some(fixed)) = (made.pointer_mut(at), fixed.pointer(at)) {
                fixed.clone_into(made);
            }
        }
        if let Some(labels) = made.pointer_mut("/spec/template/metadata/labels").and_then(Value::as_object_mut) {
            labels.extend(selector_of(name).into_iter().map(|(key, value)| (key, Value::String(value))));
        }
        serde_json::from_value::<Deployment>(made.clone())
            .map_err(|error| format!("data[{TEMPLATE_KEY}]: this makes no Deployment: {error}"))?;
    }
    if scaled && let Some(spec) = made.pointer_mut("/spec").and_then(Value::as_object_mut) {
        spec.remove("replicas");
    }
    let text = made.to_string();
    made["metadata"]["annotations"][MADE_OF] = Value::String(format!("{:016x}", fingerprint(text.as_bytes())));
    Ok(made)
}

/// The budget of a Gateway's pods: one at a time may be evicted.
pub fn budget(gateway: &Gateway) -> Value {
    let name = gateway.metadata.name.as_deref().unwrap_or_default();
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(gateway, name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector_of(name)}},
    })
}

fn metadata(gateway: &Gateway, name: &str) -> Value {
    let infrastructure = gateway.spec.infrastructure.as_ref();
    let mut labels = infrastructure.and_then(|i| i.labels.clone()).unwrap_or_default();
    labels.extend(selector_of(name));
    json!({
        "name": name_of(name),
        "namespace": gateway.metadata.namespace,
        "labels": labels,
        "annotations": infrastructure.and_then(|i| i.annotations.clone()).unwrap_or_default(),
        "ownerReferences": [{
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "name": name,
            "uid": gateway.metadata.uid,
            "controller": true,
            // True would need the right to update the finalizers of Gateways.
            "blockOwnerDeletion": false,
        }],
    })
}

fn ours(gateway: &Gateway, name: &str, settings: &Settings) -> Value {
    let whole = metadata(gateway, name);
    let mut annotations = whole["annotations"].clone();
    if let Sysctls::Attachment(attachment) = &settings.sysctls {
        let networks = attached(annotations[POD_NETWORKS_ANNOTATION].as_str().unwrap_or_default(), attachment);
        annotations[POD_NETWORKS_ANNOTATION] = Value::String(networks);
    }
    let mut pod = json!({
        "containers": [
            container("router", name, settings, &["NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW"], HEALTH_PORT_ROUTER),
            container("lb", name, settings, &["NET_ADMIN"], HEALTH_PORT_LB),
        ],
        "volumes": [
            {"name": "socket", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ],
        "terminationGracePeriodSeconds": settings.drain_s + 10,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "podAffinityTerm": {
                "topologyKey": "kubernetes.io/hostname",
                "labelSelector": {"matchLabels": selector_of(name)},
            },
        }]}},
    });
    if settings.sysctls == Sysctls::Pod {
        let all = SYSCTLS.iter().chain(&MORE_SYSCTLS);
        pod["securityContext"]["sysctls"] = all.map(|(name, value)| json!({"name": name, "value": value})).collect();
    }
    if settings.gates {
        pod["readinessGates"] = GATES.iter().map(|gate| json!({"conditionType": gate})).collect();
    }
    if let Some(account) = &settings.service_account {
        pod["serviceAccountName"] = Value::String(account.clone());
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": whole,
        "spec": {
            "replicas": settings.replicas,
            "selector": {"matchLabels": selector_of(name)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": whole["labels"], "annotations": annotations}, "spec": pod},
        },
    })
}

/// The annotation of Multus with one attachment more. What is no JSON is the short form: names with commas.
fn attached(networks: &str, attachment: &str) -> String {
    let entry = json!({"name": attachment, "interface": "tuning0"});
    match serde_json::from_str::<Vec<Value>>(networks) {
        Ok(mut list) => {
            list.push(entry);
            Value::Array(list).to_string()
        }
        Err(_) if networks.trim().is_empty() => json!([entry]).to_string(),
        Err(_) => format!("{networks},{attachment}@tuning0"),
    }
}

fn container(part: &str, gateway: &str, settings: &Settings, capabilities: &[&str], health_port: u16) -> Value {
    let field = |path: &str| json!({"fieldRef": {"apiVersion": "v1", "fieldPath": path}});
    let probe = |service: &str, failures: u32| {
        json!({"grpc": {"port": health_port, "service": service}, "periodSeconds": 3, "timeoutSeconds": 1,
               "failureThreshold": failures})
    };
    json!({
        "name": part,
        "image": settings.image,
        "args": [part, "--gateway", gateway],
        "env": [
            {"name": "NFE_NAMESPACE", "valueFrom": field("metadata.namespace")},
            {"name": "MARTLET_POD_NAME", "valueFrom": field("metadata.name")},
            {"name": "MARTLET_POD_UID", "valueFrom": field("metadata.uid")},
            {"name": "MARTLET_DRAIN", "value": settings.drain_s.to_string()},
            {"name": "NFE_LB_SOCKET", "value": format!("unix://{SOCKET_FOLDER}/lb.sock")},
        ],
        "volumeMounts": [
            {"name": "socket", "mountPath": SOCKET_FOLDER},
            {"name": "run", "mountPath": "/run/martlet"},
        ],
        "startupProbe": probe("", 20),
        "livenessProbe": probe("", 5),
        "readinessProbe": probe("Readiness", 1),
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        // The kernel gives a user other than root what its file carries, and ignores the file where privileges must not be gained.
        "securityContext": {
            "allowPrivilegeEscalation": true,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": capabilities},
        },
    })
}

/// Lays `over` over `base`: see the module.
fn overlay(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(key);
                } else if let Some(old) = base.get_mut(key) {
                    overlay(old, value);
                } else {
                    base.insert(key.clone(), value.clone());
                }
            }
        }
        (Value::Array(base), Value::Array(over)) if named(base) && named(over) => {
            for item in over {
                match base.iter_mut().find(|old| old["name"] == item["name"]) {
                    Some(old) => overlay(old, item),
                    None => base.push(item.clone()),
                }
            }
        }
        (base, over) => over.clone_into(base),
    }
}

/// A list of things with names.
fn named(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(|item| item.get("name").is_some_and(Value::is_string))
}

/// FNV-1a, 64 bits: the same on every machine and in every version.
fn fingerprint(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, octet| (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether `existing` holds everything that `wanted` says: what the server added does not count.
pub fn holds(existing: &Value, wanted: &Value) -> bool {
    match (existing, wanted) {
        (Value::Object(existing), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| existing.get(key).map_or(nothing(value), |old| holds(old, value)))
        }
        (Value::Array(existing), Value::Array(wanted)) => {
            existing.len() == wanted.len() && existing.iter().zip(wanted).all(|(old, new)| holds(old, new))
        }
        (existing, wanted) => existing == wanted,
    }
}

/// The server leaves out what says nothing.
fn nothing(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}
