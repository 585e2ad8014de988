//! Fragments in any order, packets that do not fit, packets that nobody wants: what becomes of them.

use std::sync::Arc;

use martlet_api::view::{Route, TransportProtocol};
use proptest::prelude::*;

use super::*;
use crate::engine::{Backend, Policy};
use crate::flow::Classifier;
use crate::hash::Seed;
use crate::maglev::{Size, Table};
use crate::packet::protocol;

/// UDP to port 4000 of either VIP goes to endpoints 0 to 9; through links of 1500 octets.
fn tables(policy: Policy) -> Tables {
    let route = Route {
        destinations: ["20.0.0.1/32", "2000::1/128"].map(|vip| vip.parse().unwrap()).into(),
        protocols: [TransportProtocol::Udp].into(),
        destination_ports: [(4000, 4000)].into(),
        ..Route::default()
    };
    let table = Arc::new(Table::new(Size::new(251).unwrap(), Seed(7), 0..10));
    let backend = Backend { service: "a".into(), first_mark: 5000, marks: 10, ipv4: Arc::clone(&table), ipv6: table };
    let classifier = Classifier::new([(&"route".into(), &route)]);
    Tables::new(Seed(7), classifier, vec![Some(Arc::new(backend))]).with(vec![1500; 10], policy)
}

fn table_mode() -> Tables {
    tables(Policy::default())
}

/// A UDP datagram of a client port in fragments of `size` octets each.
fn fragments(six: bool, id: u8, port: u16, size: usize, destination_port: u16) -> Vec<Vec<u8>> {
    let mut datagram = [port.to_be_bytes(), destination_port.to_be_bytes()].concat();
    datagram.resize(size * 3 - 5, 0);
    let count = datagram.chunks(size).count();
    let cut = datagram.chunks(size).enumerate().map(|(number, part)| {
        let more = number + 1 < count;
        let offset = u16::try_from(number * size / 8).unwrap();
        let address = |text: &str| match text.parse().unwrap() {
            std::net::IpAddr::V4(address) => address.octets().to_vec(),
            std::net::IpAddr::V6(address) => address.octets().to_vec(),
        };
        if six {
            let place = (offset << 3 | u16::from(more)).to_be_bytes();
            let length = u16::try_from(part.len() + 8).unwrap().to_be_bytes();
            let header = [&[0x60, 0, 0, 0], &length[..], &[44, 64], &address("fd00::1"), &address("2000::1")].concat();
            [&header, &[17, 0][..], &place, &[0, 0, 0, id], part].concat()
        } else {
            let place = (offset | if more { 0x2000 } else { 0 }).to_be_bytes();
            let length = u16::try_from(part.len() + 20).unwrap().to_be_bytes();
            let header = [&[0x45, 0], &length[..], &[0, id], &place, &[64, 17, 0, 0]].concat();
            [&header, &address("192.168.1.1")[..], &address("20.0.0.1"), part].concat()
        }
    });
    cut.collect()
}

/// Every packet's verdict in the end, by its number, after they came in this order.
fn play(tables: &Tables, packets: &[Vec<u8>], order: &[usize]) -> Vec<Verdict> {
    let table = Mutex::new(Fragments::default());
    let mut verdicts = vec![Verdict::Hold; packets.len()];
    for number in order {
        let id = u32::try_from(*number).unwrap();
        // The queue of a packet is whichever its CPU has.
        let queued = Queued { queue: u16::try_from(number % 3).unwrap(), id, octets: &packets[*number], gso: false };
        let outcome = verdict(tables, &table, || Instant::from_millis(1), queued);
        verdicts[*number] = outcome.verdict;
        for (held, verdict) in outcome.released {
            assert_eq!(usize::from(held.queue), usize::try_from(held.id).unwrap() % 3);
            verdicts[usize::try_from(held.id).unwrap()] = verdict;
        }
    }
    verdicts
}

fn mark(verdict: Verdict) -> Option<u32> {
    match verdict {
        Verdict::Forward(choice, _) => Some(choice.mark),
        _ => None,
    }
}

