//! One connection: the state machine of RFC 4271 section 8, in its words.
//!
//! A pure function: a state and an event give the next state and what is to be done, in order. It knows nothing of timers'
//! lengths, of sockets, of the other connection to the same neighbour (see `neighbor`) or of routes (`rib`).
//! `tests/fsm.txt` is the whole table.
//!
//! Where we differ from the letter: a NOTIFICATION in `OpenSent` is not answered with another (section 8.2.2 says so, its
//! section 6.4 does not); damping is the neighbour's, by [`Action::Damp`].

use crate::NeighborState as State;

/// What can happen to a connection: the events of section 8.1 (with their numbers), and those of later RFCs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// 1, 3, 13: the operator, or the end of the damping time, starts it.
    Start,
    /// 4, 5: it shall wait for the neighbour.
    StartPassive,
    /// 2: the operator stops it.
    ManualStop,
    /// 8: something else stops it: BFD (RFC 9384), a limit.
    AutomaticStop,
    /// 9.
    ConnectRetryTimerExpires,
    /// 10.
    HoldTimerExpires,
    /// 11.
    KeepaliveTimerExpires,
    /// 12.
    DelayOpenTimerExpires,
    /// 16, 17: there is a connection.
    TcpConnected,
    /// 16, 17, and we wait for its OPEN before we send ours.
    TcpConnectedDelayOpen,
    /// 18.
    TcpConnectionFails,
    /// 19: a valid OPEN.
    BgpOpen,
    /// 20: a valid OPEN while we delay ours.
    BgpOpenDelayed,
    /// 21.
    BgpHeaderErr,
    /// 22.
    BgpOpenMsgErr,
    /// 23: the other connection to the neighbour is the better one.
    OpenCollisionDump,
    /// 24: a NOTIFICATION that tells of a version.
    NotifMsgVerErr,
    /// 25.
    NotifMsg,
    /// 26.
    KeepAliveMsg,
    /// 27.
    UpdateMsg,
    /// 28.
    UpdateMsgErr,
    /// RFC 2918.
    RouteRefreshMsg,
    /// RFC 7313 section 5.
    RouteRefreshMsgErr,
    /// 29: RFC 9687.
    SendHoldTimerExpires,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask for a TCP connection.
    Connect,
    /// Start or restart the `ConnectRetryTimer`.
    StartConnectRetry,
    /// Stop it.
    StopConnectRetry,
    /// Start the `DelayOpenTimer`.
    StartDelayOpen,
    /// Stop it.
    StopDelayOpen,
    /// Send our OPEN.
    SendOpen,
    /// Send a KEEPALIVE and restart the `KeepaliveTimer`.
    SendKeepalive,
    /// Start the `HoldTimer` with a large value.
    StartLargeHold,
    /// Start or restart the `HoldTimer` with the negotiated value.
    StartHold,
    /// Send the NOTIFICATION that came with the event.
    Notify,
    /// Send Hold Timer Expired.
    NotifyHold,
    /// Send Finite State Machine Error with the subcode of the state (RFC 6608).
    NotifyFsm,
    /// Routes flow.
    Establish,
    /// The message is for the routes' part.
    Handle,
    /// Drop the TCP connection, stop all timers of it, release what belongs to it.
    Drop,
    /// This counts as a failure: the next attempt waits (section 8.1.1, `DampPeerOscillations`).
    Damp,
}

use Action::{
    Connect, Damp, Drop, Establish, Handle, Notify, NotifyFsm, NotifyHold, SendKeepalive, SendOpen, StartConnectRetry,
    StartDelayOpen, StartHold, StartLargeHold, StopConnectRetry, StopDelayOpen,
};

