//! nftables: what a table does to packets, how it changes, and what the kernel refuses.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use martlet_netlink::Error;
use martlet_netlink::Family::{self, Ipv4, Ipv6};
use martlet_netlink::nft::{
    Address, Base, Chain, Checksum, Connection, Expression, Layer, MetaKey, Place, Queue, QueueForm, Register, Rule,
    SLOTS, Set, Table, Watch,
};

use tokio::time::timeout;

use crate::sys::{in_namespace, ip, run};
use crate::two_links;

fn prefixes<const N: usize>(family: Family, texts: [&str; N]) -> Set {
    Set::Prefixes { family, elements: texts.iter().map(|text| text.parse().unwrap()).collect() }
}

/// Drops what this machine sends to an address of a set.
fn dropping(four: Set, six: Set) -> Table {
    let rules = vec![
        Rule::new().address_in(Ipv4, Address::Destination, "four").counter().discard(),
        Rule::new().address_in(Ipv6, Address::Destination, "six").counter().discard(),
    ];
    Table::new("test").set("four", four).set("six", six).chain("output", Chain::at(Place::Output, -150, rules))
}

/// Whether a datagram to this address leaves.
fn leaves(address: &str) -> bool {
    let from = if address.contains(':') { "[::1]:0" } else { "127.0.0.1:0" };
    let address = if address.contains(':') { format!("[{address}]:4000") } else { format!("{address}:4000") };
    UdpSocket::bind(from).unwrap().send_to(b"x", address).is_ok()
}

/// Which of these addresses datagrams do not reach.
fn stopped<const N: usize>(addresses: [&str; N]) -> Vec<&str> {
    addresses.into_iter().filter(|address| !leaves(address)).collect()
}

fn everywhere_is_here() {
    ip("route add local 20.0.0.0/8 dev lo");
    ip("-6 route add local 2000::/16 dev lo");
}

#[test]
fn a_set_matches_its_prefixes_and_nothing_beside_them() {
    in_namespace(async || {
        everywhere_is_here();
        let mut nft = Connection::open().unwrap();
        let four = prefixes(Ipv4, ["20.0.0.4/30", "20.0.0.5/32", "20.0.0.8/32", "20.9.0.0/16"]);
        let six = prefixes(Ipv6, ["2000::10/124", "2000::1/128"]);
        nft.apply(&dropping(four, six), None).unwrap();
        let four =
            ["20.0.0.3", "20.0.0.4", "20.0.0.8", "20.0.0.9", "20.8.255.255", "20.9.0.0", "20.9.255.255", "20.10.0.0"];
        assert_eq!(stopped(four), ["20.0.0.4", "20.0.0.8", "20.9.0.0", "20.9.255.255"]);
        let six = ["2000::", "2000::1", "2000::2", "2000::f", "2000::10", "2000::1f", "2000::20"];
        assert_eq!(stopped(six), ["2000::1", "2000::10", "2000::1f"]);
    });
}

#[test]
fn elements_come_and_go_without_touching_the_rest() {
    in_namespace(async || {
        everywhere_is_here();
        let mut nft = Connection::open().unwrap();
        let first = dropping(prefixes(Ipv4, ["20.0.0.1/32"]), prefixes(Ipv6, []));
        nft.apply(&first, None).unwrap();
        assert_eq!(stopped(["20.0.0.1", "20.0.0.2", "20.0.0.3", "2000::1"]), ["20.0.0.1"]);
        let second = dropping(prefixes(Ipv4, ["20.0.0.1/32", "20.0.0.2/31"]), prefixes(Ipv6, ["2000::1/128"]));
        nft.apply(&second, Some(&first)).unwrap();
        assert_eq!(
            stopped(["20.0.0.1", "20.0.0.2", "20.0.0.3", "2000::1"]),
            ["20.0.0.1", "20.0.0.2", "20.0.0.3", "2000::1"]
        );
        // The rules are still the first ones: their counters went on.
        let listing = run("nft", "list table inet test");
        assert!(listing.contains("counter packets 4"), "{listing}");
        let third = dropping(prefixes(Ipv4, ["20.0.0.3/32"]), prefixes(Ipv6, ["::/0"]));
        nft.apply(&third, Some(&second)).unwrap();
        assert_eq!(
            stopped(["20.0.0.1", "20.0.0.2", "20.0.0.3", "2000::1", "2000::2"]),
            ["20.0.0.3", "2000::1", "2000::2"]
        );
        nft.apply(&first, Some(&third)).unwrap();
        assert_eq!(stopped(["20.0.0.1", "20.0.0.2", "20.0.0.3", "2000::1"]), ["20.0.0.1"]);
    });
}

