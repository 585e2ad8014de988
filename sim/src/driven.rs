//! The second world: the product's real driver (its loop, its tasks, its shutdown) over a simulated network.
//!
//! Two gateways and two pods, each a host of turmoil-net with an IPv4 and an IPv6 address that runs `Driver`, BFD included; a
//! gateway is a router that announces default routes; in every second seed one of them is the naive peer instead, which shares no
//! code with the product. Processes and machines die and come back with the kernel they left,
//! links are cut, in one direction or both, packets are held, lost, late; readiness changes, kernel objects are deleted. What
//! is asked: a VIP that is not ready is gone from the gateways in time, and in the end everything is well.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::Duration;

use ipnet::IpNet;
use martlet_api::readiness::{Readiness as Said, VERSION, VipReadiness};
use martlet_api::view::{Bfd, Bgp, GatewayRouter, ObjectName, Protocol, View};
use martlet_bgp::Family;
use martlet_clock::{Dice, Instant};
use martlet_netlink::Link;
use martlet_router::core::{Config, Router};
use martlet_router::driver::{Asker, Clock, Driver, Signal, World};
use martlet_router::gate::Lb;
use martlet_router::intent::{Identity, Settings, default_prefix};
use tokio::sync::{mpsc, watch};

use crate::check::Failure;
use crate::hosts::Hosts;
use crate::net::{Addresses, Fixed, SharedKernel, SimBfd, SimNet, Word};
use crate::objects::{GATEWAY, vip};
use crate::peer::Peer;

const HOSTS: [&str; 4] = ["pod-0", "pod-1", "gateway-0", "gateway-1"];
const PODS: usize = 2;
const VIPS: usize = 3;
/// Milliseconds of faults.
const SPAN_MS: u64 = 15_000;
/// Until when all must be well.
const END_MS: u64 = SPAN_MS + 75_000;
/// How long a withdrawal may take over a network with 20 ms of latency whose faults ended a while ago.
const LAG_MS: u64 = 400;
/// ..and where packets are lost: TCP sends them again, and again.
const LOSSY_LAG_MS: u64 = 3500;

/// One thing that goes wrong, or right again.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// The machine is gone without a word; its process too.
    Crash(usize),
    /// The process dies, its machine resets what it held.
    Kill(usize),
    /// It starts, or starts anew.
    Bounce(usize),
    /// SIGTERM.
    Stop(usize),
    Cut(usize, usize, bool),
    Heal(usize, usize),
    Hold(usize, usize),
    Release(usize, usize),
    /// So many percent of all packets are lost.
    Loss(u64),
    Ready(usize, u64),
    Silent(usize),
    Delete(usize, u64),
}

impl Act {
    const fn name(self) -> &'static str {
        match self {
            Self::Crash(_) => "machine crash",
            Self::Kill(_) => "process crash",
            Self::Bounce(_) => "bounce",
            Self::Stop(_) => "stop",
            Self::Cut(_, _, true) => "partition",
            Self::Cut(_, _, false) => "one-way cut",
            Self::Heal(..) => "heal",
            Self::Hold(..) => "hold",
            Self::Release(..) => "release",
            Self::Loss(_) => "loss",
            Self::Ready(..) => "readiness",
            Self::Silent(_) => "silence",
            Self::Delete(..) => "foreign deletion",
        }
    }

    /// Whether it disturbs what is heard of a withdrawal.
    const fn disturbs(self) -> bool {
        !matches!(self, Self::Ready(..) | Self::Silent(_) | Self::Delete(..))
    }
}

struct Host {
    kernel: SharedKernel,
    lb: watch::Sender<Lb>,
    signals: RefCell<Option<mpsc::Sender<Signal>>>,
    addresses: Addresses,
    /// It is the naive peer.
    naive: Option<RefCell<Peer>>,
}

