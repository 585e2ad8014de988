//! The charts and kustomizations on a real API server: what is installed, changed, taken back and left.
//!
//! One control plane for all steps, told in one story. The controllers of the charts' Deployments run: each of their Pods is a process that
//! has the Pod's environment and a token of the Pod's `ServiceAccount`, and so exactly the rights that the chart gave it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use martlet_controller::deployment::{MORE_SYSCTLS, SYSCTLS, Settings, Sysctls, deployment};
use martlet_lab::cluster::Cluster;
use martlet_lab::demo::topology::find_martlet;
use martlet_lab::wait::{Seen, until};
use martlet_lab::{End, Lab, Process, Signal};
use serde_json::{Value, json};

use super::tools::{helm, kubectl, repository};

/// What should happen at once, on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_mins(1);
/// The chart's version that is older than the one in the repository.
const OLDER: &str = "0.0.9";
const CRDS: [&str; 3] = ["gatewayrouters", "l34routes", "routerstates"];
const GROUP: &str = "meridio.experiment.gateway.api.poc";

/// A step: its name is a sentence.
type Step = (&'static str, fn(&mut Stage<'_, '_>) -> Result<()>);

#[test]
fn the_charts_live_on_a_real_server() -> Result<()> {
    let lab = Lab::new(End::Remove)?;
    let result = story(&lab);
    if result.is_err() {
        eprintln!("{}", lab.tails(15));
        lab.mark_failed();
    }
    result
}

fn story(lab: &Lab) -> Result<()> {
    let start = Instant::now();
    let mut cluster = Cluster::start(lab)?;
    cluster.start_manager()?;
    println!("    ready after {:.1} s", start.elapsed().as_secs_f32());
    let mut stage = Stage { lab, cluster: &cluster, running: BTreeMap::new(), ports: 22_310 };
    let steps: [Step; 7] = [
        (
            "the_definitions_install_upgrade_and_outlive_their_release",
            the_definitions_install_upgrade_and_outlive_their_release,
        ),
        ("a_release_installs_upgrades_and_rolls_back", a_release_installs_upgrades_and_rolls_back),
        ("the_installed_controller_serves_the_seeds_example", the_installed_controller_serves_the_seeds_example),
        ("pod_security_warns_of_nothing_but_what_is_listed", pod_security_warns_of_nothing_but_what_is_listed),
        (
            "two_releases_of_two_versions_share_one_set_of_definitions",
            two_releases_of_two_versions_share_one_set_of_definitions,
        ),
        ("an_uninstall_leaves_the_traffic_and_the_objects", an_uninstall_leaves_the_traffic_and_the_objects),
        (
            "kustomize_applies_on_the_server_side_and_goes_without_a_trace",
            kustomize_applies_on_the_server_side_and_goes_without_a_trace,
        ),
    ];
    for (name, step) in steps {
        let start = Instant::now();
        step(&mut stage).with_context(|| name.to_owned())?;
        println!("    {name} ({:.1} s)", start.elapsed().as_secs_f32());
    }
    Ok(())
}

/// What the steps share.
struct Stage<'c, 'lab> {
    lab: &'lab Lab,
    cluster: &'c Cluster<'lab>,
    /// The controllers that run, by namespace and Pod.
    running: BTreeMap<(String, String), Process>,
    /// The next free port for health: all run in one network namespace.
    ports: u16,
}

impl Stage<'_, '_> {
    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(arguments)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.kubectl(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&said).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    fn items(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        Ok(self.json(arguments)?["items"].as_array().cloned().unwrap_or_default())
    }

    /// What kubectl warns of.
    fn warnings(&self, arguments: &[&str]) -> Result<String> {
        let kubeconfig = format!("--kubeconfig={}", self.cluster.kubeconfig().display());
        let program = kubectl()?;
        let output =
            self.cluster.namespace().run(&program.to_string_lossy(), &[&[kubeconfig.as_str()], arguments].concat())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "kubectl {}: {said}", arguments.join(" "));
        Ok(said)
    }

    fn helm(&self, arguments: &[&str]) -> Result<String> {
        let kubeconfig = format!("--kubeconfig={}", self.cluster.kubeconfig().display());
        let program = helm()?;
        self.cluster.namespace().output(&program.to_string_lossy(), &[arguments, &[kubeconfig.as_str()]].concat())
    }

    fn file(&self, name: &str, object: &Value) -> Result<String> {
        let path = self.lab.dir().join(name);
        fs::write(&path, object.to_string())?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// A namespace in which Pod Security enforces nothing and warns of what `baseline` does not allow.
    fn tenant(&self, name: &str) -> Result<()> {
        self.kubectl(&["create", "namespace", name])?;
        let labels = ["pod-security.kubernetes.io/enforce=privileged", "pod-security.kubernetes.io/warn=baseline"];
        self.kubectl(&[&["label", "namespace", name], &labels[..]].concat()).map(drop)
    }

    /// Does for the controllers' Pods what a kubelet would: starts, ends, tells.
    fn tend(&mut self, namespace: &str) -> Result<()> {
        let pods = self.items(&["-n", namespace, "get", "pods", "-l", "app.kubernetes.io/name=martlet-controller"])?;
        let mut there = BTreeSet::new();
        for pod in &pods {
            let name = pod["metadata"]["name"].as_str().context("a name")?;
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                self.kubectl(&[
                    "-n",
                    namespace,
                    "delete",
                    "pod",
                    name,
                    "--force",
                    "--grace-period=0",
                    "--ignore-not-found",
                ])?;
                continue;
            }
            let key = (namespace.to_owned(), name.to_owned());
            there.insert(key.clone());
            if self.running.contains_key(&key) {
                continue;
            }
            let process = self.start(namespace, name, pod)?;
            self.running.insert(key, process);
            let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
            let status = status.to_string();
            let patch = ["-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", &status];
            match self.kubectl(&patch) {
                // Deleted since the list was made: the next look ends it.
                Err(error) if error.to_string().contains("(NotFound)") => {}
                result => drop(result?),
            }
        }
        let gone: Vec<_> =
            self.running.keys().filter(|key| key.0 == namespace && !there.contains(*key)).cloned().collect();
        for key in gone {
            if let Some(process) = self.running.remove(&key) {
                process.signal(Signal::Term)?;
                process.wait(LIMIT)?;
            }
        }
        for ((_, pod), process) in &self.running {
            if let Some(status) = process.ended() {
                bail!("{pod} ended: {status}: {}", process.tail(10));
            }
        }
        Ok(())
    }

    /// Starts the controller of a Pod, with the Pod's environment and `ServiceAccount`.
    fn start(&mut self, namespace: &str, name: &str, pod: &Value) -> Result<Process> {
        let account = pod["spec"]["serviceAccountName"].as_str().context("no ServiceAccount")?;
        let token = self.kubectl(&["-n", namespace, "create", "token", account])?;
        let admin = self.cluster.kubeconfig_of("admin");
        let kubeconfig = self.lab.dir().join(format!("{namespace}-{name}.kubeconfig"));
        fs::write(&kubeconfig, admin.replace("token: admin", &format!("token: {}", token.trim())))?;
        let container = &pod["spec"]["containers"][0];
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut command = Command::new(find_martlet()?);
        command.args(texts(&container["args"])).env("KUBECONFIG", &kubeconfig);
        for variable in container["env"].as_array().into_iter().flatten() {
            let key = variable["name"].as_str().context("a variable without name")?;
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("metadata.name") => name,
                Some("metadata.namespace") => namespace,
                Some(other) => bail!("{key}: the lab knows no field {other}"),
                None => variable["value"].as_str().context("a variable without value")?,
            };
            command.env(key, value);
        }
        self.ports += 1;
        command.env("MARTLET_HEALTH", format!("127.0.0.1:{}", self.ports));
        self.lab.spawn(&format!("controller-{namespace}-{name}"), Some(self.cluster.namespace()), command)
    }

    /// Tends the controllers of a namespace until `look` gives a value.
    fn wait<T>(&mut self, what: &str, namespace: &str, look: impl Fn(&Self) -> Result<Seen<T>>) -> Result<T> {
        until(what, LIMIT, || {
            self.tend(namespace)?;
            look(self)
        })
    }

    /// Waits until the Deployment of the controller has rolled out, and one of its Pods leads.
    fn leads(&mut self, namespace: &str, replicas: u64) -> Result<()> {
        self.wait(&format!("{replicas} controllers in {namespace}"), namespace, |stage| {
            let found = stage.json(&["-n", namespace, "get", "deployment", "martlet-controller"])?;
            let status = &found["status"];
            let current = status["observedGeneration"] == found["metadata"]["generation"];
            let ready = status["readyReplicas"].as_u64().unwrap_or(0) == replicas
                && status["updatedReplicas"].as_u64().unwrap_or(0) == replicas
                && status["replicas"].as_u64().unwrap_or(0) == replicas;
            Ok(if current && ready { Seen::Yes(()) } else { Seen::not_yet(status.to_string()) })
        })?;
        self.wait(&format!("a leader in {namespace}"), namespace, |stage| {
            let leases = stage.items(&["-n", namespace, "get", "leases"])?;
            let holder = leases.first().map(|lease| lease["spec"]["holderIdentity"].clone()).unwrap_or_default();
            let lives = stage.running.keys().any(|(of, pod)| of == namespace && holder == pod.as_str());
            Ok(if lives { Seen::Yes(()) } else { Seen::not_yet(holder.to_string()) })
        })
    }

    /// Waits until the load-balancer Deployment of a Gateway `holds`.
    fn deployment(&mut self, namespace: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        self.wait(&format!("the Deployment in {namespace}: {what}"), namespace, |stage| {
            let all = stage.items(&[
                "-n",
                namespace,
                "get",
                "deployments",
                "-l",
                "gateway.networking.k8s.io/gateway-name",
            ])?;
            Ok(match all.into_iter().next() {
                Some(found) if holds(&found) => Seen::Yes(found),
                Some(found) => Seen::not_yet(found["spec"].to_string()),
                None => Seen::not_yet("none"),
            })
        })
    }
}

