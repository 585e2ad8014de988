//! BFD and those who use it (RFC 5882), with the product and FRR: strict mode, `AdminDown`, a real Down. Needs root, FRR and
//! the product (`MARTLET_BIN`, else `target/lab/martlet`).

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::collections::BTreeMap;
use std::time::Duration;

use martlet_lab::peer::frr::Frr;
use martlet_lab::stage::{Stage, VIPS, frr_config, gateway};
use martlet_lab::wait::{LIMIT, Seen, until};
use martlet_lab::{Cut, Signal, preflight};
use martlet_router::core::{BfdView, Status};

const WITH_BFD: [&str; 2] = ["neighbor POD bfd", "neighbor POD bfd profile lab"];
const SUPERVISED: &str = "bfd: {switch: true, minTx: 300ms, minRx: 300ms, multiplier: 3";

fn bfd<'a>(status: &'a Status, peer: &str) -> Option<&'a BfdView> {
    status.bfd.get(status.peers.get(peer)?.bfd.as_ref()?)
}

fn is(status: &Status, peer: &str, bgp: &str, state: &str) -> bool {
    status.peers.get(peer).is_some_and(|peer| peer.state == bgp)
        && bfd(status, peer).is_some_and(|bfd| bfd.state == state)
}

/// A counter of a peer, as `martlet show counters` has it.
fn counter(stage: &Stage, peer: &str, name: &str) -> u64 {
    let said = stage.ask(&["show", "counters", "-o", "json"]).unwrap();
    let all: BTreeMap<String, BTreeMap<String, u64>> = serde_json::from_str(&said).unwrap();
    *all[peer].get(name).unwrap_or_else(|| panic!("no {name} in {:?}", all[peer]))
}

fn configure(frr: &Frr, lines: &[&str]) {
    frr.configure(lines).unwrap();
}

#[test]
fn a_strict_session_waits_for_bfd_and_ends_with_it() {
    preflight::check().unwrap();
    let mut stage = Stage::new(2, &[VIPS[0]]).unwrap();
    let strict = stage.frr(1, &frr_config(1, false, &[], &[])).unwrap();
    let _loose = stage.frr(2, &frr_config(2, false, &[], &[])).unwrap();
    stage.put_router("strict", gateway(1, false), &format!("bgp: {{{SUPERVISED}, strict: true}}}}")).unwrap();
    stage.put_router("loose", gateway(2, false), &format!("bgp: {{{SUPERVISED}}}}}")).unwrap();
    stage.start_router(&[]).unwrap();
    // Neither of them has BFD: one waits for it, the other does not.
    stage.until("the loose one", |status| is(status, "loose", "Established", "Down")).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let status = stage.status().unwrap();
    assert!(is(&status, "strict", "Idle", "Down"), "{:?}", status.peers["strict"]);
    assert_eq!(counter(&stage, "strict", "connects"), 0, "it was not even called");

    let peer = martlet_lab::stage::pod(false);
    let router = format!("router bgp {}", martlet_lab::stage::REMOTE_AS);
    configure(&strict, &[&router, &format!("neighbor {peer} bfd"), &format!("neighbor {peer} bfd profile lab")]);
    stage.until("both, as BFD is Up", |status| is(status, "strict", "Established", "Up")).unwrap();
    println!("  strict: Idle while FRR has no BFD, Established once it has");
    stage.fabric.cut("gateway-1", Cut::Silent).unwrap();
    stage.until("the end of it", |status| is(status, "strict", "Idle", "Down")).unwrap();
    stage.fabric.mend("gateway-1").unwrap();
    stage.until("it again", |status| is(status, "strict", "Established", "Up")).unwrap();
}

/// Waits until FRR has one session, Up, and knows these parameters of ours; gives our discriminator.
fn frr_knows(frr: &Frr, transmit_ms: u64, multiplier: u64) -> u64 {
    until("one session at FRR with these parameters", LIMIT, || {
        let sessions = frr.show("show bfd peers json")?;
        let one = &sessions[0];
        let known = one["remote-transmit-interval"] == transmit_ms && one["remote-detect-multiplier"] == multiplier;
        let alone = sessions.as_array().is_some_and(|all| all.len() == 1);
        let discriminator = one["remote-id"].as_u64().filter(|_| known && alone && one["status"] == "up");
        Ok(discriminator.map_or_else(|| Seen::not_yet(sessions.to_string()), Seen::Yes))
    })
    .unwrap()
}

