//! What a netlink datagram is made of: messages one after the other, and replies that say yes or no.
//!
//! It knows the headers of RFC 3549 and the kernel's extended acknowledgements, not what the messages mean.

use netlink_packet_core::{ErrorMessage, NetlinkSerializable, NlasIterator};
use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};

/// The header of a netlink message, octets.
const HEADER: usize = 16;
/// The attribute of an extended acknowledgement that holds the kernel's words.
const ATTRIBUTE_MESSAGE: u16 = 1;

/// The messages of a datagram; what remains after a broken length is dropped.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk()?);
        let length = usize::try_from(length).ok().filter(|length| *length >= HEADER)?;
        let message = datagram.get(..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Appends a message to a batch of them.
pub(crate) fn append<I: NetlinkSerializable>(batch: &mut Vec<u8>, message: I, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = batch.len();
    let end = start + message.buffer_len();
    batch.resize(end, 0);
    message.serialize(batch.get_mut(start..end).unwrap_or_default());
    batch.resize(end.next_multiple_of(4), 0);
}

/// What the kernel answers to a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Zero: done. Else a positive `errno`.
    pub errno: i32,
    /// The kernel's own words, often empty.
    pub detail: String,
}

impl Reply {
    /// The reply in an error message, which is also how "done" is said.
    pub(crate) fn of(error: &ErrorMessage) -> Self {
        // What follows the head of our own request are attributes (the socket option CAP_ACK cuts the rest).
        let attributes = NlasIterator::new(error.header.get(HEADER..).unwrap_or_default());
        let words = attributes.flatten().find(|attribute| attribute.kind() == ATTRIBUTE_MESSAGE);
        let detail = words.map(|words| String::from_utf8_lossy(words.value()).trim_end_matches('\0').to_owned());
        Self { errno: error.raw_code().saturating_neg(), detail: detail.unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_falls_into_its_messages_and_a_broken_length_ends_it() {
        let message = |length: u32, fill: u8| {
            let mut message = vec![fill; 20];
            message[..4].copy_from_slice(&length.to_ne_bytes());
            message
        };
        let mut datagram = message(18, 1);
        datagram.extend(message(20, 2));
        assert_eq!(messages(&datagram).map(<[u8]>::len).collect::<Vec<_>>(), [18, 20]);
        datagram.extend(message(15, 3));
        assert_eq!(messages(&datagram).count(), 2);
        datagram.truncate(39);
        assert_eq!(messages(&datagram).count(), 1);
        assert_eq!(messages(&[]).count(), 0);
    }

    #[test]
    fn a_refusal_carries_the_words_of_the_kernel() {
        let mut error = ErrorMessage::default();
        error.code = std::num::NonZeroI32::new(-101);
        error.header = vec![0; HEADER];
        error.header.extend([12, 0, 1, 0]);
        error.header.extend(b"No way\0\0");
        assert_eq!(Reply::of(&error), Reply { errno: 101, detail: "No way".into() });
        assert_eq!(Reply::of(&ErrorMessage::default()), Reply { errno: 0, detail: String::new() });
    }
}
