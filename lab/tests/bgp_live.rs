//! `martlet speaker` among neighbours that say what they must not: the corpus of malformed messages over live sessions, a thousand
//! mutated ones, and its file and events to the letter. Needs root and the product (`MARTLET_BIN`, else `target/lab/martlet`).
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use martlet_lab::demo::topology::find_martlet;
use martlet_lab::player::{KEEPALIVE, NOTIFICATION, Player, Prefixes, Said, UPDATE, Who, message};
use martlet_lab::wait::{LIMIT, Seen, until};
use martlet_lab::{End, Lab, Namespace, Process, Signal, preflight};
use serde_json::Value;

const CORPUS: &str = include_str!("../../bgp/tests/corpus.txt");

const US: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const OBSERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const INTERNAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);

const FILE: &str = r#"
localASN: 65000
routerId: 10.0.0.1
listen: [{address: 10.0.0.1, port: 1179}]
neighbors:
- {address: 10.0.0.2, remoteASN: 65001, passive: true, families: [ipv4, ipv6], import: all, export: none}
- {address: 10.0.0.3, remoteASN: 65003, passive: true, families: [ipv4, ipv6], import: none, export: all}
- {address: 10.0.0.4, remoteASN: 65000, passive: true, families: [ipv4, ipv6], import: all, export: none}
- {address: 10.0.1.0/24, dynamic: true, families: [ipv4], import: default, export: [30.0.0.0/24]}
originate: [20.0.0.1/32, "2000::1/128"]
"#;

/// The speaker and its namespace; all addresses are on `lo`.
struct Stage {
    lab: Lab,
    namespace: Namespace,
    speaker: Process,
    events: PathBuf,
}

impl Stage {
    fn new(file: &str) -> Self {
        preflight::check().unwrap();
        let lab = Lab::new(End::Remove).unwrap();
        let namespace = lab.namespace("speaker").unwrap();
        let addresses = [US, EXTERNAL, OBSERVER, INTERNAL, Ipv4Addr::new(10, 0, 1, 9)];
        let lines: Vec<String> = addresses.iter().map(|one| format!("address add {one}/32 dev lo")).collect();
        namespace.ip(&format!("link set lo up\n{}", lines.join("\n"))).unwrap();
        let path = lab.dir().join("speaker.yaml");
        std::fs::write(&path, file).unwrap();
        let events = lab.dir().join("log/speaker.json");
        let mut command = Command::new(find_martlet().unwrap());
        command.args(["speaker", "--json"]).arg(path);
        let speaker = lab.spawn_into("speaker", &namespace, command, &events).unwrap();
        Self { lab, namespace, speaker, events }
    }

    fn player(&self, local: Ipv4Addr) -> Player {
        Player::connect(&self.namespace, IpAddr::V4(local), SocketAddr::from((US, 1179))).unwrap()
    }

    /// A session without a hold time: the machine may be slow.
    fn established(&self, local: Ipv4Addr, asn: u32) -> Player {
        self.with(local, &Who { hold_time_s: 0, ..Who::modern(asn, local) })
    }

    /// A session; while the speaker has not seen the end of the one before, it takes no other.
    fn with(&self, local: Ipv4Addr, who: &Who) -> Player {
        until("a session", LIMIT, || {
            let mut player = self.player(local);
            let tried = player.establish(who).map(|()| player);
            Ok(tried.map_or_else(|error| Seen::not_yet(error.to_string()), Seen::Yes))
        })
        .unwrap()
    }

    fn events(&self) -> Vec<Value> {
        assert!(self.speaker.ended().is_none(), "the speaker ended: {}", self.speaker.tail(10));
        let text = std::fs::read_to_string(&self.events).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
    }

    /// Waits for an event after the first `after`.
    fn event(&self, after: usize, name: &str, is: impl Fn(&Value) -> bool) -> Value {
        until(&format!("the event {name}"), LIMIT, || {
            let found = self.events().into_iter().skip(after).find(|event| event["event"] == name && is(event));
            Ok(found.map_or_else(|| Seen::not_yet(format!("{:?}", self.events().last())), Seen::Yes))
        })
        .unwrap()
    }
}

fn hex(text: &str) -> Vec<u8> {
    let two = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len() / 2).map(|at| two(at * 2)).collect()
}

fn update(attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
    message(UPDATE, &[&[0, 0][..], &length, attributes, nlri].concat())
}

