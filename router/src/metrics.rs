//! Prometheus metrics: what is counted and shown, as one table, served on a port of their own.
//!
//! Everything is read when it is asked for; nothing is kept up to date in between.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::net::SocketAddr;

use martlet_bgp::Counters;

use crate::core::Status;
use crate::driver::Asker;

/// A counter of a neighbour.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Its name without prefix and `_total`.
    pub name: &'static str,
    /// For a human.
    pub help: &'static str,
    /// Its value.
    pub read: fn(&Counters) -> u64,
}

impl Counted {
    /// All counters of a neighbour.
    pub const ALL: [Self; 16] = [
        Self { name: "messages_received", help: "BGP messages received", read: |c| c.messages_in },
        Self { name: "messages_sent", help: "BGP messages sent", read: |c| c.messages_out },
        Self { name: "updates_received", help: "UPDATEs received", read: |c| c.updates_in },
        Self { name: "updates_sent", help: "UPDATEs sent", read: |c| c.updates_out },
        Self { name: "notifications_received", help: "NOTIFICATIONs received", read: |c| c.notifications_in },
        Self { name: "notifications_sent", help: "NOTIFICATIONs sent", read: |c| c.notifications_out },
        Self { name: "prefixes_received", help: "Prefixes announced by the neighbour", read: |c| c.prefixes_in },
        Self { name: "withdrawals_received", help: "Prefixes withdrawn by the neighbour", read: |c| c.withdrawals_in },
        Self { name: "prefixes_sent", help: "Prefixes announced to the neighbour", read: |c| c.prefixes_out },
        Self { name: "withdrawals_sent", help: "Prefixes withdrawn from the neighbour", read: |c| c.withdrawals_out },
        Self { name: "treated_as_withdraw", help: "UPDATEs taken as withdrawals", read: |c| c.treated_as_withdraw },
        Self { name: "attributes_discarded", help: "Attributes discarded", read: |c| c.attributes_discarded },
        Self { name: "established", help: "Times that the session became Established", read: |c| c.established },
        Self { name: "connects", help: "Connections tried", read: |c| c.connects },
        Self { name: "octets_received", help: "Octets received", read: |c| c.octets_in },
        Self { name: "octets_sent", help: "Octets given for sending", read: |c| c.octets_out },
    ];
}

/// A value shown of the whole status: label text (with braces, or empty) and value.
type Samples = Vec<(String, u64)>;

/// A gauge.
struct Gauge {
    name: &'static str,
    labels: &'static str,
    help: &'static str,
    read: fn(&Status) -> Samples,
}

fn peers(status: &Status, value: fn(&crate::core::PeerView) -> u64) -> Samples {
    status.peers.iter().map(|(name, peer)| (format!("{{peer=\"{name}\"}}"), value(peer))).collect()
}

fn families(families: martlet_api::readiness::Families) -> Samples {
    let label = |family: &str| format!("{{family=\"{family}\"}}");
    vec![(label("ipv4"), u64::from(families.ipv4)), (label("ipv6"), u64::from(families.ipv6))]
}

const GAUGES: [Gauge; 9] = [
    Gauge {
        name: "martlet_router_peer_up",
        labels: "{peer}",
        help: "Whether a GatewayRouter counts for external connectivity",
        read: |status| peers(status, |peer| u64::from(peer.up)),
    },
    Gauge {
        name: "martlet_bgp_session_established",
        labels: "{peer}",
        help: "Whether the BGP session is Established",
        read: |status| peers(status, |peer| u64::from(peer.state == "Established")),
    },
    Gauge {
        name: "martlet_bgp_prefixes_held",
        labels: "{peer}",
        help: "Prefixes held from a neighbour",
        read: |status| peers(status, |peer| u64::try_from(peer.received).unwrap_or(u64::MAX)),
    },
    Gauge {
        name: "martlet_bgp_prefixes_announced",
        labels: "{peer}",
        help: "Prefixes that a neighbour was told",
        read: |status| peers(status, |peer| u64::try_from(peer.announced).unwrap_or(u64::MAX)),
    },
    Gauge {
        name: "martlet_bfd_session_up",
        labels: "{session}",
        help: "Whether a BFD session is Up",
        read: |status| {
            let up = |(name, bfd): (&String, &crate::core::BfdView)| {
                (format!("{{session=\"{name}\"}}"), u64::from(bfd.state == "Up"))
            };
            status.bfd.iter().map(up).collect()
        },
    },
    Gauge {
        name: "martlet_router_vip_announced",
        labels: "{vip,reason}",
        help: "Whether a VIP is announced, and why not",
        read: |status| {
            let vip = |(vip, view): (&ipnet::IpNet, &crate::core::VipView)| {
                (format!("{{vip=\"{vip}\",reason=\"{}\"}}", view.reason), u64::from(view.announced))
            };
            status.vips.iter().map(vip).collect()
        },
    },
    Gauge {
        name: "martlet_router_connectivity",
        labels: "{family}",
        help: "Whether a GatewayRouter of the family is Up",
        read: |status| families(status.connectivity),
    },
    Gauge {
        name: "martlet_router_egress_route",
        labels: "{family}",
        help: "Whether a default route of the family is known",
        read: |status| families(status.egress),
    },
    Gauge {
        name: "martlet_router_note",
        labels: "{note}",
        help: "What an operator should know",
        read: |status| status.notes.iter().map(|note| (format!("{{note=\"{note}\"}}"), 1)).collect(),
    },
];

