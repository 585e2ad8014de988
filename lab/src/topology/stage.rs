//! A topology on this machine: its nodes as processes in namespaces of their own, its links as veth pairs.
//!
//! A node has a network, mount, process, host name and IPC namespace; its root is an overlay over the machine's own, so that what
//! it writes ends with it, with a `/run` and a `/tmp` of its own and its binds. `node.sh` is its first process until its command is.
//! Nodes that join another share its network namespace only, as containers of a pod do.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::file::{Node, Topology};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::{LIMIT, Seen, until};

/// The first process of a node.
const NODE: &str = include_str!("node.sh");
/// Where the product's image has it.
const PRODUCT: &str = "/usr/bin/martlet";
/// What containerlab gives its links.
const MTU: u32 = 9500;
/// What a node's processes have in their environment besides their own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A topology that is up.
#[derive(Debug)]
pub struct Stage {
    processes: BTreeMap<String, Process>,
    nodes: PathBuf,
}

/// Where the sockets of a pod are that its containers share.
///
/// # Errors
/// The folder cannot be made.
pub fn shared_folder(lab: &Lab) -> Result<PathBuf> {
    let folder = lab.dir().join("run");
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, Permissions::from_mode(0o1777))?;
    Ok(folder)
}

impl Stage {
    /// Builds it: namespaces, links, first processes, then what each node executes.
    ///
    /// # Errors
    /// Any part of it fails. What was made is the lab's to remove.
    pub fn build(lab: &Lab, topology: &Topology, martlet: &Path) -> Result<Self> {
        let mut namespaces = BTreeMap::new();
        for (name, _) in topology.nodes.iter().filter(|(_, node)| node.joins.is_none()) {
            namespaces.insert(name.as_str(), lab.namespace(name)?);
        }
        let of = |name: &str| {
            let owner = topology.nodes.get(name).and_then(|node| node.joins.as_deref()).unwrap_or(name);
            namespaces.get(owner).with_context(|| format!("{name} has no namespace"))
        };
        for [a, b] in &topology.links {
            let ends = [(of(&a.node)?, a.interface.as_str()), (of(&b.node)?, b.interface.as_str())];
            lab.link(ends[0], ends[1]).with_context(|| format!("link {a} {b}"))?;
            for (namespace, interface) in ends {
                namespace.ip(&format!("link set {interface} mtu {MTU}"))?;
            }
        }
        let mut stage = Self { processes: BTreeMap::new(), nodes: lab.dir().join("nodes") };
        // Those that join come last, as their owner's folder and sysctls must be there.
        let (joining, own): (Vec<_>, Vec<_>) = topology.nodes.iter().partition(|(_, node)| node.joins.is_some());
        for (name, node) in own.iter().chain(&joining) {
            stage.start(lab, name, node, of(name)?, martlet).with_context(|| format!("start the node {name}"))?;
        }
        for (name, node) in &topology.nodes {
            for command in &node.exec {
                stage.execute(name, command)?;
            }
        }
        Ok(stage)
    }

    /// A folder for each node, with the process id and the network namespace that `on` and `kill-node` need.
    pub fn nodes(&self) -> &Path {
        &self.nodes
    }

    fn start(&mut self, lab: &Lab, name: &str, node: &Node, namespace: &Namespace, martlet: &Path) -> Result<()> {
        for (key, value) in &node.sysctls {
            namespace.sysctl(key, value)?;
        }
        let folder = self.nodes.join(name);
        let (place, ready) = (folder.join("place"), folder.join("ready"));
        fs::create_dir_all(&place)?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "sh", "-c", NODE, "node"]);
        command.arg(name).arg(&place).arg(&ready);
        command.arg(martlet).args([PRODUCT, "ro"]);
        for bind in &node.binds {
            command.arg(&bind.source).arg(&bind.target).arg(if bind.read_only { "ro" } else { "rw" });
        }
        command.arg("--").args(&node.command);
        command.env_clear().env("PATH", PATH).env("HOME", "/root").envs(&node.env);
        let process = lab.spawn(name, Some(namespace), command)?;
        fs::write(folder.join("pid"), process.pid().to_string())?;
        fs::write(folder.join("netns"), namespace.name())?;
        until("its root", LIMIT, || {
            if let Some(status) = process.ended() {
                bail!("it ended: {status}: {}", process.tail(5).trim());
            }
            let said = fs::read_to_string(&ready).unwrap_or_default();
            Ok(if said.is_empty() { Seen::not_yet(process.tail(5)) } else { Seen::Yes(()) })
        })?;
        self.processes.insert(name.to_owned(), process);
        Ok(())
    }

    /// Runs a command in a node to its end.
    fn execute(&self, name: &str, words: &[String]) -> Result<()> {
        let pid = self.processes.get(name).map(Process::pid).with_context(|| format!("no node {name}"))?;
        let output = Command::new("nsenter")
            .args(["--target", &pid.to_string(), "--mount", "--net", "--uts", "--ipc"])
            .arg(format!("--pid=/proc/{pid}/ns/pid_for_children"))
            .arg("--")
            .args(words)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .context("start nsenter")?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("{name}: {}: {}: {}", words.join(" "), output.status, String::from_utf8_lossy(&said).trim());
        }
        Ok(())
    }
}
