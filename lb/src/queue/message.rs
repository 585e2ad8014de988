//! `nfnetlink_queue` in octets: what the kernel is told and what it tells. Knows no socket.
//!
//! Numbers in netlink headers are of the machine's order, those of nfnetlink attributes are big endian. Every packet passes
//! here: headers are taken apart as arrays, which costs less than a combinator for each field.
#![warn(clippy::indexing_slicing)]

const NETLINK_HEADER: usize = 16;
const NFNETLINK_HEADER: usize = 4;
const ERROR: u16 = 2;
const PACKET: u16 = 0x300;
const VERDICT: u16 = 0x301;
const CONFIG: u16 = 0x302;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;

mod attribute {
    pub const PACKET_HEADER: u16 = 1;
    pub const VERDICT_HEADER: u16 = 2;
    pub const MARK: u16 = 3;
    pub const INPUT_LINK: u16 = 5;
    pub const PAYLOAD: u16 = 10;
    pub const SKB_INFO: u16 = 14;
    /// Without "nested" and "byte order".
    pub const MASK: u16 = 0x3fff;
}

mod config {
    pub const COMMAND: u16 = 1;
    pub const PARAMETERS: u16 = 2;
    pub const MAX_LENGTH: u16 = 3;
    pub const MASK: u16 = 4;
    pub const FLAGS: u16 = 5;
    pub const BIND: u8 = 1;
    pub const COPY_PACKET: u8 = 2;
    pub const GSO: u32 = 4;
}

/// The packet is made of segments that the machine put together: its length is not what a link will see.
const SKB_GSO: u32 = 2;

/// The octets around the copied part of a packet, at most.
pub const OVERHEAD: usize = 512;

/// What the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A packet waits for its verdict.
    Packet {
        /// Its number in its queue.
        id: u32,
        /// The first octets of it.
        payload: &'a [u8],
        /// It is made of segments.
        gso: bool,
        /// The index of the link that it came in by; 0: none.
        link: u32,
    },
    /// A request was refused (a positive `errno`), or acknowledged (0).
    Answer(i32),
    /// Something else.
    Other,
}

/// The messages in one datagram.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (rest, message) = message(datagram)?;
        datagram = rest;
        Some(message)
    })
}

fn message(octets: &[u8]) -> Option<(&[u8], Message<'_>)> {
    let [l0, l1, l2, l3, k0, k1, ..] = *octets.first_chunk::<NETLINK_HEADER>()?;
    let (length, kind) = (u32::from_ne_bytes([l0, l1, l2, l3]), u16::from_ne_bytes([k0, k1]));
    let length = usize::try_from(length).unwrap_or(usize::MAX).max(NETLINK_HEADER);
    let body = octets.get(NETLINK_HEADER..length)?;
    // The last message of a datagram may lack its padding.
    let rest = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
    let message = match kind {
        PACKET => packet(body)?,
        ERROR => Message::Answer(i32::from_ne_bytes(*body.first_chunk()?).saturating_neg()),
        _ => Message::Other,
    };
    Some((rest, message))
}

fn packet(body: &[u8]) -> Option<Message<'_>> {
    let (mut rest, mut number, mut link) = (body.get(NFNETLINK_HEADER..)?, 0, 0);
    let (mut payload, mut gso) = (&[][..], false);
    while !rest.is_empty() {
        let ([a, b, c, d], after) = rest.split_first_chunk()?;
        let (length, kind) = (u16::from_ne_bytes([*a, *b]), u16::from_ne_bytes([*c, *d]));
        let length = usize::from(length).saturating_sub(4);
        let value = after.get(..length)?;
        let big_endian = || value.first_chunk().map(|octets| u32::from_be_bytes(*octets));
        match kind & attribute::MASK {
            attribute::PACKET_HEADER => number = big_endian()?,
            attribute::INPUT_LINK => link = big_endian()?,
            attribute::PAYLOAD => payload = value,
            attribute::SKB_INFO => gso = big_endian()? & SKB_GSO != 0,
            _ => {}
        }
        rest = after.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Message::Packet { id: number, payload, gso, link })
}

/// Requests, one after the other, in one buffer.
#[derive(Debug, Default)]
pub struct Requests {
    octets: Vec<u8>,
}

impl Requests {
    /// All of them.
    pub fn as_octets(&self) -> &[u8] {
        &self.octets
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.octets.clear();
    }

    /// Makes the socket the listener of `queue`: `range` octets of each packet are copied, GSO packets come whole, and at
    /// most `length` packets wait. Four requests, each to be acknowledged.
    pub fn configure(&mut self, queue: u16, range: u32, length: u32) {
        self.put(CONFIG, ACKNOWLEDGE, queue, &[(config::COMMAND, &[config::BIND, 0, 0, 0])]);
        self.copy(queue, range);
        self.segments(queue, false);
        self.put(CONFIG, ACKNOWLEDGE, queue, &[(config::MAX_LENGTH, &length.to_be_bytes())]);
    }

    /// How many answers `configure` makes.
    pub const CONFIGURE_ANSWERS: usize = 4;

    /// From now on so many octets of each packet are copied. To be acknowledged.
    pub fn copy(&mut self, queue: u16, range: u32) {
        let [a, b, c, d] = range.to_be_bytes();
        self.put(CONFIG, ACKNOWLEDGE, queue, &[(config::PARAMETERS, &[a, b, c, d, config::COPY_PACKET])]);
    }

