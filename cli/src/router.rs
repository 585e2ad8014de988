//! `martlet router`: flags and the `NFE_*` variables of the frontend that they replace.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use martlet_bgp::HoldTime;
use martlet_router::intent::Settings;
use martlet_router::run::{self, Options};

const EXAMPLES: &str = "\
Examples:
  martlet router --config-dir /etc/martlet --gateway sllb-a --external-interface vlan-100
  martlet router --config-dir /etc/martlet --gateway sllb-a --lb-socket ''    every VIP counts as ready
  martlet router --clean                                                      remove what a router left in the kernel";

/// The flags.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Args {
    /// Folder of YAML with the objects of the Gateway.
    #[arg(long, env = "MARTLET_CONFIG_DIR", default_value = "/etc/martlet", value_name = "DIR")]
    config_dir: PathBuf,
    /// Name of the Gateway.
    #[arg(long, env = "MARTLET_GATEWAY", value_name = "NAME", required_unless_present = "clean")]
    gateway: Option<String>,
    /// Namespace of the Gateway.
    #[arg(long, env = "NFE_NAMESPACE", default_value = "default", value_name = "NAME")]
    namespace: String,
    /// Interface towards the gateways, where a GatewayRouter names none.
    #[arg(long, env = "NFE_EXTERNAL_INTERFACE", default_value = "ext-vlan", value_name = "NAME")]
    external_interface: String,
    /// Socket of the load balancer; empty: every VIP counts as ready.
    #[arg(long, env = "NFE_LB_SOCKET", default_value = martlet_api::readiness::DEFAULT_SOCKET, value_name = "URL")]
    lb_socket: String,
    /// Our AS number, where a GatewayRouter names none.
    #[arg(long, env = "NFE_LOCAL_AS", default_value_t = 8103, value_name = "ASN", value_parser = clap::value_parser!(u32).range(1..))]
    local_as: u32,
    /// AS number of a gateway, where a GatewayRouter names none.
    #[arg(long, env = "NFE_REMOTE_AS", default_value_t = 4_248_829_953, value_name = "ASN", value_parser = clap::value_parser!(u32).range(1..))]
    remote_as: u32,
    /// Port to listen on, where a GatewayRouter names none.
    #[arg(long, env = "NFE_BGP_LOCAL_PORT", default_value_t = 10179, value_name = "PORT")]
    bgp_local_port: u16,
    /// Port to connect to, where a GatewayRouter names none.
    #[arg(long, env = "NFE_BGP_REMOTE_PORT", default_value_t = 10179, value_name = "PORT")]
    bgp_remote_port: u16,
    /// Hold time in seconds, where a GatewayRouter names none: 0, or at least 3.
    #[arg(long, env = "NFE_BGP_HOLD_TIME", default_value_t = 3, value_name = "SECONDS")]
    bgp_hold_time: u16,
    /// Table of learned routes; the next one holds the blackholes.
    #[arg(long, env = "NFE_TABLE_ID", default_value_t = 4096, value_name = "TABLE")]
    table_id: u32,
    /// Use all best next hops of a prefix instead of one.
    #[arg(long, env = "NFE_ECMP", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    ecmp: bool,
    /// Drop what comes from a VIP while no route is known.
    #[arg(long, env = "NFE_DROP_IF_NO_PEER", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    drop_if_no_peer: bool,
    /// VRRP addresses: static next hops without supervision.
    #[arg(long, env = "NFE_VRRPS", value_delimiter = ',', value_name = "ADDRESS")]
    vrrps: Vec<IpAddr>,
    /// Announce a VIP only while a default route of its family is known.
    #[arg(long, env = "MARTLET_REQUIRE_EGRESS_ROUTE")]
    require_egress_route: bool,
    /// Router id; otherwise an IPv4 address of the external interface, otherwise a stable hash of the pod's uid or host name.
    #[arg(long, env = "MARTLET_ROUTER_ID", value_name = "ADDRESS")]
    router_id: Option<Ipv4Addr>,
    /// Uid of the pod.
    #[arg(long, env = "MARTLET_POD_UID", default_value = "", value_name = "UID")]
    pod_uid: String,
    /// At the end: how long to forward on after the VIPs were withdrawn, seconds.
    #[arg(long, env = "MARTLET_DRAIN", default_value_t = 10, value_name = "SECONDS")]
    drain: u64,
    /// At the start: how long routes of a former router are kept without being learned again, seconds.
    #[arg(long, env = "MARTLET_ADOPT", default_value_t = 10, value_name = "SECONDS")]
    adopt: u64,
    /// Remove the routes and rules that a router left, and end.
    #[arg(long)]
    clean: bool,
}

impl Args {
    /// Runs the router until a signal ends it.
    pub async fn run(self) -> anyhow::Result<()> {
        let clean = self.clean;
        let options = self.options()?;
        if clean {
            let removed = run::clean(&options.settings).await?;
            println!("{removed} routes and rules removed");
            return Ok(());
        }
        run::run(options).await
    }

    fn options(self) -> anyhow::Result<Options> {
        let hold_time = HoldTime::new(self.bgp_hold_time)
            .with_context(|| format!("--bgp-hold-time {}: accepted: 0, or at least 3", self.bgp_hold_time))?;
        let settings = Settings {
            external_interface: self.external_interface.into(),
            local_as: self.local_as,
            remote_as: self.remote_as,
            local_port: self.bgp_local_port,
            remote_port: self.bgp_remote_port,
            hold_time,
            table: self.table_id,
            ecmp: self.ecmp,
            drop_if_no_peer: self.drop_if_no_peer,
            require_egress_route: self.require_egress_route,
            vrrps: self.vrrps.into_iter().collect::<BTreeSet<_>>(),
        };
        Ok(Options {
            config_dir: self.config_dir,
            gateway: self.gateway.unwrap_or_default(),
            namespace: self.namespace,
            settings,
            lb_socket: self.lb_socket,
            drain: Duration::from_secs(self.drain),
            adopt: Duration::from_secs(self.adopt),
            router_id: self.router_id,
            pod_uid: self.pod_uid,
            ..Options::default()
        })
    }
}
