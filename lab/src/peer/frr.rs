//! FRR from Debian as the gateway: `zebra`, `bfdd` and `bgpd` in a namespace, asked through `vtysh` in JSON.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::Value;

use super::{Gateway, Heard, LARGE, MED, Neighbor, Peer, Run, as_numbers};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::{LIMIT, Seen, until};

/// Where Debian has the daemons.
pub const DAEMONS: &str = "/usr/lib/frr";
/// Where the daemons keep their sockets, a folder for each `-N`.
const STATE: &str = "/var/run/frr";

/// What it says to `echo-mode`, although it takes it.
const ECHO_HINT: &str = "% Echo mode works correctly for IPv4";

/// FRR in a namespace.
#[derive(Debug)]
pub struct Frr {
    namespace: Namespace,
    peer_group: String,
    /// zebra, bfdd and, unless it was started for BFD alone, bgpd.
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
        let port = bgp_port.to_string();
        let daemons = Self::spawn(lab, namespace, &[("zebra", &[]), ("bfdd", &[]), ("bgpd", &["-p", &port])])?;
        let frr = Self { namespace: namespace.clone(), peer_group: peer_group.to_owned(), daemons };
        let said = frr.vtysh(&["-f", &config.to_string_lossy()])?;
        let refused = |line: &&str| (line.contains('%') || line.contains("rror")) && !line.starts_with(ECHO_HINT);
        if let Some(line) = said.lines().find(refused) {
            bail!("FRR does not take {}: {line}", config.display());
        }
        Ok(frr)
    }

    /// Starts zebra and bfdd only, and gives bfdd its configuration in one transaction: line by line, a thousand sessions take
    /// it more than a minute.
    ///
    /// # Errors
    /// A daemon does not start, or refuses the configuration.
    pub fn start_bfd(lab: &Lab, namespace: &Namespace, config: &str) -> Result<Self> {
        let daemons = Self::spawn(lab, namespace, &[("zebra", &[]), ("bfdd", &["--tcli"])])?;
        let mut terminal = Terminal::open(&Path::new(STATE).join(namespace.name()).join("bfdd.vty"))?;
        for line in ["enable", "configure terminal"].into_iter().chain(config.lines()) {
            let said = terminal.say(line)?;
            if said.contains('%') {
                bail!("bfdd does not take {line:?}: {said}");
            }
        }
        let said = terminal.say("commit")?;
        if !said.contains("committed successfully") {
            bail!("bfdd does not take its configuration: {said}");
        }
        Ok(Self { namespace: namespace.clone(), peer_group: String::new(), daemons })
    }

    fn spawn(lab: &Lab, namespace: &Namespace, wanted: &[(&str, &[&str])]) -> Result<Vec<Process>> {
        let state = Path::new(STATE).join(namespace.name());
        // The sockets of one that was killed look like those of one that listens.
        let _ = fs::remove_dir_all(&state);
        fs::create_dir_all(&state).with_context(|| format!("make {}", state.display()))?;
        let (user, group) = (id_of("/etc/passwd", "frr")?, id_of("/etc/group", "frr")?);
        std::os::unix::fs::chown(&state, Some(user), Some(group))?;
        let mut daemons = Vec::new();
        for (daemon, arguments) in wanted {
            let mut command = Command::new(format!("{DAEMONS}/{daemon}"));
            command.args(["-N", namespace.name(), "-f", "/dev/null", "-A", "127.0.0.1", "-P", "0", "--log", "stdout"]);
            command.args(*arguments);
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
        Ok(daemons)
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

/// The socket of a daemon on which vtysh speaks with it: a line that ends with a zero octet, an answer that ends with three and
/// a status.
struct Terminal(UnixStream);

impl Terminal {
    fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self(stream))
    }

    fn say(&mut self, line: &str) -> Result<String> {
        self.0.write_all(&[line.as_bytes(), &[0]].concat())?;
        let (mut answer, mut room) = (Vec::new(), [0; 4096]);
        loop {
            if let Some((said, [0, 0, 0, _])) = answer.split_last_chunk::<4>() {
                return Ok(String::from_utf8_lossy(said).into_owned());
            }
            match self.0.read(&mut room).with_context(|| format!("no answer to {line:?}"))? {
                0 => bail!("the daemon hung up at {line:?}"),
                read => answer.extend(room.iter().take(read)),
            }
        }
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

/// FRR with one neighbour.
#[derive(Debug)]
pub struct Speaker {
    frr: Frr,
    run: Run,
}

impl Speaker {
    pub(crate) fn start(lab: &Lab, run: Run) -> Result<Self> {
        let config = run.file("frr.conf", &configuration(&run))?;
        let frr = Frr::start(lab, &run.namespace, &config, run.setup.port, "")?;
        Ok(Self { frr, run })
    }

    fn family(&self) -> &'static str {
        self.run.setup.family()
    }

    fn neighbor(&self) -> Result<Value> {
        let address = self.run.setup.neighbor.to_string();
        let all = self.frr.show("show bgp neighbors json")?;
        all.get(&address).cloned().with_context(|| format!("FRR has no neighbor {address}"))
    }

    fn router(&self) -> String {
        format!("router bgp {}", self.run.setup.local_as)
    }
}

fn configuration(run: &Run) -> String {
    let setup = &run.setup;
    let (neighbor, hold) = (setup.neighbor, setup.hold_time_s);
    let mut lines = vec!["frr defaults datacenter".to_owned()];
    if setup.bfd {
        lines.push("bfd\n profile lab\n  receive-interval 300\n  transmit-interval 300\n  detect-multiplier 3".into());
        lines.push(" exit\nexit".into());
    }
    lines.push(format!("route-map TAG permit 10\n set metric {MED}\n set large-community {LARGE}"));
    if !setup.internal() {
        lines.push(format!(" set as-path prepend {0} {0}", setup.local_as));
    }
    lines.push(format!("exit\nrouter bgp {}", setup.local_as));
    for line in ["bgp router-id 10.1.0.2", "no bgp ebgp-requires-policy", "no bgp default ipv4-unicast"] {
        lines.push(format!(" {line}"));
    }
    lines.push(" no bgp network import-check".into());
    if setup.graceful {
        lines.push(" bgp graceful-restart\n bgp graceful-restart preserve-fw-state".into());
    }
    lines.push(format!(" neighbor {neighbor} remote-as {}", setup.remote_as));
    lines.push(format!(" neighbor {neighbor} port {}", setup.port));
    lines.push(format!(" neighbor {neighbor} timers {} {hold}", hold / 3));
    lines.push(format!(" neighbor {neighbor} timers connect 1"));
    if let Some(password) = &setup.password {
        lines.push(format!(" neighbor {neighbor} password {password}"));
    }
    if setup.bfd {
        lines.push(format!(" neighbor {neighbor} bfd\n neighbor {neighbor} bfd profile lab"));
    }
    lines.push(format!(" address-family {} unicast\n  neighbor {neighbor} activate", setup.family()));
    lines.push(format!("  network {}", setup.announce));
    if let Some(tagged) = setup.tagged {
        lines.push(format!("  network {tagged} route-map TAG"));
    }
    lines.push(" exit-address-family\nexit\n".into());
    lines.join("\n")
}

impl Peer for Speaker {
    fn title(&self) -> String {
        self.frr.title()
    }

    fn established(&self) -> Result<bool> {
        Ok(self.neighbor()?.get("bgpState").and_then(Value::as_str) == Some("Established"))
    }

    fn received(&self) -> Result<BTreeMap<IpNet, Heard>> {
        let mut heard = BTreeMap::new();
        for prefix in self.frr.learned()?.into_keys() {
            let shown = self.frr.show(&format!("show bgp {} unicast {prefix} json", self.family()))?;
            let Some(path) = shown.pointer("/paths/0") else { continue };
            let text = |pointer: &str| path.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let large = text("/largeCommunity/string").split_whitespace().map(str::to_owned).collect();
            let route = Heard {
                as_path: as_numbers(text("/aspath/string")),
                next_hop: text("/nexthops/0/ip").parse().ok(),
                large,
            };
            heard.insert(prefix, route);
        }
        Ok(heard)
    }

    fn withdraw(&self) -> Result<()> {
        let family = format!("address-family {} unicast", self.family());
        self.frr.configure(&[&self.router(), &family, &format!("no network {}", self.run.setup.announce)])
    }

    fn refresh(&self) -> Result<()> {
        let clear = format!("clear bgp {} {} soft in", self.family(), self.run.setup.neighbor);
        self.frr.vtysh(&["-c", &clear]).map(drop)
    }

    fn shut_down(&self, text: &str) -> Result<()> {
        let command = format!("neighbor {} shutdown message {text}", self.run.setup.neighbor);
        self.frr.configure(&[&self.router(), &command]).map(drop)
    }

    fn reasons(&self) -> Result<String> {
        let log = self.frr.daemons.last().map(Process::log).unwrap_or_default();
        Ok(log.lines().filter(|line| line.contains("NOTIFICATION")).collect::<Vec<_>>().join("\n"))
    }

    fn reset(&self) -> Result<()> {
        self.frr.vtysh(&["-c", &format!("clear bgp {}", self.run.setup.neighbor)]).map(drop)
    }

    fn bfd_up(&self) -> Result<bool> {
        Ok(self.frr.neighbors()?.get(&self.run.setup.neighbor).is_some_and(|one| one.bfd_up == Some(true)))
    }

    fn processes(&self) -> &[Process] {
        &self.frr.daemons
    }
}

/// The numeric id of a name in `/etc/passwd` or `/etc/group`.
fn id_of(file: &str, name: &str) -> Result<u32> {
    let text = fs::read_to_string(file)?;
    let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let id = fields.filter(|fields| fields.first() == Some(&name)).find_map(|fields| fields.get(2)?.parse().ok());
    id.with_context(|| format!("no {name} in {file}: is the package frr installed?"))
}