impl Host {
    /// Which prefixes it sends where.
    fn learned(&self) -> Rc<BTreeMap<IpNet, BTreeSet<IpAddr>>> {
        let Some(peer) = &self.naive else {
            return self.kernel.look(|kernel| Rc::clone(kernel.learned()));
        };
        let mut learned: BTreeMap<IpNet, BTreeSet<IpAddr>> = BTreeMap::new();
        let peer = peer.borrow();
        let sessions = (0..PODS).flat_map(|pod| [true, false].map(|ipv4| (pod, ipv4)));
        for (prefix, hop) in sessions.filter_map(|(pod, ipv4)| peer.heard(pod, ipv4)).flatten() {
            learned.entry(*prefix).or_default().insert(*hop);
        }
        learned.into()
    }
}

/// A naive peer that nobody has talked to.
fn naive(host: usize) -> Peer {
    let [four, six] = addresses(host);
    let id = if let IpAddr::V4(four) = four { four } else { Ipv4Addr::LOCALHOST };
    Peer::new(settings(host).local_as, id, [six, four], defaults().into())
}

fn acts(dice: &mut Dice) -> Vec<(u64, Act)> {
    let mut acts = Vec::new();
    let index = |dice: &mut Dice, bound: u64| usize::try_from(dice.below(bound)).unwrap_or_default();
    for _ in 0..6 + dice.below(10) {
        let at = 1000 + dice.below(SPAN_MS - 4000);
        let end = at + 20 + dice.below(3000);
        let (pod, gateway, host) = (index(dice, 2), PODS + index(dice, 2), index(dice, 4));
        match dice.below(12) {
            0 => acts.extend([(at, Act::Crash(host)), (end, Act::Bounce(host))]),
            1 => acts.extend([(at, Act::Kill(host)), (end, Act::Bounce(host))]),
            2 => acts.extend([(at, Act::Stop(pod)), (end + 2500, Act::Bounce(pod))]),
            3 => acts.extend([(at, Act::Cut(pod, gateway, true)), (end, Act::Heal(pod, gateway))]),
            4 => acts.extend([(at, Act::Cut(pod, gateway, false)), (end, Act::Heal(pod, gateway))]),
            5 => acts.extend([(at, Act::Cut(gateway, pod, false)), (end, Act::Heal(pod, gateway))]),
            6 => acts.extend([(at, Act::Hold(pod, gateway)), (end, Act::Release(pod, gateway))]),
            7 => acts.extend([(at, Act::Loss(1 + dice.below(10))), (end, Act::Loss(0))]),
            8 => acts.push((at, Act::Silent(pod))),
            9 => acts.push((at, Act::Delete(host, 1 + dice.below(3)))),
            _ => acts.extend([(at, Act::Ready(pod, dice.below(8))), (end, Act::Ready(pod, dice.below(8)))]),
        }
    }
    acts.push((SPAN_MS, Act::Loss(0)));
    for pod in 0..PODS {
        acts.push((SPAN_MS, Act::Ready(pod, u64::MAX)));
        for gateway in PODS..HOSTS.len() {
            acts.extend([(SPAN_MS, Act::Heal(pod, gateway)), (SPAN_MS, Act::Release(pod, gateway))]);
        }
    }
    acts.extend((0..HOSTS.len()).map(|host| (SPAN_MS, Act::Bounce(host))));
    acts.sort_by_key(|(at, _)| *at);
    acts
}

fn vips() -> impl Iterator<Item = (usize, IpNet)> {
    (0..VIPS).flat_map(|number| [true, false].map(|ipv4| (number, vip(number, ipv4))))
}

/// A load balancer that is ready for the VIPs of these bits.
fn word(bits: u64) -> Lb {
    let vips = vips().map(|(number, vip)| {
        let ready = bits >> number & 1 == 1;
        (vip, VipReadiness { ready, reason: String::new() })
    });
    Lb::Said(Said { version: VERSION, gateway: GATEWAY.into(), draining: false, vips: vips.collect() })
}

fn addresses(host: usize) -> Addresses {
    let number = u16::try_from(host + 1).unwrap_or_default();
    let four = Ipv4Addr::new(10, 9, 0, u8::try_from(number).unwrap_or_default());
    [four.into(), Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number).into()]
}

