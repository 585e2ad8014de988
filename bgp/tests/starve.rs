//! A neighbour with a full table does not keep the others waiting: work is bounded by the octets of one turn, not by a table.

mod puppet;

use std::collections::BTreeSet;

use bytes::BytesMut;
use martlet_bgp::{ConnectionId, Export, Family, Import, Input, NeighborConfig, Output};
use puppet::{Stage, modern, read, update, usual};

/// What a driver reads of one connection in a turn, and offers for sending.
const TURN: usize = 64 * 1024;
const PREFIXES: u32 = 1_000_000;

/// A million /24, in UPDATEs of a hundred.
fn feed() -> Vec<u8> {
    let mut out = Vec::new();
    for block in 0..PREFIXES / 100 {
        let nlri: Vec<u8> = (0..100)
            .flat_map(|one| {
                let [_, a, b, c] = (0x0b_0000 + block * 100 + one).to_be_bytes();
                [24, a, b, c]
            })
            .collect();
        out.extend(update(&[], &usual(), &nlri));
    }
    out
}

/// Hands out one turn of sending of each connection that has something to send; what came, by connection.
fn turn(stage: &mut Stage, ready: &mut BTreeSet<ConnectionId>) -> Vec<(ConnectionId, BytesMut)> {
    let mut outputs = 0;
    while let Some(output) = stage.speaker.poll() {
        outputs += 1;
        match output {
            Output::Ready(id) => drop(ready.insert(id)),
            Output::Close(id) => panic!("{id:?} was closed"),
            _ => {}
        }
    }
    assert!(outputs < 4_000, "{outputs} outputs of one turn");
    let mut sent = Vec::new();
    for id in std::mem::take(ready) {
        let mut buffer = BytesMut::new();
        if stage.speaker.transmit(stage.now, id, &mut buffer, TURN) {
            ready.insert(id);
        }
        assert!(buffer.len() <= TURN + 4096, "{} octets in one turn", buffer.len());
        sent.push((id, buffer));
    }
    sent
}

/// Whether an UPDATE among these octets announces this prefix.
fn announces(mut octets: &[u8], prefix: &str) -> bool {
    while octets.len() >= 19 {
        let length = usize::from(u16::from_be_bytes([octets[16], octets[17]]));
        if octets[18] == 2 && read(&octets[19..length]).nlri.contains(prefix) {
            return true;
        }
        octets = &octets[length..];
    }
    false
}

#[test]
fn a_million_prefixes_of_one_neighbour_keep_no_other_waiting() {
    let config = |asn| NeighborConfig::new(65000, asn, [Family::Ipv4]);
    let all = Export { transit: Import::All, ..Export::default() };
    let mut stage =
        Stage::new([(2, config(65001)), (3, NeighborConfig { export: all, ..config(65003) }), (4, config(65004))]);
    let two = stage.establish(2, 65001, &modern(65001));
    let three = stage.establish(3, 65003, &modern(65003));
    let four = stage.establish(4, 65004, &modern(65004));
    let feed = feed();
    let mut ready = BTreeSet::new();
    let mut passed = 0;
    for (number, chunk) in feed.chunks(TURN).enumerate() {
        stage.speaker.handle(stage.now, Input::Received(two, chunk));
        // In every 16th turn a VIP comes: both others hear of it in that very turn, whatever waits for them.
        let vip = format!("20.0.{number}.1/32");
        if number % 16 == 0 {
            stage.speaker.handle(stage.now, Input::SetAnnounced(&BTreeSet::from([vip.parse().unwrap()])));
        }
        let sent = turn(&mut stage, &mut ready);
        passed += sent.iter().filter(|(id, _)| *id == three).map(|(_, octets)| octets.len()).sum::<usize>();
        if number % 16 == 0 {
            for listener in [three, four] {
                let heard = sent.iter().any(|(id, octets)| *id == listener && announces(octets, &vip));
                assert!(heard, "{listener:?} did not hear of {vip} in turn {number}");
            }
        }
    }
    assert!(passed > 2_000_000, "{passed} octets were passed on while it was fed");
    // A neighbour that comes now is told a million routes: its first look at them is bounded too, and a VIP goes first.
    let late = stage.speaker.status().len();
    assert_eq!(late, 3);
    stage.handle(Input::Closed(three, martlet_bgp::CloseReason::Reset));
    stage.room = 0;
    let three = stage.establish(3, 65003, &modern(65003));
    stage.speaker.handle(stage.now, Input::SetAnnounced(&BTreeSet::from(["20.9.9.9/32".parse().unwrap()])));
    let mut ready = BTreeSet::from([three]);
    let mut turns = 0;
    loop {
        turns += 1;
        assert!(turns < 3, "the VIP waits behind the table");
        let sent = turn(&mut stage, &mut ready);
        if sent.iter().any(|(id, octets)| *id == three && announces(octets, "20.9.9.9/32")) {
            break;
        }
    }
}