/// The next state, and what is to be done: RFC 4271 section 8.2.2.
#[expect(clippy::match_same_arms, reason = "in the order of the RFC")]
pub const fn step(state: State, event: Event) -> (State, &'static [Action]) {
    use Event as E;
    use State::{Active, Connect as Connecting, Established, Idle, OpenConfirm, OpenSent};
    match (state, event) {
        (Idle, E::Start) => (Connecting, &[StartConnectRetry, Connect]),
        (Idle, E::StartPassive) => (Active, &[]),
        (Idle, _) => (Idle, &[]),

        // What all other states share.
        (same, E::Start | E::StartPassive) => (same, &[]),
        (Connecting | Active, E::ManualStop | E::AutomaticStop | E::OpenCollisionDump) => {
            (Idle, &[StopConnectRetry, Drop])
        }
        (_, E::ManualStop | E::OpenCollisionDump) => (Idle, &[Notify, StopConnectRetry, Drop]),
        (_, E::AutomaticStop | E::BgpHeaderErr) => (Idle, &[Notify, StopConnectRetry, Drop, Damp]),
        (_, E::HoldTimerExpires) => (Idle, &[NotifyHold, StopConnectRetry, Drop]),
        (_, E::SendHoldTimerExpires) => (Idle, &[Notify, StopConnectRetry, Drop, Damp]),
        (_, E::NotifMsgVerErr) => (Idle, &[StopConnectRetry, Drop, Damp]),
        (_, E::NotifMsg) => (Idle, &[StopConnectRetry, Drop, Damp]),

        (Connecting, E::ConnectRetryTimerExpires) => (Connecting, &[Drop, StartConnectRetry, Connect]),
        (Active, E::ConnectRetryTimerExpires) => (Connecting, &[StartConnectRetry, Connect]),
        (Connecting | Active, E::TcpConnected) => (OpenSent, &[StopConnectRetry, SendOpen, StartLargeHold]),
        (Connecting | Active, E::TcpConnectedDelayOpen) => (state, &[StopConnectRetry, StartDelayOpen]),
        (Connecting | Active, E::DelayOpenTimerExpires) => (OpenSent, &[StopDelayOpen, SendOpen, StartLargeHold]),
        (Connecting | Active, E::BgpOpenDelayed) => {
            (OpenConfirm, &[StopConnectRetry, StopDelayOpen, SendOpen, SendKeepalive, StartHold])
        }
        (Connecting | Active, E::TcpConnectionFails) => (Active, &[StopDelayOpen, Drop, StartConnectRetry]),
        (Connecting | Active, E::BgpOpenMsgErr) => (Idle, &[Notify, StopConnectRetry, Drop, Damp]),
        (Connecting | Active, _) => (Idle, &[StopConnectRetry, Drop, Damp]),

        (OpenSent, E::TcpConnectionFails) => (Active, &[Drop, Damp]),
        (OpenSent, E::BgpOpen) => (OpenConfirm, &[StopConnectRetry, SendKeepalive, StartHold]),
        (OpenSent, E::BgpOpenMsgErr) => (Idle, &[Notify, StopConnectRetry, Drop, Damp]),

        (OpenConfirm, E::KeepaliveTimerExpires) => (OpenConfirm, &[SendKeepalive]),
        (OpenConfirm, E::KeepAliveMsg) => (Established, &[StartHold, Establish]),
        (OpenConfirm | Established, E::TcpConnectionFails) => (Idle, &[StopConnectRetry, Drop, Damp]),

        (Established, E::KeepaliveTimerExpires) => (Established, &[SendKeepalive]),
        (Established, E::KeepAliveMsg) => (Established, &[StartHold]),
        (Established, E::UpdateMsg | E::RouteRefreshMsg) => (Established, &[StartHold, Handle]),
        (Established, E::UpdateMsgErr | E::RouteRefreshMsgErr) => (Idle, &[Notify, StopConnectRetry, Drop, Damp]),

        (OpenSent | OpenConfirm | Established, _) => (Idle, &[NotifyFsm, StopConnectRetry, Drop, Damp]),
    }
}

/// The subcode of RFC 6608 for a message that has no business in `state`.
pub const fn unexpected(state: State) -> u8 {
    match state {
        State::OpenSent => 1,
        State::OpenConfirm => 2,
        State::Established => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    impl Event {
        const ALL: [Self; 24] = [
            Self::Start,
            Self::StartPassive,
            Self::ManualStop,
            Self::AutomaticStop,
            Self::ConnectRetryTimerExpires,
            Self::HoldTimerExpires,
            Self::KeepaliveTimerExpires,
            Self::DelayOpenTimerExpires,
            Self::TcpConnected,
            Self::TcpConnectedDelayOpen,
            Self::TcpConnectionFails,
            Self::BgpOpen,
            Self::BgpOpenDelayed,
            Self::BgpHeaderErr,
            Self::BgpOpenMsgErr,
            Self::OpenCollisionDump,
            Self::NotifMsgVerErr,
            Self::NotifMsg,
            Self::KeepAliveMsg,
            Self::UpdateMsg,
            Self::UpdateMsgErr,
            Self::RouteRefreshMsg,
            Self::RouteRefreshMsgErr,
            Self::SendHoldTimerExpires,
        ];
    }

    const STATES: [State; 6] =
        [State::Idle, State::Connect, State::Active, State::OpenSent, State::OpenConfirm, State::Established];

    /// The table as a page of text; when it changes on purpose, `MARTLET_SNAPSHOT=1` writes it anew.
    #[test]
    fn the_transition_table_is_the_one_that_was_reviewed() {
        let mut table = String::new();
        for state in STATES {
            for event in Event::ALL {
                let (next, actions) = step(state, event);
                writeln!(table, "{state:?} + {event:?} -> {next:?} {actions:?}").unwrap();
            }
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fsm.txt");
        if std::env::var_os("MARTLET_SNAPSHOT").is_some() {
            std::fs::write(path, &table).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), table);
    }

    #[test]
    fn a_session_is_never_left_without_its_connection_being_dropped() {
        for state in STATES.into_iter().filter(|&state| state > State::Active) {
            for event in Event::ALL {
                let (next, actions) = step(state, event);
                assert_eq!(next < state, actions.contains(&Action::Drop), "{state:?} {event:?}");
            }
        }
    }
}
