//! What a run is: a topology, a list of faults, and the seed of everything random in it. Plain data, read from YAML or drawn.

use martlet_clock::Dice;
use serde::{Deserialize, Serialize};

use crate::faults::{self, Fault};

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Decides delays, jitter, discriminators.
    #[serde(default)]
    pub seed: u64,
    /// Who is there.
    pub topology: Topology,
    /// What goes wrong.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// What must be seen in the run, in the words of the coverage (`notification sent 6/10`, `adoption`, ..).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<String>,
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of a scenario file")]
pub struct Topology {
    /// Gateways; the naive ones come last.
    pub gateways: usize,
    /// How many of them are the naive peer instead of our own speaker.
    #[serde(default)]
    pub naive: usize,
    /// Load balancer pods.
    pub pods: usize,
    /// VIPs of each family.
    pub vips: usize,
    /// Endpoints of the one service.
    #[serde(default = "two")]
    pub endpoints: usize,
    /// Whether IPv6 is there.
    #[serde(default = "yes")]
    pub ipv6: bool,
    /// Whether BFD is switched on.
    #[serde(default = "yes")]
    pub bfd: bool,
    /// Whether all best next hops are used.
    #[serde(default = "yes")]
    pub ecmp: bool,
    /// The last gateway is a static next hop.
    #[serde(default)]
    pub r#static: bool,
    /// Seconds.
    #[serde(default = "three")]
    pub hold_time_s: u16,
    /// The gateways ask for graceful restart (RFC 4724).
    #[serde(default)]
    pub graceful: bool,
}

const fn yes() -> bool {
    true
}

const fn two() -> usize {
    2
}

const fn three() -> u16 {
    3
}

impl Script {
    /// The run of a seed.
    pub fn draw(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x006d_6172_746c_6574);
        let small = |dice: &mut Dice, bound: u64| usize::try_from(dice.below(bound)).unwrap_or_default();
        let gateways = 1 + small(&mut dice, 3);
        let topology = Topology {
            gateways,
            naive: small(&mut dice, 3).min(gateways),
            pods: 1 + small(&mut dice, 2),
            vips: 1 + small(&mut dice, 4),
            endpoints: 1 + small(&mut dice, 3),
            ipv6: dice.chance(1, 2),
            bfd: dice.chance(3, 4),
            ecmp: dice.chance(2, 3),
            r#static: gateways > 1 && dice.chance(1, 6),
            hold_time_s: if dice.chance(3, 4) { 3 } else { 9 },
            graceful: dice.chance(1, 3),
        };
        let count = 1 + dice.below(8);
        let faults = faults::draw(&mut dice, count, 14_000);
        Self { seed, topology, faults, expect: Vec::new() }
    }
}
