//! `martlet router`: flags over the `NFE_*` variables of the frontend over defaults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use martlet_bgp::HoldTime;
use martlet_router::options::{self, Options};
use martlet_router::{debug, run};

const EXAMPLES: &str = "\
Examples:
  martlet router --gateway sllb-a --namespace red                             objects of the cluster
  martlet router --config-dir /etc/martlet --gateway sllb-a --external-interface vlan-100
  martlet router --config-dir /etc/martlet --gateway sllb-a --lb-socket ''    every VIP counts as ready
  martlet router --clean                                                      remove what a router left in the kernel
  martlet router --debug                                                      what to attach to a question, as JSON
  martlet router --variables                                                  the NFE_* variables, as Markdown";

/// The flags; what is not given comes from the environment, else from the defaults.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[expect(clippy::doc_markdown, reason = "the help text shows it as it is")]
pub struct Args {
    /// Folder of YAML with the objects of the Gateway [default: the cluster that this process is in]
    #[arg(long, env = "MARTLET_CONFIG_DIR", value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Name of the Gateway.
    #[arg(long, env = "MARTLET_GATEWAY", value_name = "NAME")]
    gateway: Option<String>,
    /// Namespace of the Gateway (NFE_NAMESPACE) [default: default]
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Interface towards the gateways, where a GatewayRouter names none (NFE_EXTERNAL_INTERFACE) [default: ext-vlan]
    #[arg(long, value_name = "NAME")]
    external_interface: Option<String>,
    /// Socket of the load balancer; empty: every VIP counts as ready (NFE_LB_SOCKET)
    /// [default: unix:///var/lib/meridio/lb.sock]
    #[arg(long, value_name = "URL")]
    lb_socket: Option<String>,
    /// Our AS number, where a GatewayRouter names none (NFE_LOCAL_AS) [default: 8103]
    #[arg(long, value_name = "ASN", value_parser = clap::value_parser!(u32).range(1..))]
    local_as: Option<u32>,
    /// AS number of a gateway, where a GatewayRouter names none (NFE_REMOTE_AS) [default: 4248829953]
    #[arg(long, value_name = "ASN", value_parser = clap::value_parser!(u32).range(1..))]
    remote_as: Option<u32>,
    /// Port to listen on, where a GatewayRouter names none (NFE_BGP_LOCAL_PORT) [default: 10179]
    #[arg(long, value_name = "PORT")]
    bgp_local_port: Option<u16>,
    /// Port to connect to, where a GatewayRouter names none (NFE_BGP_REMOTE_PORT) [default: 10179]
    #[arg(long, value_name = "PORT")]
    bgp_remote_port: Option<u16>,
    /// Hold time in seconds, where a GatewayRouter names none: 0, or at least 3 (NFE_BGP_HOLD_TIME) [default: 3]
    #[arg(long, value_name = "SECONDS")]
    bgp_hold_time: Option<u16>,
    /// Table of learned routes; the next one holds the blackholes (NFE_TABLE_ID) [default: 4096]
    #[arg(long, value_name = "TABLE")]
    table_id: Option<u32>,
    /// Use all best next hops of a prefix instead of one (NFE_ECMP) [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    ecmp: Option<bool>,
    /// Drop what comes from a VIP while no route is known (NFE_DROP_IF_NO_PEER) [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    drop_if_no_peer: Option<bool>,
    /// VRRP addresses: static next hops without supervision (NFE_VRRPS)
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    vrrps: Vec<IpAddr>,
    /// Announce a VIP only while a default route of its family is known.
    #[arg(long, env = "MARTLET_REQUIRE_EGRESS_ROUTE")]
    require_egress_route: bool,
    /// Router id; otherwise an IPv4 address of the external interface, otherwise a stable hash of the pod's uid or host name.
    #[arg(long, env = "MARTLET_ROUTER_ID", value_name = "ADDRESS")]
    router_id: Option<Ipv4Addr>,
    /// Uid of the pod.
    #[arg(long, env = "MARTLET_POD_UID", value_name = "UID")]
    pod_uid: Option<String>,
    /// Name of the pod: its sessions are told to the cluster in a RouterState of this name.
    #[arg(long, env = "MARTLET_POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
    /// At the end: how long VIPs are announced with GRACEFUL_SHUTDOWN before they are withdrawn, seconds [default: 0]
    #[arg(long, env = "MARTLET_LEAVE", value_name = "SECONDS")]
    leave: Option<u64>,
    /// At the end: how long to forward on after the VIPs were withdrawn, seconds [default: 10]
    #[arg(long, env = "MARTLET_DRAIN", value_name = "SECONDS")]
    drain: Option<u64>,
    /// At the start: how long routes of a former router are kept without being learned again, seconds [default: 10]
    #[arg(long, env = "MARTLET_ADOPT", value_name = "SECONDS")]
    adopt: Option<u64>,
    /// Socket that `martlet show` asks; empty: none [default: /run/martlet/router.sock]
    #[arg(long, env = "MARTLET_CONTROL_SOCKET", value_name = "PATH")]
    control_socket: Option<String>,
    /// Where Prometheus asks (NFE_METRICS_ENABLED, NFE_METRICS_PORT) [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Where probes of grpc.health.v1 ask; empty: nowhere [default: port 2225 of every address]
    #[arg(long, env = "MARTLET_HEALTH", value_name = "ADDRESS:PORT")]
    health: Option<String>,
    /// Readiness needs a gateway router that is Up.
    #[arg(long, env = "MARTLET_HEALTH_NEEDS_EGRESS")]
    health_needs_egress: bool,
    /// A standstill of this machine is not taken for silence of a BFD neighbour: what waits in the sockets is read before
    /// a session is Down, and it is given one interval more, once [default: true]
    #[arg(long, env = "MARTLET_BFD_STALL_GUARD", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    bfd_stall_guard: Option<bool>,
    /// Remove the routes and rules that a router left, and end.
    #[arg(long)]
    clean: bool,
    /// Print what is to be known of this machine as one JSON (links, rules, routes, neighbours, environment), and end.
    #[arg(long)]
    debug: bool,
    /// Print the table of NFE_* variables, and end.
    #[arg(long)]
    variables: bool,
}

