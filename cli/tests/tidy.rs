//! What lints cannot check: the shape of the house (`ARCHITECTURE.md`).
//!
//! It reads the sources as text and the crate graph from `cargo metadata`. Each test names the file and the rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of a source file above which it should have been split.
const MAX_LINES: usize = 800;

/// Crate -> the crates of ours that it may depend on, tests included.
const GRAPH: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("bfd", &["clock"]),
    ("bgp", &["clock"]),
    ("cli", &["api", "bfd", "bgp", "controller", "lb", "netlink", "router"]),
    ("clock", &[]),
    ("controller", &["api", "netlink"]),
    ("lab", &["api", "bfd", "bgp", "clock", "controller", "lb", "netlink", "router"]),
    ("lb", &["api", "clock", "netlink"]),
    ("netlink", &[]),
    ("router", &["api", "bfd", "bgp", "clock", "netlink"]),
    ("sim", &["api", "bfd", "bgp", "clock", "lb", "netlink", "router"]),
];

/// Crates that know no I/O, and what they must not depend on.
const CORES: &[&str] = &["bfd", "bgp", "clock"];
const IO_CRATES: &[&str] = &["kube", "libc", "mio", "nix", "socket2", "tokio", "rtnetlink"];

/// Where sockets may be opened, with the reason.
const SOCKET_MODULES: &[(&str, &str)] = &[
    ("api/src/serve", "control sockets, metrics, grpc.health.v1"),
    ("api/src/source/cluster", "the API server"),
    ("cli/src/", "asks control sockets"),
    ("controller/src/agent", "network namespaces of applications"),
    ("lab/", "plays the outside"),
    ("lb/src/queue", "nfqueue"),
    ("lb/src/readiness", "the socket that the router connects to"),
    ("netlink/src/kernel", "rtnetlink"),
    ("netlink/src/link", "neighbour entries and sysctls"),
    ("netlink/src/nft", "nf_tables"),
    ("router/src/bfd_io", "BFD datagrams"),
    ("router/src/net", "BGP connections"),
    ("router/src/readiness", "the socket of the load balancer"),
    ("sim/src/net", "turmoil"),
];
const SOCKET_CALLS: &[&str] = &[
    "TcpStream::connect",
    "TcpListener::bind",
    "TcpSocket::new",
    "UdpSocket::bind",
    "UnixListener::bind",
    "UnixStream::connect",
    "UnixDatagram::",
    "Socket::new(",
    "libc::socket(",
];

struct Source {
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above cli").to_owned()
}

/// All Rust files of the workspace, paths relative to its root.
fn sources() -> Vec<Source> {
    fn walk(dir: &Path, root: &Path, found: &mut Vec<Source>) {
        let mut entries: Vec<_> =
            fs::read_dir(dir).expect("readable").map(|entry| entry.expect("entry").path()).collect();
        entries.sort();
        for path in entries {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    walk(&path, root, found);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
                found.push(Source { path: relative, text: fs::read_to_string(&path).expect("readable") });
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &root(), &mut found);
    assert!(found.len() > 20, "only {} sources found: is the walk broken?", found.len());
    found
}

/// The part of a source before its unit tests.
fn product(source: &Source) -> &str {
    source.text.split("#[cfg(test)]").next().unwrap_or_default()
}

/// Code without comments and string contents: enough for what is looked for here.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "{line}");
        all
    })
}

fn complain(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

/// Crate (without `martlet-`) -> its direct dependencies of any kind.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().expect("name").trim_start_matches("martlet-").to_owned();
            let on = package["dependencies"].as_array().expect("dependencies").iter();
            (name, on.map(|dependency| dependency["name"].as_str().expect("name").to_owned()).collect())
        })
        .collect()
}

#[test]
fn crates_depend_in_one_direction_only() {
    let allowed: BTreeMap<_, BTreeSet<_>> =
        GRAPH.iter().map(|(name, on)| (*name, on.iter().copied().collect())).collect();
    let mut faults = Vec::new();
    for (name, on) in dependencies() {
        let Some(allowed) = allowed.get(name.as_str()) else {
            faults.push(format!("{name}: a new crate needs a row in ARCHITECTURE.md and in the tidy test"));
            continue;
        };
        for ours in on.iter().filter_map(|dependency| dependency.strip_prefix("martlet-")) {
            if !allowed.contains(ours) {
                faults.push(format!("{name} must not depend on {ours}"));
            }
        }
    }
    complain(&faults);
}

#[test]
fn cores_know_no_io() {
    let dependencies = dependencies();
    let mut faults = Vec::new();
    for core in CORES {
        let on = dependencies.get(*core).unwrap_or_else(|| panic!("crate {core} is missing"));
        faults.extend(IO_CRATES.iter().filter(|io| on.contains(**io)).map(|io| format!("{core} depends on {io}")));
    }
    for source in
        sources().iter().filter(|source| CORES.iter().any(|core| source.path.starts_with(&format!("{core}/src/"))))
    {
        for word in ["std::net::Tcp", "std::net::Udp", "std::os::", "Instant::now", "SystemTime"] {
            if code(&source.text).contains(word) {
                faults.push(format!("{}: a core must not use {word}", source.path));
            }
        }
    }
    complain(&faults);
}

