//! What is sent through a stage, and what of it arrives.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::stage::{CLIENT, FLOOD, SERVED, Stage, VIP};
use super::sys::{Packets, pin};
use crate::namespace::Namespace;
use crate::sys;

/// Octets of each packet, with its IP header.
const OCTETS: usize = 64;
/// Flows: source ports from here on.
pub const FIRST_PORT: u16 = 20_000;
const FLOWS: u16 = 1024;
/// Packets a call, at most.
const BURST: usize = 64;
/// Packets that a sender is behind, at most.
const BACKLOG: f64 = 128.0;
/// Before a rate counts.
const WARM_UP: Duration = Duration::from_millis(150);
/// After this nothing is under way.
const QUIET: Duration = Duration::from_millis(200);

/// Packets of many flows to the port that nobody answers.
fn flood() -> Packets {
    let length = u16::try_from(OCTETS).unwrap_or_default();
    let packet = |flow: u16| {
        let mut octets = vec![0x45, 0];
        octets.extend(length.to_be_bytes());
        octets.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        octets.extend(CLIENT.octets());
        octets.extend(VIP.octets());
        octets.extend((FIRST_PORT + flow).to_be_bytes());
        octets.extend(FLOOD.to_be_bytes());
        octets.extend((length - 20).to_be_bytes());
        octets.resize(OCTETS, 0);
        octets
    };
    // Neighbours in the list are not neighbours in port.
    Packets::new((0..FLOWS).map(|number| packet(number.wrapping_mul(389) % FLOWS)).collect(), VIP)
}

/// Sends until it is told to stop, at most so many packets a second: how many left.
fn send(client: &Namespace, rate: Option<f64>, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    client.inside(|| -> Result<()> {
        first_on_cpu();
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        socket.set_send_buffer_size(4 << 20)?;
        let mut packets = flood();
        let (start, mut next, mut count) = (Instant::now(), 0, 0_u64);
        while !stop.load(Ordering::Relaxed) {
            let due = rate.map_or(BURST, |rate| {
                let until_now = start.elapsed().as_secs_f64() * rate;
                // A sender that stood still does not make up for it.
                let due = (until_now - as_float(count)).min(BACKLOG);
                (0..=BURST)
                    .rev()
                    .find(|burst| as_float(u64::try_from(*burst).unwrap_or_default()) <= due)
                    .unwrap_or_default()
            });
            if due == 0 {
                std::hint::spin_loop();
                continue;
            }
            let left = packets.send(socket.as_fd(), next, due)?;
            count += u64::try_from(left)?;
            next = (next + left) % packets.len();
            sent.store(count, Ordering::Relaxed);
        }
        Ok(())
    })?
}

/// The sender's CPU, before everybody else there if that is permitted: on a busy machine it is the load balancer that counts,
/// not the scheduler.
fn first_on_cpu() {
    if sys::take_cpu(0).is_err() {
        pin(0);
    }
}

/// Runs `work` while packets are sent.
fn while_sending<T>(stage: &Stage, rate: Option<f64>, work: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&stage.client, rate, &stop, &sent));
        let result = work();
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((result?, sent.load(Ordering::Relaxed)))
    })
}

/// Packets that came to the sink's interface.
fn received(stage: &Stage) -> Result<u64> {
    let text = stage.sink.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("the sink has no eth0")?;
    line.split_whitespace().nth(1).context("no counter")?.parse().map_err(Into::into)
}

/// Packets a second that arrive while more are sent.
pub fn saturated(stage: &Stage, time: Duration) -> Result<f64> {
    let (rate, _) = while_sending(stage, None, || {
        std::thread::sleep(WARM_UP);
        let (before, start) = (received(stage)?, Instant::now());
        std::thread::sleep(time);
        Ok(as_float(received(stage)? - before) / start.elapsed().as_secs_f64())
    })?;
    std::thread::sleep(QUIET);
    Ok(rate)
}

/// The highest rate at which nothing is lost, by halving the interval; at most `most`.
pub fn loss_free(stage: &Stage, most: f64, time: Duration, steps: u32) -> Result<f64> {
    let (mut low, mut high) = (0.0, most);
    for _ in 0..steps {
        let rate = f64::midpoint(low, high);
        let before = received(stage)?;
        let (took, sent) = while_sending(stage, Some(rate), || {
            let start = Instant::now();
            std::thread::sleep(time);
            Ok(start.elapsed())
        })?;
        std::thread::sleep(QUIET);
        // What really left, should the sender not reach the rate.
        let real = as_float(sent) / took.as_secs_f64();
        if received(stage)? - before >= sent {
            low = real.max(low);
        } else {
            high = real.min(high);
        }
        if high <= low {
            break;
        }
    }
    Ok(low)
}

