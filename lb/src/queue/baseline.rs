//! The queue loop of the crate `nfq`: one packet and one verdict a system call. The baseline of the benchmark.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::RawFd;

use super::{Seat, Settings};

/// A bound queue and its socket, which the crate does not show.
pub(super) struct Bound {
    queue: nfq::Queue,
    socket: RawFd,
}

/// Binds `queue`.
pub(super) fn bind(queue: u16, settings: &Settings) -> io::Result<Bound> {
    let before = descriptors()?;
    let mut opened = nfq::Queue::open()?;
    let new: Vec<RawFd> = descriptors()?.difference(&before).copied().collect();
    let [socket] = new[..] else {
        return Err(io::Error::other("another descriptor was opened at the same time"));
    };
    opened.bind(queue)?;
    opened.set_copy_range(queue, settings.copy_range)?;
    opened.set_recv_gso(queue, true)?;
    opened.set_queue_max_len(queue, settings.length)?;
    opened.set_nonblocking(true);
    Ok(Bound { queue: opened, socket })
}

/// The netfilter sockets of this process that could be the crate's.
fn descriptors() -> io::Result<BTreeSet<RawFd>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let is_socket = fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"));
        if let (true, Ok(number)) = (is_socket, entry.file_name().to_string_lossy().parse()) {
            found.insert(number);
        }
    }
    Ok(found)
}

/// Serves the queue until it is time to end.
pub(super) fn run(mut seat: Seat, mut bound: Bound) -> io::Result<()> {
    while seat.next_turn() {
        let mut message = match bound.queue.recv() {
            Ok(message) => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                seat.wait_raw(bound.socket)?;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        seat.next_turn();
        seat.tally.batch(1);
        match seat.mark(message.get_payload()) {
            Some(mark) => {
                message.set_nfmark(mark);
                message.set_verdict(nfq::Verdict::Accept);
            }
            None => message.set_verdict(nfq::Verdict::Drop),
        }
        bound.queue.verdict(message)?;
    }
    Ok(())
}