    /// From now on packets that are made of segments come as their segments, or whole. To be acknowledged.
    pub fn segments(&mut self, queue: u16, segments: bool) {
        let mask = config::GSO.to_be_bytes();
        let flags = if segments { [0; 4] } else { mask };
        self.put(CONFIG, ACKNOWLEDGE, queue, &[(config::FLAGS, &flags), (config::MASK, &mask)]);
    }

    /// Lets a packet go on with `mark`, or drops it.
    pub fn verdict(&mut self, queue: u16, id: u32, mark: Option<u32>) {
        let accept = u32::from(mark.is_some());
        let mut header = [0; 8];
        for (octet, value) in header.iter_mut().zip(accept.to_be_bytes().into_iter().chain(id.to_be_bytes())) {
            *octet = value;
        }
        match mark.map(u32::to_be_bytes) {
            Some(mark) => {
                self.put(VERDICT, 0, queue, &[(attribute::VERDICT_HEADER, &header), (attribute::MARK, &mark)]);
            }
            None => self.put(VERDICT, 0, queue, &[(attribute::VERDICT_HEADER, &header)]),
        }
    }

    fn put(&mut self, kind: u16, flags: u16, queue: u16, attributes: &[(u16, &[u8])]) {
        let sizes = attributes.iter().map(|(_, value)| 4 + value.len().next_multiple_of(4)).sum::<usize>();
        let length = u32::try_from(NETLINK_HEADER + NFNETLINK_HEADER + sizes).unwrap_or_default();
        self.octets.extend(length.to_ne_bytes());
        self.octets.extend(kind.to_ne_bytes());
        self.octets.extend((REQUEST | flags).to_ne_bytes());
        // Sequence and port: the kernel fills in what matters.
        self.octets.extend([0; 8]);
        // Family "unspecified", version 0.
        self.octets.extend([0; 2]);
        self.octets.extend(queue.to_be_bytes());
        for (kind, value) in attributes {
            let length = u16::try_from(4 + value.len()).unwrap_or_default();
            self.octets.extend(length.to_ne_bytes());
            self.octets.extend(kind.to_ne_bytes());
            self.octets.extend(*value);
            self.octets.resize(self.octets.len().next_multiple_of(4), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet as the kernel writes it (little endian machine).
    fn queued(id: u32, payload: &[u8], skb_info: u32) -> Vec<u8> {
        let mut message = vec![0; NETLINK_HEADER];
        message[4..6].copy_from_slice(&PACKET.to_ne_bytes());
        message.extend([2, 0, 0, 0]);
        let mut attribute = |kind: u16, value: &[u8]| {
            message.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend(value);
            message.resize(message.len().next_multiple_of(4), 0);
        };
        attribute(attribute::PACKET_HEADER, &[&id.to_be_bytes()[..], &[8, 0, 0]].concat());
        attribute(attribute::INPUT_LINK, &[0, 0, 0, 2]);
        attribute(attribute::SKB_INFO, &skb_info.to_be_bytes());
        attribute(attribute::PAYLOAD, payload);
        let length = u32::try_from(message.len()).unwrap();
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message
    }

    #[test]
    fn packets_and_answers_of_one_datagram_are_read() {
        let mut refused = vec![0; 36];
        refused[..4].copy_from_slice(&36_u32.to_ne_bytes());
        refused[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        refused[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        let datagram = [queued(7, b"hello", 0), refused, queued(8, b"worlds", 2)].concat();
        let all: Vec<Message<'_>> = messages(&datagram).collect();
        assert_eq!(
            all,
            [
                Message::Packet { id: 7, payload: b"hello", gso: false, link: 2 },
                Message::Answer(1),
                Message::Packet { id: 8, payload: b"worlds", gso: true, link: 2 },
            ]
        );
    }

    #[test]
    fn a_verdict_is_forty_octets() {
        let mut requests = Requests::default();
        requests.verdict(3, 0x0102_0304, Some(5000));
        let mut expected = 40_u32.to_ne_bytes().to_vec();
        expected.extend(VERDICT.to_ne_bytes());
        expected.extend(1_u16.to_ne_bytes());
        expected.extend([0; 8]);
        expected.extend([0, 0, 0, 3]);
        expected.extend([12_u16.to_ne_bytes(), 2_u16.to_ne_bytes()].concat());
        expected.extend([0, 0, 0, 1, 1, 2, 3, 4]);
        expected.extend([8_u16.to_ne_bytes(), 3_u16.to_ne_bytes()].concat());
        expected.extend(5000_u32.to_be_bytes());
        assert_eq!(requests.as_octets(), expected);
        requests.clear();
        requests.verdict(3, 1, None);
        assert_eq!((requests.as_octets().len(), &requests.as_octets()[24..28]), (32, &[0; 4][..]));
    }

    proptest! {
        #[test]
        fn no_datagram_makes_it_panic_or_loop(octets in prop::collection::vec(any::<u8>(), 0..200), length in 0_u32..220) {
            let mut datagram = octets;
            if datagram.len() > 6 {
                datagram[..4].copy_from_slice(&length.to_ne_bytes());
                datagram[4..6].copy_from_slice(&PACKET.to_ne_bytes());
            }
            prop_assert!(messages(&datagram).count() <= 200 / NETLINK_HEADER);
        }
    }
}
