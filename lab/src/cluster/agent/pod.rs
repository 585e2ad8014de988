//! One Pod that runs: its processes, their restarts and their end, their readiness, and what its status says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::network::{self, Attachment};
use super::{GATEWAY_NAME, READY};
use crate::cluster::{API_PORT, SERVER};
use crate::namespace::{Namespace, ip};
use crate::process::Process;
use crate::{Lab, Signal};

/// Between the end of a container and its restart.
const RESTART: Duration = Duration::from_millis(500);
/// The interface that leads to the endpoints.
const INTERNAL: &str = "net1";

/// How often a readiness probe asks, and how long it waits: a kubelet is lazier.
const PROBE: Duration = Duration::from_millis(300);
const PROBE_PATIENCE: Duration = Duration::from_secs(1);
/// Puts credentials where a kubelet mounts them, in a mount namespace of the container's own. `$0`: the folder that holds them.
const MOUNT: &str = "mount -t tmpfs tmpfs /run && mkdir -p /run/martlet /run/secrets/kubernetes.io/serviceaccount && \
                     mount --bind \"$0\" /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"";

/// Where a Pod runs.
pub struct Place {
    pub namespace: Namespace,
    /// On the primary network.
    pub address: Ipv4Addr,
    pub attachments: Vec<Attachment>,
    /// Its credentials, if it has any.
    pub account: Option<PathBuf>,
}

/// A Pod that runs. See the module.
pub struct Running {
    name: String,
    namespace: Namespace,
    address: Ipv4Addr,
    attachments: Vec<Attachment>,
    /// What its status last said of its readiness.
    ready: bool,
    load_balancer: bool,
    has_vips: bool,
    containers: Vec<OneContainer>,
    /// When its end was asked for.
    asked: Option<Instant>,
    told: Value,
    hops: Option<BTreeSet<IpAddr>>,
    /// How often they were others.
    round: u32,
}

/// A container.
struct OneContainer {
    name: String,
    program: String,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    process: Option<Process>,
    ended: Option<Instant>,
    restarts: u32,
    /// What its readiness probe says, if it has one.
    probe: Option<Probe>,
}