impl Args {
    /// Runs the router until a signal ends it.
    pub async fn run(self) -> anyhow::Result<()> {
        if self.variables {
            print!("{}", options::markdown());
            return Ok(());
        }
        if self.debug {
            println!("{:#}", debug::report().await?);
            return Ok(());
        }
        let clean = self.clean;
        let options = self.options(|name| std::env::var(name).ok())?;
        if clean {
            let removed = run::clean(&options.settings).await?;
            println!("{removed} routes and rules removed");
            return Ok(());
        }
        if options.gateway.is_empty() {
            bail!("--gateway: the name of the Gateway is missing");
        }
        run::run(options).await
    }

    fn options(self, environment: impl Fn(&str) -> Option<String>) -> anyhow::Result<Options> {
        let (mut options, notes) =
            Options::from_env(environment).map_err(|errors| anyhow::anyhow!(errors.join("; ")))?;
        for note in notes {
            tracing::info!(kind = "environment", "{note}");
        }
        let seconds = |into: &mut Duration, given: Option<u64>| put(into, given.map(Duration::from_secs));
        options.config_dir = self.config_dir.or(options.config_dir);
        put(&mut options.gateway, self.gateway);
        put(&mut options.namespace, self.namespace);
        put(&mut options.lb_socket, self.lb_socket);
        put(&mut options.pod_uid, self.pod_uid);
        put(&mut options.pod_name, self.pod_name);
        seconds(&mut options.leave, self.leave);
        seconds(&mut options.drain, self.drain);
        seconds(&mut options.adopt, self.adopt);
        options.router_id = self.router_id.or(options.router_id);
        options.metrics = self.metrics.or(options.metrics);
        options.health_needs_egress |= self.health_needs_egress;
        put(&mut options.bfd_stall_guard, self.bfd_stall_guard);
        if let Some(path) = self.control_socket {
            options.control_socket = (!path.is_empty()).then(|| path.into());
        }
        if let Some(address) = self.health {
            let parsed = (!address.is_empty()).then(|| address.parse()).transpose();
            options.health =
                parsed.with_context(|| format!("--health {address}: accepted: such as [::]:2225, or ''"))?;
        }
        let settings = &mut options.settings;
        put(&mut settings.external_interface, self.external_interface.map(Into::into));
        put(&mut settings.local_as, self.local_as);
        put(&mut settings.remote_as, self.remote_as);
        put(&mut settings.local_port, self.bgp_local_port);
        put(&mut settings.remote_port, self.bgp_remote_port);
        if let Some(given) = self.bgp_hold_time {
            let parsed = HoldTime::new(given);
            settings.hold_time =
                parsed.with_context(|| format!("--bgp-hold-time {given}: accepted: 0, or at least 3"))?;
        }
        put(&mut settings.table, self.table_id);
        put(&mut settings.ecmp, self.ecmp);
        put(&mut settings.drop_if_no_peer, self.drop_if_no_peer);
        settings.require_egress_route |= self.require_egress_route;
        if !self.vrrps.is_empty() {
            settings.vrrps = self.vrrps.into_iter().collect();
        }
        Ok(options)
    }
}

fn put<T>(into: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *into = given;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn options(flags: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Options> {
        let args = Cli::parse_from([&["router"], flags].concat()).args;
        args.options(|name| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_default() {
        let (table, ports) = (("NFE_TABLE_ID", "5096"), ("NFE_BGP_LOCAL_PORT", "179"));
        let options = options(&["--table-id", "6096", "--ecmp"], &[table, ports]).unwrap();
        assert_eq!(
            (options.settings.table, options.settings.local_port, options.settings.remote_port),
            (6096, 179, 10179)
        );
        assert!(options.settings.ecmp && options.settings.drop_if_no_peer);
    }

    #[test]
    fn what_makes_no_sense_names_itself_and_what_would() {
        let error = options(&["--bgp-hold-time", "2"], &[]).unwrap_err().to_string();
        assert!(error.contains("--bgp-hold-time 2") && error.contains("at least 3"), "{error}");
        let error = options(&[], &[("NFE_TABLE_ID", "many")]).unwrap_err().to_string();
        assert!(error.contains("NFE_TABLE_ID"), "{error}");
    }

    #[test]
    fn the_stall_guard_of_bfd_is_on_unless_it_is_switched_off() {
        let guarded = |flags: &[&str]| options(flags, &[]).unwrap().bfd_stall_guard;
        assert!(guarded(&[]) && guarded(&["--bfd-stall-guard"]) && guarded(&["--bfd-stall-guard", "true"]));
        assert!(!guarded(&["--bfd-stall-guard", "false"]));
    }

    #[test]
    fn an_empty_path_or_address_switches_off() {
        let options = options(&["--control-socket", "", "--health", ""], &[]).unwrap();
        assert_eq!((options.control_socket, options.health), (None, None));
    }
}
