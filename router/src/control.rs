//! The control socket: one JSON line asks, one JSON line answers; what `martlet show`, `explain` and `reset` talk to.
//!
//! Mode 0660; only the same user and root are answered. It knows nothing of how answers are shown.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use martlet_bgp::NeighborId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

use crate::core::explain::Link;
use crate::core::{Input, RouteView, Status};
use crate::driver::Asker;
use crate::log::Detail;
use crate::metrics::Counted;
use crate::ring::{Line, Ring};

/// The longest request, octets.
const MAX_REQUEST: u64 = 4096;
/// How long an asker may take, and how long the router.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most routes in an answer.
const MAX_ROUTES: usize = 10_000;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Everything but routes and events: [`Answer::Status`].
    Status,
    /// Routes, at most this many (and never more than ten thousand): [`Answer::Routes`].
    Routes(usize),
    /// Events after this number: [`Answer::Events`].
    Events(u64),
    /// Counters: [`Answer::Counters`].
    Counters,
    /// Why a VIP is announced or not: [`Answer::Explain`].
    Explain(IpAddr),
    /// Close a session and start anew, with a text for the neighbour: [`Answer::Done`].
    Reset(String, String),
    /// Ask a neighbour for its routes again: [`Answer::Done`].
    Refresh(String),
    /// Log by this filter from now on, or as before if it is empty: [`Answer::Log`].
    Log(String),
    /// Log every event of this `GatewayRouter`, or no longer: [`Answer::Log`].
    LogPeer(String, bool),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// See [`Request::Status`].
    Status(Box<Status>),
    /// See [`Request::Routes`].
    Routes(Vec<RouteView>),
    /// See [`Request::Events`].
    Events(Vec<Line>),
    /// See [`Request::Counters`], by neighbour; those of BFD as a whole under `bfd:`.
    Counters(BTreeMap<String, BTreeMap<String, u64>>),
    /// See [`Request::Explain`].
    Explain(Vec<Link>),
    /// What is logged from now on, in words.
    Log(String),
    /// It was done.
    Done,
    /// It was not understood, or cannot be done.
    Error(String),
}

/// Listens on `path` until the driver ends.
///
/// # Errors
/// When the socket cannot be made: its folder is missing or not ours.
pub fn serve(path: &Path, asker: Asker, ring: Ring, detail: Detail) -> io::Result<()> {
    // What a killed router left is in the way of a new one; what a living one listens on is not ours to take.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another router answers there"));
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
    let socket = Removed(path.to_owned());
    tokio::spawn(async move {
        let _socket = socket;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(converse(stream, asker.clone(), ring.clone(), detail.clone()))),
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

/// Whether the other end is root or the user that owns our process.
fn is_friend(stream: &UnixStream) -> bool {
    let own = std::fs::metadata("/proc/self").map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata));
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || own.is_ok_and(|own| own == peer.uid()))
}

