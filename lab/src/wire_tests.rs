//! Tests of the lab's own reading of captures, on frames built by hand.

use super::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 150);
const POD: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 1);

fn header() -> Vec<u8> {
    let mut bytes = 0xa1b2_3c4d_u32.to_le_bytes().to_vec();
    bytes.extend([0; 16]);
    bytes.extend(1_u32.to_le_bytes());
    bytes
}

fn frame(second: u32, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).unwrap();
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    frame.extend(POD.octets());
    frame.extend(GATEWAY.octets());
    frame.extend(payload);
    let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
    let mut record = second.to_le_bytes().to_vec();
    record.extend(5_u32.to_le_bytes());
    record.extend(length);
    record.extend(length);
    record.extend(frame);
    record
}

fn segment(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 50000_u16.to_be_bytes().to_vec();
    bytes.extend(10179_u16.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xff; 16];
    bytes.extend(u16::try_from(19 + body.len()).unwrap().to_be_bytes());
    bytes.push(kind);
    bytes.extend(body);
    bytes
}

fn vip() -> Vec<IpNet> {
    vec!["20.0.0.1/32".parse().unwrap()]
}

fn announcement() -> Vec<u8> {
    message(2, &[0, 0, 0, 4, 0x40, 1, 1, 0, 32, 20, 0, 0, 1])
}

fn read(records: &[Vec<u8>]) -> Vec<(u64, What)> {
    let mut decoder = Decoder::new(10179);
    decoder.push(&header()).unwrap();
    for record in records {
        decoder.push(record).unwrap();
    }
    let second = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap().as_secs();
    decoder.events().iter().map(|event| (second(event.at), event.what.clone())).collect()
}

#[test]
fn an_update_in_two_segments_has_the_time_of_the_second() {
    let update = announcement();
    let (head, tail) = update.split_at(25);
    let got = read(&[
        frame(1, 6, &segment(99, 2, &[])),
        frame(2, 6, &segment(100, 0, head)),
        frame(3, 6, &segment(125, 0, tail)),
    ]);
    assert_eq!(got, [(3, What::Update { announced: vip(), withdrawn: vec![] })]);
}

#[test]
fn segments_that_come_twice_or_in_the_wrong_order_change_nothing() {
    let update = announcement();
    let (head, tail) = update.split_at(25);
    let got = read(&[
        frame(1, 6, &segment(99, 2, &[])),
        frame(2, 6, &segment(125, 0, tail)),
        frame(3, 6, &segment(100, 0, head)),
        frame(4, 6, &segment(100, 0, head)),
        frame(5, 6, &segment(100 + u32::try_from(update.len()).unwrap(), 0, &message(4, &[]))),
    ]);
    assert_eq!(got, [(3, What::Update { announced: vip(), withdrawn: vec![] }), (5, What::Keepalive)]);
}

#[test]
fn a_file_that_grows_octet_by_octet_is_read_the_same() {
    let bytes = [header(), frame(7, 6, &segment(1, 0, &announcement()))].concat();
    let mut decoder = Decoder::new(10179);
    for byte in bytes {
        decoder.push(&[byte]).unwrap();
    }
    assert_eq!(decoder.events().len(), 1);
}

#[test]
fn withdrawn_routes_of_both_families_are_found() {
    let ipv6 = [0x80, 15, 20, 0, 2, 1, 128, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let body = [&[0, 5, 32, 20, 0, 0, 1, 0, 23][..], &ipv6].concat();
    let withdrawn = vec!["20.0.0.1/32".parse().unwrap(), "2000::1/128".parse().unwrap()];
    let got = read(&[frame(1, 6, &segment(1, 0, &message(2, &body)))]);
    assert_eq!(got, [(1, What::Update { announced: vec![], withdrawn })]);
}

#[test]
fn the_end_of_a_connection_is_one_event() {
    let got = read(&[
        frame(1, 6, &segment(1, 0, &message(3, &[6, 2]))),
        frame(2, 6, &segment(22, 1, &[])),
        frame(3, 6, &segment(23, 4, &[])),
    ]);
    assert_eq!(got, [(1, What::Notification(6, 2)), (2, What::Closed)]);
}

#[test]
fn the_state_of_a_bfd_packet_is_read() {
    let datagram = [&[0xc0, 0, 0x0e, 0xc8, 0, 32, 0, 0][..], &[0x20, 0xc0, 5, 24], &[0; 20]].concat();
    assert_eq!(read(&[frame(1, 17, &datagram)]), [(1, What::Bfd(3))]);
}
