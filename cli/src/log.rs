//! `martlet log`: what a running router logs, and how to change it.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use martlet_router::control::{Answer, Request, ask};
use martlet_router::options::CONTROL_SOCKET;

const EXAMPLES: &str = "\
Examples:
  martlet log                          what is logged now
  martlet log debug                    more of everything; SIGUSR1 and SIGUSR2 to the router: one level more or less
  martlet log info,martlet_bgp=debug   more of BGP
  martlet log --peer gw-1              every event of one GatewayRouter, single routes and all
  martlet log --peer gw-1 --quiet      no longer";

/// The flags of `log`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What is logged from now on: error, warn, info, debug, trace, or a filter; without it, what is logged is shown.
    #[arg(value_name = "LEVEL", conflicts_with = "peer")]
    level: Option<String>,
    /// Log every event of this peer (a GatewayRouter of BGP), whatever the level.
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Of that peer: no longer.
    #[arg(long, requires = "peer")]
    quiet: bool,
    /// The router's control socket.
    #[arg(long, env = "MARTLET_CONTROL_SOCKET", default_value = CONTROL_SOCKET, value_name = "PATH")]
    control_socket: PathBuf,
}

impl Args {
    /// Changes it, and prints what is in force.
    pub async fn run(self) -> anyhow::Result<()> {
        let request = match self.peer {
            Some(peer) => Request::LogPeer(peer, !self.quiet),
            None => Request::Log(self.level.unwrap_or_default()),
        };
        let path = self.control_socket.display();
        let answer = ask(&self.control_socket, &request).await.with_context(|| {
            format!("{path}: no router answers there (is it running, in this container? --control-socket says where)")
        })?;
        match answer {
            Answer::Log(text) => println!("{text}"),
            Answer::Error(text) => bail!("{text}"),
            _ => bail!("the router answered something else"),
        }
        Ok(())
    }
}
