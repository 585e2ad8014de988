//! The wiring of the load balancer: source, kernel, queues, router; and its end.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use martlet_api::objects::Kind;
use martlet_api::readiness::{DEFAULT_SOCKET, HEARTBEAT};
use martlet_api::source;
use martlet_api::view::ObjectName;
use martlet_netlink::nft::{self, Queue};
use martlet_netlink::{Event, Kernel, NeighborChange, Neighbors, Object, capabilities};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::direct::{self, Direct};
use crate::engine::{Policy, Tables};
use crate::follow::{Follower, remove};
use crate::maglev::Size;
use crate::offload::{Engine, MOST_ELEMENTS};
use crate::queue::{Queues, Settings as QueueSettings};
use crate::readiness::Server;
use crate::rules::{NFT_TABLE, owner};
use crate::status::Status;
use crate::targets::Settings;
use crate::{control, health, metrics};

/// More deletions of one of our objects by others than this within the window: we wait for its end before we answer.
const CONFLICT: usize = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// What is read of a cluster.
const KINDS: [Kind; 5] = [Kind::Gateway, Kind::GatewayClass, Kind::L34Route, Kind::Service, Kind::EndpointSlice];

/// What the load balancer is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of YAML; `None`: the cluster that this process is in.
    pub config_dir: Option<PathBuf>,
    /// Its Gateway.
    pub gateway: ObjectName,
    /// The interface to the endpoints; `None`: whichever has an address of their network.
    pub internal_interface: Option<Arc<str>>,
    /// Where the router connects: a `unix://` URL.
    pub socket: String,
    /// Queues and their loop.
    pub queue: QueueSettings,
    /// Who chooses endpoints: the queue threads or nftables.
    pub engine: Engine,
    /// While no thread listens nftables chooses, as far as it can, instead of the queue dropping everything.
    pub bypass: bool,
    /// The CPU of a packet picks its queue, instead of the hash of its addresses.
    pub fanout: bool,
    /// With the queue engine, from so many endpoints on a link on, those whose Ethernet address is known are reached directly:
    /// see [`crate::direct`]. 0: never.
    pub direct_from: usize,
    /// Take endpoints that do not answer on their link out of the tables, before anybody says so.
    pub liveness: bool,
    /// How long packets are forwarded after the router was told that we end.
    pub drain: Duration,
    /// Reject or drop, and fragments.
    pub policy: Policy,
    /// Where the whole state is put with every beat and every change, for whoever shows it.
    pub status: Option<watch::Sender<Arc<Status>>>,
    /// Where `martlet show` and `trace` ask; `None`: nowhere.
    pub control_socket: Option<PathBuf>,
    /// Where Prometheus asks; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Where probes of `grpc.health.v1` ask; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// Slots of each Maglev table, a prime; `None`: by the most endpoints that a Service may have.
    pub table_size: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        let last = u16::try_from(cpus - 1).unwrap_or_default();
        Self {
            config_dir: None,
            gateway: ObjectName { namespace: "default".into(), name: "".into() },
            internal_interface: None,
            socket: DEFAULT_SOCKET.into(),
            queue: QueueSettings { queues: 0..=last, ..QueueSettings::default() },
            engine: Engine::default(),
            bypass: false,
            fanout: false,
            direct_from: direct::MANY,
            liveness: false,
            drain: Duration::from_secs(10),
            policy: Policy::default(),
            status: None,
            control_socket: None,
            metrics: None,
            health: None,
            table_size: None,
        }
    }
}

/// Runs until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// When it cannot start, or loses what it cannot work without.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ended = async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
    };
    run_until(options, ended).await
}

