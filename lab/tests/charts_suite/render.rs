//! What the charts render: linted, complete, with the least rights, and nothing shared between tenants.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::tools::{attempt, documents, find, helm, kubectl, render, repository, run};

/// Settings that switch everything.
const ALL: [&str; 8] = [
    "gatewayClass.create=true",
    "monitoring.enabled=true",
    "monitoring.dashboard=true",
    "networkPolicy.restrictEgress=true",
    "imagePullSecrets[0].name=registry",
    "loadBalancer.podTemplate.spec.replicas=3",
    "controller.priorityClassName=system-cluster-critical",
    "loadBalancer.serviceAccount.annotations.note=mine",
];

#[test]
fn helm_lints_both_charts() -> Result<()> {
    for chart in ["martlet", "martlet-crds"] {
        let path = repository("deploy/helm").join(chart);
        let said = run(&helm()?, &["lint", "--strict", path.to_str().context("UTF-8")?])?;
        ensure!(said.contains("0 chart(s) failed") && !said.contains("[WARNING]"), "{said}");
    }
    Ok(())
}

#[test]
fn every_switch_renders_and_every_object_is_named_and_labelled() -> Result<()> {
    let mut kinds = BTreeSet::new();
    for settings in [&[][..], &ALL[..], &["loadBalancer.sysctls=pod", "rbac.create=false"][..]] {
        let objects = documents(&render(settings)?)?;
        let mut names = BTreeSet::new();
        for object in &objects {
            let (kind, name) =
                (object["kind"].as_str().context("kind")?, object["metadata"]["name"].as_str().context("name")?);
            ensure!(names.insert((kind.to_owned(), name.to_owned())), "two of {kind} {name}");
            ensure!(object["metadata"]["labels"]["app.kubernetes.io/part-of"] == "martlet", "{kind} {name}: labels");
            ensure!(object["metadata"]["namespace"].is_null(), "{kind} {name}: the release decides the namespace");
            kinds.insert(kind.to_owned());
        }
    }
    let wanted = [
        "ClusterRole",
        "ClusterRoleBinding",
        "ConfigMap",
        "Deployment",
        "GatewayClass",
        "NetworkAttachmentDefinition",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PodMonitor",
        "PrometheusRule",
        "Role",
        "RoleBinding",
        "ServiceAccount",
    ];
    // No webhook, nothing with certificates, no DaemonSet, no Secret.
    ensure!(kinds.iter().map(String::as_str).eq(wanted), "{kinds:?}");
    let none = documents(&render(&["loadBalancer.sysctls=pod", "rbac.create=false"])?)?;
    for absent in
        ["Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding", "NetworkAttachmentDefinition", "PodMonitor"]
    {
        ensure!(none.iter().all(|object| object["kind"] != absent), "{absent} although it is switched off");
    }
    Ok(())
}

#[test]
fn switches_are_off_and_rights_are_small_unless_asked_for() -> Result<()> {
    let plain = documents(&render(&[])?)?;
    for absent in ["GatewayClass", "PodMonitor", "PrometheusRule", "ConfigMap"] {
        ensure!(plain.iter().all(|object| object["kind"] != absent), "{absent} unasked");
    }
    let small = documents(&render(&["rbac.extra=false", "rbac.gatewayClasses=false"])?)?;
    for object in &small {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        ensure!(!name.ends_with("-extra") && object["kind"] != "ClusterRole", "{name}");
    }
    Ok(())
}

#[test]
fn the_controller_runs_with_the_least_privilege() -> Result<()> {
    let objects = documents(&render(&[])?)?;
    let pod = &find(&objects, "Deployment", "red-controller")?["spec"]["template"]["spec"];
    ensure!(pod["securityContext"]["runAsNonRoot"] == true, "{pod}");
    ensure!(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "{pod}");
    let containers = pod["containers"].as_array().context("containers")?;
    ensure!(containers.len() == 1 && pod["hostNetwork"].is_null() && pod["volumes"].is_null(), "{pod}");
    let context = &containers[0]["securityContext"];
    ensure!(
        *context
            == json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}),
        "{context}"
    );
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        ensure!(containers[0][probe]["grpc"]["port"] == 2231, "{probe}");
    }
    Ok(())
}

