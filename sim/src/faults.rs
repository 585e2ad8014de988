//! Faults as plain data: what, to whom, from when to when. A run is a topology and a list of these.
//!
//! Nothing here acts: `world` does, at the start and at the end of each. Numbers of pods and gateways are taken modulo how
//! many there are, so that a list survives a smaller topology.

use martlet_clock::Dice;
use serde::{Deserialize, Serialize};

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When it begins, milliseconds after the start.
    pub at_ms: u64,
    /// How long it lasts.
    pub for_ms: u64,
    /// To which pod.
    #[serde(default)]
    pub pod: usize,
    /// To which gateway.
    #[serde(default)]
    pub gateway: usize,
    /// How much: milliseconds, percent, a choice; see [`What`].
    #[serde(default)]
    pub amount: u64,
    /// What.
    pub what: What,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $words:literal,)*) => {
        /// The kinds of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum What { $($(#[$doc])* $name,)* }

        impl What {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name of a fault, in words.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $words,)* }
            }
        }
    };
}

faults! {
    /// Everything between pod and gateway takes `amount` ms longer.
    Delay = "delay",
    /// ..and up to that much at random.
    Jitter = "jitter",
    /// `amount` percent are lost.
    Loss = "loss",
    /// `amount` percent of the datagrams come twice.
    Duplication = "duplication",
    /// `amount` percent of the datagrams overtake others.
    Reordering = "reordering",
    /// Nothing comes through, from the pod (even `amount`) or to it.
    CutOneWay = "cut-one-way",
    /// Nothing comes through.
    Partition = "partition",
    /// Everything waits, nothing is lost.
    Clog = "clog",
    /// The links of a subset are clogged one by one and set free in another order.
    SwizzleClog = "swizzle-clog",
    /// The gateway does not read.
    SlowReader = "slow-reader",
    /// The gateway forgets its connections with the pod without a word.
    HalfOpen = "half-open",
    /// Connections between both are reset.
    Reset = "reset",
    /// The router process dies; its kernel stays. It starts again at the end.
    RouterCrash = "router-crash",
    /// The whole pod dies with its kernel, without a word.
    PodCrash = "pod-crash",
    /// SIGTERM; it starts again at the end, or after it has ended.
    RouterStop = "router-stop",
    /// The gateway's process dies.
    GatewayCrash = "gateway-crash",
    /// The gateway's machine dies without a word.
    GatewayLoss = "gateway-loss",
    /// The gateway ends in order.
    GatewayStop = "gateway-stop",
    /// The load balancer's process dies.
    LbCrash = "lb-crash",
    /// The load balancer keeps its socket open and says nothing.
    LbHang = "lb-hang",
    /// The load balancer writes what is no readiness, again and again.
    LbGarbage = "lb-garbage",
    /// The load balancer drains, and thinks again.
    LbDrain = "lb-drain",
    /// The pod's clock runs `amount` - 5000 ppm faster.
    ClockDrift = "clock-drift",
    /// The external link has no carrier.
    LinkDown = "link-down",
    /// The external link has another name.
    LinkRename = "link-rename",
    /// The external link goes and comes back with another index.
    LinkReplug = "link-replug",
    /// The internal link has no carrier.
    InternalDown = "internal-down",
    /// Someone deletes every `amount`th object of ours, again every 700 ms.
    ForeignDelete = "foreign-delete",
    /// ..and the kernel's messages of it are lost: all that comes is a new dump.
    NetlinkOverrun = "netlink-overrun",
    /// The kernel refuses changes.
    KernelRefusal = "kernel-refusal",
    /// The pod hears nothing of changed objects.
    ApiOutage = "api-outage",
    /// The pod is told old objects again.
    StaleObjects = "stale-objects",
    /// Endpoints come, go and change readiness, every 50 ms.
    EndpointStorm = "endpoint-storm",
    /// An endpoint flaps slowly.
    EndpointFlap = "endpoint-flap",
    /// A malformed object appears among the good ones.
    BadObject = "bad-object",
    /// A field of the routers' configuration changes and changes back.
    ConfigChange = "config-change",
    /// A VIP comes or goes.
    VipChange = "vip-change",
    /// The gateway sends what is no good BGP.
    MalformedBgp = "malformed-bgp",
    /// Someone sends what is no good BFD.
    MalformedBfd = "malformed-bfd",
    /// The gateway's routes come and go.
    RouteFlap = "route-flap",
    /// The gateway no longer announces its own prefix, or does again: for good.
    RouteGone = "route-gone",
    /// A naive gateway announces a prefix whose next hop is not on the link.
    OffLinkHop = "off-link-hop",
    /// The router process dies, and what it put into the kernel is lost with it. It starts again at the end.
    RouterClean = "router-clean",
    /// The gateway's process dies and forwards on; where the topology says `graceful` it tells so (RFC 4724).
    GatewayGraceful = "gateway-graceful",
    /// The operator resets the sessions between both (even `amount`), or asks for the routes again.
    OperatorReset = "operator-reset",
}

