//! Watches the same kinds in a cluster, in one namespace, and keeps what it knows while the API server is away.
//!
//! Objects are read one by one from plain JSON, as in a folder: one that does not fit its type must not break the list of the
//! others. A kind that may not be read is absent, not an error. Secrets are only watched, never listed.
//!
//! A watch does not notice a server that falls silent, so the server is asked for its version now and then, and at once when
//! a watch breaks. When it answers again every kind is read anew: what happened in between is seen without waiting.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::FutureExt as _;
use futures::stream::{self, BoxStream, StreamExt as _};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, WatchEvent, WatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::pile::{Change, Piles};
use crate::crd;
use crate::objects::{Kind, Objects};

/// How many changes become one value, if they come at once.
const BATCH: usize = 1000;
/// How long a watch of Secrets lasts; the API server ends it.
const SECRETS_WATCH_S: u32 = 240;
/// Between two watches of Secrets.
const SECRETS_PAUSE: Duration = Duration::from_secs(1);
/// Before a kind that may not be read is asked for again, and one whose server did not answer.
const ABSENT_RETRY: Duration = Duration::from_secs(30);
const LOST_RETRY: Duration = Duration::from_secs(1);
/// After how long all Secrets were certainly shown.
const SECRETS_WHOLE: Duration = Duration::from_secs(10);
/// How long changes of other kinds wait for a list that has begun.
const LIST_PATIENCE: Duration = Duration::from_secs(1);
/// How often the server is asked whether it is there: while it is, and while it is not.
const LOOK: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long its answer may take.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);

type Watched = (watch::Receiver<Arc<Objects>>, JoinHandle<()>);

/// Watches `kinds` in `namespace`. Nothing is shown before everything was read; a kind without permission is absent.
///
/// Ends when all receivers are gone. To be called in a tokio runtime.
pub fn cluster(client: &Client, namespace: &str, kinds: &BTreeSet<Kind>) -> Watched {
    let (round, rounds) = watch::channel(());
    let streams = kinds.iter().map(|kind| anew(*kind, api(client, namespace, *kind), rounds.clone()));
    let changes = stream::select_all(streams.collect::<Vec<_>>());
    let (doubt, doubts) = mpsc::channel(1);
    let (told, reached) = watch::channel(None);
    tokio::spawn(look(client.clone(), doubts, told));
    let piles = Piles::new(namespace, kinds);
    let (sender, receiver) = watch::channel(Arc::new(shown(&piles, None)));
    let task = tokio::spawn(run(piles, changes, Reach { doubt, reached, round }, sender));
    (receiver, task)
}

/// Whether the server is there.
struct Reach {
    /// Something broke: look at once.
    doubt: mpsc::Sender<()>,
    /// Why it is not there.
    reached: watch::Receiver<Option<Arc<str>>>,
    /// It is there again: every kind is read anew.
    round: watch::Sender<()>,
}

async fn run(mut piles: Piles, mut changes: stream::SelectAll<Changes>, mut reach: Reach, sender: Sender) {
    // Until when what is known waits for the end of a list.
    let mut held: Option<Instant> = None;
    loop {
        let patience = held.unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            () = sender.closed() => return,
            Ok(()) = reach.reached.changed() => {
                if reach.reached.borrow_and_update().is_none() {
                    reach.round.send_replace(());
                }
            }
            Some((kind, change)) = changes.next() => {
                take(&mut piles, &reach, kind, change);
                for _ in 1..BATCH {
                    let Some(Some((kind, change))) = changes.next().now_or_never() else { break };
                    take(&mut piles, &reach, kind, change);
                }
                // An object that is gone and came back under another name is seen as that, not as two. But one kind whose list
                // takes long must not hold up the others.
                if !piles.is_settled() && held.is_none_or(|until| Instant::now() < until) {
                    held.get_or_insert_with(|| Instant::now() + LIST_PATIENCE);
                    continue;
                }
            }
            () = tokio::time::sleep_until(patience), if held.is_some_and(|until| Instant::now() < until) => {}
            else => return,
        }
        if piles.is_settled() {
            held = None;
        }
        let objects = shown(&piles, reach.reached.borrow().clone());
        sender.send_if_modified(|last| {
            let differs = **last != objects;
            if differs {
                super::tell(last, &objects);
                *last = Arc::new(objects);
            }
            differs
        });
    }
}

