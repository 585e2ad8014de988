//! BFD against FRR's bfdd and BIRD, 300 ms x 5: up, every way down, parameters changed in flight, authentication, echo.
//!
//! Detection times are printed beside the negotiated value; that the session went down, and why, is what is asserted. Needs
//! root. The endpoint is the router's own BFD thread (`martlet-lab bfd`).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use martlet_lab::bfd::{Bird, Endpoint, Kind, Line, Stage, Wish, bird_config, frr_config};
use martlet_lab::peer::frr::Frr;
use martlet_lab::wait::{LIMIT, Seen, until};
use martlet_lab::{Cut, End, Lab, Process, Signal, preflight};

/// FRR's daemons: zebra, bfdd, bgpd.
const BFDD: usize = 1;

fn lab() -> Lab {
    preflight::check().unwrap();
    Lab::new(End::Remove).unwrap()
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_martlet-lab"))
}

fn frr(lab: &Lab, stage: &Stage, config: &str) -> Frr {
    let file = lab.dir().join("frr.conf");
    std::fs::write(&file, config).unwrap();
    Frr::start(lab, &stage.theirs, &file, 179, "").unwrap()
}

fn start(lab: &Lab, stage: &Stage, name: &str, wishes: &[Wish], flags: &[&str]) -> Endpoint {
    Endpoint::start(lab, &stage.ours, program(), name, wishes, flags).unwrap()
}

fn names(wishes: &[Wish]) -> Vec<&str> {
    wishes.iter().map(|wish| wish.name.as_str()).collect()
}

/// Every session goes down for this reason; prints after how long.
fn all_down(ours: &mut Endpoint, wishes: &[Wish], since_us: u64, how: &str, why: &str) {
    let told = if why == "NeighborSignaledDown" { "told by the other end" } else { "negotiated: 1500 ms" };
    for wish in wishes {
        let (at_us, diagnostic) = ours.wait_change(&wish.name, since_us, "Down").unwrap();
        assert_eq!(diagnostic, why, "{how}: {}", wish.name);
        println!("  {how:<28} {:<14} Down after {:>5} ms  {told}", wish.name, (at_us - since_us) / 1000);
    }
}

/// What both FRR and BIRD are put through: the other end falls silent, the path is cut, our link loses its carrier.
fn cuts_and_silence(ours: &mut Endpoint, stage: &Stage, wishes: &[Wish], peer: &Process, title: &str) {
    let names = names(wishes);
    let since = Endpoint::now_us();
    peer.signal(Signal::Stop).unwrap();
    all_down(ours, wishes, since, &format!("{title} stopped"), "DetectionTimeExpired");
    peer.signal(Signal::Cont).unwrap();
    ours.wait_up(&names).unwrap();
    settle(ours, &names);

    let since = Endpoint::now_us();
    stage.fabric.cut("right", Cut::Silent).unwrap();
    all_down(ours, wishes, since, &format!("{title}, path cut"), "DetectionTimeExpired");
    stage.fabric.mend("right").unwrap();
    ours.wait_up(&names).unwrap();
    settle(ours, &names);

    let since = Endpoint::now_us();
    stage.fabric.cut("left", Cut::Carrier).unwrap();
    all_down(ours, wishes, since, &format!("{title}, carrier lost"), "DetectionTimeExpired");
    stage.fabric.mend("left").unwrap();
    ours.wait_up(&names).unwrap();
    settle(ours, &names);
}

fn settle(ours: &mut Endpoint, names: &[&str]) {
    ours.wait_negotiated(names, 300, 1500).unwrap();
}

fn changed(wishes: &[Wish], change: impl Fn(&mut Wish)) -> Vec<Wish> {
    let mut wishes = wishes.to_vec();
    wishes.iter_mut().for_each(change);
    wishes
}

/// Slower, faster and back again: the new intervals are in force, and no session has left Up.
fn parameters_change(ours: &mut Endpoint, wishes: &[Wish]) {
    let (names, since) = (names(wishes), Endpoint::now_us());
    for (min_tx_ms, min_rx_ms, multiplier, transmit_ms, detection_ms) in
        [(700, 400, 3, 700, 2000), (300, 900, 9, 300, 4500), (300, 300, 5, 300, 1500)]
    {
        let change =
            |wish: &mut Wish| (wish.min_tx_ms, wish.min_rx_ms, wish.multiplier) = (min_tx_ms, min_rx_ms, multiplier);
        ours.set(&changed(wishes, change)).unwrap();
        ours.wait_negotiated(&names, transmit_ms, detection_ms).unwrap();
    }
    assert_eq!(ours.downs(since).unwrap(), 0, "a change of parameters is no flap");
}

