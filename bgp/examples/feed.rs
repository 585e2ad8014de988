//! What a full table costs: a million prefixes come in, and go out to a second neighbour. CPU and memory of this process.
//!
//! `cargo run --profile lab -p martlet-bgp --example feed [PREFIXES]`: realistic sharing of attributes, 17.6 sets for 100
//! prefixes, in UPDATEs as a gateway sends them.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::read_to_string;
use std::net::Ipv4Addr;

use bytes::BytesMut;
use martlet_bgp::{
    ConnectionId, Endpoints, Export, Family, Import, Input, Local, NeighborConfig, NeighborId, Output, Speaker, Ticket,
};
use martlet_clock::{Dice, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn message(kind: u8, body: &[u8]) -> Outcome<Vec<u8>> {
    Ok([&[0xff; 16][..], &u16::try_from(19 + body.len())?.to_be_bytes(), &[kind], body].concat())
}

fn open(asn: u16, last: u8) -> Outcome<Vec<u8>> {
    let mut body = vec![4];
    body.extend(asn.to_be_bytes());
    body.extend([0, 90, 10, 0, 0, last, 14, 2, 12, 1, 4, 0, 1, 0, 1, 65, 4, 0, 0]);
    body.extend(asn.to_be_bytes());
    message(1, &body)
}

/// The feed: a sequence of UPDATEs with `count` prefixes in all.
fn feed(count: u32) -> Outcome<Vec<u8>> {
    let mut dice = Dice::new(7);
    let mut number = |below: u32| u32::try_from(dice.below(below.into())).unwrap_or(0);
    let mut out = Vec::new();
    let mut sent = 0;
    while sent < count {
        let mut path = vec![2, 0, 0, 0, 0xfd, 0xe9];
        let length = 2 + number(4);
        for _ in 0..length {
            path.extend((1 + number(400_000)).to_be_bytes());
        }
        path[1] = u8::try_from(length + 1)?;
        let mut attributes = vec![0x40, 1, 1, 0, 0x40, 2, u8::try_from(path.len())?];
        attributes.extend(path);
        attributes.extend([0x40, 3, 4, 10, 0, 0, 2]);
        let communities = number(4);
        if communities > 0 {
            attributes.extend([0xc0, 8, u8::try_from(communities * 4)?]);
            (0..communities).for_each(|_| attributes.extend((0x00ff_0000 + number(60_000)).to_be_bytes()));
        }
        let mut nlri = Vec::new();
        // On average 1 / 0.176 prefixes share a set.
        for _ in 0..(1 + number(10)).min(count - sent) {
            // Every /24 once, in an order that is not sorted.
            let network = (0x0b00_0000u32 >> 8) + (sent.wrapping_mul(7_919) % 1_048_576);
            nlri.push(24);
            nlri.extend(network.to_be_bytes().get(1..).unwrap_or_default());
            sent += 1;
        }
        let mut body = vec![0, 0];
        body.extend(u16::try_from(attributes.len())?.to_be_bytes());
        body.extend(attributes);
        body.extend(nlri);
        out.extend(message(2, &body)?);
    }
    Ok(out)
}

/// Milliseconds of CPU so far.
fn cpu_ms() -> Outcome<u64> {
    let text = read_to_string("/proc/self/schedstat")?;
    Ok(text.split_whitespace().next().ok_or("schedstat")?.parse::<u64>()? / 1_000_000)
}

fn memory_mb(field: &str) -> Outcome<u64> {
    let text = read_to_string("/proc/self/status")?;
    let line = text.lines().find(|line| line.starts_with(field)).ok_or("status")?;
    Ok(line.split_whitespace().nth(1).ok_or("status")?.parse::<u64>()? / 1024)
}

fn outputs(speaker: &mut Speaker) -> Option<ConnectionId> {
    let mut accepted = None;
    while let Some(output) = speaker.poll() {
        if let Output::Accept(_, id) = output {
            accepted = Some(id);
        }
    }
    accepted
}

fn establish(speaker: &mut Speaker, now: Instant, last: u8, asn: u16) -> Outcome<ConnectionId> {
    let name = NeighborId::new(&format!("n{last}"));
    let ends = Endpoints {
        local: "10.0.0.1:179".parse()?,
        remote: format!("10.0.0.{last}:179").parse()?,
        local_link_local: None,
        local_other: None,
    };
    speaker.handle(now, Input::Incoming(Ticket(last.into()), &name, ends));
    let id = outputs(speaker).ok_or("not accepted")?;
    speaker.handle(now, Input::Received(id, &open(asn, last)?));
    speaker.handle(now, Input::Received(id, &message(4, &[])?));
    outputs(speaker);
    Ok(id)
}

fn main() -> Outcome<()> {
    let count: u32 = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let now = Instant::from_millis(1);
    let mut speaker = Speaker::new(Local { router_id: Ipv4Addr::new(10, 0, 0, 1), forwarding_preserved: false }, 1);
    let config = |asn| NeighborConfig {
        passive: true,
        export: Export { transit: Import::All, ..Export::default() },
        ..NeighborConfig::new(65000, asn, [Family::Ipv4])
    };
    let all = BTreeMap::from([(NeighborId::new("n2"), config(65001)), (NeighborId::new("n3"), config(65002))]);
    speaker.handle(now, Input::SetNeighbors(&all));
    speaker.handle(now, Input::SetAnnounced(&std::collections::BTreeSet::new()));
    let from = establish(&mut speaker, now, 2, 65001)?;
    let stream = feed(count)?;
    let (start, idle) = (cpu_ms()?, memory_mb("VmRSS")?);
    for part in stream.chunks(65536) {
        speaker.handle(now, Input::Received(from, part));
        outputs(&mut speaker);
        while !speaker.changed(1000).is_empty() {}
    }
    let (learned, held) = (cpu_ms()?, memory_mb("VmRSS")?);
    let routes = speaker.prefixes().count();
    println!(
        "receive {routes} prefixes, {} octets: {} ms CPU, {} MB more, peak {} MB",
        stream.len(),
        learned - start,
        held - idle,
        memory_mb("VmHWM")?
    );
    let to = establish(&mut speaker, now, 3, 65002)?;
    let start = cpu_ms()?;
    let mut sent = 0;
    let mut buffer = BytesMut::new();
    loop {
        let more = speaker.transmit(now, to, &mut buffer, 65536);
        sent += buffer.len();
        buffer.clear();
        if !more {
            break;
        }
    }
    let counters = speaker.counters();
    let told = counters.get(&NeighborId::new("n3")).copied().unwrap_or_default();
    println!(
        "tell {} prefixes in {} UPDATEs, {sent} octets: {} ms CPU, {} MB in all",
        told.prefixes_out,
        told.updates_out,
        cpu_ms()? - start,
        memory_mb("VmRSS")?
    );
    let start = cpu_ms()?;
    speaker.handle(now, Input::Reset(&NeighborId::new("n2"), ""));
    println!("lose all of them: {} ms CPU", cpu_ms()? - start);
    Ok(())
}