/// Group, resource, verbs with blanks.
type Right<'a> = (&'a str, &'a str, &'a str);

/// Verbs by group and resource.
fn rights(role: &Value) -> BTreeMap<(String, String), BTreeSet<String>> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut found = BTreeMap::<_, BTreeSet<String>>::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                found.entry((group.clone(), resource)).or_default().extend(texts(&rule["verbs"]));
            }
        }
    }
    found
}

#[test]
fn the_base_roles_are_exactly_the_lists_of_the_architecture() -> Result<()> {
    const READ: &str = "get list watch";
    const GATEWAYS: &str = "gateway.networking.k8s.io";
    const OURS: &str = "meridio.experiment.gateway.api.poc";
    const SLICES: (&str, &str) = ("discovery.k8s.io", "endpointslices");
    let all = "create delete get list patch update watch";
    let listed: [(&str, &[Right<'_>]); 3] = [
        (
            "red-controller-base",
            &[
                ("", "pods", READ),
                ("apps", "deployments", all),
                (GATEWAYS, "gateways", READ),
                (GATEWAYS, "gateways/status", "patch update"),
                ("", "services", READ),
                (SLICES.0, SLICES.1, all),
                (OURS, "l34routes", READ),
            ],
        ),
        (
            "red-lb-base",
            &[
                (GATEWAYS, "gateways", READ),
                (OURS, "l34routes", READ),
                ("", "services", READ),
                (SLICES.0, SLICES.1, READ),
            ],
        ),
        ("red-router-base", &[(GATEWAYS, "gateways", READ), (OURS, "gatewayrouters", READ), ("", "secrets", "watch")]),
    ];
    let objects = documents(&render(&[])?)?;
    for (name, list) in listed {
        let wanted: BTreeMap<_, BTreeSet<_>> = list
            .iter()
            .map(|(group, resource, verbs)| {
                (((*group).to_owned(), (*resource).to_owned()), verbs.split(' ').map(str::to_owned).collect())
            })
            .collect();
        let found = rights(find(&objects, "Role", name)?);
        ensure!(found == wanted, "{name}: {found:?}");
        let binding = find(&objects, "RoleBinding", name)?;
        let account = if name.contains("controller") { "red-controller" } else { "red-load-balancer" };
        ensure!(
            binding["subjects"] == json!([{"kind": "ServiceAccount", "name": account, "namespace": "red"}]),
            "{binding}"
        );
        find(&objects, "ServiceAccount", account)?;
    }
    Ok(())
}

#[test]
fn every_right_beyond_has_its_reason_above_it() -> Result<()> {
    let text = render(&[])?;
    for document in text.split("---\n").filter(|text| text.contains("kind: Role\n") && text.contains("-extra\n")) {
        let lines: Vec<_> = document.lines().collect();
        for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("- {apiGroups")) {
            let above = index.checked_sub(1).and_then(|above| lines.get(above)).copied().unwrap_or_default();
            // One reason may stand above two rights that belong together.
            ensure!(above.starts_with("# ") || above.starts_with("- {apiGroups"), "{line}: no reason above it");
        }
    }
    Ok(())
}

#[test]
fn two_tenants_share_no_name_that_has_no_namespace() -> Result<()> {
    let cluster_scoped = |namespace: &str| -> Result<BTreeSet<String>> {
        let chart = repository("deploy/helm/martlet");
        let chart = chart.to_str().context("UTF-8")?;
        let text = run(&helm()?, &["template", "martlet", chart, "--namespace", namespace])?;
        let objects = documents(&text)?;
        let of_cluster = objects.iter().filter(|o| o["kind"].as_str().is_some_and(|kind| kind.starts_with("Cluster")));
        Ok(of_cluster.map(|object| format!("{} {}", object["kind"], object["metadata"]["name"])).collect())
    };
    let (red, blue) = (cluster_scoped("red")?, cluster_scoped("blue")?);
    ensure!(red.len() == 2 && red.is_disjoint(&blue), "{red:?} {blue:?}");
    Ok(())
}

#[test]
fn wrong_values_and_old_clusters_are_refused_with_the_name_of_the_value() -> Result<()> {
    for (setting, named) in [
        ("loadBalancer.sysctls=maybe", "sysctls"),
        ("controller.replicas=many", "replicas"),
        ("loadBalancer.replica=3", "replica"),
        ("monitoring.interval=often", "interval"),
        ("networkPolicy.apiServerPorts[0]=70000", "apiServerPorts"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
    ] {
        let error = render(&[setting]).err().with_context(|| format!("{setting} is taken"))?.to_string();
        ensure!(error.contains(named), "{setting}: {error}");
    }
    let chart = repository("deploy/helm/martlet");
    let chart = chart.to_str().context("UTF-8")?;
    for (version, taken) in [("1.27.9", false), ("1.28.0", true), ("1.36.2-gke.1", true)] {
        let output = attempt(&helm()?, &["template", "red", chart, "--kube-version", version])?;
        ensure!(output.status.success() == taken, "{version}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn every_value_is_in_the_schema_and_the_other_way_round() -> Result<()> {
    fn keys(value: &Value, schema: &Value, path: &str, faults: &mut Vec<String>) {
        let Some(values) = value.as_object() else { return };
        let Some(known) = schema["properties"].as_object() else { return };
        for key in values.keys().filter(|key| !known.contains_key(*key)) {
            faults.push(format!("{path}.{key} is not in the schema"));
        }
        for (key, schema) in known.iter().filter(|(key, _)| *key != "global") {
            match values.get(key) {
                Some(value) => keys(value, schema, &format!("{path}.{key}"), faults),
                None => faults.push(format!("{path}.{key} is not in values.yaml")),
            }
        }
    }
    let folder = repository("deploy/helm/martlet");
    let values: Value = serde_saphyr::from_str(&fs::read_to_string(folder.join("values.yaml"))?)?;
    let schema: Value = serde_json::from_str(&fs::read_to_string(folder.join("values.schema.json"))?)?;
    let mut faults = Vec::new();
    keys(&values, &schema, "", &mut faults);
    ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}

#[test]
fn the_kustomizations_build() -> Result<()> {
    let build = |folder: &str| -> Result<Vec<Value>> {
        let path = repository("deploy/kustomize").join(folder);
        documents(&run(&kubectl()?, &["kustomize", path.to_str().context("UTF-8")?])?)
    };
    ensure!(build("crds")?.len() == 3, "three definitions");
    let chart = documents(&render(&["rbac.gatewayClasses=false"])?)?;
    ensure!(build("martlet")?.len() == chart.len(), "the objects of the chart");
    let example = build("example")?;
    for object in &example {
        let cluster =
            ["Namespace", "ClusterRole", "ClusterRoleBinding"].contains(&object["kind"].as_str().unwrap_or_default());
        ensure!(cluster || object["metadata"]["namespace"] == "red", "{object}");
    }
    let controller = find(&example, "Deployment", "martlet-controller")?;
    let container = &controller["spec"]["template"]["spec"]["containers"][0];
    let image = container["image"].as_str().context("image")?;
    ensure!(image == "registry.example/martlet:0.1.0", "{image}");
    let env = container["env"].as_array().context("env")?;
    ensure!(
        env.contains(&json!({"name": "MARTLET_IMAGE", "value": image})),
        "the pods get the controller's image: {env:?}"
    );
    let binding = find(&example, "ClusterRoleBinding", "red-martlet-controller-classes")?;
    ensure!(binding["subjects"][0]["namespace"] == "red", "{binding}");
    find(&example, "PodMonitor", "martlet-load-balancer")?;
    Ok(())
}