/// Runs until `ended`, then drains. Works in the network namespace of the calling thread, on a runtime of one thread.
///
/// # Errors
/// See [`run`].
pub async fn run_until(options: Options, ended: impl Future<Output = ()>) -> anyhow::Result<()> {
    let size = options.table_size.map(Size::new).transpose()?;
    let internal_interface = options.internal_interface.clone();
    let most_slots = (options.engine == Engine::Auto).then_some(MOST_ELEMENTS);
    let direct_from = Some(options.direct_from).filter(|from| *from > 0 && options.engine == Engine::Queue);
    let policy = options.policy;
    let settings = Settings { internal_interface, policy, direct_from, size, most_slots, ..Settings::default() };
    capabilities::raise().context("cannot raise our capabilities")?;
    let (kernel, mut events) = Kernel::open(owner()).context("netlink")?;
    let mut nft = nft::Connection::open().context("nftables")?;
    let form = nft.probe_queue().context("no rule can send packets to a queue")?;
    let mut watch = nft.watch(&[NFT_TABLE, direct::NFT_TABLE]).context("nftables cannot be watched")?;
    let (first, last) = (*options.queue.queues.start(), *options.queue.queues.end());
    let total = last.checked_sub(first).map_or(0, |more| more + 1);
    anyhow::ensure!(total > 0, "queues {first}:{last}: the first must not be after the last");
    let queue = Queue { first, total, bypass: options.bypass, fanout: options.fanout, form };
    let mut neighbors = direct_from.map(|_| Neighbors::watch()).transpose().context("netlink")?;
    let direct = Direct::default();
    let queues = Queues::start(&options.queue, Arc::new(Tables::default()), direct.bits())?;
    let server = Server::start(&options.socket).await?;
    tracing::info!(gateway = %options.gateway, socket = options.socket, ?queue, "load balancer starts");

    let kinds = KINDS.into();
    let source = source::open(options.config_dir.clone(), &options.gateway.namespace, &kinds);
    let mut objects = source.await.map_err(|error| anyhow::anyhow!("--config-dir: {error}"))?.objects;
    let mut follower = Follower::new(
        options.gateway.clone(),
        settings,
        (kernel, nft),
        (options.engine, queue, queues),
        server,
        direct,
    );
    follower.look().await?;
    let seen = serve(&options).await;
    let mut beats = interval(HEARTBEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The turn that the threads were last asked about, and whether the router still waits for the beat.
    let mut asked = 0;
    let mut owed = false;
    let mut conflict = Conflict::default();
    let mut deadline: Option<Instant> = None;
    tokio::pin!(ended);
    let mut dirty = true;
    loop {
        if let Some(neighbors) = &mut neighbors {
            // Whatever comes next knows who is in doubt.
            follower.neighbors_changed(neighbors.waiting());
        }
        if dirty && conflict.may_act() {
            dirty = false;
            let current = Arc::clone(&objects.borrow_and_update());
            follower.follow(&current).await;
            tell(seen.as_ref(), &follower);
        }
        tokio::select! {
            biased;
            () = &mut ended, if deadline.is_none() => {
                tracing::info!(seconds = options.drain.as_secs_f64(), "draining");
                follower.drain();
                tell(seen.as_ref(), &follower);
                deadline = Some(Instant::now() + options.drain);
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => break,
            () = follower.queues.answered(asked), if owed => {
                owed = false;
                follower.beat();
                tell(seen.as_ref(), &follower);
            }
            event = events.next() => dirty |= on_event(&mut follower, event, &mut conflict).await?,
            () = watch.changed() => {
                conflict.count([Ours::Tables]);
                follower.table_changed();
                dirty = true;
            }
            changed = objects.changed() => {
                changed.context("the source of objects ended")?;
                dirty = true;
            }
            _ = beats.tick() => {
                anyhow::ensure!(!follower.queues.has_failed(), "a queue thread ended");
                if owed {
                    follower.fall_silent(&follower.queues.silent(asked));
                    tell(seen.as_ref(), &follower);
                }
                dirty |= follower.is_incomplete();
                if options.liveness {
                    dirty |= follower.check_endpoints().await;
                }
                follower.settle_direct().await;
                follower.count();
                asked = follower.queues.poke();
                owed = true;
            }
            // Last: of many endpoints there is always one that has news.
            changes = changes_of(&mut neighbors) => follower.neighbors_changed(changes),
        }
    }
    let counters = follower.end().await?;
    tracing::info!(?counters.drops, "load balancer ends");
    Ok(())
}

/// What became of neighbours, if anybody wants to know.
async fn changes_of(neighbors: &mut Option<Neighbors>) -> Vec<NeighborChange> {
    match neighbors {
        Some(neighbors) => neighbors.changes().await,
        None => std::future::pending().await,
    }
}

/// The surfaces, and where the state is put for them; `None`: nobody wants to see it. A socket that cannot be had is said,
/// and missed by nobody but its askers.
async fn serve(options: &Options) -> Option<watch::Sender<Arc<Status>>> {
    let wanted = options.control_socket.is_some() || options.metrics.is_some() || options.health.is_some();
    let status = options.status.clone().or_else(|| wanted.then(|| watch::channel(Arc::default()).0))?;
    if let Some(path) = &options.control_socket
        && let Err(error) = control::serve(path, status.subscribe())
    {
        tracing::warn!(path = %path.display(), %error, "no control socket: martlet show will not answer");
    }
    if let Some(address) = options.metrics
        && let Err(error) = metrics::serve(address, status.subscribe()).await
    {
        tracing::warn!(%address, %error, "no metrics port: scrapes will fail");
    }
    if let Some(address) = options.health
        && let Err(error) = health::serve(address, status.subscribe()).await
    {
        tracing::warn!(%address, %error, "no health port: probes will fail");
    }
    Some(status)
}

/// Shows the state to whoever wants to see it.
fn tell(status: Option<&watch::Sender<Arc<Status>>>, follower: &Follower) {
    if let Some(status) = status {
        status.send_replace(Arc::new(follower.status()));
    }
}

/// Takes note of a hint of the kernel; whether there is something to do.
async fn on_event(follower: &mut Follower, event: Event, conflict: &mut Conflict) -> anyhow::Result<bool> {
    match event {
        Event::LinksChanged | Event::Overrun => follower.look().await?,
        Event::ObjectsChanged(changed) => {
            conflict.count(changed.removed.iter().cloned().map(Ours::Object));
            follower.objects_changed(changed);
        }
    }
    Ok(true)
}

/// What another may have a hand in.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ours {
    /// A route or a rule.
    Object(Object),
    /// What nftables holds.
    Tables,
}

impl fmt::Display for Ours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(object) => object.fmt(f),
            Self::Tables => f.write_str("our nftables tables"),
        }
    }
}

