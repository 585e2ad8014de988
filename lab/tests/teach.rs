//! Errors that teach: each misconfiguration against FRR, and what `martlet show peers` and the condition say of it: the cause,
//! and what to correct. Needs root, FRR, and the product (`MARTLET_BIN`, else `target/lab/martlet`).

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use martlet_lab::peer::frr::Frr;
use martlet_lab::preflight;
use martlet_lab::stage::{LOCAL_AS, REMOTE_AS, Stage, VIPS, frr_config, gateway, pod};

const SECRET: &str = "apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\nstringData: {password: right}\n";
const AUTH: &str = "bgp: {auth: {keyName: password, keySource: keys}}";
const BFD: [&str; 2] = ["neighbor POD bfd", "neighbor POD bfd profile lab"];

/// FRR with more lines, and a `GatewayRouter` `gw` with this spec for it. The router does not run yet.
fn stage(lines: &[&str], of_family: &[&str], spec: &str) -> (Stage, Frr) {
    preflight::check().unwrap();
    let stage = Stage::new(1, &[VIPS[0], VIPS[1]]).unwrap();
    stage.put("secret", SECRET).unwrap();
    let frr = stage.frr(1, &frr_config(1, false, lines, of_family)).unwrap();
    stage.put_router("gw", gateway(1, false), spec).unwrap();
    (stage, frr)
}

/// The router is started, and each of `words` must come to be in what `show peers` and the condition of `gw` say.
fn teaches(stage: &mut Stage, words: &[&str]) {
    teaches_while(stage, words, true);
}

/// As [`teaches`]; the condition is looked for only where the fault lasts.
fn teaches_while(stage: &mut Stage, words: &[&str], lasts: bool) {
    stage.start_router(&[]).unwrap();
    let says = |text: Option<&str>| text.is_some_and(|text| words.iter().all(|word| text.contains(word)));
    let peer = stage.until_peer("gw", &format!("{words:?}"), |peer| says(peer.last_error.as_deref())).unwrap();
    let error = peer.last_error.unwrap();
    println!("{error}");
    let shown = |text: String, of: &str| {
        let line = text.lines().find(|line| line.starts_with(of) && line.contains(&error)).map(str::to_owned);
        assert!(line.is_some(), "no line `{of} .. {error}` in:\n{text}");
    };
    shown(stage.ask(&["show", "peers"]).unwrap(), "gw ");
    if lasts {
        shown(stage.ask(&["show", "objects"]).unwrap(), "GatewayRouter default/gw Programmed=");
    }
}

#[test]
fn a_wrong_as_number_of_ours() {
    let (mut stage, _frr) = stage(&[], &[], "bgp: {localASN: 64999}");
    teaches(&mut stage, &["the neighbour sent OPEN Message Error/Bad Peer AS", "than 64999", "bgp.localASN"]);
}

#[test]
fn a_wrong_as_number_of_theirs() {
    let (mut stage, _frr) = stage(&[], &[], "bgp: {remoteASN: 64999}");
    let (is, wanted) = (format!("the neighbour is AS {REMOTE_AS}"), "AS 64999 is configured");
    teaches(&mut stage, &["we sent OPEN Message Error/Bad Peer AS", &is, wanted, "correct bgp.remoteASN"]);
}

#[test]
fn a_wrong_md5_password() {
    let (mut stage, _frr) = stage(&["neighbor POD password wrong"], &[], AUTH);
    teaches(&mut stage, &["no answer", "address", "port", "filter", "MD5 password"]);
}

#[test]
fn an_md5_password_on_their_side_only() {
    let (mut stage, _frr) = stage(&["neighbor POD password right"], &[], "");
    teaches(&mut stage, &["no answer", "MD5 password"]);
}

#[test]
fn an_md5_password_on_our_side_only() {
    let (mut stage, _frr) = stage(&[], &[], AUTH);
    teaches(&mut stage, &["no answer", "MD5 password"]);
}

#[test]
fn a_secret_that_is_not_there() {
    let (mut stage, _frr) = stage(&[], &[], "bgp: {auth: {keyName: nothing, keySource: keys}}");
    teaches(&mut stage, &["nothing", "keys"]);
}

#[test]
fn a_wrong_port() {
    let (mut stage, _frr) = stage(&["neighbor POD passive"], &[], "bgp: {remotePort: 179}");
    teaches(&mut stage, &["connection refused", "bgp.remotePort"]);
}

#[test]
fn a_ttl_that_only_we_check() {
    let (mut stage, _frr) = stage(&[], &[], "bgp: {ttlSecurity: true}");
    teaches(&mut stage, &["no answer", "TTL"]);
}

#[test]
fn a_ttl_that_only_they_check() {
    // FRR sets its check after the first messages: the session comes up, and starves, and comes up again.
    let (mut stage, _frr) = stage(&["neighbor POD ttl-security hops 1"], &[], "");
    teaches_while(&mut stage, &["Hold Timer Expired", "TTL"], false);
}