/// ORIGIN, an AS path of one number, next hop 10.0.0.2.
fn usual(old: bool) -> Vec<u8> {
    let path: &[u8] = if old { &[0x40, 2, 4, 2, 1, 0, 7] } else { &[0x40, 2, 6, 2, 1, 0, 0, 0, 7] };
    [&[0x40, 1, 1, 0][..], path, &[0x40, 3, 4, 10, 0, 0, 2]].concat()
}

/// The same for `2001:db9::/32`, or another prefix like it, by IPv6.
fn usual6(old: bool, last: u8) -> Vec<u8> {
    let hop = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let reach = [&[0x80, 14, 26, 0, 2, 1, 16][..], &hop, &[0, 32, 0x20, 1, 0x0d, last]].concat();
    let usual = usual(old);
    [&reach, &usual[..usual.len() - 7]].concat()
}

/// What an observer knows: the routes that it was told and that were not withdrawn.
struct Observer {
    player: Player,
    known: BTreeSet<Vec<u8>>,
}

impl Observer {
    /// Listens until `prefix` was announced, or withdrawn.
    fn until(&mut self, prefix: &[u8], there: bool) {
        while self.known.contains(prefix) != there {
            match self.player.next(LIMIT).unwrap() {
                Said::Message(UPDATE, body) => {
                    let heard = Prefixes::of(&body);
                    for gone in heard.withdrawn {
                        self.known.remove(&gone);
                    }
                    self.known.extend(heard.announced);
                }
                Said::Message(KEEPALIVE, _) => {}
                other => panic!("the observer heard {other:?}, waiting for {prefix:?}"),
            }
        }
    }
}

const FOUR: [u8; 3] = [16, 10, 1];
const SIX: [u8; 6] = [6, 32, 0x20, 1, 0x0d, 0xb9];
/// What is announced last of each family, so that all before it has been seen: 10.99.0.0/16, `2001:dba::/32`.
const LAST: [u8; 3] = [16, 10, 99];
const LAST6: [u8; 6] = [6, 32, 0x20, 1, 0x0d, 0xba];

/// Plays one case: what became of it, in the corpus's words.
fn play(stage: &Stage, observer: &mut Observer, (session, at): (&str, &str), octets: &[u8], expected: &str) -> String {
    let (local, who) = match session {
        "internal" => (INTERNAL, Who::modern(65000, INTERNAL)),
        "old" => (EXTERNAL, Who::old(65001, EXTERNAL)),
        _ => (EXTERNAL, Who::modern(65001, EXTERNAL)),
    };
    let old = session == "old";
    let mut player = if at == "established" { stage.with(local, &who) } else { stage.player(local) };
    match at {
        "first" => {}
        "confirm" => player.open(&who).unwrap(),
        _ => {
            player.say(&[update(&usual(old), &FOUR), update(&usual6(old, 0xb9), &[])].concat()).unwrap();
            // To another AS only: what the internal one tells goes there as well.
            observer.until(&FOUR, true);
            observer.until(&SIX, true);
        }
    }
    let before = stage.events().len();
    player.say(octets).unwrap();
    if at == "established" {
        // It may be closed already.
        let _ = player.say(&[update(&usual(old), &LAST), update(&usual6(old, 0xba), &[])].concat());
    }
    let notified = loop {
        // Whatever is right is answered by nothing, but a valid OPEN; that the session stays is seen by what the observer hears.
        let silent = at == "established" && !expected.starts_with("error");
        let quiet = if silent { Duration::from_millis(20) } else { LIMIT };
        match player.next(quiet).unwrap() {
            Said::Message(NOTIFICATION, body) => break Some((body[0], body[1])),
            Said::Message(KEEPALIVE, _) if at == "first" => break None,
            Said::Message(..) => {}
            Said::Closed => panic!("closed without a word"),
            Said::Nothing => break None,
        }
    };
    if let Some((code, subcode)) = notified {
        assert_eq!(player.next(LIMIT).unwrap(), Said::Closed, "a NOTIFICATION closes");
        // The connection of the case before may only now be seen to be gone.
        stage.event(before, "closed", |event| {
            event["neighbor"] == local.to_string()
                && event["sent"] == true
                && (&event["code"], &event["subcode"]) == (&Value::from(code), &Value::from(subcode))
        });
        for gone in [&FOUR[..], &SIX, &LAST, &LAST6] {
            observer.until(gone, false);
        }
        return format!("error {code} {subcode}");
    }
    let mut answer = "accept".to_owned();
    if at == "established" {
        observer.until(&LAST, true);
        observer.until(&LAST6, true);
        let events = stage.events().split_off(before);
        let gone = !(observer.known.contains(&FOUR[..]) && observer.known.contains(&SIX[..]));
        assert_eq!(gone, events.iter().any(|event| event["event"] == "treatAsWithdraw"), "{events:?}");
        if gone {
            answer = "treat-as-withdraw".into();
        } else if let Some(event) = events.iter().find(|event| event["event"] == "attributeDiscard") {
            answer = format!("attribute-discard {}", event["attribute"]);
        }
    }
    player.say(&message(NOTIFICATION, &[6, 4])).unwrap();
    drop(player);
    for gone in [&FOUR[..], &SIX, &LAST, &LAST6] {
        observer.until(gone, false);
    }
    answer
}

