//! The corpus of malformed messages (`corpus.txt`), each played against the speaker in memory.
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod puppet;

use martlet_bgp::{Event, Family, Input, NeighborConfig, NeighborState};
use puppet::{Stage, attribute, keepalive, modern, next_hop, open, origin, path, update};

const CORPUS: &str = include_str!("corpus.txt");

struct Case<'a> {
    name: &'a str,
    session: &'a str,
    stage: &'a str,
    octets: Vec<u8>,
    expected: &'a str,
}

fn cases() -> Vec<Case<'static>> {
    let lines = CORPUS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(" | ").collect();
            let [name, session, stage, hex, expected] = fields[..] else { panic!("{line}") };
            let octets = hex.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
            let octets = octets.map(|two| u8::from_str_radix(two, 16).unwrap()).collect();
            Case { name, session, stage, octets, expected }
        })
        .collect()
}

/// What became of it, in the corpus's words.
fn played(case: &Case<'_>) -> String {
    let theirs = if case.session == "internal" { 65000 } else { 65001 };
    let config = NeighborConfig::new(65000, theirs, [Family::Ipv4, Family::Ipv6]);
    let mut stage = Stage::new([(2, config)]);
    // A second address of ours, so that the corpus's next hops are not ours.
    stage.handle(Input::SetOwn(&std::collections::BTreeSet::new()));
    let id = stage.connect(2).unwrap();
    let asn = u16::try_from(theirs).unwrap();
    if case.stage != "first" {
        let capabilities = match case.session {
            "old" => vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 70, 0],
            _ => modern(theirs),
        };
        stage.say(id, &open(asn, 2, &capabilities));
    }
    if case.stage == "established" {
        stage.say(id, &keepalive());
        // Both prefixes are there before: so a withdrawal is seen.
        let path = if case.session == "old" { attribute(0x40, 2, &[2, 1, 0, 7]) } else { path(&[7]) };
        stage.say(id, &update(&[], &[origin(), path.clone(), next_hop(2)].concat(), &[16, 10, 1]));
        let hop = [&[0, 2, 1, 16, 0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[2, 0, 32, 0x20, 1, 0x0d, 0xb9]].concat();
        stage.say(id, &update(&[], &[attribute(0x80, 14, &hop), origin(), path].concat(), &[]));
        assert_eq!(stage.routes().len(), 2, "{}", case.name);
    }
    stage.events.clear();
    stage.messages(id);
    stage.say(id, &case.octets);
    if let Some((code, subcode, _)) = stage.notification(id) {
        assert!(stage.closed.contains(&id), "{}: a NOTIFICATION closes", case.name);
        return format!("error {code} {subcode}");
    }
    assert!(!stage.closed.contains(&id), "{}: closed without a word", case.name);
    let withdrawn = stage.events.iter().any(|event| matches!(event, Event::TreatAsWithdraw { .. }));
    let discarded = stage.events.iter().find_map(|event| match event {
        Event::AttributeDiscard { kind, .. } => Some(*kind),
        _ => None,
    });
    if case.stage == "established" {
        assert_eq!(stage.state(2), NeighborState::Established, "{}", case.name);
        assert_eq!(withdrawn, stage.routes().len() < 2, "{}: an event for a withdrawal", case.name);
    }
    match discarded {
        _ if withdrawn => "treat-as-withdraw".into(),
        Some(kind) => format!("attribute-discard {kind}"),
        None => "accept".into(),
    }
}

#[test]
fn every_message_of_the_corpus_is_answered_as_its_rfc_asks() {
    let cases = cases();
    assert!(cases.len() > 300, "{} cases", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .map(|case| (case, played(case)))
        .filter(|(case, got)| got != case.expected)
        .map(|(case, got)| format!("{} ({}): {got}, not {}", case.name, case.session, case.expected))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn no_octet_of_the_corpus_changed_to_another_value_makes_it_panic() {
    for case in cases() {
        for at in (0..case.octets.len().min(80)).step_by(2) {
            for value in [0, 0x80, 0xff] {
                let mut octets = case.octets.clone();
                octets[at] = value;
                let mut stage = Stage::new([(2, NeighborConfig::new(65000, 65001, [Family::Ipv4, Family::Ipv6]))]);
                let id = stage.connect(2).unwrap();
                if case.stage == "established" {
                    stage.say(id, &open(65001, 2, &modern(65001)));
                    stage.say(id, &keepalive());
                }
                stage.say(id, &octets);
            }
        }
    }
}
