//! `martlet`: the one binary. Each subcommand is a container, or a question to one.
//!
//! It knows flags, environment variables and how a log looks; what the subcommands do is in the libraries.

mod lb;
mod lint;
mod logging;
mod router;
mod speaker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// BGP, BFD and a stateless load balancer for the virtual IPs of Kubernetes applications.
#[derive(Debug, Parser)]
#[command(name = "martlet", version, propagate_version = true, arg_required_else_help = true, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    log: logging::Args,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Announce VIPs to the gateway routers while the load balancer can serve them.
    Router(Box<router::Args>),
    /// Spread the packets of VIPs over application pods.
    Lb(Box<lb::Args>),
    /// Speak BGP without Kubernetes: a lab gateway, a looking glass, the subject of a benchmark.
    Speaker(speaker::Args),
    /// Check a folder of YAML without a cluster: one line a fault, exit code 1 if there is one.
    Lint(lint::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = logging::start(&cli.log) {
        eprintln!("martlet: {error:#}");
        return ExitCode::from(2);
    }
    let ended = match cli.command {
        Command::Router(args) => on_runtime(args.run()),
        Command::Lb(args) => on_runtime(args.run()),
        Command::Speaker(args) => on_runtime(args.run()),
        Command::Lint(args) => return args.run(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Router and lb have one loop each; what needs a core of its own (BFD, queues) has threads of its own.
fn on_runtime(ends: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(ends)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
