//! A network namespace for each test: a thread that leaves the machine's namespace, and with it whatever it starts.
#![expect(unsafe_code, reason = "unshare and geteuid are C functions without pointers")]

use std::io::Write;
use std::process::Command;
use std::thread;

use tokio::runtime;

/// Plays in a network namespace of its own, which goes when the thread ends. As root it must be possible; without
/// root it cannot be, and the test says what it did not run.
pub fn in_namespace(play: impl AsyncFnOnce() + Send) {
    // SAFETY: takes nothing and changes nothing.
    if unsafe { libc::geteuid() } != 0 {
        let name = thread::current().name().unwrap_or("a test").to_owned();
        // Not `eprintln`: the test harness would keep it to itself.
        let _ = writeln!(std::io::stderr(), "{name}: NOT RUN, it needs root to make a network namespace");
        return;
    }
    thread::scope(|scope| {
        let actor = scope.spawn(|| {
            // SAFETY: takes no pointer; only this thread changes its namespace.
            let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(unshared, 0, "no network namespace as root: {}", std::io::Error::last_os_error());
            ip("link set lo up");
            runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(play());
        });
        if let Err(panic) = actor.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs `ip` with these arguments and returns what it prints; it must succeed.
pub fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// Runs a program in the namespace of the calling thread and returns what it prints; it must succeed.
pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect(program);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
