//! What the steps of the whole way share: the outside world with a real gateway, the tenant with its networks, the stand-in for
//! kubelets, and a controller that runs.
//!
//! ```text
//!  client ------ gateway (FRR) ------ bridge vlan100 ------ load-balancer pods ------ bridge internal ------ target pods
//!                                                                  |
//!                                               bridge cbr0: the primary network, with the API server
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use martlet_controller::deployment::{MORE_SYSCTLS, SYSCTLS, Sysctls};
use martlet_lab::cluster::agent::Agent;
use martlet_lab::cluster::{Cluster, objects};
use martlet_lab::demo::topology::find_martlet;
use martlet_lab::peer::Gateway as _;
use martlet_lab::peer::frr::Frr;
use martlet_lab::wait::{Seen, until};
use martlet_lab::{Lab, Namespace, probe};
use serde_json::{Value, json};

use super::play::{Controller, Roles, Tenant};

pub const VIPS: [&str; 2] = ["20.0.0.1", "2000::1"];
/// A pod is made, peers, hears its endpoints: on a busy machine.
pub const LIMIT: Duration = Duration::from_mins(1);
const PATIENCE: Duration = Duration::from_secs(5);
/// The `ServiceAccount` of the load-balancer pods: with the Roles of router and load balancer, and nothing else.
pub const ACCOUNT: &str = "sllbr";
/// How long a pod forwards on after its end was asked for.
const DRAIN_S: u32 = 3;

/// What is outside of the cluster.
pub struct Outside {
    pub client: Namespace,
    pub fabric: Namespace,
    pub frr: Frr,
}

impl Outside {
    fn build(lab: &Lab) -> Result<Self> {
        let (client, gateway, fabric) = (lab.namespace("client")?, lab.namespace("gateway")?, lab.namespace("fabric")?);
        for family in ["ipv4", "ipv6"] {
            gateway.sysctl(&format!("net.{family}.conf.all.forwarding"), "1")?;
            gateway.sysctl(&format!("net.{family}.fib_multipath_hash_policy"), "1")?;
        }
        lab.link((&client, "eth0"), (&gateway, "cli0"))?;
        lab.link((&gateway, "ext0"), (&fabric, "gateway"))?;
        fabric.bridge("vlan100", &["gateway"])?;
        fabric.bridge("internal", &[])?;
        client.ip("addr add 200.100.0.100/24 dev eth0
            addr add 200:100::100/64 dev eth0 nodad
            route add default via 200.100.0.150
            route add default via 200:100::150")?;
        gateway.ip("addr add 200.100.0.150/24 dev cli0
            addr add 200:100::150/64 dev cli0 nodad
            addr add 169.254.100.150/24 dev ext0
            addr add 100:100::150/64 dev ext0 nodad")?;
        gateway.wait_for_links(&["cli0", "ext0"])?;
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo/frr.conf");
        let frr = Frr::start(lab, &gateway, &config, 10179, "LB")?;
        Ok(Self { client, fabric, frr })
    }

    /// How many load balancers announce each VIP.
    pub fn next_hops(&self) -> Result<BTreeMap<String, usize>> {
        let learned = self.frr.learned()?;
        let count = |vip: &&str| {
            let prefix = vip.parse::<IpAddr>().map(IpNet::from).ok();
            prefix.and_then(|prefix| learned.get(&prefix)).map_or(0, Vec::len)
        };
        Ok(VIPS.iter().map(|vip| ((*vip).to_owned(), count(vip))).collect())
    }

    pub fn expect_next_hops(&self, wanted: usize) -> Result<()> {
        until(&format!("{wanted} next hops of each VIP at the gateway"), LIMIT, || {
            let hops = self.next_hops()?;
            Ok(if hops.values().all(|count| *count == wanted) {
                Seen::Yes(())
            } else {
                Seen::not_yet(format!("{hops:?}"))
            })
        })
    }

    /// The connections of the sessions that are Established at the gateway and that its BFD does not doubt: the far end of each.
    pub fn sessions(&self) -> Result<BTreeSet<(IpAddr, u64)>> {
        let healthy = self.frr.neighbors()?;
        let shown = self.frr.show("show bgp neighbors json")?;
        let connection = |(address, told): (&String, &Value)| {
            let address: IpAddr = address.parse().ok()?;
            let neighbor = healthy.get(&address)?;
            (neighbor.established && neighbor.bfd_up == Some(true)).then_some((address, told["portForeign"].as_u64()?))
        };
        Ok(shown.as_object().into_iter().flatten().filter_map(connection).collect())
    }

    /// Waits until each session has another connection than `before`, and keeps it: FRR ends a session once more when its BFD
    /// begins anew.
    pub fn expect_new_sessions(&self, before: &BTreeSet<(IpAddr, u64)>, wanted: usize) -> Result<()> {
        const CALM: usize = 20;
        let (mut last, mut calm) = (BTreeSet::new(), 0);
        until(&format!("{wanted} sessions with new connections that last"), LIMIT, || {
            let now = self.sessions()?;
            let new = now.len() == wanted
                && now.is_disjoint(before)
                && self.next_hops()?.values().all(|hops| hops * 2 == wanted);
            calm = if new && now == last { calm + 1 } else { 0 };
            last = now;
            Ok(if calm == CALM { Seen::Yes(()) } else { Seen::not_yet(format!("{last:?}, before {before:?}")) })
        })
    }

    /// Asks each VIP over TCP and UDP; who answered.
    pub fn ask(&self, times: u16) -> Result<BTreeSet<String>> {
        self.client.inside(|| {
            let mut answered = BTreeSet::new();
            for vip in VIPS {
                let target = SocketAddr::new(vip.parse()?, 4000);
                for _ in 0..times {
                    answered.insert(probe::ask_tcp(target, PATIENCE)?);
                    answered.insert(probe::ask_udp(target, 0, PATIENCE)?);
                }
            }
            anyhow::Ok(answered)
        })?
    }
}

/// Runs `work` while new connections are opened without a pause. Returns how many went well, and what the others said.
pub fn under_traffic<T>(outside: &Outside, work: impl FnOnce() -> Result<T>) -> Result<(T, usize, Vec<String>)> {
    let (stop, good, begin) = (AtomicBool::new(false), AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut bad = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                match outside.ask(1) {
                    Ok(_) => _ = good.fetch_add(1, Ordering::Relaxed),
                    Err(error) => {
                        let at = begin.elapsed().as_secs_f32();
                        bad.push(format!(
                            "{at:.2} s after the begin, after {:.2} s: {error:#}",
                            asked.elapsed().as_secs_f32()
                        ));
                    }
                }
            }
            bad
        });
        let result = work();
        stop.store(true, Ordering::Relaxed);
        let bad = traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((result?, good.load(Ordering::Relaxed), bad))
    })
}

