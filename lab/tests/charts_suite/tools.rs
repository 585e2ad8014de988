//! Programs that the tests of the charts run, and the folders that they look at.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// A file or folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Runs a script of ours that brings a program; its last line names it.
fn brought(script: &str) -> Result<PathBuf> {
    let output = Command::new(repository(script)).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("{script} failed");
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().last().with_context(|| format!("{script} named nothing"))?.into())
}

fn once(cell: &'static OnceLock<Result<PathBuf, String>>, script: &str) -> Result<PathBuf> {
    cell.get_or_init(|| brought(script).map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

/// Helm.
pub fn helm() -> Result<PathBuf> {
    static HELM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&HELM, "deploy/lab/helm/build.sh")
}

/// promtool.
pub fn promtool() -> Result<PathBuf> {
    static PROMTOOL: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&PROMTOOL, "deploy/lab/promtool.sh")
}

/// kubectl.
pub fn kubectl() -> Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(|folder| PathBuf::from(folder).join("kubectl"));
    match assets.filter(|path| path.exists()) {
        Some(path) => Ok(path),
        None => Ok(once(&FOLDER, "deploy/lab/kubernetes/build.sh")?.join("kubectl")),
    }
}

/// Runs a program to its end, whatever that is.
pub fn attempt(program: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    // The repositories of whoever runs the tests are no concern of theirs.
    command.args(arguments).stdin(Stdio::null()).env_remove("KUBECONFIG").env("HELM_REPOSITORY_CONFIG", "/nowhere");
    command.output().with_context(|| format!("start {}", program.display()))
}

/// As [`attempt`]; an error unless it succeeds. Returns its standard output.
pub fn run(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = attempt(program, arguments)?;
    if !output.status.success() {
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        bail!("{} {}: {}", program.display(), arguments.join(" "), String::from_utf8_lossy(&said).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Renders the chart of the product for a release `red` in the namespace `red`.
pub fn render(settings: &[&str]) -> Result<String> {
    let chart = repository("deploy/helm/martlet");
    let mut arguments = vec!["template", "red", chart.to_str().context("a path in UTF-8")?, "--namespace", "red"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
    run(&helm()?, &arguments)
}

/// The documents of a YAML text; empty ones are left out.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// The one document of a kind and name.
pub fn find<'d>(documents: &'d [Value], kind: &str, name: &str) -> Result<&'d Value> {
    let mut found =
        documents.iter().filter(|document| document["kind"] == kind && document["metadata"]["name"] == name);
    let first = found.next().with_context(|| format!("no {kind} {name}"))?;
    anyhow::ensure!(found.next().is_none(), "two of {kind} {name}");
    Ok(first)
}
