//! How soon a session is back after its path: ours, BIRD as Meridio configures it and FRR, each with the same gateway.
//!
//! The gateway is a `martlet speaker` that only waits, so that the time is that of who is measured. When a session is Established is
//! what the gateway says; when BFD is Up is what passes on the wire. All of them are measured at the same time, in labs of their own.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::bench::report::median;
use crate::bench::{Options, Row};
use crate::capture::Capture;
use crate::demo::topology::find_martlet;
use crate::interop::bed::{Martlet, is};
use crate::interop::stress::{again, since};
use crate::lab::{End, Lab};
use crate::namespace::{Cut, Namespace};
use crate::peer::frr::Frr;
use crate::process::Process;
use crate::sys::Signal;
use crate::wait::{LIMIT, Seen, until};
use crate::wire::What;

const SUBJECT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
const PORT: u16 = 10179;
/// How long the path is gone.
const LOSS: Duration = Duration::from_secs(3);
/// BIRD waits for a minute after an error.
const PATIENCE: Duration = Duration::from_mins(2);
/// What is broken.
const BREAKS: [&str; 3] = ["3 s silent loss", "3 s carrier loss", "gateway killed and started"];
/// Goals, milliseconds.
const ESTABLISHED: f64 = 300.0;
const UP: f64 = 1100.0;

/// Who is measured.
const WHO: [&str; 3] = ["martlet", "bird", "frr"];

/// By what was broken: milliseconds until Established to stay, and until BFD was Up at both ends.
type Times = BTreeMap<&'static str, Vec<(f64, f64)>>;

/// Measures all of them.
pub fn measure(options: &Options) -> Result<Vec<Row>> {
    let all: Vec<Result<Times>> = std::thread::scope(|scope| {
        let threads = WHO.map(|who| {
            // The others need two minutes for one round.
            let rounds = if who == "martlet" && !options.quick { 3 } else { 1 };
            scope.spawn(move || one(who, rounds).with_context(|| format!("recovery, {who}")))
        });
        threads.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).into()
    });
    let all = all.into_iter().collect::<Result<Vec<Times>>>()?;
    let mut rows = Vec::new();
    for what in BREAKS {
        let of = |who: usize, pick: Pick| -> Vec<f64> {
            all.get(who).and_then(|times| times.get(what)).into_iter().flatten().map(pick).collect()
        };
        let picks: [(_, _, Pick); 2] = [("Established", ESTABLISHED, |t| t.0), ("BFD Up", UP, |t| t.1)];
        for (name, bound, pick) in picks {
            let mut row = Row::below(&format!("recovery: {what}, {name}"), "ms", bound, of(0, pick));
            row.peers = (1..WHO.len()).map(|who| (WHO[who].to_owned(), median(&of(who, pick)))).collect();
            rows.push(row);
        }
    }
    Ok(rows)
}

/// One of the two times of a round.
type Pick = fn(&(f64, f64)) -> f64;

fn one(who: &str, rounds: u32) -> Result<Times> {
    let lab = Lab::new(End::Remove)?;
    let times = all(&lab, who, rounds).inspect_err(|_| lab.mark_failed());
    times.with_context(|| lab.tails(10))
}

fn all(lab: &Lab, who: &str, rounds: u32) -> Result<Times> {
    let [subject, gateway, fabric] = ["subject", "gateway", "fabric"].map(|role| lab.namespace(role));
    let (subject, gateway, fabric) = (subject?, gateway?, fabric?);
    for (namespace, port, host) in [(&subject, "to-subject", 1), (&gateway, "to-gateway", 2)] {
        lab.link((namespace, "eth0"), (&fabric, port))?;
        namespace.ip(&format!("addr add 10.1.0.{host}/24 dev eth0"))?;
    }
    fabric.bridge("bridge", &["to-subject", "to-gateway"])?;
    let mut capture = Capture::start(lab, &fabric, "to-gateway", PORT, "udp port 3784")?;
    let mut events = start_gateway(lab, &gateway, 0)?;
    let _subject = Subject::start(who, lab, &subject)?;
    events.wait("the session", 0, PATIENCE, |event| is(event, "established"))?;
    let mut times = Times::new();
    for round in 0..rounds {
        for what in BREAKS {
            bfd_up(&mut capture, SystemTime::now())?;
            let mut before = events.events()?.len();
            let back = match what {
                "gateway killed and started" => {
                    events.process.signal(Signal::Kill)?;
                    events.process.wait(LIMIT)?;
                    before = 0;
                    std::thread::sleep(LOSS);
                    let back = SystemTime::now();
                    events = start_gateway(lab, &gateway, round + 1)?;
                    back
                }
                what => {
                    let cut = if what == "3 s silent loss" { Cut::Silent } else { Cut::Carrier };
                    fabric.cut("to-subject", cut)?;
                    std::thread::sleep(LOSS);
                    let back = SystemTime::now();
                    fabric.mend("to-subject")?;
                    back
                }
            };
            let up = bfd_up(&mut capture, back)?.duration_since(back)?.as_secs_f64() * 1000.0;
            let (event, flaps) = again(&events, before)?;
            let established = since(back, &event)?;
            println!(
                "    {who}: {what}: Established after {established} ms ({flaps} flaps before), BFD Up after {up:.0} ms"
            );
            times.entry(what).or_default().push((f64::from(i32::try_from(established)?), up));
        }
    }
    Ok(times)
}

