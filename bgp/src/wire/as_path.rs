//! `AS_PATH`: the ASes that a route came through, in numbers of two octets or of four (RFC 6793).
//!
//! ```text
//! +---------------+---------------+-------------------------------+
//! | Type (1)      | Numbers (1)   | AS numbers, 2 or 4 octets each ..
//! +---------------+---------------+-------------------------------+
//! ```
//! `AS_PATH` and `AS4_PATH` have the same shape. Confederations (RFC 5065) are not spoken: their segments are unknown types.

use std::borrow::Cow;

use bytes::BufMut;
use nom::Parser;
use nom::bytes::complete::take;
use nom::number::complete::be_u8;

use super::Parsed;
use super::length8;
use super::open::AS_TRANS;

/// Octets of an AS number on a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// The neighbour does not know RFC 6793.
    Two,
    /// It does.
    Four,
}

impl Width {
    const fn octets(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Appends `asn`, or what stands for it.
    pub fn put(self, asn: u32, out: &mut Vec<u8>) {
        match self {
            Self::Two => out.put_u16(u16::try_from(asn).unwrap_or(AS_TRANS)),
            Self::Four => out.put_u32(asn),
        }
    }

    fn number(self, octets: &[u8]) -> u32 {
        match (self, octets) {
            (Self::Two, &[a, b]) => u32::from(u16::from_be_bytes([a, b])),
            (Self::Four, &[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
            _ => 0,
        }
    }
}

/// Whether the order of a segment's numbers means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `AS_SET`: it does not.
    Set,
    /// `AS_SEQUENCE`: it does.
    Sequence,
}

/// One segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Its kind.
    pub kind: Kind,
    octets: &'a [u8],
    width: Width,
}

impl<'a> Segment<'a> {
    /// Its numbers.
    pub fn numbers(self) -> impl Iterator<Item = u32> + 'a {
        self.octets.chunks_exact(self.width.octets()).map(move |octets| self.width.number(octets))
    }

    /// How many it has: at least one.
    pub const fn count(self) -> usize {
        self.octets.len() / self.width.octets()
    }

    /// What it counts in the decision: a set is one (RFC 4271 section 9.1.2.2 a).
    const fn length(self) -> usize {
        match self.kind {
            Kind::Set => 1,
            Kind::Sequence => self.count(),
        }
    }
}

/// A path, checked: whoever walks over it meets no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsPath<'a> {
    octets: Cow<'a, [u8]>,
    width: Width,
}

fn segment(width: Width, input: &[u8]) -> Parsed<'_, (u8, &[u8])> {
    let (input, (kind, count)) = (be_u8, be_u8).parse(input)?;
    let (input, octets) = take(usize::from(count) * width.octets())(input)?;
    Ok((input, (kind, octets)))
}

fn put_segment(kind: Kind, numbers: &[u32], width: Width, out: &mut Vec<u8>) {
    // A segment counts its numbers in one octet.
    for numbers in numbers.chunks(255) {
        out.put_u8(match kind {
            Kind::Set => 1,
            Kind::Sequence => 2,
        });
        out.put_u8(length8(numbers.len()));
        for &asn in numbers {
            width.put(asn, out);
        }
    }
}

impl<'a> AsPath<'a> {
    /// The empty path: what an iBGP neighbour is told of our own routes.
    pub const fn empty() -> Self {
        Self { octets: Cow::Borrowed(&[]), width: Width::Four }
    }

    /// A path of numbers of `width`; `None` if it is malformed (RFC 7606 section 7.2): an unknown or empty segment, one
    /// that does not end where the path does, or AS 0 (RFC 7607).
    pub fn parse(octets: &'a [u8], width: Width) -> Option<Self> {
        let mut rest = octets;
        while !rest.is_empty() {
            let (after, (kind, numbers)) = segment(width, rest).ok()?;
            let zero = numbers.chunks_exact(width.octets()).any(|number| width.number(number) == 0);
            if !matches!(kind, 1 | 2) || numbers.is_empty() || zero {
                return None;
            }
            rest = after;
        }
        Some(Self { octets: Cow::Borrowed(octets), width })
    }

