//! Which BFD sessions there are and what they are like: a part of [`crate::intent`], as pure as it.
//!
//! A session belongs to a path, and whoever uses the path uses the session (RFC 5882 section 2): a BGP neighbour that is a
//! static next hop too has one. Of each parameter the more aggressive one counts; where two users contradict each other the
//! first by name is right.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use martlet_api::view::{Bfd, GatewayRouter, Protocol, View};
use martlet_bfd::{Auth, AuthKey, AuthKind, SessionConfig, SessionId};

use crate::intent::secret;

/// The BFD sessions of an Intent, while it is made.
#[derive(Debug)]
pub(crate) struct Supervision {
    /// Those that somebody uses.
    pub sessions: BTreeMap<SessionId, SessionConfig>,
    /// What their users want together, and who was the first of them.
    wanted: BTreeMap<SessionId, (Bfd, Arc<str>)>,
    /// Our address on the way to a neighbour, where its GatewayRouter names one: it is that of all who share its session.
    sources: BTreeMap<(IpAddr, Arc<str>), IpAddr>,
}

impl Supervision {
    /// No sessions yet. `interface` is that of a `GatewayRouter` which names none.
    pub fn new(view: &View, interface: &Arc<str>) -> Self {
        let source = |router: &GatewayRouter| match &router.protocol {
            Protocol::Bgp(bgp) if bgp.bfd.is_some() => {
                let interface = router.interface.as_ref().unwrap_or(interface);
                Some(((router.address, interface.clone()), bgp.extra.source_address?))
            }
            _ => None,
        };
        // Of two that name one the first counts.
        let sources = view.routers.values().rev().filter_map(source).collect();
        Self { sessions: BTreeMap::new(), wanted: BTreeMap::new(), sources }
    }

    /// The session that supervises the neighbour of a `GatewayRouter`, if it wants one.
    ///
    /// # Errors
    /// Why it cannot have it.
    pub fn client(
        &mut self,
        name: &Arc<str>,
        router: &GatewayRouter,
        interface: &Arc<str>,
    ) -> Result<Option<SessionId>, String> {
        let Some(profile) = router.protocol.bfd() else { return Ok(None) };
        let id = SessionId {
            remote: router.address,
            interface: profile.multihop_hops.is_none().then(|| interface.clone()),
            local: self.sources.get(&(router.address, interface.clone())).copied(),
        };
        let (wanted, first) = match self.wanted.get(&id) {
            Some((other, first)) => match profile.contradicts(other) {
                Some(field) => {
                    return Err(format!(
                        "bfd.{field} is not that of GatewayRouter {first}, which shares the BFD session"
                    ));
                }
                None => (profile.shared_with(other), first.clone()),
            },
            None => (profile.clone(), name.clone()),
        };
        self.sessions.insert(id.clone(), session_config(&wanted)?);
        self.wanted.insert(id.clone(), (wanted, first));
        Ok(Some(id))
    }
}

fn session_config(profile: &Bfd) -> Result<SessionConfig, String> {
    let auth = match &profile.auth {
        Some((kind, id, password)) => {
            let kind = auth_kind(kind).ok_or_else(|| format!("bfd.auth: {kind:?} is no kind of authentication"))?;
            // The first signs; all are accepted.
            let keys = std::iter::once((id, password)).chain(profile.auth_accepts.iter().map(|(id, key)| (id, key)));
            let keys = keys.map(|(id, key)| Ok(AuthKey { id: *id, secret: secret(key)?.to_vec() }));
            Some(Auth { kind, keys: keys.collect::<Result<_, String>>()? })
        }
        None => None,
    };
    Ok(SessionConfig {
        min_tx: profile.min_tx,
        min_rx: profile.min_rx,
        multiplier: profile.multiplier,
        auth,
        echo: profile.echo,
        echo_rx: profile.echo_receive,
        unaffiliated: profile.unaffiliated,
        min_ttl: least_ttl(profile.multihop_hops),
        ..SessionConfig::default()
    })
}

/// The least TTL that a BFD session accepts. Not every sender over several hops begins with 255 (BIRD begins with 64): whoever
/// allows as many hops as that asks for no check.
fn least_ttl(hops: Option<u8>) -> u8 {
    match hops {
        None => 255,
        Some(hops) if hops < 64 => 255 - hops,
        Some(_) => 1,
    }
}

