//! A second, naive reading of BGP: what a wiretap sees, and what the naive peer says.
//!
//! Written apart from `martlet-bgp` and as plainly as possible: no policy, no validation, a map from prefix to next hop. It
//! reads what the product sends and receives; where the two disagree, one of them is wrong.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A message, as far as anybody here cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Hold time, and whether graceful restart is offered: its time in seconds and whether it keeps any family.
    Open { hold_time_s: u16, restart_s: Option<u16> },
    /// What changed is in [`Tap::heard`].
    Update,
    /// All is told, of IPv4 or not.
    EndOfRib { ipv4: bool },
    /// Code and subcode.
    Notification(u8, u8),
    /// Nothing.
    Keepalive,
    /// Tell everything again.
    Refresh,
    /// Not BGP.
    Garbage,
}

/// One direction of one connection.
#[derive(Clone, Debug, Default)]
pub struct Tap {
    buffer: Vec<u8>,
    /// What was announced and not withdrawn, with its next hop.
    pub heard: BTreeMap<IpNet, IpAddr>,
    /// Not BGP was seen: nothing more is read.
    pub spoiled: bool,
    /// The identifier and the AS number of its OPEN.
    pub open: Option<(Ipv4Addr, u32)>,
    /// For how many seconds its OPEN asks that its routes are kept over a restart.
    pub restart_s: u16,
    /// A KEEPALIVE was seen.
    pub confirmed: bool,
}

fn number(octets: &[u8]) -> usize {
    octets.iter().fold(0, |sum, octet| sum << 8 | usize::from(*octet))
}

/// Takes `count` octets off the front.
fn take<'a>(from: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, tail) = from.split_at_checked(count)?;
    *from = tail;
    Some(head)
}

fn prefixes(mut octets: &[u8], ipv4: bool) -> Option<Vec<IpNet>> {
    let mut found = Vec::new();
    while !octets.is_empty() {
        let bits = *take(&mut octets, 1)?.first()?;
        let body = take(&mut octets, usize::from(bits).div_ceil(8))?;
        let mut whole = [0_u8; 16];
        whole.get_mut(..body.len())?.copy_from_slice(body);
        let address = if ipv4 { IpAddr::from(<[u8; 4]>::try_from(whole.get(..4)?).ok()?) } else { IpAddr::from(whole) };
        found.push(IpNet::new(address, bits).ok()?.trunc());
    }
    Some(found)
}

impl Tap {
    /// Reads on; the messages that are complete now.
    pub fn feed(&mut self, octets: &[u8]) -> Vec<Message> {
        let mut messages = Vec::new();
        if self.spoiled {
            return messages;
        }
        if self.buffer.is_empty() && is_keepalive(octets) {
            self.confirmed = true;
            return vec![Message::Keepalive];
        }
        self.buffer.extend_from_slice(octets);
        loop {
            let Some(header) = self.buffer.get(..19) else { return messages };
            let (length, kind) = (number(&header[16..18]), header[18]);
            if header[..16] != [0xff; 16] || !(19..=65535).contains(&length) {
                self.spoiled = true;
                messages.push(Message::Garbage);
                return messages;
            }
            if self.buffer.len() < length {
                return messages;
            }
            let rest = self.buffer.split_off(length);
            let message = std::mem::replace(&mut self.buffer, rest);
            messages.push(self.message(kind, &message[19..]).unwrap_or(Message::Garbage));
        }
    }

    fn message(&mut self, kind: u8, mut body: &[u8]) -> Option<Message> {
        match kind {
            1 => {
                let (message, identity) = open(body)?;
                self.open = Some(identity);
                if let Message::Open { restart_s, .. } = &message {
                    self.restart_s = restart_s.unwrap_or_default();
                }
                Some(message)
            }
            2 => self.update(body),
            3 => {
                let codes = take(&mut body, 2)?;
                Some(Message::Notification(codes[0], codes[1]))
            }
            4 => {
                self.confirmed = true;
                Some(Message::Keepalive)
            }
            5 => Some(Message::Refresh),
            _ => None,
        }
    }

