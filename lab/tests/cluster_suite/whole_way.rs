//! The whole way: the example's objects -> Deployment -> `ReplicaSet` -> Pods in namespaces -> a real gateway -> traffic, and back.
//!
//! ```text
//!  client ------ gateway (FRR) ------ bridge vlan100 ------ load-balancer pods ------ bridge internal ------ target pods
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use kube::ResourceExt as _;
use martlet_controller::deployment::{MORE_SYSCTLS, SYSCTLS};
use martlet_lab::cluster::agent::Agent;
use martlet_lab::cluster::{Cluster, objects};
use martlet_lab::demo::topology::find_martlet;
use martlet_lab::peer::Gateway as _;
use martlet_lab::peer::frr::Frr;
use martlet_lab::wait::{Seen, until};
use martlet_lab::{Lab, Namespace, probe};
use serde_json::{Value, json};

use super::play::{Roles, Tenant};

const VIPS: [&str; 2] = ["20.0.0.1", "2000::1"];
/// A pod is made, peers, hears its endpoints: on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);
const PATIENCE: Duration = Duration::from_secs(5);

/// What is outside of the cluster.
struct Outside {
    client: Namespace,
    fabric: Namespace,
    frr: Frr,
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
    fn next_hops(&self) -> Result<BTreeMap<String, usize>> {
        let learned = self.frr.learned()?;
        let count = |vip: &&str| {
            let prefix = vip.parse::<IpAddr>().map(IpNet::from).ok();
            prefix.and_then(|prefix| learned.get(&prefix)).map_or(0, Vec::len)
        };
        Ok(VIPS.iter().map(|vip| ((*vip).to_owned(), count(vip))).collect())
    }

    fn expect_next_hops(&self, wanted: usize) -> Result<()> {
        until(&format!("{wanted} next hops of each VIP at the gateway"), LIMIT, || {
            let hops = self.next_hops()?;
            Ok(if hops.values().all(|count| *count == wanted) {
                Seen::Yes(())
            } else {
                Seen::not_yet(format!("{hops:?}"))
            })
        })
    }

    /// Asks each VIP over TCP and UDP; who answered.
    fn ask(&self, times: u16) -> Result<BTreeSet<String>> {
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
fn under_traffic<T>(outside: &Outside, work: impl FnOnce() -> Result<T>) -> Result<(T, usize, Vec<String>)> {
    let (stop, good) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut bad = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match outside.ask(1) {
                    Ok(_) => _ = good.fetch_add(1, Ordering::Relaxed),
                    Err(error) => bad.push(format!("{error:#}")),
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

fn attachment(name: &str, plugins: &Value) -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": name},
        "spec": {"config": json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins}).to_string()},
    })
}

fn link(bridge: &str, ranges: &[(&str, &str)]) -> Value {
    let ranges: Vec<_> =
        ranges.iter().map(|(subnet, start)| json!([{"subnet": subnet, "rangeStart": start}])).collect();
    json!([{"type": "macvlan", "master": bridge, "ipam": {"type": "host-local", "ranges": ranges}}])
}

fn targets(replicas: u32) -> Value {
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

pub fn from_the_example_to_traffic_and_back(cluster: &mut Cluster<'_>) -> Result<()> {
    cluster.start_manager()?;
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
    let cluster = &*cluster;
    std::thread::scope(|scope| {
        let kubelet = scope.spawn(|| {
            cluster.namespace().inside(|| {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
                runtime.block_on(async {
                    let mut agent = Agent::new(cluster, &namespace, &outside.fabric, images)?;
                    tokio::select! {
                        biased;
                        () = async { while !stop.load(Ordering::Relaxed) { tokio::time::sleep(Duration::from_millis(50)).await } } => Ok(()),
                        ended = agent.run() => ended.context("the agent"),
                    }
                })
            })?
        });
        let states = scope.spawn(|| {
            cluster.namespace().inside(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(stand_in_for_router_states(cluster, &namespace, &outside, &stop))
            })?
        });
        let result = cluster.inside(async |cluster| {
            let tenant = Tenant { cluster, admin: cluster.client()?, namespace: namespace.clone() };
            story(&tenant, &outside).await.inspect_err(|error| {
                eprintln!("{error:#}");
                crate::pause();
            })
        });
        stop.store(true, Ordering::Relaxed);
        let ended =
            [kubelet.join(), states.join()].map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let mut failures = [result].into_iter().chain(ended).filter_map(Result::err).map(|error| format!("{error:#}"));
        match failures.next() {
            None => Ok(()),
            Some(first) => bail!("{}", failures.fold(first, |all, one| format!("{all}; {one}"))),
        }
    })
}

