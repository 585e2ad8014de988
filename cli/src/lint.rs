//! `martlet lint`: a folder of YAML, checked as a cluster would.

use std::path::PathBuf;
use std::process::ExitCode;

/// The flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  martlet lint deploy/demo")]
pub struct Args {
    /// The folder.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Args {
    /// Prints one line a fault.
    pub fn run(&self) -> ExitCode {
        if !self.dir.is_dir() {
            eprintln!("martlet: {}: not a folder", self.dir.display());
            return ExitCode::from(2);
        }
        let faults = martlet_api::lint(&self.dir);
        for fault in &faults {
            println!("{fault}");
        }
        if faults.is_empty() {
            println!("{}: no fault", self.dir.display());
            return ExitCode::SUCCESS;
        }
        ExitCode::FAILURE
    }
}
