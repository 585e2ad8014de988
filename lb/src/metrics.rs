//! Prometheus metrics: what is counted and shown, as one table, served on a port of their own.
//!
//! Everything is read when it is asked for, at most a second old. What the kernel engine forwards by itself is not counted.

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::warn;

use crate::counters::Count;
use crate::queue::depth;
use crate::show::{EndpointState, QueueState, State, state};
use crate::status::Status;

/// The port, unless told otherwise.
pub const METRICS_PORT: u16 = 2226;
/// How long a scrape may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest request, octets.
const MAX_REQUEST: usize = 16 * 1024;

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

const METRICS: [Metric; 17] = [
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
    text
}

/// The table for the docs.
pub fn markdown() -> String {
    let mut table = String::from("| metric | type | meaning |\n|---|---|---|\n");
    for metric in &METRICS {
        let _ = writeln!(table, "| `{}` | {} | {} |", metric.name, metric.kind(), metric.help);
    }
    table
}

/// Listens on `address`; where it is any address and IPv6 is left out, on any IPv4 address.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Serves `GET /metrics` on `address`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, status: watch::Receiver<Arc<Status>>) -> io::Result<()> {
    let listener = listen(address).await?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let status = status.clone();
                    tokio::spawn(async move { tokio::time::timeout(PATIENCE, scrape(stream, &status)).await });
                }
                Err(error) => {
                    warn!(%error, "the metrics port does not accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

async fn scrape(mut stream: TcpStream, status: &watch::Receiver<Arc<Status>>) -> io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        request.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
    let is_ours = request.starts_with(b"GET /metrics ") || request.starts_with(b"GET /metrics?");
    let (code, body) = if is_ours {
        let status = Arc::clone(&status.borrow());
        ("200 OK", text(&state(&status, &depth::read())))
    } else {
        ("404 Not Found", "try /metrics\n".into())
    };
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Reason;
    use crate::status::tests::example;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_scrape_shows_routes_endpoints_drops_and_queues() {
        let mut status = example();
        let count = Count { packets: 3, octets: 300 };
        status.counters.routes.insert("vip".into(), count);
        status.counters.endpoints.insert(("a".into(), 7), count);
        status.counters.drops.insert(Reason::NoEndpoint, 2);
        status.counters.queues.insert(1, (4, 9));
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (_status, seen) = watch::channel(Arc::new(status));
        serve(free, seen).await.unwrap();
        let text = get(free, "/metrics").await;
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
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
        }
        let answer = get(free, "/").await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.ends_with("try /metrics\n"), "{answer}");
    }

    #[test]
    fn every_metric_is_in_the_table_once() {
        let names: std::collections::BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!((names.len(), markdown().lines().count()), (METRICS.len(), 2 + METRICS.len()));
    }
}
