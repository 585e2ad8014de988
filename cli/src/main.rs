//! `martlet`: the one binary. Each subcommand is a container, or a question to one.
//!
//! It knows flags, environment variables and how a log looks; what the subcommands do is in the libraries.

mod controller;
mod lb;
mod lb_show;
mod lint;
mod log;
mod logging;
mod router;
mod show;
mod speaker;
mod table;

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
    /// Reconcile the Gateways of a namespace: pods, endpoints, status.
    Controller(Box<controller::Args>),
    /// Speak BGP without Kubernetes: a lab gateway, a looking glass, the subject of a benchmark.
    Speaker(speaker::Args),
    /// Show what a running router or load balancer knows.
    Show(show::Show),
    /// Explain why a VIP is announced, or is not.
    Explain(show::Explain),
    /// Tell the way of a flow through a running load balancer: route, slot, endpoint, mark.
    Trace(lb_show::Trace),
    /// Close a BGP session and start it anew.
    Reset(show::Peer),
    /// Ask a BGP neighbour for its routes again (RFC 2918).
    Refresh(show::Peer),
    /// Show or change what a running router logs.
    Log(log::Args),
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
        Command::Controller(args) => on_runtime(args.run()),
        Command::Speaker(args) => on_runtime(args.run()),
        Command::Show(args) => return asked(on_runtime(args.run()).map(|()| ExitCode::SUCCESS)),
        Command::Explain(args) => return asked(on_runtime(args.run())),
        Command::Trace(args) => return asked(on_runtime(args.run())),
        Command::Reset(args) => return asked(on_runtime(args.reset()).map(|()| ExitCode::SUCCESS)),
        Command::Refresh(args) => return asked(on_runtime(args.refresh()).map(|()| ExitCode::SUCCESS)),
        Command::Log(args) => return asked(on_runtime(args.run()).map(|()| ExitCode::SUCCESS)),
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
fn on_runtime<T>(ends: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(ends)
}

/// Who asks gets a line, not a log.
fn asked(answer: anyhow::Result<ExitCode>) -> ExitCode {
    answer.unwrap_or_else(|error| {
        eprintln!("martlet: {error:#}");
        ExitCode::from(2)
    })
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
