//! Which VIPs may be announced now, and why the others may not.
//!
//! [`Gate::decide`] compares whole values: what the load balancer can forward, and which family has external
//! connectivity. Per VIP, never all-or-nothing. A withdrawal never waits; a VIP that flapped is damped. It knows no session
//! and no kernel.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use martlet_api::readiness::{Families, Readiness};
use martlet_bgp::Family;
use martlet_clock::Instant;

/// Flaps older than this are forgotten.
pub const FLAP_WINDOW: Duration = Duration::from_mins(1);
/// From this many flaps within [`FLAP_WINDOW`] a VIP waits.
pub const FLAPS: usize = 3;
/// The longest wait.
pub const MAX_WAIT: Duration = Duration::from_secs(30);

/// What the load balancer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lb {
    /// There is none to ask: every VIP counts as ready.
    Ungated,
    /// Nothing is known, so nothing is ready: why.
    Silent(Arc<str>),
    /// Its last word.
    Said(Readiness),
}

impl Lb {
    /// Before the first word.
    pub fn unknown() -> Self {
        Self::Silent("it has not been reached yet".into())
    }
}

/// Why a VIP is not announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The router ends.
    Stopping,
    /// The load balancer does not speak.
    LbSilent(Arc<str>),
    /// The load balancer belongs to another Gateway.
    OtherGateway(String),
    /// The load balancer ends.
    LbDraining,
    /// The load balancer does not know the VIP.
    UnknownToLb,
    /// The load balancer cannot forward it: in its words.
    NotReady(String),
    /// No gateway router of the family is Up.
    NoConnectivity(Family),
    /// No default route of the family is known, and one is required.
    NoEgressRoute(Family),
    /// It flapped: not before then.
    Damped(Instant),
}

impl Reason {
    /// One word for metrics and conditions.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Stopping => "Stopping",
            Self::LbSilent(_) => "LoadBalancerSilent",
            Self::OtherGateway(_) => "OtherGateway",
            Self::LbDraining => "LoadBalancerDraining",
            Self::UnknownToLb => "UnknownToLoadBalancer",
            Self::NotReady(_) => "NotReady",
            Self::NoConnectivity(_) => "NoConnectivity",
            Self::NoEgressRoute(_) => "NoEgressRoute",
            Self::Damped(_) => "Damped",
        }
    }

    /// Whether it is the load balancer's word that keeps the VIP back: what counts as a flap.
    const fn is_of_lb(&self) -> bool {
        matches!(self, Self::LbSilent(_) | Self::UnknownToLb | Self::NotReady(_))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopping => f.write_str("the router is stopping"),
            Self::LbSilent(why) => write!(f, "the load balancer does not speak: {why}"),
            Self::OtherGateway(name) => write!(f, "the load balancer belongs to Gateway {name}"),
            Self::LbDraining => f.write_str("the load balancer is draining"),
            Self::UnknownToLb => f.write_str("the load balancer does not know this VIP"),
            Self::NotReady(why) if why.is_empty() => f.write_str("the load balancer is not ready for it"),
            Self::NotReady(why) => write!(f, "the load balancer is not ready for it: {why}"),
            Self::NoConnectivity(family) => write!(f, "no {} gateway router is Up", words(*family)),
            Self::NoEgressRoute(family) => write!(f, "no {} default route was learned", words(*family)),
            Self::Damped(until) => write!(f, "it flapped and waits until {until}"),
        }
    }
}

/// A family as users write it.
pub const fn words(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    }
}

/// The answer for one VIP: `Ok` is announced.
pub type Verdict = Result<(), Reason>;

/// All that decides.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The name of our Gateway.
    pub gateway: &'a str,
    /// The VIPs of the Intent.
    pub vips: &'a BTreeSet<IpNet>,
    /// What the load balancer says.
    pub lb: &'a Lb,
    /// Which family has a gateway router that is Up.
    pub connectivity: Families,
    /// Which family has a default route; `None`: none is required.
    pub egress: Option<Families>,
    /// Whether the router ends.
    pub stopping: bool,
}

/// Whether `families` contains `family`.
pub const fn has(families: Families, family: Family) -> bool {
    match family {
        Family::Ipv4 => families.ipv4,
        Family::Ipv6 => families.ipv6,
    }
}

