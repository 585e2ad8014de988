//! BIRD in the router's place, configured as Meridio's frontend configures it: the waits, scans and filters are its own choice.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::Process;
use crate::stage::{EXTERNAL, LOCAL_AS, PORT, REMOTE_AS, Stage, gateway, pod};
use crate::wait::{LIMIT, Seen, until};

/// What it is to be.
#[derive(Clone, Debug)]
pub struct Wish {
    /// How many gateways, IPv4.
    pub gateways: u8,
    /// The VIPs that it announces.
    pub vips: Vec<String>,
    /// BFD with 300 ms, three times.
    pub bfd: bool,
    /// It takes any prefix, not the default route alone.
    pub all: bool,
}

impl Wish {
    fn text(&self, log: &std::path::Path) -> String {
        let mut text = format!(
            "log \"{}\" {{ debug, trace, info, remote, warning, error, auth, fatal, bug }};\nrouter id {};\n\
             protocol device {{}}\nfilter default_rt {{ if ( net ~ [ 0.0.0.0/0 ] ) then accept; reject; }}\n\
             filter cluster_e_static {{ if ( net ~ [ 0.0.0.0/0 ] ) then reject; if source = RTS_STATIC && dest != \
             RTD_BLACKHOLE then accept; reject; }}\n\
             template bgp BGP_TEMPLATE {{ debug {{events, states, interfaces}}; direct; hold time 3; bfd off; graceful \
             restart off; setkey off; ipv4 {{ import none; export none; next hop self; }}; }}\n\
             protocol kernel {{ ipv4 {{ import none; export {}; }}; kernel table 4096; merge paths on; }}\n\
             protocol bfd {{ interface \"{EXTERNAL}\" {{ min rx interval 300ms; min tx interval 300ms; multiplier 3; }}; }}\n",
            log.display(),
            pod(false),
            if self.all { "where source = RTS_BGP" } else { "filter default_rt" },
        );
        for number in 1..=self.gateways {
            // Writing to a String never fails.
            let _ = writeln!(
                text,
                "protocol bgp 'NBR-gw-{number}' from BGP_TEMPLATE {{ interface \"{EXTERNAL}\"; local port {PORT} as \
                 {LOCAL_AS}; neighbor {} port {PORT} as {REMOTE_AS}; {} hold time 9; ipv4 {{ import {}; export filter \
                 cluster_e_static; }}; }}",
                gateway(number, false),
                if self.bfd { "bfd on;" } else { "" },
                if self.all { "all" } else { "filter default_rt" },
            );
        }
        text.push_str("protocol static VIP4 { ipv4 { preference 110; };\n");
        for vip in &self.vips {
            let _ = writeln!(text, "route {vip}/32 via \"lo\";");
        }
        text.push_str("}\n");
        text
    }
}

/// It, running.
#[derive(Debug)]
pub struct Bird {
    /// The process.
    pub process: Process,
    dir: PathBuf,
}

impl Bird {
    /// Starts it in the pod.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(stage: &Stage, wish: &Wish) -> Result<Self> {
        let dir = stage.lab.dir().join("frontend");
        fs::create_dir_all(&dir)?;
        let _ = fs::remove_file(dir.join("ctl"));
        fs::write(dir.join("bird.conf"), wish.text(&dir.join("log")))?;
        let mut command = Command::new("bird");
        command
            .args(["-d", "-c"])
            .arg(dir.join("bird.conf"))
            .arg("-s")
            .arg(dir.join("ctl"))
            .arg("-P")
            .arg(dir.join("pid"));
        let process = stage.lab.spawn("frontend-bird", Some(&stage.pod), command)?;
        Ok(Self { process, dir })
    }

    /// Gives it another configuration.
    ///
    /// # Errors
    /// It does not take it.
    pub fn configure(&self, stage: &Stage, wish: &Wish) -> Result<()> {
        fs::write(self.dir.join("bird.conf"), wish.text(&self.dir.join("log")))?;
        let said = stage.pod.output("birdc", &["-s", &self.dir.join("ctl").to_string_lossy(), "configure"])?;
        if !said.contains("Reconfigur") {
            bail!("birdc configure: {said}");
        }
        Ok(())
    }

    /// Waits until all its sessions are Established, and its BFD sessions Up.
    ///
    /// # Errors
    /// They are not, within twice [`LIMIT`].
    pub fn up(&self, stage: &Stage, wish: &Wish) -> Result<()> {
        let control = self.dir.join("ctl").to_string_lossy().into_owned();
        let count = |command: &[&str], word: &str| -> Result<usize> {
            let output = stage.pod.run("birdc", &[&["-s", &control, "show"], command].concat())?;
            Ok(String::from_utf8_lossy(&output.stdout).matches(word).count())
        };
        let wanted = usize::from(wish.gateways);
        until("BIRD to be up", 2 * LIMIT, || {
            let sessions = count(&["protocols"], "Established")?;
            let bfd = if wish.bfd { count(&["bfd", "sessions"], " Up ")? } else { wanted };
            let all = sessions == wanted && bfd == wanted;
            Ok(if all { Seen::Yes(()) } else { Seen::not_yet(format!("{sessions} sessions, {bfd} of BFD")) })
        })
    }
}