#[test]
fn every_message_of_the_corpus_is_answered_on_the_wire_as_its_rfc_asks() {
    let stage = Stage::new(FILE);
    let mut observer = Observer { player: stage.established(OBSERVER, 65003), known: BTreeSet::new() };
    observer.until(&[32, 20, 0, 0, 1], true);
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in CORPUS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(" | ").collect();
        let [name, session, at, octets, expected] = fields[..] else { panic!("{line}") };
        let got = play(&stage, &mut observer, (session, at), &hex(octets), expected);
        count += 1;
        if got != expected {
            wrong.push(format!("{name} ({session}): {got}, not {expected}"));
        }
    }
    println!("{count} messages, {} answered otherwise than the RFC asks", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 300);
    // The other neighbour never noticed.
    let closed = stage.events().into_iter().find(|event| event["event"] == "closed" && event["neighbor"] == "10.0.0.3");
    assert_eq!(closed, None);
}

#[test]
fn a_thousand_mutated_messages_neither_crash_it_nor_touch_another_neighbour() {
    let stage = Stage::new(FILE);
    let mut observer = Observer { player: stage.established(OBSERVER, 65003), known: BTreeSet::new() };
    let messages: Vec<Vec<u8>> = CORPUS
        .lines()
        .filter(|line| line.contains("| established |"))
        .filter_map(|line| Some(hex(line.split(" | ").nth(3)?)))
        .collect();
    let mut random = 0x9e37_79b9_u32;
    let mut dice = |below: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        usize::try_from(random >> 8).unwrap() % below
    };
    let mut player = stage.established(EXTERNAL, 65001);
    let mut sessions = 1;
    for _ in 0..1000 {
        let mut octets = messages[dice(messages.len())].clone();
        for _ in 0..=dice(4) {
            // The header is left alone, mostly: else nothing behind it is read.
            let from = if dice(10) == 0 { 0 } else { 19.min(octets.len() - 1) };
            let at = from + dice(octets.len() - from);
            octets[at] = u8::try_from(dice(256)).unwrap();
        }
        if player.say(&octets).is_err() || player.next(Duration::from_millis(1)).unwrap() == Said::Closed {
            player = stage.established(EXTERNAL, 65001);
            sessions += 1;
            continue;
        }
        if dice(8) == 0 {
            // A cut message must not leave the rest of the stream waiting for its end.
            while !matches!(player.next(Duration::from_millis(2)).unwrap(), Said::Closed | Said::Nothing) {}
        }
    }
    drop(player);
    println!("1000 mutated messages over {sessions} sessions");
    let mut player = stage.established(EXTERNAL, 65001);
    player.say(&update(&usual(false), &LAST)).unwrap();
    observer.until(&LAST, true);
    let closed = stage.events().into_iter().find(|event| event["event"] == "closed" && event["neighbor"] == "10.0.0.3");
    assert_eq!(closed, None);
}

