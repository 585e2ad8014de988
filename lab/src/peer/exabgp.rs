//! `ExaBGP` with one neighbour. It has no table: what it was told is put together from the lines of its API.
//!
//! Its API program reads commands from a FIFO and writes what it is told to a file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::process::Command;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::Value;

use super::{Heard, LARGE, Lack, MED, Peer, Run};
use crate::lab::Lab;
use crate::process::Process;
use crate::wait::{LIMIT, Seen, until};

/// `ExaBGP`.
#[derive(Debug)]
pub struct Exabgp {
    run: Run,
    process: Process,
}

impl Exabgp {
    pub(crate) fn start(lab: &Lab, run: Run) -> Result<Self> {
        let [commands, told] = ["commands", "told"].map(|name| run.dir.join(name));
        let _ = fs::remove_file(&commands);
        let _ = fs::remove_file(&told);
        run.ask("mkfifo", &[&commands.to_string_lossy()])?;
        let program = format!(
            "#!/bin/sh\ntrap 'kill $!' EXIT TERM\n(while :; do cat {}; done) &\ncat > {}\n",
            commands.display(),
            told.display()
        );
        let program = run.file("program", &program)?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        let path = run.file("exabgp.conf", &configuration(&run))?;
        let mut command = Command::new("exabgp");
        command.arg(path);
        let address = run.setup.address.to_string();
        let port = run.setup.port.to_string();
        for (key, value) in [
            ("daemon.user", "root"),
            ("daemon.drop", "false"),
            ("tcp.bind", &address),
            ("tcp.port", &port),
            ("api.cli", "false"),
            ("log.destination", "stdout"),
        ] {
            command.env(format!("exabgp.{key}"), value);
        }
        let process = run.spawn(lab, command)?;
        let exabgp = Self { run, process };
        until("ExaBGP to start its program", LIMIT, || {
            Run::alive(&exabgp.process)?;
            Ok(if told.exists() { Seen::Yes(()) } else { Seen::not_yet(exabgp.process.tail(1)) })
        })?;
        Ok(exabgp)
    }

    /// Gives it a line of its API.
    ///
    /// # Errors
    /// Its program does not read.
    pub fn command(&self, line: &str) -> Result<()> {
        let path = self.run.dir.join("commands");
        // Without a reader the open fails at once instead of waiting.
        let open = || OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let mut file = until("ExaBGP's program to read", LIMIT, || {
            Ok(open().map_or_else(|error| Seen::not_yet(error.to_string()), Seen::Yes))
        })?;
        writeln!(file, "{line}").context("write to ExaBGP's program")
    }

    /// Whether the session is up, and the routes that it was told since it came up.
    fn told(&self) -> (bool, BTreeMap<IpNet, Heard>) {
        let text = fs::read_to_string(self.run.dir.join("told")).unwrap_or_default();
        let (mut up, mut routes) = (false, BTreeMap::new());
        // Lines that are no JSON are answers to commands (and its reports of route refreshes, which are broken).
        for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let neighbor = line.get("neighbor");
            if let Some(state) = neighbor.and_then(|one| one.get("state")?.as_str()) {
                up = state == "up";
                if !up {
                    routes.clear();
                }
            }
            let Some(update) = neighbor.and_then(|one| one.pointer("/message/update")) else { continue };
            take(update, &mut routes);
        }
        (up, routes)
    }
}

/// Every `nlri` of a list.
fn prefixes(list: &Value) -> impl Iterator<Item = IpNet> {
    list.as_array().into_iter().flatten().filter_map(|one| one.get("nlri")?.as_str()?.parse().ok())
}

