//! The queue loop of the crate `nfq`: one packet and one verdict a system call. The baseline of the benchmark.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::RawFd;

use super::{Seat, Settings};

/// How often a socket is opened until it is known by its number.
const ATTEMPTS: usize = 1000;

/// A bound queue and its socket, which the crate does not show.
pub(super) struct Bound {
    queue: nfq::Queue,
    socket: RawFd,
}

/// Binds `queue`.
pub(super) fn bind(queue: u16, settings: &Settings) -> io::Result<Bound> {
    let (mut opened, socket) = open()?;
    opened.bind(queue)?;
    opened.set_copy_range(queue, settings.copy_range)?;
    opened.set_recv_gso(queue, true)?;
    opened.set_queue_max_len(queue, settings.length)?;
    opened.set_nonblocking(true);
    Ok(Bound { queue: opened, socket })
}

/// A socket of the crate and its descriptor: the one that is new. While another thread opens sockets too, that is tried again.
fn open() -> io::Result<(nfq::Queue, RawFd)> {
    for _ in 0..ATTEMPTS {
        let before = descriptors()?;
        let opened = nfq::Queue::open()?;
        let new: Vec<RawFd> = descriptors()?.difference(&before).copied().collect();
        if let [socket] = new[..] {
            return Ok((opened, socket));
        }
    }
    Err(io::Error::other("other descriptors are opened all the time"))
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
    // Packets without a verdict by their number.
    let mut waiting: BTreeMap<u32, nfq::Message> = BTreeMap::new();
    while seat.next_turn() {
        match bound.queue.recv() {
            Ok(message) => {
                seat.next_turn();
                seat.tally.batch(1);
                let id = message.get_packet_id();
                seat.judge(id, message.get_payload(), message.is_seg_offloaded(), message.get_indev());
                waiting.insert(id, message);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if seat.verdicts.is_empty() {
                    seat.wait_raw(bound.socket)?;
                    continue;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        for (id, mark) in seat.verdicts.drain(..) {
            let Some(mut message) = waiting.remove(&id) else { continue };
            match mark {
                Some(mark) => {
                    message.set_nfmark(mark);
                    message.set_verdict(nfq::Verdict::Accept);
                }
                None => message.set_verdict(nfq::Verdict::Drop),
            }
            bound.queue.verdict(message)?;
        }
    }
    Ok(())
}