/// What is counted of BFD as a whole, and for a human.
pub const BFD: [(&str, &str); 8] = [
    ("packets_received", "BFD control packets received"),
    ("packets_sent", "BFD control packets sent"),
    ("packets_unsent", "BFD packets that could not be sent: no interface, no address, no route"),
    ("packets_discarded", "BFD packets discarded, for any reason"),
    ("receive_errors", "Times that a BFD socket could not be read"),
    ("stalls", "Times that the BFD thread woke more than 2 ms late"),
    ("worst_lateness_us", "How late a BFD packet left at worst, microseconds"),
    ("worst_stall_us", "How late the BFD thread woke at worst, microseconds"),
];

/// The name of a metric of BFD, and its type: what is worst is no count.
fn bfd_metric(counted: &str) -> (String, &'static str) {
    if counted.starts_with("worst_") {
        (format!("martlet_bfd_{counted}"), "gauge")
    } else {
        (format!("martlet_bfd_{counted}_total"), "counter")
    }
}

/// The exposition format of Prometheus.
pub fn text<'a>(
    status: &Status,
    counters: impl IntoIterator<Item = (String, &'a Counters)>,
    bfd: &BTreeMap<&'static str, u64>,
) -> String {
    let mut text = String::new();
    for Gauge { name, help, read, .. } in &GAUGES {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in read(status) {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    let counters: Vec<_> = counters.into_iter().collect();
    for Counted { name, help, read } in &Counted::ALL {
        let _ = writeln!(text, "# HELP martlet_bgp_{name}_total {help}\n# TYPE martlet_bgp_{name}_total counter");
        for (peer, counted) in &counters {
            let _ = writeln!(text, "martlet_bgp_{name}_total{{peer=\"{peer}\"}} {}", read(counted));
        }
    }
    for (counted, help) in BFD {
        if let Some(value) = bfd.get(counted) {
            let (name, kind) = bfd_metric(counted);
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
    }
    text
}

/// The table for the docs.
pub fn markdown() -> String {
    let mut table = String::from("| metric | type | meaning |\n|---|---|---|\n");
    for Gauge { name, labels, help, .. } in &GAUGES {
        let _ = writeln!(table, "| `{name}{labels}` | gauge | {help} |");
    }
    for Counted { name, help, .. } in &Counted::ALL {
        let _ = writeln!(table, "| `martlet_bgp_{name}_total{{peer}}` | counter | {help} |");
    }
    for (counted, help) in BFD {
        let (name, kind) = bfd_metric(counted);
        let _ = writeln!(table, "| `{name}` | {kind} | {help} |");
    }
    table
}

/// Serves `GET /metrics` on `address`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, asker: Asker) -> io::Result<()> {
    martlet_api::serve::metrics::serve(address, move || {
        let asker = asker.clone();
        async move {
            let seen = asker.ask(|look| (look.router.status(look.now), look.router.counters(), look.bfd.clone())).await;
            let (status, counters, bfd) = seen?;
            Some(text(&status, counters.iter().map(|(id, counters)| (id.to_string(), counters)), &bfd))
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{PeerView, VipView};

    #[test]
    fn a_scrape_shows_peers_vips_and_counters() {
        let mut status = Status::default();
        status.peers.insert("gw".into(), PeerView { state: "Established".into(), up: true, ..PeerView::default() });
        let vip = VipView { announced: false, reason: "NotReady".into(), message: String::new() };
        status.vips.insert("20.0.0.1/32".parse().unwrap(), vip);
        let counters = Counters { updates_in: 7, ..Counters::default() };
        let text =
            text(&status, [("gw".to_owned(), &counters)], &BTreeMap::from([("stalls", 3), ("worst_stall_us", 9)]));
        for line in [
            "martlet_router_peer_up{peer=\"gw\"} 1",
            "martlet_bgp_session_established{peer=\"gw\"} 1",
            "martlet_router_vip_announced{vip=\"20.0.0.1/32\",reason=\"NotReady\"} 0",
            "martlet_router_connectivity{family=\"ipv4\"} 0",
            "martlet_bgp_updates_received_total{peer=\"gw\"} 7",
            "martlet_bfd_stalls_total 3",
            "martlet_bfd_worst_stall_us 9",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
        }
        assert_eq!(markdown().lines().count(), 2 + GAUGES.len() + Counted::ALL.len() + BFD.len());
    }
}
