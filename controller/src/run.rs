//! The controller as a process: watches, the election, and the loop around the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use martlet_api::crd::GatewayClass;
use martlet_api::view::ObjectName;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::act::{act, rights};
use crate::deployment::Settings;
use crate::endpoints::PER_SLICE;
use crate::events::Events;
use crate::health::{self, Health};
use crate::lease::{Times, elect};
use crate::notes::Note;
use crate::plan::plan;
use crate::watch::{Change, watch as watch_kind};
use crate::world::{Kind, Rights, World};

/// Changes that come together are answered together.
const TOGETHER: Duration = Duration::from_millis(10);
/// After a failure all is planned again, not sooner than this ..
const RETRY: Duration = Duration::from_millis(500);
/// .. and, if it goes on, not later.
const RETRY_MOST: Duration = Duration::from_secs(30);
/// How often we ask whether our rights have changed, unless one was refused.
const ASK_RIGHTS: Duration = Duration::from_mins(1);
/// A server that has just begun does not know all rights yet: what is missing is asked for once more, after this.
const SURE: Duration = Duration::from_secs(1);
/// How often a server whose watches broke is asked whether it is there, and how long its answer may take.
const LOOK: Duration = Duration::from_secs(1);
/// After how long without another failure a watch that broke goes on: longer than it waits before it tries again.
const GOES_ON: Duration = Duration::from_secs(5);
/// Changes on their way to the loop.
const CHANGES: usize = 1024;

/// How the controller runs.
#[derive(Clone)]
pub struct Options {
    /// The client; `None`: from the cluster or the kubeconfig.
    pub client: Option<Client>,
    /// The only namespace that is looked at.
    pub namespace: String,
    /// Unique among the replicas: the pod's name.
    pub identity: String,
    /// What the pods get.
    pub settings: Settings,
    /// Endpoints in one slice.
    pub per_slice: usize,
    /// Times of the election.
    pub lease: Times,
    /// How often it asks whether its rights have changed; when one is refused, at once.
    pub ask_rights: Duration,
    /// Where `grpc.health.v1` listens; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// It ends when this turns true, or its other end is gone.
    pub stop: watch::Receiver<bool>,
}

impl Options {
    /// The usual ones.
    pub fn new(namespace: &str, identity: &str, stop: watch::Receiver<bool>) -> Self {
        Self {
            client: None,
            namespace: namespace.to_owned(),
            identity: identity.to_owned(),
            settings: Settings::default(),
            per_slice: PER_SLICE,
            lease: Times::default(),
            ask_rights: ASK_RIGHTS,
            health: None,
            stop,
        }
    }
}

