//! An event of the speaker as one line of JSON.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use martlet_bgp::{Event, Family, NeighborId, Speaker};
use serde_json::{Value, json};

const fn family(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    }
}

/// Seconds since 1970, with microseconds.
fn time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The line of `event`; `None` for what the format has no word for (changes of state on the way to a session).
pub fn line(event: &Event, speaker: &Speaker) -> Option<String> {
    let mut line = match event {
        Event::State { .. } => return None,
        Event::Established { neighbor, hold_time_s, families } => {
            let families: Vec<_> = families.iter().map(|one| family(*one)).collect();
            json!({"neighbor": neighbor.0, "event": "established", "holdTime": hold_time_s, "families": families})
        }
        Event::Closed { neighbor, code, sent, text, .. } => {
            let (code, subcode) = code.map_or((None, None), |(code, subcode)| (Some(code), Some(subcode)));
            json!({
                "neighbor": neighbor.0, "event": "closed", "code": code, "subcode": subcode, "sent": sent, "text": text,
            })
        }
        Event::Learned { neighbor, prefix } => route(neighbor, prefix, speaker),
        Event::Lost { neighbor, prefix } => {
            json!({"neighbor": neighbor.0, "event": "withdrawn", "family": family(Family::of(prefix)), "prefix": prefix})
        }
        Event::EndOfRib { neighbor, family: one } => {
            json!({"neighbor": neighbor.0, "event": "endOfRib", "family": family(*one)})
        }
        Event::TreatAsWithdraw { neighbor, kind, raw, prefixes, text } => {
            let first = prefixes.first();
            json!({
                "neighbor": neighbor.0, "event": "treatAsWithdraw", "attribute": kind, "raw": hex(raw), "text": text,
                "family": first.map(|first| family(Family::of(first))), "prefix": first, "prefixes": prefixes,
            })
        }
        Event::AttributeDiscard { neighbor, kind, raw, text } => json!({
            "neighbor": neighbor.0, "event": "attributeDiscard", "attribute": kind, "raw": hex(raw), "text": text,
        }),
        Event::PrefixWarning { neighbor, family: one, count } => {
            json!({"neighbor": neighbor.0, "event": "prefixWarning", "family": family(*one), "count": count})
        }
    };
    if let Value::Object(fields) = &mut line {
        fields.insert("time".into(), json!(time()));
        // Every line has every field of the format, so that a reader need not ask.
        for (field, nothing) in
            [("family", Value::Null), ("prefix", Value::Null), ("attributes", json!({})), ("raw", json!(""))]
        {
            fields.entry(field).or_insert(nothing);
        }
    }
    Some(line.to_string())
}

fn route(neighbor: &NeighborId, prefix: &IpNet, speaker: &Speaker) -> Value {
    let mut value = json!({
        "neighbor": neighbor.0, "event": "route", "family": family(Family::of(prefix)), "prefix": prefix,
        "attributes": {}, "raw": "",
    });
    let known = speaker.route(neighbor, prefix);
    if let (Some(route), Value::Object(fields)) = (known, &mut value) {
        fields.insert("attributes".into(), attributes(&route));
        fields.insert("raw".into(), Value::String(hex(&route.octets)));
    }
    value
}

fn attributes(route: &martlet_bgp::RouteDetails) -> Value {
    let mut all = json!({
        "origin": route.origin,
        "asPath": route.as_path,
        "nextHop": route.next_hop,
    });
    if let Value::Object(fields) = &mut all {
        if let Some(link_local) = route.link_local {
            fields.insert("linkLocal".into(), json!(link_local));
        }
        if let Some(med) = route.med {
            fields.insert("med".into(), json!(med));
        }
        if let Some(local_preference) = route.local_preference {
            fields.insert("localPreference".into(), json!(local_preference));
        }
        if !route.communities.is_empty() {
            let words = route.communities.iter().map(|one| format!("{}:{}", one >> 16, one & 0xffff));
            fields.insert("communities".into(), words.collect());
        }
        if !route.large_communities.is_empty() {
            let words = route.large_communities.iter().map(|(a, b, c)| format!("{a}:{b}:{c}"));
            fields.insert("largeCommunities".into(), words.collect());
        }
    }
    all
}

fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::with_capacity(octets.len() * 2), |mut hex, octet| {
        // Writing to a String never fails.
        let _ = write!(hex, "{octet:02x}");
        hex
    })
}