fn take(update: &Value, routes: &mut BTreeMap<IpNet, Heard>) {
    for (_, list) in update.get("withdraw").and_then(Value::as_object).into_iter().flatten() {
        for prefix in prefixes(list) {
            routes.remove(&prefix);
        }
    }
    let numbers = |list: &Value| -> Vec<u32> {
        let each = list.as_array().into_iter().flatten();
        each.filter_map(|one| one.as_u64().and_then(|one| u32::try_from(one).ok())).collect()
    };
    let as_path = update.pointer("/attribute/as-path").map(numbers).unwrap_or_default();
    let large = update.pointer("/attribute/large-community").and_then(Value::as_array).into_iter().flatten();
    let large = large.map(|one| numbers(one).iter().map(u32::to_string).collect::<Vec<_>>().join(":"));
    let large: std::collections::BTreeSet<String> = large.collect();
    for (_, hops) in update.get("announce").and_then(Value::as_object).into_iter().flatten() {
        let hops = hops.as_object().into_iter().flatten();
        let hops: Vec<_> = hops.filter_map(|(hop, list)| Some((hop.parse::<IpAddr>().ok()?, list))).collect();
        // Of the two next hops of IPv6 (RFC 2545) it makes two routes.
        let is_second = |hop: IpAddr| hops.len() > 1 && matches!(hop, IpAddr::V6(hop) if hop.is_unicast_link_local());
        for (hop, list) in hops.iter().filter(|(hop, _)| !is_second(*hop)) {
            for prefix in prefixes(list) {
                let next_hop = Some(*hop);
                routes.insert(prefix, Heard { as_path: as_path.clone(), next_hop, large: large.clone() });
            }
        }
    }
}

fn configuration(run: &Run) -> String {
    let setup = &run.setup;
    let mut text = format!(
        "process api {{ run {}; encoder json; }}\nneighbor {} {{\n\trouter-id 10.1.0.2;\n\tlocal-address {};\n\
         \tlocal-as {};\n\tpeer-as {};\n\thold-time {};\n\tconnect {};\n",
        run.dir.join("program").display(),
        setup.neighbor,
        setup.address,
        setup.local_as,
        setup.remote_as,
        setup.hold_time_s,
        setup.port,
    );
    // Writing to a String never fails.
    if let Some(password) = &setup.password {
        let _ = writeln!(text, "\tmd5-password \"{password}\";");
    }
    let graceful = if setup.graceful { " graceful-restart 60;" } else { "" };
    let four_octet = if setup.four_octet { "" } else { " asn4 disable;" };
    let _ = write!(
        text,
        "\tfamily {{ {} unicast; }}\n\tcapability {{ route-refresh enable;{graceful}{four_octet} }}\n\
         \tapi {{ processes [ api ]; neighbor-changes; receive {{ parsed; update; }} }}\n\tstatic {{\n",
        setup.family()
    );
    let _ = writeln!(text, "\t\troute {} next-hop self;", setup.announce);
    if let Some(tagged) = setup.tagged {
        let path = if setup.internal() { String::new() } else { format!(" as-path [ {0} {0} {0} ];", setup.local_as) };
        let _ = writeln!(text, "\t\troute {tagged} {{ next-hop self; med {MED}; large-community [ {LARGE} ];{path} }}");
    }
    text.push_str("\t}\n}\n");
    text
}

impl Peer for Exabgp {
    fn title(&self) -> String {
        let log = self.process.log();
        let line = log.lines().find(|line| line.contains("| version"));
        format!("ExaBGP {}", line.and_then(|line| line.rsplit(' ').next()).unwrap_or_default())
    }

    fn established(&self) -> Result<bool> {
        Run::alive(&self.process)?;
        Ok(self.told().0)
    }

    fn received(&self) -> Result<BTreeMap<IpNet, Heard>> {
        Ok(self.told().1)
    }

    fn withdraw(&self) -> Result<()> {
        self.command(&format!("withdraw route {} next-hop self", self.run.setup.announce))
    }

    fn refresh(&self) -> Result<()> {
        self.command(&format!("announce route-refresh {} unicast", self.run.setup.family()))
    }

    fn shut_down(&self, _text: &str) -> Result<()> {
        bail!("`teardown` takes a subcode and no text")
    }

    fn lacks(&self) -> &'static [(Lack, &'static str)] {
        &[
            (Lack::Graceful, "it forwards nothing: it does not say that it kept its state"),
            (Lack::SendText, "its `teardown` takes a subcode and no text"),
            (
                Lack::ReadText,
                "it fails on every shutdown communication (a TypeError of its own); the NOTIFICATION was sent, and we ended cleanly",
            ),
        ]
    }

    fn reasons(&self) -> Result<String> {
        let told = fs::read_to_string(self.run.dir.join("told")).unwrap_or_default();
        let told = told.lines().filter(|line| line.contains("\"down\""));
        let log = self.process.log();
        Ok(told.chain(log.lines().filter(|line| line.contains("otification"))).collect::<Vec<_>>().join("\n"))
    }

    fn reset(&self) -> Result<()> {
        self.command(&format!("neighbor {} teardown 4", self.run.setup.neighbor))
    }

    fn processes(&self) -> &[Process] {
        std::slice::from_ref(&self.process)
    }
}
