//! The second world: the product's real driver (its loop, its tasks, its shutdown) over turmoil.
//!
//! Two gateways and two pods, each a host that runs `Driver`; a gateway is a router that announces a default route. Hosts
//! crash and come back with the kernel they left, links are cut or held, readiness changes, kernel objects are deleted. What
//! is asked: a VIP that is not ready is gone from the gateways in time, and in the end everything is well.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use martlet_api::readiness::{Readiness as Said, VERSION, VipReadiness};
use martlet_api::view::{Bgp, GatewayRouter, ObjectName, Protocol, View};
use martlet_clock::{Dice, Instant};
use martlet_netlink::Link;
use martlet_router::core::{Config, Router};
use martlet_router::driver::{Asker, Clock, Driver, Signal, World};
use martlet_router::gate::Lb;
use martlet_router::intent::{Identity, Settings};
use tokio::sync::{mpsc, watch};

use crate::check::Failure;
use crate::net::{Fixed, NoBfd, SharedKernel, SimNet, Word};
use crate::objects::{GATEWAY, vip};

const HOSTS: [&str; 4] = ["pod-0", "pod-1", "gateway-0", "gateway-1"];
const PODS: usize = 2;
const VIPS: usize = 3;
/// Milliseconds of faults.
const SPAN_MS: u64 = 15_000;
/// Until when all must be well.
const END_MS: u64 = SPAN_MS + 75_000;
/// How long a withdrawal may take over a network with 20 ms of latency whose faults ended a while ago.
const LAG_MS: u64 = 400;
const TICK_MS: u64 = 2;

/// One thing that goes wrong, or right again.
#[derive(Clone, Copy, Debug)]
enum Act {
    Crash(usize),
    Bounce(usize),
    Stop(usize),
    Partition(usize, usize),
    Repair(usize, usize),
    Hold(usize, usize),
    Release(usize, usize),
    Ready(usize, u64),
    Silent(usize),
    Delete(usize, u64),
}

struct Host {
    kernel: SharedKernel,
    lb: watch::Sender<Lb>,
    signals: RefCell<Option<mpsc::Sender<Signal>>>,
    address: IpAddr,
}

fn acts(dice: &mut Dice) -> Vec<(u64, Act)> {
    let mut acts = Vec::new();
    let index = |dice: &mut Dice, bound: u64| usize::try_from(dice.below(bound)).unwrap_or_default();
    for _ in 0..6 + dice.below(10) {
        let at = 1000 + dice.below(SPAN_MS - 4000);
        let end = at + 20 + dice.below(3000);
        let (pod, gateway, host) = (index(dice, 2), PODS + index(dice, 2), index(dice, 4));
        match dice.below(8) {
            0 => acts.extend([(at, Act::Crash(host)), (end, Act::Bounce(host))]),
            1 => acts.extend([(at, Act::Stop(pod)), (end + 2500, Act::Bounce(pod))]),
            2 => acts.extend([(at, Act::Partition(pod, gateway)), (end, Act::Repair(pod, gateway))]),
            3 => acts.extend([(at, Act::Hold(pod, gateway)), (end, Act::Release(pod, gateway))]),
            4 => acts.push((at, Act::Silent(pod))),
            5 => acts.push((at, Act::Delete(host, 1 + dice.below(3)))),
            _ => acts.extend([(at, Act::Ready(pod, dice.below(8))), (end, Act::Ready(pod, dice.below(8)))]),
        }
    }
    for pod in 0..PODS {
        acts.push((SPAN_MS, Act::Ready(pod, u64::MAX)));
        for gateway in PODS..HOSTS.len() {
            acts.extend([(SPAN_MS, Act::Repair(pod, gateway)), (SPAN_MS, Act::Release(pod, gateway))]);
        }
    }
    acts.extend((0..HOSTS.len()).map(|host| (SPAN_MS, Act::Bounce(host))));
    acts.sort_by_key(|(at, _)| *at);
    acts
}

/// A load balancer that is ready for the VIPs of these bits.
fn word(bits: u64) -> Lb {
    let vips = (0..VIPS).map(|number| {
        let ready = bits >> number & 1 == 1;
        (vip(number, true), VipReadiness { ready, reason: String::new() })
    });
    Lb::Said(Said { version: VERSION, gateway: GATEWAY.into(), draining: false, vips: vips.collect() })
}

