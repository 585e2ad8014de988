//! Where a peer and `martlet speaker` meet: a bridge with four namespaces, a capture at our port, our events as they are printed.
//!
//! It knows addresses, processes and the speaker's file; it knows nothing of what is asked.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::Value;

use crate::capture::Capture;
use crate::demo::topology::find_martlet;
use crate::lab::{End, Lab};
use crate::namespace::Namespace;
use crate::peer::{Make, Peer, Setup};
use crate::process::Process;
use crate::sweep;
use crate::sys::Signal;
use crate::wait::{LIMIT, Seen, until};

/// The AS of the third speaker, whose routes we pass on; four octets.
pub const FEEDER_AS: u32 = 4_200_000_003;

/// A cell's coordinates: with whom, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::struct_excessive_bools, reason = "each is an axis of the matrix")]
pub struct Variant {
    /// Who the peer is.
    pub make: Make,
    /// IPv6 over IPv6, else IPv4 over IPv4.
    pub ipv6: bool,
    /// iBGP, else eBGP.
    pub internal: bool,
    /// TCP MD5.
    pub md5: bool,
    /// Port 10179 and AS numbers of four octets, else port 179 and two octets.
    pub wide: bool,
    /// The peer does not say that it speaks four-octet AS numbers: longer ones reach it in `AS4_PATH` (RFC 6793 section 4.2.2).
    pub old: bool,
}

impl Variant {
    /// The port that both listen on.
    pub const fn port(self) -> u16 {
        if self.wide { 10179 } else { 179 }
    }

    /// Our AS number.
    pub const fn local_as(self) -> u32 {
        if self.wide { 4_200_000_001 } else { 65001 }
    }

    /// The peer's AS number.
    pub const fn peer_as(self) -> u32 {
        match (self.internal, self.wide) {
            (true, _) => self.local_as(),
            (false, true) => 4_248_829_953,
            (false, false) => 65002,
        }
    }

    /// The address of host 1 (we), 2 (the peer) or 3 (the third).
    pub fn address(self, host: u8) -> IpAddr {
        let host16 = u16::from(host);
        if self.ipv6 { [0xfd01, 0, 0, 0, 0, 0, 0, host16].into() } else { [10, 1, 0, host].into() }
    }

    /// What we announce.
    pub fn ours(self) -> IpNet {
        self.prefix(0x20, 1, 128)
    }

    /// What host 2 or 3 announces as it is.
    pub fn plain(self, host: u8) -> IpNet {
        self.prefix(0x30 + u16::from(host), 0, 64)
    }

    /// What host 2 or 3 announces with MED, large community and a longer path.
    pub fn tagged(self, host: u8) -> IpNet {
        self.prefix(0x40 + u16::from(host), 0, 64)
    }

    fn prefix(self, number: u16, last: u16, bits: u8) -> IpNet {
        let address: IpAddr = if self.ipv6 {
            [0x2a00, number, 0, 0, 0, 0, 0, last].into()
        } else {
            let [_, number] = number.to_be_bytes();
            let [_, last] = last.to_be_bytes();
            [number, 1, 1, last].into()
        };
        let bits = if self.ipv6 { bits } else { bits / 8 + 16 };
        // 128 / 8 + 16 = 32, 64 / 8 + 16 = 24: both lengths exist.
        IpNet::new(address, bits).unwrap_or_else(|_| address.into()).trunc()
    }

    /// How a peer at host 2 or 3 is set up.
    pub fn setup(self, host: u8) -> Setup {
        Setup {
            address: self.address(host),
            neighbor: self.address(1),
            local_as: if host == 2 { self.peer_as() } else { FEEDER_AS },
            remote_as: self.local_as(),
            port: self.port(),
            password: (self.md5 && host == 2).then(|| "secret".to_owned()),
            hold_time_s: 9,
            announce: self.plain(host),
            tagged: Some(self.tagged(host)),
            graceful: false,
            four_octet: !(self.old && host == 2),
            bfd: false,
            restarted: false,
        }
    }
}

/// The namespaces and what runs in them.
pub struct Bed {
    /// The lab: dropped last.
    pub lab: Lab,
    /// With whom, and how.
    pub variant: Variant,
    /// Ours.
    pub ours: Namespace,
    /// The peer's.
    pub theirs: Namespace,
    /// The third speaker's.
    pub third: Namespace,
    /// The bridge's, with the ports `to-ours`, `to-peer`, `to-third`.
    pub fabric: Namespace,
    /// BGP at our port.
    pub capture: Capture,
    starts: u32,
}

impl Bed {
    /// Makes the namespaces and starts the capture.
    ///
    /// # Errors
    /// The kernel or a tool refuses.
    pub fn new(variant: Variant) -> Result<Self> {
        let lab = Lab::new(End::Remove)?;
        let [ours, theirs, third, fabric] = ["ours", "peer", "third", "fabric"].map(|role| lab.namespace(role));
        let (ours, theirs, third, fabric) = (ours?, theirs?, third?, fabric?);
        let ends = [(&ours, "to-ours", 1), (&theirs, "to-peer", 2), (&third, "to-third", 3)];
        for (namespace, port, host) in ends {
            lab.link((namespace, "eth0"), (&fabric, port))?;
            namespace.ip(&format!("addr add 10.1.0.{host}/24 dev eth0\naddr add fd01::{host}/64 dev eth0 nodad"))?;
        }
        fabric.bridge("bridge", &ends.map(|(_, port, _)| port))?;
        for (namespace, _, _) in ends {
            namespace.wait_for_links(&["eth0"])?;
        }
        let filter = format!("tcp port {}", variant.port());
        let capture = Capture::start(&lab, &fabric, "to-ours", variant.port(), &filter)?;
        Ok(Self { lab, variant, ours, theirs, third, fabric, capture, starts: 0 })
    }