#[test]
fn a_table_is_replaced_whole_or_rule_by_rule_and_deleted() {
    in_namespace(async || {
        everywhere_is_here();
        let mut nft = Connection::open().unwrap();
        let first = dropping(prefixes(Ipv4, ["20.0.0.1/32"]), prefixes(Ipv6, []));
        assert!(!nft.exists(Layer::Inet, "test").unwrap());
        nft.apply(&first, None).unwrap();
        assert!(nft.exists(Layer::Inet, "test").unwrap());
        // The leftovers of one who died: adopted by replacing them.
        nft.apply(&first, None).unwrap();
        assert_eq!(stopped(["20.0.0.1", "20.0.0.2"]), ["20.0.0.1"]);
        // Another rule, a jump into a new chain.
        let mut second = first.clone().chain("more", Chain { hook: None, rules: vec![Rule::new().discard()] });
        let jump = Rule::new().family(Ipv4).protocol(17).then(Expression::Jump("more".to_owned()));
        second.chains.get_mut("output").unwrap().rules = vec![jump];
        nft.apply(&second, Some(&first)).unwrap();
        assert_eq!(stopped(["20.0.0.1", "20.0.0.2", "2000::1"]), ["20.0.0.1", "20.0.0.2"]);
        // Somebody flushed it behind our back: the whole is made again.
        run("nft", "delete table inet test");
        let mut third = second.clone();
        third.chains.get_mut("more").unwrap().rules = vec![];
        nft.apply(&third, Some(&second)).unwrap();
        assert_eq!(stopped(["20.0.0.1", "20.0.0.2"]), Vec::<&str>::new());
        nft.delete(Layer::Inet, "test").unwrap();
        assert!(!nft.exists(Layer::Inet, "test").unwrap());
        nft.delete(Layer::Inet, "test").unwrap();
        assert_eq!(run("nft", "list ruleset"), "");
    });
}

#[test]
fn what_the_kernel_refuses_is_named_and_changes_nothing() {
    in_namespace(async || {
        everywhere_is_here();
        let mut nft = Connection::open().unwrap();
        let good = dropping(prefixes(Ipv4, ["20.0.0.1/32"]), prefixes(Ipv6, []));
        nft.apply(&good, None).unwrap();
        let mut bad = dropping(prefixes(Ipv4, ["20.0.0.2/32"]), prefixes(Ipv6, []));
        let rules = &mut bad.chains.get_mut("output").unwrap().rules;
        rules.push(Rule::new().address_in(Ipv4, Address::Source, "nosuch"));
        rules.push(Rule::new().then(Expression::Jump("nowhere".to_owned())));
        for previous in [None, Some(&good)] {
            let error = nft.apply(&bad, previous).unwrap_err().to_string();
            assert!(
                error.starts_with("the kernel refuses rule 3 of chain output of table test: No such file"),
                "{error}"
            );
            assert_eq!(stopped(["20.0.0.1", "20.0.0.2"]), ["20.0.0.1"]);
        }
    });
}

