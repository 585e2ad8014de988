//! What is generated of the charts and kustomizations: from `deploy/crds`, `deploy/rbac`, `deploy/dashboard`, the controller's own code and
//! the chart's values. Nothing of it is edited by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use martlet_controller::deployment::{MORE_SYSCTLS, SYSCTLS, Settings, deployment};
use serde_json::{Value, json};

use super::tools::{documents, helm, repository, run};

const COMMAND: &str = "UPDATE=1 cargo test --profile lab -p martlet-lab --test charts generated";

/// Folders that hold nothing but what is generated (and a `kustomization.yaml`).
const WHOLE_FOLDERS: [&str; 5] = [
    "deploy/helm/martlet-crds/templates",
    "deploy/helm/martlet/files",
    "deploy/kustomize/crds",
    "deploy/kustomize/martlet",
    "deploy/kustomize/components/monitoring",
];

type Files = BTreeMap<PathBuf, String>;

fn head(source: &str) -> String {
    format!("# Generated from {source} by\n# `{COMMAND}`: do not edit.\n")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The YAML files of a folder: name and text.
fn yaml_of(folder: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(repository(folder)).with_context(|| folder.to_owned())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let name = path.file_name().and_then(|name| name.to_str()).context("a name in UTF-8")?.to_owned();
            found.insert(name, read(&path)?);
        }
    }
    ensure!(!found.is_empty(), "no YAML in {folder}");
    Ok(found)
}

/// The definitions: for Helm with the word that an uninstall leaves them.
fn crds(files: &mut Files) -> Result<()> {
    for (name, text) in yaml_of("deploy/crds")? {
        ensure!(!text.contains("{{"), "deploy/crds/{name}: braces that Helm would take for its own");
        let (_, body) = text.split_once('\n').context("a first line")?;
        let labels = "  labels:\n    app.kubernetes.io/part-of: martlet\n";
        let kept = format!("metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n{labels}");
        let labelled = format!("metadata:\n{labels}");
        ensure!(body.matches("\nmetadata:\n").count() == 1, "deploy/crds/{name}: not one metadata");
        let source = format!("deploy/crds/{name}");
        let helm = body.replacen("metadata:\n", &kept, 1);
        files.insert(repository("deploy/helm/martlet-crds/templates").join(&name), head(&source) + &helm);
        let plain = body.replacen("metadata:\n", &labelled, 1);
        files.insert(repository("deploy/kustomize/crds").join(&name), head(&source) + &plain);
    }
    Ok(())
}

/// The Roles with their bindings: one file of the chart for one of `deploy/rbac`.
fn rbac(files: &mut Files) -> Result<()> {
    for (name, text) in yaml_of("deploy/rbac")? {
        let account = match name.as_str() {
            "controller.yaml" => "martlet.account.controller",
            "router.yaml" | "lb.yaml" => "martlet.account.pods",
            _ => bail!("deploy/rbac/{name}: say in {} whose rights these are", file!()),
        };
        let mut made = head(&format!("deploy/rbac/{name}")) + "{{- if .Values.rbac.create }}\n";
        for document in text.split("---\n") {
            made += &role(document, account).with_context(|| format!("deploy/rbac/{name}"))?;
        }
        made += "{{- end }}\n";
        files.insert(repository("deploy/helm/martlet/templates").join(format!("rbac-{name}")), made);
    }
    Ok(())
}

/// One Role, and the binding of it. Its comments, which say why, stay.
fn role(document: &str, account: &str) -> Result<String> {
    let parsed: Value = serde_saphyr::from_str(document)?;
    let (kind, name) = (&parsed["kind"], parsed["metadata"]["name"].as_str().context("no name")?);
    let suffix = name.strip_prefix("martlet-").with_context(|| format!("{name}: begins with martlet-"))?;
    let line = format!("metadata: {{name: {name}}}\n");
    ensure!(document.contains(&line), "{name}: no line {line:?}");
    // What has no namespace carries the tenant's in its name: no two releases share it.
    let (kind, full) = match kind.as_str() {
        Some("Role") => ("Role", format!("{{{{ include \"martlet.fullname\" . }}}}-{suffix}")),
        Some("ClusterRole") => {
            ("ClusterRole", format!("{{{{ .Release.Namespace }}}}-{{{{ include \"martlet.fullname\" . }}}}-{suffix}"))
        }
        other => bail!("{name}: a {other:?} among the Roles"),
    };
    let switch = match suffix.rsplit('-').next() {
        Some("base") => None,
        Some("extra") => Some(".Values.rbac.extra"),
        Some("classes") => Some(".Values.rbac.gatewayClasses"),
        _ => bail!("{name}: neither base nor extra nor classes"),
    };
    let labels = "  labels: {{- include \"martlet.labels\" . | nindent 4 }}\n";
    let metadata = format!("metadata:\n  name: {full}\n{labels}");
    let mut made = String::new();
    if let Some(switch) = switch {
        let _ = writeln!(made, "{{{{- if {switch} }}}}");
    }
    let _ = write!(
        made,
        "---\n{role}---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\n{metadata}\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: {full}}}\nsubjects:\n\
         - {{kind: ServiceAccount, name: {{{{ include \"{account}\" . }}}}, namespace: {{{{ .Release.Namespace }}}}}}\n",
        role = document.replace(&line, &metadata),
    );
    if switch.is_some() {
        made += "{{- end }}\n";
    }
    Ok(made)
}