/// The verdict without damping: a pure function of whole values.
///
/// # Errors
/// Why the VIP may not be announced.
pub fn verdict(vip: &IpNet, question: &Question<'_>) -> Verdict {
    let family = Family::of(vip);
    if question.stopping {
        return Err(Reason::Stopping);
    }
    match question.lb {
        Lb::Ungated => {}
        Lb::Silent(why) => return Err(Reason::LbSilent(why.clone())),
        Lb::Said(said) if said.gateway != question.gateway => return Err(Reason::OtherGateway(said.gateway.clone())),
        Lb::Said(said) if said.draining => return Err(Reason::LbDraining),
        Lb::Said(said) => match said.vips.get(vip) {
            None => return Err(Reason::UnknownToLb),
            Some(vip) if !vip.ready => return Err(Reason::NotReady(vip.reason.clone())),
            Some(_) => {}
        },
    }
    if !has(question.connectivity, family) {
        return Err(Reason::NoConnectivity(family));
    }
    match question.egress {
        Some(egress) if !has(egress, family) => Err(Reason::NoEgressRoute(family)),
        _ => Ok(()),
    }
}

/// What is remembered of a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct History {
    announced: bool,
    flaps: VecDeque<Instant>,
    until: Option<Instant>,
}

/// The gate: verdicts, and the memory that damping needs.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    history: BTreeMap<IpNet, History>,
}

impl Gate {
    /// The verdict of every VIP at `now`.
    pub fn decide(&mut self, now: Instant, question: &Question<'_>) -> BTreeMap<IpNet, Verdict> {
        self.history.retain(|vip, _| question.vips.contains(vip));
        let verdicts = question.vips.iter().map(|vip| {
            let history = self.history.entry(*vip).or_default();
            (*vip, history.damp(now, verdict(vip, question)))
        });
        verdicts.collect()
    }

    /// When a damped VIP may be announced: [`Gate::decide`] is due then.
    pub fn deadline(&self) -> Option<Instant> {
        self.history.values().filter_map(|history| history.until).min()
    }
}

impl History {
    fn damp(&mut self, now: Instant, verdict: Verdict) -> Verdict {
        if self.until.is_some_and(|until| until <= now) {
            self.until = None;
        }
        match (&verdict, self.until) {
            (Ok(()), Some(until)) => return Err(Reason::Damped(until)),
            (Err(reason), _) if self.announced && reason.is_of_lb() => self.flap(now),
            _ => {}
        }
        self.announced = verdict.is_ok();
        verdict
    }

    fn flap(&mut self, now: Instant) {
        self.flaps.push_back(now);
        while self.flaps.front().is_some_and(|&at| now.since(at) > FLAP_WINDOW) || self.flaps.len() > 16 {
            self.flaps.pop_front();
        }
        if let Some(more) = self.flaps.len().checked_sub(FLAPS) {
            let wait = Duration::from_secs(1 << more.min(5));
            self.until = Some(now + wait.min(MAX_WAIT));
        }
    }
}

#[cfg(test)]
mod tests {
    use martlet_api::readiness::{VERSION, VipReadiness};

    use super::*;

