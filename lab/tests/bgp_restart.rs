//! Our own graceful restart against FRR with `check-control-plane-failure`: what the gateway's users notice of it, in packets.
//!
//! A gateway's user asks the VIP a hundred times a second. The process that announces it dies and comes back (nothing may be lost), or
//! dies with its pod (then the restart time is the price, beside BFD's detection time without graceful restart).
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use martlet_lab::demo::topology::find_martlet;
use martlet_lab::lab::{End, Lab};
use martlet_lab::namespace::Namespace;
use martlet_lab::peer::Gateway as _;
use martlet_lab::peer::frr::Frr;
use martlet_lab::preflight;
use martlet_lab::process::Process;
use martlet_lab::sys::Signal;
use martlet_lab::wait::{LIMIT, Seen, until};

const VIP: &str = "20.0.0.1";
/// Seconds; FRR keeps the routes so long.
const RESTART: u32 = 4;

struct Play {
    lab: Lab,
    pod: Namespace,
    gateway: Namespace,
    frr: Frr,
    speaker: Process,
    probes: u32,
}

impl Play {
    fn new(graceful: bool) -> Self {
        preflight::check().unwrap();
        preflight::peers().unwrap();
        let lab = Lab::new(End::Remove).unwrap();
        let (pod, gateway) = (lab.namespace("pod").unwrap(), lab.namespace("gateway").unwrap());
        lab.link((&pod, "eth0"), (&gateway, "eth0")).unwrap();
        pod.ip(&format!("addr add 10.1.0.1/24 dev eth0\naddr add {VIP}/32 dev lo")).unwrap();
        gateway.ip("addr add 10.1.0.2/24 dev eth0").unwrap();
        let bgp = "router bgp 65002\n bgp router-id 10.1.0.2\n no bgp ebgp-requires-policy\n bgp graceful-restart\n \
                   neighbor 10.1.0.1 remote-as 65001\n neighbor 10.1.0.1 timers 3 9\n neighbor 10.1.0.1 timers connect 1\n \
                   neighbor 10.1.0.1 bfd\n neighbor 10.1.0.1 bfd profile lab\n \
                   neighbor 10.1.0.1 bfd check-control-plane-failure\n";
        let bfd =
            "bfd\n profile lab\n  receive-interval 300\n  transmit-interval 300\n  detect-multiplier 3\n exit\nexit\n";
        let file = lab.dir().join("frr.conf");
        fs::write(&file, format!("frr defaults datacenter\n{bfd}{bgp}exit\n")).unwrap();
        let frr = Frr::start(&lab, &gateway, &file, 179, "").unwrap();
        let key = if graceful { format!(", gracefulRestart: {RESTART}s") } else { String::new() };
        let text = format!(
            "localASN: 65001\nrouterId: 10.1.0.1\nlisten: [{{address: 10.1.0.1, port: 179}}]\noriginate: [{VIP}/32]\nneighbors:\n\
             - {{address: 10.1.0.2, remoteASN: 65002, holdTime: 9s, import: all, export: none, \
             bfd: {{minTx: 300ms, minRx: 300ms, multiplier: 3}}{key}}}\n"
        );
        fs::write(lab.dir().join("speaker.yaml"), text).unwrap();
        let speaker = start(&lab, &pod);
        let mut play = Self { lab, pod, gateway, frr, speaker, probes: 0 };
        play.settled();
        // When BGP comes up FRR replaces its BFD session and says Down with the old one: the first session may go once.
        std::thread::sleep(Duration::from_secs(3));
        play.settled();
        play
    }

    fn settled(&mut self) {
        until("BGP Established, BFD Up, the VIP in the gateway's kernel", LIMIT, || {
            let neighbors = self.frr.neighbors()?;
            let seen = format!("{neighbors:?}, routed: {}", self.routed());
            let ours = neighbors.values().next().copied().unwrap_or_default();
            let all = ours.established && ours.bfd_up == Some(true) && self.routed();
            Ok(if all { Seen::Yes(()) } else { Seen::NotYet(seen) })
        })
        .unwrap();
    }

