//! The crate against the running kernel, each test in a network namespace of its own.
#![expect(clippy::unwrap_used, reason = "in a test a surprise is a failure")]

mod events;
mod links;
mod nft;
mod routes;
mod rules;
mod sys;

use std::collections::BTreeSet;

use martlet_netlink::{Change, Error, Family, Kernel, NextHop, Object, Owner, Route, RouteKind, diff};
use sys::ip;

/// The router's share.
fn owner() -> Owner {
    Owner { protocol: 201, tables: vec![4096..=4097], priorities: vec![100..=102] }
}

/// The indexes of two links: `left` with 192.0.2.1/24 and `2001:db8::1/64`, `right` with 198.51.100.1/24 and
/// `2001:db8:1::1/64`.
fn two_links() -> (u32, u32) {
    for (name, v4, v6) in [("left", "192.0.2.1/24", "2001:db8::1/64"), ("right", "198.51.100.1/24", "2001:db8:1::1/64")]
    {
        ip(&format!("link add {name} type veth peer name {name}-far"));
        ip(&format!("addr add {v4} dev {name}"));
        ip(&format!("addr add {v6} dev {name} nodad"));
        ip(&format!("link set {name} up"));
        ip(&format!("link set {name}-far up"));
    }
    (index("left"), index("right"))
}

fn index(link: &str) -> u32 {
    let text = ip(&format!("-o link show dev {link}"));
    text.split(':').next().and_then(|index| index.parse().ok()).expect("an index")
}

fn via(gateway: &str, interface: u32) -> NextHop {
    NextHop { gateway: Some(gateway.parse().unwrap()), interface: Some(interface), weight: 1, onlink: false }
}

fn weighing(weight: u16, hop: &NextHop) -> NextHop {
    NextHop { weight, ..hop.clone() }
}

fn unicast<const N: usize>(mut hops: [NextHop; N]) -> RouteKind {
    hops.sort();
    RouteKind::Unicast(hops.into())
}

/// In table 4096, metric 20.
fn route(prefix: &str, kind: RouteKind) -> Object {
    Object::Route(Route { table: 4096, prefix: prefix.parse().unwrap(), metric: 20, kind })
}

fn set<const N: usize>(objects: [Object; N]) -> BTreeSet<Object> {
    BTreeSet::from(objects)
}

async fn objects(kernel: &mut Kernel) -> BTreeSet<Object> {
    kernel.snapshot().await.unwrap().objects
}

/// Makes the kernel hold `want` and looks whether it does; a second time there is nothing to do.
async fn make(kernel: &mut Kernel, want: &BTreeSet<Object>) {
    let have = objects(kernel).await;
    assert_ok(&kernel.apply(&diff(&have, want)).await);
    let have = objects(kernel).await;
    assert_eq!(&have, want);
    assert_eq!(diff(&have, want), vec![]);
}

fn assert_ok(failed: &[(Change, Error)]) {
    assert!(failed.is_empty(), "{} failed, the first: {}", failed.len(), failed[0].1);
}

/// `ip route show table 4096` of a family, a route a line, without what the kernel decorates it with.
fn table(family: Family) -> Vec<String> {
    let family = if family == Family::Ipv4 { "-4" } else { "-6" };
    let text = ip(&format!("-o {family} route show table 4096"));
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").replace("\\ ", "")).collect()
}