pub fn attachment(name: &str, plugins: &Value) -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": name},
        "spec": {"config": json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins}).to_string()},
    })
}

pub fn link(bridge: &str, ranges: &[(&str, &str)]) -> Value {
    let ranges: Vec<_> =
        ranges.iter().map(|(subnet, start)| json!([{"subnet": subnet, "rangeStart": start}])).collect();
    json!([{"type": "macvlan", "master": bridge, "ipam": {"type": "host-local", "ranges": ranges}}])
}

pub fn targets(replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "target"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "example-target-application-multi"}},
            "template": {
                "metadata": {
                    "labels": {"app": "example-target-application-multi"},
                    "annotations": {
                        "k8s.v1.cni.cncf.io/networks": r#"[{"name":"macvlan-nad-1","interface":"net1"}]"#,
                        "lab/vips": VIPS.join(","),
                    },
                },
                "spec": {"containers": [{
                    "name": "app", "image": "app:1",
                    "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "args": ["--name", "$(POD)", "--vip", VIPS[0], "--vip", VIPS[1], "--tcp", "4000", "--udp", "4000"],
                }]},
            },
        },
    })
}

/// The tenant with the networks, and the objects of the demo but the endpoints.
async fn prepare(cluster: &Cluster<'_>) -> Result<String> {
    let tenant = Tenant::new(cluster, "whole-way", Roles::All).await?;
    let sysctls: serde_json::Map<_, _> =
        SYSCTLS.iter().chain(&MORE_SYSCTLS).map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let external = [("169.254.100.0/24", "169.254.100.1"), ("100:100::/64", "100:100::1")];
    let internal = [("169.111.100.0/24", "169.111.100.1"), ("fd00:111:100::/64", "fd00:111:100::1")];
    tenant.put(attachment("vlan-100", &link("vlan100", &external))).await?;
    tenant.put(attachment("macvlan-nad-1", &link("internal", &internal))).await?;
    // A real cluster's chain begins with a plugin that makes an interface: `tuning` alone has none.
    tenant.put(attachment("sllbr-tuning", &json!([{"type": "dummy"}, {"type": "tuning", "sysctl": sysctls}]))).await?;
    tenant.account(ACCOUNT).await?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    for file in ["gateway.yaml", "gateway-routers.yaml", "routes.yaml", "service.yaml"] {
        let text = std::fs::read_to_string(folder.join(file))?;
        objects::apply_text(&tenant.admin, &tenant.namespace, &text).await.context(file)?;
    }
    Ok(tenant.namespace)
}

/// Everything, while it runs.
pub struct Stage<'c, 'lab> {
    pub tenant: Tenant<'c, 'lab>,
    pub outside: &'c Outside,
    controller: Mutex<Option<Controller>>,
}