#[test]
fn sockets_are_opened_only_where_the_house_says() {
    let mut faults = Vec::new();
    for source in sources() {
        let listed = SOCKET_MODULES.iter().any(|(module, _)| source.path.starts_with(module));
        let outside_product = source.path.contains("/tests/") || source.path.contains("/examples/");
        if listed || outside_product {
            continue;
        }
        for call in SOCKET_CALLS.iter().filter(|call| code(product(&source)).contains(**call)) {
            faults.push(format!("{}: {call}: sockets belong into a module listed in the tidy test", source.path));
        }
    }
    complain(&faults);
}

#[test]
fn unsafe_code_lives_in_files_named_sys() {
    let mut faults = Vec::new();
    for source in sources() {
        let is_sys = source.path.ends_with("/sys.rs");
        let lines: Vec<_> = source.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let trimmed = line.trim_start();
            if trimmed.starts_with("//") || source.path.ends_with("tests/tidy.rs") {
                continue;
            }
            let code = trimmed.split('"').step_by(2).collect::<Vec<_>>().join(" ");
            if !code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
                continue;
            }
            if !is_sys {
                faults.push(format!("{}:{}: unsafe outside a file named sys.rs", source.path, index + 1));
            } else if !lines[index.saturating_sub(6)..=index].iter().any(|near| near.contains("SAFETY")) {
                faults.push(format!("{}:{}: no SAFETY comment above", source.path, index + 1));
            }
        }
    }
    complain(&faults);
}

#[test]
fn every_select_is_biased() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| !source.path.ends_with("tests/tidy.rs")) {
        for after in code(&source.text).split("select! {").skip(1) {
            if !after.trim_start().starts_with("biased;") {
                faults.push(format!("{}: a select! that does not start with `biased;`", source.path));
            }
        }
    }
    complain(&faults);
}

#[test]
fn files_are_short_and_say_what_they_know() {
    let mut faults = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > MAX_LINES {
            faults.push(format!("{}: {lines} lines, at most {MAX_LINES}", source.path));
        }
        if !source.text.lines().any(|line| line.starts_with("//!")) {
            faults.push(format!("{}: does not begin with what it knows (//!)", source.path));
        }
    }
    complain(&faults);
}

#[test]
fn exceptions_from_lints_have_reasons() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| !source.path.ends_with("tests/tidy.rs")) {
        let text = code(&source.text);
        // What several test programs share is dead code in some of them: only there `expect` would not hold.
        let shared = source.path.contains("/tests/") && source.path.ends_with("/mod.rs");
        let allowed = text.replace("#![allow(dead_code, reason =", if shared { "" } else { "#![allow(" });
        if allowed.contains("#[allow(") || allowed.contains("#![allow(") {
            faults.push(format!("{}: `allow`: use `expect` with a reason", source.path));
        }
        let attributes = text.split("#[expect(").skip(1).chain(text.split("#![expect(").skip(1));
        for attribute in attributes.filter_map(|after| after.split(")]").next()) {
            if !attribute.contains("reason") {
                faults.push(format!("{}: `expect({attribute})` without a reason", source.path));
            }
        }
        for word in ["todo!(", "unimplemented!(", "#[ignore"] {
            if text.contains(word) {
                faults.push(format!("{}: {word}", source.path));
            }
        }
    }
    complain(&faults);
}

#[test]
fn only_two_crates_are_programs() {
    let faults: Vec<_> = sources()
        .iter()
        .filter(|source| source.path.ends_with("/main.rs"))
        .filter(|source| !["cli/src/main.rs", "sim/src/main.rs"].contains(&source.path.as_str()))
        .map(|source| format!("{}: main.rs belongs into cli and sim only", source.path))
        .collect();
    complain(&faults);
}

/// The numbers behind the word RFC in a text.
fn rfc_numbers(text: &str) -> BTreeSet<u32> {
    text.split("RFC ")
        .skip(1)
        .filter_map(|after| {
            let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        })
        .collect()
}

/// Numbers in headings and in the first cells of tables.
fn numbers_of_page(page: &str) -> BTreeSet<u32> {
    let cells = page.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.split('|').nth(1));
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let words = cells.chain(headings).flat_map(|text| text.split(|c: char| !c.is_ascii_digit()));
    words.filter(|word| (3..=4).contains(&word.len())).filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn every_rfc_in_the_code_stands_in_the_rfc_page() {
    let pages = ["rfc.md", "rfc-bfd.md", "rfc-bgp.md"];
    let pages = pages.map(|page| fs::read_to_string(root().join("docs").join(page)).expect(page));
    let known: BTreeSet<u32> = pages.iter().flat_map(|page| numbers_of_page(page)).collect();
    let mut faults = Vec::new();
    for source in sources() {
        for number in rfc_numbers(&source.text).difference(&known) {
            faults.push(format!("{}: RFC {number} is not in docs/rfc*.md", source.path));
        }
    }
    complain(&faults);
}

#[test]
fn every_crate_uses_the_lints_of_the_house() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().expect("packages") {
        let manifest = fs::read_to_string(package["manifest_path"].as_str().expect("path")).expect("readable");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{}: no `[lints] workspace = true`", package["name"]);
    }
}
