//! The page of figures: `docs/benchmarks.md`, made of the rows of whole runs and of nothing else.

use std::fmt::Write as _;

use super::report::{Row, figure};

const HEAD: &str = "# Benchmarks

Written by `make bench` from [`benchmarks.json`](benchmarks.json), which holds every run. Median of Martlet, and of the others in the same run
on the same machine; a goal that is missed says so. `make bench ONLY=lb` measures one part, `QUICK=1` prints and leaves this page alone.
Figures of one machine say little about another: compare columns, not pages.
";

/// A picture: its file, what it shows.
type Picture = (&'static str, &'static str);

/// The parts, what they are about, and their pictures.
const PARTS: [(&str, &str, &[Picture]); 7] = [
    ("router", "Router: from an event to the kernel and to the wire", &[]),
    ("bgp", "BGP: a million prefixes", &[]),
    ("recovery", "Recovery: from the return of the path to the session", &[]),
    ("bfd", "BFD: detection, and many sessions", &[]),
    (
        "lb",
        "Load balancer",
        &[
            ("lb-throughput.svg", "Throughput of 64 B UDP through one CPU"),
            ("lb-latency.svg", "Round trip of a small datagram"),
            ("lb-scale.svg", "Throughput with many routes and endpoints"),
        ],
    ),
    ("cluster", "Cluster: 100 Gateways, 1000 L34Routes, 5000 endpoints", &[]),
    ("sim", "Simulation", &[]),
];

/// The page.
pub fn page(rows: &[Row]) -> String {
    let mut page = HEAD.to_owned();
    for (part, title, pictures) in PARTS {
        let own: Vec<_> =
            rows.iter().filter_map(|row| Some((row.name.strip_prefix(part)?.strip_prefix(": ")?, row))).collect();
        let Some((_, last)) = own.last() else { continue };
        let machine = &last.machine;
        let load = own.iter().map(|(_, row)| row.machine.load).fold(0.0, f64::max);
        let _ = writeln!(
            page,
            "\n## {title}\n\n{} x {}, Linux {}, {}, commit {}; load average at most {load:.1}, the benchmark's own included.\n",
            machine.cores, machine.cpu, machine.kernel, machine.date, machine.commit
        );
        for (file, what) in pictures {
            let _ = writeln!(page, "![{what}]({file})\n");
        }
        page.push_str("| | Martlet | beside it | goal | holds |\n|---|---:|---|---|---|\n");
        for (name, row) in own {
            let beside: Vec<_> = row.peers.iter().map(|(peer, value)| format!("{peer} {}", figure(*value))).collect();
            let value = format!("{} {}", figure(row.martlet), row.unit);
            let holds = if row.holds { "yes" } else { "**no**" };
            let cells =
                [name, value.trim_end(), &beside.join(", "), &row.goal, holds].map(|cell| cell.replace('|', "\\|"));
            let _ = writeln!(page, "| {} |", cells.join(" | "));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::topology;

    #[test]
    fn a_row_is_in_its_part_with_its_peers_and_its_verdict() {
        let mut row = Row::below("bfd: silence | Down", "ms", 10.0, vec![20.0]);
        row.peers.insert("bird".to_owned(), 30.0);
        let page = page(&[row]);
        assert!(page.contains("## BFD") && !page.contains("## BGP"), "{page}");
        assert!(page.contains("| silence \\| Down | 20.0 ms | bird 30.0 | < 10 ms | **no** |"), "{page}");
    }

    #[test]
    fn the_page_in_docs_is_that_of_the_rows_beside_it() {
        let docs = topology::workspace().join("docs");
        let rows: Vec<Row> = serde_json::from_slice(&std::fs::read(docs.join("benchmarks.json")).unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(docs.join("benchmarks.md")).unwrap(), page(&rows));
    }
}