fn chart(name: &str) -> String {
    repository("deploy/helm").join(name).to_string_lossy().into_owned()
}

/// A copy of a chart, as another version of it.
fn copy(lab: &Lab, name: &str, version: &str) -> Result<PathBuf> {
    fn all(from: &Path, to: &Path) -> Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                all(&entry.path(), &target)?;
            } else {
                fs::copy(entry.path(), target)?;
            }
        }
        Ok(())
    }
    let folder = lab.dir().join(format!("{name}-{version}"));
    all(&repository("deploy/helm").join(name), &folder)?;
    let file = folder.join("Chart.yaml");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replace(env!("CARGO_PKG_VERSION"), version))?;
    Ok(folder)
}

/// A router with a field that only a newer definition knows.
fn with_future_field() -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "GatewayRouter",
        "metadata": {"name": "future", "labels": {"service.kubernetes.io/service-proxy-name": "sllb-a"}},
        "spec": {"address": "169.254.100.151", "interface": "vlan-100", "fieldOfTomorrow": "yes",
                 "bgp": {"remoteASN": 4_248_829_953_i64}},
    })
}

fn the_definitions_install_upgrade_and_outlive_their_release(stage: &mut Stage<'_, '_>) -> Result<()> {
    // The lab put them there by itself.
    let names: Vec<_> = CRDS.iter().map(|name| format!("{name}.{GROUP}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    stage.kubectl(&[&["delete", "crd", "--wait=false"], &names[..]].concat())?;
    let mut looks = 0;
    until("the lab's definitions are gone", LIMIT, || {
        let listed = stage.kubectl(&["get", "crd", "-o", "name"])?;
        let left: Vec<_> = names.iter().copied().filter(|name| listed.contains(name)).collect();
        if left.is_empty() {
            return Ok(Seen::Yes(()));
        }
        // A server that has just started may fail to list what is of a definition, and then forget that it has to look again
        // ("storage is (re)initializing"): any change reminds it. One that is gone by now cannot be changed.
        looks += 1;
        for name in &left {
            let _ = stage.kubectl(&["annotate", "crd", name, &format!("looks={looks}"), "--overwrite"]);
        }
        Ok(Seen::not_yet(listed))
    })?;
    let release = ["martlet-crds", &chart("martlet-crds"), "--namespace", "martlet-system"];
    stage.helm(&[&["install", "--create-namespace"], &release[..]].concat())?;
    let established = |stage: &Stage<'_, '_>| {
        stage.kubectl(&[&["wait", "--for=condition=Established", "--timeout=30s", "crd"], &names[..]].concat())
    };
    established(stage)?;
    // An object that an uninstall must not take with it.
    stage.kubectl(&["create", "namespace", "keeps"])?;
    let mut object = with_future_field();
    object["spec"].as_object_mut().context("an object")?.remove("fieldOfTomorrow");
    let kept = stage.file("kept.json", &object)?;
    stage.kubectl(&["-n", "keeps", "apply", "-f", &kept])?;
    stage.helm(&["uninstall", "martlet-crds", "--namespace", "martlet-system"])?;
    established(stage)?;
    stage.kubectl(&["-n", "keeps", "get", "gatewayrouter", "future"])?;
    // What was left is taken over again.
    stage.helm(&[&["install"], &release[..]].concat())?;
    ensure!(
        stage.kubectl(&["get", "crd", "-l", "app.kubernetes.io/part-of=martlet", "-o", "name"])?.lines().count() == 3,
        "three"
    );
    // An upgrade changes them: in Helm's own folder for definitions it would not.
    let future = stage.file("future.json", &with_future_field())?;
    let strict = ["-n", "keeps", "apply", "--validate=strict", "-f", &future];
    ensure!(stage.kubectl(&strict).is_err(), "a field that nobody knows is taken");
    let newer = copy(stage.lab, "martlet-crds", "0.2.0")?;
    let file = newer.join("templates/gatewayrouters.yaml");
    let mut definition: Value = serde_saphyr::from_str(&fs::read_to_string(&file)?)?;
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["fieldOfTomorrow"] =
        json!({"type": "string"});
    fs::write(&file, definition.to_string())?;
    stage.helm(&["upgrade", "martlet-crds", &newer.to_string_lossy(), "--namespace", "martlet-system"])?;
    until("the newer definition to be served", LIMIT, || {
        Ok(stage.kubectl(&strict).map_or_else(|error| Seen::not_yet(error.to_string()), |_| Seen::Yes(())))
    })
}

fn a_release_installs_upgrades_and_rolls_back(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.tenant("red")?;
    let path = chart("martlet");
    let said = stage.helm(&["install", "martlet", &path, "--namespace", "red"])?;
    ensure!(said.contains("looks after the Gateways of namespace red"), "{said}");
    stage.leads("red", 2)?;
    let value = |stage: &Stage<'_, '_>, variable: &str| -> Result<String> {
        let at = format!("jsonpath={{.spec.template.spec.containers[0].env[?(@.name=={variable:?})].value}}");
        stage.kubectl(&["-n", "red", "get", "deployment", "martlet-controller", "-o", &at])
    };
    ensure!(value(stage, "MARTLET_REPLICAS")? == "2", "{}", value(stage, "MARTLET_REPLICAS")?);
    stage.helm(&[
        "upgrade",
        "martlet",
        &path,
        "--namespace",
        "red",
        "--set",
        "controller.replicas=1,loadBalancer.replicas=3",
    ])?;
    stage.leads("red", 1)?;
    ensure!(value(stage, "MARTLET_REPLICAS")? == "3", "the upgrade");
    stage.helm(&["rollback", "martlet", "1", "--namespace", "red"])?;
    stage.leads("red", 2)?;
    ensure!(value(stage, "MARTLET_REPLICAS")? == "2", "the rollback");
    // What failed to render changes nothing.
    let wrong = stage.helm(&["upgrade", "martlet", &path, "--namespace", "red", "--set", "controller.replicas=many"]);
    ensure!(wrong.is_err(), "a wrong value is taken");
    stage.leads("red", 2)
}

/// A Pod of the application, attached and ready: there is no kubelet, so we say it.
fn application(stage: &Stage<'_, '_>, namespace: &str, selector: &Value) -> Result<()> {
    let mut labels = selector.clone();
    labels.as_object_mut().context("a selector")?.remove("meridio-experiment/dummy-service-selector");
    let networks =
        json!([{"name": format!("{namespace}/macvlan-nad-1"), "interface": "net1", "ips": ["169.111.100.11"]}]);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "target-1", "labels": labels, "annotations": {"k8s.v1.cni.cncf.io/network-status": networks.to_string()}},
        "spec": {"nodeName": "lab", "containers": [{"name": "app", "image": "app"}]},
    });
    let file = stage.file("target.json", &pod)?;
    stage.kubectl(&["-n", namespace, "apply", "-f", &file])?;
    let status =
        json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}).to_string();
    stage
        .kubectl(&["-n", namespace, "patch", "pod", "target-1", "--subresource=status", "--type=merge", "-p", &status])
        .map(drop)
}

