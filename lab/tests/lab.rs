//! What the lab itself promises: nothing stays, cuts are what they say, times are the kernel's. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use martlet_lab::capture::{Capture, concerns};
use martlet_lab::monitor::RouteMonitor;
use martlet_lab::sweep::{Depth, sweep};
use martlet_lab::sys::{self, Signal};
use martlet_lab::wait::{LIMIT, Seen, until};
use martlet_lab::{Cut, End, Lab, Namespace, preflight, probe};

fn lab() -> Lab {
    preflight::check().unwrap();
    Lab::new(End::Remove).unwrap()
}

/// What is left of a lab of this process id: namespaces and run folders.
fn left_of(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("mlab-{pid}-");
    let dirs = [PathBuf::from("/run/netns"), std::env::temp_dir()];
    let entries = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).map(|entry| entry.path()).collect()
}

fn is_there(namespace: &str) -> bool {
    Path::new("/run/netns").join(namespace).exists()
}

fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("1000");
    command
}

/// Two namespaces with a bridge in a third between them.
fn triangle(lab: &Lab) -> (Namespace, Namespace, Namespace) {
    let [left, right, fabric] = ["left", "right", "fabric"].map(|role| lab.namespace(role).unwrap());
    lab.link((&left, "eth0"), (&fabric, "left")).unwrap();
    lab.link((&right, "eth0"), (&fabric, "right")).unwrap();
    fabric.bridge("bridge", &["left", "right"]).unwrap();
    left.ip("addr add 10.0.0.1/24 dev eth0\naddr add fd00::1/64 dev eth0 nodad").unwrap();
    right.ip("addr add 10.0.0.2/24 dev eth0\naddr add fd00::2/64 dev eth0 nodad").unwrap();
    (left, right, fabric)
}

fn wait_for_ping(from: &Namespace, to: &str) {
    until(&format!("a ping of {to}"), LIMIT, || {
        let received = probe::ping(from, to.parse()?, 1)?;
        Ok(if received == 1 { Seen::Yes(()) } else { Seen::not_yet("no answer") })
    })
    .unwrap();
}

fn has_carrier(namespace: &Namespace) -> bool {
    let links = namespace.ip_json(&["link", "show", "dev", "eth0"]).unwrap();
    links[0]["flags"].as_array().unwrap().iter().any(|flag| flag == "LOWER_UP")
}

#[test]
fn after_a_panic_no_namespace_and_no_process_is_left() {
    let (sender, names) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let lab = lab();
        let namespace = lab.namespace("one").unwrap();
        let process = lab.spawn("sleep", Some(&namespace), sleeper()).unwrap();
        sender.send((namespace.name().to_owned(), process.pid(), lab.dir().to_owned())).unwrap();
        panic!("on purpose");
    });
    let (namespace, pid, dir) = names.recv().unwrap();
    assert!(thread.join().is_err());
    assert!(!is_there(&namespace));
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    // The logs of what failed are still there.
    assert!(dir.join("log/sleep.log").exists());
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_lab_ends_what_a_process_of_it_started_on_its_own() {
    let lab = lab();
    let namespace = lab.namespace("one").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "setsid sleep 1000 & echo $!; wait"]);
    let process = lab.spawn("shell", Some(&namespace), command).unwrap();
    let pid: u32 = until("the child's process id", LIMIT, || {
        Ok(process.log().trim().parse().map_or_else(|_| Seen::not_yet(process.log()), Seen::Yes))
    })
    .unwrap();
    let is_running = || sys::kill(pid, Signal::Cont).is_ok();
    assert!(is_running());
    drop(lab);
    until("the end of the child", LIMIT, || Ok(if is_running() { Seen::not_yet("it runs") } else { Seen::Yes(()) }))
        .unwrap();
}

#[test]
fn a_living_lab_is_not_swept_and_a_kept_one_only_on_demand() {
    let living = lab();
    let namespace = living.namespace("one").unwrap();
    let kept = Lab::new(End::Keep).unwrap();
    let (other, name) = (kept.namespace("one").unwrap(), kept.name().to_owned());
    drop(kept);
    sweep(Depth::Dead, None).unwrap();
    assert!(is_there(namespace.name()));
    assert!(is_there(other.name()));
    for lab in [&name, living.name()] {
        sweep(Depth::Everything, Some(lab)).unwrap();
    }
    assert!(is_there(namespace.name()));
    assert!(!is_there(other.name()));
}

#[test]
fn two_labs_at_once_do_not_see_each_other() {
    let (one, two) = (lab(), lab());
    let ((left, ..), (_, right, _)) = (triangle(&one), triangle(&two));
    wait_for_ping(&left, "10.0.0.2");
    wait_for_ping(&right, "fd00::1");
    drop(one);
    wait_for_ping(&right, "10.0.0.1");
}

