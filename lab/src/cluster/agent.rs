//! Plays the kubelet, the scheduler, Multus and the CNI plugins for the Pods of one namespace. For tests only.
//!
//! A Pod is a network namespace of the lab; its containers are processes in it. `eth0` leads to the primary network and the API
//! server; attachments are links to bridges in a fabric namespace, as the `NetworkAttachmentDefinition`s say. A Pod that names a
//! `ServiceAccount` has a token of it where a kubelet would mount it. Sysctls of the Pod, readiness probes (gRPC), restarts, grace
//! periods and readiness gates are as a kubelet has them; other probes are not asked, and an annotation of the lab can say that an
//! application is not ready.
//!
//! What an application network agent would do, it does too: the VIPs that [`VIPS`] names are put on `lo`, and what comes from them goes
//! back to all load-balancer pods that are ready.

mod network;
mod pod;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use self::network::Fabric;
use self::pod::{Place, Running};
use super::Cluster;
use crate::namespace::Namespace;

/// Annotation of a Pod: VIPs of its application, with commas.
pub const VIPS: &str = "lab/vips";
/// Annotation of a Pod: `false` as long as its application shall not be ready.
pub const READY: &str = "lab/ready";
/// Annotation of a Pod: its network namespace, as `ip netns` has it.
pub const NAMESPACE: &str = "lab/namespace";
/// Label of a load-balancer pod.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// The node that all Pods are on. There is no object of it.
const NODE: &str = "lab";
/// The most Pods that one agent ever starts.
const MOST_PODS: u16 = 1000;
/// How often is looked.
const TICK: Duration = Duration::from_millis(100);
/// An agent. See the module.
pub struct Agent<'c, 'lab> {
    cluster: &'c Cluster<'lab>,
    client: Client,
    tenant: String,
    fabric: Fabric<'lab>,
    /// By the name of an image without its tag: the program and its first arguments.
    images: BTreeMap<String, Vec<String>>,
    pods: BTreeMap<String, Running>,
    started: u16,
    /// Where the numbers of its pods begin: two agents of one cluster share the primary network.
    first: u16,
}

impl<'c, 'lab> Agent<'c, 'lab> {
    /// An agent for the namespace `tenant`. Bridges that attachments name are in `fabric`.
    ///
    /// # Errors
    /// There is no client.
    pub fn new(
        cluster: &'c Cluster<'lab>,
        tenant: &str,
        fabric: &Namespace,
        images: BTreeMap<String, Vec<String>>,
    ) -> Result<Self> {
        static AGENTS: AtomicU16 = AtomicU16::new(0);
        Ok(Self {
            cluster,
            client: cluster.client()?,
            tenant: tenant.to_owned(),
            fabric: Fabric::new(cluster.lab(), fabric),
            images,
            pods: BTreeMap::new(),
            started: 0,
            first: AGENTS.fetch_add(1, Ordering::Relaxed) * MOST_PODS,
        })
    }

    /// Works until it is dropped.
    ///
    /// # Errors
    /// A Pod cannot be made from what it says. A server that does not answer is no error.
    pub async fn run(&mut self) -> Result<()> {
        loop {
            match self.tick().await {
                Err(error) if error.downcast_ref::<kube::Error>().is_some_and(is_outage) => {}
                result => result?,
            }
            tokio::time::sleep(TICK).await;
        }
    }