/// The attachment that sets the sysctls: the controller's own list.
fn tuning(files: &mut Files) -> Result<()> {
    let sysctls: serde_json::Map<_, _> =
        SYSCTLS.iter().chain(&MORE_SYSCTLS).map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    // `tuning` changes what another plugin made, and `dummy` wants an address: this one leads nowhere.
    let config = json!({"cniVersion": "1.0.0", "name": "sllbr-tuning", "plugins": [
        {"type": "dummy", "ipam": {"type": "static", "addresses": [{"address": "169.254.254.254/32"}]}},
        {"type": "tuning", "sysctl": sysctls},
    ]});
    let config = serde_json::to_string_pretty(&config)?.replace('\n', "\n    ");
    let text = format!(
        "{}{{{{- if and .Values.loadBalancer.tuningAttachment.create (eq .Values.loadBalancer.sysctls \"attachment\") }}}}\n\
         # Sets the sysctls of the load-balancer pods. What it makes is a dummy interface: the tuning plugin wants one.\n\
         apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata:\n  \
         name: {{{{ .Values.loadBalancer.tuningAttachment.name }}}}\n  labels: {{{{- include \"martlet.labels\" . | nindent 4 }}}}\n\
         spec:\n  config: |\n    {config}\n{{{{- end }}}}\n",
        head("SYSCTLS in controller/src/deployment.rs")
    );
    files.insert(repository("deploy/helm/martlet/templates/tuning.yaml"), text);
    Ok(())
}

/// What an operator's template is laid over.
fn pod(files: &mut Files) -> Result<()> {
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "sllb-a", "namespace": "red", "uid": "00000000-0000-0000-0000-000000000000"},
        "spec": {"gatewayClassName": "meridio-experiment/stateless-load-balancer", "listeners": [],
                 "infrastructure": {"annotations": {"k8s.v1.cni.cncf.io/networks": "vlan-100@vlan-100"}}},
    });
    let made = deployment(&serde_json::from_value(gateway)?, &Settings::default(), None, false);
    let made = made.map_err(anyhow::Error::msg)?;
    let text = head("controller/src/deployment.rs")
        + "# The Deployment that the controller makes of a Gateway `sllb-a` in the namespace `red`. `loadBalancer.podTemplate` is laid over it.\n"
        + &serde_saphyr::to_string(&made)?;
    files.insert(repository("deploy/helm/martlet/files/load-balancer.yaml"), text);
    Ok(())
}

/// The table of values: each line of `values.yaml` with the comment above it.
pub fn values_table(text: &str) -> Result<String> {
    let mut table = String::from("| value | default | meaning |\n|---|---|---|\n");
    let (mut path, mut comment) = (Vec::<String>::new(), String::new());
    for line in text.lines() {
        let depth = line.chars().take_while(|c| *c == ' ').count() / 2;
        let line = line.trim();
        if let Some(said) = line.strip_prefix("# ") {
            said.clone_into(&mut comment);
        } else if line.is_empty() {
            comment.clear();
        } else {
            let (key, value) = line.split_once(':').with_context(|| format!("values.yaml: {line}"))?;
            path.truncate(depth);
            path.push(key.to_owned());
            let value = value.trim();
            if !value.is_empty() {
                ensure!(!comment.is_empty(), "values.yaml: {} has no comment", path.join("."));
                let _ = writeln!(table, "| `{}` | `{value}` | {comment} |", path.join("."));
            }
            comment.clear();
        }
    }
    Ok(table)
}

const TABLE: [&str; 2] = ["<!-- table: generated from values.yaml -->\n", "<!-- end of table -->"];

fn readme(files: &mut Files) -> Result<()> {
    let path = repository("deploy/helm/martlet/README.md");
    let text = read(&path)?;
    let (before, rest) = text.split_once(TABLE[0]).context("the chart's README has no table")?;
    let (_, after) = rest.split_once(TABLE[1]).context("the table of the chart's README has no end")?;
    let table = values_table(&read(&repository("deploy/helm/martlet/values.yaml"))?)?;
    files.insert(path, format!("{before}{}{table}{}{after}", TABLE[0], TABLE[1]));
    Ok(())
}

