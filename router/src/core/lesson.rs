//! What a peer that is not as it should be teaches: cause and remedy, in one line that names the field to correct.
//!
//! The cause is the speaker's (what was sent, what came, what TCP said); the remedy is ours, because only here are the
//! fields of a `GatewayRouter` known. It decides nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use martlet_bfd::{SessionStatus, State};
use martlet_bgp::{Bfd, Family, NeighborConfig, NeighborState};
use martlet_clock::Instant;

use crate::gate::words;

/// For how long BFD may take to come up before it is worth a word: a session that is not Up sends once a second.
const BFD_PATIENCE: Duration = Duration::from_secs(3);
/// For how long a connection may be silent before it is worth a word.
const OPEN_PATIENCE: Duration = Duration::from_secs(2);

/// The NOTIFICATION that ended the last session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// Code and subcode, of what lies inside a Hard Reset (RFC 8538) those.
    pub(super) code: (u8, u8),
    /// We sent it; else it came from the neighbour.
    pub(super) sent: bool,
    /// The speaker's words.
    pub(super) text: String,
}

impl Said {
    /// What ended a session, if it says anything of the neighbour or of us: that one of two connections gave way does not.
    pub(super) fn new(code: (u8, u8), sent: bool, text: &str) -> Option<Self> {
        let inner =
            [("Administrative Shutdown", (6, 2)), ("Maximum Number of Prefixes", (6, 1)), ("BFD Down", (6, 10))];
        let inside =
            |hard: (u8, u8)| inner.into_iter().find(|(name, _)| text.contains(name)).map_or(hard, |(_, code)| code);
        let code = if code == (6, 9) { inside(code) } else { code };
        (code != (6, 7)).then(|| Self { code, sent, text: text.to_owned() })
    }

    /// It, with the remedy.
    pub(super) fn words(&self, config: &NeighborConfig) -> String {
        of_error(&self.text, Some(self), config)
    }
}

/// `cause` with the side that said it and the remedy. `said` is the last NOTIFICATION, if there was one.
pub(super) fn of_error(cause: &str, said: Option<&Said>, config: &NeighborConfig) -> String {
    match said.filter(|said| said.text == cause) {
        Some(Said { code, sent: true, .. }) => format!("we sent {cause}{}", remedy_of_ours(*code)),
        Some(Said { code, sent: false, .. }) => {
            format!("the neighbour sent {cause}{}", remedy_of_theirs(*code, config))
        }
        None => format!("{cause}{}", remedy_of_tcp(cause)),
    }
}

/// What to do about a NOTIFICATION that we sent.
const fn remedy_of_ours(code: (u8, u8)) -> &'static str {
    match code {
        (2, 2) => "; correct bgp.remoteASN, or the AS number of the neighbour",
        (2, 3) => "; give one of the two another router id (ours: --router-id)",
        (2, 7) => "; activate the family at the neighbour, or correct bgp.families",
        (2, 11) => "; correct bgp.role, or the role of the neighbour",
        (4, _) => "; check the path, filters, and the TTL that each side accepts; BFD would tell sooner",
        (6, 1) => "; let the neighbour announce less, import less, or raise bgp.maximumPrefixes.limit",
        _ => "",
    }
}

/// What to do about a NOTIFICATION that came.
fn remedy_of_theirs(code: (u8, u8), config: &NeighborConfig) -> String {
    let remedy = match code {
        (2, 2) => {
            let ours = config.local_as;
            return format!(
                ": the neighbour expects another AS number of us than {ours}; correct bgp.localASN, or the neighbour"
            );
        }
        (2, 6) => {
            let ours = config.hold_time.seconds();
            return format!(
                ": the neighbour refuses a hold time of {ours} s; correct bgp.holdTime, or the least that it accepts"
            );
        }
        (2, 3) => ": the neighbour refuses our router id: is it used twice? Set another one with --router-id",
        (2, 7) => ": it asks for what we did not offer; correct bgp.families, or the families of the neighbour",
        (2, 11) => "; correct bgp.role, or the role of the neighbour",
        (4, _) => ": it heard nothing from us; check the path; BFD would tell sooner",
        (6, 1) => ": it takes fewer prefixes than we announce; raise its limit, or announce fewer VIPs",
        (6, 2) => ": it was shut down there; ask who runs it",
        (6, 3) => ": our address was removed from its configuration",
        (6, 4) => ": it was reset there, and is tried again",
        (6, 5) => ": it takes no connection from our address; add us as its neighbour",
        (6, 10) => ": its BFD session with us went down",
        _ => "",
    };
    remedy.into()
}

