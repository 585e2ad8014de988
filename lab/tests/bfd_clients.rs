//! BFD and those who use it (RFC 5882), with the product and FRR: strict mode, `AdminDown`, a real Down. Needs root, FRR and
//! the product (`MARTLET_BIN`, else `target/lab/martlet`).

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::collections::BTreeMap;
use std::time::Duration;

use martlet_lab::peer::frr::Frr;
use martlet_lab::stage::{Stage, VIPS, frr_config, gateway};
use martlet_lab::{Cut, preflight};
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
