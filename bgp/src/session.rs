//! What two OPENs agree on.
//!
//! Ours is made of the configuration; theirs is judged by it. What both can do is [`Negotiated`].

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::wire::as_path::Width;
use crate::wire::attribute::Context;
use crate::wire::capability::{Capability, GracefulRestart, LongLived};
use crate::wire::notification::{self, Notification};
use crate::wire::open::Open;
use crate::wire::{MAXIMUM, MAXIMUM_EXTENDED};
use crate::{Bfd, Endpoints, Family, Local, NeighborConfig, Role};

/// RFC 7911 section 4: the sender of the capability takes several paths.
const RECEIVE: u8 = 1;
/// It tells several paths.
const SEND: u8 = 2;

/// What a session may do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a capability of its own")]
pub struct Negotiated {
    /// The families that both want.
    pub families: BTreeSet<Family>,
    /// Those of them in which the neighbour may tell several paths to a prefix (RFC 7911).
    pub paths: BTreeSet<Family>,
    /// Octets of AS numbers.
    pub width: Width,
    /// Whether the neighbour is in another AS.
    pub external: bool,
    /// Whether IPv4 routes may have IPv6 next hops.
    pub extended_next_hop: bool,
    /// Whether messages may be long.
    pub extended_message: bool,
    /// Whether the neighbour takes ROUTE-REFRESH.
    pub refresh: bool,
    /// Whether both mark its beginning and end.
    pub enhanced_refresh: bool,
    /// The smaller of both hold times, seconds.
    pub hold_time_s: u16,
    /// The neighbour's AS number.
    pub remote_as: u32,
    /// The neighbour's BGP identifier.
    pub router_id: Ipv4Addr,
    /// What the neighbour said of its restarts, if we may help.
    pub restart: Option<GracefulRestart>,
    /// Whether a NOTIFICATION is a graceful restart too (RFC 8538).
    pub notification_restart: bool,
    /// What the neighbour wants of its routes once its restart time is over, if we may help and it may ask (RFC 9494).
    pub long_lived: Option<Vec<LongLived>>,
    /// Whether both let the session wait for BFD (draft-ietf-idr-bgp-bfd-strict-mode).
    pub bfd_strict: bool,
    /// Families that the neighbour tells in vain: one of its messages was malformed (RFC 7606 section 2, AFI/SAFI disable).
    pub disabled: BTreeSet<Family>,
}

impl Negotiated {
    /// What the meaning of attributes depends on.
    pub fn context(&self) -> Context {
        Context {
            width: self.width,
            external: self.external,
            extended_next_hop: self.extended_next_hop,
            ipv4: self.hears(Family::Ipv4),
            ipv6: self.hears(Family::Ipv6),
            paths_ipv4: self.paths.contains(&Family::Ipv4),
            paths_ipv6: self.paths.contains(&Family::Ipv6),
        }
    }

    /// What was negotiated beside families, in words.
    pub fn words(&self) -> BTreeSet<&'static str> {
        let all = [
            (self.width == Width::Four, "four-octet-as"),
            (self.extended_next_hop, "extended-next-hop"),
            (self.extended_message, "extended-message"),
            (self.refresh, "route-refresh"),
            (self.enhanced_refresh, "enhanced-route-refresh"),
            (self.restart.as_ref().is_some_and(|restart| !restart.families.is_empty()), "graceful-restart"),
            (self.notification_restart, "notification-restart"),
            (self.long_lived.is_some(), "long-lived-graceful-restart"),
            (self.bfd_strict, "bfd-strict"),
            (!self.paths.is_empty(), "add-path-receive"),
        ];
        all.into_iter().filter(|(has, _)| *has).map(|(_, word)| word).collect()
    }

    /// Octets of the largest message that we may send.
    pub const fn maximum(&self) -> usize {
        if self.extended_message { MAXIMUM_EXTENDED } else { MAXIMUM }
    }

    /// Whether routes of `family` are taken.
    pub fn hears(&self, family: Family) -> bool {
        self.families.contains(&family) && !self.disabled.contains(&family)
    }

    /// How long the neighbour's routes of `family` outlive a broken session, if they do (RFC 4724).
    pub fn keeps(&self, family: Family) -> Option<Duration> {
        let restart = self.restart.as_ref()?;
        let listed = restart.time_s > 0 && restart.families.iter().any(|&(one, _)| one == family);
        listed.then(|| Duration::from_secs(restart.time_s.into()))
    }

    /// What the neighbour asked for its routes of `family` (RFC 9494).
    fn asks(&self, family: Family) -> Option<&LongLived> {
        self.long_lived.iter().flatten().rfind(|one| one.family == family)
    }

    /// How long after that they are still a last resort, if they are; we keep none longer than `most`.
    pub fn keeps_long(&self, family: Family, most: Option<Duration>) -> Option<Duration> {
        let asked = self.asks(family).filter(|one| one.time_s > 0)?;
        Some(Duration::from_secs(asked.time_s.into()).min(most?))
    }

    /// Whether the neighbour says that it kept the forwarding state of `family`; `long`: it was away longer than its
    /// restart time.
    pub fn kept(&self, family: Family, long: bool) -> bool {
        if long {
            return self.asks(family).is_some_and(|one| one.kept);
        }
        self.restart.as_ref().is_some_and(|one| one.families.contains(&(family, true)))
    }
}

