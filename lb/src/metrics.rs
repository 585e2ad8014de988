//! Prometheus metrics: what is counted and shown, as one table, served on a port of their own.
//!
//! Everything is read when it is asked for, at most a second old.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::counters::{BOUNDS_US, Count, Latency};
use crate::queue::depth;
use crate::show::{EndpointState, QueueState, State, state};
use crate::status::Status;

/// The port, unless told otherwise.
pub const METRICS_PORT: u16 = 2226;

/// Label text (with braces, or empty) and value.
type Samples = Vec<(String, u64)>;

/// One metric; a counter's name ends in `_total`.
struct Metric {
    name: &'static str,
    help: &'static str,
    read: fn(&State) -> Samples,
}

impl Metric {
    fn kind(&self) -> &'static str {
        if self.name.ends_with("_total") { "counter" } else { "gauge" }
    }
}

const METRICS: [Metric; 18] = [
    Metric {
        name: "martlet_lb_alive",
        help: "Whether all queue threads answer",
        read: |state| vec![(String::new(), u64::from(state.alive))],
    },
    Metric {
        name: "martlet_lb_vip_ready",
        help: "Whether packets to a VIP reach an endpoint",
        read: |state| {
            state.vips.iter().map(|(vip, told)| (format!("{{vip=\"{vip}\"}}"), u64::from(told.ready))).collect()
        },
    },
    Metric {
        name: "martlet_lb_route_packets_total",
        help: "Packets forwarded by an L34Route",
        read: |state| routes(state, |count| count.packets),
    },
    Metric {
        name: "martlet_lb_route_octets_total",
        help: "Octets of IP packets forwarded by an L34Route",
        read: |state| routes(state, |count| count.octets),
    },
    Metric {
        name: "martlet_lb_endpoint_packets_total",
        help: "Packets forwarded to an endpoint",
        read: |state| endpoints(state, |endpoint| endpoint.count.packets),
    },
    Metric {
        name: "martlet_lb_endpoint_octets_total",
        help: "Octets of IP packets forwarded to an endpoint",
        read: |state| endpoints(state, |endpoint| endpoint.count.octets),
    },
    Metric {
        name: "martlet_lb_endpoint_ready",
        help: "Whether an endpoint gets new flows",
        read: |state| endpoints(state, |endpoint| u64::from(endpoint.state == "ready")),
    },
    Metric {
        name: "martlet_lb_endpoint_slots",
        help: "Slots of an endpoint in the Maglev tables of both families",
        read: |state| endpoints(state, |endpoint| u64::from(endpoint.slots_ipv4) + u64::from(endpoint.slots_ipv6)),
    },
    Metric {
        name: "martlet_lb_service_ready_endpoints",
        help: "Endpoints of a Service that get new flows, by family",
        read: |state| {
            let of = |service: &str, family: &str, ready: usize| {
                let labels = format!("{{service=\"{service}\",family=\"{family}\"}}");
                (labels, u64::try_from(ready).unwrap_or(u64::MAX))
            };
            let both = state.services.iter();
            both.flat_map(|(name, service)| {
                [of(name, "ipv4", service.ready_ipv4), of(name, "ipv6", service.ready_ipv6)]
            })
            .collect()
        },
    },
    Metric {
        name: "martlet_lb_service_slots",
        help: "Slots of each Maglev table of a Service",
        read: |state| {
            let services = state.services.iter();
            services.map(|(name, service)| (format!("{{service=\"{name}\"}}"), service.slots.into())).collect()
        },
    },
    Metric {
        name: "martlet_lb_direct_addresses",
        help: "Addresses of endpoints that are reached past their routing tables",
        read: |state| vec![(String::new(), state.direct_addresses.into())],
    },
    Metric {
        name: "martlet_lb_dropped_packets_total",
        help: "Packets dropped, by reason",
        read: |state| state.drops.iter().map(|(reason, count)| (format!("{{reason=\"{reason}\"}}"), *count)).collect(),
    },
    Metric {
        name: "martlet_lb_queue_packets_total",
        help: "Packets received from an nfqueue",
        read: |state| queues(state, |queue| Some(queue.packets)),
    },
    Metric {
        name: "martlet_lb_queue_batches_total",
        help: "System calls in which packets were received from an nfqueue",
        read: |state| queues(state, |queue| Some(queue.batches)),
    },
    Metric {
        name: "martlet_lb_queue_waiting",
        help: "Packets that wait in an nfqueue; only where its process may read it",
        read: |state| queues(state, |queue| queue.waiting),
    },
    Metric {
        name: "martlet_lb_queue_dropped_full_total",
        help: "Packets dropped by the kernel because too many waited; only where its process may read it",
        read: |state| queues(state, |queue| queue.dropped_full),
    },
    Metric {
        name: "martlet_lb_queue_dropped_unsent_total",
        help: "Packets dropped by the kernel because the socket was full; only where its process may read it",
        read: |state| queues(state, |queue| queue.dropped_unsent),
    },
    Metric {
        name: "martlet_lb_notes",
        help: "Things that an operator should know: martlet show services tells them",
        read: |state| vec![(String::new(), u64::try_from(state.notes.len()).unwrap_or(u64::MAX))],
    },
];

fn routes(state: &State, value: fn(&Count) -> u64) -> Samples {
    state.flows.iter().map(|flow| (format!("{{route=\"{}\"}}", flow.name), value(&flow.count))).collect()
}