fn defaults() -> [IpNet; 2] {
    [Family::Ipv4, Family::Ipv6].map(default_prefix)
}

/// `bfd`: of which hosts.
fn view(host: usize, bfd: &BTreeSet<usize>) -> View {
    let peers = if host < PODS { PODS..HOSTS.len() } else { 0..PODS };
    let profile =
        Bfd { min_tx: Duration::from_millis(300), min_rx: Duration::from_millis(300), multiplier: 5, ..Bfd::default() };
    let router = |address: IpAddr| {
        let peer = usize::from(last(address)) - 1;
        let bgp = Bgp { bfd: bfd.contains(&peer).then(|| profile.clone()), ..Bgp::default() };
        let name = format!("{}-v{}", HOSTS[peer], if address.is_ipv4() { 4 } else { 6 });
        let protocol = Protocol::Bgp(Box::new(bgp));
        (name.into(), GatewayRouter { address, interface: None, description: None, protocol })
    };
    View {
        gateway: ObjectName::new("default", GATEWAY),
        exists: true,
        routers: peers.flat_map(addresses).map(router).collect(),
        routes: BTreeMap::new(),
        services: BTreeMap::new(),
        vips: if host < PODS { vips().map(|(_, vip)| vip).collect() } else { defaults().into() },
        subnets: BTreeSet::new(),
        conditions: BTreeSet::new(),
    }
}

/// The last octet of an address.
const fn last(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    }
}

fn settings(host: usize) -> Settings {
    let (local_as, remote_as) = if host < PODS { (65_001, 65_002) } else { (65_002, 65_001) };
    Settings { external_interface: "eth0".into(), local_as, remote_as, ecmp: true, ..Settings::default() }
}

fn config(host: usize, seed: u64) -> Config {
    Config {
        identity: Identity { router_id: None, name: HOSTS[host].into() },
        external_interface: "eth0".into(),
        table: 4096,
        adopt: Duration::from_secs(10),
        leave: Duration::from_millis(300),
        drain: Duration::from_secs(1),
        seed,
    }
}

type Began = tokio::time::Instant;
/// The story of a run.
type Story = Rc<RefCell<Vec<String>>>;

/// How a run ended.
#[derive(Debug)]
pub struct Run {
    /// The broken promise.
    pub failure: Option<Failure>,
    /// What happened.
    pub story: Vec<String>,
    /// Which faults there were.
    pub seen: BTreeSet<&'static str>,
    /// Simulated milliseconds.
    pub time_ms: u64,
}

type Seeded = (u64, Rc<BTreeSet<usize>>);

async fn drive(host: usize, life: u16, (seed, bfd): Seeded, one: Rc<Host>, story: Story, began: Began) {
    if let Some(peer) = &one.naive {
        peer.replace(naive(host));
        let pods: Vec<_> = (0..PODS).map(addresses).collect();
        return crate::naive::run(one.addresses, life, peer, &pods).await;
    }
    let (signal, signals) = mpsc::channel(4);
    one.signals.replace(Some(signal));
    let mut lb = one.lb.subscribe();
    lb.mark_changed();
    one.kernel.open();
    let (_asker, questions) = Asker::new();
    let clock = Clock::new(Instant::ORIGIN);
    let Ok(supervision) = SimBfd::new(one.addresses, clock, seed ^ 0xbfd).await else { return };
    let world = World {
        net: SimNet::new(one.addresses, life),
        bfd: supervision,
        kernel: one.kernel.clone(),
        source: Fixed(Some(view(host, &bfd))),
        readiness: Word(lb),
        signals,
        questions,
        vital: watch::Sender::default(),
        clock,
    };
    let driver = Driver::new(Router::new(config(host, seed)), settings(host), world, move |_, event| {
        let now = Instant::ORIGIN + began.elapsed();
        story.borrow_mut().push(format!("{now} {} {} {event}", HOSTS[host], event.subject()));
    });
    driver.run().await;
}

