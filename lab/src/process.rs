//! A process of a lab: signals, its end, its log.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::sys::{self, Signal};
use crate::wait::{Seen, until};

/// For how long [`Process::load`] watches.
const WATCHED: Duration = Duration::from_secs(5);

/// A process. Clones name the same one; the [`crate::Lab`] ends it.
#[derive(Clone, Debug)]
pub struct Process {
    name: Arc<str>,
    pid: u32,
    child: Arc<Mutex<Child>>,
    log: Arc<Path>,
    /// Octets of the log that were there before it started.
    log_start: usize,
}

impl Process {
    /// `log_start`: how long the log was before it was started.
    pub(crate) fn new(name: &str, child: Child, log: PathBuf, log_start: u64) -> Self {
        let pid = child.id();
        let log_start = usize::try_from(log_start).unwrap_or(usize::MAX);
        Self { name: name.into(), pid, child: Arc::new(Mutex::new(child)), log: log.into(), log_start }
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The CPU time that it has used, milliseconds; the kernel counts in steps of ten.
    ///
    /// # Errors
    /// It has ended.
    pub fn processor_ms(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok());
        field(11).zip(field(12)).map(|(user, system)| (user + system) * 10.0).context("/proc/<pid>/stat")
    }

    /// The CPU time that it takes now, milliseconds a second: it is watched for five of them.
    ///
    /// # Errors
    /// It ends.
    pub fn load(&self) -> Result<f64> {
        let before = self.processor_ms()?;
        std::thread::sleep(WATCHED);
        Ok((self.processor_ms()? - before) / WATCHED.as_secs_f64())
    }

    /// Its process id.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten()
    }

    /// Sends a signal; nothing if it has ended.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // The lock keeps another thread from reaping it: until then nobody else can have its process id.
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        sys::kill(self.pid, signal).with_context(|| format!("send {signal:?} to {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        until(&format!("the end of {}", self.name), limit, || {
            Ok(self.ended().map_or_else(|| Seen::not_yet("it still runs"), Seen::Yes))
        })
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn end(&self, limit: Duration) {
        let _ = self.signal(Signal::Kill);
        let _ = self.wait(limit);
    }

    /// What it wrote so far, since it was started.
    pub fn log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(text.get(self.log_start..).unwrap_or_default()).into_owned()
    }

    /// The last lines that it wrote.
    pub fn tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<_> = log.lines().collect();
        let mut text = all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }
}
