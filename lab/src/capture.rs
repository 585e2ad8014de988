//! What passes an interface, with the kernel's time stamps: packets counted, BFD states, BGP messages put together from their TCP
//! streams.
//!
//! `tcpdump` writes the file (it stays in the run folder for whoever wants to look); this reads it while it grows. It is the lab's own
//! reading of BGP, independent of the product's: it knows just what the labs ask about.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::{LIMIT, Seen, until};
use crate::wire::{Decoder, Event, What};

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    name: String,
    path: PathBuf,
    offset: u64,
    decoder: Decoder,
    process: Process,
}

impl Capture {
    /// Starts `tcpdump` on an interface, BGP on `bgp_port`, with a filter in its language.
    ///
    /// # Errors
    /// It cannot be started, or does not begin to listen.
    pub fn start(lab: &Lab, namespace: &Namespace, interface: &str, bgp_port: u16, filter: &str) -> Result<Self> {
        let name = format!("capture-{}-{interface}", namespace.role());
        let path = lab.dir().join("log").join(format!("{name}.pcap"));
        let mut command = Command::new("tcpdump");
        command.args(["-i", interface, "-n", "-U", "--immediate-mode", "-s", "0", "-B", "8192", "-Z", "root"]);
        command.args(["--time-stamp-precision=nano", "-w"]).arg(&path).arg(filter);
        let process = lab.spawn(&name, Some(namespace), command)?;
        until("tcpdump to listen", LIMIT, || {
            if let Some(status) = process.ended() {
                bail!("tcpdump on {interface} in {} ended: {status}: {}", namespace.role(), process.log());
            }
            let log = process.log();
            Ok(if log.contains("listening on") { Seen::Yes(()) } else { Seen::not_yet(log) })
        })?;
        Ok(Self { name, path, offset: 0, decoder: Decoder::new(bgp_port), process })
    }

    /// The file that it writes.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Everything seen so far.
    ///
    /// # Errors
    /// The file cannot be read, or is no capture of Ethernet frames.
    pub fn events(&mut self) -> Result<&[Event]> {
        // Without the file nothing was captured yet.
        if let Ok(mut file) = File::open(&self.path) {
            file.seek(SeekFrom::Start(self.offset))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            self.offset += u64::try_from(bytes.len())?;
            self.decoder.push(&bytes).with_context(|| format!("read {}", self.path.display()))?;
        }
        Ok(self.decoder.events())
    }

    /// Waits for an event at or after `since`.
    ///
    /// # Errors
    /// None within `limit`.
    pub fn wait(
        &mut self,
        what: &str,
        since: SystemTime,
        limit: Duration,
        matches: impl Fn(&Event) -> bool,
    ) -> Result<Event> {
        let name = self.name.clone();
        until(&format!("{what} ({name})"), limit, || {
            let events = self.events()?;
            let found = events.iter().filter(|event| event.at >= since).find(|event| matches(event)).cloned();
            let seen = || {
                let last: Vec<_> = events.iter().filter(|e| !matches!(e.what, What::Bfd(_) | What::Other)).collect();
                format!("{:?}", last.get(last.len().saturating_sub(3)..).unwrap_or_default())
            };
            Ok(found.map_or_else(|| Seen::not_yet(seen()), Seen::Yes))
        })
    }

    /// How many packets match.
    ///
    /// # Errors
    /// As [`Self::events`].
    pub fn count(&mut self, matches: impl Fn(&Event) -> bool) -> Result<usize> {
        Ok(self.events()?.iter().filter(|event| matches(event)).count())
    }

    /// Ends it; what was seen can still be read.
    ///
    /// # Errors
    /// The process cannot be ended.
    pub fn stop(&self) -> Result<()> {
        self.process.signal(crate::sys::Signal::Int)?;
        self.process.wait(LIMIT).map(drop)
    }
}

/// Whether an event goes from or to an address.
pub fn concerns(event: &Event, address: IpAddr) -> bool {
    event.source == address || event.destination == address
}
