//! A large namespace on a real API server: how soon a Pod's readiness is a slot in every load balancer, what that costs the server,
//! and what it costs us in memory.
//!
//! Controller and load balancers are the product's own processes; Pods are objects only, and the measuring process says what a kubelet
//! would say. When a load balancer had its new table is taken from its own log.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Options, Row};
use crate::cluster::{ADMIN, Cluster, objects};
use crate::demo::topology::find_martlet;
use crate::lab::{End, Lab};
use crate::process::Process;

/// Requests that are under way at once while the objects are made.
const AT_ONCE: usize = 16;
const LIMIT: Duration = Duration::from_mins(3);
const ROUTES: usize = 10;
const ENDPOINTS: usize = 50;
const CLASS: &str = "meridio-experiment/stateless-load-balancer";
const GROUP: &str = "meridio.experiment.gateway.api.poc/v1alpha1";

/// Measures all of it.
pub fn measure(options: &Options) -> Result<Vec<Row>> {
    let (gateways, runs) = if options.quick { (10, 20) } else { (100, 100) };
    let lab = Lab::new(End::Remove)?;
    let cluster = Cluster::start(&lab)?;
    let result = cluster.inside(async |cluster| Scene::build(cluster, gateways).await?.measure(gateways, runs).await);
    result.inspect_err(|_| {
        lab.mark_failed();
        eprintln!("{}", lab.tails(10));
    })
}

struct Scene<'c, 'lab> {
    cluster: &'c Cluster<'lab>,
    client: Client,
    namespace: String,
    controller: Process,
    balancers: Vec<Process>,
}