/// The OPEN that we send. `restarted`: routes that we announced before may still be used there (the R bit). `plain`: the
/// neighbour refuses optional parameters (RFC 5492 section 3).
pub fn our_open(config: &NeighborConfig, local: &Local, endpoints: &Endpoints, restarted: bool, plain: bool) -> Open {
    let mut capabilities = Vec::new();
    if !plain {
        capabilities.extend(config.families.iter().map(|&family| Capability::Multiprotocol(family)));
        capabilities.push(Capability::RouteRefresh);
        if config.families.contains(&Family::Ipv4) && endpoints.local.is_ipv6() {
            capabilities.push(Capability::ExtendedNextHop);
        }
        capabilities.push(Capability::ExtendedMessage);
        capabilities.extend(config.role.map(Capability::Role));
        let restart = config.graceful_restart;
        capabilities.push(Capability::GracefulRestart(GracefulRestart {
            restarted: restart.restarting && restarted,
            notification: true,
            time_s: if restart.restarting { restart.restart_time_s } else { 0 },
            // RFC 4724 section 4: without a family we only help.
            families: config
                .families
                .iter()
                .filter(|_| restart.restarting)
                .map(|&family| (family, local.forwarding_preserved))
                .collect(),
        }));
        if config.long_lived.is_some() {
            // RFC 9494 section 3.1: without a family we only help.
            capabilities.push(Capability::LongLived(Vec::new()));
        }
        capabilities.push(Capability::FourOctetAs(config.local_as));
        capabilities.push(Capability::EnhancedRouteRefresh);
        if config.add_path_receive {
            capabilities.push(Capability::AddPath(config.families.iter().map(|&family| (family, RECEIVE)).collect()));
        }
        if config.bfd == Bfd::Strict {
            capabilities.push(Capability::BfdStrict);
        }
    }
    Open { asn: config.local_as, hold_time: config.hold_time, router_id: local.router_id, capabilities }
}

/// The role that goes with ours (RFC 9234 section 4.2).
const fn counterpart(role: Role) -> Role {
    match role {
        Role::Provider => Role::Customer,
        Role::Customer => Role::Provider,
        Role::RouteServer => Role::RouteServerClient,
        Role::RouteServerClient => Role::RouteServer,
        Role::Peer => Role::Peer,
    }
}

fn refuse<T>(subcode: u8, text: String) -> Result<T, (Notification, String)> {
    Err((Notification::new(notification::OPEN, subcode), text))
}

