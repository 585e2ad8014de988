//! `martlet controller`: flags of the Controller-Manager.

use std::net::SocketAddr;

use anyhow::Context as _;
use clap::ValueEnum;
use martlet_controller::deployment::{Settings, Sysctls};
use martlet_controller::{Options, run};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

const EXAMPLES: &str = "\
Examples:
  martlet controller --namespace red
  martlet controller --namespace red --image registry.example/martlet:1.0 --replicas 3 --sysctls pod";

/// The flags.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::doc_markdown, reason = "the help text shows it as it is")]
pub struct Args {
    /// The only namespace that is looked at.
    #[arg(long, env = "MARTLET_NAMESPACE", default_value = "default", value_name = "NAME")]
    namespace: String,
    /// Unique among the replicas: the pod's name; otherwise the host name.
    #[arg(long, env = "MARTLET_POD_NAME", value_name = "NAME")]
    identity: Option<String>,
    /// Image of the load-balancer pods.
    #[arg(long, env = "MARTLET_IMAGE", value_name = "IMAGE")]
    image: Option<String>,
    /// Pods of a Gateway, unless its template or an autoscaler says so.
    #[arg(long, env = "MARTLET_REPLICAS", default_value_t = 2, value_name = "COUNT")]
    replicas: i32,
    /// How the sysctls of the pods are set.
    #[arg(long, env = "MARTLET_SYSCTLS", value_enum, default_value_t = How::Attachment)]
    sysctls: How,
    /// NetworkAttachmentDefinition of the tuning plugin, where sysctls are set by an attachment.
    #[arg(long, env = "MARTLET_TUNING_ATTACHMENT", default_value = "sllbr-tuning", value_name = "NAME")]
    tuning_attachment: String,
    /// How long a pod forwards on after its end was asked for, seconds.
    #[arg(long, env = "MARTLET_DRAIN", default_value_t = 10, value_name = "SECONDS")]
    drain: u32,
    /// ServiceAccount of the pods; otherwise the default of the namespace.
    #[arg(long, env = "MARTLET_SERVICE_ACCOUNT", value_name = "NAME")]
    service_account: Option<String>,
    /// Where probes of grpc.health.v1 ask; empty: nowhere.
    #[arg(long, env = "MARTLET_HEALTH", default_value = "[::]:2231", value_name = "ADDRESS:PORT")]
    health: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum How {
    /// By an attachment of the tuning plugin.
    Attachment,
    /// By securityContext.sysctls: the kubelet must allow them.
    Pod,
    /// Not by the controller.
    None,
}

impl Args {
    /// Runs the controller until a signal ends it.
    pub async fn run(self) -> anyhow::Result<()> {
        let (stop, stopped) = watch::channel(false);
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.send_replace(true);
        });
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
        let identity =
            self.identity.map_or_else(host, Ok).context("--identity is missing, and the host has no name")?;
        let defaults = Settings::default();
        let health: Option<SocketAddr> = (!self.health.is_empty())
            .then(|| self.health.parse())
            .transpose()
            .with_context(|| format!("--health {}: accepted: such as [::]:2231, or ''", self.health))?;
        let settings = Settings {
            image: self.image.unwrap_or_else(|| defaults.image.clone()),
            replicas: self.replicas,
            sysctls: match self.sysctls {
                How::Attachment => Sysctls::Attachment(self.tuning_attachment),
                How::Pod => Sysctls::Pod,
                How::None => Sysctls::None,
            },
            drain_s: self.drain,
            service_account: self.service_account,
            ..defaults
        };
        run(Options { settings, health, ..Options::new(&self.namespace, &identity, stopped) }).await
    }
}