/// A readiness probe: a task that asks.
struct Probe {
    ready: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Probe {
    fn start(address: SocketAddr, service: String) -> Self {
        let ready = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ready);
        let task = tokio::spawn(async move {
            loop {
                let answer = tokio::time::timeout(PROBE_PATIENCE, serves(address, &service)).await;
                told.store(answer.unwrap_or(false), Ordering::Relaxed);
                tokio::time::sleep(PROBE).await;
            }
        });
        Self { ready, task }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serves(address: SocketAddr, service: &str) -> bool {
    let Ok(endpoint) = tonic::transport::Channel::from_shared(format!("http://{address}")) else { return false };
    let Ok(channel) = endpoint.connect().await else { return false };
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await;
    answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
}

impl Running {
    pub fn new(pod: &Pod, place: Place, dir: &Path, images: &BTreeMap<String, Vec<String>>) -> Result<Self> {
        let spec = pod.spec.as_ref().context("a Pod without spec")?;
        let containers = spec.containers.iter().map(|container| prepare(pod, container, dir, images, &place));
        let containers = containers.collect::<Result<_>>()?;
        let Place { namespace, address, attachments, .. } = place;
        Ok(Self {
            name: pod.name_any(),
            namespace,
            address,
            attachments,
            ready: false,
            load_balancer: pod.labels().contains_key(GATEWAY_NAME),
            has_vips: pod.annotations().contains_key(super::VIPS),
            containers,
            asked: None,
            told: Value::Null,
            hops: None,
            round: 0,
        })
    }

    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    pub const fn is_load_balancer(&self) -> bool {
        self.load_balancer
    }

    /// Its containers and its gates are ready.
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Its end was asked for: what is sent to it now may find no way on.
    pub const fn is_ending(&self) -> bool {
        self.asked.is_some()
    }

    pub fn internal_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let internal = self.attachments.iter().filter(|attachment| attachment.interface == INTERNAL);
        internal.flat_map(|attachment| attachment.addresses.iter().map(ipnet::IpNet::addr))
    }

    /// The annotation of Multus.
    pub fn network_status(&self) -> String {
        let primary = json!({"name": "cbr0", "interface": "eth0", "ips": [self.address], "default": true, "dns": {}});
        Value::Array([primary].into_iter().chain(self.attachments.iter().map(Attachment::status)).collect()).to_string()
    }

    /// Starts containers that do not run.
    pub fn tend(&mut self, lab: &Lab) -> Result<()> {
        if self.asked.is_some() {
            return Ok(());
        }
        for container in &mut self.containers {
            if container.process.as_ref().is_some_and(|process| process.ended().is_some()) {
                container.process = None;
                container.ended = Some(Instant::now());
                container.restarts += 1;
            }
            if container.process.is_none() && container.ended.is_none_or(|ended| ended.elapsed() > RESTART) {
                let mut command = Command::new(&container.program);
                command.args(&container.arguments).envs(&container.environment);
                let name = format!("{}-{}", self.name, container.name);
                container.process = Some(lab.spawn(&name, Some(&self.namespace), command)?);
            }
        }
        Ok(())
    }

    /// What the status has to say, if that is new.
    pub fn status(&mut self, pod: &Pod) -> Option<Value> {
        let running =
            |container: &OneContainer| container.process.as_ref().is_some_and(|process| process.ended().is_none());
        let wanted = pod.annotations().get(READY).is_none_or(|ready| ready != "false");
        let ready = |container: &OneContainer| {
            let probed = container.probe.as_ref().is_none_or(|probe| probe.ready.load(Ordering::Relaxed));
            wanted && running(container) && probed
        };
        let containers_ready = self.containers.iter().all(ready);
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let mut gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
        let open = gates.all(|gate| conditions.iter().any(|c| c.type_ == gate.condition_type && c.status == "True"));
        let condition = |name: &str, holds: bool| json!({"type": name, "status": if holds { "True" } else { "False" }});
        let statuses: Vec<_> = self
            .containers
            .iter()
            .map(|container| {
                let state = if running(container) { "running" } else { "waiting" };
                json!({
                    "name": container.name, "image": container.program, "imageID": "", "ready": ready(container),
                    "restartCount": container.restarts, "state": {state: {}},
                })
            })
            .collect();
        self.ready = containers_ready && open;
        let said = json!({"status": {
            "phase": "Running",
            "podIP": self.address, "podIPs": [{"ip": self.address}],
            "conditions": [
                condition("PodScheduled", true), condition("Initialized", true),
                condition("ContainersReady", containers_ready), condition("Ready", containers_ready && open),
            ],
            "containerStatuses": statuses,
        }});
        (said != self.told).then(|| {
            self.told = said.clone();
            said
        })
    }

    /// Asks the containers to end. Whether all have, or the grace period is over.
    pub fn terminated(&mut self, pod: &Pod) -> Result<bool> {
        let processes = || self.containers.iter().filter_map(|container| container.process.as_ref());
        let Some(asked) = self.asked else {
            processes().try_for_each(|process| process.signal(Signal::Term))?;
            self.asked = Some(Instant::now());
            return Ok(false);
        };
        let grace = pod.metadata.deletion_grace_period_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(30);
        Ok(processes().all(|process| process.ended().is_some()) || asked.elapsed() > Duration::from_secs(grace))
    }

    /// Ends what still runs, and removes its namespace.
    pub fn end(self) -> Result<()> {
        for process in self.containers.iter().filter_map(|container| container.process.as_ref()) {
            process.signal(Signal::Kill)?;
            process.wait(Duration::from_secs(5))?;
        }
        ip(&["netns", "delete", self.namespace.name()])
    }

    /// Lets what the application sends from its VIPs go to `hops`.
    pub fn route_back(&mut self, hops: &BTreeSet<IpAddr>) -> Result<()> {
        if self.has_vips && self.hops.as_ref() != Some(hops) {
            network::route_back(&self.namespace, hops, self.round)?;
            self.hops = Some(hops.clone());
            self.round += 1;
        }
        Ok(())
    }
}

fn prepare(
    pod: &Pod,
    container: &Container,
    dir: &Path,
    images: &BTreeMap<String, Vec<String>>,
    place: &Place,
) -> Result<OneContainer> {
    let image = container.image.as_deref().unwrap_or_default();
    let known = images.get(image.split(':').next().unwrap_or_default());
    let mut words = known.with_context(|| format!("the lab has no image {image:?}"))?.iter().cloned();
    let mut program = words.next().context("an image without a program")?;
    // What a kubelet would mount is a folder of the Pod: paths below a mount are rewritten.
    let mut mounts = BTreeMap::new();
    for mount in container.volume_mounts.iter().flatten() {
        let folder = dir.join(&mount.name);
        std::fs::create_dir_all(&folder)?;
        // Anybody may write into an `emptyDir`.
        std::fs::set_permissions(&folder, Permissions::from_mode(0o777))?;
        mounts.insert(mount.mount_path.clone(), folder.to_string_lossy().into_owned());
    }
    let inside =
        |text: &str| mounts.iter().fold(text.to_owned(), |text, (path, folder)| text.replace(path.as_str(), folder));
    let socket = dir.join(format!("{}.sock", container.name)).to_string_lossy().into_owned();
    let mut variables: BTreeMap<String, String> = [
        ("KUBERNETES_SERVICE_HOST".to_owned(), SERVER.to_string()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), API_PORT.to_string()),
        ("MARTLET_CONTROL_SOCKET".to_owned(), socket),
    ]
    .into();
    for variable in container.env.iter().flatten() {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        let value = match field.map(|field| field.field_path.as_str()) {
            Some("metadata.name") => pod.name_any(),
            Some("metadata.namespace") => pod.namespace().unwrap_or_default(),
            Some("metadata.uid") => pod.uid().unwrap_or_default(),
            _ => variable.value.clone().unwrap_or_default(),
        };
        variables.entry(variable.name.clone()).or_insert_with(|| inside(&value));
    }
    // `$(NAME)` is a variable, as a kubelet has it.
    let expand = |text: &str| {
        variables.iter().fold(inside(text), |text, (name, value)| text.replace(&format!("$({name})"), value))
    };
    let own: Vec<_> =
        container.command.iter().chain(&container.args).flatten().map(|argument| expand(argument)).collect();
    let mut arguments: Vec<_> = words.chain(own).collect();
    let rights = rights(pod, container);
    if !rights.is_empty() {
        let confined = std::mem::replace(&mut program, "setpriv".to_owned());
        arguments.splice(0..0, rights.into_iter().chain([confined]));
    }
    if let Some(account) = &place.account {
        let account = account.to_string_lossy();
        let wrapped = ["--mount", "--propagation", "private", "sh", "-c", MOUNT, &account, &program].map(str::to_owned);
        arguments.splice(0..0, wrapped);
        "unshare".clone_into(&mut program);
    }
    let probe = container.readiness_probe.as_ref().and_then(|probe| probe.grpc.as_ref()).map(|grpc| {
        let port = u16::try_from(grpc.port).unwrap_or_default();
        Probe::start(SocketAddr::new(place.address.into(), port), grpc.service.clone().unwrap_or_default())
    });
    Ok(OneContainer {
        name: container.name.clone(),
        program,
        arguments,
        environment: variables,
        process: None,
        ended: None,
        restarts: 0,
        probe,
    })
}

