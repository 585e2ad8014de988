//! Rows of results: medians, the machine that they were measured on, the file, the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The unit of all values.
    pub unit: String,
    /// The median of ours.
    pub martlet: f64,
    /// The medians of others, measured in the same run.
    pub peers: BTreeMap<String, f64>,
    /// What is wanted, in words.
    pub goal: String,
    /// Whether it is so.
    pub holds: bool,
    /// All values of ours.
    pub runs: Vec<f64>,
    /// Where and when.
    pub machine: Machine,
}

/// Where and when something was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// How many of them.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The load average of the last minute, at the end.
    pub load: f64,
    /// The day, UTC.
    pub date: String,
    /// The commit.
    pub commit: String,
}

impl Row {
    /// A row whose goal is a bound from above.
    pub fn below(name: &str, unit: &str, bound: f64, runs: Vec<f64>) -> Self {
        let martlet = median(&runs);
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            martlet,
            peers: BTreeMap::new(),
            goal: format!("< {bound} {unit}"),
            holds: martlet < bound,
            runs,
            machine: Machine::this(),
        }
    }

    /// A row whose goal is a part of what `peer` took in the same run; without that figure it does not hold.
    #[must_use]
    pub fn at_most(mut self, factor: f64, peer: &str) -> Self {
        let whole = (factor - 1.0).abs() < f64::EPSILON;
        self.goal = if whole { format!("<= {peer}") } else { format!("<= {factor} x {peer}") };
        self.holds = self.peers.get(peer).is_some_and(|theirs| self.martlet <= factor * theirs);
        self
    }
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let said = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
            output.map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
        let load = read("/proc/loadavg");
        Self {
            cpu: cpu.unwrap_or_default().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or_default(),
            date: said("date", &["-u", "+%Y-%m-%d"]),
            commit: said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"]),
        }
    }
}

/// The middle value, or the mean of the two in the middle.
pub fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.len() % 2, sorted.get(middle.wrapping_sub(1)), sorted.get(middle)) {
        (0, Some(below), Some(above)) => f64::midpoint(*below, *above),
        (_, _, Some(middle)) => *middle,
        _ => f64::NAN,
    }
}

/// Puts the rows into the file, in the place of all rows of the same parts (what stands before `: `), and gives all that it holds now.
///
/// # Errors
/// The file is there but not what we write, or cannot be written.
pub fn merge(path: &Path, rows: &[Row]) -> Result<Vec<Row>> {
    let part = |row: &Row| row.name.split(": ").next().unwrap_or_default().to_owned();
    let mut all: Vec<Row> = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} holds no rows", path.display()))?,
        Err(_) => Vec::new(),
    };
    let measured: BTreeSet<_> = rows.iter().map(part).collect();
    all.retain(|row| !measured.contains(&part(row)));
    all.extend(rows.iter().cloned());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let text = serde_json::to_string_pretty(&all)? + "\n";
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(all)
}

/// The rows as a table.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![format!("{:<44} {:>10} {:>8} {:>8}  {:<12} holds", "", "martlet", "least", "most", "goal")];
    lines.extend(rows.iter().map(|row| {
        let least = row.runs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = row.runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let value = format!("{} {}", figure(row.martlet), row.unit);
        let holds = if row.holds { "yes" } else { "NO" };
        let peers: String =
            row.peers.iter().flat_map(|(name, value)| ["  ", name, " ", &figure(*value)].map(str::to_owned)).collect();
        let (least, most) = (figure(least), figure(most));
        format!("{:<44} {value:>10} {least:>8} {most:>8}  {:<12} {holds:<3}{peers}", row.name, row.goal)
    }));
    lines.join("\n") + "\n"
}

/// About three digits.
pub fn figure(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 1.0 => 3,
        some if some < 10.0 => 2,
        _ => 1,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_two() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_part_is_replaced_whole_and_others_are_kept() {
        let path = std::env::temp_dir().join(format!("martlet-bench-test-{}.json", std::process::id()));
        let row = |name: &str, value: f64| Row::below(name, "ms", 10.0, vec![value]);
        merge(&path, &[row("one: a", 1.0), row("one: b", 1.0), row("two: a", 20.0)]).unwrap();
        let all = merge(&path, &[row("one: a", 5.0)]).unwrap();
        assert_eq!(all, [row("two: a", 20.0), row("one: a", 5.0)]);
        assert_eq!(serde_json::from_slice::<Vec<Row>>(&fs::read(&path).unwrap()).unwrap(), all);
        assert!(!all[0].holds && all[1].holds);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_of_something_else_is_not_overwritten() {
        let path = std::env::temp_dir().join(format!("martlet-bench-other-{}.json", std::process::id()));
        fs::write(&path, "notes").unwrap();
        assert!(merge(&path, &[]).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
        fs::remove_file(path).unwrap();
    }
}
