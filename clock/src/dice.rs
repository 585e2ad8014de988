//! Seeded randomness: the same seed throws the same dice.

use std::time::Duration;

/// `SplitMix64`: small, quick, good enough for jitter and for faults; not for secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dice(u64);

impl Dice {
    /// Dice that throw the sequence of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        let roll = self.roll();
        if bound == 0 { 0 } else { roll % bound }
    }

    /// Whether something that happens `count` times in `of` happens now.
    pub const fn chance(&mut self, count: u64, of: u64) -> bool {
        self.below(of) < count
    }

    /// `base` less a random share between `least` and `most` percent of it: what BFD (RFC 5880 section 6.8.7) and BGP
    /// (RFC 4271 section 10) call jitter.
    pub fn shortened(&mut self, base: Duration, least_percent: u64, most_percent: u64) -> Duration {
        let nanos = u64::try_from(base.as_nanos()).unwrap_or(u64::MAX);
        let per_mille = least_percent * 10 + self.below((most_percent.saturating_sub(least_percent)) * 10 + 1);
        let cut = nanos / 1000 * per_mille + nanos % 1000 * per_mille / 1000;
        Duration::from_nanos(nanos.saturating_sub(cut))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_seed_throws_the_same_dice() {
        let (mut one, mut two) = (Dice::new(7), Dice::new(7));
        assert!((0..100).all(|_| one.roll() == two.roll()));
        assert_ne!(Dice::new(1).roll(), Dice::new(2).roll());
    }

    proptest! {
        #[test]
        fn jitter_stays_within_its_bounds(seed: u64, millis in 1u64..100_000) {
            let base = Duration::from_millis(millis);
            let short = Dice::new(seed).shortened(base, 10, 25);
            prop_assert!(short <= base * 90 / 100);
            prop_assert!(short >= base * 75 / 100);
        }
    }
}
