//! How fast the simulation is: both worlds, with all faults and invariants, as multiples of real time on one core.
//!
//! It runs `martlet-sim speed`, which lies beside this program, and reads what it prints.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{Options, Row};

/// What `martlet-sim speed` prints of each world, the name of the row, and how many times real time it should reach.
const WORLDS: [(&str, &str, f64); 2] = [
    ("events", "sim: event queue, 2 gateways, 4 pods, 20 VIPs", 2000.0),
    ("driver", "sim: the driver over a simulated network", 20.0),
];

/// Both worlds.
pub fn measure(options: &Options) -> Result<Vec<Row>> {
    let program = std::env::current_exe()?.with_file_name("martlet-sim");
    let mut runs = [Vec::new(), Vec::new()];
    for _ in 0..if options.quick { 1 } else { 5 } {
        let output = Command::new(&program).arg("speed").output().with_context(|| program.display().to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{} speed: {text}", program.display());
        for ((word, ..), runs) in WORLDS.iter().zip(&mut runs) {
            let line = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.split(' ').next());
            let value = line.with_context(|| format!("martlet-sim speed says nothing of {word}: {text}"))?;
            runs.push(value.parse().with_context(|| format!("{word}: {value}"))?);
        }
    }
    let rows = WORLDS.iter().zip(runs).map(|((_, name, goal), runs)| {
        let row = Row::below(name, "x real time", f64::INFINITY, runs);
        Row { goal: format!(">= {goal}"), holds: row.martlet >= *goal, ..row }
    });
    Ok(rows.collect())
}