/// Somebody who deletes what we add, again and again. Who flushes everything once is none: all of it is back at once.
#[derive(Debug, Default)]
struct Conflict {
    since: Option<Instant>,
    deletions: BTreeMap<Ours, usize>,
}

impl Conflict {
    fn count(&mut self, deleted: impl IntoIterator<Item = Ours>) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() > WINDOW {
            *self = Self { since: Some(Instant::now()), ..Self::default() };
        }
        for ours in deleted {
            let count = self.deletions.get(&ours).map_or(1, |count| count + 1);
            if count == CONFLICT + 1 {
                tracing::warn!(what = %ours, "KernelConflict: somebody keeps deleting what is ours in the kernel");
            }
            self.deletions.insert(ours, count);
        }
    }

    /// Looked at with every beat at the latest.
    fn may_act(&self) -> bool {
        let often = self.deletions.values().any(|count| *count > CONFLICT);
        !often || self.since.is_none_or(|since| since.elapsed() > WINDOW)
    }
}

/// Removes everything that a load balancer left in the kernel, in the network namespace of the calling thread.
///
/// # Errors
/// When something could not be removed.
pub async fn clean() -> anyhow::Result<()> {
    capabilities::raise().context("cannot raise our capabilities")?;
    let (mut kernel, _events) = Kernel::open(owner()).context("netlink")?;
    let mut nft = nft::Connection::open().context("nftables")?;
    remove(&mut kernel, &mut nft).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use martlet_netlink::{Route, RouteKind};

    fn route(table: u32) -> Ours {
        let prefix = ipnet::IpNet::V4(ipnet::Ipv4Net::default());
        Ours::Object(Object::Route(Route { table, prefix, metric: 20, kind: RouteKind::Blackhole }))
    }

    #[tokio::test(start_paused = true)]
    async fn who_deletes_everything_once_is_answered_at_once_and_who_deletes_one_thing_again_and_again_is_not() {
        let mut conflict = Conflict::default();
        conflict.count((5000..5100).map(route));
        conflict.count([Ours::Tables]);
        assert!(conflict.may_act());
        for _ in 0..10 {
            assert!(conflict.may_act());
            conflict.count([route(5000)]);
        }
        assert!(!conflict.may_act());
        tokio::time::advance(WINDOW + Duration::from_millis(1)).await;
        assert!(conflict.may_act(), "after a second it is tried again");
        conflict.count([route(5000)]);
        assert!(conflict.may_act(), "and counted anew");
    }
}