#[test]
fn a_bgp_neighbour_that_is_a_static_next_hop_too_shares_its_session() {
    const PATIENT: &str = "protocol: Static\nstatic: {bfd: {switch: true, minTx: 600ms, minRx: 300ms, multiplier: 5}}";
    preflight::check().unwrap();
    let mut stage = Stage::new(1, &[VIPS[0]]).unwrap();
    let frr = stage.frr(1, &frr_config(1, false, &WITH_BFD, &[])).unwrap();
    let hop = gateway(1, false);
    // FRR's session stays when its BGP session goes.
    configure(&frr, &["bfd", &format!("peer {} interface eth0", martlet_lab::stage::pod(false)), "profile lab"]);
    stage.put_router("gw", hop, &format!("bgp: {{{SUPERVISED}}}}}")).unwrap();
    stage.put_router("hop", hop, PATIENT).unwrap();
    stage.start_router(&[]).unwrap();
    let both = |status: &Status| is(status, "gw", "Established", "Up") && is(status, "hop", "Up", "Up");
    stage.until("both Up", both).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let status = stage.until("both to stay Up", both).unwrap();
    assert_eq!(status.bfd.len(), 1, "{:#?}", status.bfd);
    stage.until_hops(false, &[hop]).unwrap();
    // Of each parameter the more aggressive one: 300 ms, 300 ms, 3.
    let discriminator = frr_knows(&frr, 300, 3);

    // One leaves, the other keeps the session, with its own parameters by now.
    stage.remove("gw").unwrap();
    stage.until("the hop alone", |status| status.peers.len() == 1 && is(status, "hop", "Up", "Up")).unwrap();
    assert_eq!(frr_knows(&frr, 600, 5), discriminator);
    stage.put_router("gw", hop, &format!("bgp: {{{SUPERVISED}}}}}")).unwrap();
    stage.until("both again", both).unwrap();
    assert_eq!(frr_knows(&frr, 300, 3), discriminator, "it is the same session");
    println!("  a BGP neighbour and a static next hop: one session, of each parameter the more aggressive one");

    // Its failure is told to both.
    stage.fabric.cut("gateway-1", Cut::Silent).unwrap();
    let ended = |status: &Status| !is(status, "gw", "Established", "Up") && is(status, "hop", "Down", "Down");
    stage.until("the end of both", ended).unwrap();
    stage.until_hops(false, &[]).unwrap();
    stage.fabric.mend("gateway-1").unwrap();
    stage.until("both back", both).unwrap();

    // Who contradicts it is refused, and disturbs nobody.
    let contradicting = PATIENT.replace("switch: true", "switch: true, echo: 100ms, unaffiliated: true");
    stage.put_router("hop", hop, &contradicting).unwrap();
    let refused = stage.until("the refusal", |status| !status.peers.contains_key("hop")).unwrap();
    assert!(is(&refused, "gw", "Established", "Up"));
    let said = stage.ask(&["show", "objects"]).unwrap();
    assert!(said.contains("Conflict") && said.contains("spec.static.bfd.unaffiliated"), "{said}");
}

#[test]
fn after_a_standstill_of_twelve_seconds_both_bgp_and_bfd_come_back() {
    preflight::check().unwrap();
    let mut stage = Stage::new(2, &[VIPS[0], VIPS[2]]).unwrap();
    let _frr = [1, 2].map(|number| stage.frr(number, &frr_config(number, number == 2, &WITH_BFD, &[])).unwrap());
    for (name, number) in [("four", 1), ("six", 2)] {
        stage.put_router(name, gateway(number, number == 2), &format!("bgp: {{{SUPERVISED}}}}}")).unwrap();
    }
    stage.start_router(&[]).unwrap();
    let both = |status: &Status| ["four", "six"].iter().all(|name| is(status, name, "Established", "Up"));
    stage.until("both Up", both).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    stage.until("both to stay Up", both).unwrap();
    let before = ["four", "six"].map(|name| counter(&stage, name, "established"));
    let router = stage.router.clone().unwrap();
    router.signal(Signal::Stop).unwrap();
    // Longer than BFD's detection time and BGP's hold time: FRR has ended both.
    std::thread::sleep(Duration::from_secs(12));
    router.signal(Signal::Cont).unwrap();
    let anew = |status: &Status| both(status) && status.peers.values().all(|peer| peer.since_s < 12);
    stage.until("both Up again", anew).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    stage.until("both to stay Up", both).unwrap();
    let after = ["four", "six"].map(|name| counter(&stage, name, "established"));
    println!("  stood still for 12 s: BGP Established {before:?} times before, {after:?} after; BFD Up");
}

#[test]
fn an_admin_down_is_no_failure_and_a_down_is() {
    preflight::check().unwrap();
    let mut stage = Stage::new(1, &[VIPS[0]]).unwrap();
    let frr = stage.frr(1, &frr_config(1, false, &WITH_BFD, &[])).unwrap();
    stage.put_router("gw", gateway(1, false), &format!("bgp: {{{SUPERVISED}}}}}")).unwrap();
    stage.start_router(&[]).unwrap();
    stage.until("both Up", |status| is(status, "gw", "Established", "Up")).unwrap();
    // Once BGP is Established, bfdd takes its session down and makes a new one, with another discriminator.
    std::thread::sleep(Duration::from_secs(3));
    stage.until("both to stay Up", |status| is(status, "gw", "Established", "Up")).unwrap();
    let before = counter(&stage, "gw", "established");

    configure(&frr, &["bfd", "profile lab", "shutdown"]);
    let remote = |status: &Status| bfd(status, "gw").is_some_and(|bfd| bfd.remote_state == "AdminDown");
    stage.until("FRR's AdminDown", remote).unwrap();
    // Longer than a Detection Time, and than BGP's hold time.
    std::thread::sleep(Duration::from_secs(10));
    let status = stage.status().unwrap();
    assert!(is(&status, "gw", "Established", "Down") && status.peers["gw"].up, "{:?}", status.peers["gw"]);
    configure(&frr, &["bfd", "profile lab", "no shutdown"]);
    stage.until("BFD Up again", |status| is(status, "gw", "Established", "Up")).unwrap();
    assert_eq!(counter(&stage, "gw", "established"), before, "BGP saw nothing of it");
    println!("  AdminDown at FRR for 10 s, and back: the BGP session is the same");

    stage.fabric.cut("gateway-1", Cut::Silent).unwrap();
    stage.until("the end", |status| !is(status, "gw", "Established", "Up")).unwrap();
    stage.fabric.mend("gateway-1").unwrap();
    stage.until("it again", |status| is(status, "gw", "Established", "Up")).unwrap();
    assert_eq!(counter(&stage, "gw", "established"), before + 1);
}