/// Writes the `RouterState`s from what the gateway sees of each pod. To be removed when the routers write them.
async fn stand_in_for_router_states(
    cluster: &Cluster<'_>,
    namespace: &str,
    outside: &Outside,
    stop: &AtomicBool,
) -> Result<()> {
    let tenant = Tenant { cluster, admin: cluster.client()?, namespace: namespace.to_owned() };
    let mut told = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let neighbors = outside.frr.neighbors()?;
        // While the server is away there is nobody to tell.
        let Ok(pods) = tenant.list("Pod").await else { continue };
        for pod in pods {
            let labels = pod.labels();
            let status = pod.annotations().get("k8s.v1.cni.cncf.io/network-status");
            let (true, Some(status)) = (labels.contains_key("gateway.networking.k8s.io/gateway-name"), status) else {
                continue;
            };
            let status: Value = serde_json::from_str(status)?;
            let up = |place: usize| {
                let address = status[0]["ips"][place].as_str().and_then(|text| text.parse::<IpAddr>().ok());
                address
                    .and_then(|address| neighbors.get(&address))
                    .is_some_and(|n| n.established && n.bfd_up == Some(true))
            };
            let name = pod.name_any();
            let session = |router: &str, up: bool| {
                json!({"router": router, "up": up, "state": if up { "Established" } else { "Active" },
                                                         "bfd": if up { "Up" } else { "Down" }})
            };
            let state = json!({
                "apiVersion": "meridio.experiment.gateway.api.poc/v1alpha1", "kind": "RouterState",
                "metadata": {"name": name, "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod.uid()}]},
                "spec": {"gateway": "sllb-a", "pod": name, "ipv4Connectivity": up(0), "ipv6Connectivity": up(1),
                         "sessions": [session("gateway-a-v4", up(0)), session("gateway-a-v6", up(1))]},
            });
            if told.get(&name) != Some(&state) && tenant.put(state.clone()).await.is_ok() {
                told.insert(name, state);
            }
        }
    }
    Ok(())
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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    for file in ["gateway.yaml", "gateway-routers.yaml", "routes.yaml", "service.yaml"] {
        let text = std::fs::read_to_string(folder.join(file))?;
        objects::apply_text(&tenant.admin, &tenant.namespace, &text).await.context(file)?;
    }
    Ok(tenant.namespace)
}