    /// Starts the peer.
    ///
    /// # Errors
    /// See [`Make::start`].
    pub fn peer(&self, setup: &Setup) -> Result<Box<dyn Peer + Send>> {
        self.variant.make.start(&self.lab, &self.theirs, setup)
    }

    /// Starts our speaker.
    ///
    /// # Errors
    /// It cannot be started, or ends at once.
    pub fn speaker(&mut self, setup: &Setup) -> Result<Martlet> {
        self.starts += 1;
        let variant = self.variant;
        let family = setup.family();
        let mut text = format!(
            "localASN: {}\nrouterId: 10.1.0.1\nlisten: [{{address: \"{}\", port: {}}}]\noriginate: [\"{}\"]\nneighbors:\n",
            variant.local_as(),
            variant.address(1),
            variant.port(),
            variant.ours()
        );
        for (host, asn, extra) in [(2, variant.peer_as(), true), (3, FEEDER_AS, false)] {
            let (address, port) = (variant.address(host), variant.port());
            // Writing to a String never fails.
            let _ = write!(
                text,
                "- {{address: \"{address}\", remoteASN: {asn}, port: {port}, holdTime: {}s, families: [{family}], \
                 import: all, export: all",
                setup.hold_time_s
            );
            match &setup.password {
                Some(password) if extra => {
                    let _ = write!(text, ", password: {password}");
                }
                _ => {}
            }
            if setup.bfd && extra {
                text.push_str(", bfd: {minTx: 300ms, minRx: 300ms, multiplier: 3}");
            }
            // The third is only waited for: without it nobody is called.
            text.push_str(if extra { "}\n" } else { ", passive: true}\n" });
        }
        let file = self.lab.dir().join("speaker.yaml");
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        let path = self.lab.dir().join(format!("log/speaker-{}.json", self.starts));
        let mut command = Command::new(find_martlet()?);
        command.args(["speaker", "--json"]).arg(file);
        let process = self.lab.spawn_into("speaker", &self.ours, command, &path)?;
        Ok(Martlet::new(process, path, variant.address(2)))
    }

    /// Kills a peer in its namespace: what it started as well, which would hold its port and take its control socket away.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(namespace: &Namespace, peer: &dyn Peer) -> Result<()> {
        for process in peer.processes() {
            process.signal(Signal::Kill)?;
        }
        sweep::kill_in(namespace.name());
        for process in peer.processes() {
            process.wait(LIMIT)?;
        }
        Ok(())
    }

    /// TCP connections of the BGP port that are up in our namespace, to the peer.
    ///
    /// # Errors
    /// `ss` fails.
    pub fn connections(&self) -> Result<usize> {
        let port = self.variant.port();
        let filter = format!("( sport = :{port} or dport = :{port} )");
        let said = self.ours.output("ss", &["-Htn", "state", "established", &filter])?;
        let peer = self.variant.address(2).to_string();
        Ok(said.lines().filter(|line| line.contains(&peer)).count())
    }
}

/// Our speaker as it runs.
#[derive(Debug)]
pub struct Martlet {
    /// The process.
    pub process: Process,
    path: PathBuf,
    peer: String,
}

impl Martlet {
    /// A speaker that writes its events to `path`; of those that concern `peer`.
    pub fn new(process: Process, path: PathBuf, peer: IpAddr) -> Self {
        Self { process, path, peer: peer.to_string() }
    }

    /// The events of the peer's session so far.
    ///
    /// # Errors
    /// They cannot be read, or the speaker has ended with an error.
    pub fn events(&self) -> Result<Vec<Value>> {
        if let Some(status) = self.process.ended().filter(|status| !status.success()) {
            bail!("martlet speaker ended: {status}: {}", self.process.tail(5));
        }
        let text = std::fs::read_to_string(&self.path).with_context(|| format!("read {}", self.path.display()))?;
        let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
        let events: Result<Vec<Value>, _> = whole.lines().map(serde_json::from_str).collect();
        let mut events = events.context("martlet speaker --json")?;
        events.retain(|event| event.get("neighbor").and_then(Value::as_str) == Some(&self.peer));
        Ok(events)
    }

    /// Waits for an event after the first `after`.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait(&self, what: &str, after: usize, limit: Duration, is: impl Fn(&Value) -> bool) -> Result<Value> {
        until(&format!("{what} (martlet speaker)"), limit, || {
            let events = self.events()?;
            let found = events.iter().skip(after).find(|event| is(event)).cloned();
            Ok(found.map_or_else(|| Seen::not_yet(events.last().map(Value::to_string).unwrap_or_default()), Seen::Yes))
        })
    }
}

/// Whether an event has this name.
pub fn is(event: &Value, name: &str) -> bool {
    event.get("event").and_then(Value::as_str) == Some(name)
}

/// Whether an event is of this prefix.
pub fn is_of(event: &Value, prefix: IpNet) -> bool {
    event.get("prefix").and_then(Value::as_str).and_then(|one| one.parse().ok()) == Some(prefix)
}
