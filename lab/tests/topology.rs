//! The topologies of `deploy/containerlab` in namespaces, each with its own check, as `make lab TOPO=..` runs them. Needs root, and
//! the product (`MARTLET_BIN`, else `target/lab/martlet`).

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const LAB: &str = env!("CARGO_BIN_EXE_martlet-lab");

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/containerlab").join(name)
}

fn topology(path: &Path, action: &str) -> (Output, String) {
    let output = Command::new(LAB).arg("topology").arg(path).arg(action).output().expect("start martlet-lab");
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    (output, String::from_utf8_lossy(&said).into_owned())
}

/// Its check holds, and has seen what every check must see.
fn holds(name: &str, connections: usize) {
    let (output, said) = topology(&folder(name), "check");
    println!("{said}");
    assert!(output.status.success(), "{name}: {}", output.status);
    let seen = said.lines().filter(|line| line.contains("300 of 300 connections")).count();
    assert_eq!(seen, connections, "{name}: not every 300 connections were made");
}

#[test]
fn frr_single_loses_its_gateway_and_gets_it_back() {
    holds("frr-single", 4);
}

#[test]
fn frr_dual_serves_on_after_a_gateway_died_silently() {
    holds("frr-dual", 4);
}

#[test]
fn spine_leaf_serves_one_vip_from_two_pods_and_loses_a_leaf() {
    holds("spine-leaf", 4);
}

#[test]
fn static_bfd_needs_no_bgp_to_lose_a_gateway() {
    holds("static-bfd", 4);
}

#[test]
fn ipv6_only_needs_no_ipv4_address_anywhere() {
    holds("ipv6-only", 2);
}

#[test]
fn mixed_speaks_with_four_makers_at_once() {
    holds("mixed", 4);
}

#[test]
fn what_is_not_of_the_subset_is_refused_before_anything_is_made() {
    let dir = std::env::temp_dir().join(format!("martlet-topology-test-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("odd.clab.yml");
    std::fs::write(&path, "name: odd\ntopology:\n  nodes:\n    a:\n      kind: linux\n      ports: [80:80]\n").unwrap();
    let (output, said) = topology(&path, "check");
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("ports") && said.contains("line 6"), "{said}");
    assert!(!said.contains("up in"), "{said}");
}

#[test]
fn a_check_that_fails_fails_the_run_and_nothing_stays() {
    let dir = std::env::temp_dir().join(format!("martlet-topology-fails-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let check = dir.join("check");
    let text = "name: fails\ntopology:\n  defaults: {network-mode: none, cmd: sleep infinity}\n  nodes:\n    a:\n    b:\n\
                \x20 links:\n    - endpoints: [\"a:eth1\", \"b:eth1\"]\n";
    std::fs::write(dir.join("fails.clab.yml"), text).unwrap();
    std::fs::write(&check, "#!/bin/sh\necho \"netns $(cat \"$MARTLET_NODES/a/netns\")\"\nexit 7\n").unwrap();
    std::fs::set_permissions(&check, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (output, said) = topology(&dir, "check");
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(!output.status.success() && said.contains("exit status: 7"), "{said}");
    let namespace = said.lines().find_map(|line| line.strip_prefix("netns ")).unwrap();
    assert!(!Path::new("/run/netns").join(namespace).exists(), "{namespace} is still there");
    // What failed keeps its logs, until somebody has read them.
    assert!(said.contains("the logs are in"), "{said}");
    let lab = namespace.strip_suffix("-a").unwrap();
    assert!(Command::new(LAB).args(["clean", lab]).status().unwrap().success());
}
