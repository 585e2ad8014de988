//! The simulation as a program: what it prints, how it ends, and that others read its captures.
//!
//! It runs `martlet-sim`, which `make build` puts beside the other programs; the rest of it is tested in its own crate.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn program() -> PathBuf {
    let lab =
        std::env::var_os("MARTLET_LAB_BIN").expect("MARTLET_LAB_BIN names target/lab/martlet-lab: see the Makefile");
    Path::new(&lab).with_file_name("martlet-sim")
}

fn sim(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).output().expect("make build puts martlet-sim there")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_same_seed_gives_the_same_log_to_the_byte_in_two_processes() {
    for arguments in [["replay", "11", "--events"].as_slice(), &["driven", "--seeds", "1", "--from", "3", "--events"]] {
        // The driver's last lines tell how long it took.
        let story = |output: Output| -> Vec<String> {
            text(&output).lines().filter(|line| !line.contains("times real time")).map(str::to_owned).collect()
        };
        let first = story(sim(arguments));
        assert!(first.len() > 20, "{first:#?}");
        assert_eq!(first, story(sim(arguments)));
    }
}

#[test]
fn tshark_reads_bgp_and_bfd_of_a_capture_and_finds_nothing_malformed() {
    let file = std::env::temp_dir().join(format!("martlet-sim-{}.pcap", std::process::id()));
    let name = file.display().to_string();
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sim/scenarios/gateway-lost.yaml");
    let output = sim(&["replay", &scenario.display().to_string(), "--timeline", "--pcap", &name]);
    assert!(output.status.success(), "{}", text(&output));
    let count = |filter: &str| {
        let tshark = Command::new("tshark").args(["-r", &name, "-Y", filter]).output().expect("apt-get install tshark");
        assert!(tshark.status.success(), "{}", String::from_utf8_lossy(&tshark.stderr));
        text(&tshark).lines().count()
    };
    let counts = ["bgp.type == 1", "bgp.type == 2", "bgp.type == 4", "bfd", "ipv6 && bgp", "_ws.malformed"].map(count);
    std::fs::remove_file(file).expect("it was written");
    assert!(counts[..5].iter().all(|count| *count >= 4), "{counts:?}");
    assert_eq!(counts[5], 0, "malformed");
}

#[test]
fn a_scenario_that_does_not_show_what_it_expects_ends_with_one_and_says_what() {
    let file = std::env::temp_dir().join(format!("martlet-sim-{}.yaml", std::process::id()));
    let yaml = "topology: {gateways: 1, pods: 1, vips: 1}\nexpect: [adoption]\n";
    std::fs::write(&file, yaml).expect("the folder for temporary files can be written");
    let output = sim(&["replay", &file.display().to_string(), "--timeline"]);
    std::fs::remove_file(file).expect("it was written");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output).lines().last(), Some("EXPECTED and not seen: adoption"));
}

#[test]
fn without_an_end_it_runs_until_it_is_interrupted_and_then_reports() {
    let run = Command::new(program()).args(["run", "--seeds", "0"]).stdout(Stdio::piped()).spawn().expect("it starts");
    std::thread::sleep(std::time::Duration::from_secs(3));
    let interrupt = Command::new("kill").args(["-INT", &run.id().to_string()]).status().expect("kill is there");
    assert!(interrupt.success());
    let output = run.wait_with_output().expect("it ends");
    let text = text(&output);
    assert!(text.contains("times real time") && text.contains("sometimes: "), "{text}");
    assert_eq!((output.status.code(), text.lines().last()), (Some(0), Some("no promise was broken")));
}
