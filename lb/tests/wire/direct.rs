//! The direct way on the wire: who is reached by it and when, and what is left of it.

use std::net::IpAddr;

use crate::lab::{Lab, Running, VIP4, VIP6, Way, eventually, serving, serving_by};
use crate::{everybody_answers, expected_of};

/// Counts what is forwarded to the VIPs, and what of it goes directly.
fn watch(lab: &Lab) {
    for command in [
        "nft add table inet seen",
        "nft add chain inet seen through { type filter hook forward priority 0 ; }",
        "nft add rule inet seen through udp dport 4000 meta mark and 0xffff8000 == 0x8000 counter",
        "nft add rule inet seen through udp dport 4000 counter",
    ] {
        let (done, text) = lab.run(&lab.lb(), command);
        assert!(done, "{command}: {text}");
    }
}

/// Of the packets of a question from this port: those that went directly, and all.
fn ask(lab: &Lab, vip: IpAddr, port: u16) -> (Option<u8>, [u64; 2]) {
    let count = || {
        let (_, text) = lab.run(&lab.lb(), "nft list chain inet seen through");
        let counts = text.split("packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        <[u64; 2]>::try_from(counts.collect::<Vec<_>>()).expect("two counters")
    };
    let before = count();
    let answer = lab.ask_from(vip, port);
    let after = count();
    (answer, [after[0] - before[0], after[1] - before[1]])
}

/// A port whose flows are application 2's, of two.
fn port_of_two(vip: IpAddr) -> u16 {
    (27_000..28_000).find(|port| expected_of(vip, 17, *port, &[1, 2].into()) == 2).expect("one")
}

/// As the kernel would, once it found out.
fn neighbor(lab: &Lab, vip: IpAddr, what: &str) {
    let address = if vip.is_ipv4() { "10.9.0.12" } else { "fd09::12" };
    let (done, text) = lab.run(&lab.lb(), &format!("ip neigh replace {address} dev int {what}"));
    assert!(done, "{text}");
}

fn ethernet_of_two(lab: &Lab) -> String {
    lab.run(&lab.application(2), "cat /sys/class/net/eth0/address").1.trim().to_owned()
}

fn two_is_reached(lab: &Lab, directly: bool) {
    for vip in [VIP4, VIP6] {
        let expected = (Some(2), [u64::from(directly), 1]);
        eventually("it goes the right way", || ask(lab, vip, port_of_two(vip)) == expected);
    }
}

#[test]
fn who_answers_is_reached_directly_and_who_is_in_doubt_by_its_table() {
    let (lab, lb) = serving_by(Way::Direct, "direct", 2);
    watch(&lab);
    two_is_reached(&lab, true);
    everybody_answers(&lab, &[1, 2].into());
    let ethernet = ethernet_of_two(&lab);
    for vip in [VIP4, VIP6] {
        let port = port_of_two(vip);
        // In doubt: its table, until it has answered the kernel.
        neighbor(&lab, vip, &format!("lladdr {ethernet} nud stale"));
        eventually("it goes by its table", || ask(&lab, vip, port) == (Some(2), [0, 1]));
        eventually("it has answered", || ask(&lab, vip, port) == (Some(2), [1, 1]));
        // Silent, and found out: nothing is sent to where it was.
        assert!(lab.run(&lab.lb(), "ip link set p2 nomaster").0);
        neighbor(&lab, vip, "nud failed");
        eventually("nobody is there", || ask(&lab, vip, port) == (None, [0, 1]));
        assert!(lab.run(&lab.lb(), "ip link set p2 master int").0);
        eventually("it has answered", || ask(&lab, vip, port) == (Some(2), [1, 1]));
    }
    lb.end().unwrap();
}

#[test]
fn another_ethernet_address_is_followed_at_once() {
    let (lab, lb) = serving_by(Way::Direct, "ethernet", 2);
    watch(&lab);
    two_is_reached(&lab, true);
    for ethernet in ["02:00:00:00:02:22", "02:00:00:00:02:23"] {
        assert!(lab.run(&lab.application(2), &format!("ip link set eth0 address {ethernet}")).0);
        for vip in [VIP4, VIP6] {
            neighbor(&lab, vip, &format!("lladdr {ethernet} nud reachable"));
        }
        two_is_reached(&lab, true);
    }
    // Two places at once: by the tables, each family to its own.
    neighbor(&lab, VIP6, "lladdr 02:00:00:00:02:24 nud permanent");
    eventually("it goes by its table", || ask(&lab, VIP4, port_of_two(VIP4)) == (Some(2), [0, 1]));
    neighbor(&lab, VIP6, "lladdr 02:00:00:00:02:23 nud reachable");
    two_is_reached(&lab, true);
    lb.end().unwrap();
}

#[test]
fn what_another_takes_of_the_direct_way_is_back_and_meanwhile_the_tables_do() {
    let (lab, lb) = serving_by(Way::Direct, "taken", 2);
    watch(&lab);
    two_is_reached(&lab, true);
    for command in [
        "nft delete table netdev martlet-lb-direct",
        "nft flush chain netdev martlet-lb-direct egress",
        "ip route flush table 65789",
        "ip -6 route flush table 65789",
        "ip rule del priority 49",
        "ip -6 rule del priority 49",
        "ip neigh del 192.0.0.8 dev int",
        "ip neigh del 100::8 dev int",
        "ip neigh replace 192.0.0.8 lladdr 02:00:00:00:00:09 dev int nud permanent",
    ] {
        let (done, text) = lab.run(&lab.lb(), command);
        assert!(done, "{command}: {text}");
        two_is_reached(&lab, true);
    }
    let gateway = lab.run(&lab.lb(), "ip neigh show 192.0.0.8 dev int").1;
    assert!(gateway.contains("lladdr 00:00:5e:00:53:08 PERMANENT"), "{gateway}");
    // Again and again: it is left alone for a while, and meanwhile the tables do.
    let mut deleted = 0;
    eventually("we give in for a moment", || {
        deleted += u32::from(lab.run(&lab.lb(), "ip rule del priority 49").0);
        deleted > 11 && ask(&lab, VIP4, port_of_two(VIP4)) == (Some(2), [0, 1])
    });
    two_is_reached(&lab, true);
    // Who marks packets behind routing, in the upper half, does no harm.
    for command in [
        "nft add chain inet seen marks { type filter hook postrouting priority 0 ; }",
        "nft add rule inet seen marks meta mark set meta mark or 0x10000",
    ] {
        assert!(lab.run(&lab.lb(), command).0, "{command}");
    }
    two_is_reached(&lab, true);
    // The link goes and comes: everything of it is made anew.
    for command in ["ip link set int down", "ip link set int up", "ip -6 addr add fd09::fe/64 dev int nodad"] {
        assert!(lab.run(&lab.lb(), command).0, "{command}");
    }
    two_is_reached(&lab, true);
    lb.end().unwrap();
    nothing_is_left(&lab);
}

fn nothing_is_left(lab: &Lab) {
    eventually("nothing is left", || {
        let outputs = [
            "nft list tables netdev",
            "ip route show table 65789",
            "ip -6 route show table 65789",
            "ip neigh show 192.0.0.8",
            "ip neigh show 100::8",
        ];
        // A table that never had a route is an error, and so has none.
        let is_empty = |command: &str| {
            let (_, text) = lab.run(&lab.lb(), command);
            text.trim().is_empty() || text.contains("does not exist")
        };
        let rules = ["ip rule", "ip -6 rule"].map(|command| lab.run(&lab.lb(), command).1);
        outputs.iter().all(|command| is_empty(command)) && rules.iter().all(|text| !text.contains("0x8000/0xffff8000"))
    });
}

#[test]
fn few_endpoints_and_what_a_dead_process_left_for_many() {
    let (lab, lb) = serving_by(Way::Direct, "left", 2);
    lb.crash();
    let left = lab.run(&lab.lb(), "nft list tables netdev").1;
    assert!(left.contains("martlet-lb-direct"), "{left}");
    // Not even that is right.
    for command in [
        "nft delete element netdev martlet-lb-direct endpoints { 0x938a : PLACE }",
        "nft add element netdev martlet-lb-direct endpoints { 0x938a : 02:00:00:00:00:99 }",
    ] {
        let command = command.replace("PLACE", &ethernet_of_two(&lab));
        let (done, text) = lab.run(&lab.lb(), &command);
        assert!(done, "{command}: {text}");
    }
    // The next one adopts it ..
    let start = |way: Way| -> Running {
        let lb = lab.start(|options| way.choose(options));
        lab.wait_ready(true);
        lab.wait_for_way(way);
        everybody_answers(&lab, &[1, 2].into());
        lb
    };
    let lb = start(Way::Direct);
    watch(&lab);
    two_is_reached(&lab, true);
    lb.crash();
    // .. or has no use for it.
    let lb = start(Way::Queue);
    nothing_is_left(&lab);
    everybody_answers(&lab, &[1, 2].into());
    lb.end().unwrap();
}

#[test]
fn it_begins_when_endpoints_are_many_and_ends_when_they_are_few() {
    // Of both families together.
    let (lab, lb) = serving("many", 3, |options| options.direct_from = 5);
    lab.wait_for_way(Way::Direct);
    everybody_answers(&lab, &[1, 2, 3].into());
    lab.configure(&[1, 2].into());
    nothing_is_left(&lab);
    everybody_answers(&lab, &[1, 2].into());
    lab.configure(&[1, 2, 3].into());
    lab.wait_for_way(Way::Direct);
    everybody_answers(&lab, &[1, 2, 3].into());
    lb.end().unwrap();
    nothing_is_left(&lab);
}

#[test]
fn marks_that_need_the_bit_for_themselves_end_it() {
    let (lab, lb) = serving_by(Way::Direct, "marks", 2);
    let objects = std::fs::read_to_string(lab.folder.join("config/objects.yaml")).expect("objects");
    // The block of marks moves to 5100: mark 37769 is 5001 with the bit.
    let many = objects
        .replace("zone: \"1\"", "zone: \"32669\"")
        .replace("  name: a\n", "  name: a\n  annotations: {meridio-experiment/service-max-endpoints: \"40000\"}\n");
    lab.add("objects.yaml", &many);
    eventually("it has its table", || lab.run(&lab.lb(), "ip route show table 37769").1.contains("10.9.0.11"));
    nothing_is_left(&lab);
    for vip in [VIP4, VIP6] {
        assert_eq!(
            lab.exchange(vip, 40).into_iter().collect::<std::collections::BTreeSet<u8>>(),
            [1, 2].into(),
            "{vip}"
        );
    }
    lb.end().unwrap();
    nothing_is_left(&lab);
}