/// Runs until it is told to stop.
///
/// # Errors
/// There is no way to an API server, or the port for health is taken. A server that does not answer is no error.
pub async fn run(mut options: Options) -> Result<()> {
    let client = match options.client.take() {
        Some(client) => client,
        None => Client::try_default().await.context("no cluster: neither a ServiceAccount nor a kubeconfig")?,
    };
    let health = Health::default();
    let mut tasks = JoinSet::new();
    if let Some(address) = options.health {
        health::serve(address, &health, &mut tasks).await.with_context(|| format!("serve health on {address}"))?;
    }
    let mut stop = options.stop.clone();
    let mut past = Past::default();
    let mut said_before = None;
    while !*stop.borrow() {
        let known = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            known = tokio::time::timeout(RETRY_MOST, rights(&client, &options.namespace)) => known,
        };
        let Ok(known) = known else { continue };
        match known {
            Ok(answer) if answer.rights == Rights::ALL || said_before.as_ref() == Some(&answer) => {
                answer.tell();
                with_rights(&client, &options, answer.rights, &health, &mut past).await;
            }
            Ok(answer) => {
                said_before = Some(answer);
                tokio::time::sleep(SURE).await;
            }
            Err(error) => {
                health.ready(false);
                tracing::warn!(%error, "the API server does not say what we may do");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    health.ready(false);
    Ok(())
}

/// Returns when it turns true, or its other end is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// What is kept of the time when the rights were others: a right that is lost must take nothing down.
#[derive(Default)]
struct Past {
    /// There were readiness gates: pods are not rolled to be rid of them.
    gates: bool,
    /// The classes as they were last read.
    classes: BTreeMap<ObjectName, Arc<GatewayClass>>,
}

/// Runs until it is told to stop, or the rights are others.
async fn with_rights(client: &Client, options: &Options, rights: Rights, health: &Health, past: &mut Past) {
    let mut tasks = JoinSet::new();
    let (sender, changes) = mpsc::channel(CHANGES);
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_read(&rights)) {
        tasks.spawn(watch_kind(client.clone(), kind, options.namespace.clone(), sender.clone()));
    }
    let (leads, leading) = watch::channel(!rights.leases);
    let election = if rights.leases {
        let (client, namespace, me) = (client.clone(), options.namespace.clone(), options.identity.clone());
        tokio::spawn(elect(client, namespace, me, options.lease, leads))
    } else {
        tokio::spawn(async move { leads.closed().await })
    };
    let mut settings = options.settings.clone();
    past.gates |= rights.gates && rights.states;
    settings.gates &= past.gates;
    let mut world = World::new(&options.namespace, rights);
    if !rights.classes {
        world.objects.gateway_classes.clone_from(&past.classes);
    }
    let mut reconciler = Reconciler {
        client: client.clone(),
        events: Events::start(client.clone(), &options.identity),
        world,
        settings,
        per_slice: options.per_slice,
        synced: BTreeSet::new(),
        broken: BTreeMap::new(),
        notes: Vec::new(),
        retry: RETRY,
        ask_rights: options.ask_rights,
        refused: false,
    };
    reconciler.run(changes, leading, options.stop.clone(), health).await;
    past.classes = reconciler.world.objects.gateway_classes;
    // The election gives up the Lease when nobody listens any more.
    let _ = election.await;
}

/// The loop: changes in, plan, act.
struct Reconciler {
    client: Client,
    events: Events,
    world: World,
    settings: Settings,
    per_slice: usize,
    synced: BTreeSet<Kind>,
    /// Kinds whose watch is broken: why, and when it was last tried.
    broken: BTreeMap<Kind, (String, Instant)>,
    notes: Vec<Note>,
    retry: Duration,
    ask_rights: Duration,
    /// Something was refused: have our rights changed?
    refused: bool,
}

impl Reconciler {
    async fn run(
        &mut self,
        mut changes: mpsc::Receiver<Change>,
        mut leading: watch::Receiver<bool>,
        mut stop: watch::Receiver<bool>,
        health: &Health,
    ) {
        let mut ask_rights = tokio::time::interval_at(tokio::time::Instant::now() + self.ask_rights, self.ask_rights);
        // Rights that the server says we have now, if it says so again.
        let mut suspected = None;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // When to plan: `None`, nothing has changed.
        let mut due: Option<Instant> = None;
        loop {
            let at = due.unwrap_or_else(|| Instant::now() + RETRY_MOST);
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                Ok(()) = leading.changed() => {
                    let leads = *leading.borrow_and_update();
                    tracing::info!(leads, "leadership");
                    due = Some(Instant::now());
                }
                () = tokio::time::sleep_until(at.into()), if due.is_some() => {
                    due = None;
                    if *leading.borrow() && self.all_synced() {
                        tokio::select! {
                            biased;
                            () = stopped(&mut stop) => return,
                            again = self.reconcile() => due = again,
                        }
                        if std::mem::take(&mut self.refused) {
                            ask_rights.reset_immediately();
                        }
                    }
                }
                Some(change) = changes.recv() => {
                    let is_news = self.learn(change);
                    if !*leading.borrow() {
                        // Whoever leads tells it.
                        self.notes.clear();
                    }
                    if is_news {
                        due.get_or_insert_with(|| Instant::now() + TOGETHER);
                    }
                    health.ready(self.all_synced() && self.broken.is_empty());
                }
                _ = look.tick(), if !self.broken.is_empty() => {
                    // A watch that goes on where it broke says nothing.
                    let answer = tokio::time::timeout(LOOK, self.client.apiserver_version()).await;
                    if matches!(answer, Ok(Ok(_))) {
                        self.broken.retain(|_, (_, tried)| tried.elapsed() < GOES_ON);
                        health.ready(self.all_synced() && self.broken.is_empty());
                    }
                }
                _ = ask_rights.tick() => {
                    let answer = tokio::time::timeout(RETRY_MOST, rights(&self.client, &self.world.namespace));
                    if let Ok(Ok(answer)) = answer.await {
                        let others = (answer.rights != self.world.rights).then_some(answer.rights);
                        if others.is_some() && others == suspected {
                            tracing::info!("rights have changed");
                            return;
                        }
                        if others.is_some() {
                            ask_rights.reset_after(SURE);
                        }
                        suspected = others;
                    }
                }
            }
        }
    }

    fn all_synced(&self) -> bool {
        self.world.objects.synced
    }

    /// Takes a change. Returns whether the world is another.
    fn learn(&mut self, change: Change) -> bool {
        let notes = match change {
            Change::Put(kind, object) => {
                self.broken.remove(&kind);
                if self.world.knows(kind, &object) {
                    return false;
                }
                self.world.put(kind, &object)
            }
            Change::Gone(kind, namespace, name) => {
                self.broken.remove(&kind);
                self.world.gone(kind, &namespace, &name);
                Vec::new()
            }
            Change::Whole(kind, objects) => {
                self.broken.remove(&kind);
                tracing::debug!(kind = kind.name(), objects = objects.len(), "read");
                // What is read first is no news.
                let notes = self.world.whole(kind, &objects);
                let first = self.synced.insert(kind);
                self.world.objects.synced =
                    Kind::ALL.into_iter().all(|kind| !kind.is_read(&self.world.rights) || self.synced.contains(&kind));
                if first { Vec::new() } else { notes }
            }
            Change::Broken(kind, error) => {
                if self.broken.get(&kind).is_none_or(|(known, _)| *known != error) {
                    tracing::warn!(kind = kind.name(), error, "watch broke; what is known stays in use");
                }
                self.broken.insert(kind, (error, Instant::now()));
                return false;
            }
        };
        self.notes.extend(notes);
        true
    }

    /// Plans and acts once. Returns when to plan again, if something failed.
    async fn reconcile(&mut self) -> Option<Instant> {
        // Whole seconds: what the server would cut off would look like a change.
        let now = Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH));
        let begin = Instant::now();
        let planned = plan(&self.world, &self.settings, self.per_slice, &now);
        tracing::debug!(took = ?begin.elapsed(), actions = planned.actions.len(), "planned");
        for action in &planned.actions {
            let (kind, name) = action.of();
            tracing::debug!(kind = kind.name(), name, "act");
        }
        let done = act(&self.client, &self.world.namespace, planned.actions).await;
        let mut is_news = false;
        for change in done.changes {
            is_news |= self.learn(change);
        }
        let mut notes = std::mem::take(&mut self.notes);
        notes.extend(planned.notes);
        for note in notes.into_iter().filter(|_| self.world.rights.events) {
            self.events.tell(note);
        }
        if done.failures.is_empty() {
            self.retry = RETRY;
            // What was made may be told of elsewhere; the watches will not say more of it than the answer did.
            return is_news.then(|| Instant::now() + TOGETHER);
        }
        for failure in &done.failures {
            tracing::warn!(failure, "will be tried again");
        }
        let again = Instant::now() + self.retry;
        self.refused = done.forbidden;
        self.retry = (self.retry * 2).min(RETRY_MOST);
        Some(again)
    }
}
