//! The driver's traits over the real kernel, the BFD thread and the sources of `martlet_api`.
//!
//! A thread of its own owns the netlink sockets: batches, dumps and events go through it one after another, so that a
//! snapshot is never mixed with half a batch, and nobody waits while the kernel works on a large one. It decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use martlet_api::Objects;
use martlet_api::accept;
use martlet_api::view::{ObjectName, View};
use martlet_bfd::{SessionConfig, SessionId, SessionStatus};
use martlet_netlink::{Change, Event, Events, Kernel as Netlink, Link, Owner};
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, warn};

use crate::bfd_io::{self, BfdHandle, BfdThread, Statistics};
use crate::driver::{Bfd, Kernel, News, Source};
use crate::mirror::Failure;

/// Between two attempts to dump a kernel that does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// A carrier that has just come is told so much later. Ours is there before the other end of the link forwards, and the kernel
/// asks for a link address again only after a second: the first packet into such a link costs that second.
const SETTLE: Duration = Duration::from_millis(50);

/// After links were told, the time until all else is read too: what follows from a lost carrier is done first.
const REST: Duration = Duration::from_millis(5);

#[derive(Debug)]
enum Command {
    Apply(Vec<Change>),
    Dump,
}

/// The kernel of this machine.
#[derive(Debug)]
pub struct KernelTask {
    commands: mpsc::UnboundedSender<Command>,
    news: mpsc::Receiver<News>,
}

impl KernelTask {
    /// Opens netlink in the network namespace of the calling thread, and dumps.
    ///
    /// # Errors
    /// When netlink cannot be opened.
    pub fn open(owner: Owner) -> Result<Self, martlet_netlink::Error> {
        // At most a batch and a few dumps are ever asked for at once: the core waits for its answers.
        let (commands, received) = mpsc::unbounded_channel();
        let (sender, news) = mpsc::channel(8);
        let (opened, is_open) = std::sync::mpsc::channel();
        let io = |error| martlet_netlink::Error::Io { action: "a thread for netlink".into(), source: error };
        // A thread begins in the namespace and with the capabilities of the one that starts it.
        let work = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(opened.send(Err(io(error)))),
            };
            runtime.block_on(async move {
                match Netlink::open(owner) {
                    Ok((kernel, events)) => {
                        drop(opened.send(Ok(())));
                        serve(kernel, events, received, sender).await;
                    }
                    Err(error) => drop(opened.send(Err(error))),
                }
            });
        };
        std::thread::Builder::new().name("netlink".into()).spawn(work).map_err(io)?;
        is_open.recv().unwrap_or_else(|_| Err(io(std::io::ErrorKind::UnexpectedEof.into())))?;
        Ok(Self { commands, news })
    }

    fn command(&self, command: Command) {
        if self.commands.send(command).is_err() {
            error!("the task that talks to the kernel has ended");
        }
    }
}

impl Kernel for KernelTask {
    fn apply(&mut self, changes: Vec<Change>) {
        self.command(Command::Apply(changes));
    }

    fn dump(&mut self) {
        self.command(Command::Dump);
    }

    async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }
}

async fn serve(
    mut kernel: Netlink,
    mut events: Events,
    mut commands: mpsc::UnboundedReceiver<Command>,
    news: mpsc::Sender<News>,
) {
    let mut carriers = Carriers::default();
    let mut next = snapshot(&mut kernel, &mut carriers).await;
    // When the rest is read, after the links.
    let mut rest = None;
    let mut heard = false;
    loop {
        if matches!(next, News::Snapshot(_)) {
            rest = None;
        }
        if news.send(next).await.is_err() {
            return;
        }
        let late = rest.into_iter().chain(carriers.until).min();
        next = match work(&mut commands, &mut events, late, &mut heard).await {
            Work::Command(None) => return,
            Work::Command(Some(Command::Apply(changes))) => News::Applied(apply(&mut kernel, &changes).await),
            // A carrier that is lost does not wait for a dump of 100 000 routes.
            Work::Event(Event::LinksChanged) => match kernel.links().await {
                Ok(mut links) => {
                    carriers.settle(&mut kernel, &mut links).await;
                    rest.get_or_insert_with(|| tokio::time::Instant::now() + REST);
                    News::Links(links)
                }
                Err(_) => snapshot(&mut kernel, &mut carriers).await,
            },
            Work::Event(Event::ObjectsChanged(changed)) => News::Changed(changed.removed, changed.appeared),
            Work::Event(Event::Overrun) => {
                warn!("the kernel had more to say than we could hear: it is dumped anew");
                snapshot(&mut kernel, &mut carriers).await
            }
            Work::Command(Some(Command::Dump)) | Work::Snapshot => snapshot(&mut kernel, &mut carriers).await,
        };
    }
}

