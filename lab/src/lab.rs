//! A lab: a name, a run folder, the namespaces and processes made in it, and the promise that nothing of it stays.
//!
//! It is cleaned up when dropped (a panic drops it too) and on SIGINT, SIGTERM and SIGHUP; what a SIGKILL leaves behind is swept by
//! the next lab, which reads the owner's process id from the names (see [`crate::sweep`]). It knows nothing of peers or products.

use std::collections::hash_map::RandomState;
use std::fmt::Write;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::namespace::{Namespace, ip};
use crate::process::Process;
use crate::{sweep, sys};

/// How the names of all labs begin: `mlab-<pid>-<hex>-<role>`.
pub const PREFIX: &str = "mlab-";

/// All living labs of this process, for the thread that waits for signals.
static LABS: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// What to do with a lab at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Remove everything.
    Remove,
    /// Leave it running, for a human; `martlet-lab clean` removes it.
    Keep,
}

/// A lab. See the module.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    dir: PathBuf,
    end: End,
    failed: AtomicBool,
    interrupted: AtomicBool,
    closed: AtomicBool,
    closing: Once,
    namespaces: Mutex<Vec<String>>,
    processes: Mutex<Vec<Process>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lab {
    /// Makes a lab, after a sweep of those whose owner is dead.
    ///
    /// # Errors
    /// The run folder cannot be made.
    pub fn new(end: End) -> Result<Self> {
        sweep::sweep(sweep::Depth::Dead, None)?;
        let random = RandomState::new().build_hasher().finish() & 0xffff;
        let name = format!("{PREFIX}{}-{random:04x}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir(&dir).with_context(|| format!("make the run folder {}", dir.display()))?;
        fs::create_dir(dir.join("log"))?;
        fs::write(dir.join(sweep::OWNER), sweep::owner_of(std::process::id()).unwrap_or_default())?;
        let shared = Arc::new(Shared {
            name,
            dir,
            end,
            failed: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            closing: Once::new(),
            namespaces: Mutex::default(),
            processes: Mutex::default(),
        });
        lock(&LABS).push(Arc::downgrade(&shared));
        watch_signals();
        Ok(Self { shared })
    }

    /// Its name, with which the names of its namespaces begin.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its run folder. Logs are in `log/`.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Says that something failed: the run folder with its logs stays.
    ///
    /// What fails because a signal ends everything is no failure: then the thread waits for the end of the process.
    pub fn mark_failed(&self) {
        while self.shared.interrupted.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.shared.failed.store(true, Ordering::Relaxed);
    }

    /// Makes a network namespace, loopback up, IPv6 without duplicate address detection.
    ///
    /// # Errors
    /// `ip` refuses, or the lab is being cleaned up.
    pub fn namespace(&self, role: &str) -> Result<Namespace> {
        let name = format!("{}-{role}", self.shared.name);
        {
            let mut namespaces = lock(&self.shared.namespaces);
            if self.shared.closed.load(Ordering::SeqCst) {
                bail!("the lab {} is being cleaned up", self.shared.name);
            }
            // Noted first: a half made one is removed too.
            namespaces.push(name.clone());
            ip(&["netns", "add", &name])?;
        }
        let namespace = Namespace::open(&name, role)?;
        namespace.ip("link set lo up")?;
        for kind in ["all", "default"] {
            namespace.sysctl(&format!("net.ipv6.conf.{kind}.accept_dad"), "0")?;
            namespace.sysctl(&format!("net.ipv4.conf.{kind}.rp_filter"), "0")?;
        }
        Ok(namespace)
    }

    /// Links two namespaces by a veth pair, both ends up.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn link(&self, a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<()> {
        ip(&["link", "add", a.1, "netns", a.0.name(), "type", "veth", "peer", "name", b.1, "netns", b.0.name()])?;
        a.0.ip(&format!("link set {} up", a.1))?;
        b.0.ip(&format!("link set {} up", b.1))
    }

    /// Starts a process that lives as long as the lab; its output is appended to `log/<name>.log`.
    ///
    /// # Errors
    /// The program cannot be started, or the lab is being cleaned up.
    pub fn spawn(&self, name: &str, namespace: Option<&Namespace>, mut command: Command) -> Result<Process> {
        let log = self.dir().join("log").join(format!("{name}.log"));
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        self.spawn_to(name, namespace, command.stdout(output.try_clone()?).stderr(output), log)
    }

    /// As [`Self::spawn`], with standard output in a file of its own.
    ///
    /// # Errors
    /// The program cannot be started, or the lab is being cleaned up.
    pub fn spawn_into(&self, name: &str, ns: &Namespace, mut command: Command, output: &Path) -> Result<Process> {
        let log = self.dir().join("log").join(format!("{name}.log"));
        let errors = OpenOptions::new().create(true).append(true).open(&log)?;
        self.spawn_to(name, Some(ns), command.stdout(File::create(output)?).stderr(errors), log)
    }

    fn spawn_to(&self, name: &str, ns: Option<&Namespace>, command: &mut Command, log: PathBuf) -> Result<Process> {
        // A process group of its own: Ctrl-C reaches us alone, and we end the others in good order.
        command.stdin(Stdio::null()).process_group(0);
        let namespace = ns.map(Namespace::descriptor).transpose()?;
        sys::confine(command, namespace, self.shared.end == End::Remove);
        let mut processes = lock(&self.shared.processes);
        if self.shared.closed.load(Ordering::SeqCst) {
            bail!("the lab {} is being cleaned up", self.shared.name);
        }
        let log_start = fs::metadata(&log).map_or(0, |data| data.len());
        let child = command.spawn().with_context(|| format!("start {name} ({})", command.get_program().display()))?;
        let process = Process::new(name, child, log, log_start);
        processes.push(process.clone());
        Ok(process)
    }

    /// The last lines of every log, and which processes have ended.
    pub fn tails(&self, lines: usize) -> String {
        let mut text = String::new();
        let mut shown = std::collections::BTreeSet::new();
        for process in lock(&self.shared.processes).iter().rev() {
            if !shown.insert(process.name().to_owned()) {
                continue;
            }
            let state = process.ended().map_or_else(|| "running".to_owned(), |status| status.to_string());
            let tail = process.tail(lines);
            if !tail.is_empty() || process.ended().is_some() {
                let _ = write!(text, "--- {} ({state}):\n{tail}", process.name());
            }
        }
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.mark_failed();
        }
        self.shared.close(self.shared.end);
    }
}