/// What is wrong at the end.
fn unwell(hosts: &[Rc<Host>]) -> Option<String> {
    let of = |from: usize, to: usize, family: usize| -> BTreeSet<IpAddr> {
        hosts.iter().take(to).skip(from).map(|host| host.addresses[family]).collect()
    };
    hosts.iter().enumerate().find_map(|(number, host)| {
        let learned = host.learned();
        let family = |prefix: &IpNet| usize::from(matches!(prefix, IpNet::V6(_)));
        let expected: BTreeMap<IpNet, BTreeSet<IpAddr>> = if number < PODS {
            defaults().map(|prefix| (prefix, of(PODS, HOSTS.len(), family(&prefix)))).into()
        } else {
            vips().map(|(_, vip)| (vip, of(0, PODS, family(&vip)))).collect()
        };
        (*learned != expected).then(|| format!("{} has {learned:?} instead of {expected:?}", HOSTS[number]))
    })
}

fn host(number: usize, is_naive: bool) -> Rc<Host> {
    let (lb, _) = watch::channel(if number < PODS { word(u64::MAX) } else { Lb::Ungated });
    let addresses = addresses(number);
    let nets = addresses.into_iter().zip([24, 64]).filter_map(|(address, bits)| IpNet::new(address, bits).ok());
    let link = Link { index: 1, name: "eth0".into(), up: true, carrier: true, mtu: 1500, addresses: nets.collect() };
    let naive = is_naive.then(|| RefCell::new(naive(number)));
    let one = Host { kernel: SharedKernel::default(), lb, signals: RefCell::default(), addresses, naive };
    one.kernel.look(|kernel| kernel.links.insert(1, link));
    Rc::new(one)
}

/// Plays a seed.
pub fn play(seed: u64) -> Run {
    let mut dice = Dice::new(seed ^ 0xd21e);
    let bfd = dice.chance(2, 3);
    let naive = seed.is_multiple_of(2).then_some(HOSTS.len() - 1);
    let supervised = (0..HOSTS.len()).filter(|host| bfd && Some(*host) != naive);
    let supervised: Rc<BTreeSet<usize>> = Rc::new(supervised.collect());
    let story = Story::default();
    let hosts: Vec<Rc<Host>> = (0..HOSTS.len()).map(|number| host(number, Some(number) == naive)).collect();
    let all: Vec<Addresses> = hosts.iter().map(|host| host.addresses).collect();
    let acts = acts(&mut dice);
    let mut faults: BTreeSet<&'static str> = acts.iter().map(|(_, act)| act.name()).collect();
    faults.insert(if bfd { "BFD" } else { "no BFD" });
    faults.extend(naive.map(|_| "naive gateway"));
    let mut time_ms = 0;
    let failure = crate::hosts::simulate(&all, dice.roll(), async |network: &mut Hosts<'_>| {
        let began = tokio::time::Instant::now();
        let start = |network: &mut Hosts<'_>, host: usize| {
            let (one, story) = (Rc::clone(&hosts[host]), Rc::clone(&story));
            let seeded = (seed, Rc::clone(&supervised));
            network.start(host, |life| drive(host, life, seeded, one, story, began));
        };
        (0..HOSTS.len()).for_each(|host| start(network, host));
        let (unready, stopping) = (BTreeMap::new(), BTreeSet::new());
        let mut play = Play { acts: acts.into_iter().peekable(), hosts: &hosts, unready, stopping, calm_at: 0 };
        while time_ms < END_MS {
            while let Some((_, act)) = play.acts.next_if(|(at, _)| *at <= time_ms) {
                story.borrow_mut().push(format!("{} FAULT {act:?}", Instant::from_millis(time_ms)));
                match act {
                    // Who ends by order is not waited for.
                    Act::Bounce(host) if play.stopping.remove(&host) || !network.runs(host) => {
                        network.crash(host, false);
                        start(network, host);
                    }
                    _ => play.act(network, act, time_ms),
                }
            }
            network.step().await;
            time_ms += crate::hosts::TICK_MS;
            if time_ms.is_multiple_of(100) {
                let failure = play.late(time_ms);
                if failure.is_some() {
                    return failure;
                }
                if time_ms > SPAN_MS + 200 && unwell(&hosts).is_none() {
                    return None;
                }
            }
        }
        unwell(&hosts).map(|message| Failure { time: time_ms * 1_000_000, invariant: "liveness", message })
    });
    let failure = failure
        .unwrap_or_else(|| Some(Failure { time: 0, invariant: "driver", message: "no runtime could be made".into() }));
    if let Some(failure) = &failure {
        story.borrow_mut().push(format!("BROKEN {}", failure.message));
    }
    Run { failure, story: story.take(), seen: faults, time_ms }
}