fn endpoints(state: &State, value: fn(&EndpointState) -> u64) -> Samples {
    let labels = |endpoint: &EndpointState| {
        let EndpointState { service, identifier, pod, .. } = endpoint;
        format!("{{service=\"{service}\",endpoint=\"{identifier}\",pod=\"{pod}\"}}")
    };
    state.endpoints.iter().map(|endpoint| (labels(endpoint), value(endpoint))).collect()
}

fn queues(state: &State, value: fn(&QueueState) -> Option<u64>) -> Samples {
    let sample = |(number, queue): (&u16, &QueueState)| Some((format!("{{queue=\"{number}\"}}"), value(queue)?));
    state.queues.iter().filter_map(sample).collect()
}

/// The exposition format of Prometheus.
pub fn text(state: &State) -> String {
    let mut text = String::new();
    for metric in &METRICS {
        let Metric { name, help, read } = metric;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {}", metric.kind());
        for (labels, value) in read(state) {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    let _ = writeln!(text, "# HELP {HISTOGRAM} {HISTOGRAM_HELP}\n# TYPE {HISTOGRAM} histogram");
    for (queue, state) in &state.queues {
        histogram(&mut text, *queue, &state.latency);
    }
    text
}

/// The one histogram.
const HISTOGRAM: &str = "martlet_lb_queue_seconds";
const HISTOGRAM_HELP: &str = "From the call that received a packet to the call that gave its verdict";

/// Buckets are cumulative; the sum is written as a decimal fraction of seconds.
fn histogram(text: &mut String, queue: u16, latency: &Latency) {
    let mut so_far = 0;
    for (count, bound) in latency.buckets.iter().zip(BOUNDS_US) {
        so_far += count;
        let (whole, part) = (bound / 1_000_000, bound % 1_000_000);
        let _ = writeln!(text, "{HISTOGRAM}_bucket{{queue=\"{queue}\",le=\"{whole}.{part:06}\"}} {so_far}");
    }
    let (whole, part) = (latency.sum_ns / 1_000_000_000, latency.sum_ns % 1_000_000_000);
    let _ = writeln!(text, "{HISTOGRAM}_bucket{{queue=\"{queue}\",le=\"+Inf\"}} {}", latency.packets);
    let _ = writeln!(text, "{HISTOGRAM}_sum{{queue=\"{queue}\"}} {whole}.{part:09}");
    let _ = writeln!(text, "{HISTOGRAM}_count{{queue=\"{queue}\"}} {}", latency.packets);
}

/// The table for the docs.
pub fn markdown() -> String {
    let mut table = String::from("| metric | type | meaning |\n|---|---|---|\n");
    for metric in &METRICS {
        let _ = writeln!(table, "| `{}` | {} | {} |", metric.name, metric.kind(), metric.help);
    }
    let _ = writeln!(table, "| `{HISTOGRAM}` | histogram | {HISTOGRAM_HELP} |");
    table
}

/// Serves `GET /metrics` on `address`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, status: watch::Receiver<Arc<Status>>) -> io::Result<()> {
    martlet_api::serve::metrics::serve(address, move || {
        let status = Arc::clone(&status.borrow());
        std::future::ready(Some(text(&state(&status, &depth::read()))))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Reason;
    use crate::status::tests::example;

    #[test]
    fn a_scrape_shows_routes_endpoints_drops_and_queues() {
        let mut status = example();
        let count = Count { packets: 3, octets: 300 };
        status.counters.routes.insert("vip".into(), count);
        status.counters.endpoints.insert(("a".into(), 7), count);
        status.counters.drops.insert(Reason::NoEndpoint, 2);
        status.counters.queues.insert(1, (4, 9));
        let mut latency = Latency { packets: 4, sum_ns: 1_500_000_020, ..Latency::default() };
        (latency.buckets[0], latency.buckets[2]) = (1, 2);
        status.counters.latencies.insert(1, latency);
        let text = text(&state(&status, &depth::read()));
        for line in [
            "martlet_lb_alive 1",
            "martlet_lb_route_packets_total{route=\"vip\"} 3",
            "martlet_lb_route_octets_total{route=\"vip\"} 300",
            "martlet_lb_endpoint_packets_total{service=\"a\",endpoint=\"7\",pod=\"pod-7\"} 3",
            "martlet_lb_endpoint_ready{service=\"a\",endpoint=\"7\",pod=\"pod-7\"} 1",
            "martlet_lb_service_ready_endpoints{service=\"a\",family=\"ipv6\"} 0",
            "martlet_lb_dropped_packets_total{reason=\"no_endpoint\"} 2",
            "martlet_lb_queue_packets_total{queue=\"1\"} 9",
            "# TYPE martlet_lb_queue_waiting gauge",
            "martlet_lb_queue_seconds_bucket{queue=\"1\",le=\"0.000010\"} 1",
            "martlet_lb_queue_seconds_bucket{queue=\"1\",le=\"0.000020\"} 3",
            "martlet_lb_queue_seconds_bucket{queue=\"1\",le=\"+Inf\"} 4",
            "martlet_lb_queue_seconds_sum{queue=\"1\"} 1.500000020",
            "martlet_lb_queue_seconds_count{queue=\"1\"} 4",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn every_metric_is_in_the_table_once() {
        let names: std::collections::BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!((names.len(), markdown().lines().count()), (METRICS.len(), 2 + METRICS.len() + 1));
    }
}
