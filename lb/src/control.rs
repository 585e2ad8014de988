//! The control socket: one JSON line asks, one JSON line answers; what `martlet show` and `trace` talk to.
//!
//! Mode 0660; only the same user and root are answered. It knows nothing of how answers are shown.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::hash::Flow;
use crate::queue::depth;
use crate::show::{State, state};
use crate::status::{Status, Trace};

/// Where it is, unless told otherwise.
pub const CONTROL_SOCKET: &str = "/run/martlet/lb.sock";
/// The longest request, octets.
const MAX_REQUEST: u64 = 4096;
/// How long an asker may take, and how long an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Everything, at most a second old: [`Answer::Status`].
    Status,
    /// The way of a flow by the tables of the moment: [`Answer::Trace`] or [`Answer::Dropped`].
    Trace(Flow),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// See [`Request::Status`].
    Status(Box<State>),
    /// See [`Request::Trace`].
    Trace(Trace),
    /// Its packets would be dropped: why.
    Dropped(String),
    /// It was not understood.
    Error(String),
}

/// Listens on `path` until the runtime ends.
///
/// # Errors
/// When the socket cannot be made: its folder is missing or not ours.
pub fn serve(path: &Path, status: watch::Receiver<Arc<Status>>) -> io::Result<()> {
    // What a killed process left is in the way of a new one; what a living one listens on is not ours to take.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another load balancer answers there"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    let own_uid = std::fs::metadata(path)?.uid();
    let socket = Removed(path.to_owned());
    tokio::spawn(async move {
        let _socket = socket;
        loop {
            match listener.accept().await {
                Ok((stream, _)) if is_friend(&stream, own_uid) => {
                    drop(tokio::spawn(converse(stream, status.clone())));
                }
                Ok(_) => debug!("a stranger on the control socket was sent away"),
                Err(error) => {
                    warn!(%error, "the control socket does not accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

/// Takes the socket's file along when it goes.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether the other end is root or the user that owns the socket.
fn is_friend(stream: &UnixStream, own_uid: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own_uid)
}

async fn converse(stream: UnixStream, status: watch::Receiver<Arc<Status>>) {
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read);
    loop {
        let mut line = String::new();
        let mut limited = (&mut reader).take(MAX_REQUEST);
        let read = tokio::time::timeout(PATIENCE, limited.read_line(&mut line)).await;
        if !matches!(read, Ok(Ok(count)) if count > 0) {
            return;
        }
        let answer = match serde_json::from_str(&line) {
            Ok(request) => answer(&request, &Arc::clone(&status.borrow())),
            Err(error) => Answer::Error(format!("not understood: {error}")),
        };
        let Ok(mut text) = serde_json::to_vec(&answer) else { return };
        text.push(b'\n');
        if !matches!(tokio::time::timeout(PATIENCE, write.write_all(&text)).await, Ok(Ok(()))) {
            return;
        }
    }
}

fn answer(request: &Request, status: &Status) -> Answer {
    match request {
        Request::Status => Answer::Status(Box::new(state(status, &depth::read()))),
        Request::Trace(flow) => match status.trace(flow) {
            Ok(trace) => Answer::Trace(trace),
            Err(reason) => Answer::Dropped(reason.to_string()),
        },
    }
}

/// Asks the load balancer whose control socket is `path`.
///
/// # Errors
/// When nobody answers there, or what is answered is not understood.
pub async fn ask(path: &Path, request: &Request) -> io::Result<Answer> {
    let talk = async {
        let mut stream = UnixStream::connect(path).await?;
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        if line.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "not answered: only its own user and root are",
            ));
        }
        Ok(serde_json::from_str(&line)?)
    };
    tokio::time::timeout(PATIENCE, talk).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{example, flow};

    /// The sender keeps the status alive.
    fn start(name: &str) -> (PathBuf, watch::Sender<Arc<Status>>) {
        let path = std::env::temp_dir().join(format!("martlet-lb-{name}-{}.sock", std::process::id()));
        let (status, seen) = watch::channel(Arc::new(example()));
        serve(&path, seen).unwrap();
        (path, status)
    }

    #[tokio::test]
    async fn every_request_has_its_answer() {
        let (path, _status) = start("control");
        let Answer::Status(shown) = ask(&path, &Request::Status).await.unwrap() else { panic!() };
        assert_eq!((shown.endpoints[0].identifier, &*shown.endpoints[0].state), (7, "ready"));
        let Answer::Trace(trace) = ask(&path, &Request::Trace(flow(4000))).await.unwrap() else { panic!() };
        assert_eq!((&*trace.route, trace.choice.mark), ("vip", 5007));
        let udp = Flow { protocol: 17, ..flow(4000) };
        assert_eq!(ask(&path, &Request::Trace(udp)).await.unwrap(), Answer::Dropped("no route".into()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn nonsense_is_answered_and_a_living_socket_is_not_taken_over() {
        let (path, status) = start("nonsense");
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"{\"dance\":1}\n").await.unwrap();
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
        assert!(line.starts_with("{\"error\":\"not understood"), "{line}");
        assert_eq!(serve(&path, status.subscribe()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        std::fs::remove_file(&path).unwrap();
    }
}
