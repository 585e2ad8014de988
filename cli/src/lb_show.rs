//! `martlet show services|endpoints|flows|queues` and `martlet trace`: questions to a running load balancer.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use martlet_lb::control::{Answer, CONTROL_SOCKET, Request, ask};
use martlet_lb::hash::Flow;
use martlet_lb::show::State;

use crate::table::Table;

/// Where the load balancer is.
#[derive(Debug, clap::Args)]
pub struct LoadBalancer {
    /// The load balancer's control socket.
    #[arg(
        long, global = true, env = "MARTLET_LB_CONTROL_SOCKET", default_value = CONTROL_SOCKET, value_name = "PATH"
    )]
    lb_control_socket: PathBuf,
}

impl LoadBalancer {
    async fn ask(&self, request: &Request) -> anyhow::Result<Answer> {
        let path = self.lb_control_socket.display();
        let answer = ask(&self.lb_control_socket, request).await.with_context(|| {
            format!(
                "{path}: no load balancer answers there \
                 (is it running, in this container? --lb-control-socket says where)"
            )
        })?;
        match answer {
            Answer::Error(text) => bail!("{text}"),
            answer => Ok(answer),
        }
    }

    /// Its whole state.
    pub async fn state(&self) -> anyhow::Result<State> {
        match self.ask(&Request::Status).await? {
            Answer::Status(state) => Ok(*state),
            _ => bail!("the load balancer answered something else"),
        }
    }
}

/// What of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Services.
    Services,
    /// Endpoints.
    Endpoints,
    /// `L34Route`s.
    Flows,
    /// Queues, and what was dropped.
    Queues,
}

/// A part as JSON.
pub fn json(part: Part, state: &State) -> serde_json::Result<serde_json::Value> {
    match part {
        Part::Services => serde_json::to_value(&state.services),
        Part::Endpoints => serde_json::to_value(&state.endpoints),
        Part::Flows => serde_json::to_value(&state.flows),
        Part::Queues => Ok(serde_json::json!({
            "engine": state.engine,
            "alive": state.alive,
            "queues": serde_json::to_value(&state.queues)?,
            "drops": serde_json::to_value(&state.drops)?,
        })),
    }
}

/// A part in columns.
pub fn table(part: Part, state: &State) -> String {
    let notes: String = state.notes.iter().flat_map(|note| ["note: ", note.as_str(), "\n"]).collect();
    let columns = match part {
        Part::Services => services(state),
        Part::Endpoints => endpoints(state),
        Part::Flows => flows(state),
        Part::Queues => return queues(state),
    };
    format!("{columns}{notes}")
}

fn services(state: &State) -> String {
    let mut table =
        Table::new(&["SERVICE", "FLOWS", "READY IPV4", "READY IPV6", "ENDPOINTS", "MOST", "SLOTS", "MARKS"]);
    for (name, service) in &state.services {
        let marks = match service.slots {
            0 => "-".into(),
            _ => format!("{}-{}", service.first_mark, service.first_mark + service.max_endpoints.saturating_sub(1)),
        };
        table.row([
            name.clone(),
            service.flows.to_string(),
            service.ready_ipv4.to_string(),
            service.ready_ipv6.to_string(),
            service.endpoints.to_string(),
            service.max_endpoints.to_string(),
            service.slots.to_string(),
            marks,
        ]);
    }
    table.to_string()
}

fn endpoints(state: &State) -> String {
    let mut table = Table::new(&[
        "SERVICE",
        "ID",
        "POD",
        "IPV4",
        "IPV6",
        "STATE",
        "MARK",
        "INTERFACE",
        "SLOTS",
        "PACKETS",
        "OCTETS",
    ]);
    for endpoint in &state.endpoints {
        table.row([
            endpoint.service.clone(),
            endpoint.identifier.to_string(),
            endpoint.pod.clone(),
            endpoint.ipv4.map_or_else(|| "-".into(), |address| address.to_string()),
            endpoint.ipv6.map_or_else(|| "-".into(), |address| address.to_string()),
            endpoint.state.clone(),
            endpoint.mark.to_string(),
            endpoint.interface.clone(),
            format!("{}/{}", endpoint.slots_ipv4, endpoint.slots_ipv6),
            endpoint.count.packets.to_string(),
            endpoint.count.octets.to_string(),
        ]);
    }
    table.to_string()
}

fn flows(state: &State) -> String {
    let mut table = Table::new(&["FLOW", "PRIORITY", "SERVICE", "PACKETS", "OCTETS", "VIPS"]);
    for flow in &state.flows {
        let vips: Vec<String> = flow.vips.iter().map(|vip| vip.addr().to_string()).collect();
        table.row([
            flow.name.clone(),
            flow.priority.to_string(),
            flow.service.clone(),
            flow.count.packets.to_string(),
            flow.count.octets.to_string(),
            vips.join(", "),
        ]);
    }
    table.to_string()
}

