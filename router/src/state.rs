//! What this router tells its cluster: its `RouterState`, made of its status.
//!
//! [`state`] is pure; [`tell`] looks at the router after every event and passes on what it sees. When it is written, and how
//! often, is decided in [`martlet_api::source::state`].

use std::sync::Arc;
use std::time::Duration;

use martlet_api::crd::{RouterStateSpec, SessionState, VipState};
use martlet_api::source::Cluster;
use martlet_api::source::state::{Pod, ago, states};
use tokio::sync::Notify;

use crate::core::{BfdView, PeerView, Status};
use crate::driver::Asker;
use crate::options::Options;

/// Not every change is an event: so often it is looked anyway.
const LOOK: Duration = Duration::from_secs(2);
/// Events come in bursts: their end is waited for.
const TOGETHER: Duration = Duration::from_millis(50);

/// Tells the cluster what this router sees, whenever it is notified. Without a cluster or a pod nothing is told.
pub fn tell(cluster: Option<Cluster>, asker: Asker, options: &Options) -> Arc<Notify> {
    let news = Arc::new(Notify::new());
    let pod =
        Pod { namespace: options.namespace.clone(), name: options.pod_name.clone(), uid: options.pod_uid.clone() };
    if let Some(Cluster(client)) = cluster
        && !pod.name.is_empty()
        && !pod.uid.is_empty()
    {
        let sender = states(client, pod.clone());
        let (gateway, news) = (options.gateway.clone(), Arc::clone(&news));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = news.notified() => tokio::time::sleep(TOGETHER).await,
                    () = tokio::time::sleep(LOOK) => {}
                }
                let Some(status) = asker.ask(|look| look.router.status(look.now)).await else { return };
                // Before the first Intent nothing is known: what a router before us told may still be true.
                if !status.gateway.is_empty() {
                    sender.send_replace(Some(state(&status, &gateway, &pod.name)));
                }
            }
        });
    }
    news
}

/// The state that a cluster is told.
pub fn state(status: &Status, gateway: &str, pod: &str) -> RouterStateSpec {
    let sessions = status.peers.iter().map(|(name, peer)| {
        let bfd = peer.bfd.as_ref().and_then(|session| status.bfd.get(session));
        session(name, peer, bfd)
    });
    let vips = status.vips.iter().map(|(vip, view)| VipState {
        vip: vip.addr().to_string(),
        announced: view.announced,
        reason: (!view.announced).then(|| view.message.clone()),
    });
    RouterStateSpec {
        gateway: gateway.to_owned(),
        pod: pod.to_owned(),
        ipv4_connectivity: status.settled.ipv4,
        ipv6_connectivity: status.settled.ipv6,
        sessions: sessions.collect(),
        vips: vips.collect(),
    }
}

/// `bfd`: what is known of the session that supervises it, if one does.
fn session(name: &str, peer: &PeerView, bfd: Option<&BfdView>) -> SessionState {
    let is_static = peer.protocol == "Static";
    let bfd_down = bfd.filter(|view| view.state != "Up" && view.diagnostic != "None");
    let bfd_error = bfd_down.map(|view| format!("BFD {}: {}", view.state, view.diagnostic));
    let errors: Vec<_> = bfd_error.into_iter().chain(peer.last_error.clone().filter(|_| !peer.up)).collect();
    let age_s = if is_static { bfd.map(|view| view.since_s) } else { Some(peer.since_s) };
    SessionState {
        router: name.to_owned(),
        up: peer.up,
        state: match peer.protocol.as_str() {
            "Static" => "Static".to_owned(),
            "-" => "NotTried".to_owned(),
            _ => peer.state.clone(),
        },
        bfd: peer.bfd.as_ref().map(|_| bfd.map_or_else(|| "Down".to_owned(), |view| view.state.clone())),
        since: age_s.map(ago),
        last_error: (!errors.is_empty()).then(|| errors.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use martlet_api::readiness::Families;

    use super::*;
    use crate::core::VipView;

    fn peer(state: &str, protocol: &str) -> PeerView {
        PeerView {
            protocol: protocol.into(),
            state: state.into(),
            up: state == "Established" || state == "Up",
            bfd: Some("gw%ext".into()),
            last_error: Some("Cease/BFD Down".into()),
            ..PeerView::default()
        }
    }

    fn bfd(state: &str, diagnostic: &str) -> BfdView {
        BfdView { state: state.into(), diagnostic: diagnostic.into(), ..BfdView::default() }
    }

    #[test]
    fn sessions_and_vips_are_told_with_their_reasons() {
        let status = Status {
            settled: Families { ipv4: true, ipv6: false },
            peers: [("a".into(), peer("Established", "BGP")), ("b".into(), peer("Active", "BGP"))].into(),
            vips: BTreeMap::from([
                ("20.0.0.1/32".parse().unwrap(), VipView { announced: true, ..VipView::default() }),
                ("2000::1/128".parse().unwrap(), VipView { message: "no endpoint".into(), ..VipView::default() }),
            ]),
            ..Status::default()
        };
        let told = state(&status, "sllb-a", "pod-1");
        assert_eq!((told.ipv4_connectivity, told.ipv6_connectivity), (true, false));
        let errors: Vec<_> = told.sessions.iter().map(|session| session.last_error.as_deref()).collect();
        assert_eq!(errors, [None, Some("Cease/BFD Down")], "an error of the past is no error of a session that is Up");
        let vips: Vec<_> =
            told.vips.iter().map(|vip| (vip.vip.as_str(), vip.announced, vip.reason.as_deref())).collect();
        assert_eq!(vips, [("20.0.0.1", true, None), ("2000::1", false, Some("no endpoint"))]);
    }

    #[test]
    fn bfd_is_told_only_of_what_it_supervises_and_with_its_diagnostic() {
        let down = bfd("Down", "ControlDetectionTimeExpired");
        let told = session("a", &peer("Active", "BGP"), Some(&down));
        assert_eq!(told.bfd.as_deref(), Some("Down"));
        assert_eq!(told.last_error.as_deref(), Some("BFD Down: ControlDetectionTimeExpired; Cease/BFD Down"));
        let alone = PeerView { bfd: None, ..peer("Active", "BGP") };
        assert_eq!(session("a", &alone, None).bfd, None);
        let told = session("a", &peer("Up", "Static"), Some(&bfd("Up", "None")));
        assert_eq!((told.state.as_str(), told.up, told.last_error), ("Static", true, None));
    }
}