/// What is to be done.
#[derive(Debug)]
enum Work {
    /// `None`: nobody is left who commands.
    Command(Option<Command>),
    Event(Event),
    Snapshot,
}

/// The next thing to do; a snapshot at the latest at `late`. Commands and events have their turns (`heard`: an event had the
/// last): while many routes come a command always waits, and a link that is lost among them must not be heard after them.
async fn work(
    commands: &mut mpsc::UnboundedReceiver<Command>,
    events: &mut Events,
    late: Option<tokio::time::Instant>,
    heard: &mut bool,
) -> Work {
    loop {
        let first = !std::mem::take(heard);
        tokio::select! {
            biased;
            () = due(late) => return Work::Snapshot,
            event = events.next(), if first => {
                *heard = true;
                return Work::Event(event);
            }
            command = commands.recv() => return Work::Command(command),
            // No command waits.
            () = std::future::ready(()), if !first => {}
        }
    }
}

async fn due(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Since when each link has a carrier, by index.
#[derive(Debug, Default)]
struct Carriers {
    since: Option<BTreeMap<u32, tokio::time::Instant>>,
    /// Those that have just come and are not told yet.
    untold: BTreeSet<u32>,
    /// When the next of them is.
    until: Option<tokio::time::Instant>,
}

impl Carriers {
    /// Takes the carriers that have just come out of `links`.
    async fn settle(&mut self, kernel: &mut Netlink, links: &mut BTreeMap<u32, Link>) {
        let told = self.hide(links);
        // What was sent into the dead link made the kernel ask for addresses: its next question would be late.
        if !told.is_empty()
            && let Err(error) = kernel.forget_unresolved(&told).await
        {
            warn!(%error, "the first packet into a link that came back may take a second");
        }
    }

    /// Takes the carriers that have just come out of `links`; returns those that are no longer. What was there the first time
    /// was there before us.
    fn hide(&mut self, links: &mut BTreeMap<u32, Link>) -> BTreeSet<u32> {
        let now = tokio::time::Instant::now();
        let known = self.since.take();
        let since = |index: &u32| match &known {
            None => now.checked_sub(SETTLE).unwrap_or(now),
            Some(known) => known.get(index).copied().unwrap_or(now),
        };
        let carry = links.iter().filter(|(_, link)| link.up && link.carrier);
        let since: BTreeMap<_, _> = carry.map(|(index, _)| (*index, since(index))).collect();
        let young = || since.iter().filter(|(_, at)| **at + SETTLE > now);
        self.until = young().map(|(_, at)| *at + SETTLE).min();
        let young: BTreeSet<u32> = young().map(|(index, _)| *index).collect();
        for (_, link) in links.iter_mut().filter(|(index, _)| young.contains(index)) {
            link.carrier = false;
        }
        let told = std::mem::replace(&mut self.untold, young);
        self.since = Some(since);
        told.difference(&self.untold).copied().collect()
    }
}

async fn apply(kernel: &mut Netlink, changes: &[Change]) -> Vec<Failure> {
    let started = tokio::time::Instant::now();
    let failed = kernel.apply(changes).await;
    debug!(changes = changes.len(), failed = failed.len(), micros = started.elapsed().as_micros(), "applied");
    failed.into_iter().map(|(change, error)| Failure { change, error: error.to_string().into() }).collect()
}

async fn snapshot(kernel: &mut Netlink, carriers: &mut Carriers) -> News {
    let mut told = false;
    loop {
        match kernel.snapshot().await {
            Ok(mut snapshot) => {
                carriers.settle(kernel, &mut snapshot.links).await;
                return News::Snapshot(snapshot);
            }
            Err(error) if !told => error!(%error, "the kernel cannot be read; tried again"),
            Err(_) => {}
        }
        told = true;
        tokio::time::sleep(RETRY).await;
    }
}

/// BFD on its own thread.
#[derive(Debug)]
pub struct BfdTask {
    handle: BfdHandle,
    statuses: watch::Receiver<bfd_io::Status>,
}

impl BfdTask {
    /// Starts the thread. To be called in a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no thread or no descriptor.
    pub fn start(options: bfd_io::Options) -> std::io::Result<Self> {
        let (handle, statuses, mut events) = BfdThread::spawn_with(options)?;
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                match event {
                    // The core tells it.
                    bfd_io::Event::Changed(_) => {}
                    bfd_io::Event::Stalled(late) => warn!(kind = "bfd", ?late, "this machine stalled"),
                    bfd_io::Event::Problem(text) => warn!(kind = "bfd", text),
                }
            }
        });
        Ok(Self { handle, statuses })
    }
}