fn example(stage: &Stage<'_, '_>, namespace: &str) -> Result<()> {
    for file in ["gateway", "gatewayrouter", "l34route", "service"] {
        let path = repository("deploy/examples").join(file).with_extension("yaml");
        stage.kubectl(&["-n", namespace, "apply", "--server-side", "-f", &path.to_string_lossy()])?;
    }
    Ok(())
}

fn the_installed_controller_serves_the_seeds_example(stage: &mut Stage<'_, '_>) -> Result<()> {
    example(stage, "red")?;
    let service = stage.json(&["-n", "red", "get", "service", "service-a"])?;
    application(stage, "red", &service["spec"]["selector"])?;
    let made = stage.deployment("red", "it is there", |_| true)?;
    let pod = &made["spec"]["template"]["spec"];
    ensure!(pod["serviceAccountName"] == "martlet-load-balancer", "{pod}");
    ensure!(made["spec"]["replicas"] == 2, "{made}");
    for container in pod["containers"].as_array().context("containers")? {
        ensure!(container["image"] == format!("martlet:{}", env!("CARGO_PKG_VERSION")), "{container}");
        ensure!(container["securityContext"]["readOnlyRootFilesystem"] == true, "{container}");
        ensure!(container["securityContext"]["capabilities"]["drop"] == json!(["ALL"]), "{container}");
    }
    // The attachment that sets the sysctls is the chart's.
    let networks = made["spec"]["template"]["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"].to_string();
    ensure!(networks.contains("sllbr-tuning"), "{networks}");
    stage.kubectl(&["-n", "red", "get", "network-attachment-definitions", "sllbr-tuning"])?;
    stage.wait("the endpoint in a slice", "red", |stage| {
        let slices = stage.items(&["-n", "red", "get", "endpointslices"])?;
        let text = json!(slices).to_string();
        Ok(if text.contains("169.111.100.11") { Seen::Yes(()) } else { Seen::not_yet(text) })
    })?;
    stage.wait("the Gateway to be accepted, with its address", "red", |stage| {
        let gateway = stage.json(&["-n", "red", "get", "gateway", "sllb-a"])?;
        let accepted = gateway["status"]["conditions"].as_array().into_iter().flatten();
        let accepted = accepted.into_iter().any(|c| c["type"] == "Accepted" && c["status"] == "True");
        let addressed = gateway["status"]["addresses"].to_string().contains("20.0.0.1");
        Ok(if accepted && addressed { Seen::Yes(()) } else { Seen::not_yet(gateway["status"].to_string()) })
    })?;
    stage.wait("the route to be accepted", "red", |stage| {
        let routes = json!(stage.items(&["-n", "red", "get", "l34routes"])?).to_string();
        let told = routes.contains(r#""reason":"Accepted""#);
        Ok(if told { Seen::Yes(()) } else { Seen::not_yet(routes) })
    })?;
    // With the chart's rights nothing is refused, and nothing is missing.
    for ((_, pod), process) in &stage.running {
        let log = process.log();
        for word in ["Forbidden", "forbidden", "without this right", "ERROR"] {
            ensure!(!log.contains(word), "{pod}: {word}: {log}");
        }
    }
    Ok(())
}

fn pod_security_warns_of_nothing_but_what_is_listed(stage: &mut Stage<'_, '_>) -> Result<()> {
    let gateway = stage.json(&["-n", "red", "get", "gateway", "sllb-a"])?;
    let mut warned = BTreeMap::new();
    for sysctls in [Sysctls::Attachment("sllbr-tuning".to_owned()), Sysctls::Pod] {
        let settings = Settings { sysctls: sysctls.clone(), ..Settings::default() };
        let made = deployment(&serde_json::from_value(gateway.clone())?, &settings, None, false);
        let mut made = made.map_err(anyhow::Error::msg)?;
        made["metadata"]["name"] = json!("looked-at");
        let file = stage.file("looked-at.json", &made)?;
        let said = stage.warnings(&["-n", "red", "create", "--dry-run=server", "-f", &file])?;
        // `reason (what)`, with commas, behind one colon.
        let reasons = said.split_once("PodSecurity \"baseline:latest\": ").map(|(_, rest)| rest.trim().to_owned());
        let reasons = reasons.with_context(|| format!("{sysctls:?}: no warning: {said}"))?;
        ensure!(said.matches("Warning:").count() == 1, "{said}");
        warned.insert(format!("{sysctls:?}"), reasons);
    }
    let capabilities = |reasons: &str| -> Result<()> {
        let (_, after) = reasons.split_once("non-default capabilities (").context("no word of capabilities")?;
        let quoted: BTreeSet<_> = after.split(')').next().unwrap_or_default().split('"').skip(1).step_by(2).collect();
        let allowed = BTreeSet::from(["router", "lb", "NET_ADMIN", "NET_RAW"]);
        ensure!(quoted == allowed, "{quoted:?}");
        Ok(())
    };
    let by_attachment = &warned[&format!("{:?}", Sysctls::Attachment("sllbr-tuning".to_owned()))];
    capabilities(by_attachment)?;
    ensure!(by_attachment.matches(" (").count() == 1, "more than capabilities: {by_attachment}");
    let by_pod = &warned[&format!("{:?}", Sysctls::Pod)];
    capabilities(by_pod)?;
    ensure!(by_pod.matches(" (").count() == 2, "more than capabilities and sysctls: {by_pod}");
    let (_, sysctls) = by_pod.split_once("forbidden sysctls (").context("no word of sysctls")?;
    for name in sysctls.split(')').next().unwrap_or_default().split(", ") {
        ensure!(SYSCTLS.iter().chain(&MORE_SYSCTLS).any(|(listed, _)| *listed == name), "{name}: {by_pod}");
    }
    // The controller itself keeps even to `restricted`.
    stage.kubectl(&["label", "namespace", "red", "--overwrite", "pod-security.kubernetes.io/warn=restricted"])?;
    let mut own = stage.json(&["-n", "red", "get", "deployment", "martlet-controller"])?;
    own["metadata"] = json!({"name": "looked-at"});
    let file = stage.file("own.json", &own)?;
    let said = stage.warnings(&["-n", "red", "create", "--dry-run=server", "-f", &file])?;
    ensure!(!said.contains("PodSecurity"), "{said}");
    stage.kubectl(&["label", "namespace", "red", "--overwrite", "pod-security.kubernetes.io/warn=baseline"]).map(drop)
}

fn two_releases_of_two_versions_share_one_set_of_definitions(stage: &mut Stage<'_, '_>) -> Result<()> {
    let before = stage.json(&["-n", "red", "get", "deployment", "sllbr-sllb-a"])?;
    let definitions =
        |stage: &Stage<'_, '_>| stage.kubectl(&["get", "crd", "-o", "jsonpath={.items[*].metadata.resourceVersion}"]);
    let versions = definitions(stage)?;
    stage.tenant("blue")?;
    let older = copy(stage.lab, "martlet", OLDER)?;
    stage.helm(&[
        "install",
        "martlet",
        &older.to_string_lossy(),
        "--namespace",
        "blue",
        "--set",
        "controller.replicas=1",
    ])?;
    stage.leads("blue", 1)?;
    example(stage, "blue")?;
    let made = stage.deployment("blue", "it is there", |_| true)?;
    let image = made["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    ensure!(image == format!("martlet:{OLDER}"), "{image}");
    ensure!(definitions(stage)? == versions, "the second release touched the definitions");
    // The definitions are newer than both controllers: an object with a field that they do not know is served.
    let future = stage.file("future.json", &with_future_field())?;
    stage.kubectl(&["-n", "blue", "apply", "--validate=strict", "-f", &future])?;
    stage.wait("the older controller to accept an object of the newer definition", "blue", |stage| {
        let router = stage.json(&["-n", "blue", "get", "gatewayrouter", "future"])?;
        let accepted = router["status"]["conditions"].to_string().contains("Accepted");
        Ok(if accepted { Seen::Yes(()) } else { Seen::not_yet(router["status"].to_string()) })
    })?;
    // Neither looks at the other's.
    let after = stage.json(&["-n", "red", "get", "deployment", "sllbr-sllb-a"])?;
    ensure!(before["metadata"]["generation"] == after["metadata"]["generation"], "red was touched");
    // One goes; the other works on.
    stage.helm(&["uninstall", "martlet", "--namespace", "blue"])?;
    until("the controller of blue to be gone", LIMIT, || {
        stage.tend("blue")?;
        let left = stage.running.keys().filter(|(of, _)| of == "blue").count();
        Ok(if left == 0 { Seen::Yes(()) } else { Seen::not_yet(left.to_string()) })
    })?;
    let patch = r#"{"spec":{"infrastructure":{"labels":{"round":"two"}}}}"#;
    stage.kubectl(&["-n", "red", "patch", "gateway", "sllb-a", "--type=merge", "-p", patch])?;
    stage.deployment("red", "the change of its Gateway", |made| {
        made["spec"]["template"]["metadata"]["labels"]["round"] == "two"
    })?;
    Ok(())
}

fn an_uninstall_leaves_the_traffic_and_the_objects(stage: &mut Stage<'_, '_>) -> Result<()> {
    let all = "deployments,replicasets,services,endpointslices,gateways,gatewayrouters,l34routes,serviceaccounts,roles,\
               rolebindings,configmaps,networkpolicies,poddisruptionbudgets,network-attachment-definitions";
    let names = |stage: &Stage<'_, '_>| stage.kubectl(&["-n", "red", "get", all, "-o", "name"]);
    let before = stage.json(&["-n", "red", "get", "deployment", "sllbr-sllb-a"])?;
    stage.helm(&["uninstall", "martlet", "--namespace", "red"])?;
    until("what the release made to be gone", LIMIT, || {
        stage.tend("red")?;
        let left: Vec<_> = names(stage)?.lines().filter(|name| name.contains("/martlet")).map(str::to_owned).collect();
        Ok(if left.is_empty() { Seen::Yes(()) } else { Seen::not_yet(format!("{left:?}")) })
    })?;
    let left = names(stage)?;
    for kept in ["deployment.apps/sllbr-sllb-a", "gateway.gateway.networking.k8s.io/sllb-a", "service/service-a"] {
        ensure!(left.lines().any(|name| name == kept), "{kept} is gone: {left}");
    }
    ensure!(left.contains("endpointslice.discovery.k8s.io/"), "the endpoints are gone: {left}");
    let cluster_wide = stage.kubectl(&["get", "clusterroles,clusterrolebindings", "-o", "name"])?;
    ensure!(!cluster_wide.contains("martlet"), "{cluster_wide}");
    // It comes back, and nothing rolls.
    stage.helm(&["install", "martlet", &chart("martlet"), "--namespace", "red"])?;
    stage.leads("red", 2)?;
    std::thread::sleep(Duration::from_secs(2));
    let after = stage.json(&["-n", "red", "get", "deployment", "sllbr-sllb-a"])?;
    ensure!(before["metadata"]["generation"] == after["metadata"]["generation"], "the pods would have rolled");
    // The Gateway goes, and takes with it what is its own.
    stage.kubectl(&["-n", "red", "delete", "gateway", "sllb-a"])?;
    stage.wait("the Deployment to follow its Gateway", "red", |stage| {
        let left = stage.kubectl(&["-n", "red", "get", "deployments", "-o", "name"])?;
        Ok(if left.contains("sllbr") { Seen::not_yet(left) } else { Seen::Yes(()) })
    })?;
    stage.helm(&["uninstall", "martlet", "--namespace", "red"])?;
    until("the controllers of red to be gone", LIMIT, || {
        stage.tend("red")?;
        Ok(if stage.running.is_empty() { Seen::Yes(()) } else { Seen::not_yet(format!("{:?}", stage.running.keys())) })
    })?;
    // It is said to be on a node: without a kubelet nobody else ends it.
    stage.kubectl(&["-n", "red", "delete", "pod", "target-1", "--force", "--grace-period=0"])?;
    stage.kubectl(&["delete", "namespace", "red", "--wait=true", "--timeout=60s"]).map(drop)
}

fn kustomize_applies_on_the_server_side_and_goes_without_a_trace(stage: &mut Stage<'_, '_>) -> Result<()> {
    let folder = |name: &str| repository("deploy/kustomize").join(name).to_string_lossy().into_owned();
    // The Prometheus operator is not here: what the component needs of it, is.
    for (kind, plural) in [("PodMonitor", "podmonitors"), ("PrometheusRule", "prometheusrules")] {
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.monitoring.coreos.com")},
            "spec": {"group": "monitoring.coreos.com", "scope": "Namespaced",
                     "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                     "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
        });
        let file = stage.file(plural, &definition)?;
        stage.kubectl(&["apply", "-f", &file])?;
        let name = format!("crd/{plural}.monitoring.coreos.com");
        stage.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", &name])?;
    }
    // Helm had the definitions, with a field of tomorrow: whoever changes sides says so.
    let apply = |stage: &Stage<'_, '_>, name: &str, more: &[&str]| {
        stage.kubectl(&[&["apply", "--server-side", "-k", &folder(name)], more].concat())
    };
    apply(stage, "crds", &["--force-conflicts"])?;
    apply(stage, "example", &[])?;
    stage.leads("red", 2)?;
    example(stage, "red")?;
    let made = stage.deployment("red", "it is there", |_| true)?;
    let image = made["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    ensure!(image == "registry.example/martlet:0.1.0", "{image}");
    ensure!(made["spec"]["template"]["spec"]["serviceAccountName"] == "martlet-load-balancer", "{made}");
    // The second time nothing changes.
    let versions = |stage: &Stage<'_, '_>| {
        stage.kubectl(&[
            "-n",
            "red",
            "get",
            "serviceaccounts,roles,rolebindings,configmaps,podmonitors,networkpolicies",
            "-o",
            "jsonpath={.items[*].metadata.resourceVersion}",
        ])
    };
    let before = versions(stage)?;
    apply(stage, "example", &[])?;
    ensure!(versions(stage)? == before, "a second apply changes something");
    stage.kubectl(&["-n", "red", "delete", "gateway", "sllb-a"])?;
    stage.wait("the Deployment to follow its Gateway", "red", |stage| {
        let left = stage.kubectl(&["-n", "red", "get", "deployments", "-o", "name"])?;
        Ok(if left.contains("sllbr") { Seen::not_yet(left) } else { Seen::Yes(()) })
    })?;
    stage.kubectl(&["delete", "-k", &folder("example"), "--wait=false"])?;
    until("the namespace to be gone", LIMIT, || {
        stage.tend("red")?;
        let left = stage.kubectl(&["get", "namespaces,clusterroles,clusterrolebindings", "-o", "name"])?;
        let gone = !left.contains("namespace/red\n") && !left.contains("martlet-controller");
        Ok(if gone { Seen::Yes(()) } else { Seen::not_yet("still there") })
    })
}