type Sender = watch::Sender<Arc<Objects>>;

fn take(piles: &mut Piles, reach: &Reach, kind: Kind, change: Change) {
    if matches!(change, Change::Lost(_)) {
        // Full: it has been told.
        let _ = reach.doubt.try_send(());
    }
    piles.apply(kind, change);
}

/// What is known; nothing before everything was read once.
fn shown(piles: &Piles, unreachable: Option<Arc<str>>) -> Objects {
    let objects = piles.objects();
    if objects.synced { Objects { unreachable, ..objects } } else { Objects { unreachable, ..Objects::default() } }
}

/// Asks the server whether it is there, until nobody wants to know.
async fn look(client: Client, mut doubts: mpsc::Receiver<()>, told: watch::Sender<Option<Arc<str>>>) {
    loop {
        let fault = match tokio::time::timeout(LOOK_PATIENCE, client.apiserver_version()).await {
            Err(_) => Some(format!("no answer within {} s", LOOK_PATIENCE.as_secs())),
            // Whatever it says: it is there.
            Ok(Ok(_) | Err(kube::Error::Api(_))) => None,
            Ok(Err(error)) => Some(error.to_string()),
        };
        match (&*told.borrow(), &fault) {
            (None, Some(error)) => {
                tracing::warn!(error, "the API server cannot be reached: what is known stays in use");
            }
            (Some(_), None) => tracing::info!("the API server is reached again"),
            _ => {}
        }
        let is_there = fault.is_none();
        // Why it is not there may be put in many words: the first are kept.
        told.send_if_modified(|last| {
            let differs = last.is_none() != is_there;
            if differs {
                *last = fault.map(Arc::from);
            }
            differs
        });
        tokio::select! {
            biased;
            () = told.closed() => return,
            Some(()) = doubts.recv(), if is_there => {}
            () = tokio::time::sleep(if is_there { LOOK } else { LOOK_AGAIN }) => {}
        }
    }
}

fn api(client: &Client, namespace: &str, kind: Kind) -> Api<DynamicObject> {
    let version = match kind {
        Kind::GatewayRouter | Kind::L34Route => crd::VERSION,
        _ => "v1",
    };
    let gvk = GroupVersionKind::gvk(kind.group(), version, kind.name());
    let plural = match kind {
        Kind::GatewayClass => "gatewayclasses".to_owned(),
        _ => kind.name().to_lowercase() + "s",
    };
    let resource = ApiResource::from_gvk_with_plural(&gvk, &plural);
    if kind.namespaced() {
        Api::namespaced_with(client.clone(), namespace, &resource)
    } else {
        Api::all_with(client.clone(), &resource)
    }
}

type Changes = BoxStream<'static, (Kind, Change)>;

/// The changes of a kind, read anew with every round.
fn anew(kind: Kind, api: Api<DynamicObject>, rounds: watch::Receiver<()>) -> Changes {
    let every = stream::unfold(rounds, move |mut rounds| {
        rounds.mark_unchanged();
        let mut next = rounds.clone();
        let round = match kind {
            Kind::Secret => secrets(api.clone()),
            _ => changes(kind, api.clone()),
        };
        // The sender lives as long as whoever reads this.
        let round = round.take_until(async move { drop(next.changed().await) });
        futures::future::ready(Some((round, rounds)))
    });
    every.flatten().boxed()
}

