//! The suite on a real API server. One control plane for all tests; each test has a namespace (or several) of its own.
//!
//! Most tests wait most of their time: some of them run side by side. Those that end the server, or count what was logged, run
//! alone. At last the whole way is gone with Pods and a real gateway, a step after the other; each step counts as a test.
//!
//! `cargo test --profile lab -p martlet-lab --test cluster [NAME]` runs the tests whose name contains NAME. What the harness of
//! Rust takes besides is ignored. The programs are built if need be: see `deploy/lab/kubernetes/build.sh`.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;
use martlet_lab::cluster::Cluster;
use martlet_lab::{End, Lab};

mod cluster_suite {
    pub mod controller;
    pub mod crds;
    pub mod faults;
    pub mod play;
    pub mod stage;
    pub mod whole_way;
}

/// A test: its name is a sentence.
type Test = (&'static str, fn(&Cluster<'_>) -> Result<()>);

/// Tests that run at once.
const SIDE_BY_SIDE: usize = 4;

macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), cluster_suite::$module::$name)),*]
    };
}

/// They touch nothing but their namespaces.
const TESTS: &[Test] = tests![
    crds::each_rule_accepts_and_refuses,
    faults::deleted_in_every_order_nothing_is_left,
    faults::a_bad_way_to_the_server_loses_nothing,
    faults::of_many_pods_a_change_touches_one_slice,
    faults::what_others_delete_or_change_comes_back,
    faults::of_two_controllers_one_acts_and_the_other_takes_over,
    faults::two_controllers_that_both_act_settle,
    faults::revoked_rights_are_noticed_and_mended,
    faults::the_clocks_of_two_replicas_may_differ_by_a_day,
    controller::the_seed_becomes_a_deployment_slices_and_status,
    controller::endpoints_follow_the_pods,
    controller::capacity_is_told_on_gateway_route_and_by_an_event,
    controller::faults_are_told_on_the_object_that_has_them,
    controller::nothing_but_infrastructure_rolls_the_pods,
    controller::a_template_overrides_and_a_broken_one_is_told,
    controller::foreign_objects_and_other_tenants_are_untouched,
    controller::forty_vips_are_cut_to_sixteen_addresses,
    controller::a_class_of_ours_is_accepted_and_one_of_others_decides,
    controller::sessions_are_gathered_into_columns_gates_and_events,
    crds::the_examples_apply_unmodified,
];

/// They end the server, read the log, or take from all what has no namespace.
const ALONE: &[Test] = tests![
    faults::extra_rights_revoked_take_nothing_down_and_are_used_again,
    faults::under_base_alone_what_the_seed_asks_works_and_each_missing_right_is_a_line,
    faults::the_api_server_dies_and_comes_back_after_a_compaction,
];

fn main() -> ExitCode {
    let filters: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let of = |tests: &'static [Test]| tests.iter().filter(|(name, _)| is_wanted(name)).collect::<Vec<_>>();
    let (together, alone) = (of(TESTS), of(ALONE));
    let way = cluster_suite::whole_way::STEPS;
    // A step stands on those before it.
    let last = way.iter().rposition(|(name, _)| is_wanted(name) || is_wanted("whole_way"));
    let way = last.map_or(&[][..], |last| way.get(..=last).unwrap_or_default());
    let count = together.len() + alone.len() + way.len();
    if std::env::args().any(|argument| argument == "--list") {
        let names = together.iter().chain(&alone).map(|(name, _)| name).chain(way.iter().map(|(name, _)| name));
        names.for_each(|name| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let lab = match Lab::new(End::Remove) {
        Ok(lab) => lab,
        Err(error) => return failed(&error),
    };
    match suite(&lab, &together, &alone, way) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            lab.mark_failed();
            eprintln!("cluster: {failures} of {count} tests failed");
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

fn suite(lab: &Lab, together: &[&Test], alone: &[&Test], way: &[cluster_suite::stage::Step]) -> Result<usize> {
    tracing_subscriber::fmt().with_writer(|| cluster_suite::play::Log).with_ansi(false).init();
    let start = Instant::now();
    let mut cluster = Cluster::start(lab)?;
    println!("cluster: ready after {:.1} s", start.elapsed().as_secs_f32());
    let failures = AtomicUsize::new(0);
    let queue = Mutex::new(together.iter());
    let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE.min(together.len()) {
            scope.spawn(|| {
                while let Some(test) = next() {
                    failures.fetch_add(run(&cluster, test), Ordering::Relaxed);
                }
            });
        }
    });
    println!("cluster: side by side after {:.1} s", start.elapsed().as_secs_f32());
    for test in alone {
        failures.fetch_add(run(&cluster, test), Ordering::Relaxed);
    }
    println!("cluster: alone after {:.1} s", start.elapsed().as_secs_f32());
    if !way.is_empty() {
        cluster.start_manager()?;
        failures.fetch_add(cluster_suite::stage::play(&cluster, way)?.len(), Ordering::Relaxed);
    }
    println!("cluster: all after {:.1} s", start.elapsed().as_secs_f32());
    Ok(failures.into_inner())
}

/// Runs a test. Returns 1 if it failed.
fn run(cluster: &Cluster<'_>, (name, test): &Test) -> usize {
    let start = Instant::now();
    let result = test(cluster);
    let took = start.elapsed().as_secs_f32();
    match result {
        Ok(()) => {
            println!("test {name} ... ok ({took:.1} s)");
            0
        }
        Err(error) => {
            println!("test {name} ... FAILED ({took:.1} s)\n    {error:#}");
            println!("    the log:\n{}", cluster_suite::play::logged());
            1
        }
    }
}
