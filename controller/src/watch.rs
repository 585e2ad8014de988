//! Watches: what the API server says, as changes of the world. Knows nothing of what is made of them.

use std::time::Duration;

use futures::StreamExt as _;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::world::Kind;

/// A change of what is known.
#[derive(Debug)]
pub enum Change {
    /// An object is new, or another.
    Put(Kind, Value),
    /// An object is gone: its namespace and name.
    Gone(Kind, String, String),
    /// All objects of a kind.
    Whole(Kind, Vec<Value>),
    /// The watch of a kind broke: why. It is tried again.
    Broken(Kind, String),
}

/// The resource of a kind, as the client wants it.
pub(crate) fn resource(kind: Kind) -> ApiResource {
    let (group, version, plural) = kind.api();
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.name()), plural)
}

/// The objects of a kind in our namespace (or without one).
pub(crate) fn api(client: &Client, kind: Kind, namespace: &str) -> Api<DynamicObject> {
    match kind {
        Kind::GatewayClass => Api::all_with(client.clone(), &resource(kind)),
        _ => Api::namespaced_with(client.clone(), namespace, &resource(kind)),
    }
}

/// Watches a kind until nobody listens.
pub async fn watch(client: Client, kind: Kind, namespace: String, changes: mpsc::Sender<Change>) {
    let config = watcher::Config::default();
    let mut events = std::pin::pin!(watcher(api(&client, kind, &namespace), config).backoff(Backoff::default()));
    let mut whole = Vec::new();
    while let Some(event) = events.next().await {
        let change = match event {
            Ok(watcher::Event::Init) => {
                whole.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                whole.push(plain(kind, object));
                continue;
            }
            Ok(watcher::Event::InitDone) => Change::Whole(kind, std::mem::take(&mut whole)),
            Ok(watcher::Event::Apply(object)) => Change::Put(kind, plain(kind, object)),
            Ok(watcher::Event::Delete(object)) => {
                Change::Gone(kind, object.namespace().unwrap_or_default(), object.name_any())
            }
            Err(error) => Change::Broken(kind, error.to_string()),
        };
        if changes.send(change).await.is_err() {
            return;
        }
    }
}

/// An object as JSON. Who owns its fields is kept of Deployments only: nothing else asks for it, and it is bulky.
pub(crate) fn plain(kind: Kind, mut object: DynamicObject) -> Value {
    if kind != Kind::Deployment {
        object.metadata.managed_fields = None;
    }
    serde_json::to_value(object).unwrap_or_default()
}

/// 100 ms, doubled to 2 s: an API server that is back is found soon, one that suffers is not pressed.
#[derive(Clone, Debug)]
pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(100))
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = self.0;
        self.0 = (now * 2).min(Duration::from_secs(2));
        Some(now)
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        *self = Self::default();
    }
}
