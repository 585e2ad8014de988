//! Optional fields of a `GatewayRouter` as FRR sees their effect, static and VRRP next hops beside BGP, and ECMP both ways. Needs
//! root, FRR, BIRD, and the product (`MARTLET_BIN`, else `target/lab/martlet`).

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use martlet_lab::peer::Make;
use martlet_lab::peer::frr::Frr;
use martlet_lab::stage::{LOCAL_AS, Stage, VIPS, frr_config, gateway, pod, setup, told};
use martlet_lab::wait::{LIMIT, Seen, until};
use martlet_lab::{Signal, preflight};

/// What FRR was told of the VIP, once `holds`.
fn vip_at(frr: &Frr, what: &str, holds: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    until(what, LIMIT, || {
        let shown = frr.show("show bgp ipv4 unicast 20.0.0.1/32 json")?;
        let path = shown.pointer("/paths/0").cloned().unwrap_or_default();
        Ok(if holds(&path) { Seen::Yes(path) } else { Seen::not_yet(path.to_string()) })
    })
    .unwrap()
}

#[test]
fn what_is_exported_says_what_the_object_asks_for() {
    preflight::check().unwrap();
    let mut stage = Stage::new(1, &[VIPS[0]]).unwrap();
    let frr = stage.frr(1, &frr_config(1, false, &[], &["network 0.0.0.0/0", "network 198.18.0.0/24"])).unwrap();
    stage.pod.ip("addr add 10.1.0.2/24 dev ext-vlan").unwrap();
    stage
        .put_router(
            "gw",
            gateway(1, false),
            "description: the only one\nbgp: {med: 10, prepend: 2, communities: [\"65000:100\"], largeCommunities: \
             [\"65000:1:2\"], sourceAddress: 10.1.0.1, connectRetry: 100ms, import: {defaultOnly: true}}",
        )
        .unwrap();
    stage.start_router(&["--leave", "1"]).unwrap();
    let peer = stage.until_peer("gw", "Up with one prefix", |peer| peer.up && peer.received == 1).unwrap();
    assert_eq!(peer.description.as_deref(), Some("the only one"));
    assert!(stage.ask(&["show", "routes"]).unwrap().contains("0.0.0.0/0"));
    assert!(!stage.ask(&["show", "routes"]).unwrap().contains("198.18.0.0/24"), "the default alone is imported");
    let path = vip_at(&frr, "the VIP", |path| !path.is_null());
    let text = |pointer: &str| path.pointer(pointer).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    assert_eq!(path["med"].as_u64().or_else(|| path["metric"].as_u64()), Some(10), "{path}");
    assert_eq!(text("/aspath/string"), format!("{LOCAL_AS} {LOCAL_AS} {LOCAL_AS}"));
    assert_eq!(text("/community/string"), "65000:100");
    assert_eq!(text("/largeCommunity/string"), "65000:1:2");
    assert_eq!(text("/nexthops/0/ip"), pod(false).to_string());
    // Leaving, it says so first.
    let router = stage.router.clone().unwrap();
    router.signal(Signal::Term).unwrap();
    vip_at(&frr, "GRACEFUL_SHUTDOWN", |path| {
        let communities = path.pointer("/community/string").and_then(|value| value.as_str()).unwrap_or_default();
        communities.contains("graceful-shutdown") || communities.contains("65535:0")
    });
    vip_at(&frr, "the withdrawal", serde_json::Value::is_null);
    assert!(router.wait(LIMIT).unwrap().success());
}

#[test]
fn an_object_shuts_its_session_down_with_a_text_and_takes_it_up_again() {
    preflight::check().unwrap();
    let mut stage = Stage::new(1, &[VIPS[0]]).unwrap();
    let bird = stage.peer(1, Make::Bird, &setup(1, false)).unwrap();
    stage.put_router("gw", gateway(1, false), "bgp: {passive: true}").unwrap();
    stage.start_router(&[]).unwrap();
    stage.up("gw").unwrap();
    stage.put_router("gw", gateway(1, false), "bgp: {shutdown: {switch: true, message: until noon}}").unwrap();
    until("the text at BIRD", LIMIT, || {
        let said = bird.reasons()?;
        Ok(if said.contains("until noon") { Seen::Yes(()) } else { Seen::not_yet(said) })
    })
    .unwrap();
    stage.until_peer("gw", "down", |peer| !peer.up).unwrap();
    stage.put_router("gw", gateway(1, false), "").unwrap();
    stage.up("gw").unwrap();
    told(&*bird, &[VIPS[0]]).unwrap();
}

#[test]
fn static_and_vrrp_next_hops_stand_beside_bgp_with_ecmp_and_behind_it_without() {
    preflight::check().unwrap();
    let mut stage = Stage::new(3, &[VIPS[0]]).unwrap();
    let _bgp = stage.peer(1, Make::Bird, &setup(1, false)).unwrap();
    let bfd = ["neighbor POD bfd", "neighbor POD bfd profile lab"];
    // FRR's BFD without its BGP: the pod is no BGP neighbour of this GatewayRouter.
    let frr = stage.frr(2, &frr_config(2, false, &bfd, &[])).unwrap();
    stage.put_router("one", gateway(1, false), "").unwrap();
    let spec = "protocol: Static\nstatic: {bfd: {switch: true, minTx: 300ms, minRx: 300ms, multiplier: 3}}";
    stage.put_router("two", gateway(2, false), spec).unwrap();
    stage.environment.insert("NFE_VRRPS".into(), gateway(3, false).to_string());
    let all = [1, 2, 3].map(|number| gateway(number, false));
    stage.environment.insert("NFE_ECMP".into(), "true".into());
    stage.start_router(&[]).unwrap();
    stage.until_hops(false, &all).unwrap();
    // The supervised one falls silent.
    for daemon in &frr.daemons {
        daemon.signal(Signal::Kill).unwrap();
    }
    stage.until_hops(false, &[all[0], all[2]]).unwrap();
    stage.stop_router(Signal::Kill).unwrap();
    stage.environment.insert("NFE_ECMP".into(), "false".into());
    stage.start_router(&[]).unwrap();
    stage.up("one").unwrap();
    stage.until_hops(false, &[all[0]]).unwrap();
    // The best fails: the next one takes over.
    stage.remove("one").unwrap();
    stage.until_hops(false, &[all[2]]).unwrap();
    assert!(stage.status().unwrap().peers.contains_key(&format!("vrrp-{}", all[2])));
}
