//! What the tests of the controller share: a tenant with its Roles, a running controller, Pods that look attached.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use martlet_controller::endpoints::MANAGER;
use martlet_controller::lease::Times;
use martlet_controller::{Options, run};
use martlet_lab::cluster::objects::{apply, apply_text, wait_for};
use martlet_lab::cluster::{Cluster, objects};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// What should happen at once; generous, because the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(30);
/// How long a test watches for something that must not happen.
pub const QUIET: Duration = Duration::from_secs(2);
pub const CLASS: &str = "meridio-experiment/stateless-load-balancer";

/// What was logged, for tests that ask.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

pub struct Log;

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        log().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log() -> MutexGuard<'static, Vec<u8>> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that was logged since the last call.
pub fn logged() -> String {
    String::from_utf8_lossy(&std::mem::take(&mut *log())).into_owned()
}

/// Which Roles the controller has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Roles {
    Base,
    All,
}

/// A namespace with the Roles of `deploy/rbac` bound to the lab's users.
pub struct Tenant<'c, 'lab> {
    pub cluster: &'c Cluster<'lab>,
    pub admin: Client,
    pub namespace: String,
}

impl<'c, 'lab> Tenant<'c, 'lab> {
    pub async fn new(cluster: &'c Cluster<'lab>, name: &str, roles: Roles) -> Result<Self> {
        let tenant = Self { cluster, admin: cluster.client()?, namespace: cluster.tenant(name).await? };
        apply_text(&tenant.admin, &tenant.namespace, include_str!("../../../deploy/rbac/controller.yaml")).await?;
        tenant.bind("martlet-controller-base").await?;
        if roles == Roles::All {
            tenant.bind("martlet-controller-extra").await?;
            tenant.bind_classes().await?;
        }
        Ok(tenant)
    }

    pub async fn bind(&self, role: &str) -> Result<()> {
        self.bind_to(role, "controller").await
    }