proptest! {
    #[test]
    fn all_fragments_of_a_datagram_go_to_one_endpoint_in_any_order(
        six: bool, ports in prop::collection::vec(any::<u16>(), 1..8), seed in any::<u64>(),
    ) {
        let tables = table_mode();
        let mut packets = Vec::new();
        for (id, port) in (0..).zip(&ports) {
            packets.extend(fragments(six, id, *port, 64, 4000));
        }
        let mut order: Vec<usize> = (0..packets.len()).collect();
        order.sort_by_key(|number| crate::hash::jhash(&number.to_le_bytes(), u32::try_from(seed & 0xffff_ffff).unwrap()));
        let verdicts = play(&tables, &packets, &order);
        for (datagram, of_datagram) in verdicts.chunks(3).enumerate() {
            let whole = tables.fate(&parse(&packets[datagram * 3]).unwrap()).unwrap();
            prop_assert!(of_datagram.iter().all(|verdict| mark(*verdict) == Some(whole.mark)), "{:?}", of_datagram);
        }
    }
}

#[test]
fn a_datagram_that_nobody_takes_is_dropped_whole() {
    for order in [[0, 1, 2], [2, 1, 0]] {
        let verdicts = play(&table_mode(), &fragments(false, 1, 9, 64, 4001), &order);
        assert_eq!(verdicts, [Verdict::Drop(Reason::NoRoute); 3]);
    }
}

#[test]
fn by_addresses_each_fragment_finds_the_endpoint_alone() {
    let tables = tables(Policy { fragments: FragmentMode::Addresses, ..Policy::default() });
    for six in [false, true] {
        let one = fragments(six, 1, 1000, 64, 4000);
        let other = fragments(six, 2, 2000, 64, 4000);
        let marks: Vec<Option<u32>> =
            one.iter().chain(&other).map(|packet| mark(play(&tables, std::slice::from_ref(packet), &[0])[0])).collect();
        assert!(marks[0].is_some() && marks.iter().all(|mark| *mark == marks[0]), "{marks:?}");
    }
}

/// A whole UDP packet of `length` octets, of which 128 are copied.
fn whole(six: bool, length: usize, dont_fragment: bool) -> Vec<u8> {
    let mut packet = fragments(six, 1, 1000, 1024, 4000).remove(0);
    if six {
        packet.drain(40..48);
        packet[6] = protocol::UDP;
        packet[4..6].copy_from_slice(&u16::try_from(length - 40).unwrap().to_be_bytes());
    } else {
        packet[6..8].copy_from_slice(&[if dont_fragment { 0x40 } else { 0 }, 0]);
        packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    }
    packet.truncate(128);
    packet
}

fn alone(tables: &Tables, octets: &[u8], gso: bool) -> Outcome {
    let queued = Queued { queue: 0, id: 0, octets, gso };
    verdict(tables, &Mutex::default(), || panic!("no clock needed"), queued)
}

#[test]
fn what_does_not_fit_is_answered_by_the_vip() {
    let tables = table_mode();
    for six in [false, true] {
        assert!(mark(alone(&tables, &whole(six, 1500, true), false).verdict).is_some());
        let outcome = alone(&tables, &whole(six, 1501, true), false);
        assert_eq!(outcome.verdict, Verdict::Drop(Reason::TooBig));
        let answer = outcome.answer.unwrap();
        let answer = parse(&answer).unwrap();
        assert_eq!(answer.source, if six { "2000::1" } else { "20.0.0.1" }.parse::<std::net::IpAddr>().unwrap());
        assert!(mark(alone(&tables, &whole(six, 9000, true), true).verdict).is_some(), "segments fit");
    }
    assert!(mark(alone(&tables, &whole(false, 9000, false), false).verdict).is_some(), "the kernel may fragment it");
}

#[test]
fn without_a_route_silence_or_a_word() {
    let mut nobody = whole(false, 100, true);
    nobody[22..24].copy_from_slice(&53_u16.to_be_bytes());
    assert_eq!(alone(&table_mode(), &nobody, false), Verdict::Drop(Reason::NoRoute).into());
    let tables = tables(Policy { reject: true, ..Policy::default() });
    let outcome = alone(&tables, &nobody, false);
    assert_eq!(outcome.verdict, Verdict::Drop(Reason::NoRoute));
    assert_eq!(&outcome.answer.unwrap()[20..22], &[3, 3], "port unreachable");
    let malformed = alone(&tables, &[0x45], false);
    assert_eq!((malformed.answer, matches!(malformed.verdict, Verdict::Drop(Reason::Malformed(_)))), (None, true));
}
