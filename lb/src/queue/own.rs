//! The product's queue loop: what there is in one `recvmmsg`, all its verdicts in one `send`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::message::{Message, OVERHEAD, Requests, messages};
use super::{Seat, Settings, sys};

/// Packets a system call, at most.
const BATCH: usize = 64;

/// A socket that listens to `queue`.
pub(super) fn bind(queue: u16, settings: &Settings) -> io::Result<OwnedFd> {
    let socket = sys::open_netfilter(settings.receive_buffer)?;
    let mut requests = Requests::default();
    requests.configure(queue, settings.copy_range.into(), settings.length);
    sys::send(socket.as_fd(), requests.as_octets())?;
    // The kernel answers within the call that asks.
    let mut batch = sys::Batch::new(Requests::CONFIGURE_ANSWERS, buffer_size(settings.copy_range));
    let received = batch.receive(socket.as_fd())?;
    for message in batch.datagrams(received).flat_map(messages) {
        if let Message::Answer(errno @ 1..) = message {
            return Err(io::Error::from_raw_os_error(errno));
        }
    }
    Ok(socket)
}

fn buffer_size(copy_range: u16) -> usize {
    (usize::from(copy_range) + OVERHEAD).next_multiple_of(64)
}

/// Serves the queue until it is time to end.
pub(super) fn run(mut seat: Seat, socket: &OwnedFd, copy_range: u16) -> io::Result<()> {
    let mut batch = sys::Batch::new(BATCH, buffer_size(copy_range));
    let mut requests = Requests::default();
    let mut asked = (false, copy_range);
    while seat.next_turn() {
        // What the tables of this turn want to see of a packet.
        let wanted = (seat.tables.wants_segments(), copy_range.max(seat.tables.copy_range()));
        if wanted != asked {
            requests.clear();
            requests.segments(seat.queue, wanted.0);
            requests.copy(seat.queue, wanted.1.into());
            // Never smaller: packets of the old size are under way.
            if wanted.1 > asked.1 {
                batch = sys::Batch::new(BATCH, buffer_size(wanted.1));
            }
            asked = wanted;
            sys::send(socket.as_fd(), requests.as_octets())?;
        }
        let mut received_at = None;
        match batch.receive(socket.as_fd()) {
            Ok(received) => {
                let at = Instant::now();
                // The tables may have changed while we slept: a packet is never asked against those of an older turn.
                seat.next_turn();
                let mut packets = 0;
                for message in batch.datagrams(received).flat_map(messages) {
                    if let Message::Packet { id, payload, gso, link } = message {
                        packets += 1;
                        seat.judge(id, payload, gso, link);
                    }
                }
                seat.tally.batch(packets);
                received_at = Some((packets, at));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if seat.verdicts.is_empty() {
                    seat.wait(socket.as_fd())?;
                    continue;
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        requests.clear();
        for (id, mark) in seat.verdicts.drain(..) {
            requests.verdict(seat.queue, id, mark);
        }
        if !requests.as_octets().is_empty() {
            match sys::send(socket.as_fd(), requests.as_octets()) {
                Err(error) if !is_passing(&error) => return Err(error),
                _ => {}
            }
        }
        if let Some((packets, at)) = received_at {
            seat.tally.judged(packets, at.elapsed());
        }
    }
    Ok(())
}

/// Interrupted, or short of memory for a moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN))
}