    /// Binds a Role to a user of the lab.
    pub async fn bind_to(&self, role: &str, user: &str) -> Result<()> {
        let subject = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user});
        self.put(binding(role, role, &subject)).await
    }

    /// A `ServiceAccount` for load-balancer pods, with all Roles of router and load balancer.
    pub async fn account(&self, name: &str) -> Result<()> {
        let (router, lb) =
            (include_str!("../../../deploy/rbac/router.yaml"), include_str!("../../../deploy/rbac/lb.yaml"));
        for text in [router, lb] {
            apply_text(&self.admin, &self.namespace, text).await?;
        }
        self.put(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})).await?;
        let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": self.namespace});
        for role in ["martlet-router-base", "martlet-router-extra", "martlet-lb-base"] {
            self.put(binding(&format!("{name}-{role}"), role, &subject)).await?;
        }
        Ok(())
    }

    /// `GatewayClass`es have no namespace: the binding is for the users of all tests.
    pub async fn bind_classes(&self) -> Result<()> {
        self.put(classes_binding()).await
    }

    pub async fn unbind_classes(&self) -> Result<()> {
        objects::delete(&self.admin, "", &classes_binding()).await
    }

    /// The seed's Gateway, route and Service; `infrastructure` is laid over the Gateway's.
    pub async fn seed(&self) -> Result<()> {
        self.put(gateway("sllb-a", CLASS)).await?;
        self.put(service("service-a", "sllb-a")).await?;
        self.put(route("vip-a", "service-a", &["20.0.0.1/32"])).await
    }

    pub async fn put(&self, object: Value) -> Result<()> {
        apply(&self.admin, &self.namespace, &object).await.map(drop)
    }

    pub async fn delete(&self, kind: &str, api_version: &str, name: &str) -> Result<()> {
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
        objects::delete(&self.admin, &self.namespace, &object).await
    }

    /// A Pod that is attached and ready; there is no kubelet, so we say it.
    pub async fn pod(&self, name: &str, address: &str, ready: bool) -> Result<()> {
        let status =
            json!([{"name": format!("{}/macvlan-nad-1", self.namespace), "interface": "net1", "ips": [address]}]);
        self.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "target"},
                         "annotations": {"k8s.v1.cni.cncf.io/network-status": status.to_string()}},
            "spec": {"nodeName": "lab", "containers": [{"name": "app", "image": "app"}]},
        }))
        .await?;
        self.pod_ready(name, ready).await
    }

    pub async fn pod_ready(&self, name: &str, ready: bool) -> Result<()> {
        let status = json!({"status": {"phase": "Running",
                            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
        let api = Api::<Pod>::namespaced(self.admin.clone(), &self.namespace);
        api.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await?;
        Ok(())
    }

    pub async fn slices(&self) -> Result<Vec<EndpointSlice>> {
        let api = Api::<EndpointSlice>::namespaced(self.admin.clone(), &self.namespace);
        // Kubernetes' own controller, where it runs, keeps an empty one beside them.
        let ours = format!("endpointslice.kubernetes.io/managed-by={MANAGER}");
        Ok(api.list(&ListParams::default().labels(&ours)).await?.items)
    }

    /// Waits until the endpoints are these: address, identifier, ready.
    pub async fn expect_endpoints(&self, expected: &[(&str, &str, bool)]) -> Result<()> {
        let expected: Vec<_> = expected.iter().map(|(a, i, r)| ((*a).to_owned(), (*i).to_owned(), *r)).collect();
        let what = format!("the endpoints {expected:?}");
        let mut last = Vec::new();
        let waited = wait_for(&what, LIMIT, async || {
            last = self.endpoints().await?;
            Ok((last == expected).then_some(()))
        })
        .await;
        waited.with_context(|| format!("they are {last:?}"))
    }

    pub async fn endpoints(&self) -> Result<Vec<(String, String, bool)>> {
        let mut found: Vec<_> = self
            .slices()
            .await?
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .map(|endpoint| {
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or_default();
                (endpoint.addresses.concat(), endpoint.zone.clone().unwrap_or_default(), ready)
            })
            .collect();
        found.sort();
        Ok(found)
    }

    /// Waits until an object is there and `holds`.
    pub async fn expect(&self, kind: &str, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let waited = wait_for(&format!("{kind} {name}: {what}"), LIMIT, async || {
            last = self.get(kind, name).await?;
            Ok(holds(&last).then_some(()))
        })
        .await;
        waited.with_context(|| format!("its status is {}", last["status"]))?;
        Ok(last)
    }

    /// Waits until a condition has this status and reason. Returns its message.
    pub async fn condition(
        &self,
        kind: &str,
        name: &str,
        condition: &str,
        status: &str,
        reason: &str,
    ) -> Result<String> {
        let find = |object: &Value| {
            let all = if kind == "L34Route" {
                &object["status"]["parents"][0]["conditions"]
            } else {
                &object["status"]["conditions"]
            };
            all.as_array().and_then(|all| all.iter().find(|found| found["type"] == condition)).cloned()
        };
        let what = format!("{condition} {status} {reason}");
        let object = self
            .expect(kind, name, &what, |object| {
                find(object).is_some_and(|found| found["status"] == status && found["reason"] == reason)
            })
            .await?;
        Ok(find(&object).and_then(|found| found["message"].as_str().map(str::to_owned)).unwrap_or_default())
    }

    /// Waits for an Event on the object of this name, of this reason and type, with all these words. Returns its text.
    pub async fn event(&self, object: &str, reason: &str, kind: &str, words: &[&str]) -> Result<String> {
        let mut last = Vec::new();
        let waited = wait_for(&format!("an Event {reason} on {object} with {words:?}"), LIMIT, async || {
            last = self.events(object, reason).await?;
            let is_it = |event: &&Value| {
                let note = event["note"].as_str().unwrap_or_default();
                event["type"] == kind && words.iter().all(|word| note.contains(word))
            };
            Ok(last.iter().find(is_it).and_then(|event| event["note"].as_str()).map(str::to_owned))
        })
        .await;
        waited.with_context(|| format!("there are {last:#?}"))
    }

    /// All Events of a reason on the object of this name.
    pub async fn events(&self, object: &str, reason: &str) -> Result<Vec<Value>> {
        let all = self.list("Event").await?.into_iter().map(|event| event.data);
        Ok(all.filter(|event| event["regarding"]["name"] == object && event["reason"] == reason).collect())
    }

    pub async fn get(&self, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::to_value(self.api(kind).await?.get(name).await?)?)
    }

    pub async fn list(&self, kind: &str) -> Result<Vec<DynamicObject>> {
        Ok(self.api(kind).await?.list(&ListParams::default()).await?.items)
    }

    async fn api(&self, kind: &str) -> Result<Api<DynamicObject>> {
        let (group, version) = match kind {
            "Gateway" => ("gateway.networking.k8s.io", "v1"),
            "Deployment" | "ReplicaSet" => ("apps", "v1"),
            "PodDisruptionBudget" => ("policy", "v1"),
            "EndpointSlice" => ("discovery.k8s.io", "v1"),
            "Lease" => ("coordination.k8s.io", "v1"),
            "Event" => ("events.k8s.io", "v1"),
            "L34Route" | "GatewayRouter" | "RouterState" => ("meridio.experiment.gateway.api.poc", "v1alpha1"),
            _ => ("", "v1"),
        };
        let kind = GroupVersionKind::gvk(group, version, kind);
        let (resource, _) = kube::discovery::oneshot::pinned_kind(&self.admin, &kind).await?;
        Ok(Api::namespaced_with(self.admin.clone(), &self.namespace, &resource))
    }

    /// Kind, name and version of everything that a controller could write.
    pub async fn versions(&self) -> Result<Vec<(String, String, String)>> {
        let mut found = Vec::new();
        for kind in [
            "Gateway",
            "Deployment",
            "PodDisruptionBudget",
            "EndpointSlice",
            "L34Route",
            "GatewayRouter",
            "Pod",
            "Service",
        ] {
            for object in self.list(kind).await? {
                found.push((kind.to_owned(), object.name_any(), object.resource_version().unwrap_or_default()));
            }
        }
        Ok(found)
    }

    /// That nothing is written while nothing changes.
    pub async fn expect_quiet(&self) -> Result<()> {
        // What is under way may end first.
        tokio::time::sleep(QUIET).await;
        let before = self.versions().await?;
        tokio::time::sleep(QUIET).await;
        let after = self.versions().await?;
        let changed: Vec<_> = after.iter().filter(|version| !before.contains(version)).collect();
        ensure!(changed.is_empty(), "written though nothing changed: {changed:?}");
        Ok(())
    }

    /// Starts a controller.
    pub fn controller(&self, identity: &str) -> Result<Controller> {
        self.controller_with(identity, |_| ())
    }

    pub fn controller_with(&self, identity: &str, change: impl FnOnce(&mut Options)) -> Result<Controller> {
        let (stop, stopped) = watch::channel(false);
        let mut options = Options::new(&self.namespace, identity, stopped);
        options.client = Some(self.cluster.client_of("controller")?);
        options.lease = Times {
            duration: Duration::from_secs(3),
            deadline: Duration::from_secs(2),
            retry: Duration::from_millis(300),
        };
        change(&mut options);
        Ok(Controller { stop, task: tokio::spawn(run(options)) })
    }
}

/// A controller that runs in this process.
pub struct Controller {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<()>>,
}

impl Controller {
    /// Ends it in good order.
    pub async fn stop(self) -> Result<()> {
        self.stop.send_replace(true);
        tokio::time::timeout(LIMIT, self.task).await.context("it does not stop")??
    }

    /// Ends it as a kill would: no more requests, nothing given up.
    pub fn kill(self) {
        self.task.abort();
    }
}

/// What `grpc.health.v1` at `probe` answers to a kubelet that asks for `service`.
pub async fn serves(probe: &SocketAddr, service: &str) -> Result<bool> {
    let channel = tonic::transport::Channel::from_shared(format!("http://{probe}"))?.connect().await?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await?.into_inner();
    Ok(answer.status().as_str_name() == "SERVING")
}

fn binding(name: &str, role: &str, subject: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
        "subjects": [subject],
    })
}