#[test]
fn an_element_counts_what_was_looked_up_and_a_map_writes_ports() {
    in_namespace(async || {
        everywhere_is_here();
        let mut nft = Connection::open().unwrap();
        let (zero, one) = (Register(0), Register(1));
        let load = Expression::Payload { base: Base::Transport, offset: 2, length: 2, to: zero };
        let map = Expression::Map { register: zero, map: "ports".into(), to: one };
        let write = Expression::Write {
            from: one,
            base: Base::Transport,
            offset: 2,
            length: 2,
            checksum: Checksum::Internet(6),
        };
        // The port as it will be written, shifted as in a mark of which it is the upper half.
        let shifted = u32::from_ne_bytes([0, 0, 0x1f, 0x90]).to_ne_bytes();
        let count = |mark| {
            let found = Expression::Lookup { register: zero, set: "counted".into(), found: true };
            Rule::new().set_mark(mark).then(Expression::Meta { key: MetaKey::Mark, to: zero }).then(found)
        };
        let shift = Expression::ShiftRight { from: one, to: one, bits: 16 };
        let rules = vec![
            Rule::new().protocol(17).then(load).then(map).then(shift).then(write),
            count(7).mark(7),
            count(8),
            count(7),
        ];
        let elements = [([0x0f, 0xa0, 0, 0].to_vec(), shifted.to_vec())].into();
        let table = Table::new("test")
            .set("ports", Set::Map { key: 4, value: 4, elements })
            .set("counted", Set::Counted([7, 9].into()))
            .chain("output", Chain::at(Place::Output, -150, rules));
        nft.apply(&table, None).unwrap();
        let server = UdpSocket::bind("127.0.0.1:8080").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..3 {
            client.send_to(b"abc", "127.0.0.1:4000").unwrap();
            assert_eq!(server.recv(&mut [0; 9]).unwrap(), 3);
        }
        let counts = nft.counts(Layer::Inet, "test", "counted").unwrap();
        assert_eq!(counts, [(7, (6, 6 * 31)), (9, (0, 0))].into(), "twice each of three packets");
        let more = table.clone().set("counted", Set::Counted((7..3000).collect()));
        nft.apply(&more, Some(&table)).unwrap();
        let counts = nft.counts(Layer::Inet, "test", "counted").unwrap();
        assert_eq!((counts.len(), counts[&7].0), (2993, 0), "so many more are a new set");
        let fewer = more.clone().set("counted", Set::Counted((5..3000).collect()));
        client.send_to(b"abc", "127.0.0.1:4000").unwrap();
        nft.apply(&fewer, Some(&more)).unwrap();
        let counts = nft.counts(Layer::Inet, "test", "counted").unwrap();
        assert_eq!((counts.len(), counts[&7]), (2995, (2, 2 * 31)), "a few more keep what was counted");
        assert!(nft.counts(Layer::Inet, "test", "nosuch").unwrap_err().to_string().contains("nosuch"));
    });
}

#[test]
fn the_slot_of_a_flow_gives_the_mark() {
    in_namespace(async || {
        everywhere_is_here();
        let mut nft = Connection::open().unwrap();
        let zero = Register(0);
        let masked = |bits: u32| {
            let mask = bits.to_ne_bytes().to_vec();
            Expression::Bitwise { from: zero, to: zero, mask, xor: vec![0; 4] }
        };
        // The source port alone; the slot goes with the mark to the chain of its place.
        let by_port = |rule: Rule| {
            rule.protocol(17)
                .then(Expression::Payload { base: Base::Transport, offset: 0, length: 2, to: zero })
                .then(Expression::Hash { from: zero, length: 4, modulus: 4099, seed: 0x1234, to: zero })
                .then(Expression::SetMark { from: zero })
                .then(masked(15))
                .then(Expression::Choose { register: zero, map: "places".into() })
        };
        let rules = vec![
            by_port(Rule::new().address_in(Ipv4, Address::Destination, "four").first_fragment()),
            by_port(Rule::new().address_in(Ipv6, Address::Destination, "six")),
        ];
        let mut first = Table::new("test")
            .set("four", prefixes(Ipv4, ["20.0.0.0/8"]))
            .set("six", prefixes(Ipv6, ["2000::/16"]))
            .set("slots", Set::Marks(vec![7; 4099].into()))
            .set("places", Set::Chains((0..SLOTS).map(|place| format!("place-{place}")).collect()))
            .chain("output", Chain::at(Place::Output, -150, rules));
        for place in 0..16 {
            let rule = Rule::new()
                .then(Expression::Meta { key: MetaKey::Mark, to: zero })
                .then(masked(!15))
                .then(Expression::Map { register: zero, map: "slots".into(), to: zero })
                .then(Expression::SetMark { from: Register(place) })
                .mark(7)
                .discard();
            first = first.chain(&format!("place-{place}"), Chain { hook: None, rules: vec![rule] });
        }
        nft.apply(&first, None).unwrap();
        let targets = ["20.0.0.1", "20.0.0.2", "127.0.0.1", "2000::1", "::1"];
        assert_eq!(stopped(targets), ["20.0.0.1", "20.0.0.2", "2000::1"]);
        let second = first.clone().set("slots", Set::Marks(vec![8; 4099].into()));
        nft.apply(&second, Some(&first)).unwrap();
        assert_eq!(stopped(targets), Vec::<&str>::new());
        // Half of the slots: some flows, not all.
        let half = (0..4099).map(|slot| if slot % 2 == 0 { 7 } else { 8 }).collect();
        let third = first.clone().set("slots", Set::Marks(half));
        nft.apply(&third, Some(&second)).unwrap();
        let count = (0..200).filter(|_| leaves("20.0.0.1")).count();
        assert!((20..180).contains(&count), "{count} of 200 flows");
    });
}

