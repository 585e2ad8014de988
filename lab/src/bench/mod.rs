//! Benchmarks: what is measured, the table that is printed, the file of results and the page made of it.
//!
//! The rows of a part are replaced, all others are kept: parts can be measured one at a time.

mod bfd;
mod bgp;
mod cluster;
pub mod lb;
mod page;
mod plot;
mod report;
pub mod router;
mod sim;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::demo::topology;
use crate::preflight;
pub use report::{Row, merge};

/// What is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Only these parts, with commas between them.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Fewer runs, and docs/ is left alone.
    #[arg(long)]
    pub quick: bool,
    /// The file of results: docs/benchmarks.json, from which docs/benchmarks.md is made; target/bench.json if quick.
    #[arg(long)]
    pub output: Option<PathBuf>,
}

type Part = fn(&Options) -> Result<Vec<Row>>;

/// The parts that exist.
const PARTS: [(&str, Part); 7] = [
    ("router", router::measure),
    ("bgp", bgp::measure),
    ("recovery", bgp::recovery::measure),
    ("bfd", bfd::measure),
    ("lb", lb::measure),
    ("cluster", cluster::measure),
    ("sim", sim::measure),
];

/// Measures, prints a table and writes the file.
///
/// # Errors
/// A part is unknown, or cannot be measured. Goals that are missed are no error: they are shown.
pub fn run(options: &Options) -> Result<()> {
    let known = PARTS.map(|(name, _)| name);
    if let Some(unknown) = options.only.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("--only {unknown}: there is {}", known.join(", "));
    }
    preflight::check()?;
    let start = Instant::now();
    let mut rows = Vec::new();
    for (name, measure) in PARTS {
        if options.only.is_empty() || options.only.iter().any(|only| only == name) {
            println!("measuring {name} ..");
            rows.extend(measure(options)?);
        }
    }
    print!("{}", report::table(&rows));
    let docs = topology::workspace().join("docs");
    let usual =
        if options.quick { topology::workspace().join("target/bench.json") } else { docs.join("benchmarks.json") };
    let output = options.output.as_ref().unwrap_or(&usual);
    let all = merge(output, &rows)?;
    if !options.quick && *output == usual {
        let page = docs.join("benchmarks.md");
        fs::write(&page, page::page(&all)).with_context(|| format!("write {}", page.display()))?;
    }
    println!("written to {} after {:.0} s", output.display(), start.elapsed().as_secs_f64());
    Ok(())
}