fn view(host: usize, addresses: &[IpAddr]) -> View {
    let peers = if host < PODS { PODS..HOSTS.len() } else { 0..PODS };
    let router = |peer: usize| {
        let bgp = Protocol::Bgp(Box::<Bgp>::default());
        GatewayRouter { address: addresses[peer], interface: None, description: None, protocol: bgp }
    };
    let vips = if host < PODS {
        (0..VIPS).map(|number| vip(number, true)).collect()
    } else {
        [IpNet::V4(Ipv4Net::default())].into()
    };
    View {
        gateway: ObjectName::new("default", GATEWAY),
        exists: true,
        routers: peers.map(|peer| (HOSTS[peer].into(), router(peer))).collect(),
        routes: BTreeMap::new(),
        services: BTreeMap::new(),
        vips,
        subnets: BTreeSet::new(),
        conditions: BTreeSet::new(),
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

/// The story of a run.
pub type Story = Rc<RefCell<Vec<String>>>;

async fn drive(host: usize, seed: u64, one: Rc<Host>, addresses: Vec<IpAddr>, story: Story) {
    let (signal, signals) = mpsc::channel(4);
    one.signals.replace(Some(signal));
    let mut lb = one.lb.subscribe();
    lb.mark_changed();
    one.kernel.open();
    let (_asker, questions) = Asker::new();
    let world = World {
        net: SimNet::default(),
        bfd: NoBfd,
        kernel: one.kernel.clone(),
        source: Fixed(Some(view(host, &addresses))),
        readiness: Word(lb),
        signals,
        questions,
        vital: watch::Sender::default(),
        clock: Clock::new(Instant::ORIGIN),
    };
    let driver = Driver::new(Router::new(config(host, seed)), settings(host), world, move |_, event| {
        let now = Instant::ORIGIN + turmoil::sim_elapsed().unwrap_or_default();
        story.borrow_mut().push(format!("{now} {} {} {event}", HOSTS[host], event.subject()));
    });
    driver.run().await;
}

/// What is wrong at the end.
fn unwell(hosts: &[Rc<Host>]) -> Option<String> {
    let addresses = |from: usize, to: usize| -> BTreeSet<IpAddr> {
        hosts.iter().take(to).skip(from).map(|host| host.address).collect()
    };
    let (pods, gateways) = (addresses(0, PODS), addresses(PODS, HOSTS.len()));
    hosts.iter().enumerate().find_map(|(number, host)| {
        let learned = host.kernel.look(|kernel| kernel.learned(4096, 20));
        let expected: BTreeMap<IpNet, BTreeSet<IpAddr>> = if number < PODS {
            [(IpNet::V4(Ipv4Net::default()), gateways.clone())].into()
        } else {
            (0..VIPS).map(|number| (vip(number, true), pods.clone())).collect()
        };
        (learned != expected).then(|| format!("{} has {learned:?} instead of {expected:?}", HOSTS[number]))
    })
}

/// Plays a seed; the broken promise and the story.
pub fn play(seed: u64) -> (Option<Failure>, Vec<String>) {
    let mut dice = Dice::new(seed ^ 0xd21e);
    let mut network = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_millis(END_MS + 10_000))
        .tick_duration(Duration::from_millis(TICK_MS))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(20))
        .build();
    let story = Story::default();
    let addresses: Vec<IpAddr> = HOSTS.iter().map(|name| network.lookup(*name)).collect();
    let mut hosts = Vec::new();
    for (number, address) in addresses.iter().enumerate() {
        let (lb, _) = watch::channel(if number < PODS { word(u64::MAX) } else { Lb::Ungated });
        let one = Rc::new(Host { kernel: SharedKernel::default(), lb, signals: RefCell::default(), address: *address });
        let IpAddr::V4(v4) = *address else { continue };
        let net = Ipv4Net::new(v4, 16).map(IpNet::V4).ok();
        let link = Link {
            index: 1,
            name: "eth0".into(),
            up: true,
            carrier: true,
            mtu: 1500,
            addresses: net.into_iter().collect(),
        };
        one.kernel.look(|kernel| kernel.links.insert(1, link));
        let (host, addresses, story) = (Rc::clone(&one), addresses.clone(), Rc::clone(&story));
        network.host(HOSTS[number], move || {
            let (host, addresses, story) = (Rc::clone(&host), addresses.clone(), Rc::clone(&story));
            async move {
                drive(number, seed, host, addresses, story).await;
                // An ended router is a host without a process.
                std::future::pending().await
            }
        });
        hosts.push(one);
    }
    let failure = perform(&mut network, &hosts, &acts(&mut dice), &story);
    if let Some(failure) = &failure {
        story.borrow_mut().push(format!("BROKEN {}", failure.message));
    }
    let lines = story.borrow().clone();
    (failure, lines)
}