/// What is under way.
struct Play<'a> {
    acts: std::iter::Peekable<std::vec::IntoIter<(u64, Act)>>,
    hosts: &'a [Rc<Host>],
    /// Since when a VIP of a pod is not ready.
    unready: BTreeMap<(usize, usize), u64>,
    /// Who was told to end.
    stopping: BTreeSet<usize>,
    /// When what disturbed the way to be heard is over, and whatever followed from it.
    calm_at: u64,
}

impl Play<'_> {
    fn say(&mut self, now: u64, pod: usize, bits: u64, lb: Lb) {
        self.hosts[pod].lb.send_replace(lb);
        for number in 0..VIPS {
            if bits >> number & 1 == 1 {
                self.unready.remove(&(pod, number));
            } else {
                self.unready.entry((pod, number)).or_insert(now);
            }
        }
    }

    fn act(&mut self, network: &mut Hosts<'_>, act: Act, now: u64) {
        if act.disturbs() {
            // Long enough for a hold timer and a segment that is sent again.
            self.calm_at = now + 5000 + LOSSY_LAG_MS;
        }
        match act {
            Act::Crash(host) => network.crash(host, true),
            Act::Kill(host) => network.crash(host, false),
            Act::Bounce(_) => {}
            Act::Stop(host) => {
                self.stopping.insert(host);
                if let Some(signals) = &*self.hosts[host].signals.borrow() {
                    // Full or ended: it has been told.
                    let _ = signals.try_send(Signal::Stop);
                }
            }
            Act::Cut(from, to, both) => network.cut(from, to, both),
            Act::Heal(one, other) => network.heal(one, other),
            Act::Hold(one, other) => network.hold(one, other),
            Act::Release(one, other) => network.release(one, other),
            Act::Loss(percent) => network.loss = percent,
            Act::Ready(pod, bits) => self.say(now, pod, bits, word(bits)),
            Act::Silent(pod) => self.say(now, pod, 0, Lb::Silent("it closed the connection".into())),
            Act::Delete(host, nth) => self.hosts[host].kernel.delete(usize::try_from(nth).unwrap_or(1)),
        }
    }

    /// A VIP that a gateway still sends to a pod which has not been ready for long.
    fn late(&self, now: u64) -> Option<Failure> {
        if now <= self.calm_at {
            return None;
        }
        let late = self.unready.iter().filter(|(_, since)| now > **since + LAG_MS);
        late.flat_map(|((pod, number), since)| [true, false].map(|ipv4| (*pod, vip(*number, ipv4), *since))).find_map(
            |(pod, vip, since)| {
                let hop = self.hosts[pod].addresses[usize::from(matches!(vip, IpNet::V6(_)))];
                let holds = |gateway: &Rc<Host>| gateway.learned().get(&vip).is_some_and(|hops| hops.contains(&hop));
                let since = Instant::from_millis(since);
                let message = format!("a gateway still sends {vip} to pod-{pod}, not ready since {since}");
                let failure = Failure { time: now * 1_000_000, invariant: "withdrawn", message };
                self.hosts.iter().skip(PODS).any(holds).then_some(failure)
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_driver_keeps_its_promises_and_repeats_its_story() {
        for seed in 0..3 {
            let run = play(seed);
            assert_eq!(run.failure, None, "seed {seed}");
            assert!(run.story.len() > 40, "{:#?}", run.story);
            if seed == 0 {
                assert_eq!(run.story, play(seed).story, "the same seed tells the same story");
            }
        }
    }
}