/// The words for `setpriv` that give a container's program the user and the capabilities of its security context, and no others.
///
/// A runtime gives root what is granted. Another user gets it from its file, which carries the product's capabilities as permitted (ambient
/// ones stand for them here), and gets nothing where privileges must not be gained.
fn rights(pod: &Pod, container: &Container) -> Vec<String> {
    let whole = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let Some(user) = own.and_then(|own| own.run_as_user).or_else(|| whole?.run_as_user) else { return Vec::new() };
    let group = own.and_then(|own| own.run_as_group).or_else(|| whole?.run_as_group).unwrap_or_default();
    let granted = own.and_then(|own| own.capabilities.as_ref()?.add.as_deref()).unwrap_or_default();
    let granted: String = granted.iter().flat_map(|name| [",+".to_owned(), name.to_lowercase()]).collect();
    let gains = own.and_then(|own| own.allow_privilege_escalation).unwrap_or(true);
    let held = if user == 0 || gains { granted.as_str() } else { "" };
    let mut words = vec![
        format!("--reuid={user}"),
        format!("--regid={group}"),
        "--clear-groups".to_owned(),
        format!("--bounding-set=-all{granted}"),
        format!("--inh-caps=-all{held}"),
        format!("--ambient-caps=-all{held}"),
    ];
    if !gains {
        words.push("--no-new-privs".to_owned());
    }
    words.push("--".to_owned());
    words
}
