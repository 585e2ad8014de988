//! The page: a table a peer, the reasons below it, collisions and recovery.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::bed::Variant;
use super::case::{Cell, Feature, Outcome};
use super::stress::{Collisions, Recovery};
use crate::peer::Make;

/// What a case is called: `frr ipv4 eBGP MD5 port 10179`.
pub fn name(variant: Variant) -> String {
    format!("{} {}", variant.make.name(), way(variant))
}

fn way(variant: Variant) -> String {
    let family = if variant.ipv6 { "ipv6" } else { "ipv4" };
    let kind = if variant.internal { "iBGP" } else { "eBGP" };
    let md5 = if variant.md5 { " MD5" } else { "" };
    let octets = if variant.wide { 4 } else { 2 };
    let old = if variant.old { ", peer without RFC 6793" } else { "" };
    format!("{family} {kind}{md5}, port {}, {octets}-octet AS{old}", variant.port())
}

/// The page in Markdown.
pub fn page(outcomes: &[Outcome], collisions: &[Collisions], recoveries: &[Recovery]) -> String {
    let mut page = "# Interoperability\n\n\
        `martlet speaker` against other speakers of Debian, each in a namespace of its own. Written by `martlet-lab interop`.\n\n\
        A cell is asked at the other side wherever that side can tell: *routes to peer* is what the peer reports with AS path and\n\
        next hop; *attributes* are MED, a large community and a path with an AS prepended (of our own routes the file of the speaker\n\
        sets none: *attributes to peer* are those of a third speaker's route that is passed on, with a four-octet AS); *refresh* is\n\
        the peer asking for all again; *graceful restart*: the peer is killed and started again, its routes stay meanwhile; *text*\n\
        is the shutdown communication; *end*: a clean end within five seconds of SIGTERM; *tshark* decodes all that we sent\n\
        without a malformed mark.\n"
        .to_owned();
    for make in Make::ALL {
        let own: Vec<_> = outcomes.iter().filter(|outcome| outcome.variant.make == make).collect();
        if let Some(first) = own.first() {
            table(&mut page, &first.title, &own);
        }
    }
    // Writing to a String never fails.
    if !collisions.is_empty() {
        page.push_str(
            "\n## Collisions\n\nOur speaker is killed and started, the peer's session is reset, OPENs are held back until both have\n\
             connected; then they pass. Exactly one session must stay, the first one. *Established twice*: one side was\n\
             Established on the one connection when the other side, still in OpenConfirm, had to prefer the other one: RFC 4271\n\
             section 6.8 leaves that window, an OPEN that we hold for a moment closes it. In the end the peer is killed and started.\n\n\
             | peer | rounds | with both connections up | Established twice | not exactly one session |\n|---|---|---|---|---|\n",
        );
        for one in collisions {
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} |",
                one.make.name(),
                one.rounds,
                one.simultaneous,
                one.twice,
                one.faults.len()
            );
        }
        for fault in collisions.iter().flat_map(|one| &one.faults) {
            let _ = writeln!(page, "\n- {fault}");
        }
    }
    if !recoveries.is_empty() {
        page.push_str(
            "\n## Recovery\n\nBFD 300 ms three times on both sides. Milliseconds from the return of the path (of a killed peer: from its\n\
             first answer, which may come later than the session) until Established to stay. A kernel repeats an unanswered question\n\
             for a link address once a second: when a carrier has been back for 50 ms, what was asked for in vain is forgotten, and\n\
             only then the first packet is sent. BIRD's `error wait time 1,2` means here that after a second failure it takes no connection for\n\
             two seconds: it is that which the second row of BIRD shows. FRR closes connections for about four seconds after its\n\
             start; when BGP comes up it replaces its BFD session and says Down, diagnostic 3, with the old one: that costs one session.\n\n\
             | peer | what | ms | had come and gone before |\n|---|---|---|---|\n",
        );
        for one in recoveries {
            for (what, time, flaps) in &one.times {
                let _ = writeln!(page, "| {} | {what} | {time} | {flaps} |", one.make.name());
            }
        }
    }
    page
}

fn table(page: &mut String, title: &str, outcomes: &[&Outcome]) {
    let asked: Vec<_> = Feature::ALL
        .into_iter()
        .filter(|(feature, _)| outcomes.iter().any(|outcome| outcome.cells.contains_key(feature)))
        .collect();
    let heads: Vec<_> = asked.iter().map(|(_, head)| *head).collect();
    // Writing to a String never fails.
    let _ = write!(page, "\n## {title}\n\n| | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in outcomes {
        let _ = write!(page, "| {} |", way(outcome.variant));
        for (feature, _) in &asked {
            let (word, reason) = match outcome.cells.get(feature) {
                Some(Cell::Yes) => ("yes", None),
                Some(Cell::No(why)) => ("**no**", Some(why)),
                Some(Cell::Na(why)) => ("n/a", Some(why)),
                None => ("", None),
            };
            let _ = write!(page, " {word}");
            if let Some(reason) = reason {
                let next = reasons.len() + 1;
                let _ = write!(page, " ({})", reasons.entry(reason).or_insert(next));
            }
            page.push_str(" |");
        }
        page.push('\n');
    }
    let mut reasons: Vec<_> = reasons.into_iter().map(|(why, number)| (number, why)).collect();
    reasons.sort_unstable();
    for (number, why) in reasons {
        let _ = write!(page, "\n({number}) {}\n", why.replace('\n', " "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_stands_once_below_its_table() {
        let outcome = |ipv6| Outcome {
            variant: Variant { make: Make::Frr, ipv6, internal: false, md5: true, wide: true, old: false },
            title: "FRR 8".into(),
            cells: [(Feature::Session, Cell::Yes), (Feature::Graceful, Cell::Na("it cannot".into()))].into(),
        };
        let page = page(&[outcome(false), outcome(true)], &[], &[]);
        assert_eq!(page.matches("it cannot").count(), 1);
        assert!(page.contains("| ipv4 eBGP MD5, port 10179, 4-octet AS | yes | n/a (1) |"), "{page}");
        assert!(page.contains("| ipv6 eBGP MD5, port 10179, 4-octet AS | yes | n/a (1) |"), "{page}");
    }
}
