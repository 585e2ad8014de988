//! Who is measured: each speaks with the same four neighbours, passes on what they tell, and writes no kernel routes.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::demo::topology::find_martlet;
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::peer::frr::DAEMONS;
use crate::process::Process;

/// The subject's address.
pub const SUBJECT: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);
/// The subject's AS.
pub const SUBJECT_AS: u32 = 65000;
/// Its neighbours: address and AS. The first feeds, the second hears all, the third tells of a VIP, the fourth hears of it.
pub const NEIGHBORS: [(Ipv4Addr, u32); 4] = [
    (Ipv4Addr::new(10, 8, 0, 2), 65001),
    (Ipv4Addr::new(10, 8, 0, 3), 65002),
    (Ipv4Addr::new(10, 8, 0, 4), 65003),
    (Ipv4Addr::new(10, 8, 0, 5), 65004),
];
/// The VIP.
pub const VIP: Ipv4Addr = Ipv4Addr::new(20, 0, 0, 1);

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// `martlet speaker`.
    Martlet,
    /// BIRD 2.
    Bird,
    /// FRR's bgpd.
    Frr,
    /// `GoBGP`.
    Gobgp,
}

impl Who {
    /// All, ours first.
    pub const ALL: [Self; 4] = [Self::Martlet, Self::Bird, Self::Frr, Self::Gobgp];

    /// Its name in a row.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Martlet => "martlet",
            Self::Bird => "bird",
            Self::Frr => "frr",
            Self::Gobgp => "gobgp",
        }
    }

    /// Starts it; it announces `own` /32 of 30.0.0.0 on. The process is the one that does the work.
    ///
    /// # Errors
    /// It is not installed.
    pub fn start(self, lab: &Lab, namespace: &Namespace, own: u32) -> Result<Process> {
        let own: Vec<String> = (0..own).map(|number| format!("{}/32", Ipv4Addr::from(0x1e00_0000 + number))).collect();
        let file = lab.dir().join(format!("{}.conf", self.name()));
        let write = |text: String| fs::write(&file, text).with_context(|| format!("write {}", file.display()));
        let command = match self {
            Self::Martlet => {
                write(martlet(&own))?;
                let mut command = Command::new(find_martlet()?);
                command.arg("speaker").arg(&file);
                command
            }
            Self::Bird => {
                write(bird(&own))?;
                let mut command = Command::new("bird");
                command.arg("-f").arg("-c").arg(&file).arg("-s").arg(lab.dir().join("bird.ctl"));
                command
            }
            Self::Frr => {
                write(frr(&own))?;
                // Its user must read what root wrote.
                let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode;
                fs::set_permissions(lab.dir(), open(0o755))?;
                fs::set_permissions(&file, open(0o644))?;
                frr_command(&file, lab.dir(), namespace.name())
            }
            Self::Gobgp => {
                write(gobgp())?;
                let mut command = Command::new("gobgpd");
                command.args(["-t", "toml", "--api-hosts", "127.0.0.1:50051", "-f"]).arg(&file);
                command
            }
        };
        lab.spawn(self.name(), Some(namespace), command)
    }
}

fn martlet(own: &[String]) -> String {
    let mut text = format!(
        "localASN: {SUBJECT_AS}\nrouterId: {SUBJECT}\nlisten: [{{address: {SUBJECT}, port: 179}}]\noriginate: [{}]\nneighbors:\n",
        own.join(", ")
    );
    for (index, (address, asn)) in NEIGHBORS.into_iter().enumerate() {
        let (import, export) = match index {
            0 | 2 => ("all", "none".to_owned()),
            1 => ("none", "all".to_owned()),
            _ => ("none", format!("[{VIP}/32]")),
        };
        // Writing to a String never fails.
        let _ = writeln!(
            text,
            "- {{address: {address}, remoteASN: {asn}, passive: true, import: {import}, export: {export}}}"
        );
    }
    text
}

fn bird(own: &[String]) -> String {
    let mut text = format!("router id {SUBJECT};\nprotocol device {{}}\n");
    if !own.is_empty() {
        let routes: Vec<String> = own.iter().map(|net| format!("route {net} blackhole;")).collect();
        let _ = writeln!(text, "protocol static {{ ipv4; {} }}", routes.join("\n"));
    }
    for (index, (address, asn)) in NEIGHBORS.into_iter().enumerate() {
        let (import, export) = match index {
            0 | 2 => ("all", "none".to_owned()),
            1 => ("none", "all".to_owned()),
            _ => ("none", format!("where net = {VIP}/32")),
        };
        let _ = writeln!(
            text,
            "protocol bgp n{index} {{ local {SUBJECT} as {SUBJECT_AS}; neighbor {address} as {asn}; passive on; hold time 90;\n\
             error wait time 1,2; ipv4 {{ import {import}; export {export}; next hop self; }}; }}"
        );
    }
    text
}

fn frr(own: &[String]) -> String {
    let mut text = format!(
        "frr defaults datacenter\nip prefix-list vip seq 5 permit {VIP}/32\nip prefix-list none seq 5 deny any\n\
         router bgp {SUBJECT_AS}\n bgp router-id {SUBJECT}\n no bgp ebgp-requires-policy\n no bgp network import-check\n timers bgp 30 90\n"
    );
    for (address, asn) in NEIGHBORS {
        let _ = writeln!(text, " neighbor {address} remote-as {asn}\n neighbor {address} passive");
    }
    text.push_str(" address-family ipv4 unicast\n");
    for net in own {
        let _ = writeln!(text, "  network {net}");
    }
    for (index, (address, _)) in NEIGHBORS.into_iter().enumerate() {
        let list = match index {
            0 | 2 => "none out",
            1 => "none in",
            _ => "vip out",
        };
        let _ = writeln!(text, "  neighbor {address} prefix-list {list}");
    }
    text + " exit-address-family\n"
}

fn frr_command(file: &Path, dir: &Path, name: &str) -> Command {
    let mut command = Command::new(format!("{DAEMONS}/bgpd"));
    // -Z: without zebra, so that no kernel route costs anything. -N: a folder of its own for its sockets.
    command.args(["-Z", "-N", name, "-A", "127.0.0.1", "-P", "0", "--log", "stdout", "-f"]).arg(file);
    command.arg("-l").arg(SUBJECT.to_string());
    command.current_dir(dir);
    command
}

fn gobgp() -> String {
    let mut text = format!(
        "[global.config]\nas = {SUBJECT_AS}\nrouter-id = \"{SUBJECT}\"\nport = 179\nlocal-address-list = [\"{SUBJECT}\"]\n"
    );
    for (address, asn) in NEIGHBORS {
        let _ = writeln!(
            text,
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{address}\"\npeer-as = {asn}\n\
             [neighbors.transport.config]\npassive-mode = true\nlocal-address = \"{SUBJECT}\""
        );
    }
    text
}
