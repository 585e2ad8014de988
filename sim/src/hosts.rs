//! Hosts of turmoil-net on one paused clock, and the weather between them: latency, loss, cuts, held packets, dead machines.
//!
//! turmoil-net has the sockets and TCP; when a packet arrives, if it does, is decided here, by one seed. It knows nothing of
//! what the hosts run.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use martlet_clock::Dice;
use tokio::task::{JoinHandle, LocalSet};
use turmoil_net::{EnterGuard, HostId, KernelConfig, Net, Packet, Transport};

use crate::net::Addresses;

/// How often the network moves, milliseconds.
pub const TICK_MS: u64 = 2;
/// The latency of a packet, milliseconds.
const LATENCY_MS: (u64, u64) = (1, 20);
/// Ticks without an acknowledgement until a segment is sent again: 200 ms.
const RETRANSMIT: u32 = 100;
/// Where all listen. Sockets of a dead process stay in turmoil-net's kernel and hold their port: so the process of the nth
/// life listens n ports higher, and on the wire that is this port.
pub const PORT: u16 = 10179;
/// How often: as good as for ever.
const RETRANSMISSIONS: u32 = 10_000;

/// The hosts and what is under way between them.
pub struct Hosts<'a> {
    guard: &'a EnterGuard,
    set: LocalSet,
    ids: Vec<HostId>,
    by_address: BTreeMap<IpAddr, usize>,
    tasks: Vec<Option<JoinHandle<()>>>,
    /// How often the process of each host has started anew: see [`PORT`].
    lives: Vec<u16>,
    dead: BTreeSet<usize>,
    cut: BTreeSet<(usize, usize)>,
    held: BTreeSet<(usize, usize)>,
    waiting: Vec<(usize, usize, Packet)>,
    /// By time and order.
    pending: BTreeMap<(u64, u64), Packet>,
    /// By direction: nothing of TCP arrives before what was sent earlier.
    last: BTreeMap<(IpAddr, IpAddr), u64>,
    sent: u64,
    now_ms: u64,
    dice: Dice,
    /// How many percent of all packets are lost.
    pub loss: u64,
}

/// A task of a host: its sockets are that host's whenever it runs, and when it ends.
struct Scoped {
    id: HostId,
    inner: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Future for Scoped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        turmoil_net::set_current(self.id);
        self.inner.as_mut().map_or(Poll::Ready(()), |inner| inner.as_mut().poll(cx))
    }
}

impl Drop for Scoped {
    fn drop(&mut self) {
        turmoil_net::set_current(self.id);
        self.inner = None;
    }
}