#[test]
fn frr_every_kind_of_session_comes_up_goes_down_for_the_right_reason_and_comes_back() {
    let lab = lab();
    let stage = Stage::build(&lab).unwrap();
    let frr = frr(&lab, &stage, &frr_config(&stage, &Kind::ALL, 300, 5, ""));
    let wishes = stage.wishes();
    let names = names(&wishes);
    let mut ours = start(&lab, &stage, "ours", &wishes, &[]);
    ours.wait_up(&names).unwrap();
    settle(&mut ours, &names);
    parameters_change(&mut ours, &wishes);
    ports_are_those_of_the_rfcs(&ours);

    // The other end changes its parameters too.
    let since = Endpoint::now_us();
    let theirs = |interval_ms| frr_config(&stage, &Kind::ALL, interval_ms, 5, "");
    for (interval_ms, detection_ms) in [(600, 3000), (300, 1500)] {
        frr.configure(&theirs(interval_ms).lines().collect::<Vec<_>>()).unwrap();
        ours.wait_negotiated(&names, interval_ms, detection_ms).unwrap();
    }
    assert_eq!(ours.downs(since).unwrap(), 0, "their change of parameters is no flap");

    // AdminDown at the other end, then at ours.
    let since = Endpoint::now_us();
    frr.configure(&frr_config(&stage, &Kind::ALL, 300, 5, "  shutdown\n").lines().collect::<Vec<_>>()).unwrap();
    all_down(&mut ours, &wishes, since, "FRR AdminDown", "NeighborSignaledDown");
    let said = |line: &Line| matches!(line, Line::Changed { to, remote_state, .. } if to == "Down" && remote_state == "AdminDown");
    assert_eq!(ours.lines().unwrap().iter().filter(|line| said(line)).count(), wishes.len());
    frr.configure(&frr_config(&stage, &Kind::ALL, 300, 5, "  no shutdown\n").lines().collect::<Vec<_>>()).unwrap();
    ours.wait_up(&names).unwrap();
    settle(&mut ours, &names);
    ours.set(&changed(&wishes, |wish| wish.admin_down = true)).unwrap();
    frr_hears(&frr, "administratively down");
    ours.set(&wishes).unwrap();
    ours.wait_up(&names).unwrap();
    settle(&mut ours, &names);

    cuts_and_silence(&mut ours, &stage, &wishes, &frr.daemons[BFDD], "FRR");
    ours.process.signal(Signal::Term).unwrap();
    frr_hears(&frr, "administratively down");
}

/// One hop: to 3784; several: to 4784; from 49152 on (RFC 5881 section 4, RFC 5883 section 5), one port a family and place.
fn ports_are_those_of_the_rfcs(ours: &Endpoint) {
    for table in ["udp", "udp6"] {
        let table = std::fs::read_to_string(format!("/proc/{}/net/{table}", ours.process.pid())).unwrap();
        let local = |line: &str| line.split_whitespace().nth(1)?.rsplit(':').next().map(str::to_owned);
        let ports = table.lines().skip(1).filter_map(local).map(|port| u16::from_str_radix(&port, 16).unwrap());
        let (from, to): (Vec<u16>, Vec<u16>) = ports.partition(|port| *port >= 49152);
        assert!(from.len() == 2 && to.len() == 2 && to.contains(&3784) && to.contains(&4784), "{from:?} {to:?}");
    }
}

/// Waits until FRR says of every session that it is down, and that we gave this diagnostic.
fn frr_hears(frr: &Frr, diagnostic: &str) {
    until(&format!("FRR to hear {diagnostic}"), LIMIT, || {
        let sessions = frr.show("show bfd peers json")?;
        let all = sessions.as_array().is_some_and(|all| {
            !all.is_empty()
                && all.iter().all(|session| session["status"] == "down" && session["remote-diagnostic"] == diagnostic)
        });
        Ok(if all { Seen::Yes(()) } else { Seen::not_yet(sessions.to_string()) })
    })
    .unwrap();
}

