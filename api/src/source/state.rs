//! Writes the `RouterState` of a pod: only what changed, at most once a second.
//!
//! `Pace` is pure: what was told, what is to be told, and when. What traffic hangs on is told within a second; words that may
//! change all the time while a gateway does not answer wait longer, so that a hundred pods do not burden the API server.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::crd::{GROUP, RouterState, RouterStateSpec, SessionState, VERSION};

/// Who owns the fields that a router applies.
const FIELD_MANAGER: &str = "martlet-router";
/// Between two writes.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// How long words wait.
const WORDS_WAIT: Duration = Duration::from_secs(30);
/// How long a write may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a write that failed; without the right to write at all.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_FORBIDDEN: Duration = Duration::from_mins(1);

/// The pod of a router: what its `RouterState` is named after, and with whom it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// The time `age_s` seconds ago, RFC 3339, in UTC.
pub fn ago(age_s: u64) -> String {
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
    let age = SignedDuration::from_secs(i64::try_from(age_s).unwrap_or(0));
    now.checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

/// Writes what is sent until the sender is gone. To be called in a tokio runtime.
pub fn states(client: Client, pod: Pod) -> watch::Sender<Option<RouterStateSpec>> {
    let (sender, wanted) = watch::channel(None);
    tokio::spawn(write(client, pod, wanted));
    sender
}

/// What was told, and what may be told when.
#[derive(Clone, Debug, Default)]
struct Pace {
    told: Option<RouterStateSpec>,
}

impl Pace {
    /// How long `wanted` waits after the last write; `None`: there is nothing to tell. Where the state of a session is the
    /// same, so is the time since which it is.
    fn wait(&self, wanted: &mut RouterStateSpec) -> Option<Duration> {
        let Some(told) = &self.told else { return Some(Duration::ZERO) };
        for session in &mut wanted.sessions {
            let same = |old: &&SessionState| {
                (&old.router, old.up, &old.state, &old.bfd)
                    == (&session.router, session.up, &session.state, &session.bfd)
            };
            if let Some(old) = told.sessions.iter().find(same) {
                session.since.clone_from(&old.since);
            }
        }
        if wanted == told {
            return None;
        }
        Some(if urgent(wanted) == urgent(told) { WORDS_WAIT } else { AT_MOST_EVERY })
    }
}

/// What traffic hangs on.
fn urgent(spec: &RouterStateSpec) -> impl PartialEq + '_ {
    let of = |session: &SessionState| (session.up, session.bfd.as_deref() == Some("Up"), session.state == "NotTried");
    let sessions: Vec<_> = spec.sessions.iter().map(|session| (session.router.clone(), of(session))).collect();
    let vips: Vec<_> = spec.vips.iter().map(|vip| (&vip.vip, vip.announced)).collect();
    (&spec.gateway, spec.ipv4_connectivity, spec.ipv6_connectivity, sessions, vips)
}

async fn write(client: Client, pod: Pod, mut wanted: watch::Receiver<Option<RouterStateSpec>>) {
    let api = Api::<RouterState>::namespaced(client, &pod.namespace);
    let mut pace = Pace::default();
    let (mut last, mut not_before) = (Instant::now(), Instant::now());
    let mut fault = None;
    loop {
        let mut now = wanted.borrow_and_update().clone();
        let wait = now.as_mut().and_then(|now| pace.wait(now));
        let due = (last + wait.unwrap_or_default()).max(not_before);
        tokio::select! {
            biased;
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep_until(due), if wait.is_some() => {
                let Some(spec) = now else { continue };
                let result = tokio::time::timeout(PATIENCE, apply(&api, &pod, &spec)).await;
                last = Instant::now();
                let error = match result {
                    Ok(Ok(())) => {
                        pace.told = Some(spec);
                        fault = None;
                        continue;
                    }
                    Ok(Err(error)) => error,
                    Err(_) => kube::Error::Service("no answer".into()),
                };
                let forbidden = matches!(&error, kube::Error::Api(status) if matches!(status.code, 403 | 404));
                not_before = last + if forbidden { RETRY_FORBIDDEN } else { RETRY };
                // Once for each reason: a server that is away is told of by the source.
                if fault.replace(forbidden) != Some(forbidden) {
                    let cost = "the controller does not see the sessions of this pod";
                    tracing::warn!(%error, "RouterState {}: not written: {cost}", pod.name);
                }
            }
        }
    }
}

async fn apply(api: &Api<RouterState>, pod: &Pod, spec: &RouterStateSpec) -> kube::Result<()> {
    let body = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "RouterState",
        "metadata": {
            "name": pod.name,
            "namespace": pod.namespace,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}],
        },
        "spec": spec,
    });
    api.patch(&pod.name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&body)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::VipState;

    fn spec(state: &str, up: bool, error: Option<&str>) -> RouterStateSpec {
        let session = SessionState {
            router: "gateway-a".to_owned(),
            up,
            state: state.to_owned(),
            bfd: None,
            since: Some(ago(0)),
            last_error: error.map(str::to_owned),
        };
        let vip = VipState { vip: "20.0.0.1".to_owned(), announced: up, reason: None };
        RouterStateSpec {
            gateway: "sllb-a".to_owned(),
            pod: "pod-1".to_owned(),
            ipv4_connectivity: up,
            sessions: vec![session],
            vips: vec![vip],
            ..RouterStateSpec::default()
        }
    }

    #[test]
    fn the_first_state_is_told_at_once_and_the_same_never_again() {
        let mut pace = Pace::default();
        let mut first = spec("Established", true, None);
        assert_eq!(pace.wait(&mut first), Some(Duration::ZERO));
        pace.told = Some(first.clone());
        let mut later = first.clone();
        later.sessions[0].since = Some(ago(1000));
        assert_eq!(pace.wait(&mut later), None, "the age of a state is no change");
        assert_eq!(later, first);
    }

    #[test]
    fn what_traffic_hangs_on_waits_a_second_and_words_wait_longer() {
        let pace = Pace { told: Some(spec("Connect", false, None)) };
        assert_eq!(pace.wait(&mut spec("Established", true, None)), Some(AT_MOST_EVERY));
        assert_eq!(pace.wait(&mut spec("Active", false, None)), Some(WORDS_WAIT));
        assert_eq!(pace.wait(&mut spec("Connect", false, Some("no answer"))), Some(WORDS_WAIT));
    }

    #[test]
    fn times_are_rfc_3339_and_in_utc() {
        let text = ago(3600);
        assert!(text.ends_with('Z') && text.len() == 20, "{text}");
        assert!(text < ago(0));
    }
}