async fn story(tenant: &Tenant<'_, '_>, outside: &Outside) -> Result<()> {
    let kubectl = |arguments: &[&str]| tenant.cluster.kubectl(&[&["-n", &tenant.namespace], arguments].concat());
    let controller = tenant.controller("one")?;
    let start = Instant::now();
    tenant.put(targets(3)).await?;
    outside.expect_next_hops(2)?;
    println!("    both VIPs have two next hops at the gateway after {:.1} s", start.elapsed().as_secs_f32());
    tenant.condition("Gateway", "sllb-a", "Programmed", "True", "Programmed").await?;
    tenant.condition("Gateway", "sllb-a", "Ready", "True", "Ready").await?;
    let columns = async || Ok(kubectl(&["get", "gatewayrouters"])?.matches("2/2 Established").nth(1).map(drop));
    objects::wait_for("the sessions of both families in the columns", LIMIT, columns).await?;
    ensure!(tenant.endpoints().await?.len() == 6, "three pods, two families: {:?}", tenant.endpoints().await?);
    let answered = outside.ask(30)?;
    ensure!(answered.len() == 3, "all three applications answer: {answered:?}");
    sysctls_are_set(tenant)?;

    for (replicas, wanted) in [("4", 4), ("1", 1), ("2", 2)] {
        kubectl(&["scale", "deployment", "sllbr-sllb-a", "--replicas", replicas])?;
        outside.expect_next_hops(wanted)?;
        outside.ask(3)?;
        println!("    scaled to {replicas}");
    }

    kubectl(&["scale", "deployment", "target", "--replicas", "2"])?;
    let endpoints = async || Ok((tenant.endpoints().await?.len() == 4).then_some(()));
    objects::wait_for("the endpoints of two pods", LIMIT, endpoints).await?;
    ensure!(outside.ask(20)?.len() == 2, "two applications answer");

    // A rolling update: never fewer next hops than replicas - 1.
    let fewest = AtomicUsize::new(usize::MAX);
    let (rolled, good, bad) = under_traffic(outside, || {
        kubectl(&["annotate", "gateway", "sllb-a", "--overwrite", "note=rolls-nothing"])?;
        let patch = r#"{"spec":{"infrastructure":{"labels":{"round":"two"}}}}"#;
        kubectl(&["patch", "gateway", "sllb-a", "--type=merge", "-p", patch])?;
        until("the rolling update", LIMIT, || {
            let hops = outside.next_hops()?.values().copied().min().unwrap_or(0);
            fewest.fetch_min(hops, Ordering::Relaxed);
            let pods = kubectl(&["get", "pods", "-l", "round=two", "-o", "name"])?;
            let old = kubectl(&[
                "get",
                "pods",
                "-l",
                "gateway.networking.k8s.io/gateway-name=sllb-a,round!=two",
                "-o",
                "name",
            ])?;
            Ok(if pods.lines().count() == 2 && old.is_empty() && hops == 2 {
                Seen::Yes(())
            } else {
                Seen::not_yet(format!("{pods}{old}{hops}"))
            })
        })
    })?;
    let () = rolled;
    let fewest = fewest.into_inner();
    println!("    rolling update: {good} rounds went well, {} did not, never fewer than {fewest} next hops", bad.len());
    bad.iter().take(5).for_each(|error| println!("        {error}"));
    ensure!(fewest >= 1, "the VIP was without a next hop");
    ensure!(bad.len() * 100 <= good, "more than one round of a hundred went wrong: {bad:?}");
    outside.ask(10).context("after the rolling update")?;

    // The API server is away: nothing is withdrawn, packets go on.
    let ((), good, bad) = under_traffic(outside, || {
        tenant.cluster.kill_server()?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            let hops = outside.next_hops()?;
            ensure!(hops.values().all(|count| *count == 2), "withdrawn while the API server was away: {hops:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    })?;
    println!("    API server away: {good} rounds went well, {} did not", bad.len());
    ensure!(bad.is_empty(), "{bad:?}");
    tenant.cluster.restart_server()?;
    tenant.cluster.ready().await?;

    kubectl(&["delete", "gateway", "sllb-a"])?;
    outside.expect_next_hops(0)?;
    let gone =
        async || Ok((tenant.list("Deployment").await?.len() == 1 && tenant.slices().await?.is_empty()).then_some(()));
    objects::wait_for("Deployment and slices to be gone", LIMIT, gone).await?;
    controller.stop().await
}

/// What the seed asks of the pod's namespace, read back.
fn sysctls_are_set(tenant: &Tenant<'_, '_>) -> Result<()> {
    let at = "jsonpath={.items[0].metadata.annotations.lab/namespace}";
    let of = "gateway.networking.k8s.io/gateway-name=sllb-a";
    let namespace = tenant.cluster.kubectl(&["-n", &tenant.namespace, "get", "pods", "-l", of, "-o", at])?;
    for (name, wanted) in SYSCTLS.iter().chain(&MORE_SYSCTLS) {
        let output = Command::new("ip").args(["netns", "exec", &namespace, "sysctl", "-n", name]).output()?;
        let set = String::from_utf8_lossy(&output.stdout).replace('\t', " ");
        ensure!(set.trim() == *wanted, "{name} is {set:?} in {namespace}, must be {wanted}");
    }
    Ok(())
}
