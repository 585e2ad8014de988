//! BIRD 2 with one neighbour, asked through `birdc`.
//!
//! After an error it stays Idle for a minute by default and refuses its neighbour: the waits are set to a second here.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Result, bail};
use ipnet::IpNet;

use super::{Heard, LARGE, MED, Peer, Run, as_numbers};
use crate::lab::Lab;
use crate::process::Process;
use crate::wait::{LIMIT, Seen, until};

/// BIRD.
#[derive(Debug)]
pub struct Bird {
    run: Run,
    process: Process,
}

impl Bird {
    pub(crate) fn start(lab: &Lab, run: Run) -> Result<Self> {
        let path = run.file("bird.conf", &configuration(&run))?;
        let control = run.dir.join("ctl");
        let _ = fs::remove_file(&control);
        let mut command = Command::new("bird");
        command.arg("-f").arg("-c").arg(path).arg("-s").arg(&control).arg("-P").arg(run.dir.join("pid"));
        if run.setup.restarted {
            command.arg("-R");
        }
        let process = run.spawn(lab, command)?;
        let bird = Self { run, process };
        until("BIRD to answer", LIMIT, || {
            Run::alive(&bird.process)?;
            Ok(bird.ask(&["show", "status"]).map_or_else(|error| Seen::not_yet(error.to_string()), |_| Seen::Yes(())))
        })?;
        Ok(bird)
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let control = self.run.dir.join("ctl").to_string_lossy().into_owned();
        self.run.ask("birdc", &[&["-s", &control], words].concat())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.run.dir.join("log")).unwrap_or_default()
    }
}

fn configuration(run: &Run) -> String {
    let setup = &run.setup;
    let (family, port) = (setup.family(), setup.port);
    let large = LARGE.replace(':', ",");
    let prepend =
        if setup.internal() { String::new() } else { format!("bgp_path.prepend({0}); ", setup.local_as).repeat(2) };
    let own = |name: &str, prefix: IpNet| format!("protocol static {name} {{ {family}; route {prefix} blackhole; }}\n");
    let tagged = setup.tagged.map(|prefix| own("tagged", prefix)).unwrap_or_default();
    let mut lines = vec!["error wait time 1,2; connect delay time 1; connect retry time 1;".to_owned()];
    lines.push(format!("hold time {};", setup.hold_time_s));
    if let Some(password) = &setup.password {
        lines.push(format!("password \"{password}\";"));
    }
    lines.push(format!("graceful restart {};", if setup.graceful { "on" } else { "aware" }));
    if !setup.four_octet {
        lines.push("enable as4 off;".into());
    }
    if setup.bfd {
        lines.push("bfd on;".into());
    }
    let bfd = "protocol bfd { interface \"*\" { min rx interval 300 ms; min tx interval 300 ms; multiplier 3; }; }\n";
    format!(
        "log \"{log}\" all;\nrouter id 10.1.0.2;\nprotocol device {{}}\n{bfd}{own}{tagged}\
         filter sent {{ if proto = \"tagged\" then {{ bgp_med = {MED}; bgp_large_community.add(({large})); {prepend}accept; }} \
         if source = RTS_STATIC then accept; reject; }}\n\
         protocol bgp P {{ local {local} port {port} as {local_as}; neighbor {neighbor} port {port} as {remote_as};\n\
         {options}\n{family} {{ import all; export filter sent; next hop self; }}; }}\n",
        log = run.dir.join("log").display(),
        bfd = if setup.bfd { bfd } else { "" },
        own = own("own", setup.announce),
        local = setup.address,
        local_as = setup.local_as,
        neighbor = setup.neighbor,
        remote_as = setup.remote_as,
        options = lines.join("\n"),
    )
}

impl Peer for Bird {
    fn title(&self) -> String {
        let said = self.ask(&["show", "status"]).unwrap_or_default();
        said.lines().find(|line| line.starts_with("BIRD")).unwrap_or("BIRD").trim_end_matches(" ready.").to_owned()
    }

    fn established(&self) -> Result<bool> {
        Ok(self.ask(&["show", "protocols", "P"])?.contains("Established"))
    }

    fn received(&self) -> Result<BTreeMap<IpNet, Heard>> {
        let mut heard: BTreeMap<IpNet, Heard> = BTreeMap::new();
        let mut last: Option<IpNet> = None;
        for line in self.ask(&["show", "route", "all", "protocol", "P"])?.lines() {
            let first = line.split_whitespace().next().unwrap_or_default();
            if let Ok(prefix) = first.parse() {
                last = Some(prefix);
                heard.insert(prefix, Heard::default());
            }
            let Some(route) = last.and_then(|prefix| heard.get_mut(&prefix)) else { continue };
            let Some((key, value)) = line.trim().split_once(": ") else { continue };
            match key {
                "BGP.as_path" => route.as_path = as_numbers(value),
                "BGP.next_hop" => route.next_hop = value.split_whitespace().next().and_then(|hop| hop.parse().ok()),
                "BGP.large_community" => {
                    let each =
                        value.split(')').map(|one| as_numbers(one).iter().map(u32::to_string).collect::<Vec<_>>());
                    route.large = each.filter(|one| one.len() == 3).map(|one| one.join(":")).collect();
                }
                _ => {}
            }
        }
        Ok(heard)
    }

    fn withdraw(&self) -> Result<()> {
        self.ask(&["disable", "own"]).map(drop)
    }

    fn refresh(&self) -> Result<()> {
        let said = self.ask(&["reload", "in", "P"])?;
        if !said.contains("reloading") {
            bail!("birdc reload in P: {said}");
        }
        Ok(())
    }

    fn shut_down(&self, text: &str) -> Result<()> {
        self.ask(&["disable", "P", &format!("\"{text}\"")]).map(drop)
    }

    fn reasons(&self) -> Result<String> {
        Ok(self.log().lines().filter(|line| line.contains("<RMT>")).collect::<Vec<_>>().join("\n"))
    }

    fn reset(&self) -> Result<()> {
        self.ask(&["restart", "P"]).map(drop)
    }

    fn bfd_up(&self) -> Result<bool> {
        Ok(self.ask(&["show", "bfd", "sessions"])?.lines().any(|line| line.split_whitespace().nth(2) == Some("Up")))
    }

    fn processes(&self) -> &[Process] {
        std::slice::from_ref(&self.process)
    }
}