/// Makes hosts with these addresses and lets `play` play with them.
pub fn simulate<T>(addresses: &[Addresses], seed: u64, play: impl AsyncFnOnce(&mut Hosts<'_>) -> T) -> Option<T> {
    let config = KernelConfig::default().retx_threshold(RETRANSMIT).retx_max(RETRANSMISSIONS);
    let mut net = Net::with_config(config);
    let ids = addresses.iter().map(|addresses| net.add_host(*addresses)).collect();
    let guard = net.enter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().ok()?;
    let by_address = addresses.iter().zip(0..).flat_map(|(both, host)| both.map(|one| (one, host))).collect();
    let mut hosts = Hosts {
        guard: &guard,
        set: LocalSet::new(),
        ids,
        by_address,
        tasks: addresses.iter().map(|_| None).collect(),
        lives: vec![0; addresses.len()],
        dead: BTreeSet::new(),
        cut: BTreeSet::new(),
        held: BTreeSet::new(),
        waiting: Vec::new(),
        pending: BTreeMap::new(),
        last: BTreeMap::new(),
        sent: 0,
        now_ms: 0,
        dice: Dice::new(seed),
        loss: 0,
    };
    let result = runtime.block_on(play(&mut hosts));
    // Tasks hold sockets: they end while their network is there.
    drop(hosts);
    drop(guard);
    Some(result)
}

impl Hosts<'_> {
    /// Starts a process on a host, which lives again; it is told in which life.
    pub fn start<F: Future<Output = ()> + 'static>(&mut self, host: usize, process: impl FnOnce(u16) -> F) {
        self.dead.remove(&host);
        let life = self.lives[host];
        self.lives[host] += 1;
        let scoped = Scoped { id: self.ids[host], inner: Some(Box::pin(process(life))) };
        self.tasks[host] = Some(self.set.spawn_local(scoped));
    }

    /// Whether the process of a host runs.
    pub fn runs(&self, host: usize) -> bool {
        self.tasks[host].as_ref().is_some_and(|task| !task.is_finished())
    }

    /// The process ends without a word of its own; `machine`: nothing of the host is heard or reached until it starts again.
    pub fn crash(&mut self, host: usize, machine: bool) {
        if machine {
            self.dead.insert(host);
        }
        if let Some(task) = self.tasks[host].take() {
            task.abort();
        }
    }

    /// Nothing passes any more, in one direction or `both`.
    pub fn cut(&mut self, from: usize, to: usize, both: bool) {
        self.cut.insert((from, to));
        if both {
            self.cut.insert((to, from));
        }
    }

    /// Everything passes again.
    pub fn heal(&mut self, one: usize, other: usize) {
        self.cut.remove(&(one, other));
        self.cut.remove(&(other, one));
    }

    /// Nothing passes, nothing is lost.
    pub fn hold(&mut self, one: usize, other: usize) {
        self.held.extend([(one, other), (other, one)]);
    }

    /// What was held passes now.
    pub fn release(&mut self, one: usize, other: usize) {
        self.held.remove(&(one, other));
        self.held.remove(&(other, one));
        let (free, rest) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(from, to, _)| !self.held.contains(&(*from, *to)));
        self.waiting = rest;
        let free: Vec<(usize, usize, Packet)> = free;
        for (.., packet) in free {
            self.send(packet);
        }
    }

    /// Lets a tick pass.
    pub async fn step(&mut self) {
        self.set.run_until(tokio::time::sleep(Duration::from_millis(TICK_MS))).await;
        self.now_ms += TICK_MS;
        while let Some(due) = self.pending.first_entry().filter(|due| due.key().0 <= self.now_ms) {
            let mut packet = due.remove();
            let Some(&to) = self.by_address.get(&packet.dst) else { continue };
            if let Transport::Tcp(segment) = &mut packet.payload
                && segment.dst_port == PORT
            {
                segment.dst_port += self.lives[to].saturating_sub(1);
            }
            if !self.dead.contains(&to) {
                self.guard.deliver(packet);
            }
        }
        let mut packets = Vec::new();
        self.guard.egress_all(&mut packets);
        for mut packet in packets {
            let (Some(&from), Some(&to)) = (self.by_address.get(&packet.src), self.by_address.get(&packet.dst)) else {
                continue;
            };
            if let Transport::Tcp(segment) = &mut packet.payload {
                let port = |host: usize| PORT + self.lives[host].saturating_sub(1);
                if (PORT..port(from)).contains(&segment.src_port) {
                    // The last words of a process that is no more.
                    continue;
                }
                if segment.src_port == port(from) {
                    segment.src_port = PORT;
                }
            }
            let lost = self.loss > 0 && self.dice.chance(self.loss, 100);
            if lost || self.dead.contains(&from) || self.dead.contains(&to) || self.cut.contains(&(from, to)) {
                continue;
            }
            if self.held.contains(&(from, to)) {
                self.waiting.push((from, to, packet));
            } else {
                self.send(packet);
            }
        }
    }

    fn send(&mut self, packet: Packet) {
        let (least, most) = LATENCY_MS;
        let mut at = self.now_ms + least + self.dice.below(most - least + 1);
        if matches!(packet.payload, Transport::Tcp(_)) {
            // TCP there takes what comes in order only.
            let before = self.last.entry((packet.src, packet.dst)).or_default();
            at = at.max(*before);
            *before = at;
        }
        self.sent += 1;
        self.pending.insert((at, self.sent), packet);
    }
}
