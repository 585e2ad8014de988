//! The suite on a real API server. One control plane for all tests; each test has a namespace (or several) of its own.
//!
//! `cargo test --profile lab -p martlet-lab --test cluster [NAME]` runs the tests whose name contains NAME. What the harness of
//! Rust takes besides is ignored. The programs are built if need be: see `deploy/lab/kubernetes/build.sh`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use martlet_lab::cluster::Cluster;
use martlet_lab::{End, Lab};

mod cluster_suite {
    pub mod crds;
}

/// A test: its name is a sentence.
type Test = (&'static str, fn(&mut Cluster<'_>) -> Result<()>);

macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), cluster_suite::$module::$name)),*]
    };
}

const TESTS: &[Test] = tests![crds::the_examples_apply_unmodified, crds::each_rule_accepts_and_refuses,];

fn main() -> ExitCode {
    let filters: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted: Vec<_> = TESTS
        .iter()
        .filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str())))
        .collect();
    if std::env::args().any(|argument| argument == "--list") {
        wanted.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let lab = match Lab::new(End::Remove) {
        Ok(lab) => lab,
        Err(error) => return failed(&error),
    };
    match suite(&lab, &wanted) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            lab.mark_failed();
            eprintln!("cluster: {failures} of {} tests failed", wanted.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            lab.mark_failed();
            failed(&error)
        }
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("cluster: {error:#}");
    ExitCode::FAILURE
}

fn suite(lab: &Lab, wanted: &[&Test]) -> Result<usize> {
    let start = Instant::now();
    let mut cluster = Cluster::start(lab)?;
    println!("cluster: ready after {:.1} s", start.elapsed().as_secs_f32());
    let mut failures = 0;
    for (name, test) in wanted {
        let start = Instant::now();
        let result = test(&mut cluster);
        let took = start.elapsed().as_secs_f32();
        match result {
            Ok(()) => println!("test {name} ... ok ({took:.1} s)"),
            Err(error) => {
                failures += 1;
                println!("test {name} ... FAILED ({took:.1} s)\n    {error:#}");
            }
        }
    }
    Ok(failures)
}