#[test]
fn bird_every_kind_of_session_comes_up_goes_down_for_the_right_reason_and_comes_back() {
    let lab = lab();
    let stage = Stage::build(&lab).unwrap();
    let bird = Bird::start(&lab, &stage.theirs, &bird_config(&stage, 300, 5, "")).unwrap();
    let mut wishes = stage.wishes();
    for wish in wishes.iter_mut().filter(|wish| wish.interface.is_none()) {
        // BIRD begins with 64 where others begin with 255, and the router in the middle takes one off.
        wish.min_ttl = 63;
    }
    let names = names(&wishes);
    let mut ours = start(&lab, &stage, "ours", &wishes, &[]);
    ours.wait_up(&names).unwrap();
    settle(&mut ours, &names);
    parameters_change(&mut ours, &wishes);
    ours.set(&changed(&wishes, |wish| wish.admin_down = true)).unwrap();
    bird_says(&bird, "Down", wishes.len());
    ours.set(&wishes).unwrap();
    ours.wait_up(&names).unwrap();
    bird_says(&bird, "Up", wishes.len());
    settle(&mut ours, &names);

    // The other end changes its parameters too.
    let since = Endpoint::now_us();
    for (interval_ms, multiplier, detection_ms) in [(600, 4, 2400), (300, 5, 1500)] {
        bird.configure(&bird_config(&stage, interval_ms, multiplier, "")).unwrap();
        ours.wait_negotiated(&names, interval_ms, detection_ms).unwrap();
    }
    assert_eq!(ours.downs(since).unwrap(), 0, "their change of parameters is no flap");
    // BIRD 2 has no AdminDown of its own: it falls silent.
    let since = Endpoint::now_us();
    bird.enable(false).unwrap();
    all_down(&mut ours, &wishes, since, "BIRD disabled", "DetectionTimeExpired");
    bird.enable(true).unwrap();
    ours.wait_up(&names).unwrap();
    settle(&mut ours, &names);
    cuts_and_silence(&mut ours, &stage, &wishes, &bird.process, "BIRD");
}

fn bird_says(bird: &Bird, state: &str, sessions: usize) {
    until(&format!("BIRD to say {state}"), LIMIT, || {
        let said = bird.sessions()?;
        let found = said.lines().filter(|line| line.split_whitespace().nth(2) == Some(state)).count();
        Ok(if found == sessions { Seen::Yes(()) } else { Seen::not_yet(said) })
    })
    .unwrap();
}

