//! `martlet-lab`: the demo and the labs, from the command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use martlet_lab::{app, bench, bfd, demo, interop, sweep, topology};

/// Labs in network namespaces: the demo, applications, what was left behind.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The main job on real input, in ten steps observed from outside.
    Demo(demo::Options),
    /// The application behind a VIP (started by labs).
    App(app::Options),
    /// BFD sessions without a router (started by labs).
    Bfd(bfd::Arguments),
    /// Measures, beside others where there are any; writes docs/benchmarks.md.
    Bench(bench::Options),
    /// The speaker against other speakers, as those report it; writes docs/interop.md.
    Interop(interop::Options),
    /// The demo's stage under change and traffic, round after round: nothing is lost, nothing grows.
    Soak(demo::soak::Options),
    /// A topology of deploy/containerlab in namespaces, without containers.
    Topology(topology::Options),
    /// Removes labs that were left up or left behind.
    Clean {
        /// Only this lab.
        name: Option<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Soak(options) => demo::soak::run(&options),
        Command::App(options) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(anyhow::Error::from)
            .and_then(|runtime| runtime.block_on(app::serve(options))),
        Command::Bfd(arguments) => bfd::serve(&arguments),
        Command::Bench(options) => bench::run(&options),
        Command::Interop(options) => interop::run(&options),
        Command::Topology(options) => topology::run(&options),
        Command::Clean { name } => sweep::sweep(sweep::Depth::Everything, name.as_deref()).map(|labs| {
            for lab in labs {
                println!("removed {lab}");
            }
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("martlet-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