#[test]
fn no_family_in_common() {
    let (mut stage, _frr) = stage(&[], &[], "bgp: {families: [IPv6]}");
    teaches(&mut stage, &["OPEN Message Error/Unsupported Capability", "Ipv6", "bgp.families"]);
}

#[test]
fn one_family_of_two() {
    let (mut stage, _frr) = stage(&[], &[], "bgp: {families: [IPv4, IPv6]}");
    teaches(&mut stage, &["does not offer IPv6", "bgp.families"]);
    assert!(stage.status().unwrap().peers["gw"].up);
}

#[test]
fn a_hold_time_that_they_refuse() {
    let (mut stage, _frr) = stage(&["bgp minimum-holdtime 60"], &[], "bgp: {holdTime: 9s}");
    teaches(&mut stage, &["the neighbour sent OPEN Message Error/Unacceptable Hold Time", "9 s", "bgp.holdTime"]);
}

#[test]
fn bfd_on_our_side_only() {
    let (mut stage, _frr) = stage(&[], &[], "bgp: {bfd: {switch: true}}");
    teaches(&mut stage, &["BFD is Down", "nothing is heard", "bgp.bfd.switch", "UDP 3784"]);
    // It is not taken for a way out, and so its VIPs are withheld.
    let status = stage.status().unwrap();
    assert!(!status.peers["gw"].up && status.vips.values().all(|vip| !vip.announced), "{status:#?}");
}

#[test]
fn bfd_on_their_side_only() {
    // FRR holds the session down for it; it does not say why. What can be said here is that it ends, and by whom.
    let (mut stage, frr) = stage(&BFD, &[], "");
    stage.start_router(&[]).unwrap();
    stage.up("gw").unwrap();
    let sessions = frr.show("show bfd peers json").unwrap();
    assert_eq!(sessions[0]["status"], "down", "{sessions}");
}

#[test]
fn a_router_id_that_both_have() {
    let local_as = format!("no neighbor POD remote-as {LOCAL_AS}");
    let lines =
        ["bgp router-id 10.1.0.1", local_as.as_str(), "neighbor POD remote-as internal", "neighbor POD port 10179"];
    let spec = format!("bgp: {{localASN: {REMOTE_AS}}}");
    let (mut stage, _frr) = stage(&lines, &[], &spec);
    assert_eq!(pod(false).to_string(), "10.1.0.1");
    teaches(&mut stage, &["Bad BGP Identifier", "router id", "--router-id"]);
}

#[test]
fn more_prefixes_than_we_take() {
    let networks: Vec<String> = (0..4).map(|n| format!("network 198.18.{n}.0/24")).collect();
    let networks: Vec<&str> = networks.iter().map(String::as_str).collect();
    let (mut stage, _frr) = stage(&[], &networks, "bgp: {maximumPrefixes: {limit: 3}}");
    teaches(
        &mut stage,
        &["we sent Cease/", "Maximum Number of Prefixes Reached", "more than 3", "maximumPrefixes.limit"],
    );
}

#[test]
fn more_prefixes_than_they_take() {
    let (mut stage, _frr) = stage(&[], &["neighbor POD maximum-prefix 1"], "");
    teaches(&mut stage, &["the neighbour sent Cease/", "Maximum Number of Prefixes Reached", "fewer VIPs"]);
}

#[test]
fn an_interface_that_is_not_there() {
    let (mut stage, _frr) = stage(&[], &[], "interface: nowhere");
    teaches(&mut stage, &["there is no interface nowhere", "correct spec.interface"]);
}

#[test]
fn an_interface_without_an_address() {
    let (mut stage, _frr) = stage(&[], &[], "");
    stage.pod.ip("addr del 10.1.0.1/24 dev ext-vlan").unwrap();
    teaches(&mut stage, &["interface ext-vlan has no IPv4 address", "give it one"]);
}

#[test]
fn a_gateway_that_is_off_the_link() {
    let (mut stage, _frr) = stage(&[], &[], "");
    stage.put_router("gw", "10.9.0.11".parse().unwrap(), "").unwrap();
    teaches(&mut stage, &["10.9.0.11 is in no network of interface ext-vlan", "correct", "bgp.multihop"]);
}

#[test]
fn a_neighbour_that_does_not_know_us_resets() {
    let (mut stage, frr) = stage(&[], &[], "");
    let router = format!("router bgp {REMOTE_AS}");
    frr.configure(&[&router, &format!("no neighbor {}", pod(false))]).unwrap();
    // FRR closes what comes from an address that it does not know; with what it was given unread, that is a reset.
    teaches(&mut stage, &["the neighbour", "the connection", "does it know our address"]);
}

#[test]
fn a_foreign_cease() {
    let (mut stage, frr) = stage(&[], &[], "");
    stage.start_router(&[]).unwrap();
    stage.up("gw").unwrap();
    let router = format!("router bgp {REMOTE_AS}");
    frr.configure(&[&router, &format!("neighbor {} shutdown message Maintenance until noon", pod(false))]).unwrap();
    teaches(
        &mut stage,
        &["the neighbour sent Cease/", "Administrative Shutdown", "Maintenance until noon", "shut down there"],
    );
}
