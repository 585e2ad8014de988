//! Bytes of a pcap file -> events: Ethernet, IPv4 and IPv6, UDP (BFD control packets), TCP streams put together, BGP messages.
//!
//! Independent of the product's decoders on purpose: it judges them. It is no validator: what it cannot read it passes over.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nom::bytes::complete::take;
use nom::number::complete::{be_u8, be_u16, be_u32, le_u32};
use nom::{IResult, Parser};

/// The UDP port of BFD control packets (RFC 5881).
const BFD_PORT: u16 = 3784;

/// Something that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The kernel's time stamp; of a BGP message: of the packet that completed it.
    pub at: SystemTime,
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// What.
    pub what: What,
}

/// What passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A BGP OPEN.
    Open,
    /// A BGP UPDATE with these prefixes; both lists empty: an End-of-RIB.
    Update {
        /// NLRI and `MP_REACH_NLRI`.
        announced: Vec<IpNet>,
        /// Withdrawn routes and `MP_UNREACH_NLRI`.
        withdrawn: Vec<IpNet>,
    },
    /// A BGP NOTIFICATION: code and subcode.
    Notification(u8, u8),
    /// A BGP KEEPALIVE.
    Keepalive,
    /// The end of a BGP connection: a FIN or a RST.
    Closed,
    /// A BFD control packet that says this state: 0 `AdminDown`, 1 Down, 2 Init, 3 Up.
    Bfd(u8),
    /// Any other packet.
    Other,
}

/// Reads a growing pcap file.
#[derive(Debug)]
pub struct Decoder {
    bgp_port: u16,
    buffer: Vec<u8>,
    nanoseconds: Option<bool>,
    streams: BTreeMap<Flow, Stream>,
    events: Vec<Event>,
}

type Flow = (IpAddr, u16, IpAddr, u16);

#[derive(Debug, Default)]
struct Stream {
    /// The sequence number that comes next.
    next: Option<u32>,
    /// Segments that came too early, by sequence number.
    early: BTreeMap<u32, Vec<u8>>,
    bytes: Vec<u8>,
    closed: bool,
}

impl Decoder {
    /// A decoder that takes TCP on this port (either side) for BGP.
    pub const fn new(bgp_port: u16) -> Self {
        Self { bgp_port, buffer: Vec::new(), nanoseconds: None, streams: BTreeMap::new(), events: Vec::new() }
    }

    /// What it has read.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Takes more octets of the file.
    ///
    /// # Errors
    /// It is no pcap file of Ethernet frames.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.extend_from_slice(bytes);
        let mut rest = buffer.as_slice();
        if self.nanoseconds.is_none() {
            let Ok((after, (magic, link))) = file_header(rest) else {
                self.buffer = buffer;
                return Ok(());
            };
            self.nanoseconds = Some(match (magic, link) {
                (0xa1b2_c3d4, 1) => false,
                (0xa1b2_3c4d, 1) => true,
                _ => bail!("no pcap file of Ethernet frames (magic {magic:#x}, link type {link})"),
            });
            rest = after;
        }
        while let Ok((after, (seconds, fraction, frame))) = record(rest) {
            let fraction = u64::from(fraction);
            let nanos = if self.nanoseconds == Some(true) { fraction } else { fraction * 1000 };
            let at = UNIX_EPOCH + Duration::from_secs(u64::from(seconds)) + Duration::from_nanos(nanos);
            self.frame(at, frame);
            rest = after;
        }
        self.buffer = rest.to_vec();
        Ok(())
    }

    fn frame(&mut self, at: SystemTime, frame: &[u8]) {
        let Ok((_, (source, destination, protocol, payload))) = ip_packet(frame) else { return };
        let what = match protocol {
            17 => bfd_state(payload).map_or(What::Other, |(_, state)| What::Bfd(state)),
            6 => {
                if let Ok((_, segment)) = tcp_segment(payload)
                    && (segment.source == self.bgp_port || segment.destination == self.bgp_port)
                {
                    self.segment(at, (source, segment.source, destination, segment.destination), &segment);
                    return;
                }
                What::Other
            }
            _ => What::Other,
        };
        self.events.push(Event { at, source, destination, what });
    }

    fn segment(&mut self, at: SystemTime, flow: Flow, segment: &Segment<'_>) {
        let (source, destination) = (flow.0, flow.2);
        if segment.syn {
            // A new connection on the same ports begins anew.
            self.streams.remove(&flow);
        }
        let stream = self.streams.entry(flow).or_default();
        let start = if segment.syn { segment.sequence.wrapping_add(1) } else { segment.sequence };
        stream.take(start, segment.payload);
        while let Ok((rest, what)) = bgp_message(&stream.bytes) {
            let rest = rest.to_vec();
            self.events.push(Event { at, source, destination, what });
            stream.bytes = rest;
        }
        if (segment.fin || segment.reset) && !stream.closed {
            stream.closed = true;
            self.events.push(Event { at, source, destination, what: What::Closed });
        }
    }
}

