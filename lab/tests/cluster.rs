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
    pub mod controller;
    pub mod crds;
    pub mod faults;
    pub mod play;
    pub mod whole_way;
}

/// A test: its name is a sentence.
type Test = (&'static str, fn(&mut Cluster<'_>) -> Result<()>);

macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), cluster_suite::$module::$name)),*]
    };
}

const TESTS: &[Test] = tests![
    crds::the_examples_apply_unmodified,
    crds::each_rule_accepts_and_refuses,
    controller::the_seed_becomes_a_deployment_slices_and_status,
    controller::endpoints_follow_the_pods,
    controller::capacity_is_told_on_gateway_route_and_by_an_event,
    controller::nothing_but_infrastructure_rolls_the_pods,
    controller::a_template_overrides_and_a_broken_one_is_told,
    controller::foreign_objects_and_other_tenants_are_untouched,
    controller::forty_vips_are_cut_to_sixteen_addresses,
    controller::a_class_of_ours_is_accepted_and_one_of_others_decides,
    controller::sessions_are_gathered_into_columns_gates_and_events,
    faults::under_base_alone_what_the_seed_asks_works_and_each_missing_right_is_a_line,
    faults::of_two_controllers_one_acts_and_the_other_takes_over,
    faults::two_controllers_that_both_act_settle,
    faults::revoked_rights_are_noticed_and_mended,
    faults::what_others_delete_or_change_comes_back,
    faults::the_api_server_dies_and_comes_back_after_a_compaction,
    faults::of_many_pods_a_change_touches_one_slice,
    whole_way::from_the_example_to_traffic_and_back,
];

fn main() -> ExitCode {
    let filters: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted: Vec<_> = TESTS
        .iter()
        .filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str())))
        .collect();
    if std::env::args().any(|argument| argument == "--list") {
        for (name, _) in &wanted {
            println!("{name}: test");
        }
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

/// With `LAB_PAUSE=<seconds>` a failed test leaves its pods that long, for a look.
pub fn pause() {
    if let Some(seconds) = std::env::var("LAB_PAUSE").ok().and_then(|text| text.parse().ok()) {
        eprintln!("cluster: failed; the lab stays for {seconds} s");
        std::thread::sleep(std::time::Duration::from_secs(seconds));
    }
}

fn suite(lab: &Lab, wanted: &[&Test]) -> Result<usize> {
    tracing_subscriber::fmt().with_writer(|| cluster_suite::play::Log).with_ansi(false).init();
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
                println!("    the log:\n{}", cluster_suite::play::logged());
            }
        }
    }
    Ok(failures)
}
