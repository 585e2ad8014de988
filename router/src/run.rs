//! Wiring: the router of one Gateway on this machine, from its options to its end.

use std::collections::{BTreeSet, hash_map::RandomState};
use std::hash::{BuildHasher, Hasher};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use martlet_api::view::ObjectName;
use martlet_netlink::{Kernel, diff};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::bfd_io;
use crate::core::{Config, Router};
use crate::driver::{Asker, Clock, Driver, Signal, World};
use crate::intent::{Identity, Settings};
use crate::net::KernelNet;
use crate::readiness::LbClient;
use crate::watch::{BfdTask, KernelTask, ObjectsSource};
use crate::{log, plan, sysctl};

/// What the process is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of objects.
    pub config_dir: PathBuf,
    /// The name of the Gateway.
    pub gateway: String,
    /// Its namespace, and that of objects which name none.
    pub namespace: String,
    /// What shapes the Intent.
    pub settings: Settings,
    /// The URL of the load balancer's socket; empty: every VIP counts as ready.
    pub lb_socket: String,
    /// How long forwarding goes on after the VIPs were withdrawn at the end.
    pub drain: Duration,
    /// How long routes of a former router are kept without being told again.
    pub adopt: Duration,
    /// The router id, if it is configured.
    pub router_id: Option<Ipv4Addr>,
    /// What is stable and unique of this pod: its uid; empty: the host name.
    pub pod_uid: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config_dir: PathBuf::from("/etc/martlet"),
            gateway: String::new(),
            namespace: "default".into(),
            settings: Settings::default(),
            lb_socket: martlet_api::readiness::DEFAULT_SOCKET.into(),
            drain: Duration::from_secs(10),
            adopt: Duration::from_secs(10),
            router_id: None,
            pod_uid: String::new(),
        }
    }
}

impl Options {
    fn identity(&self) -> Identity {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "martlet".into());
        let name = if self.pod_uid.is_empty() { host().trim().to_owned() } else { self.pod_uid.clone() };
        Identity { router_id: self.router_id, name }
    }
}

/// Runs the router until a signal ends it.
///
/// # Errors
/// When the options make no sense, or the machine gives no netlink, thread or signal handler.
pub async fn run(options: Options) -> Result<()> {
    for complaint in sysctl::complaints(sysctl::read) {
        warn!(kind = "sysctl", "{complaint}");
    }
    let gateway = ObjectName { namespace: options.namespace.as_str().into(), name: options.gateway.as_str().into() };
    info!(kind = "router", version = env!("CARGO_PKG_VERSION"), %gateway, "starting");
    // Not guessable: discriminators and source ports of BFD come from it.
    let seed = RandomState::new().build_hasher().finish();
    let (signals, received) = mpsc::channel(8);
    watch_signals(&signals)?;
    let (_asker, questions) = Asker::new();
    let (objects, _source) = martlet_api::source::folder(options.config_dir.clone(), &options.namespace);
    let world = World {
        net: KernelNet::new(),
        bfd: BfdTask::start(seed).context("cannot start the BFD thread")?,
        kernel: KernelTask::open(plan::owner(&options.settings)).context("cannot open netlink")?,
        source: ObjectsSource::new(objects, gateway),
        readiness: LbClient::new(&options.lb_socket).map_err(|error| anyhow!("NFE_LB_SOCKET: {error}"))?,
        signals: received,
        questions,
        clock: Clock::new(bfd_io::now()),
    };
    let router = Router::new(Config {
        identity: options.identity(),
        external_interface: options.settings.external_interface.clone(),
        table: options.settings.table,
        adopt: options.adopt,
        drain: options.drain,
        seed,
    });
    Driver::new(router, options.settings, world, |_, event| log::log(event)).run().await;
    info!(kind = "router", "ended");
    Ok(())
}

fn watch_signals(signals: &mpsc::Sender<Signal>) -> Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut caught = signal(kind).context("cannot catch signals")?;
        let signals = signals.clone();
        tokio::spawn(async move {
            while caught.recv().await.is_some() {
                if signals.send(Signal::Stop).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// Removes everything that a router left in the kernel; how many objects that were.
///
/// # Errors
/// When netlink cannot be used, or the kernel refused a removal.
pub async fn clean(settings: &Settings) -> Result<usize> {
    let (mut kernel, _events) = Kernel::open(plan::owner(settings)).context("cannot open netlink")?;
    let snapshot = kernel.snapshot().await.context("cannot read the kernel")?;
    let changes = diff(&snapshot.objects, &BTreeSet::new());
    let failed = kernel.apply(&changes).await;
    match failed.first() {
        None => Ok(changes.len()),
        Some((_, error)) => Err(anyhow!("{} of {} objects stay: {error}", failed.len(), changes.len())),
    }
}
