//! `martlet lb`: flags and variables of the load balancer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use martlet_api::view::ObjectName;
use martlet_lb::control::CONTROL_SOCKET;
use martlet_lb::engine::{FragmentMode, Policy};
use martlet_lb::offload::Engine;
use martlet_lb::queue::{Loop, Settings};
use martlet_lb::run::{self, Options};

const EXAMPLES: &str = "\
Examples:
  martlet lb --gateway sllb-a --namespace red             objects of the cluster
  martlet lb --config-dir /etc/martlet --gateway sllb-a
  martlet lb --config-dir /etc/martlet --gateway sllb-a --internal-interface net1 --queues 0:3
  martlet lb --config-dir /etc/martlet --gateway sllb-a --engine auto --reject --liveness
  martlet lb --clean                      remove what a load balancer left in the kernel";

/// The flags.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of YAML with the objects of the Gateway [default: the cluster that this process is in]
    #[arg(long, env = "MARTLET_CONFIG_DIR", value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Name of the Gateway.
    #[arg(long, env = "MARTLET_GATEWAY", value_name = "NAME", required_unless_present = "clean")]
    gateway: Option<String>,
    /// Namespace of the Gateway.
    #[arg(long, env = "NFE_NAMESPACE", default_value = "default", value_name = "NAME")]
    namespace: String,
    /// Interface towards the endpoints; otherwise whichever has an address of their network.
    #[arg(long, env = "MARTLET_INTERNAL_INTERFACE", value_name = "NAME")]
    internal_interface: Option<String>,
    /// Socket that the router connects to.
    #[arg(long, env = "NFE_LB_SOCKET", default_value = martlet_api::readiness::DEFAULT_SOCKET, value_name = "URL")]
    socket: String,
    /// Who chooses endpoints: queue (threads), kernel (nftables, as far as it can), auto (the kernel unless that is too much).
    #[arg(long, env = "MARTLET_ENGINE", default_value = "queue", value_name = "ENGINE")]
    engine: Engine,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    queue: QueueArgs,
    /// Take endpoints that do not answer on their link out of the tables, before Kubernetes says so.
    #[arg(long, env = "MARTLET_LIVENESS")]
    liveness: bool,
    /// Slots of each Maglev table, a prime; otherwise by the most endpoints of the Service (65537 at 100).
    #[arg(long, env = "MARTLET_TABLE_SIZE", value_name = "SLOTS")]
    table_size: Option<u32>,
    /// Where `martlet show` and `trace` ask; empty: nowhere.
    #[arg(long, env = "MARTLET_LB_CONTROL_SOCKET", default_value = CONTROL_SOCKET, value_name = "PATH")]
    control_socket: String,
    /// Where Prometheus asks; empty: nowhere.
    #[arg(long, env = "MARTLET_LB_METRICS", default_value = "[::]:2226", value_name = "ADDRESS:PORT")]
    metrics: String,
    /// Where probes of grpc.health.v1 ask; empty: nowhere.
    #[arg(long, env = "MARTLET_LB_HEALTH", default_value = "[::]:2227", value_name = "ADDRESS:PORT")]
    health: String,
    /// At the end: how long to forward on after the router was told, seconds.
    #[arg(long, env = "MARTLET_DRAIN", default_value_t = 10, value_name = "SECONDS")]
    drain: u64,
    /// Remove what a load balancer left in the kernel, and end.
    #[arg(long)]
    clean: bool,
}

/// What becomes of packets.
#[derive(Debug, clap::Args)]
struct PolicyArgs {
    /// Tell the sender (TCP reset, ICMP) when there is no route or no endpoint, instead of dropping silently.
    #[arg(long, env = "MARTLET_REJECT")]
    reject: bool,
    /// How the fragments of one datagram find one endpoint: table (later ones follow the first), addresses (ports do not
    /// count, so that replicas which get one fragment each agree), kernel (put together before they are queued).
    #[arg(long, env = "MARTLET_FRAGMENTS", default_value = "table", value_name = "MODE")]
    fragments: FragmentMode,
    /// Choose as nfqlb does, for a rolling migration: all replicas of a Gateway alike.
    #[arg(long, env = "MARTLET_NFQLB")]
    nfqlb: bool,
}