    fn update(&mut self, mut body: &[u8]) -> Option<Message> {
        if body == [0, 0, 0, 0] {
            return Some(Message::EndOfRib { ipv4: true });
        }
        let length = number(take(&mut body, 2)?);
        let mut withdrawn = prefixes(take(&mut body, length)?, true)?;
        let length = number(take(&mut body, 2)?);
        let mut attributes = take(&mut body, length)?;
        let plain = prefixes(body, true)?;
        let mut announced = Vec::new();
        let mut hop = None;
        let mut end = false;
        while !attributes.is_empty() {
            let head = take(&mut attributes, 2)?;
            let width = if head[0] & 0x10 != 0 { 2 } else { 1 };
            let length = number(take(&mut attributes, width)?);
            let mut value = take(&mut attributes, length)?;
            match head[1] {
                3 => hop = Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
                14 => {
                    let family = take(&mut value, 3)?;
                    let hop_length = usize::from(*take(&mut value, 1)?.first()?);
                    let hop_octets = take(&mut value, hop_length)?;
                    let _reserved = take(&mut value, 1)?;
                    let ipv4 = family[1] == 1;
                    let hop = if hop_length == 4 {
                        IpAddr::from(<[u8; 4]>::try_from(hop_octets).ok()?)
                    } else {
                        IpAddr::from(<[u8; 16]>::try_from(hop_octets.get(..16)?).ok()?)
                    };
                    announced.extend(prefixes(value, ipv4)?.into_iter().map(|prefix| (prefix, hop)));
                }
                15 => {
                    let family = take(&mut value, 3)?;
                    end = value.is_empty() && withdrawn.is_empty() && plain.is_empty();
                    withdrawn.extend(prefixes(value, family[1] == 1)?);
                }
                _ => {}
            }
        }
        announced.extend(plain.into_iter().filter_map(|prefix| Some((prefix, hop?))));
        if end && announced.is_empty() {
            return Some(Message::EndOfRib { ipv4: false });
        }
        for prefix in withdrawn {
            self.heard.remove(&prefix);
        }
        self.heard.extend(announced);
        Some(Message::Update)
    }
}

/// Whether this is a KEEPALIVE and nothing else: most of what is ever said.
pub fn is_keepalive(octets: &[u8]) -> bool {
    octets.len() == 19 && octets[..16] == [0xff; 16] && octets[16..] == [0, 19, 4]
}

fn open(mut body: &[u8]) -> Option<(Message, (Ipv4Addr, u32))> {
    let fixed = take(&mut body, 10)?;
    let hold_time_s = u16::try_from(number(&fixed[3..5])).ok()?;
    let id = Ipv4Addr::from(<[u8; 4]>::try_from(&fixed[5..9]).ok()?);
    let mut asn = u32::try_from(number(&fixed[1..3])).ok()?;
    let mut restart_s = None;
    while !body.is_empty() {
        let head = take(&mut body, 2)?;
        let mut parameter = take(&mut body, usize::from(head[1]))?;
        while head[0] == 2 && !parameter.is_empty() {
            let head = take(&mut parameter, 2)?;
            let value = take(&mut parameter, usize::from(head[1]))?;
            // Without a family nothing is kept.
            if head[0] == 65 {
                asn = u32::try_from(number(value)).ok()?;
            }
            if head[0] == 64 && value.len() > 2 {
                restart_s = Some(u16::try_from(number(&value[..2]) & 0xfff).ok()?);
            }
        }
    }
    Some((Message::Open { hold_time_s, restart_s }, (id, asn)))
}

fn octet(number: usize) -> u8 {
    u8::try_from(number & 0xff).unwrap_or_default()
}

/// A message of `kind` with its header.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = body.len() + 19;
    let mut message = vec![0xff; 16];
    message.extend([octet(length >> 8), octet(length), kind]);
    message.extend_from_slice(body);
    message
}

/// An OPEN of this AS, for one family, with ROUTE-REFRESH (enhanced) and these capabilities.
pub fn open_message(asn: u32, hold_time_s: u16, id: Ipv4Addr, ipv4: bool, more: &[u8]) -> Vec<u8> {
    let short = u16::try_from(asn).unwrap_or(23456);
    let mut capabilities = vec![1, 4, 0, if ipv4 { 1 } else { 2 }, 0, 1, 2, 0, 70, 0, 65, 4];
    capabilities.extend(asn.to_be_bytes());
    capabilities.extend_from_slice(more);
    let mut body = vec![4];
    body.extend(short.to_be_bytes());
    body.extend(hold_time_s.to_be_bytes());
    body.extend(id.octets());
    body.extend([octet(capabilities.len() + 2), 2, octet(capabilities.len())]);
    body.extend(capabilities);
    message(1, &body)
}