impl Bfd for BfdTask {
    fn set(&mut self, sessions: BTreeMap<SessionId, SessionConfig>) {
        self.handle.set(sessions);
    }

    async fn next(&mut self) -> BTreeMap<SessionId, SessionStatus> {
        if self.statuses.changed().await.is_err() {
            error!("the BFD thread has ended");
            std::future::pending::<()>().await;
        }
        BTreeMap::clone(&self.statuses.borrow_and_update())
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        counted(&self.handle.statistics())
    }
}

/// By the names of [`crate::metrics::BFD`].
fn counted(counted: &Statistics) -> BTreeMap<&'static str, u64> {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    [
        ("packets_received", counted.received),
        ("packets_sent", counted.sent),
        ("packets_unsent", counted.unsent),
        ("packets_discarded", counted.discarded.values().sum()),
        ("receive_errors", counted.receive_errors),
        ("stalls", counted.stalls),
        ("worst_lateness_us", micros(counted.worst_lateness)),
        ("worst_stall_us", micros(counted.worst_stall)),
    ]
    .into()
}

/// Objects of a source, as one Gateway sees them.
#[derive(Debug)]
pub struct ObjectsSource {
    objects: watch::Receiver<Arc<Objects>>,
    gateway: ObjectName,
}

impl ObjectsSource {
    /// The part of `objects` that concerns `gateway`.
    pub fn new(mut objects: watch::Receiver<Arc<Objects>>, gateway: ObjectName) -> Self {
        objects.mark_changed();
        Self { objects, gateway }
    }
}

impl Source for ObjectsSource {
    async fn next(&mut self) -> View {
        loop {
            if self.objects.changed().await.is_err() {
                error!("the source of objects has ended");
                std::future::pending::<()>().await;
            }
            let objects = Arc::clone(&self.objects.borrow_and_update());
            // Before it is synced an object that is missing may still come.
            if objects.synced {
                return accept::view(&objects, &self.gateway);
            }
        }
    }

    fn is_reached(&self) -> bool {
        self.objects.borrow().is_reached()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bfd_counts_is_what_the_table_of_metrics_names() {
        let named: Vec<_> = counted(&Statistics::default()).into_keys().collect();
        let mut table = crate::metrics::BFD.map(|(name, _)| name);
        table.sort_unstable();
        assert_eq!(named, table);
    }

    fn link(carrier: bool) -> Link {
        Link { index: 7, name: "eth0".into(), up: true, carrier, mtu: 1500, addresses: BTreeSet::new() }
    }

    #[test]
    fn a_carrier_that_has_just_come_is_told_when_the_other_end_is_ready_too() {
        let mut carriers = Carriers::default();
        let told = |carriers: &mut Carriers, seven, eight| {
            let mut links = [(7, link(seven)), (8, link(eight))].into();
            let told = carriers.hide(&mut links);
            (links[&7].carrier, links[&8].carrier, carriers.until.is_some(), told)
        };
        assert_eq!(told(&mut carriers, true, false), (true, false, false, [].into()), "that was there before us");
        assert_eq!(told(&mut carriers, true, true), (true, false, true, [].into()));
        assert_eq!(told(&mut carriers, false, true), (false, false, true, [].into()), "a loss is told at once");
        for at in carriers.since.iter_mut().flat_map(BTreeMap::values_mut) {
            *at -= SETTLE;
        }
        assert_eq!(told(&mut carriers, false, true), (false, true, false, [8].into()));
        assert_eq!(told(&mut carriers, true, true), (false, true, true, [].into()));
    }
}