#[test]
fn what_comes_in_by_a_link_is_forwarded_before_anything_else() {
    in_namespace(async || {
        let (_, index) = two_links();
        // Datagrams come in by `left`; whoever lives at the far end of `right` is known.
        ip("link set left address 02:00:00:00:00:01");
        ip("addr add 10.1.0.1/24 dev left-far");
        ip("neigh add 10.1.0.9 lladdr 02:00:00:00:00:01 dev left-far nud permanent");
        ip("route add 20.0.0.1 via 10.1.0.9 dev left-far");
        ip("neigh add 10.9.0.7 lladdr 02:00:00:00:00:07 dev right nud permanent");
        let (zero, one) = (Register(0), Register(1));
        let hops = Expression::Payload { base: Base::Network, offset: 8, length: 1, to: zero };
        let rule = Rule::new()
            .then(hops.clone())
            .then(Expression::AtLeast { register: zero, value: vec![2] })
            .set_mark(7)
            .then(Expression::Meta { key: MetaKey::Mark, to: zero })
            .then(Expression::Map { register: zero, map: "ways".into(), to: zero })
            .then(Expression::Forward { family: Ipv4, address: zero, interface: one });
        let way = |address: &str| Set::Ways { family: Ipv4, elements: [(7, (address.parse().unwrap(), index))].into() };
        let table = Table::netdev("test")
            .set("ways", way("10.9.0.7"))
            .chain("in", Chain::at(Place::Ingress(["left".to_owned()].into()), 0, vec![rule]));
        let mut nft = Connection::open().unwrap();
        nft.apply(&table, None).unwrap();
        assert!(nft.exists(Layer::Netdev, "test").unwrap() && !nft.exists(Layer::Inet, "test").unwrap());
        let is_it = Expression::Compare { register: zero, equal: true, value: vec![8] };
        let seen = Expression::Lookup { register: zero, set: "seen".into(), found: true };
        let mark = Expression::Meta { key: MetaKey::Mark, to: zero };
        let rule = Rule::new().then(hops).then(is_it).set_mark(1).then(mark).then(seen);
        let far = Table::netdev("far")
            .set("seen", Set::Counted([1].into()))
            .chain("in", Chain::at(Place::Ingress(["right-far".to_owned()].into()), 0, vec![rule]));
        nft.apply(&far, None).unwrap();
        let listing = run("nft", "list ruleset");
        // (It does not list what comes after the lookup of two registers.)
        assert!(listing.contains("10.9.0.7 . \"right\""), "{listing}");
        let client = UdpSocket::bind("10.1.0.1:0").unwrap();
        for hops in [1, 9] {
            client.set_ttl(hops).unwrap();
            client.send_to(b"x", "20.0.0.1:4000").unwrap();
        }
        let count = |nft: &mut Connection| nft.counts(Layer::Netdev, "test", "ways").unwrap()[&7].0;
        assert_eq!(count(&mut nft), 1, "the one that has a hop left");
        assert_eq!(nft.counts(Layer::Netdev, "far", "seen").unwrap()[&1].0, 1, "with a hop less");
        // Another endpoint has the mark now: its counter begins anew.
        let other = table.clone().set("ways", way("10.9.0.8"));
        nft.apply(&other, Some(&table)).unwrap();
        assert_eq!(count(&mut nft), 0);
        // A chain of another link is another chain; one of a link that is gone goes, too.
        let elsewhere = Place::Ingress(["right".to_owned()].into());
        let moved = table.clone().chain("in", Chain::at(elsewhere, 0, table.chains["in"].rules.clone()));
        nft.apply(&moved, Some(&table)).unwrap();
        assert!(run("nft", "list ruleset").contains("ingress device \"right\""));
        ip("link del right");
        nft.delete(Layer::Netdev, "test").unwrap();
        nft.delete(Layer::Netdev, "far").unwrap();
        assert_eq!(run("nft", "list ruleset"), "");
    });
}

