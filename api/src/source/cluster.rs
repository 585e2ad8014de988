//! Watches the same kinds in a cluster, in one namespace, and keeps what it knows while the API server is away.
//!
//! Objects are read one by one from plain JSON, as in a folder: one that does not fit its type must not break the list of the
//! others. A kind that may not be read is absent, not an error. Secrets are only watched, never listed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::FutureExt as _;
use futures::stream::{self, BoxStream, StreamExt as _};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, WatchEvent, WatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::pile::{Change, Piles};
use crate::crd;
use crate::objects::{Kind, Objects};

/// How many changes become one value, if they come at once.
const BATCH: usize = 1000;
/// How long a watch of Secrets lasts; the API server ends it.
const SECRETS_WATCH_S: u32 = 240;
/// Between two watches of Secrets: after the end of one, and after a failure.
const SECRETS_PAUSE: Duration = Duration::from_secs(1);
const SECRETS_RETRY: Duration = Duration::from_secs(5);
/// After how long all Secrets were certainly shown.
const SECRETS_WHOLE: Duration = Duration::from_secs(10);

/// Watches `kinds` in `namespace`. The first value that is `synced` holds everything; a kind without permission is absent.
///
/// Ends when all receivers are gone. To be called in a tokio runtime.
pub fn cluster(
    client: &Client,
    namespace: &str,
    kinds: &BTreeSet<Kind>,
) -> (watch::Receiver<Arc<Objects>>, JoinHandle<()>) {
    let mut piles = Piles::new(namespace, kinds);
    let streams = kinds.iter().map(|kind| match kind {
        Kind::Secret => secrets(api(client, namespace, *kind)),
        _ => changes(*kind, api(client, namespace, *kind)),
    });
    let mut changes = stream::select_all(streams.collect::<Vec<_>>());
    let (sender, receiver) = watch::channel(Arc::new(piles.objects()));
    let task = tokio::spawn(async move {
        loop {
            let (kind, change) = tokio::select! {
                biased;
                () = sender.closed() => return,
                Some(change) = changes.next() => change,
                else => return,
            };
            piles.apply(kind, change);
            for _ in 1..BATCH {
                let Some(Some((kind, change))) = changes.next().now_or_never() else { break };
                piles.apply(kind, change);
            }
            // Half a list is not shown: an object in its second half would seem to be gone.
            if piles.is_settled() {
                let objects = piles.objects();
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
    });
    (receiver, task)
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

fn changes(kind: Kind, api: Api<DynamicObject>) -> Changes {
    let events = watcher::watcher(api, watcher::Config::default()).default_backoff();
    let change = move |event| match event {
        Ok(Event::Init) => Change::Begin,
        Ok(Event::InitApply(object) | Event::Apply(object)) => Change::Put(json(&object)),
        Ok(Event::InitDone) => Change::End,
        Ok(Event::Delete(object)) => Change::Remove(object.name_any()),
        Err(error) => failure(kind, &error),
    };
    events.map(move |event| (kind, change(event))).boxed()
}

fn failure(kind: Kind, error: &watcher::Error) -> Change {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => refusal(kind, error),
        other => lost(kind, &other.to_string()),
    }
}

/// Without permission, or without the definition of the kind, there is nothing to wait for.
fn refusal(kind: Kind, error: &kube::Error) -> Change {
    match error {
        kube::Error::Api(status) if matches!(status.code, 403 | 404) => Change::Absent,
        other => lost(kind, &other.to_string()),
    }
}

fn lost(kind: Kind, error: &str) -> Change {
    tracing::warn!(%kind, error, "watch interrupted: what is known stays in use");
    Change::Lost
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
                    Ok(WatchEvent::Error(status)) => lost(kind, &status.message),
                    Err(error) => refusal(kind, &error),
                };
                let events = events.map(change);
                // A round that failed has not shown everything.
                let round = events.scan(false, |failed, change| {
                    let stop = *failed;
                    *failed = matches!(change, Change::Lost | Change::Absent);
                    futures::future::ready((!stop).then_some(change))
                });
                // A server that ends soon after it began may not have shown everything either.
                let started = Instant::now();
                let end =
                    async move { if started.elapsed() < SECRETS_WHOLE { Change::Lost } else { Change::EndRound } };
                let whole = stream::iter([Change::BeginRound]).chain(round).chain(stream::once(end));
                (whole.map(move |change| (kind, change)).boxed(), SECRETS_PAUSE)
            }
            Err(error) => (stream::iter([(kind, refusal(kind, &error))]).boxed(), SECRETS_RETRY),
        };
        Some((round, (api, pause)))
    });
    rounds.flatten().boxed()
}

fn json(object: &DynamicObject) -> serde_json::Value {
    serde_json::to_value(object).unwrap_or_default()
}
