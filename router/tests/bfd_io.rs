//! The BFD thread as its user sees it: wishes in, states and events out, over the loopback interface.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use martlet_bfd::{SessionConfig, SessionId, State};
use martlet_router::bfd_io::{BfdThread, Event, Status};
use tokio::sync::watch;
use tokio::time::timeout;

/// Long enough for a machine that builds something else.
const PATIENCE: Duration = Duration::from_mins(1);

async fn wait_for(status: &mut watch::Receiver<Status>, holds: impl Fn(&Status) -> bool) {
    let waited = timeout(PATIENCE, status.wait_for(|status| holds(status))).await;
    assert!(waited.is_ok_and(|status| status.is_ok()), "{:#?}", status.borrow());
}

/// Two sessions over several hops that are each other's other end, both in one thread.
fn facing() -> BTreeMap<SessionId, SessionConfig> {
    let address = |last| IpAddr::from([127, 0, 0, last]);
    let id = |remote, local| SessionId { remote: address(remote), interface: None, local: Some(address(local)) };
    let config = SessionConfig { min_ttl: 1, ..SessionConfig::default() };
    BTreeMap::from([(id(21, 22), config.clone()), (id(22, 21), config)])
}

#[tokio::test]
async fn two_sessions_that_face_each_other_come_up_are_held_down_and_go() {
    let (mut handle, mut status, mut events) = BfdThread::spawn(7).unwrap();
    handle.set(facing());
    wait_for(&mut status, |status| status.len() == 2 && status.values().all(|session| session.state == State::Up))
        .await;
    let mut one_held = facing();
    for config in one_held.values_mut().take(1) {
        config.admin_down = true;
    }
    handle.set(one_held);
    wait_for(&mut status, |status| {
        let found: Vec<State> = status.values().map(|session| session.state).collect();
        found == [State::AdminDown, State::Down]
    })
    .await;
    handle.set(BTreeMap::new());
    wait_for(&mut status, |status| status.is_empty()).await;
    let statistics = handle.statistics();
    assert!(statistics.sent > 0 && statistics.received > 0, "{statistics:?}");
    drop(handle);
    let mut told = Vec::new();
    while let Some(event) = events.recv().await {
        if let Event::Changed(change) = event {
            told.push(change.to);
        }
    }
    assert!(told.contains(&State::Up) && told.contains(&State::AdminDown), "{told:?}");
    assert!(status.changed().await.is_err(), "the channel closes with the thread");
}

#[tokio::test]
async fn an_interface_that_is_not_there_is_named_and_the_session_is_down() {
    let (mut handle, mut status, mut events) = BfdThread::spawn(8).unwrap();
    let interface = Some(Arc::from("nosuch0"));
    let id = SessionId { remote: IpAddr::from([192, 0, 2, 1]), interface, local: None };
    handle.set(BTreeMap::from([(id.clone(), SessionConfig::default())]));
    wait_for(&mut status, |status| status.get(&id).is_some_and(|session| session.state == State::Down)).await;
    let event = timeout(PATIENCE, events.recv()).await.unwrap();
    assert_eq!(event, Some(Event::Problem(String::from("nosuch0: no such interface"))));
}