#[test]
fn authentication_of_all_five_kinds_agrees_with_bird_and_a_wrong_key_stays_down() {
    const KINDS: [&str; 5] = ["simple", "keyed md5", "meticulous keyed md5", "keyed sha1", "meticulous keyed sha1"];
    let lab = lab();
    let (ours, theirs) = (lab.namespace("ours").unwrap(), lab.namespace("theirs").unwrap());
    let (mut config, mut right) =
        (String::from("router id 10.0.0.2;\nprotocol device {}\nprotocol bfd {\n"), Vec::new());
    let mut neighbors = String::new();
    for (number, kind) in KINDS.iter().enumerate() {
        let link = format!("link{number}");
        lab.link((&ours, &link), (&theirs, &link)).unwrap();
        ours.ip(&format!("addr add 10.0.{number}.1/24 dev {link}")).unwrap();
        theirs.ip(&format!("addr add 10.0.{number}.2/24 dev {link}")).unwrap();
        let _ = writeln!(
            config,
            "interface \"{link}\" {{ min rx interval 300 ms; min tx interval 300 ms; idle tx interval 1 s; multiplier 5; \
             authentication {kind}; password \"first\" {{ id 7; }}; password \"second\" {{ id 8; }}; }};"
        );
        let _ = writeln!(neighbors, "neighbor 10.0.{number}.1 dev \"{link}\" local 10.0.{number}.2;");
        let mut wish = Wish::to(kind, &link, [10, 0, u8::try_from(number).unwrap(), 2].into());
        wish.auth = Some(((*kind).to_owned(), vec![(7, "first".to_owned()), (8, "second".to_owned())]));
        right.push(wish);
    }
    let _bird = Bird::start(&lab, &theirs, &format!("{config}{neighbors}}}\n")).unwrap();

    let keyed = |keys: &[(u8, &str)]| {
        changed(&right, |wish| {
            if let Some((_, all)) = &mut wish.auth {
                *all = keys.iter().map(|(id, secret)| (*id, (*secret).to_owned())).collect();
            }
        })
    };
    let mut endpoint = Endpoint::start(&lab, &ours, program(), "ours", &keyed(&[(7, "wrong")]), &[]).unwrap();
    // Both sides talk at once a second: each has said Down several times and was heard by nobody.
    until("packets with a wrong digest", LIMIT, || {
        let Line::Counters { discarded, .. } = endpoint.counters()? else { return Ok(Seen::not_yet("no counters")) };
        let wrong = discarded.get("auth-digest").copied().unwrap_or_default();
        Ok(if wrong >= 20 { Seen::Yes(()) } else { Seen::not_yet(format!("{discarded:?}")) })
    })
    .unwrap();
    for wish in &right {
        assert_eq!(endpoint.changes(&wish.name, 0).unwrap(), [], "{} with a wrong key", wish.name);
    }
    endpoint.set(&right).unwrap();
    let names = names(&right);
    endpoint.wait_up(&names).unwrap();
    settle(&mut endpoint, &names);
    // The second key signs: BIRD takes both, nobody leaves Up. That every packet is checked shows in the next step.
    let since = Endpoint::now_us();
    endpoint.set(&keyed(&[(8, "second"), (7, "first")])).unwrap();
    let heard = |endpoint: &mut Endpoint| match endpoint.counters().unwrap() {
        Line::Counters { received, .. } => received,
        _ => 0,
    };
    let before = heard(&mut endpoint);
    until("two Detection Times", LIMIT, || {
        let now = heard(&mut endpoint);
        Ok(if now > before + 60 { Seen::Yes(()) } else { Seen::not_yet(format!("{now}")) })
    })
    .unwrap();
    assert_eq!(endpoint.downs(since).unwrap(), 0, "a key was rolled over");
    let since = Endpoint::now_us();
    endpoint.set(&keyed(&[(8, "wrong")])).unwrap();
    for wish in &right {
        let (_, why) = endpoint.wait_change(&wish.name, since, "Down").unwrap();
        assert!(["DetectionTimeExpired", "NeighborSignaledDown"].contains(&why.as_str()), "{}: {why}", wish.name);
        println!("  authentication, BIRD         {:<21} Up, rolled over, Down with a wrong key", wish.name);
    }
}

#[test]
fn echo_packets_supervise_a_neighbour_with_bfd_and_one_without() {
    let lab = lab();
    let stage = Stage::build(&lab).unwrap();
    let unaffiliated = [Kind::Ipv4, Kind::Ipv6].map(|kind| Wish {
        echo_ms: Some(100),
        unaffiliated: true,
        multiplier: 5,
        ..stage.wish(kind)
    });
    let mut alone = start(&lab, &stage, "unaffiliated", &unaffiliated, &[]);
    cut_and_mend(&mut alone, &stage, &unaffiliated, "no BFD there, path cut");
    drop(alone.process.signal(Signal::Term));
    alone.process.wait(LIMIT).unwrap();

    let kinds = [Kind::Ipv4, Kind::Ipv6];
    let _frr = frr(&lab, &stage, &frr_config(&stage, &kinds, 300, 50, ""));
    // Their control packets may be missing for 15 s: what goes down sooner goes down by its echoes.
    let echoing = kinds.map(|kind| Wish { echo_ms: Some(100), ..stage.wish(kind) });
    let mut both = start(&lab, &stage, "echo", &echoing, &[]);
    both.wait_up(&names(&echoing)).unwrap();
    cut_and_mend(&mut both, &stage, &echoing, "FRR echoes, path cut");
}

