//! Packets as others would send them, octet by octet, and what becomes of them.
//!
//! Each is given to a session that is Up; our discriminator is written in the place of `abcdef12`. Packets with digests,
//! which bear no such change, are in `auth`.

use crate::alone::Alone;
use crate::packet::{FINAL, Packet};
use crate::world::{at, config, meta};
use martlet_bfd::{Diagnostic, State};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Discarded,
    Accepted,
    /// Accepted, and answered with the F bit.
    Final,
    /// Accepted, and the session goes Down with diagnostic 3.
    DownByNeighbor,
}
use Outcome::{Accepted, Discarded, DownByNeighbor, Final};

/// Name, octets, and what becomes of it.
const PACKETS: &[(&str, &str, Outcome)] = &[
    ("version-0", "00c0031812345678abcdef12000186a000030d4000000000", Discarded),
    ("version-7", "e0c0031812345678abcdef12000186a000030d4000000000", Discarded),
    ("len-25-auth-clear-24", "20c4031812345678abcdef12000186a000030d4000000000", Discarded),
    ("auth-set-none-configured", "20c4031a12345678abcdef12000186a000030d40000000000103", Discarded),
    ("mult-0", "20c0001812345678abcdef12000186a000030d4000000000", Discarded),
    ("multipoint", "20c1031812345678abcdef12000186a000030d4000000000", Discarded),
    ("my-0", "20c0031800000000abcdef12000186a000030d4000000000", Discarded),
    ("your-0-up", "20c003181234567800000000000186a000030d4000000000", Discarded),
    ("your-0-init", "208003181234567800000000000186a000030d4000000000", Discarded),
    ("your-0-down", "204003181234567800000000000186a000030d4000000000", Accepted),
    ("your-0-admindown", "200003181234567800000000000186a000030d4000000000", Accepted),
    ("your-unknown", "20c0031812345678deadbeef000186a000030d4000000000", Discarded),
    ("empty", "", Discarded),
    ("1-octet", "20", Discarded),
    ("len-0", "20c0030012345678abcdef12000186a000030d4000000000", Discarded),
    ("len-255", "20c003ff12345678abcdef12000186a000030d4000000000", Discarded),
    ("trailing", "20c0031812345678abcdef12000186a000030d40000000000000000000000000", Accepted),
    ("poll", "20e0031812345678abcdef12000186a000030d4000000000", Final),
    ("final", "20d0031812345678abcdef12000186a000030d4000000000", Accepted),
    ("poll-final", "20f0031812345678abcdef12000186a000030d4000000000", Accepted),
    ("demand", "20c2031812345678abcdef12000186a000030d4000000000", Accepted),
    ("cbit", "20c8031812345678abcdef12000186a000030d4000000000", Accepted),
    ("rx-0", "20c0031812345678abcdef12000186a00000000000000000", Accepted),
    ("tx-0", "20c0031812345678abcdef120000000000030d4000000000", Accepted),
    ("tx-max", "20c0ff1812345678abcdef12ffffffffffffffff00000000", Accepted),
    ("down-to-up-skip", "20c0031812345678abcdef12000186a000030d4000000000", Accepted),
    ("admindown", "2700031812345678abcdef12000186a000030d4000000000", DownByNeighbor),
];

fn octets(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    (0..hex.len()).step_by(2).map(digit).collect()
}

#[test]
fn every_packet_of_the_corpus_has_its_outcome() {
    for &(name, hex, outcome) in PACKETS {
        let mut packet = octets(hex);
        let mut end = Alone::up(&config(100, 3));
        let ours = end.ours();
        if packet.get(8..12) == Some(&[0xab, 0xcd, 0xef, 0x12]) {
            packet[8..12].copy_from_slice(&ours.to_be_bytes());
        }
        end.hears_octets(at(1010), &meta(0), &packet);
        let discarded = end.discarded_in_all() > 0;
        let answered = end.sent.iter().any(|(_, sent): &(_, Packet)| sent.has(FINAL));
        let seen = match (discarded, answered, end.state(), end.status().diagnostic) {
            (true, false, State::Up, _) => Discarded,
            (false, true, State::Up, _) => Final,
            (false, false, State::Down, Diagnostic::NeighborSignaledDown) => DownByNeighbor,
            (false, false, ..) => Accepted,
            other => panic!("{name}: {other:?}"),
        };
        // A bare Down or AdminDown takes a session that is Up down as well: it was accepted.
        let as_expected = seen == outcome || (outcome == Accepted && !discarded);
        assert!(as_expected, "{name}: {seen:?} instead of {outcome:?}, {:?}", end.sessions.discarded());
    }
}