/// Gbit/s of one TCP connection.
pub fn stream(stage: &Stage, time: Duration) -> Result<f64> {
    let listener = stage.sink.inside(|| TcpListener::bind((VIP, SERVED)))??;
    let arrived = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 1 << 18];
            let Ok((mut stream, _)) = listener.accept() else { return };
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                arrived.fetch_add(u64::try_from(count).unwrap_or_default(), Ordering::Relaxed);
            }
        });
        let to = SocketAddr::from((VIP, SERVED));
        let mut sender = stage.client.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))??;
        let end = Instant::now() + WARM_UP + time;
        let sending = scope.spawn(move || {
            first_on_cpu();
            let buffer = vec![0; 1 << 17];
            while Instant::now() < end && sender.write_all(&buffer).is_ok() {}
        });
        std::thread::sleep(WARM_UP);
        let (before, start) = (arrived.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(time);
        let octets = arrived.load(Ordering::Relaxed) - before;
        let rate = as_float(octets) * 8.0 / start.elapsed().as_secs_f64() / 1e9;
        let _ = sending.join();
        Ok(rate)
    })
}

/// Round trips of small datagrams, one after the other, microseconds, sorted.
pub fn round_trips(stage: &Stage, count: usize) -> Result<Vec<f64>> {
    let echo = stage.sink.inside(|| UdpSocket::bind((VIP, SERVED)))??;
    echo.set_read_timeout(Some(Duration::from_millis(500)))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = echo.recv_from(&mut buffer) {
                    let _ = echo.send_to(buffer.get(..length).unwrap_or_default(), from);
                }
            }
        });
        let times = stage.client.inside(|| -> Result<Vec<f64>> {
            first_on_cpu();
            let socket = UdpSocket::bind((CLIENT, 0))?;
            socket.connect((VIP, SERVED))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            let mut times = Vec::with_capacity(count);
            for _ in 0..count {
                let start = Instant::now();
                socket.send(&[0; 36])?;
                if socket.recv(&mut [0; 64]).is_ok() {
                    times.push(start.elapsed().as_secs_f64() * 1e6);
                }
            }
            times.sort_by(f64::total_cmp);
            Ok(times)
        });
        stop.store(true, Ordering::Relaxed);
        times?
    })
}

/// Datagrams of these source ports at a steady rate, while `work` goes on: how many were sent, and how many of them were lost.
pub fn steady(stage: &Stage, ports: &[u16], rate: f64, work: impl FnOnce() -> Result<()>) -> Result<(u64, u64)> {
    let sink = stage.sink.inside(|| -> Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_recv_buffer_size(8 << 20)?;
        socket.bind(&SocketAddr::from((VIP, SERVED)).into())?;
        Ok(socket.into())
    })??;
    sink.set_read_timeout(Some(Duration::from_secs(2)))?;
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut count = 0_u64;
            while sink.recv(&mut [0; 64]).is_ok() {
                count += 1;
            }
            count
        });
        let sender = scope.spawn(|| {
            stage.client.inside(|| -> Result<()> {
                pin(0);
                let sockets: std::io::Result<Vec<UdpSocket>> = ports
                    .iter()
                    .map(|port| {
                        let socket = UdpSocket::bind((CLIENT, *port))?;
                        socket.connect((VIP, SERVED)).map(|()| socket)
                    })
                    .collect();
                let (sockets, start, mut count) = (sockets?, Instant::now(), 0_u64);
                for socket in sockets.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    while as_float(count) > start.elapsed().as_secs_f64() * rate {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                    socket.send(&[0; 36])?;
                    count += 1;
                }
                sent.store(count, Ordering::Relaxed);
                Ok(())
            })
        });
        std::thread::sleep(WARM_UP);
        let result = work();
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        let count = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result?;
        let sent = sent.load(Ordering::Relaxed);
        Ok((sent, sent.saturating_sub(count)))
    })
}

/// Counts are far below what a float can hold exactly.
#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "counts far below 2^53")]
pub const fn as_float(count: u64) -> f64 {
    count as f64
}
