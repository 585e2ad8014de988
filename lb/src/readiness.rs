//! The unix socket to the router: one JSON line is one whole value, sent on change and with every beat.
//!
//! A beat is the owner's word that every queue thread lives ([`crate::run`] gives it once a second). Without beats nothing
//! is sent, and after three seconds of silence the router takes nothing for ready. What is ready is not known here
//! (see [`crate::ready`]).

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use martlet_api::readiness::{Connectivity, Families, MAX_LINE, Readiness, SILENCE, VERSION};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

/// Routers at a time: one, and a new one that takes over.
const CONNECTIONS: usize = 8;

/// The listening socket, and what goes over it.
pub struct Server {
    path: PathBuf,
    beats: watch::Sender<Option<Arc<str>>>,
    last: Option<Readiness>,
    connectivity: watch::Receiver<Families>,
    task: tokio::task::JoinHandle<()>,
}

/// The path in `unix:///path`.
///
/// # Errors
/// When it is something else.
pub fn path_of(url: &str) -> io::Result<PathBuf> {
    match url.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => Err(io::Error::other(format!("socket {url:?}: must be a URL such as unix:///var/lib/meridio/lb.sock"))),
    }
}

impl Server {
    /// Listens at `url` (mode 0660). A socket that a dead process left there is replaced; a living one is an error.
    ///
    /// # Errors
    /// When that is not possible, with the path.
    pub async fn start(url: &str) -> io::Result<Self> {
        let path = path_of(url)?;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("socket {}: {error}", path.display()));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(named)?;
        }
        if UnixStream::connect(&path).await.is_ok() {
            return Err(named(io::ErrorKind::AddrInUse.into()));
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(named)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o660)).map_err(named)?;
        let own_uid = std::fs::metadata(&path).map_err(named)?.uid();
        let (beats, heard) = watch::channel(None);
        let (tell, connectivity) = watch::channel(Families::default());
        let task = tokio::spawn(accept(listener, own_uid, heard, tell));
        Ok(Self { path, beats, last: None, connectivity, task })
    }

    /// Sends `readiness` to everybody, now: it is new, or a beat is due.
    pub fn publish(&mut self, readiness: &Readiness) {
        self.last = Some(readiness.clone());
        match serde_json::to_string(readiness) {
            Ok(line) => drop(self.beats.send_replace(Some(format!("{line}\n").into()))),
            Err(error) => tracing::error!(%error, "readiness cannot be written as JSON"),
        }
    }

    /// Who connects from now on hears nothing, until something is published again: the last value may be true no more.
    pub fn fall_silent(&mut self) {
        self.beats.send_replace(None);
    }

    /// What was published last.
    pub const fn last(&self) -> Option<&Readiness> {
        self.last.as_ref()
    }

    /// Which families the router says have external connectivity.
    pub fn connectivity(&self) -> watch::Receiver<Families> {
        self.connectivity.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        // Nobody connects to an ended process; if it is gone already, so much the better.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(
    listener: UnixListener,
    own_uid: u32,
    beats: watch::Receiver<Option<Arc<str>>>,
    tell: watch::Sender<Families>,
) {
    let tell = Arc::new(tell);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Aborted with this task: dropping a `JoinSet` ends what is in it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a router's connection cannot be accepted");
                tokio::time::sleep(SILENCE / 10).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == own_uid || peer.uid() == 0 => {}
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), "a connection of another user is refused");
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "a connection without credentials is refused");
                continue;
            }
        }
        let (beats, tell) = (beats.clone(), Arc::clone(&tell));
        connections.spawn(async move {
            tracing::info!("router connected");
            if let Err(error) = serve(stream, beats, &tell).await {
                tracing::info!(%error, "router disconnected");
            }
            tell.send_replace(Families::default());
            drop(place);
        });
    }
}

/// Serves one router until it goes, says what cannot be understood, or reads nothing for too long.
async fn serve(
    stream: UnixStream,
    mut beats: watch::Receiver<Option<Arc<str>>>,
    tell: &watch::Sender<Families>,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    beats.mark_changed();
    // Kept over turns of the loop: reading a line is not safe to drop half way otherwise.
    let mut line = Vec::new();
    loop {
        tokio::select! {
            biased;
            changed = beats.changed() => {
                changed.map_err(io::Error::other)?;
                let Some(value) = beats.borrow_and_update().clone() else { continue };
                let sent = tokio::time::timeout(SILENCE, write.write_all(value.as_bytes())).await;
                sent.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            }
            read = next_line(&mut lines, &mut line) => {
                read?;
                let heard: Connectivity = serde_json::from_slice(&line)?;
                if heard.version != VERSION {
                    return Err(io::Error::other(format!("version {}: must be {VERSION}", heard.version)));
                }
                line.clear();
                tell.send_if_modified(|known| std::mem::replace(known, heard.connectivity) != heard.connectivity);
            }
        }
    }
}

/// Reads on until `line` holds a whole line. Safe to drop: what was read stays in `line`.
async fn next_line(lines: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> io::Result<()> {
    let room = u64::try_from((MAX_LINE + 1).saturating_sub(line.len())).unwrap_or_default();
    let read = lines.take(room).read_until(b'\n', line).await?;
    match line.last() {
        Some(b'\n') => Ok(()),
        _ if read == 0 && room > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::Error::other(format!("a line of more than {MAX_LINE} octets"))),
    }
}

/// Whether somebody listens at `path`.
pub async fn is_served(path: &Path) -> bool {
    UnixStream::connect(path).await.is_ok()
}

#[cfg(test)]
mod tests;