/// What to do where TCP or the machine gave the reason.
fn remedy_of_tcp(cause: &str) -> &'static str {
    // The first words of what the speaker and the core say.
    let remedies = [
        ("connection refused", "; check bgp.remotePort, and that BGP runs there"),
        ("the neighbour reset the connection", "; does it know our address as its neighbour?"),
        ("the neighbour closed the connection", "; does it know our address as its neighbour?"),
        ("there is no interface", "; correct spec.interface, or attach the network to the pod"),
    ];
    remedies.into_iter().find(|(first, _)| cause.starts_with(first)).map_or("", |(_, remedy)| remedy)
}

/// What is missing of a session although no error ended it.
pub(super) fn of_session(
    now: Instant,
    state: NeighborState,
    config: &NeighborConfig,
    negotiated: &BTreeSet<Family>,
    bfd: Option<&SessionStatus>,
) -> Option<String> {
    if let Some(bfd) = bfd
        && config.bfd != Bfd::Off
        && !matches!(bfd.state, State::Up | State::AdminDown)
        && now.since(bfd.since) >= BFD_PATIENCE
    {
        // Whoever answers says our discriminator's counterpart; zero: it was never heard.
        return Some(if bfd.remote_discriminator == 0 {
            "BFD is Down: nothing is heard from the neighbour; switch BFD on there, or off here (bgp.bfd.switch), and \
             check filters of UDP 3784"
                .into()
        } else {
            format!(
                "BFD is {:?}, the neighbour says {:?}; does it hear us? Check filters of UDP 3784, and the \
                 authentication of both sides",
                bfd.state, bfd.remote_state
            )
        });
    }
    missing(state, config, negotiated)
}

/// What is to be said of a connection that is open and on which nothing comes.
pub(super) fn of_silence(now: Instant, state: NeighborState, since: Instant) -> Option<String> {
    let waits = matches!(state, NeighborState::OpenSent | NeighborState::OpenConfirm);
    (waits && now.since(since) >= OPEN_PATIENCE).then(|| {
        "connected, but no answer to our OPEN: check filters, and the TTL that each side accepts (bgp.ttlSecurity, \
         bgp.multihop)"
            .into()
    })
}

fn missing(state: NeighborState, config: &NeighborConfig, negotiated: &BTreeSet<Family>) -> Option<String> {
    let missing: Vec<_> = config.families.difference(negotiated).map(|family| words(*family)).collect();
    (state == NeighborState::Established && !missing.is_empty()).then(|| {
        format!("the neighbour does not offer {}; activate it there, or correct bgp.families", missing.join(" and "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NeighborConfig {
        NeighborConfig::new(65001, 65002, BTreeSet::from([Family::Ipv4, Family::Ipv6]))
    }

    fn said(code: (u8, u8), sent: bool) -> Said {
        Said::new(code, sent, "words").unwrap()
    }

    #[test]
    fn a_hard_reset_is_what_it_encloses_and_a_collision_is_no_fault() {
        let hard = Said::new((6, 9), false, "Cease/Hard Reset: Cease/Administrative Shutdown: \"noon\"").unwrap();
        assert_eq!(hard.code, (6, 2));
        assert!(hard.words(&config()).ends_with("\"noon\": it was shut down there; ask who runs it"));
        assert_eq!(Said::new((6, 7), true, "Cease/Connection Collision Resolution"), None);
    }

    #[test]
    fn a_connection_on_which_nothing_comes_is_told_after_a_while() {
        let told = |millis, state| of_silence(Instant::from_millis(millis), state, Instant::from_millis(0)).is_some();
        assert!(told(2_000, NeighborState::OpenSent) && !told(1_999, NeighborState::OpenSent));
        assert!(!told(9_000, NeighborState::Established));
    }

    #[test]
    fn a_notification_names_its_side_and_the_remedy_for_that_side() {
        let ours = of_error("words", Some(&said((2, 2), true)), &config());
        assert_eq!(ours, "we sent words; correct bgp.remoteASN, or the AS number of the neighbour");
        let theirs = of_error("words", Some(&said((2, 2), false)), &config());
        assert!(theirs.starts_with("the neighbour sent words") && theirs.contains("than 65001; correct bgp.localASN"));
    }

    #[test]
    fn what_came_after_the_last_notification_is_not_taken_for_it() {
        let cause = "connection refused: nobody listens at that address and port";
        let told = of_error(cause, Some(&said((2, 2), true)), &config());
        assert_eq!(told, format!("{cause}; check bgp.remotePort, and that BGP runs there"));
    }

    #[test]
    fn a_family_that_was_not_negotiated_is_named() {
        let negotiated = BTreeSet::from([Family::Ipv4]);
        let told = |state| of_session(Instant::from_millis(0), state, &config(), &negotiated, None);
        let text = told(NeighborState::Established).unwrap();
        assert!(text.starts_with("the neighbour does not offer IPv6;"), "{text}");
        assert_eq!(told(NeighborState::OpenSent), None);
    }
}
