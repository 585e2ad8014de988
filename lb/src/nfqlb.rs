//! The hash and the permutations of nfqlb, for the time when replicas of both kinds stand behind one gateway.
//!
//! Facts of nfqlb (Nordix/nfqueue-loadbalancer), told in our own words: the hash is djb2 over 40 octets (both addresses,
//! IPv4 ones mapped into IPv6, two octets of an echo's identifier or zero, the protocol as a little endian number, both
//! ports), of SCTP over the ports alone; the slot is the hash modulo M; offset and skip of the endpoints, in the order of
//! their indexes, are what glibc's `rand()` gives a process that never calls `srand()`; M is the largest prime that is not
//! above 100 times the most endpoints. An identifier of ours is an index of nfqlb's.
//!
//! It is a weak hash with known faults: an option for a rolling migration, to be switched off after it.

use std::net::IpAddr;

use crate::hash::Flow;
use crate::packet::protocol;

/// nfqlb multiplies within 32 bits: above this its permutations are none.
pub const MOST_SLOTS: u32 = 65_535;

/// The hash of a flow.
pub fn hash(flow: &Flow) -> u32 {
    let ports = [flow.source_port.to_be_bytes(), flow.destination_port.to_be_bytes()].concat();
    if flow.protocol == protocol::SCTP {
        return djb2(&ports);
    }
    let is_echo = matches!(flow.protocol, protocol::ICMP | protocol::ICMPV6);
    let (first, last) = if is_echo { (flow.source_port.to_be_bytes(), vec![0; 4]) } else { ([0, 0], ports) };
    let key = [&mapped(flow.source)[..], &mapped(flow.destination), &first, &[flow.protocol, 0], &last];
    djb2(&key.concat())
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn djb2(octets: &[u8]) -> u32 {
    octets.iter().fold(5381, |hash: u32, octet| hash.wrapping_mul(33).wrapping_add(u32::from(*octet)))
}

/// The number of slots for a service of at most so many endpoints; `None`: nfqlb's arithmetic breaks.
pub fn slots(endpoints: u32) -> Option<u32> {
    let most = endpoints.checked_mul(100).filter(|slots| (3..=MOST_SLOTS).contains(slots))?;
    (3..=most).rev().find(|number| (2..=number.isqrt()).all(|divisor| !number.is_multiple_of(divisor)))
}

/// Offset and skip of the first `count` indexes in a table of `slots`.
pub fn walks(slots: u32, count: usize) -> Vec<(u32, u32)> {
    let mut random = Random::new();
    (0..count).map(|_| (random.next() % slots, random.next() % (slots - 1) + 1)).collect()
}

/// glibc's additive feedback generator with its default seed of 1.
struct Random {
    /// The last 31 numbers, the oldest at `at`.
    state: [u32; 31],
    at: usize,
}

impl Random {
    fn new() -> Self {
        let mut state = [1; 31];
        let mut number: u64 = 1;
        for place in state.iter_mut().skip(1) {
            number = number * 16_807 % 0x7fff_ffff;
            *place = u32::try_from(number).unwrap_or_default();
        }
        // The next three repeat the oldest three, which are there already; the next 310 are thrown away.
        let mut random = Self { state, at: 3 };
        for _ in 0..310 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u32 {
        // r(i) = r(i - 31) + r(i - 3)
        let third = self.state.get((self.at + 28) % 31).copied().unwrap_or_default();
        let Some(oldest) = self.state.get_mut(self.at) else { return 0 };
        *oldest = oldest.wrapping_add(third);
        let number = *oldest >> 1;
        self.at = (self.at + 1) % 31;
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maglev::{Permutation, Size, Table};

    /// From nfqlb's own sources, compiled and run.
    #[test]
    fn hashes_are_nfqlb_s() {
        let flow = |source: &str, destination: &str, protocol, source_port, destination_port| {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            hash(&Flow { source, destination, protocol, source_port, destination_port })
        };
        let v4 = |protocol, source_port, port| flow("192.168.1.1", "20.0.0.1", protocol, source_port, port);
        assert_eq!(v4(6, 40000, 4000), 1_143_928_721);
        assert_eq!(v4(17, 40000, 4000), 1_574_418_044);
        assert_eq!(v4(132, 40000, 4000), 2_092_150_128);
        assert_eq!(v4(1, 0x1234, 0), 2_007_227_783);
        assert_eq!(flow("fd00::1", "2000::1", 17, 40000, 4001), 3_045_958_945);
        assert_eq!(flow("fd00::1", "2000::1", 58, 0x1234, 0), 1_414_518_788);
    }

    #[test]
    fn the_generator_is_glibc_s() {
        let mut random = Random::new();
        assert_eq!([random.next(), random.next(), random.next()], [1_804_289_383, 846_930_886, 1_681_692_777]);
    }

    /// Endpoints 1, 2, 3, 50 and 99 of 100; from nfqlb's own sources, compiled and run.
    #[test]
    fn tables_are_nfqlb_s() {
        let size = Size::new(slots(100).unwrap()).unwrap();
        assert_eq!(size.slots(), 9973);
        let table = Table::new(size, Permutation::Nfqlb, [1, 2, 3, 50, 99]);
        let some: Vec<u16> = table.slots().iter().step_by(401).copied().take(24).collect();
        assert_eq!(some, [2, 3, 50, 1, 3, 50, 3, 99, 2, 2, 2, 2, 99, 99, 3, 99, 1, 99, 2, 2, 99, 2, 3, 99]);
        let sum = table.slots().iter().fold(5381, |sum: u32, one| sum.wrapping_mul(33).wrapping_add(u32::from(*one)));
        assert_eq!(sum, 1_108_426_137);
    }

    #[test]
    fn what_nfqlb_cannot_multiply_is_refused() {
        assert_eq!((slots(655).is_some(), slots(656), slots(0)), (true, None, None));
    }
}