impl Shared {
    /// Ends the lab. Who calls second waits for the first.
    fn close(&self, end: End) {
        self.closing.call_once(|| {
            self.closed.store(true, Ordering::SeqCst);
            if end == End::Keep {
                // Its owner is about to end; without the mark the next lab would sweep it.
                let _ = fs::write(self.dir.join(sweep::KEPT), "");
                return;
            }
            for process in lock(&self.processes).drain(..).rev() {
                process.end(Duration::from_secs(2));
            }
            let names = std::mem::take(&mut *lock(&self.namespaces));
            if let Err(error) = sweep::remove_namespaces(&names) {
                eprintln!("martlet-lab: cleaning up {}: {error:#}", self.name);
            }
            if self.failed.load(Ordering::Relaxed) {
                let _ = fs::write(self.dir.join(sweep::FAILED), "");
                eprintln!("martlet-lab: the logs are in {}", self.dir.display());
            } else {
                let _ = fs::remove_dir_all(&self.dir);
            }
        });
    }
}

/// Starts, once, the thread that cleans up on SIGINT, SIGTERM and SIGHUP and then ends the process.
fn watch_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (ready, started) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            let number = runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) =
                    (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
                else {
                    return None;
                };
                let _ = ready.send(());
                tokio::select! {
                    biased;
                    _ = interrupt.recv() => Some(SignalKind::interrupt().as_raw_value()),
                    _ = terminate.recv() => Some(SignalKind::terminate().as_raw_value()),
                    _ = hangup.recv() => Some(SignalKind::hangup().as_raw_value()),
                }
            });
            let Some(number) = number else { return };
            eprintln!("\nmartlet-lab: interrupted, cleaning up");
            let labs: Vec<_> = lock(&LABS).iter().filter_map(Weak::upgrade).collect();
            for lab in labs {
                lab.interrupted.store(true, Ordering::SeqCst);
                lab.close(End::Remove);
            }
            std::process::exit(128 + number);
        });
        // From here on a signal is handled: no namespace exists before that.
        let _ = started.recv();
    });
}