/// When both ends had said that BFD is Up, at or after `since`.
fn bfd_up(capture: &mut Capture, since: SystemTime) -> Result<SystemTime> {
    until("BFD Up at both ends", PATIENCE, || {
        let mut said: BTreeMap<IpAddr, u8> = BTreeMap::new();
        for event in capture.events()?.iter().filter(|event| event.at >= since) {
            if let What::Bfd(state) = event.what {
                said.insert(event.source, state);
            }
            if [SUBJECT, GATEWAY].iter().all(|end| said.get(end) == Some(&3)) {
                return Ok(Seen::Yes(event.at));
            }
        }
        Ok(Seen::not_yet(format!("{said:?}")))
    })
}

fn start_gateway(lab: &Lab, namespace: &Namespace, number: u32) -> Result<Martlet> {
    let text = format!(
        "localASN: 65002\nrouterId: {GATEWAY}\nlisten: [{{address: {GATEWAY}, port: {PORT}}}]\noriginate: [0.0.0.0/0]\nneighbors:\n\
         - {{address: {SUBJECT}, remoteASN: 65001, port: {PORT}, passive: true, holdTime: 9s, import: all, export: none, \
         bfd: {{minTx: 300ms, minRx: 300ms, multiplier: 3}}}}\n"
    );
    let path = lab.dir().join(format!("log/gateway-{number}.json"));
    let process = speaker(lab, namespace, "gateway", &text, Some(&path))?;
    Ok(Martlet::new(process, path, SUBJECT))
}

fn speaker(
    lab: &Lab,
    namespace: &Namespace,
    name: &str,
    text: &str,
    events: Option<&std::path::Path>,
) -> Result<Process> {
    let file = lab.dir().join(format!("{name}.yaml"));
    fs::write(&file, text)?;
    let mut command = Command::new(find_martlet()?);
    command.arg("speaker");
    if let Some(path) = events {
        command.arg("--json").arg(file);
        lab.spawn_into(name, namespace, command, path)
    } else {
        command.arg(file);
        lab.spawn(name, Some(namespace), command)
    }
}

/// Who is measured, running; ended by the lab.
#[expect(dead_code, reason = "held as long as it is to run")]
enum Subject {
    Process(Process),
    Frr(Frr),
}

impl Subject {
    fn start(who: &str, lab: &Lab, namespace: &Namespace) -> Result<Self> {
        Ok(match who {
            "martlet" => {
                let text = format!(
                    "localASN: 65001\nrouterId: {SUBJECT}\nlisten: [{{address: {SUBJECT}, port: {PORT}}}]\n\
                     originate: [20.0.0.1/32]\nneighbors:\n\
                     - {{address: {GATEWAY}, remoteASN: 65002, port: {PORT}, holdTime: 9s, import: all, export: none, \
                     bfd: {{minTx: 300ms, minRx: 300ms, multiplier: 3}}}}\n"
                );
                Self::Process(speaker(lab, namespace, "subject", &text, None)?)
            }
            "bird" => {
                // All that Meridio's frontend does not set is left as it is.
                let text = format!(
                    "router id {SUBJECT};\nprotocol device {{}}\n\
                     protocol bfd {{ interface \"eth0\" {{ min rx interval 300ms; min tx interval 300ms; multiplier 3; }}; }}\n\
                     protocol static {{ ipv4 {{ preference 110; }}; route 20.0.0.1/32 via \"lo\"; }}\n\
                     protocol bgp N {{ direct; interface \"eth0\"; local port {PORT} as 65001; neighbor {GATEWAY} port {PORT} as 65002; \
                     bfd on; graceful restart off; hold time 9; ipv4 {{ import all; export where source = RTS_STATIC; next hop \
                     self; }}; }}\n"
                );
                let file = lab.dir().join("bird.conf");
                fs::write(&file, text)?;
                let mut command = Command::new("bird");
                command.arg("-f").arg("-c").arg(file).arg("-s").arg(lab.dir().join("bird.ctl"));
                command.arg("-P").arg(lab.dir().join("bird.pid"));
                Self::Process(lab.spawn("bird", Some(namespace), command)?)
            }
            "frr" => {
                let text = format!(
                    "frr defaults datacenter\nbfd\n profile lab\n  receive-interval 300\n  transmit-interval 300\n  detect-multiplier 3\n \
                     exit\nexit\nrouter bgp 65001\n bgp router-id {SUBJECT}\n no bgp ebgp-requires-policy\n \
                     no bgp network import-check\n neighbor {GATEWAY} remote-as 65002\n neighbor {GATEWAY} port {PORT}\n \
                     neighbor {GATEWAY} timers 3 9\n neighbor {GATEWAY} bfd\n neighbor {GATEWAY} bfd profile lab\n \
                     address-family ipv4 unicast\n  network 20.0.0.1/32\n exit-address-family\nexit\n"
                );
                let file = lab.dir().join("frr.conf");
                fs::write(&file, text)?;
                Self::Frr(Frr::start(lab, namespace, &file, PORT, "")?)
            }
            other => bail!("nobody is called {other}"),
        })
    }
}