/// The queues.
#[derive(Debug, clap::Args)]
struct QueueArgs {
    /// First and last nfqueue, a thread each; otherwise one for each CPU, at most four.
    #[arg(long, env = "MARTLET_QUEUES", value_name = "FIRST:LAST", value_parser = queues)]
    queues: Option<(u16, u16)>,
    /// Octets of each packet that are copied to user space.
    #[arg(long, env = "MARTLET_COPY_RANGE", default_value_t = Settings::default().copy_range, value_name = "OCTETS")]
    copy_range: u16,
    /// Packets that may wait in each queue.
    #[arg(long, env = "MARTLET_QUEUE_LENGTH", default_value_t = Settings::default().length, value_name = "PACKETS")]
    queue_length: u32,
    /// Loop of the queue threads: own, nfq.
    #[arg(long, env = "MARTLET_QUEUE_LOOP", default_value = "own", value_name = "LOOP")]
    queue_loop: Loop,
    /// While no thread listens nftables chooses, as far as it can, instead of the queue dropping everything.
    #[arg(long, env = "MARTLET_QUEUE_BYPASS")]
    bypass: bool,
    /// From so many endpoints on a link on, those whose Ethernet address is known are reached past their routing tables; 0: never.
    #[arg(long, env = "MARTLET_DIRECT_FROM", default_value_t = Options::default().direct_from, value_name = "ENDPOINTS")]
    direct_from: usize,
    /// Pick the queue by the CPU of a packet instead of the hash of its addresses.
    #[arg(long, env = "MARTLET_QUEUE_FANOUT")]
    fanout: bool,
}

/// `first:last`, or one number.
fn queues(text: &str) -> Result<(u16, u16), String> {
    let number = |part: &str| part.parse::<u16>().map_err(|error| format!("{part}: {error}; accepted: 0:3, or 0"));
    match text.split_once(':') {
        Some((first, last)) => Ok((number(first)?, number(last)?)),
        None => number(text).map(|queue| (queue, queue)),
    }
}

/// Where to listen, or nowhere.
fn address(flag: &str, text: &str) -> anyhow::Result<Option<SocketAddr>> {
    let parse = || text.parse().with_context(|| format!("{flag} {text}: accepted: such as [::]:2226, or ''"));
    (!text.is_empty()).then(parse).transpose()
}

impl Args {
    /// Runs the load balancer until a signal ends it.
    pub async fn run(self) -> anyhow::Result<()> {
        if self.clean {
            return run::clean().await;
        }
        let gateway = self.gateway.context("--gateway is missing")?;
        let defaults = Options::default();
        let Self { policy, queue, .. } = self;
        let range = queue.queues.map_or(defaults.queue.queues.clone(), |(first, last)| first..=last);
        let settings = Settings {
            queue_loop: queue.queue_loop,
            queues: range,
            copy_range: queue.copy_range,
            length: queue.queue_length,
            ..defaults.queue.clone()
        };
        run::run(Options {
            config_dir: self.config_dir,
            gateway: ObjectName { namespace: self.namespace.into(), name: gateway.into() },
            internal_interface: self.internal_interface.map(Into::into),
            socket: self.socket,
            queue: settings,
            engine: self.engine,
            policy: Policy { reject: policy.reject, fragments: policy.fragments, nfqlb: policy.nfqlb },
            liveness: self.liveness,
            bypass: queue.bypass,
            fanout: queue.fanout,
            direct_from: queue.direct_from,
            drain: Duration::from_secs(self.drain),
            table_size: self.table_size,
            metrics: address("--metrics", &self.metrics)?,
            health: address("--health", &self.health)?,
            control_socket: (!self.control_socket.is_empty()).then(|| self.control_socket.into()),
            ..defaults
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_address_is_nowhere_and_nonsense_names_its_flag() {
        assert_eq!(address("--metrics", "").unwrap(), None);
        assert_eq!(address("--metrics", "[::]:2226").unwrap().unwrap().port(), 2226);
        assert!(address("--health", "2227").unwrap_err().to_string().starts_with("--health 2227: accepted"));
    }
}
