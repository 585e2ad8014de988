//! Wiring: the router of one Gateway on this machine, from its options to its end.

use std::collections::{BTreeSet, hash_map::RandomState};
use std::hash::{BuildHasher, Hasher};

use anyhow::{Context, Result, anyhow};
use martlet_api::objects::Kind;
use martlet_api::source;
use martlet_api::view::ObjectName;
use martlet_netlink::{Kernel, capabilities, diff};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::core::{Config, Event, Router};
use crate::driver::{Asker, Clock, Driver, World};
use crate::health::Vital;
use crate::intent::Settings;
use crate::net::KernelNet;
use crate::readiness::LbClient;
use crate::ring::Ring;
use crate::watch::{BfdTask, KernelTask, ObjectsSource};
use crate::{bfd_io, control, health, log, metrics, plan, signals, state, sysctl};

pub use crate::options::Options;

/// What is read of a cluster. Where `L34Route`s may not be read the addresses of the Gateway count.
const KINDS: [Kind; 5] = [Kind::Gateway, Kind::GatewayClass, Kind::GatewayRouter, Kind::L34Route, Kind::Secret];

/// Runs the router until a signal ends it.
///
/// # Errors
/// When the options make no sense, or the machine gives no netlink, thread or signal handler.
pub async fn run(options: Options) -> Result<()> {
    capabilities::raise().context("cannot raise our capabilities")?;
    for complaint in sysctl::complaints(sysctl::read) {
        warn!(kind = "sysctl", "{complaint}");
    }
    let gateway = ObjectName { namespace: options.namespace.as_str().into(), name: options.gateway.as_str().into() };
    info!(kind = "router", version = env!("CARGO_PKG_VERSION"), %gateway, "starting");
    // Not guessable: discriminators and source ports of BFD come from it.
    let seed = RandomState::new().build_hasher().finish();
    let bfd = bfd_io::Options { stall_guard: options.bfd_stall_guard, ..bfd_io::Options::new(seed) };
    let (sender, received) = mpsc::channel(8);
    let detail = log::detail();
    let again = signals::Again::default();
    signals::watch(&sender, &again, &detail).context("cannot catch signals")?;
    let (asker, questions) = Asker::new();
    let ring = Ring::default();
    let (vital, vitals) = watch::channel(Vital::default());
    serve(&options, &asker, (&ring, &detail), vitals).await?;
    let kinds = KINDS.into();
    let source = source::open(options.config_dir.clone(), &options.namespace, &kinds);
    let source = source.await.map_err(|error| anyhow!("--config-dir: {error}"))?;
    if let Some(folder) = source.again {
        again.get_or_init(|| folder);
    }
    let news = state::tell(source.cluster, asker, &options);
    let world = World {
        net: KernelNet::new(),
        bfd: BfdTask::start(bfd).context("cannot start the BFD thread")?,
        kernel: KernelTask::open(plan::owner(&options.settings)).context("cannot open netlink")?,
        source: ObjectsSource::new(source.objects, gateway),
        readiness: LbClient::new(&options.lb_socket).map_err(|error| anyhow!("NFE_LB_SOCKET: {error}"))?,
        signals: received,
        questions,
        vital,
        clock: Clock::new(bfd_io::now()),
    };
    let router = Router::new(Config {
        identity: options.identity(),
        external_interface: options.settings.external_interface.clone(),
        table: options.settings.table,
        adopt: options.adopt,
        leave: options.leave,
        drain: options.drain,
        seed,
    });
    let tell = move |_, event: &Event| {
        log::log_with(event, &detail);
        ring.push(event);
        news.notify_one();
    };
    Driver::new(router, options.settings, world, tell).run().await;
    info!(kind = "router", "ended");
    Ok(())
}

/// The surfaces: control socket, metrics, health. A socket that cannot be had is said, and missed by nobody but its askers.
async fn serve(
    options: &Options,
    asker: &Asker,
    (ring, detail): (&Ring, &log::Detail),
    vitals: watch::Receiver<Vital>,
) -> Result<()> {
    if let Some(path) = &options.control_socket
        && let Err(error) = control::serve(path, asker.clone(), ring.clone(), detail.clone())
    {
        warn!(kind = "control", path = %path.display(), %error, "no control socket: martlet show will not answer");
    }
    if let Some(address) = options.metrics {
        metrics::serve(address, asker.clone()).await.with_context(|| format!("cannot serve metrics on {address}"))?;
    }
    if let Some(address) = options.health
        && let Err(error) = health::serve(address, vitals, options.health_needs_egress).await
    {
        warn!(kind = "health", %address, %error, "no health port: probes will fail");
    }
    Ok(())
}

/// Removes everything that a router left in the kernel; how many objects that were.
///
/// # Errors
/// When netlink cannot be used, or the kernel refused a removal.
pub async fn clean(settings: &Settings) -> Result<usize> {
    capabilities::raise().context("cannot raise our capabilities")?;
    let (mut kernel, _events) = Kernel::open(plan::owner(settings)).context("cannot open netlink")?;
    let snapshot = kernel.snapshot().await.context("cannot read the kernel")?;
    let changes = diff(&snapshot.objects, &BTreeSet::new());
    let failed = kernel.apply(&changes).await;
    match failed.first() {
        None => Ok(changes.len()),
        Some((_, error)) => Err(anyhow!("{} of {} objects stay: {error}", failed.len(), changes.len())),
    }
}
