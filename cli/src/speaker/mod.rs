//! `martlet speaker FILE`: a BGP speaker without Kubernetes.

mod config;
mod json;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use martlet_bfd::SessionConfig;
use martlet_bgp::{Event, Speaker};
use martlet_router::driver::Signal;
use martlet_router::intent::Key;
use martlet_router::speaker::{self, Options};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use config::Config;

const EXAMPLES: &str = "\
Examples:
  martlet speaker gateway.yaml                a gateway for a lab; logs to stderr
  martlet speaker --json gateway.yaml         each event as one line of JSON on stdout
  martlet speaker --check gateway.yaml        check the file and end

A file:
  localASN: 65001
  routerId: 10.0.0.1
  listen: [{address: 10.0.0.1, port: 179}]
  neighbors:
  - {address: 10.0.0.2, remoteASN: 65002, holdTime: 90s, families: [ipv4, ipv6], import: all, export: all}
  originate: [20.0.0.1/32, \"2000::1/128\"]

Optional keys of a neighbour: port, passive, password, localAddress, multihop (true, or hops), maximumPrefixes,
bfd: {minTx: 300ms, minRx: 300ms, multiplier: 3}, routeReflectorClient, dynamic (its address is then a prefix, it
may come from any address of it), gracefulRestart (20s: the neighbour keeps our routes so long while we restart),
longLivedStaleTime (1h: its routes are kept so long as a last resort), addPathReceive, disableFamilyOnError. import and export: all, none (the default), default, or a list of prefixes.
kernelTable, of the file or of neighbours: learned routes are written to that table of the kernel.";

/// The flags.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The configuration.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print each event as one line of JSON on stdout.
    #[arg(long)]
    json: bool,
    /// Check the file and end.
    #[arg(long)]
    check: bool,
}

impl Args {
    /// Runs the speaker until a signal ends it.
    pub async fn run(self) -> anyhow::Result<()> {
        let config = Config::read(&self.file)?;
        if self.check {
            println!(
                "{}: {} neighbours, {} prefixes",
                self.file.display(),
                config.neighbors.len(),
                config.originate.len()
            );
            return Ok(());
        }
        let (signals, received) = mpsc::channel(1);
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let (mut caught, signals) = (signal(kind)?, signals.clone());
            tokio::spawn(async move {
                caught.recv().await;
                // The loop may have ended on its own.
                let _ = signals.send(Signal::Stop).await;
            });
        }
        let tell: speaker::Listener = if self.json { Box::new(print) } else { Box::new(log) };
        speaker::run(options(config, self.json), received, tell).await
    }
}

fn options(config: Config, tell_routes: bool) -> Options {
    Options {
        // What it announces is written in its file: its kernel forwards that whether the process runs or not.
        local: martlet_bgp::Local {
            router_id: config.router_id,
            forwarding_preserved: config.neighbors.values().any(|one| one.config.graceful_restart.restarting),
        },
        listen: config.listen.iter().map(|one| SocketAddr::new(one.address, one.port)).collect(),
        neighbors: config.neighbors.into_iter().map(|(id, neighbor)| (id, neighbor.into())).collect(),
        originate: config.originate,
        kernel_table: config.kernel_table,
        tell_routes,
        goodbye: "shutdown".into(),
    }
}

impl From<config::NeighborFile> for speaker::Neighbor {
    fn from(file: config::NeighborFile) -> Self {
        let bfd = file.bfd.map(|(min_tx, min_rx, multiplier)| SessionConfig {
            min_tx,
            min_rx,
            multiplier,
            min_ttl: file.multihop.map_or(255, |hops| 255 - hops.saturating_sub(1)),
            ..SessionConfig::default()
        });
        Self {
            config: file.config,
            address: file.address,
            dynamic: file.dynamic,
            port: file.port,
            key: file.password.map(|password| Key(password.into_bytes().into())),
            source: file.local_address,
            multihop: file.multihop,
            kernel_table: file.kernel_table,
            bfd,
        }
    }
}

fn print(event: &Event, speaker: &Speaker) {
    let Some(line) = json::line(event, speaker) else { return };
    if writeln!(std::io::stdout().lock(), "{line}").is_err() {
        // Nobody reads any more: that ends the program, as it ends any other.
        std::process::exit(1);
    }
}

fn log(event: &Event, _speaker: &Speaker) {
    martlet_router::log::log(&martlet_router::core::Event::Bgp(event.clone()));
}