#[test]
fn what_goes_out_by_a_link_is_given_its_frame_behind_everything_else() {
    in_namespace(async || {
        two_links();
        ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev left nud permanent");
        ip("link set left-far address 02:00:00:00:00:07");
        ip("addr add 20.0.0.1/32 dev lo");
        ip("route add 20.0.0.7 via 192.0.2.9 dev left");
        let (mark, address) = (Register(0), Register(1));
        let rule = Rule::new().then(Expression::Meta { key: MetaKey::Mark, to: mark }).then(Expression::Map {
            register: mark,
            map: "who".into(),
            to: address,
        });
        let write =
            Expression::Write { from: address, base: Base::LinkLayer, offset: 0, length: 6, checksum: Checksum::None };
        let who = |last: u8| Set::Ethernet([(7, [2, 0, 0, 0, 0, last])].into());
        let out = Place::Egress(["left".to_owned()].into());
        let table = Table::netdev("test").set("who", who(9)).chain("out", Chain::at(out, 0, vec![rule.then(write)]));
        let mut nft = Connection::open().unwrap();
        nft.apply(&table, None).unwrap();
        // What comes to the far end with its own address on the frame is for it; nobody else's is.
        let for_us = Rule::new()
            .then(Expression::Meta { key: MetaKey::PacketType, to: mark })
            .then(Expression::Compare { register: mark, equal: true, value: vec![0] })
            .set_mark(1)
            .then(Expression::Meta { key: MetaKey::Mark, to: mark })
            .then(Expression::Lookup { register: mark, set: "seen".into(), found: true });
        let far = Table::netdev("far")
            .set("seen", Set::Counted([1].into()))
            .chain("in", Chain::at(Place::Ingress(["left-far".to_owned()].into()), 0, vec![for_us]));
        nft.apply(&far, None).unwrap();
        let listing = run("nft", "list ruleset");
        assert!(listing.contains("0x00000007 : 02:00:00:00:00:09") && listing.contains("egress device"), "{listing}");
        let socket = UdpSocket::bind("20.0.0.1:0").unwrap();
        let mut send = |expected: u64, why: &str| {
            let count = |nft: &mut Connection| nft.counts(Layer::Netdev, "far", "seen").unwrap()[&1].0;
            let before = count(&mut nft);
            socket.send_to(b"x", "20.0.0.7:4000").unwrap();
            assert_eq!(count(&mut nft) - before, expected, "{why}");
        };
        send(0, "without a mark");
        socket2::SockRef::from(&socket).set_mark(7).unwrap();
        send(0, "another is written on it");
        let mut other = Connection::open().unwrap();
        let moved = table.clone().set("who", who(7));
        other.apply(&moved, Some(&table)).unwrap();
        send(1, "it is");
    });
}

#[test]
fn the_probe_finds_a_form_that_works_and_leaves_nothing() {
    in_namespace(async || {
        let mut nft = Connection::open().unwrap();
        let form = nft.probe_queue().unwrap();
        assert_eq!(run("nft", "list ruleset"), "");
        let queue = |bypass| Queue { first: 7, total: 3, bypass, fanout: true, form };
        let table = |bypass| {
            let rules = vec![Rule::new().family(Ipv4).protocol(17).counter().queue(queue(bypass))];
            Table::new("test").chain("output", Chain::at(Place::Output, -150, rules))
        };
        // Nobody listens: without bypass that is the end of the packet, with it the packet goes on.
        let sink = UdpSocket::bind("127.0.0.1:4000").unwrap();
        nft.apply(&table(false), None).unwrap();
        assert!(leaves("127.0.0.1"));
        nft.apply(&table(true), Some(&table(false))).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"second", "127.0.0.1:4000").unwrap();
        sink.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut buffer = [0; 16];
        let length = sink.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"second", "the first one was dropped");
        nft.delete(Layer::Inet, "test").unwrap();
    });
}

