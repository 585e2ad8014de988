//! Watches a folder of YAML and reads it whole, 20 ms after the last event.
//!
//! The volume of a `ConfigMap` is such a folder: the swap of its `..data` link is one change. A link to a file elsewhere is followed, but
//! only events in the folder itself are seen. Subfolders are not read.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::shelf::Shelf;
use crate::objects::Objects;
use crate::read::MAX_TEXT;

/// How long it must be quiet.
const QUIET: Duration = Duration::from_millis(20);
/// How long it is waited for quiet.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often it is looked whether the folder is still the watched one.
const LOOK: Duration = Duration::from_secs(1);
/// The most files.
const MAX_FILES: usize = 10_000;

/// Watches a folder of YAML; `namespace` is that of objects which name none.
///
/// The folder is read once before this returns, so that the first value is already there. Ends when all receivers are gone.
/// To be called in a tokio runtime.
pub fn folder(dir: PathBuf, namespace: &str) -> (watch::Receiver<Arc<Objects>>, JoinHandle<()>) {
    let (objects, task, _again) = folder_on_demand(dir, namespace);
    (objects, task)
}

/// As [`folder`], with a way to have it read again without a change: what stands behind links is not watched, and a folder on a
/// read-only mount cannot be touched.
pub fn folder_on_demand(
    dir: PathBuf,
    namespace: &str,
) -> (watch::Receiver<Arc<Objects>>, JoinHandle<()>, mpsc::Sender<()>) {
    let (told, events) = mpsc::channel(1);
    // Watched before it is read: a change in between is seen.
    let eye = Eye::open(&dir, &told);
    eye.tell(&dir);
    let mut shelf = Shelf::new(namespace);
    read(&dir, &mut shelf);
    super::tell(&Objects::default(), shelf.objects());
    let (sender, receiver) = watch::channel(Arc::new(shelf.objects().clone()));
    let again = told.clone();
    let task = tokio::spawn(run(dir, shelf, eye, told, events, sender));
    (receiver, task, again)
}

/// The watch on a folder, and which folder it is: another one may be put in its place.
#[derive(Debug)]
struct Eye {
    identity: Option<(u64, u64)>,
    /// Not there where the folder or the kernel's permission is missing: then it is read every [`LOOK`].
    watcher: notify::Result<RecommendedWatcher>,
}

impl Eye {
    fn open(dir: &Path, told: &mpsc::Sender<()>) -> Self {
        let identity = identity(dir);
        let told = told.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // One waiting notice is enough: the folder is read whole.
            if event.map_or(true, |event| is_change(event.kind)) {
                let _ = told.try_send(());
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            watcher.watch(dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        Self { identity, watcher }
    }

    fn tell(&self, dir: &Path) {
        if let Err(error) = &self.watcher {
            tracing::warn!(folder = %dir.display(), %error, "cannot watch the folder: it is read every second");
        }
    }

    fn is_open(&self, dir: &Path) -> bool {
        self.watcher.is_ok() && self.identity == identity(dir)
    }
}

fn identity(dir: &Path) -> Option<(u64, u64)> {
    fs::metadata(dir).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Reading is no change: our own reading would call for the next one.
const fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

async fn run(
    dir: PathBuf,
    mut shelf: Shelf,
    mut eye: Eye,
    told: mpsc::Sender<()>,
    mut events: mpsc::Receiver<()>,
    sender: watch::Sender<Arc<Objects>>,
) {
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            biased;
            () = sender.closed() => return,
            Some(()) = events.recv() => {
                let patience = Instant::now() + PATIENCE;
                while Instant::now() < patience && tokio::time::timeout(QUIET, events.recv()).await.is_ok() {}
            }
            _ = look.tick() => {
                if eye.is_open(&dir) {
                    continue;
                }
                let new = Eye::open(&dir, &told);
                // Said once, when the eye closes.
                if eye.watcher.is_ok() {
                    new.tell(&dir);
                }
                eye = new;
            }
        }
        let folder = dir.clone();
        let reading = tokio::task::spawn_blocking(move || {
            read(&folder, &mut shelf);
            shelf
        });
        let Ok(done) = reading.await else { return };
        shelf = done;
        sender.send_if_modified(|last| {
            let changed = **last != *shelf.objects();
            if changed {
                super::tell(last, shelf.objects());
                *last = Arc::new(shelf.objects().clone());
            }
            changed
        });
    }
}

/// Reads the whole folder.
pub(crate) fn read(dir: &Path, shelf: &mut Shelf) {
    match texts(dir) {
        Ok(texts) => shelf.put(texts),
        Err(error) => shelf.keep(&dir.display().to_string(), &error.to_string()),
    }
}

fn texts(dir: &Path) -> std::io::Result<BTreeMap<String, Result<String, String>>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_ours(&name) && fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_file()) {
            names.push((name, entry.path()));
        }
    }
    if names.len() > MAX_FILES {
        return Err(std::io::Error::other(format!("more than {MAX_FILES} files: divide the folder")));
    }
    let mut texts = BTreeMap::new();
    for (name, path) in names {
        match text(&path) {
            Ok(text) => drop(texts.insert(name, Ok(text))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => drop(texts.insert(name, Err(error.to_string()))),
        }
    }
    Ok(texts)
}

/// YAML and JSON, but neither hidden files nor what editors leave.
fn is_ours(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json")) && !name.starts_with(['.', '#'])
}

fn text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    // One octet more than permitted, so that the reader of the text can tell.
    fs::File::open(path)?.take(MAX_TEXT + 1).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, ModifyKind, RenameMode};

    use super::*;

    #[test]
    fn our_own_reading_is_no_event() {
        let read = [AccessKind::Open(AccessMode::Any), AccessKind::Close(AccessMode::Read), AccessKind::Read];
        assert!(!read.into_iter().any(|kind| is_change(EventKind::Access(kind))));
        assert!(is_change(EventKind::Access(AccessKind::Close(AccessMode::Write))));
        assert!(is_change(EventKind::Create(CreateKind::File)));
        assert!(is_change(EventKind::Modify(ModifyKind::Data(DataChange::Any))));
        assert!(is_change(EventKind::Modify(ModifyKind::Name(RenameMode::To))));
    }

    #[test]
    fn yaml_and_json_are_ours() {
        for name in ["a.yaml", "a.yml", "a.b.json"] {
            assert!(is_ours(name), "{name}");
        }
        for name in [".a.yaml", "..data", "a.yaml~", "#a.yaml#", "a.yaml.swp", "yaml", "a.txt"] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