#[test]
fn frr_supervises_us_by_echo_packets_that_our_kernel_sends_back() {
    let lab = lab();
    let stage = Stage::build(&lab).unwrap();
    let forward = |on| stage.ours.sysctl("net.ipv4.conf.all.forwarding", on).unwrap();
    for interface in ["all", "eth0"] {
        stage.ours.sysctl(&format!("net.ipv4.conf.{interface}.send_redirects"), "0").unwrap();
    }
    forward("1");
    // Their control packets may be missing for 15 s: what goes down sooner goes down by its echoes.
    let extra = "  echo-mode\n  echo transmit-interval 100\n";
    let frr = frr(&lab, &stage, &frr_config(&stage, &[Kind::Ipv4], 300, 5, extra));
    let wish = stage.wish(Kind::Ipv4);
    let refusing = std::slice::from_ref(&wish);
    let mut ours = start(&lab, &stage, "echoed", refusing, &[]);
    ours.wait_up(&["ipv4"]).unwrap();
    let came_back = || {
        let said = frr.show("show bfd peers counters json").unwrap();
        said[0]["echo-packet-input"].as_u64().unwrap_or_else(|| panic!("no counter in {said}"))
    };
    settle(&mut ours, &["ipv4"]);
    assert_eq!(came_back(), 0, "not while we do not allow it");
    let since = Endpoint::now_us();
    ours.set(&[Wish { echo_rx_ms: Some(100), multiplier: 50, ..wish.clone() }]).unwrap();
    until("FRR's echoes to come back", LIMIT, || {
        let back = came_back();
        Ok(if back >= 30 { Seen::Yes(()) } else { Seen::not_yet(format!("{back}")) })
    })
    .unwrap();
    assert_eq!(ours.downs(since).unwrap(), 0);
    let since = Endpoint::now_us();
    forward("0");
    let (at_us, why) = ours.wait_change("ipv4", since, "Down").unwrap();
    assert_eq!(why, "NeighborSignaledDown", "FRR heard our control packets, but no echo");
    println!("  FRR echoes by way of us: told Down {} ms after our kernel stopped to forward", (at_us - since) / 1000);
    forward("1");
    ours.wait_up(&["ipv4"]).unwrap();
}

fn cut_and_mend(ours: &mut Endpoint, stage: &Stage, wishes: &[Wish], how: &str) {
    let names = names(wishes);
    ours.wait_up(&names).unwrap();
    until("echo packets", LIMIT, || {
        let Line::Counters { echoes_received, .. } = ours.counters()? else { return Ok(Seen::not_yet("")) };
        Ok(if echoes_received > 40 { Seen::Yes(()) } else { Seen::not_yet(format!("{echoes_received}")) })
    })
    .unwrap();
    let since = Endpoint::now_us();
    stage.fabric.cut("right", Cut::Silent).unwrap();
    for wish in wishes {
        let (at_us, why) = ours.wait_change(&wish.name, since, "Down").unwrap();
        assert_eq!(why, "EchoFailed", "{how}: {}", wish.name);
        println!("  {how:<28} {:<14} Down after {:>5} ms  echoes every 100 ms x 5", wish.name, (at_us - since) / 1000);
    }
    stage.fabric.mend("right").unwrap();
    ours.wait_up(&names).unwrap();
}

#[test]
fn an_interface_that_is_made_again_gets_its_session_back() {
    let lab = lab();
    let stage = Stage::build(&lab).unwrap();
    let _frr = frr(&lab, &stage, &frr_config(&stage, &[Kind::Ipv4], 300, 5, ""));
    let wishes = [stage.wish(Kind::Ipv4)];
    let mut ours = start(&lab, &stage, "ours", &wishes, &[]);
    ours.wait_up(&["ipv4"]).unwrap();
    let since = Endpoint::now_us();
    stage.ours.ip("link del eth0").unwrap();
    let (_, why) = ours.wait_change("ipv4", since, "Down").unwrap();
    assert_eq!(why, "DetectionTimeExpired");
    let missing = |line: &Line| matches!(line, Line::Problem { text, .. } if text == "eth0: no such interface");
    assert!(ours.lines().unwrap().iter().any(missing), "who runs it is told");
    // Another index than before.
    stage.ours.ip("link add other type bridge").unwrap();
    lab.link((&stage.ours, "eth0"), (&stage.fabric, "left")).unwrap();
    stage.fabric.ip("link set left master bridge").unwrap();
    stage.ours.ip("addr add 10.0.0.1/24 dev eth0").unwrap();
    ours.wait_up(&["ipv4"]).unwrap();
}