#[test]
fn a_form_that_this_kernel_lacks_is_refused_by_name() {
    in_namespace(async || {
        let mut nft = Connection::open().unwrap();
        let form = nft.probe_queue().unwrap();
        let native = Queue { first: 0, total: 1, bypass: false, fanout: false, form: QueueForm::Native };
        let table = Table::new("test").chain("c", Chain::at(Place::Input, 0, vec![Rule::new().queue(native)]));
        match (form, nft.apply(&table, None)) {
            (QueueForm::Native, Ok(())) => assert!(run("nft", "list table inet test").contains("queue to 0")),
            (QueueForm::Xtables, Err(error @ Error::Refused { .. })) => {
                assert!(error.to_string().starts_with("the kernel refuses rule 1 of chain c of table test"), "{error}");
                assert!(!nft.exists(Layer::Inet, "test").unwrap());
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn the_rules_that_put_fragments_together_are_accepted() {
    in_namespace(async || {
        let mut nft = Connection::open().unwrap();
        let rules = vec![Rule::defragment(Ipv4), Rule::defragment(Ipv6)];
        nft.apply(&Table::new("test").chain("defragment", Chain::at(Place::Prerouting, -300, rules)), None).unwrap();
        let listing = run("nft", "list table inet test");
        assert!(listing.contains("tproxy ip to :1") && listing.contains("tproxy ip6 to :1"), "{listing}");
    });
}

#[test]
fn a_full_map_of_65537_slots_is_loaded_and_changed() {
    in_namespace(async || {
        let mut nft = Connection::open().unwrap();
        let table = |marks: Vec<u32>| Table::new("test").set("slots", Set::Marks(marks.into()));
        let mut marks: Vec<u32> = (0..65537).map(|slot| 5000 + slot % 100).collect();
        let first = table(marks.clone());
        let elements = || -> BTreeSet<String> {
            let listing = run("nft", "list map inet test slots");
            let parts = listing.split([',', '{', '}']).map(|part| part.trim().to_owned());
            parts.filter(|part| part.contains(" : ") && !part.contains("type")).collect()
        };
        nft.apply(&first, None).unwrap();
        let before = elements();
        assert_eq!(before.len(), 65537_usize.div_ceil(SLOTS));
        marks.iter_mut().step_by(655).for_each(|mark| *mark = 5100);
        nft.apply(&table(marks), Some(&first)).unwrap();
        let after = elements();
        assert_eq!((after.len(), after.difference(&before).count()), (before.len(), 101));
    });
}

#[test]
fn a_flushed_table_of_many_chains_is_one_hint_or_two() {
    in_namespace(async || {
        let mut nft = Connection::open().unwrap();
        let mut watch = nft.watch(&["test"]).unwrap();
        let many = |table: Table, number| {
            table.chain(&format!("c-{number}"), Chain { hook: None, rules: vec![Rule::new().counter(); 20] })
        };
        nft.apply(&(0..200).fold(Table::new("test"), many), None).unwrap();
        run("nft", "flush ruleset");
        let mut hints = 0;
        while timeout(Duration::from_millis(500), watch.changed()).await.is_ok() {
            hints += 1;
            // Whoever hears of it is busy for a while.
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!((1..=2).contains(&hints), "{hints} hints");
    });
}

#[test]
fn another_who_touches_our_table_is_seen_and_our_own_hand_is_not() {
    in_namespace(async || {
        let mut nft = Connection::open().unwrap();
        let mut watch = nft.watch(&["test"]).unwrap();
        let soon = async |watch: &mut Watch| timeout(Duration::from_secs(10), watch.changed()).await.expect("a hint");
        let first = dropping(prefixes(Ipv4, ["20.0.0.1/32"]), prefixes(Ipv6, []));
        nft.apply(&first, None).unwrap();
        run("nft", "flush ruleset");
        soon(&mut watch).await;
        nft.apply(&first, None).unwrap();
        run("nft", "delete element inet test four { 20.0.0.1 }");
        soon(&mut watch).await;
        nft.apply(&first, None).unwrap();
        nft.delete(Layer::Inet, "test").unwrap();
        // Nobody else touches ours: what others do to theirs is seen by another watch only.
        run("nft", "add table inet other");
        let mut other = nft.watch(&["other"]).unwrap();
        run("nft", "add chain inet other c");
        soon(&mut other).await;
        assert!(timeout(Duration::from_millis(200), watch.changed()).await.is_err());
    });
}
