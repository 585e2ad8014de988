//! A stream of octets becomes messages, or a Message Header Error (RFC 4271 section 6.1).
//!
//! A message that lies whole in what was received is not copied; the rest of a cut one is held, at most one message.
#![warn(clippy::indexing_slicing)]

use nom::Parser;
use nom::bytes::complete::take;
use nom::number::complete::{be_u8, be_u16};

use crate::wire::notification::{MESSAGE_HEADER, Notification};
use crate::wire::{HEADER, MAXIMUM, MAXIMUM_EXTENDED, Parsed, Type};

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The marker is not all ones.
    #[error("connection not synchronized")]
    NotSynchronized,
    /// A length that the message cannot have.
    #[error("bad message length {0}")]
    Length(u16),
    /// A type that nobody knows.
    #[error("bad message type {0}")]
    Type(u8),
}

impl HeaderError {
    /// What the neighbour is told.
    pub fn notification(self) -> Notification {
        let (subcode, data) = match self {
            Self::NotSynchronized => (1, Vec::new()),
            Self::Length(length) => (2, length.to_be_bytes().to_vec()),
            Self::Type(number) => (3, vec![number]),
        };
        Notification { code: MESSAGE_HEADER, subcode, data }
    }
}

/// One message: its type, and its body, which is as long as the type needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its type.
    pub kind: Type,
    /// What follows the header.
    pub body: &'a [u8],
}

/// Cuts a stream into messages.
#[derive(Clone, Debug, Default)]
pub struct Framer {
    held: Vec<u8>,
    whole: bool,
    /// Whether messages of more than 4096 octets were negotiated (RFC 8654).
    pub extended: bool,
}

fn fields(header: &[u8]) -> Parsed<'_, (&[u8], u16, u8)> {
    (take(16usize), be_u16, be_u8).parse(header)
}

/// The type and the length that a header tells.
fn header(octets: &[u8], extended: bool) -> Result<Option<(Type, usize)>, HeaderError> {
    let Ok((_, (marker, length, number))) = fields(octets) else { return Ok(None) };
    if marker != [0xff; 16] {
        return Err(HeaderError::NotSynchronized);
    }
    let (least, most) = match Type::new(number) {
        Some(Type::Open) => (29, MAXIMUM),
        Some(Type::Keepalive) => (HEADER, HEADER),
        Some(Type::Update | Type::RouteRefresh) => (23, if extended { MAXIMUM_EXTENDED } else { MAXIMUM }),
        Some(Type::Notification) => (21, if extended { MAXIMUM_EXTENDED } else { MAXIMUM }),
        None => (HEADER, if extended { MAXIMUM_EXTENDED } else { MAXIMUM }),
    };
    if !(least..=most).contains(&usize::from(length)) {
        return Err(HeaderError::Length(length));
    }
    let kind = Type::new(number).ok_or(HeaderError::Type(number))?;
    Ok(Some((kind, usize::from(length))))
}

impl Framer {
    /// The next message; what it takes from `input` is gone from there. `None` when more is needed: `input` is then empty.
    pub fn next<'f, 'i: 'f>(&'f mut self, input: &mut &'i [u8]) -> Result<Option<Message<'f>>, HeaderError> {
        if std::mem::take(&mut self.whole) {
            self.held.clear();
        }
        if self.held.is_empty() {
            let received = *input;
            if let Some((kind, length)) = header(received, self.extended)?
                && let Some((message, rest)) = received.split_at_checked(length)
            {
                *input = rest;
                return Ok(message.get(HEADER..).map(|body| Message { kind, body }));
            }
        }
        self.fill(HEADER, input);
        let Some((kind, length)) = header(&self.held, self.extended)? else { return Ok(None) };
        self.fill(length, input);
        self.whole = self.held.len() == length;
        Ok(self.held.get(HEADER..).filter(|_| self.whole).map(|body| Message { kind, body }))
    }

    /// Holds more of `input`, until `length` octets are held.
    fn fill(&mut self, length: usize, input: &mut &[u8]) {
        let wanted = length.saturating_sub(self.held.len()).min(input.len());
        let (taken, rest) = input.split_at_checked(wanted).unwrap_or((input, &[]));
        self.held.extend_from_slice(taken);
        *input = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(length: u16, kind: u8) -> Vec<u8> {
        let mut octets = vec![0xff; 16];
        octets.extend(length.to_be_bytes());
        octets.push(kind);
        octets.resize(usize::from(length).max(HEADER), 7);
        octets
    }

    fn first(octets: &[u8], extended: bool) -> Result<bool, HeaderError> {
        let mut framer = Framer { extended, ..Framer::default() };
        let mut input = octets;
        framer.next(&mut input).map(|message| message.is_some())
    }

    #[test]
    fn every_type_has_its_shortest_and_longest_message() {
        for (kind, least, most, extended) in
            [(1, 29, 4096, 4096), (2, 23, 4096, 65535), (3, 21, 4096, 65535), (4, 19, 19, 19), (5, 23, 4096, 65535)]
        {
            for (longest, negotiated) in [(most, false), (extended, true)] {
                assert_eq!(first(&message(least, kind), negotiated), Ok(true));
                assert_eq!(first(&message(longest, kind), negotiated), Ok(true));
                assert_eq!(first(&message(least - 1, kind), negotiated), Err(HeaderError::Length(least - 1)));
                if longest < 65535 {
                    assert_eq!(first(&message(longest + 1, kind), negotiated), Err(HeaderError::Length(longest + 1)));
                }
            }
        }
    }

    #[test]
    fn a_header_error_knows_its_notification() {
        let mut octets = message(19, 4);
        octets[3] = 0;
        assert_eq!(first(&octets, false), Err(HeaderError::NotSynchronized));
        assert_eq!(first(&message(19, 6), false), Err(HeaderError::Type(6)));
        assert_eq!(HeaderError::Type(6).notification(), Notification { code: 1, subcode: 3, data: vec![6] });
        assert_eq!(HeaderError::Length(18).notification(), Notification { code: 1, subcode: 2, data: vec![0, 18] });
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_the_stream_is_cut(
            lengths in prop::collection::vec(23u16..4096, 1..5),
            cuts in prop::collection::vec(1usize..3000, 1..20),
        ) {
            let stream: Vec<u8> = lengths.iter().flat_map(|&length| message(length, 2)).collect();
            let mut framer = Framer::default();
            let mut seen = Vec::new();
            let mut rest = &stream[..];
            let mut cuts = cuts.into_iter().cycle();
            while !rest.is_empty() {
                let (mut part, after) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                rest = after;
                while let Some(message) = framer.next(&mut part).unwrap() {
                    seen.push(message.body.len());
                }
                prop_assert!(part.is_empty());
            }
            prop_assert_eq!(seen, lengths.iter().map(|&length| usize::from(length) - HEADER).collect::<Vec<_>>());
        }

        #[test]
        fn any_stream_gives_messages_or_an_error(stream: Vec<u8>) {
            let mut framer = Framer::default();
            let mut input = &stream[..];
            while let Ok(Some(_)) = framer.next(&mut input) {}
        }
    }
}