#[test]
fn our_own_standstill_is_not_taken_for_the_silence_of_the_other_end() {
    let lab = lab();
    let stage = Stage::build(&lab).unwrap();
    let frr = frr(&lab, &stage, &frr_config(&stage, &[Kind::Ipv4], 300, 5, ""));
    // They wait 30 s for us, we wait 1.5 s for them.
    let wishes = [Wish { multiplier: 100, ..stage.wish(Kind::Ipv4) }];
    let mut ours = start(&lab, &stage, "patient", &wishes, &[]);
    ours.wait_up(&["ipv4"]).unwrap();
    settle(&mut ours, &["ipv4"]);
    let since = Endpoint::now_us();
    for stop_ms in [700, 3000] {
        stand_still(&ours, stop_ms);
        let stalled = until("the stall to be told", LIMIT, || {
            let told = ours.lines()?.iter().rev().find_map(|line| match line {
                Line::Stalled { at_us, late_us } if *at_us >= since && *late_us >= (stop_ms - 400) * 1000 => {
                    Some(*late_us)
                }
                _ => None,
            });
            Ok(told.map_or_else(|| Seen::not_yet("none"), Seen::Yes))
        });
        println!("  we stood still for {stop_ms} ms: woke {} ms late", stalled.unwrap() / 1000);
        // Packets that come after it.
        ours.counters().unwrap();
    }
    assert_eq!(ours.downs(since).unwrap(), 0);

    // If they lost patience meanwhile, they say so: that, and not their silence, takes our end down.
    ours.set(&[stage.wish(Kind::Ipv4)]).unwrap();
    until("FRR to know", LIMIT, || {
        let sessions = frr.show("show bfd peers json")?;
        let known = sessions[0]["remote-detect-multiplier"] == 5;
        Ok(if known { Seen::Yes(()) } else { Seen::not_yet(sessions.to_string()) })
    })
    .unwrap();
    let since = Endpoint::now_us();
    stand_still(&ours, 4000);
    let (_, why) = ours.wait_change("ipv4", since, "Down").unwrap();
    assert_eq!(why, "NeighborSignaledDown");
    ours.wait_up(&["ipv4"]).unwrap();
}

#[test]
fn without_the_stall_guard_a_standstill_counts_as_silence() {
    let lab = lab();
    let stage = Stage::build(&lab).unwrap();
    let _frr = frr(&lab, &stage, &frr_config(&stage, &[Kind::Ipv4], 300, 5, ""));
    // They wait 30 s for us, we wait 1.5 s for them: with the guard nothing happens (see the test above).
    let wishes = [Wish { multiplier: 100, ..stage.wish(Kind::Ipv4) }];
    let mut ours = start(&lab, &stage, "unguarded", &wishes, &["--no-stall-guard"]);
    ours.wait_up(&["ipv4"]).unwrap();
    settle(&mut ours, &["ipv4"]);
    let since = Endpoint::now_us();
    stand_still(&ours, 3000);
    let (_, why) = ours.wait_change("ipv4", since, "Down").unwrap();
    assert_eq!(why, "DetectionTimeExpired");
    ours.wait_up(&["ipv4"]).unwrap();
}

#[test]
fn a_neighbour_that_died_while_we_stood_still_is_down_before_a_whole_detection_time_more() {
    let lab = lab();
    let stage = Stage::build(&lab).unwrap();
    let frr = frr(&lab, &stage, &frr_config(&stage, &[Kind::Ipv4], 300, 5, ""));
    let wishes = [stage.wish(Kind::Ipv4)];
    let mut ours = start(&lab, &stage, "ours", &wishes, &[]);
    ours.wait_up(&["ipv4"]).unwrap();
    settle(&mut ours, &["ipv4"]);
    ours.process.signal(Signal::Stop).unwrap();
    // Its last packets wait in our socket, with the time of their arrival.
    std::thread::sleep(Duration::from_millis(600));
    frr.daemons[BFDD].signal(Signal::Stop).unwrap();
    std::thread::sleep(Duration::from_millis(2400));
    let woken_us = Endpoint::now_us();
    ours.process.signal(Signal::Cont).unwrap();
    let (at_us, why) = ours.wait_change("ipv4", woken_us, "Down").unwrap();
    assert_eq!(why, "DetectionTimeExpired");
    let after_ms = (at_us - woken_us) / 1000;
    println!("  FRR stopped while we stood still: Down {after_ms} ms after we woke  negotiated: 1500 ms");
    assert!(after_ms < 1500, "what waited in the socket was taken for fresh: {after_ms} ms");
    frr.daemons[BFDD].signal(Signal::Cont).unwrap();
    ours.wait_up(&["ipv4"]).unwrap();
}

fn stand_still(ours: &Endpoint, millis: u64) {
    ours.process.signal(Signal::Stop).unwrap();
    std::thread::sleep(Duration::from_millis(millis));
    ours.process.signal(Signal::Cont).unwrap();
}