#[test]
fn a_silent_cut_keeps_both_carriers_and_a_carrier_cut_takes_one() {
    let lab = lab();
    let (left, right, fabric) = triangle(&lab);
    let lost = || {
        until("silence", LIMIT, || {
            let received = probe::ping(&left, "10.0.0.2".parse()?, 1)?;
            Ok(if received == 0 { Seen::Yes(()) } else { Seen::not_yet("an answer") })
        })
    };
    wait_for_ping(&left, "10.0.0.2");
    fabric.cut("right", Cut::Silent).unwrap();
    lost().unwrap();
    assert_eq!((has_carrier(&left), has_carrier(&right)), (true, true));
    fabric.mend("right").unwrap();
    wait_for_ping(&left, "10.0.0.2");
    fabric.cut("right", Cut::Carrier).unwrap();
    lost().unwrap();
    assert_eq!((has_carrier(&left), has_carrier(&right)), (true, false));
    fabric.mend("right").unwrap();
    wait_for_ping(&left, "10.0.0.2");
}

#[test]
fn packets_and_routes_carry_the_time_at_which_they_were_seen() {
    let lab = lab();
    let (left, right, _) = triangle(&lab);
    wait_for_ping(&left, "10.0.0.2");
    let mut capture = Capture::start(&lab, &right, "eth0", 179, "udp").unwrap();
    let routes = RouteMonitor::start(&lab, &right).unwrap();
    let start = SystemTime::now();
    let target: SocketAddr = "10.0.0.2:9".parse().unwrap();
    assert!(left.inside(|| probe::send_from("10.0.0.1".parse().unwrap(), target, "x")).unwrap().unwrap());
    let packet = capture.wait("the packet", start, LIMIT, |event| concerns(event, target.ip())).unwrap();
    right.ip("route add 192.0.2.1/32 via 10.0.0.1").unwrap();
    let route = routes.wait("the route", start, LIMIT, |event| event.route.starts_with("192.0.2.1 ")).unwrap();
    assert!(start <= packet.at && packet.at <= route.at && route.at <= SystemTime::now(), "{packet:?} {route:?}");
    capture.stop().unwrap();
    assert_eq!(capture.count(|_| true).unwrap(), 1);
}

/// A demo whose product is a script: it gets as far as the wait for the sessions.
fn demo_of(script: &str, name: &str) -> (Child, PathBuf) {
    preflight::check().unwrap();
    let path = std::env::temp_dir().join(format!("martlet-lab-test-{}-{name}", std::process::id()));
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_martlet-lab"));
    command.arg("demo").env("MARTLET_BIN", &path).stdout(Stdio::piped()).stderr(Stdio::piped());
    (command.spawn().unwrap(), path)
}

/// Waits until its stage is built.
fn wait_for_stage(demo: &mut Child) {
    let mut line = String::new();
    BufReader::new(demo.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("gateway (FRR"), "{line}");
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    for (signal, code) in [(Signal::Int, 130), (Signal::Term, 143)] {
        let (mut demo, script) = demo_of("#!/bin/sh\nexec sleep 1000\n", "interrupted");
        wait_for_stage(&mut demo);
        assert!(!left_of(demo.id()).is_empty());
        sys::kill(demo.id(), signal).unwrap();
        assert_eq!(demo.wait().unwrap().code(), Some(code));
        assert_eq!(left_of(demo.id()), Vec::<PathBuf>::new());
        std::fs::remove_file(script).unwrap();
    }
}

#[test]
fn a_demo_that_was_killed_is_swept_by_the_next_lab() {
    let (mut demo, script) = demo_of("#!/bin/sh\nexec sleep 1000\n", "killed");
    wait_for_stage(&mut demo);
    let pid = demo.id();
    demo.kill().unwrap();
    demo.wait().unwrap();
    assert!(left_of(pid).iter().any(|path| path.starts_with("/run/netns")), "a namespace outlives its killed lab");
    let _next = lab();
    assert_eq!(left_of(pid), Vec::<PathBuf>::new());
    std::fs::remove_file(script).unwrap();
}

#[test]
fn a_step_that_fails_is_told_in_clear_text_and_only_the_logs_stay() {
    let (demo, script) = demo_of("#!/bin/sh\necho a broken $1\nexit 3\n", "broken");
    let pid = demo.id();
    let output = demo.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("FAILED") && said.contains("exit status: 3") && said.contains("a broken"), "{said}");
    let left = left_of(pid);
    let [dir] = left.as_slice() else { panic!("{left:?}") };
    assert!(
        dir.join("log/frr-bgpd.log").exists()
            && String::from_utf8_lossy(&output.stderr).contains(dir.to_str().unwrap())
    );
    std::fs::remove_dir_all(dir).unwrap();
    std::fs::remove_file(script).unwrap();
}
