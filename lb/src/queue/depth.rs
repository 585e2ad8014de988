//! How many packets wait in each queue, as the kernel says: `/proc/net/netfilter/nfnetlink_queue`.
//!
//! The file may be read by root alone: an ordinary user sees nothing here, and its `show` and metrics leave the columns out.

use std::collections::BTreeMap;

use nom::Parser as _;
use nom::character::complete::{space0, space1, u16 as number, u64 as count};
use nom::multi::count as times;
use nom::sequence::preceded;

/// Of the network namespace of the calling thread.
const FILE: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";
/// Columns: number, owner, waiting, copy mode, copy range, dropped (full), dropped (unreadable), packets, one.
const COUNTS: usize = 7;

/// What the kernel says of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Packets that wait for a verdict.
    pub waiting: u64,
    /// Packets dropped because too many waited.
    pub dropped_full: u64,
    /// Packets dropped because the socket's buffer was full.
    pub dropped_unsent: u64,
}

/// All queues of this network namespace; none if that cannot be read.
pub fn read() -> BTreeMap<u16, Depth> {
    std::fs::read_to_string(FILE).map(|text| parse(&text)).unwrap_or_default()
}

/// A line that is not understood is left out.
fn parse(text: &str) -> BTreeMap<u16, Depth> {
    let line = |line: &str| {
        let mut columns = (preceded(space0, number), times(preceded(space1, count), COUNTS));
        let (_, (queue, counts)): (&str, (u16, Vec<u64>)) =
            columns.parse(line).map_err(|_: nom::Err<nom::error::Error<&str>>| ()).ok()?;
        let [_owner, waiting, _mode, _range, dropped_full, dropped_unsent, _packets] = *counts.first_chunk()?;
        Some((queue, Depth { waiting, dropped_full, dropped_unsent }))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_and_dropped_packets_are_read_and_nonsense_is_not() {
        let text = "    0   4711    12 2   128     3     4    90021  1\n   65  4294967    0 2 65535     0     0        0  1\nx\n 7 1\n";
        let depths = parse(text);
        assert_eq!(depths[&0], Depth { waiting: 12, dropped_full: 3, dropped_unsent: 4 });
        assert_eq!(depths[&65], Depth::default());
        assert_eq!(depths.len(), 2);
    }
}