impl Stream {
    fn take(&mut self, sequence: u32, payload: &[u8]) {
        // A capture that starts in the middle of a connection starts with what it sees first.
        let next = *self.next.get_or_insert(sequence);
        if !payload.is_empty() {
            self.early.insert(sequence, payload.to_vec());
        }
        let mut next = next;
        while let Some(sequence) = self.early.keys().copied().find(|sequence| !is_after(*sequence, next)) {
            let Some(payload) = self.early.remove(&sequence) else { break };
            let old = usize::try_from(next.wrapping_sub(sequence)).unwrap_or(usize::MAX);
            if let Some(new) = payload.get(old..) {
                self.bytes.extend_from_slice(new);
                next = next.wrapping_add(u32::try_from(new.len()).unwrap_or(0));
            }
        }
        self.next = Some(next);
    }
}

/// Whether sequence number `a` is after `b`.
const fn is_after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

fn file_header(input: &[u8]) -> IResult<&[u8], (u32, u32)> {
    let (input, magic) = le_u32(input)?;
    let (input, _) = take(16_usize)(input)?;
    let (input, link) = le_u32(input)?;
    Ok((input, (magic, link)))
}

fn record(input: &[u8]) -> IResult<&[u8], (u32, u32, &[u8])> {
    let (input, (seconds, fraction, captured, _)) = (le_u32, le_u32, le_u32, le_u32).parse(input)?;
    let (input, frame) = take(captured)(input)?;
    Ok((input, (seconds, fraction, frame)))
}

/// Ethernet, then IPv4 or IPv6 without extension headers: source, destination, protocol, payload.
fn ip_packet(input: &[u8]) -> IResult<&[u8], (IpAddr, IpAddr, u8, &[u8])> {
    let (input, _) = take(12_usize)(input)?;
    let (input, kind) = be_u16(input)?;
    match kind {
        0x0800 => {
            let (_, first) = be_u8(input)?;
            let (_, (_, total)) = (be_u16, be_u16).parse(input)?;
            let header_length = usize::from(first & 0xf) * 4;
            // Frames may be padded; a length of 0 is an offloaded segment.
            let (_, packet) = if total == 0 { Ok((input, input)) } else { take(total)(input) }?;
            let (payload, _) = take(header_length)(packet)?;
            let (header, _) = take(9_usize)(packet)?;
            let (_, (protocol, _, source, destination)) = (be_u8, be_u16, be_u32, be_u32).parse(header)?;
            let (source, destination) = (Ipv4Addr::from(source), Ipv4Addr::from(destination));
            Ok((input, (source.into(), destination.into(), protocol, payload)))
        }
        0x86dd => {
            let (input, _) = take(4_usize)(input)?;
            let (input, (length, protocol, _)) = (be_u16, be_u8, be_u8).parse(input)?;
            let (input, source) = ipv6_address(input)?;
            let (input, destination) = ipv6_address(input)?;
            let (_, payload) = if length == 0 { Ok((input, input)) } else { take(length)(input) }?;
            Ok((input, (source.into(), destination.into(), protocol, payload)))
        }
        _ => Err(nothing(input)),
    }
}

fn ipv6_address(input: &[u8]) -> IResult<&[u8], Ipv6Addr> {
    let (input, high) = nom::number::complete::be_u128(input)?;
    Ok((input, Ipv6Addr::from(high)))
}