/// The fields that a [`What::ConfigChange`] can change: see `objects`.
pub const CONFIG_FIELDS: u64 = 46;

/// What makes the worst of each other: while the first lasts, the second comes and goes, at the same pod and gateway.
const PAIRS: &[(What, What)] = &[
    (What::GatewayLoss, What::RouterCrash),
    (What::GatewayCrash, What::RouterCrash),
    (What::GatewayGraceful, What::RouterCrash),
    (What::GatewayGraceful, What::Loss),
    (What::GatewayGraceful, What::Partition),
    (What::RouterCrash, What::VipChange),
    (What::RouterCrash, What::RouteGone),
    (What::RouterCrash, What::ConfigChange),
    (What::RouterCrash, What::LbCrash),
    (What::RouterStop, What::RouterCrash),
    (What::Partition, What::Reset),
    (What::Partition, What::HalfOpen),
    (What::Delay, What::Reset),
    (What::Delay, What::OperatorReset),
    (What::LinkDown, What::ConfigChange),
    (What::ApiOutage, What::RouterCrash),
    (What::StaleObjects, What::RouterCrash),
    (What::KernelRefusal, What::VipChange),
    (What::NetlinkOverrun, What::RouteFlap),
    (What::EndpointStorm, What::LbHang),
    (What::SlowReader, What::EndpointFlap),
    (What::ConfigChange, What::ConfigChange),
    (What::ConfigChange, What::MalformedBgp),
];

/// Draws a list of faults for a run: `count` of them within `span_ms`, and sometimes a pair that lies inside one another.
pub fn draw(dice: &mut Dice, count: u64, span_ms: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    let kinds = u64::try_from(What::ALL.len()).unwrap_or(1);
    for _ in 0..count {
        // Bad messages come in so many kinds that they get a larger share.
        let kind = usize::try_from(dice.below(kinds + 3)).unwrap_or_default();
        let what = What::ALL.get(kind).copied().unwrap_or(What::MalformedBgp);
        let at_ms = 500 + dice.below(span_ms);
        let for_ms = match dice.below(8) {
            0 | 1 => 1 + dice.below(100),
            2 | 3 => 100 + dice.below(900),
            4 => 8000 + dice.below(10_000),
            _ => 1000 + dice.below(7000),
        };
        faults.push(one(dice, what, at_ms, for_ms));
    }
    if dice.chance(2, 5) {
        let pair = usize::try_from(dice.below(u64::try_from(PAIRS.len()).unwrap_or(1))).unwrap_or_default();
        let (outer, inner) = PAIRS[pair];
        let at_ms = 1000 + dice.below(span_ms / 2);
        let for_ms = 1000 + dice.below(15_000);
        let first = one(dice, outer, at_ms, for_ms);
        let begin = at_ms + dice.below(for_ms);
        let length = 50 + dice.below(3000);
        let second = Fault { pod: first.pod, gateway: first.gateway, ..one(dice, inner, begin, length) };
        if matches!(outer, What::GatewayLoss | What::GatewayCrash) {
            // All of them: nobody is left to tell what was known.
            faults.extend((1..3).map(|more| Fault { gateway: first.gateway + more, ..first.clone() }));
        }
        faults.extend([first, second]);
    }
    faults.sort_by_key(|fault| (fault.at_ms, fault.what));
    faults
}

fn one(dice: &mut Dice, what: What, at_ms: u64, for_ms: u64) -> Fault {
    let mut small = |bound: u64| usize::try_from(dice.below(bound)).unwrap_or_default();
    let (pod, gateway) = (small(12), small(12));
    let amount = match what {
        What::Delay | What::Jitter => 1 + dice.below(300),
        What::Loss | What::Duplication | What::Reordering => 1 + dice.below(90),
        What::ClockDrift => dice.below(10_000),
        What::ForeignDelete => 1 + dice.below(4),
        _ => dice.below(1000),
    };
    Fault { at_ms, for_ms, pod, gateway, amount, what }
}