#[test]
fn events_have_the_documented_fields_and_sigterm_says_goodbye() {
    let stage = Stage::new(FILE);
    let mut observer = Observer { player: stage.established(OBSERVER, 65003), known: BTreeSet::new() };
    let mut player = stage.established(EXTERNAL, 65001);
    stage.event(0, "established", |event| event["neighbor"] == "10.0.0.2");
    let community = [0xc0, 8, 4, 0xfd, 0xe8, 0, 1];
    let unknown = [0xc0, 201, 1, 7];
    player.say(&update(&[&usual(false)[..], &[0x80, 4, 4, 0, 0, 0, 9], &community, &unknown].concat(), &FOUR)).unwrap();
    let route = stage.event(0, "route", |event| event["prefix"] == "10.1.0.0/16");
    assert_eq!((&route["neighbor"], &route["family"]), (&Value::from("10.0.0.2"), &Value::from("ipv4")));
    let attributes = &route["attributes"];
    assert_eq!(attributes["asPath"], serde_json::json!([7]));
    assert_eq!((&attributes["nextHop"], &attributes["med"]), (&Value::from("10.0.0.2"), &Value::from(9)));
    assert_eq!(
        (&attributes["origin"], &attributes["communities"]),
        (&Value::from("igp"), &serde_json::json!(["65000:1"]))
    );
    assert!(
        route["raw"].as_str().is_some_and(|raw| raw.contains("4001010040020602010000000780040400000009c00804fde80001"))
    );
    // Transit: the path with ours in front, the unknown attribute with the partial bit.
    let body = loop {
        if let Said::Message(UPDATE, body) = observer.player.next(LIMIT).unwrap()
            && Prefixes::of(&body).announced.contains(&FOUR.to_vec())
        {
            break body;
        }
    };
    let passed = Prefixes::of(&body).attributes;
    assert!(passed.contains(&(2, vec![2, 2, 0, 0, 0xfd, 0xe8, 0, 0, 0, 7])), "{passed:?}");
    assert!(body.windows(4).any(|octets| octets == [0xe0, 201, 1, 7]), "the partial bit is set: {body:x?}");
    player.say(&message(UPDATE, &[0, 3, 16, 10, 1, 0, 0])).unwrap();
    stage.event(0, "withdrawn", |event| event["prefix"] == "10.1.0.0/16" && event["family"] == "ipv4");
    player.say(&message(UPDATE, &[0; 4])).unwrap();
    stage.event(0, "endOfRib", |event| event["neighbor"] == "10.0.0.2" && event["family"] == "ipv4");
    player.say(&update(&[0x40, 1, 1, 9, 0x40, 2, 6, 2, 1, 0, 0, 0, 7, 0x40, 3, 4, 10, 0, 0, 2], &FOUR)).unwrap();
    stage.event(0, "treatAsWithdraw", |event| event["prefix"] == "10.1.0.0/16" && event["raw"] == "40010109");
    player.say(&update(&[&usual(false)[..], &[0x40, 6, 1, 0]].concat(), &FOUR)).unwrap();
    stage.event(0, "attributeDiscard", |event| event["attribute"] == 6 && event["raw"] == "40060100");
    player.say(&message(NOTIFICATION, &[6, 2, 3, b'b', b'y', b'e'])).unwrap();
    let closed = stage.event(0, "closed", |event| event["neighbor"] == "10.0.0.2");
    assert_eq!((&closed["code"], &closed["subcode"], &closed["sent"]), (&6.into(), &2.into(), &false.into()));
    assert!(closed["text"].as_str().is_some_and(|text| text.contains("bye")), "{closed}");
    // Any address of the dynamic prefix, with any AS number; only the listed prefix goes out, beside our own.
    let mut dynamic = stage.established(Ipv4Addr::new(10, 0, 1, 9), 64999);
    stage.event(0, "established", |event| event["neighbor"] == "10.0.1.9");
    for event in stage.events() {
        for field in ["time", "neighbor", "event", "family", "prefix", "attributes", "raw"] {
            assert!(event.get(field).is_some(), "{field} in {event}");
        }
    }
    stage.speaker.signal(Signal::Term).unwrap();
    let goodbye = loop {
        match dynamic.next(LIMIT).unwrap() {
            Said::Message(NOTIFICATION, body) => break body,
            Said::Message(..) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(goodbye[..2], [6, 2], "Cease/Administrative Shutdown");
    assert!(goodbye.len() > 3, "with a text: {goodbye:?}");
    assert!(stage.speaker.wait(LIMIT).unwrap().success());
    drop(stage.lab);
}

#[test]
fn a_key_that_is_unknown_ends_it_with_the_keys_name() {
    for (line, word) in
        [("colour: red", "colour"), ("neighbors: [{address: 10.0.0.2, remoteASN: 1, pasive: true}]", "pasive")]
    {
        let path = std::env::temp_dir().join(format!("martlet-unknown-key-{}.yaml", std::process::id()));
        std::fs::write(&path, format!("localASN: 1\nrouterId: 1.1.1.1\n{line}\n")).unwrap();
        let output = Command::new(find_martlet().unwrap()).arg("speaker").arg(&path).output().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(word), "{said}");
    }
}
