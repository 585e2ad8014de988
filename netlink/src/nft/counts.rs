//! The elements of a set with counters, as the kernel lists them. Pure.

use std::collections::BTreeMap;

/// The headers of netlink and of netfilter, octets.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
/// Attributes of a list, of an element, of an expression and of a counter (`linux/netfilter/nf_tables.h`).
const LIST_ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_EXPRESSION: u16 = 7;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const COUNTER_OCTETS: u16 = 1;
const COUNTER_PACKETS: u16 = 2;

/// What a message of a dump is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// There may be others.
    More,
    /// The last.
    Done,
    /// A positive `errno`.
    Failed(i32),
}

/// To which request a message belongs.
pub(super) fn sequence(message: &[u8]) -> Option<u32> {
    message.get(8..12)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// Adds the counters of a message.
pub(super) fn read(message: &[u8], counts: &mut BTreeMap<u32, (u64, u64)>) -> Part {
    let kind = message.get(4..6).and_then(<[u8]>::first_chunk).copied().map(u16::from_ne_bytes);
    let code = message.get(HEADER..).and_then(<[u8]>::first_chunk).copied().map_or(0, i32::from_ne_bytes);
    match kind {
        Some(TYPE_DONE) => Part::Done,
        Some(TYPE_ERROR) => Part::Failed(code.saturating_neg()),
        _ => {
            let body = message.get(HEADERS..).unwrap_or_default();
            for elements in attributes(body, LIST_ELEMENTS) {
                counts.extend(all(elements).filter_map(|(_, element)| {
                    let key = attributes(element, ELEMENT_KEY).next()?;
                    let mark = attributes(key, DATA_VALUE).next()?.first_chunk().copied().map(u32::from_ne_bytes)?;
                    let expression = attributes(element, ELEMENT_EXPRESSION).next()?;
                    let counter = attributes(expression, EXPRESSION_DATA).next()?;
                    let number =
                        |kind| attributes(counter, kind).next()?.first_chunk().copied().map(u64::from_be_bytes);
                    Some((mark, (number(COUNTER_PACKETS)?, number(COUNTER_OCTETS)?)))
                }));
            }
            Part::More
        }
    }
}

/// The values of all attributes of a kind.
fn attributes(octets: &[u8], kind: u16) -> impl Iterator<Item = &[u8]> {
    all(octets).filter(move |(found, _)| *found == kind).map(|(_, value)| value)
}

/// Kind and value of each attribute; what remains after a broken length is dropped.
fn all(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *octets.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = octets.get(4..length)?;
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
        // Without "nested" and "byte order".
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    })
}
