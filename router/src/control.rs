//! What can be asked at the router's control socket, and what is answered: `martlet show`, `explain` and `reset` talk to it.
//!
//! It knows nothing of how answers are shown; how they travel, `martlet_api::serve::control` knows.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

pub use martlet_api::serve::control::ask;
use martlet_bgp::NeighborId;
use serde::{Deserialize, Serialize};

use crate::core::explain::Link;
use crate::core::{Input, RouteView, Status};
use crate::driver::Asker;
use crate::log::Detail;
use crate::metrics::Counted;
use crate::ring::{Line, Ring};

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
    martlet_api::serve::control::serve(path, "router", move |request| {
        let (asker, ring, detail) = (asker.clone(), ring.clone(), detail.clone());
        async move {
            match request {
                Ok(request) => answer(request, &asker, &ring, &detail).await,
                Err(error) => Answer::Error(error),
            }
        }
    })
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Duration;

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
        std::fs::remove_file(&path).unwrap();
    }
}