fn wire(prefix: &IpNet) -> Vec<u8> {
    let count = usize::from(prefix.prefix_len()).div_ceil(8);
    let octets = match prefix.trunc().addr() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    std::iter::once(prefix.prefix_len()).chain(octets.into_iter().take(count)).collect()
}

/// An UPDATE with these attributes, and withdrawn and announced IPv4 prefixes.
pub fn update(withdrawn: &[u8], attributes: &[u8], announced: &[u8]) -> Vec<u8> {
    let mut body = vec![octet(withdrawn.len() >> 8), octet(withdrawn.len())];
    body.extend_from_slice(withdrawn);
    body.extend([octet(attributes.len() >> 8), octet(attributes.len())]);
    body.extend_from_slice(attributes);
    body.extend_from_slice(announced);
    message(2, &body)
}

/// ORIGIN and `AS_PATH`.
pub fn basics(asn: u32) -> Vec<u8> {
    let mut attributes = vec![0x40, 1, 1, 0, 0x40, 2, 6, 2, 1];
    attributes.extend(asn.to_be_bytes());
    attributes
}

/// The announcement of one prefix.
pub fn announce(asn: u32, prefix: &IpNet, hop: IpAddr) -> Vec<u8> {
    let mut attributes = basics(asn);
    match hop {
        IpAddr::V4(hop) => {
            attributes.extend([0x40, 3, 4]);
            attributes.extend(hop.octets());
            update(&[], &attributes, &wire(prefix))
        }
        IpAddr::V6(hop) => {
            let nlri = wire(prefix);
            attributes.extend([0x80, 14, octet(21 + nlri.len()), 0, 2, 1, 16]);
            attributes.extend(Ipv6Addr::octets(&hop));
            attributes.push(0);
            attributes.extend(nlri);
            update(&[], &attributes, &[])
        }
    }
}

/// The withdrawal of one prefix.
pub fn withdraw(prefix: &IpNet) -> Vec<u8> {
    let nlri = wire(prefix);
    if matches!(prefix, IpNet::V4(_)) {
        return update(&nlri, &[], &[]);
    }
    let mut attributes = vec![0x80, 15, octet(3 + nlri.len()), 0, 2, 1];
    attributes.extend(nlri);
    update(&[], &attributes, &[])
}

/// End-of-RIB of a family.
pub fn end_of_rib(ipv4: bool) -> Vec<u8> {
    if ipv4 { update(&[], &[], &[]) } else { update(&[], &[0x80, 15, 3, 0, 2, 1], &[]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_announced_is_heard_until_it_is_withdrawn_however_it_is_cut() {
        let (four, six): (IpNet, IpNet) = ("20.0.0.1/32".parse().unwrap(), "2000::1/128".parse().unwrap());
        let mut stream = open_message(65_001, 3, Ipv4Addr::LOCALHOST, true, &[]);
        stream.extend(announce(65_001, &four, "10.0.0.1".parse().unwrap()));
        stream.extend(announce(65_001, &six, "fd00::1".parse().unwrap()));
        stream.extend(end_of_rib(false));
        let mut tap = Tap::default();
        let messages: Vec<_> = stream.iter().flat_map(|octet| tap.feed(&[*octet])).collect();
        let open = Message::Open { hold_time_s: 3, restart_s: None };
        assert_eq!(messages, [open, Message::Update, Message::Update, Message::EndOfRib { ipv4: false }]);
        assert_eq!(tap.heard.len(), 2);
        assert_eq!((tap.open, tap.confirmed, tap.restart_s), (Some((Ipv4Addr::LOCALHOST, 65_001)), false, 0));
        tap.feed(&withdraw(&four));
        tap.feed(&withdraw(&six));
        assert!(tap.heard.is_empty());
        assert_eq!(tap.feed(&[0; 19]), [Message::Garbage]);
    }
}