    fn routed(&self) -> bool {
        self.gateway.output("ip", &["route", "show", VIP]).is_ok_and(|said| said.contains("10.1.0.1"))
    }

    /// Asks the VIP a hundred times a second, in the background.
    fn ask(&mut self) -> Process {
        self.probes += 1;
        let mut ping = Command::new("ping");
        ping.args(["-n", "-D", "-i", "0.01", "-W", "1", VIP]);
        self.lab.spawn(&format!("ping-{}", self.probes), Some(&self.gateway), ping).unwrap()
    }

    fn kill(&self) {
        self.speaker.signal(Signal::Kill).unwrap();
        self.speaker.wait(LIMIT).unwrap();
    }

    /// The pod dies: nobody is at the other end of its link any more. How many questions are sent into nothing until the gateway
    /// takes the route away, and how long that takes.
    fn die(&mut self) -> (u32, Duration) {
        let ping = self.ask();
        std::thread::sleep(Duration::from_millis(500));
        self.kill();
        let death = std::time::Instant::now();
        self.pod.ip(&format!("addr del {VIP}/32 dev lo\naddr del 10.1.0.1/24 dev eth0")).unwrap();
        until("the gateway to take the route away", LIMIT, || {
            Ok(if self.routed() { Seen::not_yet("the route is there") } else { Seen::Yes(()) })
        })
        .unwrap();
        let took = death.elapsed();
        let (sent, answered) = end(&ping);
        (sent - answered, took)
    }
}

fn start(lab: &Lab, pod: &Namespace) -> Process {
    let mut command = Command::new(find_martlet().unwrap());
    command.arg("speaker").arg(lab.dir().join("speaker.yaml"));
    lab.spawn("speaker", Some(pod), command).unwrap()
}

/// Ends a ping: questions that were sent, and answers.
fn end(ping: &Process) -> (u32, u32) {
    ping.signal(Signal::Int).unwrap();
    ping.wait(LIMIT).unwrap();
    let log = ping.log();
    let line = log.lines().find(|line| line.contains("packets transmitted")).unwrap_or_else(|| panic!("{log}"));
    let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    (numbers[0], numbers[1])
}

#[test]
fn a_restart_of_ours_is_not_noticed_and_a_dead_pod_costs_the_restart_time() {
    let mut play = Play::new(true);
    let ping = play.ask();
    std::thread::sleep(Duration::from_millis(500));
    for pause_ms in [0, 1500] {
        play.kill();
        // Longer than BFD needs to notice: FRR must not take the routes because of it.
        let mut gone = 0;
        for _ in 0..pause_ms / 50 {
            std::thread::sleep(Duration::from_millis(50));
            gone += u32::from(!play.routed());
        }
        assert_eq!(gone, 0, "the VIP left the gateway's kernel while we were away");
        play.speaker = start(&play.lab, &play.pod);
        play.settled();
    }
    let (sent, answered) = end(&ping);
    println!("restarted twice (at once, after 1.5 s): {answered} of {sent} questions answered");
    assert_eq!(sent, answered);
    assert!(sent > 50, "too few questions: {sent}");
    let (lost, took) = play.die();
    println!(
        "dead pod, graceful restart of {RESTART} s: {lost} questions lost at 100 a second, route gone after {took:.1?}"
    );
    assert!(took > Duration::from_secs(u64::from(RESTART) - 1), "it did not wait for us: {took:?}");
}

#[test]
fn without_graceful_restart_a_dead_pod_costs_the_detection_time_of_bfd() {
    let mut play = Play::new(false);
    let (lost, took) = play.die();
    println!("dead pod, no graceful restart: {lost} questions lost at 100 a second, route gone after {took:.1?}");
    assert!(took < Duration::from_secs(u64::from(RESTART)), "{took:?}");
}
