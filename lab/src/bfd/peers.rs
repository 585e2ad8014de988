//! FRR and BIRD as the other end of BFD sessions: their configurations, and how BIRD is started.
//!
//! FRR is started by [`crate::peer::frr`].

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use super::stage::{Kind, Stage};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::{LIMIT, Seen, until};

/// The name of a session in FRR's commands.
fn frr_peer(stage: &Stage, kind: Kind) -> String {
    let [ours, theirs] = stage.addresses(kind);
    match kind {
        Kind::Ipv4 => format!("peer {ours} interface eth0"),
        Kind::Ipv6 | Kind::LinkLocal => format!("peer {ours} local-address {theirs} interface eth0"),
        Kind::Multihop4 | Kind::Multihop6 => format!("peer {ours} multihop local-address {theirs}"),
    }
}

/// FRR's end of sessions: `extra` is said of each.
pub fn frr_config(stage: &Stage, kinds: &[Kind], interval_ms: u64, multiplier: u8, extra: &str) -> String {
    let mut text = String::from("bfd\n");
    for kind in kinds {
        let hops = if kind.is_multihop() { "  minimum-ttl 254\n" } else { "" };
        let _ = write!(
            text,
            " {}\n  detect-multiplier {multiplier}\n  receive-interval {interval_ms}\n  transmit-interval {interval_ms}\n{hops}{extra} exit\n",
            frr_peer(stage, *kind)
        );
    }
    text + "exit\n"
}

/// BIRD's end of all kinds of sessions; `extra` is said of the interface.
pub fn bird_config(stage: &Stage, interval_ms: u64, multiplier: u8, extra: &str) -> String {
    let mut text = format!(
        "router id 10.0.0.2;\nprotocol device {{}}\nprotocol bfd {{\n\
         interface \"eth*\" {{ min rx interval {interval_ms} ms; min tx interval {interval_ms} ms; idle tx interval 1 s; \
         multiplier {multiplier}; {extra} }};\n\
         multihop {{ interval {interval_ms} ms; idle tx interval 1 s; multiplier {multiplier}; }};\n"
    );
    for kind in Kind::ALL {
        let [ours, theirs] = stage.addresses(kind);
        let how = if kind.is_multihop() { "multihop" } else { "" };
        let device = if kind == Kind::LinkLocal { "dev \"eth0\"" } else { "" };
        let _ = writeln!(text, "neighbor {ours} {device} local {theirs} {how};");
    }
    text + "}\n"
}

/// BIRD in a namespace.
#[derive(Debug)]
pub struct Bird {
    /// The process.
    pub process: Process,
    namespace: Namespace,
    control: String,
    file: PathBuf,
}

impl Bird {
    /// Starts it in the foreground.
    ///
    /// # Errors
    /// It does not start, or refuses the configuration.
    pub fn start(lab: &Lab, namespace: &Namespace, config: &str) -> Result<Self> {
        let (file, control) = (lab.dir().join("bird.conf"), lab.dir().join("bird.ctl"));
        fs::write(&file, config)?;
        let mut command = Command::new("bird");
        command.arg("-f").arg("-c").arg(&file).arg("-s").arg(&control);
        let process = lab.spawn("bird", Some(namespace), command)?;
        until("BIRD to listen", LIMIT, || {
            if let Some(status) = process.ended() {
                bail!("BIRD ended: {status}: {}", process.tail(5));
            }
            Ok(if control.exists() { Seen::Yes(()) } else { Seen::not_yet(process.tail(1)) })
        })?;
        Ok(Self { process, namespace: namespace.clone(), control: control.to_string_lossy().into_owned(), file })
    }

    /// Gives it another configuration while it runs.
    ///
    /// # Errors
    /// It refuses it.
    pub fn configure(&self, config: &str) -> Result<()> {
        fs::write(&self.file, config)?;
        let said = self.namespace.output("birdc", &["-s", &self.control, "configure"])?;
        if said.contains("Reconfigur") { Ok(()) } else { bail!("BIRD does not take its configuration: {said}") }
    }

    /// Switches its BFD off or on.
    ///
    /// # Errors
    /// It does not answer.
    pub fn enable(&self, on: bool) -> Result<()> {
        let word = if on { "enable" } else { "disable" };
        self.namespace.output("birdc", &["-s", &self.control, word, "bfd1"]).map(drop)
    }

    /// What it says of its sessions.
    ///
    /// # Errors
    /// It does not answer.
    pub fn sessions(&self) -> Result<String> {
        self.namespace.output("birdc", &["-s", &self.control, "show", "bfd", "sessions"])
    }

    /// What it is, with its version.
    pub fn title() -> String {
        let said = Command::new("bird").arg("--version").output();
        let said = said.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        String::from_utf8_lossy(&said).trim().replace(" version", "")
    }
}
