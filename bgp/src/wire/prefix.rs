//! Prefixes as BGP writes them: a length in bits, then as few octets as hold it.
//!
//! ```text
//! +---------------------------+---------------------------+
//! |   Length (1 octet)        |   Prefix (0 to 16)  ..
//! +---------------------------+---------------------------+
//! ```

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::BufMut;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nom::bytes::complete::take;
use nom::number::complete::be_u8;

use super::Parsed;
use crate::Family;

/// A prefix of one family, small enough to be held by the million. Bits after the length are zero.
pub trait Prefix: Copy + Ord + fmt::Debug {
    /// Its family.
    const FAMILY: Family;
    /// Bits of an address.
    const BITS: u8;

    /// The prefix of `length` bits that begins with `octets`; bits beyond the length are ignored.
    fn new(octets: &[u8], length: u8) -> Self;
    /// Bits.
    fn length(self) -> u8;
    /// The prefix of the first `length` bits.
    fn truncated(self, length: u8) -> Self;
    /// Appends the prefix as the wire has it.
    fn put(self, out: &mut impl BufMut);
    /// The same for the world outside.
    fn net(self) -> IpNet;
    /// The same from the world outside, if the family is ours.
    fn of(net: &IpNet) -> Option<Self>;
    /// Well mixed bits, decided by `seed`.
    fn hash(self, seed: u64) -> u64;
    /// Whether no policy may let it in: loopback, multicast, link-local and the like (not private space, which is what
    /// clusters are made of).
    fn martian(self) -> bool;
}

/// Octets that hold `length` bits.
pub const fn octets(length: u8) -> u8 {
    length.div_ceil(8)
}

/// The two halves of a 128-bit product, folded: the mixing step of several well-known hash functions.
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "splits a product into its halves")]
pub(crate) const fn fold(one: u64, two: u64) -> u64 {
    let product = (one as u128).wrapping_mul(two as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

/// An IPv4 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix4 {
    bits: u32,
    length: u8,
}

/// An IPv6 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix6 {
    octets: [u8; 16],
    length: u8,
}

impl Prefix for Prefix4 {
    const FAMILY: Family = Family::Ipv4;
    const BITS: u8 = 32;

    fn new(octets: &[u8], length: u8) -> Self {
        let length = length.min(32);
        let mut bits = [0; 4];
        for (to, from) in bits.iter_mut().zip(octets) {
            *to = *from;
        }
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        Self { bits: u32::from_be_bytes(bits) & mask, length }
    }

    fn length(self) -> u8 {
        self.length
    }

    fn truncated(self, length: u8) -> Self {
        Self::new(&self.bits.to_be_bytes(), length.min(self.length))
    }

    fn put(self, out: &mut impl BufMut) {
        out.put_u8(self.length);
        let octets = self.bits.to_be_bytes();
        out.put_slice(octets.get(..usize::from(self::octets(self.length))).unwrap_or(&octets));
    }

    fn net(self) -> IpNet {
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(self.bits), self.length))
    }

    fn of(net: &IpNet) -> Option<Self> {
        match net {
            IpNet::V4(net) => Some(Self::new(&net.addr().octets(), net.prefix_len())),
            IpNet::V6(_) => None,
        }
    }

    fn hash(self, seed: u64) -> u64 {
        fold((u64::from(self.bits) << 8 | u64::from(self.length)) ^ seed, 0x9e37_79b9_7f4a_7c15)
    }

    fn martian(self) -> bool {
        let [first, second, ..] = self.bits.to_be_bytes();
        // 0/8, 127/8, 169.254/16, 224/4, 240/4: RFC 6890; the default route is not one of them.
        self.length >= 8 && (first == 0 || first == 127)
            || self.length >= 16 && (first, second) == (169, 254)
            || self.length >= 3 && first >= 224
    }
}

impl Prefix for Prefix6 {
    const FAMILY: Family = Family::Ipv6;
    const BITS: u8 = 128;

    fn new(octets: &[u8], length: u8) -> Self {
        let length = length.min(128);
        let mut bits = [0; 16];
        for (to, from) in bits.iter_mut().zip(octets) {
            *to = *from;
        }
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Self { octets: (u128::from_be_bytes(bits) & mask).to_be_bytes(), length }
    }

