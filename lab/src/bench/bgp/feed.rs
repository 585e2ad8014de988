//! A table as the Internet has it, as octets that a gateway would send: the same for everybody who is measured.
//!
//! Prefix lengths, path lengths and sharing of attributes follow what route collectors show: 60 % of /24, paths of two to six ASes,
//! communities on half of the routes, about six prefixes for each set of attributes, most sets with one.

use std::net::Ipv4Addr;

use crate::player::update;

/// The table of one neighbour.
#[derive(Clone, Debug)]
pub struct Feed {
    /// UPDATEs, one behind the other.
    pub octets: Vec<u8>,
    /// How many.
    pub updates: usize,
    /// Prefixes in them.
    pub prefixes: usize,
    /// The sum of [`mark`] over all prefixes.
    pub sum: u64,
}

/// splitmix64.
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        u32::try_from(mixed(self.0) % u64::from(bound)).unwrap_or_default()
    }
}

const fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number for a prefix: sums of them tell two sets apart.
pub fn mark(bits: u8, address: u32) -> u64 {
    mixed((u64::from(bits) << 32) | u64::from(address))
}

/// Space that no route of the table may lie in: private, loopback, link-local, and 20.0.0.0/8, which is ours.
const HOLES: [(u32, u32); 6] = [
    (0x0a00_0000, 0x0b00_0000),
    (0x1400_0000, 0x1500_0000),
    (0x7f00_0000, 0x8000_0000),
    (0xa9fe_0000, 0xa9ff_0000),
    (0xac10_0000, 0xac20_0000),
    (0xc0a8_0000, 0xc0a9_0000),
];

fn length(dice: &mut Dice) -> u8 {
    match dice.below(1000) {
        600..700 => 23,
        700..810 => 22,
        810..860 => 21,
        860..910 => 20,
        910..935 => 19,
        935..950 => 18,
        950..960 => 17,
        _ => 24,
    }
}

/// How many prefixes share a set.
fn share(dice: &mut Dice) -> usize {
    let share = match dice.below(100) {
        0..50 => 1,
        50..80 => 2 + dice.below(4),
        80..96 => 6 + dice.below(15),
        _ => 21 + dice.below(60),
    };
    usize::try_from(share).unwrap_or(1)
}

fn attributes(dice: &mut Dice, asn: u32, next_hop: Ipv4Addr) -> Vec<u8> {
    let mut out = vec![0x40, 1, 1, if dice.below(10) == 0 { 2 } else { 0 }];
    let others = 1 + dice.below(5);
    let mut path = asn.to_be_bytes().to_vec();
    for _ in 0..others {
        let wide = dice.below(10) < 3;
        let number = if wide { 131_072 + dice.below(300_000) } else { 1000 + dice.below(20_000) };
        path.extend(number.to_be_bytes());
    }
    let octet = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    out.extend([0x40, 2, octet(path.len() + 2), 2, octet(path.len() / 4)]);
    out.extend(path);
    out.extend([0x40, 3, 4]);
    out.extend(next_hop.octets());
    if dice.below(5) == 0 {
        out.extend([0x80, 4, 4]);
        out.extend(dice.below(1000).to_be_bytes());
    }
    if dice.below(2) == 0 {
        let communities: Vec<u8> = (0..=dice.below(4))
            .flat_map(|_| ((1000 + dice.below(20_000)) << 16 | dice.below(65_000)).to_be_bytes())
            .collect();
        out.extend([0xc0, 8, octet(communities.len())]);
        out.extend(communities);
    }
    out
}

impl Feed {
    /// `count` prefixes from AS `asn`, always the same ones.
    pub fn new(count: usize, asn: u32, next_hop: Ipv4Addr) -> Self {
        let mut dice = Dice(1);
        let mut feed = Self { octets: Vec::with_capacity(count * 16), updates: 0, prefixes: 0, sum: 0 };
        let mut address = 0x0100_0000_u32;
        while feed.prefixes < count {
            let attributes = attributes(&mut dice, asn, next_hop);
            let mut nlri = Vec::new();
            for _ in 0..share(&mut dice).min(count - feed.prefixes) {
                let bits = length(&mut dice);
                let step = 1_u32 << (32 - u32::from(bits));
                address = address.next_multiple_of(step);
                if let Some((_, end)) = HOLES.iter().find(|(start, end)| (*start..*end).contains(&address)) {
                    address = end.next_multiple_of(step);
                }
                nlri.push(bits);
                nlri.extend(address.to_be_bytes().iter().take(usize::from(bits.div_ceil(8))));
                feed.sum = feed.sum.wrapping_add(mark(bits, address));
                feed.prefixes += 1;
                address += step;
            }
            feed.octets.extend(update(&[], &attributes, &nlri));
            feed.updates += 1;
        }
        feed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_always_the_same_and_looks_like_the_internets() {
        let (one, two) =
            (Feed::new(100_000, 65001, Ipv4Addr::LOCALHOST), Feed::new(100_000, 65001, Ipv4Addr::LOCALHOST));
        assert_eq!((one.sum, one.prefixes), (two.sum, 100_000));
        assert!((14_000..22_000).contains(&one.updates), "{} sets", one.updates);
    }
}