fn queues(state: &State) -> String {
    let alive = if state.alive { "all answer" } else { "NOT ALL ANSWER" };
    let mut table = Table::new(&["QUEUE", "PACKETS", "PER CALL", "WAITING", "DROPPED FULL", "DROPPED UNSENT"]);
    let known = |count: Option<u64>| count.map_or_else(|| "?".into(), |count| count.to_string());
    for (number, queue) in &state.queues {
        table.row([
            number.to_string(),
            queue.packets.to_string(),
            queue.packets.checked_div(queue.batches).unwrap_or_default().to_string(),
            known(queue.waiting),
            known(queue.dropped_full),
            known(queue.dropped_unsent),
        ]);
    }
    let mut drops = Table::new(&["DROPPED BECAUSE", "PACKETS"]);
    for (reason, count) in &state.drops {
        drops.row([reason.clone(), count.to_string()]);
    }
    format!("engine: {}\nthreads: {alive}\n{table}\n{drops}", state.engine)
}

/// The flags of `trace`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  martlet trace --src 192.168.1.1:40000 --dst 20.0.0.1:4000
  martlet trace --src [fd01::1]:40000 --dst [2000::1]:4000 --proto udp
  martlet trace --src 192.168.1.1 --dst 20.0.0.1 --proto icmp      ports are 0

Byte matches are taken as met. Exit code 1 if the packet would be dropped.")]
pub struct Trace {
    /// The client: address and port.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = end)]
    src: SocketAddr,
    /// The VIP: address and port.
    #[arg(long, value_name = "VIP:PORT", value_parser = end)]
    dst: SocketAddr,
    /// tcp, udp, sctp, icmp (an echo, its identifier as source port), or a protocol's number.
    #[arg(long, default_value = "tcp", value_name = "PROTOCOL")]
    proto: String,
    #[command(flatten)]
    at: LoadBalancer,
}

/// `address:port`, or an address alone.
fn end(text: &str) -> Result<SocketAddr, String> {
    let alone = || text.trim_matches(['[', ']']).parse::<IpAddr>().map(|address| SocketAddr::new(address, 0));
    text.parse().or_else(|_| alone()).map_err(|_| "accepted: 20.0.0.1:4000, [2000::1]:4000, 20.0.0.1".into())
}

/// The number of a protocol; ICMP as the family has it.
fn protocol(text: &str, destination: IpAddr) -> anyhow::Result<u8> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" if destination.is_ipv4() => 1,
        "icmp" | "icmpv6" => 58,
        number => {
            number.parse().with_context(|| format!("--proto {text}: accepted: tcp, udp, sctp, icmp, a number"))?
        }
    })
}

impl Trace {
    fn flow(&self) -> anyhow::Result<Flow> {
        if self.src.is_ipv4() != self.dst.is_ipv4() {
            bail!("--src {} and --dst {} are of different families", self.src.ip(), self.dst.ip());
        }
        Ok(Flow {
            source: self.src.ip(),
            destination: self.dst.ip(),
            protocol: protocol(&self.proto, self.dst.ip())?,
            source_port: self.src.port(),
            destination_port: self.dst.port(),
        })
    }

    /// Prints the way of the flow.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self.at.ask(&Request::Trace(self.flow()?)).await? {
            Answer::Trace(trace) => {
                print!("{trace}");
                Ok(ExitCode::SUCCESS)
            }
            Answer::Dropped(reason) => {
                println!("dropped: {reason}");
                Ok(ExitCode::FAILURE)
            }
            _ => bail!("the load balancer answered something else"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use martlet_lb::show::{EndpointState, QueueState};

    use super::*;

    #[test]
    fn an_end_of_a_flow_is_an_address_with_or_without_a_port() {
        assert_eq!(end("20.0.0.1:4000").unwrap().port(), 4000);
        assert_eq!(end("[2000::1]:4000").unwrap().port(), 4000);
        assert_eq!(end("2000::1").unwrap(), "[2000::1]:0".parse().unwrap());
        assert!(end("vip:4000").unwrap_err().starts_with("accepted"));
    }

    #[test]
    fn a_protocol_is_a_name_or_a_number() {
        let (ipv4, ipv6) = ("20.0.0.1".parse().unwrap(), "2000::1".parse().unwrap());
        let of = |text, address| protocol(text, address).unwrap();
        assert_eq!((of("TCP", ipv4), of("icmp", ipv4), of("icmp", ipv6), of("47", ipv4)), (6, 1, 58, 47));
        assert!(protocol("quic", ipv4).is_err());
    }

    #[test]
    fn endpoints_and_queues_are_columns() {
        let state = State {
            engine: "queue".into(),
            endpoints: vec![EndpointState { service: "a".into(), pod: "pod-7".into(), ..EndpointState::default() }],
            queues: BTreeMap::from([(3, QueueState { packets: 12, batches: 4, ..QueueState::default() })]),
            drops: BTreeMap::from([("no_route".into(), 2)]),
            notes: vec!["Service b has no marks".into()],
            ..State::default()
        };
        let text = table(Part::Endpoints, &state);
        assert!(text.lines().nth(1).unwrap().starts_with("a         0    pod-7"), "{text}");
        assert!(text.ends_with("note: Service b has no marks\n"), "{text}");
        let text = table(Part::Queues, &state);
        assert!(text.contains("threads: NOT ALL ANSWER\n") && text.contains("no_route          2\n"), "{text}");
        assert!(text.contains("3       12        3          ?"), "{text}");
    }
}