    /// A path of one sequence.
    #[cfg(test)]
    pub fn sequence(numbers: &[u32]) -> AsPath<'static> {
        let mut octets = Vec::new();
        put_segment(Kind::Sequence, numbers, Width::Four, &mut octets);
        AsPath { octets: Cow::Owned(octets), width: Width::Four }
    }

    /// Its segments.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        let (width, mut rest) = (self.width, &*self.octets);
        std::iter::from_fn(move || {
            let (after, (kind, octets)) = segment(width, rest).ok()?;
            rest = after;
            let kind = if kind == 1 { Kind::Set } else { Kind::Sequence };
            Some(Segment { kind, octets, width })
        })
    }

    /// All its numbers.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.segments().flat_map(Segment::numbers)
    }

    /// Its length in the decision.
    pub fn length(&self) -> usize {
        self.segments().map(Segment::length).sum()
    }

    /// The neighbouring AS: the first, if the path begins with a sequence (RFC 4271 section 9.1.2.2 c).
    pub fn first(&self) -> Option<u32> {
        self.segments().next().filter(|segment| segment.kind == Kind::Sequence)?.numbers().next()
    }

    /// Whether a number needs four octets.
    pub fn wide(&self) -> bool {
        self.width == Width::Four && self.numbers().any(|asn| asn > u32::from(u16::MAX))
    }

    /// Appends the segments in numbers of `width`.
    pub fn put(&self, width: Width, out: &mut Vec<u8>) {
        if width == self.width {
            return out.put_slice(&self.octets);
        }
        for segment in self.segments() {
            put_segment(segment.kind, &segment.numbers().collect::<Vec<_>>(), width, out);
        }
    }

    /// The path with `asn` put before it `times` times (RFC 4271 section 5.1.2).
    pub fn prepended(&self, asn: u32, times: usize) -> AsPath<'static> {
        let mut front = vec![asn; times];
        let mut octets = Vec::with_capacity(self.octets.len() + 2 + 4 * times);
        let mut segments = self.segments().peekable();
        // It goes into the first sequence if there is room, else into one of its own.
        let joined = segments.next_if(|first| first.kind == Kind::Sequence && first.count() + times <= 255);
        front.extend(joined.into_iter().flat_map(Segment::numbers));
        put_segment(Kind::Sequence, &front, Width::Four, &mut octets);
        for segment in segments {
            put_segment(segment.kind, &segment.numbers().collect::<Vec<_>>(), Width::Four, &mut octets);
        }
        AsPath { octets: Cow::Owned(octets), width: Width::Four }
    }

    /// The true path, of what an old speaker wrote and of the `AS4_PATH` that passed through it (RFC 6793 section 4.2.3).
    pub fn merged(&self, four: &Self) -> AsPath<'static> {
        let mut octets = Vec::new();
        // More in AS4_PATH than in AS_PATH: it does not belong here.
        let Some(mut lead) = self.length().checked_sub(four.length()) else {
            self.put(Width::Four, &mut octets);
            return AsPath { octets: Cow::Owned(octets), width: Width::Four };
        };
        let mut rest = four.segments().peekable();
        for segment in self.segments() {
            if lead == 0 {
                break;
            }
            let take = if segment.kind == Kind::Set { segment.count() } else { lead };
            let mut numbers: Vec<_> = segment.numbers().take(take).collect();
            lead = lead.saturating_sub(if segment.kind == Kind::Set { 1 } else { numbers.len() });
            if lead == 0 && segment.kind == Kind::Sequence {
                // The sequence was one before it passed through the old speaker.
                let joined = rest.next_if(|next| next.kind == Kind::Sequence && next.count() + numbers.len() <= 255);
                numbers.extend(joined.into_iter().flat_map(Segment::numbers));
            }
            put_segment(segment.kind, &numbers, Width::Four, &mut octets);
        }
        for segment in rest {
            put_segment(segment.kind, &segment.numbers().collect::<Vec<_>>(), Width::Four, &mut octets);
        }
        AsPath { octets: Cow::Owned(octets), width: Width::Four }
    }
}