fn auth_kind(words: &str) -> Option<AuthKind> {
    match words {
        "SimplePassword" => Some(AuthKind::SimplePassword),
        "KeyedMD5" => Some(AuthKind::KeyedMd5),
        "MeticulousKeyedMD5" => Some(AuthKind::MeticulousKeyedMd5),
        "KeyedSHA1" => Some(AuthKind::KeyedSha1),
        "MeticulousKeyedSHA1" => Some(AuthKind::MeticulousKeyedSha1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use martlet_api::view::{Bgp, Password};

    use super::*;

    fn address() -> IpAddr {
        [10, 0, 0, 1].into()
    }

    fn interface() -> Arc<str> {
        "ext-vlan".into()
    }

    fn bgp(bfd: Bfd) -> GatewayRouter {
        let protocol = Protocol::Bgp(Box::new(Bgp { bfd: Some(bfd), ..Bgp::default() }));
        GatewayRouter { address: address(), interface: None, description: None, protocol }
    }

    fn fixed(bfd: Bfd) -> GatewayRouter {
        GatewayRouter { protocol: Protocol::Static(Some(bfd)), ..bgp(Bfd::default()) }
    }

    fn key(text: &str) -> Password {
        Password { source: "keys".into(), key: text.into(), secret: Some(Arc::from(text.as_bytes())) }
    }

    fn keyed(text: &str) -> Bfd {
        Bfd { auth: Some(("KeyedSHA1".into(), 1, key(text))), ..Bfd::default() }
    }

    type Got = Result<Option<SessionId>, String>;

    /// The sessions of these routers, called a, b and so on, and what each of them got.
    fn made(routers: &[GatewayRouter]) -> (BTreeMap<SessionId, SessionConfig>, Vec<Got>) {
        let named = ["a", "b", "c"].map(Arc::from).into_iter().zip(routers.iter().cloned());
        let view = View {
            gateway: martlet_api::view::ObjectName { namespace: "default".into(), name: "sllb-a".into() },
            exists: true,
            routers: named.collect(),
            routes: BTreeMap::new(),
            services: BTreeMap::new(),
            vips: std::collections::BTreeSet::new(),
            subnets: std::collections::BTreeSet::new(),
            conditions: std::collections::BTreeSet::new(),
        };
        let mut supervision = Supervision::new(&view, &interface());
        let got = view.routers.iter().map(|(name, router)| supervision.client(name, router, &interface())).collect();
        (supervision.sessions, got)
    }

    fn one(router: GatewayRouter) -> SessionConfig {
        let (sessions, _) = made(&[router]);
        sessions.into_values().next().unwrap()
    }

    #[test]
    fn bfd_over_several_hops_checks_the_ttl_only_if_the_hops_are_named() {
        let least = |multihop_hops| one(bgp(Bfd { multihop_hops, ..Bfd::default() })).min_ttl;
        assert_eq!((least(None), least(Some(2)), least(Some(64))), (255, 253, 1));
    }

    #[test]
    fn a_bfd_session_signs_with_one_key_and_accepts_more() {
        let auth = one(fixed(Bfd { auth_accepts: vec![(2, key("new"))], ..keyed("old") })).auth.unwrap();
        let keys: Vec<_> = auth.keys.iter().map(|key| (key.id, key.secret.as_slice())).collect();
        assert_eq!((auth.kind, keys), (AuthKind::KeyedSha1, vec![(1, &b"old"[..]), (2, b"new")]));
    }

    #[test]
    fn a_neighbour_may_echo_or_know_no_bfd_at_all() {
        let echo = Some(Duration::from_millis(50));
        let session = one(fixed(Bfd { echo, echo_receive: echo, unaffiliated: true, ..Bfd::default() }));
        assert_eq!((session.echo, session.echo_rx, session.unaffiliated), (echo, echo, true));
    }

    #[test]
    fn who_shares_a_path_shares_its_session_and_of_each_parameter_the_more_aggressive_one_counts() {
        let ms = Duration::from_millis;
        let slow = Bfd { min_tx: ms(900), min_rx: ms(50), multiplier: 3, echo: Some(ms(90)), ..Bfd::default() };
        let patient =
            Bfd { min_tx: ms(100), min_rx: ms(300), multiplier: 9, echo_receive: Some(ms(70)), ..Bfd::default() };
        for routers in [[bgp(slow.clone()), fixed(patient.clone())], [fixed(patient), bgp(slow)]] {
            let (sessions, got) = made(&routers);
            assert_eq!((sessions.len(), &got[0]), (1, &got[1]), "one session, two users");
            let session = sessions.into_values().next().unwrap();
            assert_eq!((session.min_tx, session.min_rx, session.multiplier), (ms(100), ms(50), 3));
            assert_eq!((session.echo, session.echo_rx), (Some(ms(90)), Some(ms(70))));
        }
    }

    #[test]
    fn a_static_next_hop_uses_the_session_from_the_address_that_the_bgp_neighbour_names() {
        let source: IpAddr = [10, 0, 0, 9].into();
        let mut neighbor = bgp(Bfd::default());
        if let Protocol::Bgp(bgp) = &mut neighbor.protocol {
            bgp.extra.source_address = Some(source);
        }
        for routers in [[neighbor.clone(), fixed(Bfd::default())], [fixed(Bfd::default()), neighbor]] {
            let (sessions, _) = made(&routers);
            assert_eq!(sessions.keys().map(|id| id.local).collect::<Vec<_>>(), [Some(source)]);
        }
    }

    #[test]
    fn users_who_contradict_each_other_do_not_share_and_the_first_is_right() {
        let echo = Some(Duration::from_millis(50));
        let unaffiliated = Bfd { echo, unaffiliated: true, ..Bfd::default() };
        let contradictions = [
            (keyed("one"), keyed("two"), "authentication"),
            (Bfd::default(), keyed("two"), "authentication"),
            (unaffiliated, Bfd { echo, ..Bfd::default() }, "unaffiliated"),
        ];
        for (one, other, field) in contradictions {
            let alone = made(&[bgp(one.clone())]).0;
            let (sessions, got) = made(&[bgp(one), fixed(other)]);
            let why = got[1].as_ref().unwrap_err();
            assert!(got[0].is_ok() && why.contains(field) && why.contains("GatewayRouter a"), "{why}");
            assert_eq!(sessions, alone);
        }
        assert!(made(&[bgp(keyed("one")), fixed(keyed("one"))]).1[1].is_ok());
        let far = Bfd { multihop_hops: Some(2), ..keyed("far") };
        assert_eq!(made(&[bgp(far), fixed(Bfd::default())]).0.len(), 2, "two paths, two sessions");
    }
}
