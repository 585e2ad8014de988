//! `OpenBGPD` (portable) with one neighbour, asked through `bgpctl -j`.
//!
//! Its configuration belongs to root with mode 600, one statement a line. After a reset its idle time doubles from 30 s.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::Value;

use super::{Heard, LARGE, Lack, MED, Peer, Run, as_numbers};
use crate::lab::Lab;
use crate::process::Process;
use crate::wait::{LIMIT, Seen, until};

/// `OpenBGPD`.
#[derive(Debug)]
pub struct Openbgpd {
    run: Run,
    process: Process,
}

impl Openbgpd {
    pub(crate) fn start(lab: &Lab, run: Run) -> Result<Self> {
        let path = run.file("bgpd.conf", &configuration(&run))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        // Its unprivileged process is chrooted there; Debian's unit makes it.
        fs::create_dir_all("/run/openbgpd").context("make /run/openbgpd")?;
        let _ = fs::remove_file(run.dir.join("socket"));
        // FRR's daemon has the same name, in another folder.
        let mut command = Command::new("/usr/sbin/bgpd");
        command.args(["-d", "-v", "-f"]).arg(path);
        let process = run.spawn(lab, command)?;
        let bgpd = Self { run, process };
        until("OpenBGPD to answer", LIMIT, || {
            Run::alive(&bgpd.process)?;
            Ok(bgpd.neighbor().map_or_else(|error| Seen::not_yet(error.to_string()), |_| Seen::Yes(())))
        })?;
        Ok(bgpd)
    }

    fn socket(&self) -> String {
        self.run.dir.join("socket").to_string_lossy().into_owned()
    }

    fn control(&self, words: &[&str]) -> Result<String> {
        self.run.ask("bgpctl", &[&["-s", &self.socket()], words].concat())
    }

    fn neighbor(&self) -> Result<Value> {
        let all = self.run.json("bgpctl", &["-j", "-s", &self.socket(), "show", "neighbor"])?;
        all.pointer("/neighbors/0").cloned().context("OpenBGPD has no neighbor")
    }
}

fn configuration(run: &Run) -> String {
    let setup = &run.setup;
    let mut text = format!(
        "AS {}\nrouter-id 10.1.0.2\nholdtime {hold}\nholdtime min 3\nsocket \"{}\"\nlisten on {} port {port}\n\
         fib-update no\nnetwork {}\n",
        setup.local_as,
        run.dir.join("socket").display(),
        setup.address,
        setup.announce,
        hold = setup.hold_time_s,
        port = setup.port
    );
    // Writing to a String never fails.
    if let Some(tagged) = setup.tagged {
        let prepend = if setup.internal() { "" } else { " prepend-self 2" };
        let _ = writeln!(text, "network {tagged} set {{ large-community {LARGE} metric {MED}{prepend} }}");
    }
    let _ = write!(text, "neighbor {} {{\n\tremote-as {}\n\tport {}\n", setup.neighbor, setup.remote_as, setup.port);
    let _ = writeln!(text, "\tlocal-address {}", setup.address);
    if let Some(password) = &setup.password {
        let _ = writeln!(text, "\ttcp md5sig password \"{password}\"");
    }
    if !setup.four_octet {
        text.push_str("\tannounce as-4byte no\n");
    }
    let family = if setup.address.is_ipv4() { "IPv4" } else { "IPv6" };
    let _ = write!(text, "\tannounce {family} unicast\n}}\nallow from any\nallow to any\n");
    text
}

impl Peer for Openbgpd {
    fn title(&self) -> String {
        let output = self.run.namespace.run("/usr/sbin/bgpd", &["-V"]);
        let said = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        String::from_utf8_lossy(&said).lines().next().unwrap_or("OpenBGPD").trim().to_owned()
    }

    fn established(&self) -> Result<bool> {
        Ok(self.neighbor()?.get("state").and_then(Value::as_str) == Some("Established"))
    }

    fn received(&self) -> Result<BTreeMap<IpNet, Heard>> {
        let neighbor = self.run.setup.neighbor.to_string();
        let words = ["-j", "-s", &self.socket(), "show", "rib", "detail", "neighbor", &neighbor];
        let table = self.run.json("bgpctl", &words)?;
        let mut heard = BTreeMap::new();
        for route in table.get("rib").and_then(Value::as_array).into_iter().flatten() {
            let text = |key: &str| route.get(key).and_then(Value::as_str).unwrap_or_default();
            let Ok(prefix) = text("prefix").parse() else { continue };
            let large = route.get("large_communities").and_then(Value::as_array).into_iter().flatten();
            let large = large.filter_map(|one| one.as_str().map(str::to_owned)).collect();
            let next_hop = text("exit_nexthop").parse().ok();
            heard.insert(prefix, Heard { as_path: as_numbers(text("aspath")), next_hop, large });
        }
        Ok(heard)
    }

    fn withdraw(&self) -> Result<()> {
        self.control(&["network", "delete", &self.run.setup.announce.to_string()]).map(drop)
    }

    fn refresh(&self) -> Result<()> {
        self.control(&["neighbor", &self.run.setup.neighbor.to_string(), "refresh"]).map(drop)
    }

    fn shut_down(&self, text: &str) -> Result<()> {
        self.control(&["neighbor", &self.run.setup.neighbor.to_string(), "down", text]).map(drop)
    }

    fn reasons(&self) -> Result<String> {
        Ok(self.neighbor()?.get("last_shutdown_reason").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    fn reset(&self) -> Result<()> {
        self.control(&["neighbor", &self.run.setup.neighbor.to_string(), "clear"]).map(drop)
    }

    fn lacks(&self) -> &'static [(Lack, &'static str)] {
        &[(Lack::Graceful, "its graceful restart is End-of-RIB only: it offers no family")]
    }

    fn processes(&self) -> &[Process] {
        std::slice::from_ref(&self.process)
    }
}
