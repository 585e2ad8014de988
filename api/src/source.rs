//! Where objects come from: a folder of YAML, or a cluster. Both give the same whole value.
//!
//! What one object says is read by [`crate::read`]; here is what time adds: the last good value of each object, and when to
//! read again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::objects::{Kind, Objects};

mod cluster;
mod folder;
mod pile;
mod shelf;
pub mod state;

pub use cluster::cluster;
pub(crate) use folder::read as read_folder;
pub use folder::{folder, folder_on_demand};
pub(crate) use shelf::FILE;
pub use shelf::Shelf;

/// A source that runs.
#[derive(Debug)]
pub struct Source {
    /// Everything that it knows.
    pub objects: watch::Receiver<Arc<Objects>>,
    /// It ends when all receivers are gone.
    pub task: JoinHandle<()>,
    /// Has the folder read again, if it is one.
    pub again: Option<mpsc::Sender<()>>,
    /// The cluster that it watches, if it is one.
    pub cluster: Option<Cluster>,
}

/// A way to a cluster.
#[derive(Clone)]
pub struct Cluster(pub Client);

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster(..)")
    }
}

/// Opens `folder`, or, without one, the cluster that this process is in (or that a kubeconfig names): `kinds` of it.
///
/// # Errors
/// There is no folder, and no way to a cluster.
pub async fn open(folder: Option<PathBuf>, namespace: &str, kinds: &BTreeSet<Kind>) -> Result<Source, String> {
    if let Some(folder) = folder {
        let (objects, task, again) = folder_on_demand(folder, namespace);
        return Ok(Source { objects, task, again: Some(again), cluster: None });
    }
    let client = Client::try_default().await.map_err(|error| {
        format!("no folder of objects was named, and there is no cluster: neither a ServiceAccount nor a kubeconfig: {error}")
    })?;
    let (objects, task) = cluster(&client, namespace, kinds);
    Ok(Source { objects, task, again: None, cluster: Some(Cluster(client)) })
}

/// New conditions, one line each, and that one is gone.
fn tell(before: &Objects, now: &Objects) {
    for condition in now.conditions.difference(&before.conditions) {
        let (kind, object, reason) = (&*condition.kind, &condition.object, &*condition.reason);
        tracing::warn!(kind, %object, reason, "{}", condition.message);
    }
    for condition in before.conditions.difference(&now.conditions) {
        let (kind, object, reason) = (&*condition.kind, &condition.object, &*condition.reason);
        tracing::info!(kind, %object, reason, "mended or removed");
    }
}
