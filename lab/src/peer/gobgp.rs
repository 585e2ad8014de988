//! `GoBGP` with one neighbour, asked through `gobgp -j`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::Value;

use super::{Heard, LARGE, Lack, MED, Peer, Run};
use crate::lab::Lab;
use crate::process::Process;
use crate::wait::{LIMIT, Seen, until};

/// `GoBGP`.
#[derive(Debug)]
pub struct Gobgp {
    run: Run,
    process: Process,
}

/// The state that it calls 6 is Established.
const ESTABLISHED: u64 = 6;

impl Gobgp {
    pub(crate) fn start(lab: &Lab, run: Run) -> Result<Self> {
        let path = run.file("gobgp.toml", &configuration(&run))?;
        let mut command = Command::new("gobgpd");
        command.args(["-t", "toml", "--api-hosts", "127.0.0.1:50051", "-f"]).arg(path);
        if run.setup.restarted {
            command.arg("-r");
        }
        let process = run.spawn(lab, command)?;
        let gobgp = Self { run, process };
        until("GoBGP to answer", LIMIT, || {
            Run::alive(&gobgp.process)?;
            let answer = gobgp.run.ask("gobgp", &["global"]);
            Ok(answer.map_or_else(|error| Seen::not_yet(error.to_string()), |_| Seen::Yes(())))
        })?;
        let setup = &gobgp.run.setup;
        let family = setup.family();
        let hop = setup.address.to_string();
        gobgp
            .run
            .ask("gobgp", &["global", "rib", "add", &setup.announce.to_string(), "nexthop", &hop, "-a", family])?;
        if let Some(tagged) = setup.tagged {
            let (tagged, med) = (tagged.to_string(), MED.to_string());
            let path = format!("{0} {0}", setup.local_as);
            let mut words =
                vec!["global", "rib", "add", &tagged, "nexthop", &hop, "med", &med, "large-community", LARGE];
            if !setup.internal() {
                words.extend(["aspath", &path]);
            }
            words.extend(["-a", family]);
            gobgp.run.ask("gobgp", &words)?;
        }
        Ok(gobgp)
    }

    fn neighbor(&self) -> String {
        self.run.setup.neighbor.to_string()
    }
}

fn configuration(run: &Run) -> String {
    let setup = &run.setup;
    let mut text = format!(
        "[global.config]\nas = {}\nrouter-id = \"10.1.0.2\"\nport = {}\nlocal-address-list = [\"{}\"]\n\
         [[neighbors]]\n[neighbors.config]\nneighbor-address = \"{}\"\npeer-as = {}\n",
        setup.local_as, setup.port, setup.address, setup.neighbor, setup.remote_as
    );
    // Writing to a String never fails.
    if let Some(password) = &setup.password {
        let _ = writeln!(text, "auth-password = \"{password}\"");
    }
    let _ = write!(
        text,
        "[neighbors.timers.config]\nhold-time = {}\nkeepalive-interval = {}\nconnect-retry = 1\n\
         idle-hold-time-after-reset = 1\n[neighbors.transport.config]\nremote-port = {}\nlocal-address = \"{}\"\n",
        setup.hold_time_s,
        setup.hold_time_s / 3,
        setup.port,
        setup.address
    );
    if setup.graceful {
        text.push_str("[neighbors.graceful-restart.config]\nenabled = true\nrestart-time = 60\n");
    }
    let _ = write!(
        text,
        "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{}-unicast\"\n",
        setup.family()
    );
    if setup.graceful {
        text.push_str("[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true\n");
    }
    text
}

/// The attribute of this type in a route of `gobgp -j`.
fn attribute(route: &Value, number: u64) -> Option<&Value> {
    let all = route.get("attrs").and_then(Value::as_array)?;
    all.iter().find(|one| one.get("type").and_then(Value::as_u64) == Some(number))
}

impl Peer for Gobgp {
    fn title(&self) -> String {
        let said = self.run.ask("gobgpd", &["--version"]).unwrap_or_default();
        format!("GoBGP {}", said.trim().rsplit(' ').next().unwrap_or_default())
    }

    fn established(&self) -> Result<bool> {
        let all = self.run.json("gobgp", &["neighbor", "-j"])?;
        Ok(all.pointer("/0/state/session_state").and_then(Value::as_u64) == Some(ESTABLISHED))
    }

    fn received(&self) -> Result<BTreeMap<IpNet, Heard>> {
        let table =
            self.run.json("gobgp", &["neighbor", &self.neighbor(), "adj-in", "-a", self.run.setup.family(), "-j"])?;
        let mut heard = BTreeMap::new();
        for (prefix, routes) in table.as_object().context("gobgp adj-in: no object")? {
            let (Ok(prefix), Some(route)) = (prefix.parse(), routes.get(0)) else { continue };
            let segments = attribute(route, 2).and_then(|path| path.get("as_paths")?.as_array()).into_iter().flatten();
            let numbers = segments.filter_map(|one| one.get("asns")?.as_array()).flatten();
            let as_path = numbers.filter_map(|one| one.as_u64().and_then(|one| u32::try_from(one).ok())).collect();
            // An IPv6 next hop stands in MP_REACH_NLRI.
            let hop = attribute(route, 3).or_else(|| attribute(route, 14)).and_then(|one| one.get("nexthop")?.as_str());
            let large = attribute(route, 32).and_then(|one| one.get("value")?.as_array()).into_iter().flatten();
            let number = |one: &Value, key: &str| one.get(key).and_then(Value::as_u64).unwrap_or_default();
            let large = large.map(|one| {
                format!("{}:{}:{}", number(one, "ASN"), number(one, "LocalData1"), number(one, "LocalData2"))
            });
            let route = Heard { as_path, next_hop: hop.and_then(|hop| hop.parse().ok()), large: large.collect() };
            heard.insert(prefix, route);
        }
        Ok(heard)
    }

    fn withdraw(&self) -> Result<()> {
        let setup = &self.run.setup;
        self.run.ask("gobgp", &["global", "rib", "del", &setup.announce.to_string(), "-a", setup.family()]).map(drop)
    }

    fn refresh(&self) -> Result<()> {
        self.run.ask("gobgp", &["neighbor", &self.neighbor(), "softresetin"]).map(drop)
    }

    fn lacks(&self) -> &'static [(Lack, &'static str)] {
        &[(Lack::Refresh, "`softresetin` asks its own table again: it never sends a ROUTE-REFRESH")]
    }

    fn shut_down(&self, text: &str) -> Result<()> {
        self.run.ask("gobgp", &["neighbor", &self.neighbor(), "shutdown", "--reason", text]).map(drop)
    }

    fn reasons(&self) -> Result<String> {
        Ok(self.process.log().lines().filter(|line| line.contains("notification")).collect::<Vec<_>>().join("\n"))
    }

    fn reset(&self) -> Result<()> {
        self.run.ask("gobgp", &["neighbor", &self.neighbor(), "reset"]).map(drop)
    }

    fn processes(&self) -> &[Process] {
        std::slice::from_ref(&self.process)
    }
}