    async fn tick(&mut self) -> Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.tenant);
        // Containers that ended start again, whether the API server lives or not.
        for running in self.pods.values_mut() {
            running.tend(self.cluster.lab())?;
        }
        let mut there = BTreeSet::new();
        let pods = api.list(&ListParams::default()).await?;
        let definitions = self.definitions().await?;
        for pod in pods {
            let uid = pod.uid().unwrap_or_default();
            there.insert(uid.clone());
            if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()) {
                self.bind(&api, &pod).await?;
                continue;
            }
            if pod.metadata.deletion_timestamp.is_some() {
                self.terminate(&api, &pod, &uid).await?;
                continue;
            }
            if !self.pods.contains_key(&uid) {
                let running =
                    self.start(&pod, &definitions).await.with_context(|| format!("start pod {}", pod.name_any()))?;
                let annotation = json!({"metadata": {"annotations": {
                    "k8s.v1.cni.cncf.io/network-status": running.network_status(),
                    NAMESPACE: running.namespace().name(),
                }}});
                self.pods.insert(uid.clone(), running);
                api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(annotation)).await?;
            }
            if let Some(running) = self.pods.get_mut(&uid)
                && let Some(status) = running.status(&pod)
            {
                api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await?;
            }
        }
        // Deleted by force.
        let gone: Vec<_> = self.pods.keys().filter(|uid| !there.contains(*uid)).cloned().collect();
        for uid in gone {
            if let Some(running) = self.pods.remove(&uid) {
                self.end(running)?;
            }
        }
        self.route_back()
    }

    async fn bind(&self, api: &Api<Pod>, pod: &Pod) -> Result<()> {
        let name = pod.name_any();
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "namespace": self.tenant},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
        });
        match api.create_subresource::<Value, Value>("binding", &name, &PostParams::default(), &binding).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn start(&mut self, pod: &Pod, definitions: &BTreeMap<String, Value>) -> Result<Running> {
        self.started += 1;
        let number = self.first + self.started;
        let role = format!("p{number}");
        let namespace = self.cluster.lab().namespace(&role)?;
        let dir = self.cluster.lab().dir().join(format!("{}-{role}", pod.name_any()));
        std::fs::create_dir(&dir)?;
        // Its containers may be of any user.
        std::fs::set_permissions(&dir, Permissions::from_mode(0o777))?;
        let address = self.cluster.attach(&namespace, &role, number)?;
        let spec = pod.spec.as_ref().context("a Pod without spec")?;
        for sysctl in spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten()) {
            namespace.sysctl(&sysctl.name, &sysctl.value)?;
        }
        let attachments = self.fabric.attach(&namespace, &role, pod, &self.tenant, definitions)?;
        if let Some(vips) = pod.annotations().get(VIPS) {
            network::own(&namespace, vips)?;
        }
        let account = match &spec.service_account_name {
            Some(account) => Some(self.credentials(account, &dir).await?),
            None => None,
        };
        let place = Place { namespace, address, attachments, account };
        let mut running = Running::new(pod, place, &dir, &self.images)?;
        running.tend(self.cluster.lab())?;
        Ok(running)
    }

    /// A folder with what a kubelet would mount: a token of the `ServiceAccount`, the server's certificate, the namespace.
    async fn credentials(&self, account: &str, dir: &Path) -> Result<PathBuf> {
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), &self.tenant);
        let asked = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() },
            ..TokenRequest::default()
        };
        let given = api.create_token_request(account, &PostParams::default(), &asked).await?;
        let token = given.status.context("a token without status")?.token;
        let folder = dir.join("account");
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("token"), token)?;
        std::fs::write(folder.join("namespace"), &self.tenant)?;
        std::fs::copy(self.cluster.certificate(), folder.join("ca.crt"))?;
        Ok(folder)
    }

    async fn terminate(&mut self, api: &Api<Pod>, pod: &Pod, uid: &str) -> Result<()> {
        if let Some(running) = self.pods.get_mut(uid) {
            if let Some(status) = running.status(pod) {
                api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await?;
            }
            if !running.terminated(pod)? {
                return Ok(());
            }
        }
        if let Some(running) = self.pods.remove(uid) {
            self.end(running)?;
        }
        match api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn end(&mut self, running: Running) -> Result<()> {
        self.fabric.release(running.attachments());
        running.end()
    }

    /// The configurations of the `NetworkAttachmentDefinition`s, by name.
    async fn definitions(&self) -> Result<BTreeMap<String, Value>> {
        let kind = GroupVersionKind::gvk("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition");
        let mut found = BTreeMap::new();
        for object in self.list(&kind, Some("network-attachment-definitions")).await? {
            let config = object.data["spec"]["config"].as_str().unwrap_or("{}");
            let name = object.name_any();
            let config = serde_json::from_str(config)
                .with_context(|| format!("NetworkAttachmentDefinition {name}: {config}"))?;
            found.insert(name, config);
        }
        Ok(found)
    }

    async fn list(&self, kind: &GroupVersionKind, plural: Option<&str>) -> Result<Vec<DynamicObject>> {
        let resource = match plural {
            Some(plural) => kube::api::ApiResource::from_gvk_with_plural(kind, plural),
            None => kube::api::ApiResource::from_gvk(kind),
        };
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &self.tenant, &resource);
        Ok(api.list(&ListParams::default()).await?.items)
    }

    /// What an application sends from its VIPs goes to all load balancers that know a way on: one that has no session yet, or that
    /// ends, may have none.
    fn route_back(&mut self) -> Result<()> {
        let hops: BTreeSet<_> = self
            .pods
            .values()
            .filter(|pod| pod.is_load_balancer() && pod.is_ready() && !pod.is_ending())
            .flat_map(Running::internal_addresses)
            .collect();
        for pod in self.pods.values_mut() {
            pod.route_back(&hops)?;
        }
        Ok(())
    }
}

/// The server does not answer, or answers that it is not ready: a kubelet goes on.
fn is_outage(error: &kube::Error) -> bool {
    !matches!(error, kube::Error::Api(status) if status.code != 409 && status.code < 500)
}
