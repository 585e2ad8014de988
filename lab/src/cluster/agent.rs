//! Plays the kubelet, the scheduler, Multus and the CNI plugins for the Pods of one namespace. For tests only.
//!
//! A Pod is a network namespace of the lab; its containers are processes in it. Attachments are links to bridges in a fabric
//! namespace, as the `NetworkAttachmentDefinition`s say. A restart of a container, a grace period and readiness gates are as a kubelet
//! has them; probes are not asked: a container that runs is ready, unless an annotation of the lab says otherwise.
//!
//! What an application network agent would do, it does too: the VIPs that [`VIPS`] names are put on `lo`, and what comes from them goes
//! back to all load-balancer pods.

mod network;
mod pod;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use self::network::Fabric;
use self::pod::Running;
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
/// How often is looked.
const TICK: Duration = Duration::from_millis(100);
/// What a load-balancer pod reads, by group, version, kind.
const MIRRORED: [(&str, &str, &str); 5] = [
    ("gateway.networking.k8s.io", "v1", "Gateway"),
    ("meridio.experiment.gateway.api.poc", "v1alpha1", "GatewayRouter"),
    ("meridio.experiment.gateway.api.poc", "v1alpha1", "L34Route"),
    ("", "v1", "Service"),
    ("discovery.k8s.io", "v1", "EndpointSlice"),
];

/// An agent. See the module.
pub struct Agent<'c, 'lab> {
    cluster: &'c Cluster<'lab>,
    client: Client,
    tenant: String,
    fabric: Fabric<'lab>,
    /// By the name of an image without its tag: the program and its first arguments.
    images: BTreeMap<String, Vec<String>>,
    pods: BTreeMap<String, Running>,
    started: usize,
    mirror: PathBuf,
    mirrored: String,
}

impl<'c, 'lab> Agent<'c, 'lab> {
    /// An agent for the namespace `tenant`. Bridges that attachments name are in `fabric`.
    ///
    /// # Errors
    /// Its folder cannot be made.
    pub fn new(
        cluster: &'c Cluster<'lab>,
        tenant: &str,
        fabric: &Namespace,
        images: BTreeMap<String, Vec<String>>,
    ) -> Result<Self> {
        let mirror = cluster.lab().dir().join(format!("mirror-{tenant}"));
        std::fs::create_dir(&mirror)?;
        Ok(Self {
            cluster,
            client: cluster.client()?,
            tenant: tenant.to_owned(),
            fabric: Fabric::new(cluster.lab(), fabric),
            images,
            pods: BTreeMap::new(),
            started: 0,
            mirror,
            mirrored: String::new(),
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
        self.mirror().await?;
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
                    self.start(&pod, &definitions).with_context(|| format!("start pod {}", pod.name_any()))?;
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

    fn start(&mut self, pod: &Pod, definitions: &BTreeMap<String, Value>) -> Result<Running> {
        self.started += 1;
        let role = format!("p{}", self.started);
        let namespace = self.cluster.lab().namespace(&role)?;
        let dir = self.cluster.lab().dir().join(format!("{}-{role}", pod.name_any()));
        std::fs::create_dir(&dir)?;
        let attachments = self.fabric.attach(&namespace, &role, pod, &self.tenant, definitions)?;
        if let Some(vips) = pod.annotations().get(VIPS) {
            network::own(&namespace, vips)?;
        }
        let mut environment = BTreeMap::new();
        if pod.labels().contains_key(GATEWAY_NAME) {
            environment.insert("MARTLET_CONFIG_DIR".to_owned(), self.mirror.to_string_lossy().into_owned());
            environment.insert("MARTLET_DRAIN".to_owned(), "1".to_owned());
        }
        let mut running = Running::new(pod, namespace, &dir, attachments, &self.images, &environment)?;
        running.tend(self.cluster.lab())?;
        Ok(running)
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

    /// Writes what the load-balancer pods read into a folder: they are started with `--config-dir`.
    async fn mirror(&mut self) -> Result<()> {
        let mut all = Vec::new();
        for (group, version, kind) in MIRRORED {
            let gvk = GroupVersionKind::gvk(group, version, kind);
            for mut object in self.list(&gvk, None).await? {
                object.metadata.managed_fields = None;
                object.types = Some(kube::core::TypeMeta { api_version: gvk.api_version(), kind: kind.to_owned() });
                all.push(serde_json::to_string(&object)?);
            }
        }
        let text = all.join("\n---\n");
        if text != self.mirrored {
            let new = self.mirror.join(".objects.new");
            std::fs::write(&new, &text)?;
            std::fs::rename(new, self.mirror.join("objects.yaml"))?;
            self.mirrored = text;
        }
        Ok(())
    }

    /// What an application sends from its VIPs goes to all load balancers that can still forward.
    fn route_back(&mut self) -> Result<()> {
        let hops: BTreeSet<_> = self
            .pods
            .values()
            .filter(|pod| pod.is_load_balancer() && !pod.is_ending())
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