/// The changes of a kind. Where it may not be read that is asked again now and then, and otherwise left in peace: a watcher would
/// try again every second, and log it.
fn changes(kind: Kind, api: Api<DynamicObject>) -> Changes {
    let rounds = stream::unfold((api, Duration::ZERO), move |(api, pause)| async move {
        tokio::time::sleep(pause).await;
        let may = api.list_metadata(&ListParams::default().limit(1)).await;
        let (round, pause): (Changes, _) = match may {
            Ok(_) => {
                let events = watcher::watcher(api.clone(), watcher::Config::default()).default_backoff();
                let change = |event| match event {
                    Ok(Event::Init) => Change::Begin,
                    Ok(Event::InitApply(object) | Event::Apply(object)) => Change::Put(json(&object)),
                    Ok(Event::InitDone) => Change::End,
                    Ok(Event::Delete(object)) => Change::Remove(object.name_any()),
                    Err(error) => failure(&error),
                };
                let until_absent = events.map(change).scan(false, |absent, change| {
                    let stop = *absent;
                    *absent = matches!(change, Change::Absent);
                    futures::future::ready((!stop).then_some(change))
                });
                (until_absent.map(move |change| (kind, change)).boxed(), ABSENT_RETRY)
            }
            Err(error) => refused(kind, &error),
        };
        Some((round, (api, pause)))
    });
    rounds.flatten().boxed()
}

fn failure(error: &watcher::Error) -> Change {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => refusal(error),
        other => Change::Lost(other.to_string()),
    }
}

/// Without permission, or without the definition of the kind, there is nothing to wait for.
fn refusal(error: &kube::Error) -> Change {
    match error {
        kube::Error::Api(status) if matches!(status.code, 403 | 404) => Change::Absent,
        other => Change::Lost(other.to_string()),
    }
}

/// A round that did not begin, and the pause before the next.
fn refused(kind: Kind, error: &kube::Error) -> (Changes, Duration) {
    let change = refusal(error);
    let pause = if matches!(change, Change::Absent) { ABSENT_RETRY } else { LOST_RETRY };
    (stream::iter([(kind, change)]).boxed(), pause)
}

/// Secrets by `watch` alone: without a resource version a watch begins with all that exist. What one whole watch did not
/// show is gone.
fn secrets(api: Api<DynamicObject>) -> Changes {
    let kind = Kind::Secret;
    let rounds = stream::unfold((api, Duration::ZERO), move |(api, pause)| async move {
        tokio::time::sleep(pause).await;
        let params = WatchParams::default().timeout(SECRETS_WATCH_S);
        let started = api.watch(&params, "").await;
        let (round, pause): (Changes, _) = match started {
            Ok(events) => {
                let change = move |event| match event {
                    Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => Change::Put(json(&object)),
                    Ok(WatchEvent::Deleted(object)) => Change::Remove(object.name_any()),
                    Ok(WatchEvent::Bookmark(_)) => Change::Nothing,
                    Ok(WatchEvent::Error(status)) => Change::Lost(status.message.clone()),
                    Err(error) => refusal(&error),
                };
                let events = events.map(change);
                // A round that failed has not shown everything.
                let round = events.scan(false, |failed, change| {
                    let stop = *failed;
                    *failed = matches!(change, Change::Lost(_) | Change::Absent);
                    futures::future::ready((!stop).then_some(change))
                });
                // A server that ends soon after it began may not have shown everything either.
                let started = Instant::now();
                let end = async move {
                    let whole = started.elapsed() >= SECRETS_WHOLE;
                    if whole { Change::EndRound } else { Change::Lost("the watch ended early".to_owned()) }
                };
                let whole = stream::iter([Change::BeginRound]).chain(round).chain(stream::once(end));
                (whole.map(move |change| (kind, change)).boxed(), SECRETS_PAUSE)
            }
            Err(error) => refused(kind, &error),
        };
        Some((round, (api, pause)))
    });
    rounds.flatten().boxed()
}

fn json(object: &DynamicObject) -> serde_json::Value {
    serde_json::to_value(object).unwrap_or_default()
}
