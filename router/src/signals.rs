//! Signals: TERM and INT end the router, HUP reads the folder again, USR1 and USR2 log more and less.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{info, warn};

use crate::driver::Signal;
use crate::log::Detail;

/// Has the folder read again, once there is one; empty where objects come from a cluster.
pub type Again = Arc<OnceLock<mpsc::Sender<()>>>;

/// Catches signals from now on. To be called in a tokio runtime.
///
/// # Errors
/// When a signal cannot be caught.
pub fn watch(signals: &mpsc::Sender<Signal>, again: &Again, detail: &Detail) -> io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let signals = signals.clone();
        // Full: it has been told.
        on(kind, move || !matches!(signals.try_send(Signal::Stop), Err(TrySendError::Closed(_))))?;
    }
    let again = Arc::clone(again);
    on(SignalKind::hangup(), move || {
        match again.get().map(|folder| folder.try_send(())) {
            None => info!(kind = "router", "SIGHUP: nothing to do, a cluster tells its changes"),
            Some(Err(TrySendError::Closed(()))) => warn!(kind = "router", "SIGHUP: nobody reads the folder any more"),
            // Full: it is about to be read.
            Some(_) => info!(kind = "router", "SIGHUP: the folder is read again"),
        }
        true
    })?;
    for (kind, more) in [(SignalKind::user_defined1(), true), (SignalKind::user_defined2(), false)] {
        let detail = detail.clone();
        on(kind, move || {
            match detail.step(more) {
                // Whoever asked should see that it was heard, at most levels.
                Ok(filter) => warn!(kind = "router", "log level {filter}"),
                Err(error) => warn!(kind = "router", "{error}"),
            }
            true
        })?;
    }
    Ok(())
}

/// Calls `act` at each signal, as long as it says true.
fn on(kind: SignalKind, act: impl Fn() -> bool + Send + 'static) -> io::Result<()> {
    let mut caught = signal(kind)?;
    tokio::spawn(async move {
        while caught.recv().await.is_some() {
            if !act() {
                return;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GENEROUS: Duration = Duration::from_secs(20);

    const GATEWAY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: sllb-a, namespace: default}
spec: {gatewayClassName: martlet, listeners: []}
";

    #[tokio::test]
    async fn a_folder_asked_again_shows_what_changed_behind_a_link() {
        let base = std::env::temp_dir().join(format!("martlet-hup-{}", std::process::id()));
        let (folder, elsewhere) = (base.join("folder"), base.join("elsewhere"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(&elsewhere).unwrap();
        std::fs::write(elsewhere.join("gateway.yaml"), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.join("gateway.yaml"), folder.join("gateway.yaml")).unwrap();
        let (mut objects, _source, again) = martlet_api::source::folder_on_demand(folder.clone(), "default");
        let before = Arc::clone(&objects.borrow_and_update());
        std::fs::write(elsewhere.join("gateway.yaml"), GATEWAY).unwrap();
        again.try_send(()).unwrap();
        tokio::time::timeout(GENEROUS, objects.changed()).await.expect("a new reading").unwrap();
        assert_ne!(**objects.borrow(), *before);
        std::fs::remove_dir_all(&base).unwrap();
    }

    #[tokio::test]
    async fn hangup_and_user_signals_are_heard_and_do_not_end_the_process() {
        let (signals, _received) = mpsc::channel(1);
        let (told, mut filters) = mpsc::unbounded_channel();
        let detail = Detail::new("info", move |filter: &str| told.send(filter.to_owned()).map_err(|e| e.to_string()));
        let (folder, mut asked) = mpsc::channel(1);
        watch(&signals, &Arc::new(OnceLock::from(folder)), &detail).unwrap();
        let own = std::process::id().to_string();
        for (name, filter) in [("-HUP", None), ("-USR1", Some("debug")), ("-USR2", Some("info"))] {
            assert!(std::process::Command::new("kill").args([name, &own]).status().unwrap().success());
            if name == "-HUP" {
                tokio::time::timeout(GENEROUS, asked.recv()).await.expect("the folder is asked for");
            }
            if let Some(filter) = filter {
                let said = tokio::time::timeout(GENEROUS, filters.recv()).await.expect("a level");
                assert_eq!(said.as_deref(), Some(filter));
            }
        }
    }
}