pub fn classes_binding() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "martlet-controller-classes"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "martlet-controller-classes"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "controller"}],
    })
}

pub fn gateway(name: &str, class: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": name},
        "spec": {
            "gatewayClassName": class,
            "listeners": [{"name": "all", "port": 4000, "protocol": "TCP"}],
            "infrastructure": {"annotations": {
                "k8s.v1.cni.cncf.io/networks": r#"[{"name":"vlan-100","interface":"vlan-100"},{"name":"macvlan-nad-1","interface":"net1"}]"#,
                "meridio-experiment/networks": r#"[{"name":"macvlan-nad-1","interface":"net1"}]"#,
                "meridio-experiment/network-subnets": r#"["169.111.100.0/24"]"#,
            }},
        },
    })
}

pub fn service(name: &str, gateway: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "labels": {"service.kubernetes.io/service-proxy-name": gateway}},
        "spec": {"clusterIP": "None",
                 "selector": {"app": "target", "meridio-experiment/dummy-service-selector": "true"}},
    })
}

pub fn route(name: &str, service: &str, vips: &[&str]) -> Value {
    json!({
        "apiVersion": "meridio.experiment.gateway.api.poc/v1alpha1", "kind": "L34Route", "metadata": {"name": name},
        "spec": {"parentRefs": [{"name": "sllb-a"}], "backendRefs": [{"name": service, "port": 1}], "priority": 10,
                 "destinationCIDRs": vips, "destinationPorts": ["4000"], "protocols": ["TCP"]},
    })
}

pub fn router(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "meridio.experiment.gateway.api.poc/v1alpha1", "kind": "GatewayRouter",
        "metadata": {"name": name, "labels": {"service.kubernetes.io/service-proxy-name": "sllb-a"}},
        "spec": {"address": address, "interface": "vlan-100",
                 "bgp": {"localASN": 8103, "remoteASN": 4_248_829_953_i64, "bfd": {"switch": true}}},
    })
}

pub fn state(pod: &str, established: bool) -> Value {
    json!({
        "apiVersion": "meridio.experiment.gateway.api.poc/v1alpha1", "kind": "RouterState", "metadata": {"name": pod},
        "spec": {"gateway": "sllb-a", "pod": pod, "ipv4Connectivity": established, "ipv6Connectivity": false,
                 "sessions": [{"router": "gateway-a-v4", "up": established,
                               "state": if established { "Established" } else { "Active" },
                               "bfd": if established { "Up" } else { "Down" }, "since": "2026-01-01T00:00:00Z",
                               "lastError": if established { Value::Null } else { json!("Control Detection Time Expired") }}],
                 "vips": [{"vip": "20.0.0.1", "announced": established, "reason": if established { Value::Null } else { json!("no IPv4 gateway router is Up") }}]},
    })
}
