//! FRR from Debian as the gateway: `zebra`, `bfdd` and `bgpd` in a namespace, asked through `vtysh` in JSON.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::Value;

use super::{Gateway, Neighbor};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::{LIMIT, Seen, until};

/// Where Debian has the daemons.
pub const DAEMONS: &str = "/usr/lib/frr";
/// Where the daemons keep their sockets, a folder for each `-N`.
const STATE: &str = "/var/run/frr";

/// FRR in a namespace.
#[derive(Debug)]
pub struct Frr {
    namespace: Namespace,
    peer_group: String,
    /// zebra, bfdd, bgpd.
    pub daemons: Vec<Process>,
}

impl Frr {
    /// Starts the daemons, BGP listening on `bgp_port`, and gives them the configuration.
    ///
    /// `peer_group` is the name of the group that the neighbours are in.
    ///
    /// # Errors
    /// A daemon does not start, or refuses the configuration.
    pub fn start(lab: &Lab, namespace: &Namespace, config: &Path, bgp_port: u16, peer_group: &str) -> Result<Self> {
        let state = Path::new(STATE).join(namespace.name());
        fs::create_dir_all(&state).with_context(|| format!("make {}", state.display()))?;
        let (user, group) = (id_of("/etc/passwd", "frr")?, id_of("/etc/group", "frr")?);
        std::os::unix::fs::chown(&state, Some(user), Some(group))?;
        let port = bgp_port.to_string();
        let mut daemons = Vec::new();
        for daemon in ["zebra", "bfdd", "bgpd"] {
            let mut command = Command::new(format!("{DAEMONS}/{daemon}"));
            command.args(["-N", namespace.name(), "-f", "/dev/null", "-A", "127.0.0.1", "-P", "0", "--log", "stdout"]);
            if daemon == "bgpd" {
                command.args(["-p", &port]);
            }
            let process = lab.spawn(&format!("frr-{daemon}"), Some(namespace), command)?;
            let socket = state.join(format!("{daemon}.vty"));
            until(&format!("FRR's {daemon} to listen"), LIMIT, || {
                if let Some(status) = process.ended() {
                    bail!("FRR's {daemon} ended: {status}: {}", process.tail(5));
                }
                Ok(if socket.exists() { Seen::Yes(()) } else { Seen::not_yet(process.tail(1)) })
            })?;
            daemons.push(process);
        }
        let frr = Self { namespace: namespace.clone(), peer_group: peer_group.to_owned(), daemons };
        let said = frr.vtysh(&["-f", &config.to_string_lossy()])?;
        if let Some(line) = said.lines().find(|line| line.contains('%') || line.contains("rror")) {
            bail!("FRR does not take {}: {line}", config.display());
        }
        Ok(frr)
    }

    fn vtysh(&self, arguments: &[&str]) -> Result<String> {
        let output = self.namespace.run("vtysh", &[&["-N", self.namespace.name()], arguments].concat())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("vtysh {}: {said}{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(said)
    }

    /// The answer of a `show .. json` command.
    ///
    /// # Errors
    /// It does not answer, or not in JSON.
    pub fn show(&self, command: &str) -> Result<Value> {
        let said = self.vtysh(&["-c", command])?;
        serde_json::from_str(&said).with_context(|| format!("vtysh -c '{command}': {said}"))
    }

    /// Runs configuration commands.
    ///
    /// # Errors
    /// One is refused.
    pub fn configure(&self, commands: &[&str]) -> Result<()> {
        let mut arguments = vec!["-c", "configure terminal"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        let said = self.vtysh(&arguments)?;
        if said.contains('%') {
            bail!("FRR does not take {commands:?}: {said}");
        }
        Ok(())
    }
}

impl Gateway for Frr {
    fn title(&self) -> String {
        let said = self.vtysh(&["-c", "show version"]).unwrap_or_default();
        said.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    fn neighbors(&self) -> Result<BTreeMap<IpAddr, Neighbor>> {
        let mut neighbors: BTreeMap<IpAddr, Neighbor> = BTreeMap::new();
        // Both families are objects of neighbours by address; `{}` while there is none.
        for (address, neighbor) in self.show("show bgp neighbors json")?.as_object().into_iter().flatten() {
            if let Ok(address) = address.parse() {
                let state = neighbor.get("bgpState").and_then(Value::as_str).unwrap_or_default();
                neighbors.entry(address).or_default().established = state == "Established";
            }
        }
        for session in self.show("show bfd peers json")?.as_array().into_iter().flatten() {
            if let Some(address) = session.get("peer").and_then(Value::as_str).and_then(|peer| peer.parse().ok()) {
                let up = session.get("status").and_then(Value::as_str) == Some("up");
                neighbors.entry(address).or_default().bfd_up = Some(up);
            }
        }
        Ok(neighbors)
    }

    fn learned(&self) -> Result<BTreeMap<IpNet, Vec<IpAddr>>> {
        let mut learned: BTreeMap<IpNet, Vec<IpAddr>> = BTreeMap::new();
        for family in ["ipv4", "ipv6"] {
            let table = self.show(&format!("show bgp {family} unicast json"))?;
            for (prefix, paths) in table.get("routes").and_then(Value::as_object).into_iter().flatten() {
                let Ok(prefix) = prefix.parse() else { continue };
                let peers = paths.as_array().into_iter().flatten();
                // Its own routes have `(unspec)` there.
                let peers = peers.filter_map(|path| path.get("peerId").and_then(Value::as_str)?.parse::<IpAddr>().ok());
                let peers: Vec<IpAddr> = peers.collect();
                if !peers.is_empty() {
                    learned.entry(prefix).or_default().extend(peers);
                }
            }
        }
        Ok(learned)
    }

    fn announce_default(&self, on: bool) -> Result<()> {
        let show = self.vtysh(&["-c", "show running-config"])?;
        let line = show.lines().find(|line| line.starts_with("router bgp ")).context("FRR runs no BGP")?;
        let mut command = format!("neighbor {} default-originate", self.peer_group);
        if !on {
            command.insert_str(0, "no ");
        }
        let families = ["address-family ipv4 unicast", "address-family ipv6 unicast"];
        for family in families {
            self.configure(&[line, family, &command])?;
        }
        Ok(())
    }

    fn look(&self) -> Vec<String> {
        let name = self.namespace.name();
        ["show bgp summary", "show bgp ipv4 unicast", "show bgp ipv6 unicast", "show bfd peers"]
            .map(|command| format!("vtysh -N {name} -c '{command}'"))
            .into()
    }
}

/// The numeric id of a name in `/etc/passwd` or `/etc/group`.
fn id_of(file: &str, name: &str) -> Result<u32> {
    let text = fs::read_to_string(file)?;
    let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let id = fields.filter(|fields| fields.first() == Some(&name)).find_map(|fields| fields.get(2)?.parse().ok());
    id.with_context(|| format!("no {name} in {file}: is the package frr installed?"))
}
