//! A counted stream of datagrams between two namespaces: every one is numbered, and those that did not arrive are named with the
//! time at which they were sent.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;

/// How long a datagram may be on its way after the last was sent.
const LATE: Duration = Duration::from_millis(300);

/// A running stream.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    sender: JoinHandle<Vec<SystemTime>>,
    receiver: JoinHandle<BTreeSet<u64>>,
}

/// What became of a stream.
#[derive(Clone, Debug)]
pub struct Report {
    /// How many were sent, or could not be.
    pub sent: usize,
    /// When those were sent that did not arrive.
    pub lost: Vec<SystemTime>,
}

impl Report {
    /// From the first to the last that was lost; zero if none was.
    pub fn window(&self) -> Duration {
        match (self.lost.first(), self.lost.last()) {
            (Some(first), Some(last)) => last.duration_since(*first).unwrap_or_default(),
            _ => Duration::ZERO,
        }
    }
}

impl Stream {
    /// Sends from `source`, by turns from as many ports as there are to be `flows`, one datagram each `interval`, to `target`,
    /// which is opened in `to`.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub fn start(
        (from, source): (&Namespace, IpAddr),
        flows: usize,
        (to, target): (&Namespace, SocketAddr),
        interval: Duration,
    ) -> Result<Self> {
        let open = || (0..flows).map(|_| UdpSocket::bind(SocketAddr::new(source, 0))).collect::<Result<Vec<_>, _>>();
        let sockets = from.inside(open)?.with_context(|| format!("open UDP {source}"))?;
        let sink = to.inside(|| UdpSocket::bind(target))?.with_context(|| format!("open UDP {target}"))?;
        sink.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (stop, end) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, ended) = (Arc::clone(&stop), Arc::clone(&end));
        let receiver = std::thread::spawn(move || receive(&sink, &ended));
        let sender = std::thread::spawn(move || send(&sockets, target, interval, &stopped));
        Ok(Self { stop, end, sender, receiver })
    }

    /// Ends it, and counts.
    ///
    /// # Errors
    /// One of its threads panicked.
    pub fn stop(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(times) = self.sender.join() else { bail!("the sender of the stream panicked") };
        std::thread::sleep(LATE);
        self.end.store(true, Ordering::Relaxed);
        let Ok(arrived) = self.receiver.join() else { bail!("the receiver of the stream panicked") };
        let lost = (0_u64..).zip(&times).filter(|(number, _)| !arrived.contains(number)).map(|(_, at)| *at).collect();
        Ok(Report { sent: times.len(), lost })
    }
}

fn send(sockets: &[UdpSocket], target: SocketAddr, interval: Duration, stop: &AtomicBool) -> Vec<SystemTime> {
    let mut times = Vec::new();
    for (number, socket) in (0_u64..).zip(sockets.iter().cycle()) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        times.push(SystemTime::now());
        // Not being allowed to send (no route) is a loss as well.
        let _ = socket.send_to(&number.to_be_bytes(), target);
        std::thread::sleep(interval);
    }
    times
}

fn receive(sink: &UdpSocket, end: &AtomicBool) -> BTreeSet<u64> {
    let mut arrived = BTreeSet::new();
    let mut buffer = [0; 8];
    while !end.load(Ordering::Relaxed) {
        match sink.recv_from(&mut buffer) {
            Ok((8, _)) => drop(arrived.insert(u64::from_be_bytes(buffer))),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    arrived
}