/// What comes of their OPEN and of ours, or what is wrong with theirs.
pub fn negotiate(
    config: &NeighborConfig,
    local: &Local,
    ours: &Open,
    theirs: &Open,
) -> Result<Negotiated, (Notification, String)> {
    let remote_as = theirs.asn;
    if let Some(expected) = config.remote_as.filter(|&expected| expected != remote_as) {
        return refuse(2, format!("the neighbour is AS {remote_as}, AS {expected} is configured"));
    }
    let external = remote_as != config.local_as;
    if !external && theirs.router_id == local.router_id {
        return refuse(3, format!("the neighbour has our BGP identifier, {}", local.router_id));
    }
    let has =
        |capability: &Capability| ours.capabilities.contains(capability) && theirs.capabilities.contains(capability);
    let told_role = theirs.capabilities.iter().find(|one| one.code() == 9);
    if let (Some(role), Some(told)) = (config.role, told_role)
        && *told != Capability::Role(counterpart(role))
    {
        return refuse(11, format!("the neighbour says {told:?}, our role {role:?} asks for {:?}", counterpart(role)));
    }
    let multiprotocol = |open: &Open| open.capabilities.iter().any(|one| one.code() == 1);
    let carries = |open: &Open, family| {
        // RFC 4760 section 8: who does not speak of families has IPv4.
        open.capabilities.contains(&Capability::Multiprotocol(family)) || family == Family::Ipv4 && !multiprotocol(open)
    };
    let families: BTreeSet<_> = config.families.iter().copied().filter(|&family| carries(theirs, family)).collect();
    if families.is_empty() {
        let mut data = Vec::new();
        config.families.iter().for_each(|&family| Capability::Multiprotocol(family).put(&mut data));
        let notification = Notification { code: notification::OPEN, subcode: 7, data };
        let wanted: Vec<_> = config.families.iter().map(|family| format!("{family:?}")).collect();
        return Err((notification, format!("the neighbour has none of our families ({})", wanted.join(", "))));
    }
    let restart = |open: &Open| {
        open.capabilities.iter().rev().find_map(|one| match one {
            Capability::GracefulRestart(restart) => Some(restart.clone()),
            _ => None,
        })
    };
    let (our_restart, restart) = (restart(ours), restart(theirs));
    let long_lived = |open: &Open| {
        open.capabilities.iter().rev().find_map(|one| match one {
            Capability::LongLived(all) => Some(all.clone()),
            _ => None,
        })
    };
    // RFC 9494 section 3.1: without graceful restart it is to be ignored.
    let asked = long_lived(theirs).filter(|_| long_lived(ours).is_some() && our_restart.is_some() && restart.is_some());
    let wide = |open: &Open| open.capabilities.iter().any(|one| matches!(one, Capability::FourOctetAs(_)));
    let hold_time_s = ours.hold_time.min(theirs.hold_time).seconds();
    let tells_paths = |family: &Family| {
        let can = |open: &Open, way: u8| {
            open.capabilities.iter().any(|one| match one {
                Capability::AddPath(all) => all.iter().any(|(one, ways)| one == family && ways & way != 0),
                _ => false,
            })
        };
        can(ours, RECEIVE) && can(theirs, SEND)
    };
    Ok(Negotiated {
        paths: families.iter().copied().filter(tells_paths).collect(),
        families,
        width: if wide(ours) && wide(theirs) { Width::Four } else { Width::Two },
        external,
        extended_next_hop: has(&Capability::ExtendedNextHop),
        extended_message: has(&Capability::ExtendedMessage),
        refresh: has(&Capability::RouteRefresh),
        enhanced_refresh: has(&Capability::EnhancedRouteRefresh),
        hold_time_s,
        remote_as,
        router_id: theirs.router_id,
        notification_restart: our_restart.as_ref().is_some_and(|one| one.notification)
            && restart.as_ref().is_some_and(|one| one.notification),
        restart: our_restart.and(restart),
        long_lived: asked,
        bfd_strict: has(&Capability::BfdStrict),
        disabled: BTreeSet::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HoldTime;

    const LOCAL: Local = Local { router_id: Ipv4Addr::new(10, 0, 0, 1), forwarding_preserved: false };

    fn endpoints() -> Endpoints {
        let local = "10.0.0.1:179".parse().unwrap();
        Endpoints { local, remote: "10.0.0.2:179".parse().unwrap(), local_link_local: None, local_other: None }
    }

    fn theirs(asn: u32, capabilities: Vec<Capability>) -> Open {
        Open { asn, hold_time: HoldTime::new(30).unwrap(), router_id: Ipv4Addr::new(10, 0, 0, 2), capabilities }
    }

    fn meet(config: &NeighborConfig, theirs: &Open) -> Result<Negotiated, (u8, u8)> {
        let ours = our_open(config, &LOCAL, &endpoints(), false, false);
        negotiate(config, &LOCAL, &ours, theirs).map_err(|(notification, _)| (notification.code, notification.subcode))
    }

    #[test]
    fn only_configured_families_are_spoken() {
        let config = NeighborConfig::new(1, 2, [Family::Ipv4]);
        let both = [Family::Ipv4, Family::Ipv6].map(Capability::Multiprotocol).to_vec();
        let negotiated = meet(&config, &theirs(2, both)).unwrap();
        assert_eq!(negotiated.families, BTreeSet::from([Family::Ipv4]));
        assert_eq!((negotiated.hold_time_s, negotiated.width), (30, Width::Two));
        assert_eq!(meet(&config, &theirs(2, vec![Capability::Multiprotocol(Family::Ipv6)])), Err((2, 7)));
    }

    #[test]
    fn who_speaks_of_no_family_has_ipv4() {
        assert!(meet(&NeighborConfig::new(1, 2, [Family::Ipv4]), &theirs(2, vec![])).is_ok());
        assert_eq!(meet(&NeighborConfig::new(1, 2, [Family::Ipv6]), &theirs(2, vec![])), Err((2, 7)));
    }

    #[test]
    fn another_as_than_the_configured_one_is_a_bad_peer_as() {
        assert_eq!(meet(&NeighborConfig::new(1, 2, [Family::Ipv4]), &theirs(3, vec![])), Err((2, 2)));
        let any = NeighborConfig { remote_as: None, ..NeighborConfig::new(1, 2, [Family::Ipv4]) };
        assert_eq!(meet(&any, &theirs(3, vec![])).map(|negotiated| negotiated.remote_as), Ok(3));
    }

    #[test]
    fn our_own_identifier_is_bad_within_an_as_only() {
        let same = |asn| Open { router_id: LOCAL.router_id, ..theirs(asn, vec![]) };
        assert_eq!(meet(&NeighborConfig::new(1, 1, [Family::Ipv4]), &same(1)), Err((2, 3)));
        assert!(meet(&NeighborConfig::new(1, 2, [Family::Ipv4]), &same(2)).is_ok());
    }

    #[test]
    fn roles_must_fit_each_other() {
        let config = NeighborConfig { role: Some(Role::Customer), ..NeighborConfig::new(1, 2, [Family::Ipv4]) };
        let says = |role| meet(&config, &theirs(2, vec![Capability::Role(role)]));
        assert!(says(Role::Provider).is_ok());
        assert_eq!(says(Role::Customer), Err((2, 11)));
        assert!(meet(&config, &theirs(2, vec![])).is_ok());
        assert_eq!(meet(&config, &theirs(2, vec![Capability::UnknownRole(9)])), Err((2, 11)));
    }
}