    fn length(self) -> u8 {
        self.length
    }

    fn truncated(self, length: u8) -> Self {
        Self::new(&self.octets, length.min(self.length))
    }

    fn put(self, out: &mut impl BufMut) {
        out.put_u8(self.length);
        out.put_slice(self.octets.get(..usize::from(self::octets(self.length))).unwrap_or(&self.octets));
    }

    fn net(self) -> IpNet {
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(self.octets), self.length))
    }

    fn of(net: &IpNet) -> Option<Self> {
        match net {
            IpNet::V6(net) => Some(Self::new(&net.addr().octets(), net.prefix_len())),
            IpNet::V4(_) => None,
        }
    }

    fn hash(self, seed: u64) -> u64 {
        let (high, low) = self.octets.split_at(8);
        let word = |octets: &[u8]| u64::from_be_bytes(octets.try_into().unwrap_or_default());
        let high = fold(word(high) ^ seed, 0x9e37_79b9_7f4a_7c15);
        fold(high ^ word(low), 0xbf58_476d_1ce4_e5b9 ^ u64::from(self.length))
    }

    fn martian(self) -> bool {
        let [first, second, ..] = self.octets;
        // ::/8 (unspecified, loopback, mapped), fe80::/10, ff00::/8; the default route is not one of them.
        self.length >= 8 && first == 0
            || self.length >= 10 && first == 0xfe && second >> 6 == 2
            || self.length >= 8 && first == 0xff
    }
}

/// Why a field of prefixes cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// A length that no address of the family has.
    #[error("a prefix of {0} bits")]
    Length(u8),
    /// The field ends inside a prefix.
    #[error("the field ends inside a prefix")]
    Truncated,
}

/// A field of prefixes, checked: whoever walks over it meets no error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nlri<'a> {
    octets: &'a [u8],
    /// Whether each prefix stands behind a path identifier (RFC 7911).
    with_ids: bool,
}

fn prefix(input: &[u8]) -> Parsed<'_, (u8, &[u8])> {
    let (input, length) = be_u8(input)?;
    let (input, octets) = take(octets(length))(input)?;
    Ok((input, (length, octets)))
}

/// The path identifier before a prefix, if there are any.
fn identifier(input: &[u8], with_ids: bool) -> Option<(u32, &[u8])> {
    if !with_ids {
        return Some((0, input));
    }
    let (&id, rest) = input.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(id), rest))
}

impl<'a> Nlri<'a> {
    /// The prefixes of `family` in `field`, all of it, without path identifiers.
    #[cfg(test)]
    pub fn parse(family: Family, field: &'a [u8]) -> Result<Self, PrefixError> {
        Self::parse_paths(family, field, false)
    }

    /// The prefixes of `family` in `field`, all of it. `with_ids`: each prefix stands behind a path identifier of four octets (RFC 7911 section 3).
    pub fn parse_paths(family: Family, field: &'a [u8], with_ids: bool) -> Result<Self, PrefixError> {
        let most = match family {
            Family::Ipv4 => Prefix4::BITS,
            Family::Ipv6 => Prefix6::BITS,
        };
        let mut rest = field;
        while !rest.is_empty() {
            let (_, after) = identifier(rest, with_ids).ok_or(PrefixError::Truncated)?;
            let &length = after.first().ok_or(PrefixError::Truncated)?;
            if length > most {
                return Err(PrefixError::Length(length));
            }
            let (after, _) = prefix(after).map_err(|_| PrefixError::Truncated)?;
            rest = after;
        }
        Ok(Self { octets: field, with_ids })
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.octets.is_empty()
    }