/// The kustomizations: what the chart renders, without the words of Helm. To be called when the chart is written.
fn kustomize() -> Result<Files> {
    let chart = repository("deploy/helm/martlet");
    let render = |more: &[&str]| -> Result<String> {
        let chart = chart.to_str().context("a path in UTF-8")?;
        let text = run(&helm()?, &[&["template", "martlet", chart, "--namespace", "default"], more].concat())?;
        let ours = |line: &&str| {
            !["app.kubernetes.io/managed-by: Helm", "helm.sh/chart:", "# Source:", "# Generated from", "# `UPDATE=1"]
                .iter()
                .any(|word| line.trim_start().starts_with(word))
        };
        Ok(text.lines().filter(ours).fold(String::new(), |all, line| all + line + "\n"))
    };
    let mut files = Files::new();
    let mut put = |path: &str, more: &[&str]| -> Result<()> {
        let text = head("the chart deploy/helm/martlet") + &render(more)?;
        files.insert(repository("deploy/kustomize").join(path), text);
        anyhow::Ok(())
    };
    put("martlet/martlet.yaml", &["--set", "rbac.gatewayClasses=false"])?;
    let monitoring = ["--set", "monitoring.enabled=true"];
    put(
        "components/monitoring/monitoring.yaml",
        &[&monitoring[..], &["--show-only", "templates/monitoring.yaml"]].concat(),
    )?;
    put(
        "components/monitoring/pod-template.yaml",
        &[&monitoring[..], &["--show-only", "templates/pod-template.yaml"]].concat(),
    )?;
    // Of the controller's rights only those without a namespace.
    let rights = render(&["--show-only", "templates/rbac-controller.yaml"])?;
    let parts = rights.split("---\n").filter(|text| text.contains("kind: ClusterRole"));
    let classes = parts.fold(String::new(), |all, text| all + "---\n" + text);
    ensure!(classes.matches("\nkind: ClusterRole\n").count() == 1, "one ClusterRole");
    let classes = head("the chart deploy/helm/martlet")
        + &classes.replace("default-martlet-controller-classes", "martlet-controller-classes");
    files.insert(repository("deploy/kustomize/components/gatewayclasses/gatewayclasses.yaml"), classes);
    Ok(files)
}

/// Compares with what is written, or writes it. Returns what has drifted.
fn settle(files: &Files) -> Result<Vec<String>> {
    let mut drifted = Vec::new();
    for (path, text) in files {
        if fs::read_to_string(path).unwrap_or_default() == *text {
            continue;
        }
        if std::env::var_os("UPDATE").is_some() {
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, text)?;
        } else {
            drifted.push(path.display().to_string());
        }
    }
    Ok(drifted)
}

#[test]
fn the_generated_parts_are_those_of_their_sources() -> Result<()> {
    let mut files = Files::new();
    crds(&mut files)?;
    rbac(&mut files)?;
    tuning(&mut files)?;
    pod(&mut files)?;
    readme(&mut files)?;
    for (from, to) in [("alerts.yaml", "alerts.yaml"), ("martlet.json", "dashboard.json")] {
        let text = read(&repository("deploy/dashboard").join(from))?;
        files.insert(repository("deploy/helm/martlet/files").join(to), text);
    }
    let mut drifted = settle(&files)?;
    let rendered = kustomize()?;
    drifted.extend(settle(&rendered)?);
    ensure!(drifted.is_empty(), "drifted: {drifted:#?}\n{COMMAND}");
    let made: BTreeSet<_> = files.keys().chain(rendered.keys()).collect();
    for folder in WHOLE_FOLDERS {
        for entry in fs::read_dir(repository(folder))? {
            let path = entry?.path();
            let listed = path.file_name().is_some_and(|name| name == "kustomization.yaml");
            ensure!(listed || made.contains(&path), "{} is left over", path.display());
        }
    }
    // What is generated is YAML, and says what its source says.
    for (name, text) in yaml_of("deploy/crds")? {
        let source: Value = serde_saphyr::from_str(&text)?;
        let copy = &documents(&files[&repository("deploy/kustomize/crds").join(&name)])?[0];
        ensure!(source["spec"] == copy["spec"], "{name}: the copy says something else");
    }
    Ok(())
}

#[test]
fn versions_of_charts_are_those_of_the_workspace() -> Result<()> {
    for chart in ["martlet", "martlet-crds"] {
        let text = read(&repository("deploy/helm").join(chart).join("Chart.yaml"))?;
        let chart: Value = serde_saphyr::from_str(&text)?;
        for key in ["version", "appVersion"] {
            ensure!(chart[key] == env!("CARGO_PKG_VERSION"), "{chart}: {key}");
        }
        ensure!(chart["kubeVersion"] == ">=1.28-0", "{chart}");
    }
    Ok(())
}
