//! What can be asked at the load balancer's control socket, and what is answered: `martlet show` and `trace` talk to it.
//!
//! It knows nothing of how answers are shown; how they travel, `martlet_api::serve::control` knows.

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use martlet_api::serve::control::ask;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::hash::Flow;
use crate::queue::depth;
use crate::show::{State, state};
use crate::status::{Status, Trace};

/// Where it is, unless told otherwise.
pub const CONTROL_SOCKET: &str = "/run/martlet/lb.sock";

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
    martlet_api::serve::control::serve(path, "load balancer", move |request| {
        let answer = match request {
            Ok(request) => answer(&request, &Arc::clone(&status.borrow())),
            Err(error) => Answer::Error(error),
        };
        std::future::ready(answer)
    })
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

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
        assert_eq!(ask::<Answer>(&path, &Request::Trace(udp)).await.unwrap(), Answer::Dropped("no route".into()));
        std::fs::remove_file(&path).unwrap();
    }
}