/// As a human writes it: numbers, sets in braces.
impl std::fmt::Display for AsPath<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, segment) in self.segments().enumerate() {
            let numbers = segment.numbers().map(|asn| asn.to_string()).collect::<Vec<_>>().join(" ");
            let space = if index == 0 { "" } else { " " };
            match segment.kind {
                Kind::Set => write!(f, "{space}{{{numbers}}}")?,
                Kind::Sequence => write!(f, "{space}{numbers}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn path() -> impl Strategy<Value = Vec<u8>> {
        let asn = prop_oneof![1u32..65536, 65536u32..];
        let segment = (prop_oneof![Just(Kind::Set), Just(Kind::Sequence)], prop::collection::vec(asn, 1..6));
        prop::collection::vec(segment, 0..4).prop_map(|segments| {
            let mut octets = Vec::new();
            for (kind, numbers) in segments {
                put_segment(kind, &numbers, Width::Four, &mut octets);
            }
            octets
        })
    }

    #[test]
    fn a_path_is_malformed_when_the_rfc_says_so() {
        let malformed: [&[u8]; 6] =
            [&[2], &[2, 0], &[2, 2, 0, 0, 0, 1], &[3, 1, 0, 0, 0, 1], &[2, 1, 0, 0, 0, 1, 9], &[2, 1, 0, 0, 0, 0]];
        for octets in malformed {
            assert_eq!(AsPath::parse(octets, Width::Four), None, "{octets:?}");
        }
    }

    #[test]
    fn an_old_speaker_put_itself_before_what_it_could_not_read() {
        let old = [2, 3, 0, 100, 0x5b, 0xa0, 0, 7];
        let four = AsPath::sequence(&[4_200_000_000, 7]);
        assert_eq!(AsPath::parse(&old, Width::Two).unwrap().merged(&four).to_string(), "100 4200000000 7");
        let longer = AsPath::sequence(&[1, 2, 3, 4]);
        assert_eq!(AsPath::parse(&old, Width::Two).unwrap().merged(&longer).to_string(), "100 23456 7");
    }

    #[test]
    fn a_set_counts_as_one() {
        let octets = [2, 1, 0, 0, 0, 9, 1, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
        let path = AsPath::parse(&octets, Width::Four).unwrap();
        assert_eq!((path.length(), path.first()), (2, Some(9)));
        assert_eq!(path.prepended(5, 2).to_string(), "5 5 9 {1 2 3}");
    }

    #[test]
    fn a_full_sequence_gets_another_before_it() {
        let full = AsPath::sequence(&[7; 255]);
        let longer = full.prepended(8, 1);
        assert_eq!(longer.length(), 256);
        assert_eq!(longer.segments().map(Segment::count).collect::<Vec<_>>(), [1, 255]);
    }

    proptest! {
        #[test]
        fn through_an_old_speaker_and_back(octets in path()) {
            let path = AsPath::parse(&octets, Width::Four).unwrap();
            let mut old = Vec::new();
            path.put(Width::Two, &mut old);
            let old = AsPath::parse(&old, Width::Two).unwrap();
            prop_assert_eq!(old.length(), path.length());
            prop_assert_eq!(old.merged(&path), path);
        }

        #[test]
        fn any_octets_parse_or_are_refused(octets: Vec<u8>) {
            for width in [Width::Two, Width::Four] {
                if let Some(path) = AsPath::parse(&octets, width) {
                    prop_assert!(path.length() <= path.numbers().count());
                }
            }
        }
    }
}
