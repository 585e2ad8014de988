//! `martlet-lab topology`: the topologies of `deploy/containerlab` without containers.
//!
//! A file in containerlab's format, of which [`mod@file`] reads a strict subset, becomes a stage of namespaces ([`stage`]); then the
//! topology's own `check` looks at it from outside, the same program that looks at the containers. Knows no product.

pub mod file;
pub mod stage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{End, Lab};
use crate::{demo, preflight};
use file::Topology;
use stage::Stage;

/// What to do with a topology.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Action {
    /// Bring it up, and leave it up until Ctrl-C.
    #[default]
    Up,
    /// Bring it up, run its check, remove it.
    Check,
    /// Only read the file.
    Lint,
}

/// What is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// A file `*.clab.yml`, or a folder that holds one.
    pub topology: PathBuf,
    /// What to do with it.
    #[arg(value_enum, default_value = "up")]
    pub action: Action,
}

/// Runs it.
///
/// # Errors
/// The file is not of the subset, the topology cannot be built, or its check fails.
pub fn run(options: &Options) -> Result<()> {
    let path = file_of(&options.topology)?;
    let folder = path.parent().context("a file in no folder")?;
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let of_environment = |name: &str| std::env::var(name).ok();
    if options.action == Action::Lint {
        return parse(&path, &text, of_environment).map(|topology| println!("{}: in order", topology.name));
    }
    preflight::check()?;
    let martlet = demo::topology::find_martlet()?;
    let lab = Lab::new(End::Remove)?;
    let shared = stage::shared_folder(&lab)?.display().to_string();
    // Two runs of one topology share no socket.
    let variable = |name: &str| if name == "MARTLET_RUN" { Some(shared.clone()) } else { of_environment(name) };
    let topology = parse(&path, &text, variable)?;
    let result = perform(&lab, &topology, folder, &martlet, options.action);
    result.map_err(|error| {
        lab.mark_failed();
        let tails = lab.tails(6);
        error.context(format!("{}\n{tails}", topology.name))
    })
}

fn parse(path: &Path, text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Topology> {
    let folder = path.parent().unwrap_or(path);
    Topology::parse(text, folder, variable).with_context(|| format!("{}", path.display()))
}

fn perform(lab: &Lab, topology: &Topology, folder: &Path, martlet: &Path, action: Action) -> Result<()> {
    let start = Instant::now();
    let stage = Stage::build(lab, topology, martlet)?;
    let (name, nodes) = (&topology.name, stage.nodes().display());
    println!("{name}: {} nodes, {} links, up in {:.1?}", topology.nodes.len(), topology.links.len(), start.elapsed());
    if action == Action::Up {
        println!("look into it:  export MARTLET_NODES={nodes}; deploy/containerlab/common/on NODE COMMAND ..");
        println!("remove it:     Ctrl-C");
        loop {
            std::thread::park();
        }
    }
    let check = folder.join("check");
    let status = Command::new(&check).current_dir(folder).env("MARTLET_NODES", stage.nodes()).status();
    let status = status.with_context(|| format!("start {}", check.display()))?;
    ensure!(status.success(), "the check fails: {status}");
    Ok(())
}

/// The file itself, or the only one of its kind in the folder.
fn file_of(path: &Path) -> Result<PathBuf> {
    let path = path.canonicalize().with_context(|| format!("{}", path.display()))?;
    if !path.is_dir() {
        return Ok(path);
    }
    let entries = fs::read_dir(&path)?.flatten().map(|entry| entry.path());
    let files: Vec<_> = entries.filter(|path| path.to_string_lossy().ends_with(".clab.yml")).collect();
    match files.as_slice() {
        [file] => Ok(file.clone()),
        _ => bail!("{}: {} files *.clab.yml, not one", path.display(), files.len()),
    }
}