async fn converse(stream: UnixStream, asker: Asker, ring: Ring, detail: Detail) {
    if !is_friend(&stream) {
        debug!("a stranger on the control socket was sent away");
        return;
    }
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
            Ok(request) => answer(request, &asker, &ring, &detail).await,
            Err(error) => Answer::Error(format!("not understood: {error}")),
        };
        let Ok(mut text) = serde_json::to_vec(&answer) else { return };
        text.push(b'\n');
        if !matches!(tokio::time::timeout(PATIENCE, write.write_all(&text)).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn answer(request: Request, asker: &Asker, ring: &Ring, detail: &Detail) -> Answer {
    let answer = match request {
        Request::Status => asker.ask(|look| Answer::Status(Box::new(look.router.status(look.now)))).await,
        Request::Routes(max) => {
            asker.ask(move |look| Answer::Routes(look.router.route_views(max.min(MAX_ROUTES)))).await
        }
        Request::Events(after) => Some(Answer::Events(ring.after(after))),
        Request::Counters => {
            let counters = asker.ask(|look| (look.router.counters(), look.bfd.clone())).await;
            counters.map(|(counters, bfd)| {
                let named = |counted: &martlet_bgp::Counters| {
                    Counted::ALL.iter().map(|one| (one.name.to_owned(), (one.read)(counted))).collect()
                };
                let bfd = bfd.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                let neighbors = counters.iter().map(|(id, counted)| (id.to_string(), named(counted)));
                // A colon is in no name of an object.
                Answer::Counters(neighbors.chain([("bfd:".to_owned(), bfd)]).collect())
            })
        }
        Request::Explain(vip) => asker.ask(move |look| Answer::Explain(look.router.explain(look.now, vip))).await,
        Request::Reset(peer, text) => act(asker, peer, move |id| Box::new(Act::Reset(id, text))).await,
        Request::Refresh(peer) => act(asker, peer, |id| Box::new(Act::Refresh(id))).await,
        Request::Log(filter) if filter.is_empty() => Some(Answer::Log(detail.words())),
        Request::Log(filter) => Some(logged(detail.set(&filter), detail)),
        Request::LogPeer(peer, all) => {
            let id = NeighborId::new(&peer);
            match asker.ask(move |look| look.router.has_neighbor(&id)).await {
                Some(false) if all => Some(Answer::Error(format!("there is no BGP GatewayRouter {peer}"))),
                Some(_) => Some(logged(detail.tell_all(&peer, all), detail)),
                None => None,
            }
        }
    };
    answer.unwrap_or_else(|| Answer::Error("the router has ended".into()))
}

fn logged(done: Result<(), String>, detail: &Detail) -> Answer {
    match done {
        Ok(()) => Answer::Log(detail.words()),
        Err(error) => Answer::Error(error),
    }
}

enum Act {
    Reset(NeighborId, String),
    Refresh(NeighborId),
}

async fn act(asker: &Asker, peer: String, act: impl FnOnce(NeighborId) -> Box<Act> + Send + 'static) -> Option<Answer> {
    asker
        .ask(move |look| {
            let id = NeighborId::new(&peer);
            if !look.router.has_neighbor(&id) {
                return Answer::Error(format!("there is no BGP GatewayRouter {peer}"));
            }
            match *act(id) {
                Act::Reset(id, text) => look.router.handle(look.now, Input::Reset(&id, &text)),
                Act::Refresh(id) => look.router.handle(look.now, Input::Refresh(&id)),
            }
            Answer::Done
        })
        .await
}

/// Asks the router whose control socket is `path`.
///
/// # Errors
/// When nobody answers there, or what is answered is not understood.
pub async fn ask<T: DeserializeOwned>(path: &Path, request: &Request) -> io::Result<T> {
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
    use std::sync::Arc;

    use super::*;
    use crate::core::{Config, Event, Router};
    use crate::driver::Look;
    use crate::intent::Identity;

    fn detail() -> Detail {
        Detail::new("info", |filter| if filter == "loud" { Err("no level".into()) } else { Ok(()) })
    }

    fn start(name: &str) -> (PathBuf, Ring) {
        let path = std::env::temp_dir().join(format!("martlet-{name}-{}.sock", std::process::id()));
        let (asker, mut questions) = Asker::new();
        tokio::spawn(async move {
            let mut router = Router::new(Config {
                identity: Identity { router_id: None, name: "pod".into() },
                external_interface: Arc::from("eth0"),
                table: 4096,
                adopt: Duration::ZERO,
                leave: Duration::ZERO,
                drain: Duration::ZERO,
                seed: 1,
            });
            while let Some(question) = questions.recv().await {
                let now = martlet_clock::Instant::from_millis(1);
                let bfd = BTreeMap::from([("stalls", 2)]);
                question(&mut Look { router: &mut router, now, source_reached: true, bfd });
            }
        });
        let ring = Ring::default();
        serve(&path, asker, ring.clone(), detail()).unwrap();
        (path, ring)
    }

    #[tokio::test]
    async fn every_request_has_its_answer() {
        let (path, ring) = start("control");
        ring.push(&Event::Repaired(3));
        let Answer::Status(status) = ask(&path, &Request::Status).await.unwrap() else { panic!() };
        assert_eq!(status.life, "Starting");
        let Answer::Events(events) = ask(&path, &Request::Events(0)).await.unwrap() else { panic!() };
        assert_eq!(events[0].kind, "kernel");
        assert_eq!(ask::<Answer>(&path, &Request::Routes(10)).await.unwrap(), Answer::Routes(Vec::new()));
        let Answer::Explain(chain) = ask(&path, &Request::Explain("20.0.0.1".parse().unwrap())).await.unwrap() else {
            panic!()
        };
        assert!(!chain[0].holds);
        let Answer::Counters(counters) = ask(&path, &Request::Counters).await.unwrap() else { panic!() };
        assert_eq!(counters["bfd:"]["stalls"], 2);
        let reset = Request::Reset("gw".into(), "maintenance".into());
        let Answer::Error(error) = ask(&path, &reset).await.unwrap() else { panic!() };
        assert!(error.contains("no BGP GatewayRouter gw"));
        for (request, answer) in [
            (Request::Log("Debug".into()), Answer::Log("log level debug".into())),
            (Request::Log("loud".into()), Answer::Error("no level".into())),
            (Request::Log(String::new()), Answer::Log("log level debug".into())),
            (Request::LogPeer("gw".into(), false), Answer::Log("log level debug".into())),
            (Request::LogPeer("gw".into(), true), Answer::Error("there is no BGP GatewayRouter gw".into())),
        ] {
            assert_eq!(ask::<Answer>(&path, &request).await.unwrap(), answer, "{request:?}");
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        std::fs::remove_file(&path).unwrap();
    }

    /// Asks for the status as `user`: what was answered. Perl is part of the base of Debian, and may be run by anybody.
    async fn ask_as(user: u32, path: PathBuf) -> String {
        use std::os::unix::process::CommandExt;
        const SCRIPT: &str = r#"$SIG{PIPE} = "IGNORE";
            my $s = IO::Socket::UNIX->new($ARGV[0]) or die "cannot connect: $!";
            syswrite $s, "\"status\"\n"; my $line = readline $s; print $line // """#;
        let ask = move || {
            let mut perl = std::process::Command::new("/usr/bin/perl");
            let output = perl.args(["-MIO::Socket::UNIX", "-e", SCRIPT]).arg(path).current_dir("/").uid(user).output();
            let output = output.expect("this test needs root and perl");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    #[tokio::test]
    async fn another_user_is_sent_away_without_an_answer() {
        let (path, _ring) = start("stranger");
        // The mode alone would keep it out: credentials must, too.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(ask_as(0, path.clone()).await.starts_with("{\"status\":"));
        assert_eq!(ask_as(65534, path.clone()).await, "");
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn nonsense_is_answered_and_a_living_socket_is_not_taken_over() {
        let (path, ring) = start("nonsense");
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"{\"dance\":1}\n").await.unwrap();
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
        assert!(line.starts_with("{\"error\":\"not understood"), "{line}");
        let (asker, _questions) = Asker::new();
        assert_eq!(serve(&path, asker, ring, detail()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        std::fs::remove_file(&path).unwrap();
    }
}