/// The state in a UDP datagram to the port of BFD control packets.
fn bfd_state(input: &[u8]) -> IResult<&[u8], u8> {
    let (input, (_, destination, _, _)) = (be_u16, be_u16, be_u16, be_u16).parse(input)?;
    if destination != BFD_PORT {
        return Err(nothing(input));
    }
    let (input, _) = be_u8(input)?;
    let (input, flags) = be_u8(input)?;
    Ok((input, flags >> 6))
}

struct Segment<'a> {
    source: u16,
    destination: u16,
    sequence: u32,
    syn: bool,
    fin: bool,
    reset: bool,
    payload: &'a [u8],
}

fn tcp_segment(input: &[u8]) -> IResult<&[u8], Segment<'_>> {
    let (after_ports, (source, destination, sequence, _)) = (be_u16, be_u16, be_u32, be_u32).parse(input)?;
    let (_, (offset, flags)) = (be_u8, be_u8).parse(after_ports)?;
    let (payload, _) = take(usize::from(offset >> 4) * 4)(input)?;
    let (syn, fin, reset) = (flags & 2 != 0, flags & 1 != 0, flags & 4 != 0);
    Ok((payload, Segment { source, destination, sequence, syn, fin, reset, payload }))
}

fn bgp_message(input: &[u8]) -> IResult<&[u8], What> {
    let (input, _) = take(16_usize)(input)?;
    let (input, (length, kind)) = (be_u16, be_u8).parse(input)?;
    let (input, body) = take(usize::from(length).saturating_sub(19))(input)?;
    let what = match kind {
        1 => What::Open,
        2 => update(body)?.1,
        3 => {
            let (_, (code, subcode)) = (be_u8, be_u8).parse(body)?;
            What::Notification(code, subcode)
        }
        4 => What::Keepalive,
        _ => What::Other,
    };
    Ok((input, what))
}

fn update(input: &[u8]) -> IResult<&[u8], What> {
    let (input, length) = be_u16(input)?;
    let (input, withdrawn) = take(length)(input)?;
    let mut withdrawn = prefixes(withdrawn, 1);
    let (input, length) = be_u16(input)?;
    let (nlri, mut attributes) = take(length)(input)?;
    let mut announced = prefixes(nlri, 1);
    while let Ok((rest, (flags, kind))) = (be_u8::<_, nom::error::Error<&[u8]>>, be_u8).parse(attributes) {
        let (rest, length) =
            if flags & 0x10 == 0 { be_u8(rest).map(|(r, n)| (r, u16::from(n)))? } else { be_u16(rest)? };
        let (rest, value) = take(length)(rest)?;
        match kind {
            14 => {
                let (value, (family, _, next_hop)) = (be_u16, be_u8, be_u8).parse(value)?;
                let (value, _) = take(next_hop)(value)?;
                let (value, _) = be_u8(value)?;
                announced.extend(prefixes(value, family));
            }
            15 => {
                let (value, (family, _)) = (be_u16, be_u8).parse(value)?;
                withdrawn.extend(prefixes(value, family));
            }
            _ => {}
        }
        attributes = rest;
    }
    Ok((nlri, What::Update { announced, withdrawn }))
}

/// The prefixes of an address family (1 or 2); what follows a broken one is passed over.
fn prefixes(mut input: &[u8], family: u16) -> Vec<IpNet> {
    let mut found = Vec::new();
    while let Ok((rest, prefix)) = prefix(input, family) {
        found.extend(prefix);
        input = rest;
    }
    found
}

fn prefix(input: &[u8], family: u16) -> IResult<&[u8], Option<IpNet>> {
    let (input, length) = be_u8(input)?;
    let (input, octets) = take(length.div_ceil(8))(input)?;
    let mut address = [0; 16];
    for (to, from) in address.iter_mut().zip(octets) {
        *to = *from;
    }
    let [a, b, c, d, ..] = address;
    let prefix = match family {
        1 => Ipv4Net::new(Ipv4Addr::new(a, b, c, d), length).ok().map(IpNet::V4),
        2 => Ipv6Net::new(Ipv6Addr::from(address), length).ok().map(IpNet::V6),
        _ => None,
    };
    Ok((input, prefix))
}

const fn nothing(input: &[u8]) -> nom::Err<nom::error::Error<&[u8]>> {
    nom::Err::Error(nom::error::Error { input, code: nom::error::ErrorKind::Verify })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