impl Stage<'_, '_> {
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.tenant.cluster.kubectl(&[&["-n", &self.tenant.namespace], arguments].concat())
    }

    /// Starts the controller, in place of the one that runs.
    pub async fn control(&self, identity: &str, sysctls: Sysctls) -> Result<()> {
        self.stop().await?;
        let controller = self.tenant.controller_with(identity, |options| {
            options.settings.service_account = Some(ACCOUNT.to_owned());
            options.settings.drain_s = DRAIN_S;
            options.settings.sysctls = sysctls;
        })?;
        *self.controller.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(controller);
        Ok(())
    }

    pub async fn stop(&self) -> Result<()> {
        let controller = self.controller.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        match controller {
            Some(controller) => controller.stop().await,
            None => Ok(()),
        }
    }

    /// The load-balancer pods that do not end: names and uids.
    pub async fn balancers(&self) -> Result<BTreeMap<String, Value>> {
        let pods = self.tenant.list("Pod").await?;
        let mut found = BTreeMap::new();
        for pod in pods {
            let pod = serde_json::to_value(pod)?;
            let metadata = &pod["metadata"];
            let of = &metadata["labels"]["gateway.networking.k8s.io/gateway-name"];
            if of == "sllb-a" && metadata["deletionTimestamp"].is_null() {
                found.insert(metadata["name"].as_str().unwrap_or_default().to_owned(), pod);
            }
        }
        Ok(found)
    }

    /// Waits until so many load balancers are ready and none is left of others, and the gateway sees them.
    pub async fn settled(&self, wanted: usize) -> Result<()> {
        objects::wait_for(&format!("{wanted} ready load-balancer pods"), LIMIT, async || {
            let pods = self.balancers().await?;
            let ready = pods.values().filter(|pod| is_ready(pod)).count();
            Ok((pods.len() == wanted && ready == wanted).then_some(()))
        })
        .await?;
        self.outside.expect_next_hops(wanted)
    }

    /// As [`under_traffic`], and nothing may be lost.
    pub fn without_loss<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (result, good, bad) = under_traffic(self.outside, work)?;
        println!("    {what}: {good} rounds went well, {} did not", bad.len());
        ensure!(bad.is_empty() && good > 0, "{what}: of {good} rounds: {bad:#?}");
        Ok(result)
    }
}

pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A step of the way; its name is a sentence.
pub type Step = (&'static str, fn(&Stage<'_, '_>, &tokio::runtime::Handle) -> Result<()>);

/// Builds the stage and goes the steps whose names are wanted. Returns the names of those that failed, and why.
pub fn play(cluster: &Cluster<'_>, steps: &[Step]) -> Result<Vec<(&'static str, String)>> {
    let outside = Outside::build(cluster.lab())?;
    let namespace = cluster.inside(async |cluster| prepare(cluster).await)?;
    let martlet = find_martlet()?;
    let app = martlet.with_file_name("martlet-lab");
    ensure!(app.exists(), "no {}: run `cargo build --profile lab -p martlet-lab`", app.display());
    let words = |path: &Path, more: &[&str]| {
        let mut words = vec![path.to_string_lossy().into_owned()];
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    };
    let images: BTreeMap<_, _> =
        [("martlet".to_owned(), words(&martlet, &[])), ("app".to_owned(), words(&app, &["app"]))].into();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let kubelet = scope.spawn(|| {
            cluster.namespace().inside(|| {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
                runtime.block_on(async {
                    let mut agent = Agent::new(cluster, &namespace, &outside.fabric, images)?;
                    let stopped = async {
                        while !stop.load(Ordering::Relaxed) {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    };
                    tokio::select! {
                        biased;
                        () = stopped => Ok(()),
                        ended = agent.run() => ended.context("the agent"),
                    }
                })
            })?
        });
        let result = cluster.inside(async |cluster| {
            let tenant = Tenant { cluster, admin: cluster.client()?, namespace: namespace.clone() };
            let stage = Stage { tenant, outside: &outside, controller: Mutex::default() };
            stage.control("one", Sysctls::Attachment("sllbr-tuning".to_owned())).await?;
            stage.tenant.put(targets(3)).await?;
            let mut failures = Vec::new();
            let handle = tokio::runtime::Handle::current();
            for (name, step) in steps {
                let start = Instant::now();
                let result = tokio::task::block_in_place(|| step(&stage, &handle));
                let took = start.elapsed().as_secs_f32();
                match result {
                    Ok(()) => println!("test {name} ... ok ({took:.1} s)"),
                    Err(error) => {
                        println!("test {name} ... FAILED ({took:.1} s)\n    {error:#}");
                        failures.push((*name, format!("{error:#}")));
                        crate::pause();
                    }
                }
            }
            stage.stop().await?;
            Ok(failures)
        });
        stop.store(true, Ordering::Relaxed);
        let ended = kubelet.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (result, ended) {
            (Ok(failures), Ok(())) => Ok(failures),
            (Err(error), Ok(())) | (Ok(_), Err(error)) => Err(error),
            (Err(one), Err(two)) => bail!("{one:#}; {two:#}"),
        }
    })
}
