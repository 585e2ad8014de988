//! Deterministic simulation: the product's own cores under a seeded world.
//!
//! One seed is one run: it decides the topology, the faults, every delay. `run` plays many, `replay` tells the story of one,
//! `shrink` removes faults while the failure stays; a scenario is the same thing written by a human (`docs/simulation.md`).

mod act;
mod ask;
mod check;
mod commands;
mod decode;
mod driven;
mod faults;
mod gateway;
mod hosts;
mod kernel;
mod link;
mod log;
mod mutants;
mod naive;
mod net;
mod objects;
mod pcap;
mod peer;
mod play;
mod pod;
mod queue;
mod script;
mod seen;
mod tcp;
mod world;

use std::process::ExitCode;

use clap::Parser as _;

/// Millions of small values live for a moment in a run of a few milliseconds.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match commands::Command::parse().perform() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