    const BOTH: Families = Families { ipv4: true, ipv6: true };

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn vip(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn said(vips: &[(&str, bool)]) -> Lb {
        Lb::Said(Readiness {
            version: VERSION,
            gateway: "sllb-a".into(),
            draining: false,
            vips: vips
                .iter()
                .map(|&(text, ready)| (vip(text), VipReadiness { ready, reason: "no endpoint".into() }))
                .collect(),
        })
    }

    fn ask<'a>(vips: &'a BTreeSet<IpNet>, lb: &'a Lb, connectivity: Families) -> Question<'a> {
        Question { gateway: "sllb-a", vips, lb, connectivity, egress: None, stopping: false }
    }

    #[test]
    fn each_vip_is_judged_on_its_own() {
        let vips = [vip("20.0.0.1/32"), vip("20.0.0.2/32"), vip("20.0.0.3/32"), vip("2000::1/128")].into();
        let lb = said(&[("20.0.0.1/32", true), ("20.0.0.2/32", false), ("2000::1/128", true)]);
        let verdicts = Gate::default().decide(at(0), &ask(&vips, &lb, Families { ipv4: true, ipv6: false }));
        assert_eq!(verdicts[&vip("20.0.0.1/32")], Ok(()));
        assert_eq!(verdicts[&vip("20.0.0.2/32")], Err(Reason::NotReady("no endpoint".into())));
        assert_eq!(verdicts[&vip("20.0.0.3/32")], Err(Reason::UnknownToLb));
        assert_eq!(verdicts[&vip("2000::1/128")], Err(Reason::NoConnectivity(Family::Ipv6)));
    }

    #[test]
    fn a_silent_a_draining_and_a_strange_load_balancer_are_not_ready() {
        let vips = [vip("20.0.0.1/32")].into();
        let mut gate = Gate::default();
        let mut first = |lb: &Lb| gate.decide(at(0), &ask(&vips, lb, BOTH)).into_values().next().unwrap();
        assert!(matches!(first(&Lb::unknown()), Err(Reason::LbSilent(_))));
        let Lb::Said(ready) = said(&[("20.0.0.1/32", true)]) else { unreachable!() };
        assert_eq!(first(&Lb::Said(ready.clone())), Ok(()));
        assert_eq!(first(&Lb::Said(Readiness { draining: true, ..ready.clone() })), Err(Reason::LbDraining));
        let strange = Readiness { gateway: "sllb-b".into(), ..ready };
        assert_eq!(first(&Lb::Said(strange)), Err(Reason::OtherGateway("sllb-b".into())));
        assert_eq!(first(&Lb::Ungated), Ok(()));
    }

    #[test]
    fn an_egress_route_is_needed_only_where_it_is_required() {
        let vips = [vip("20.0.0.1/32")].into();
        let question = ask(&vips, &Lb::Ungated, BOTH);
        let without = Question { egress: Some(Families { ipv4: false, ipv6: true }), ..question };
        assert_eq!(verdict(&vip("20.0.0.1/32"), &without), Err(Reason::NoEgressRoute(Family::Ipv4)));
        assert_eq!(verdict(&vip("20.0.0.1/32"), &question), Ok(()));
    }

    #[test]
    fn the_third_flap_within_a_minute_waits_a_second_the_fourth_two() {
        let vips = [vip("20.0.0.1/32")].into();
        let (up, down) = (said(&[("20.0.0.1/32", true)]), said(&[("20.0.0.1/32", false)]));
        let mut gate = Gate::default();
        let mut play =
            |millis: u64, lb: &Lb| gate.decide(at(millis), &ask(&vips, lb, BOTH)).into_values().next().unwrap();
        for start in [0, 100, 200] {
            assert_eq!(play(start, &up), Ok(()));
            assert!(matches!(play(start + 50, &down), Err(Reason::NotReady(_))), "a withdrawal never waits");
        }
        assert_eq!(play(300, &up), Err(Reason::Damped(at(1250))));
        assert!(matches!(play(400, &down), Err(Reason::NotReady(_))), "not announced: no flap");
        assert_eq!(play(1249, &up), Err(Reason::Damped(at(1250))));
        assert_eq!(play(1250, &up), Ok(()));
        assert!(play(1300, &down).is_err());
        assert_eq!(play(1301, &up), Err(Reason::Damped(at(3300))));
        assert_eq!(play(70_000, &up), Ok(()));
        assert!(play(70_001, &down).is_err());
        assert_eq!(play(70_002, &up), Ok(()), "what is older than a minute is forgotten");
    }

    #[test]
    fn a_lost_gateway_is_no_flap_of_the_vip() {
        let vips = [vip("20.0.0.1/32")].into();
        let up = said(&[("20.0.0.1/32", true)]);
        let mut gate = Gate::default();
        for millis in 0..20 {
            gate.decide(at(millis), &ask(&vips, &up, BOTH));
            gate.decide(at(millis), &ask(&vips, &up, Families::default()));
        }
        assert_eq!(gate.decide(at(21), &ask(&vips, &up, BOTH))[&vip("20.0.0.1/32")], Ok(()));
        assert_eq!(gate.deadline(), None);
    }
}