fn perform(network: &mut turmoil::Sim<'_>, hosts: &[Rc<Host>], acts: &[(u64, Act)], story: &Story) -> Option<Failure> {
    let mut next = acts.iter().peekable();
    // Since when a VIP of a pod is not ready, and since when nothing disturbs the pod's way to be heard.
    let mut unready: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    let mut calm_at = 0;
    let mut now = 0;
    while now < END_MS {
        while let Some((_, act)) = next.next_if(|(at, _)| *at <= now) {
            story.borrow_mut().push(format!("{} FAULT {act:?}", Instant::from_millis(now)));
            if !matches!(act, Act::Ready(..) | Act::Silent(_) | Act::Delete(..)) {
                // Long enough for a hold timer.
                calm_at = now + 5000;
            }
            do_act(network, hosts, *act, now, &mut unready);
        }
        if let Err(error) = network.step() {
            return Some(Failure { time: now * 1_000_000, invariant: "driver", message: error.to_string() });
        }
        now += TICK_MS;
        if now % 100 == 0 {
            for ((pod, number), since) in &unready {
                let late = now > since + LAG_MS && now > calm_at;
                let held = |gateway: &Rc<Host>| {
                    let learned = gateway.kernel.look(|kernel| kernel.learned(4096, 20));
                    learned.get(&vip(*number, true)).is_some_and(|hops| hops.contains(&hosts[*pod].address))
                };
                if late && hosts.iter().skip(PODS).any(held) {
                    let message = format!(
                        "a gateway still sends {} to pod-{pod}, not ready since {}",
                        vip(*number, true),
                        Instant::from_millis(*since)
                    );
                    return Some(Failure { time: now * 1_000_000, invariant: "withdrawn", message });
                }
            }
            if now > SPAN_MS + 200 && unwell(hosts).is_none() {
                return None;
            }
        }
    }
    unwell(hosts).map(|message| Failure { time: now * 1_000_000, invariant: "liveness", message })
}

fn do_act(
    network: &mut turmoil::Sim<'_>,
    hosts: &[Rc<Host>],
    act: Act,
    now: u64,
    unready: &mut BTreeMap<(usize, usize), u64>,
) {
    let say = |pod: usize, bits: u64, lb: Lb, unready: &mut BTreeMap<(usize, usize), u64>| {
        hosts[pod].lb.send_replace(lb);
        for number in 0..VIPS {
            if bits >> number & 1 == 1 {
                unready.remove(&(pod, number));
            } else {
                unready.entry((pod, number)).or_insert(now);
            }
        }
    };
    match act {
        Act::Crash(host) => network.crash(HOSTS[host]),
        Act::Bounce(host) => network.bounce(HOSTS[host]),
        Act::Stop(host) => {
            if let Some(signals) = &*hosts[host].signals.borrow() {
                // Full or ended: it has been told.
                let _ = signals.try_send(Signal::Stop);
            }
        }
        Act::Partition(one, other) => network.partition(HOSTS[one], HOSTS[other]),
        Act::Repair(one, other) => network.repair(HOSTS[one], HOSTS[other]),
        Act::Hold(one, other) => network.hold(HOSTS[one], HOSTS[other]),
        Act::Release(one, other) => network.release(HOSTS[one], HOSTS[other]),
        Act::Ready(pod, bits) => say(pod, bits, word(bits), unready),
        Act::Silent(pod) => say(pod, 0, Lb::Silent("it closed the connection".into()), unready),
        Act::Delete(host, nth) => hosts[host].kernel.delete(usize::try_from(nth).unwrap_or(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_driver_keeps_its_promises_and_repeats_its_story() {
        for seed in 0..3 {
            let (failure, story) = play(seed);
            assert_eq!(failure, None, "seed {seed}");
            assert!(story.len() > 40, "{story:#?}");
            if seed == 0 {
                assert_eq!(story, play(seed).1, "the same seed tells the same story");
            }
        }
    }
}