impl<'c, 'lab> Scene<'c, 'lab> {
    async fn build(cluster: &'c Cluster<'lab>, gateways: usize) -> Result<Self> {
        let (client, namespace) = (cluster.client()?, cluster.tenant("bench").await?);
        let begin = Instant::now();
        let mut all = Vec::new();
        for gateway in 0..gateways {
            all.extend(objects_of(gateway));
        }
        create(&client, &namespace, all).await?;
        let mut pods = Vec::new();
        for gateway in 0..gateways {
            pods.extend((0..ENDPOINTS).map(|number| pod(&namespace, gateway, number)));
        }
        create(&client, &namespace, pods).await?;
        println!(
            "    {gateways} Gateways with {ROUTES} L34Routes and {ENDPOINTS} Pods each, made in {:.0} s",
            begin.elapsed().as_secs_f32()
        );

        let martlet = find_martlet()?;
        let lab = cluster.lab();
        let kubeconfig = lab.dir().join("bench.kubeconfig");
        std::fs::write(&kubeconfig, cluster.kubeconfig_of(ADMIN))?;
        let start = Instant::now();
        let mut command = Command::new(&martlet);
        command.args(["controller", "--namespace", &namespace, "--identity", "bench", "--health", ""]);
        let controller = lab.spawn("controller", Some(cluster.namespace()), with(command, &kubeconfig))?;
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), &namespace);
        objects::wait_for("all endpoints to be in slices", LIMIT, async || {
            let all = slices.list(&ListParams::default().match_any()).await?;
            let found: usize = all.items.iter().map(|slice| slice.endpoints.len()).sum();
            Ok((found == gateways * ENDPOINTS).then_some(()))
        })
        .await?;
        println!(
            "    all endpoints are in slices {:.1} s after the start of the controller",
            start.elapsed().as_secs_f32()
        );
        // What it costs to begin is no cost of a change.
        let mut before = Vec::new();
        let written = Api::<DynamicObject>::namespaced_with(client.clone(), &namespace, &route_resource());
        objects::wait_for("every status to be written", LIMIT, async || {
            let all = written.list_metadata(&ListParams::default().match_any()).await?;
            let versions: Vec<_> = all.items.into_iter().map(|route| route.metadata.resource_version).collect();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let quiet = versions == before;
            before = versions;
            let made = cluster.kubectl(&["get", "deployments", "-n", &namespace, "-o", "name"])?.lines().count();
            Ok((quiet && made == gateways).then_some(()))
        })
        .await?;
        println!("    every status is written {:.1} s after its start", start.elapsed().as_secs_f32());

        let fabric = lab.namespace("fabric")?;
        fabric.bridge("internal", &[])?;
        let mut balancers = Vec::new();
        for number in 0..2_u16 {
            let role = format!("lb{number}");
            let pod = lab.namespace(&role)?;
            cluster.attach(&pod, &role, number + 1)?;
            let port = format!("lb{number}-net1");
            lab.link((&pod, "net1"), (&fabric, &port))?;
            fabric.ip(&format!("link set {port} master internal"))?;
            pod.ip(&format!("addr add 10.1.255.{}/16 dev net1", number + 1))?;
            pod.sysctl("net.ipv4.conf.all.forwarding", "1")?;
            let mut command = Command::new(&martlet);
            command
                .args(["lb", "--gateway", "gateway-0", "--namespace", &namespace, "--metrics", "", "--health", ""])
                .args(["--control-socket", ""])
                .env("NFE_LB_SOCKET", format!("unix://{}/{role}.sock", lab.dir().display()));
            balancers.push(lab.spawn(&role, Some(&pod), with(command, &kubeconfig))?);
        }
        let scene = Self { cluster, client, namespace, controller, balancers };
        let all: BTreeSet<usize> = (0..ENDPOINTS).collect();
        scene.slots(&all).await?;
        Ok(scene)
    }

    async fn measure(&self, gateways: usize, runs: usize) -> Result<Vec<Row>> {
        let all: BTreeSet<usize> = (0..ENDPOINTS).collect();
        let writes = self.watch_slices().await?;
        let before = self.requests()?;
        let (mut taken, mut written) = (Vec::new(), Vec::new());
        for run in 0..runs {
            let number = run % ENDPOINTS;
            let without: BTreeSet<usize> = all.iter().copied().filter(|slot| *slot != number).collect();
            self.set_ready(number, false).await?;
            self.slots(&without).await?;
            let start = Timestamp::now();
            self.set_ready(number, true).await?;
            let seen = self.slots(&all).await?;
            let since = |at: Timestamp| anyhow::Ok(start.until(at)?.total(k8s_openapi::jiff::Unit::Millisecond)?);
            taken.push(since(seen)?);
            let first = lock(&writes).iter().copied().find(|at| *at >= start);
            written.extend(first.map(since).transpose()?);
        }
        written.sort_by(f64::total_cmp);
        if let (Some(median), Some(most)) = (written.get(written.len() / 2), written.last()) {
            println!(
                "    of which the controller takes {median:.0} ms, at most {most:.0} ms, until a watch tells the slice"
            );
        }
        let changes = f64::from(u32::try_from(runs * 2)?);
        let mut requests = 0.0;
        for (what, after) in self.requests()? {
            let of = (after - before.get(&what).copied().unwrap_or_default()) / changes;
            if of > 0.0 {
                println!("    requests a change: {of:.2} {what}");
            }
            requests += of;
        }
        // Each change is one request of the measuring process.
        requests -= 1.0;
        let scale = format!("{gateways} Gateways, {} L34Routes, {} endpoints", gateways * ROUTES, gateways * ENDPOINTS);
        let mut sorted = taken.clone();
        sorted.sort_by(f64::total_cmp);
        let p99 = sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(f64::NAN);
        let mut slots =
            Row::below(&format!("cluster: Pod ready -> slot in every lb, p99 ({scale})"), "ms", 1000.0, taken);
        (slots.martlet, slots.holds) = (p99, p99 < 1000.0);
        let mut rows = vec![
            slots,
            Row::below("cluster: API requests of ours per change of a Pod", "requests", 3.0, vec![requests]),
            Row::below(
                &format!("cluster: memory of the controller ({scale})"),
                "MB",
                256.0,
                vec![memory_mb(&self.controller)?],
            ),
        ];
        let lbs: Vec<f64> = self.balancers.iter().map(memory_mb).collect::<Result<_>>()?;
        rows.push(Row::below(&format!("cluster: memory of an lb ({scale})"), "MB", 128.0, lbs));
        ensure!(self.controller.ended().is_none(), "the controller ended:\n{}", self.controller.tail(20));
        Ok(rows)
    }

    /// When a watch told a change of the slices of the first Service.
    async fn watch_slices(&self) -> Result<Arc<Mutex<Vec<Timestamp>>>> {
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &self.namespace);
        let params = WatchParams::default().labels("kubernetes.io/service-name=service-0").timeout(290);
        let told = Arc::new(Mutex::new(Vec::new()));
        let mut events = api.watch(&params, "0").await?.boxed();
        let writer = Arc::clone(&told);
        tokio::spawn(async move {
            while let Some(Ok(_)) = events.next().await {
                lock(&writer).push(Timestamp::now());
            }
        });
        Ok(told)
    }

    async fn set_ready(&self, number: usize, ready: bool) -> Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let patch = json!({"status": status(ready)});
        api.patch_status(&pod_name(0, number), &PatchParams::default(), &Patch::Strategic(patch)).await?;
        Ok(())
    }

    /// Waits until the last table of every load balancer has exactly these identifiers. Returns when the later one had it.
    async fn slots(&self, wanted: &BTreeSet<usize>) -> Result<Timestamp> {
        let wanted = format!("identifiers={wanted:?}");
        let start = Instant::now();
        loop {
            let seen: Vec<_> = self.balancers.iter().map(|lb| last_table(&lb.log())).collect();
            if seen.iter().all(|seen| seen.as_ref().is_some_and(|(_, line)| line.contains(&wanted))) {
                return seen.into_iter().flatten().map(|(at, _)| at).max().context("no load balancer");
            }
            ensure!(
                start.elapsed() < LIMIT,
                "waited for {wanted}; last seen: {seen:?}\n{}",
                self.cluster.lab().tails(5)
            );
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// Requests of objects that the API server has answered, without watches and leases: verb, resource and subresource.
    fn requests(&self) -> Result<BTreeMap<String, f64>> {
        const KINDS: [&str; 9] = [
            "pods",
            "endpointslices",
            "gateways",
            "l34routes",
            "services",
            "deployments",
            "poddisruptionbudgets",
            "gatewayrouters",
            "events",
        ];
        let text = self.cluster.kubectl(&["get", "--raw", "/metrics"])?;
        let mut counted = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
            let label = |name: &str| {
                let (_, rest) = line.split_once(&format!("{name}=\""))?;
                rest.split_once('"').map(|(value, _)| value)
            };
            let (verb, resource) = (label("verb").unwrap_or_default(), label("resource").unwrap_or_default());
            if verb == "WATCH" || !KINDS.contains(&resource) {
                continue;
            }
            let count: f64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
            let what = format!("{verb} {resource} {}", label("subresource").unwrap_or_default());
            *counted.entry(what.trim_end().to_owned()).or_default() += count;
        }
        Ok(counted)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with(mut command: Command, kubeconfig: &std::path::Path) -> Command {
    command.env("KUBECONFIG", kubeconfig);
    command
}

/// The last line of a log that tells of the IPv4 table, and its time.
fn last_table(log: &str) -> Option<(Timestamp, String)> {
    let line = log.lines().rev().find(|line| line.contains("Maglev table") && line.contains("IPv4"))?;
    Some((line.split_whitespace().next()?.parse().ok()?, line.to_owned()))
}

fn memory_mb(process: &Process) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

fn objects_of(gateway: usize) -> Vec<Value> {
    let (name, service) = (format!("gateway-{gateway}"), format!("service-{gateway}"));
    let networks = r#"[{"name":"internal","interface":"net1"}]"#;
    let mut all = vec![
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": name},
               "spec": {"gatewayClassName": CLASS, "listeners": [{"name": "all", "port": 4000, "protocol": "TCP"}],
                        "infrastructure": {"annotations": {
                            "k8s.v1.cni.cncf.io/networks": networks, "meridio-experiment/networks": networks,
                            "meridio-experiment/network-subnets": r#"["10.1.0.0/16"]"#}}}}),
        json!({"apiVersion": "v1", "kind": "Service",
               "metadata": {"name": service, "labels": {"service.kubernetes.io/service-proxy-name": name}},
               "spec": {"clusterIP": "None", "selector": {"app": service, "meridio-experiment/dummy-service-selector": "true"}}}),
    ];
    all.extend((0..ROUTES).map(|route| {
        json!({"apiVersion": GROUP, "kind": "L34Route", "metadata": {"name": format!("route-{gateway}-{route}")},
               "spec": {"parentRefs": [{"name": name}], "backendRefs": [{"name": service, "port": 1}], "priority": 10,
                        "destinationCIDRs": [format!("20.{gateway}.0.{route}/32")], "destinationPorts": ["4000"],
                        "protocols": ["TCP"]}})
    }));
    all
}

fn route_resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("meridio.experiment.gateway.api.poc", "v1alpha1", "L34Route"))
}

fn pod_name(gateway: usize, number: usize) -> String {
    format!("target-{gateway}-{number:02}")
}

fn pod(namespace: &str, gateway: usize, number: usize) -> Value {
    let address = format!("10.1.{gateway}.{}", number + 1);
    let networks = json!([{"name": format!("{namespace}/internal"), "interface": "net1", "ips": [address]}]);
    json!({"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": pod_name(gateway, number), "labels": {"app": format!("service-{gateway}")},
                        "annotations": {"k8s.v1.cni.cncf.io/network-status": networks.to_string()}},
           "spec": {"nodeName": "lab", "containers": [{"name": "app", "image": "app"}]},
           "status": status(true)})
}

fn status(ready: bool) -> Value {
    let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" }});
    json!({"phase": "Running", "conditions": [condition]})
}

/// Makes objects, many at once; of Pods the status too.
async fn create(client: &Client, namespace: &str, all: Vec<Value>) -> Result<()> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let mut resources = BTreeMap::new();
    for object in all {
        let (version, kind) =
            (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default());
        let resource = resources.entry(kind.to_owned()).or_insert_with(|| {
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
        });
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, resource);
        let permit = Arc::clone(&room).acquire_owned().await?;
        tasks.spawn(async move {
            let made: DynamicObject = serde_json::from_value(object)?;
            let name = made.metadata.name.clone().unwrap_or_default();
            api.create(&PostParams::default(), &made).await.with_context(|| format!("create {name}"))?;
            if made.data["status"].is_object() {
                let patch = Patch::Merge(json!({"status": made.data["status"]}));
                api.patch_status(&name, &PatchParams::default(), &patch).await?;
            }
            drop(permit);
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}