    /// The octets that the field takes.
    pub const fn octets(self) -> &'a [u8] {
        self.octets
    }

    /// One after the other.
    pub fn iter<P: Prefix>(self) -> impl Iterator<Item = P> + 'a {
        self.paths().map(|(_, prefix)| prefix)
    }

    /// One after the other, with its path identifier; 0 if they have none.
    pub fn paths<P: Prefix>(self) -> impl Iterator<Item = (u32, P)> + 'a {
        let mut rest = self.octets;
        std::iter::from_fn(move || {
            let (id, after) = identifier(rest, self.with_ids)?;
            let (after, (length, octets)) = prefix(after).ok()?;
            rest = after;
            Some((id, P::new(octets, length)))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets<P: Prefix>(octets: &[u8]) -> Vec<String> {
        Nlri::parse(P::FAMILY, octets).unwrap().iter::<P>().map(|prefix| prefix.net().to_string()).collect()
    }

    #[test]
    fn a_field_of_prefixes_is_read_in_order() {
        assert_eq!(nets::<Prefix4>(&[0, 8, 10, 32, 20, 0, 0, 1]), ["0.0.0.0/0", "10.0.0.0/8", "20.0.0.1/32"]);
        assert_eq!(nets::<Prefix6>(&[16, 0x20, 0]), ["2000::/16"]);
    }

    #[test]
    fn bits_beyond_the_length_say_nothing() {
        assert_eq!(nets::<Prefix4>(&[9, 10, 0xff]), ["10.128.0.0/9"]);
    }

    #[test]
    fn a_prefix_longer_than_an_address_or_than_its_field_is_an_error() {
        assert_eq!(Nlri::parse(Family::Ipv4, &[33, 1, 2, 3, 4, 5]), Err(PrefixError::Length(33)));
        assert_eq!(Nlri::parse(Family::Ipv6, &[129]), Err(PrefixError::Length(129)));
        assert_eq!(Nlri::parse(Family::Ipv4, &[24, 1, 2]), Err(PrefixError::Truncated));
    }

    #[test]
    fn a_path_identifier_stands_before_each_prefix_where_that_was_agreed() {
        let field = [0, 0, 0, 7, 8, 10, 0, 0, 0, 8, 8, 10];
        let paths: Vec<_> = Nlri::parse_paths(Family::Ipv4, &field, true).unwrap().paths::<Prefix4>().collect();
        assert_eq!(
            paths.iter().map(|(id, prefix)| (*id, prefix.net().to_string())).collect::<Vec<_>>(),
            [(7, "10.0.0.0/8".to_owned()), (8, "10.0.0.0/8".to_owned())]
        );
        for cut in [1, 3, 4, 5, 7, 10, 11] {
            assert_eq!(Nlri::parse_paths(Family::Ipv4, &field[..cut], true), Err(PrefixError::Truncated), "{cut}");
        }
    }

    #[test]
    fn martians_are_not_routes_but_private_space_and_the_default_are() {
        let martian = |net: &str| Prefix4::of(&net.parse().unwrap()).unwrap().martian();
        assert!(
            ["127.0.0.0/8", "0.1.0.0/16", "224.0.0.0/4", "240.0.0.0/8", "169.254.1.0/24"]
                .map(martian)
                .iter()
                .all(|&m| m)
        );
        assert!(["0.0.0.0/0", "10.0.0.0/8", "192.168.0.0/16", "100.64.0.0/10"].map(martian).iter().all(|&m| !m));
        let martian = |net: &str| Prefix6::of(&net.parse().unwrap()).unwrap().martian();
        assert!(["::1/128", "fe80::/64", "ff02::/16", "::ffff:1.2.3.4/128"].map(martian).iter().all(|&m| m));
        assert!(["::/0", "2001:db8::/32", "fd00::/8"].map(martian).iter().all(|&m| !m));
    }

    proptest! {
        #[test]
        fn what_is_emitted_parses_to_the_same(bits: [u8; 16], length in 0u8..=128) {
            let six = Prefix6::new(&bits, length);
            let mut out = Vec::new();
            six.put(&mut out);
            prop_assert_eq!(Nlri::parse(Family::Ipv6, &out).unwrap().iter::<Prefix6>().collect::<Vec<_>>(), [six]);
            prop_assert_eq!(Prefix6::of(&six.net()), Some(six));
            let four = Prefix4::new(&bits, length.min(32));
            out.clear();
            four.put(&mut out);
            prop_assert_eq!(Nlri::parse(Family::Ipv4, &out).unwrap().iter::<Prefix4>().collect::<Vec<_>>(), [four]);
            prop_assert_eq!(Prefix4::of(&four.net()), Some(four));
        }

        #[test]
        fn any_octets_parse_or_are_refused(octets: Vec<u8>) {
            for family in [Family::Ipv4, Family::Ipv6] {
                let _ = Nlri::parse(family, &octets);
            }
        }
    }
}
