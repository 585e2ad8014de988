//! A running `martlet-lab bfd`: its sessions are written into its file, its lines are read as they come.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::endpoint::{Line, Wish, micros_now};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::{LIMIT, Seen, until};

/// The product's end of BFD sessions.
#[derive(Debug)]
pub struct Endpoint {
    /// The process.
    pub process: Process,
    sessions: PathBuf,
    output: PathBuf,
    offset: u64,
    rest: String,
    lines: Vec<Line>,
}

impl Endpoint {
    /// Starts it with these sessions. `program`: the binary `martlet-lab`; `name` is its name in the lab.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        lab: &Lab,
        namespace: &Namespace,
        program: &Path,
        name: &str,
        wishes: &[Wish],
        flags: &[&str],
    ) -> Result<Self> {
        let sessions = lab.dir().join(format!("{name}.json"));
        let output = lab.dir().join("log").join(format!("{name}.lines"));
        write(&sessions, wishes)?;
        let mut command = Command::new(program);
        command.arg("bfd").arg("--sessions").arg(&sessions).args(flags);
        let process = lab.spawn_into(name, namespace, command, &output)?;
        Ok(Self { process, sessions, output, offset: 0, rest: String::new(), lines: Vec::new() })
    }

    /// Changes the sessions: all of them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, wishes: &[Wish]) -> Result<()> {
        write(&self.sessions, wishes)
    }

    /// Everything told so far.
    ///
    /// # Errors
    /// It has ended, or told something else.
    pub fn lines(&mut self) -> Result<&[Line]> {
        let mut file = File::open(&self.output)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.read_to_string(&mut self.rest)?;
        self.offset += u64::try_from(read)?;
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        for line in self.rest.drain(..whole).as_str().lines() {
            self.lines.push(serde_json::from_str(line).with_context(|| format!("a line of the endpoint: {line}"))?);
        }
        if let Some(status) = self.process.ended().filter(|status| !status.success()) {
            bail!("the endpoint ended: {status}: {}", self.process.tail(5));
        }
        Ok(&self.lines)
    }

    /// The last state of a session that was told.
    ///
    /// # Errors
    /// As [`Self::lines`].
    pub fn state(&mut self, session: &str) -> Result<String> {
        let lines = self.lines()?.iter().rev();
        let state = lines.filter_map(|line| match line {
            Line::Changed { session: of, to, .. } if of == session => Some(to.clone()),
            _ => None,
        });
        Ok(state.into_iter().next().unwrap_or_else(|| String::from("Down")))
    }

    /// Waits until all of these sessions are Up.
    ///
    /// # Errors
    /// One is not, within [`LIMIT`].
    pub fn wait_up(&mut self, sessions: &[&str]) -> Result<()> {
        until(&format!("{} to be Up", sessions.join(", ")), LIMIT, || {
            let states = sessions.iter().map(|session| self.state(session)).collect::<Result<Vec<_>>>()?;
            let up = states.iter().all(|state| state == "Up");
            Ok(if up { Seen::Yes(()) } else { Seen::not_yet(format!("{states:?}")) })
        })
    }

    /// Waits for a change of a session at or after `since_us` to `to`; gives when, and the diagnostic.
    ///
    /// # Errors
    /// None within [`LIMIT`].
    pub fn wait_change(&mut self, session: &str, since_us: u64, to: &str) -> Result<(u64, String)> {
        until(&format!("{session} to become {to}"), LIMIT, || {
            let changes = self.changes(session, since_us)?;
            let found = changes.iter().find(|change| change.1 == to).map(|change| (change.0, change.2.clone()));
            Ok(found.map_or_else(|| Seen::not_yet(format!("{changes:?}")), Seen::Yes))
        })
    }

    /// The changes of a session at or after `since_us`: when, to which state, the diagnostic.
    ///
    /// # Errors
    /// As [`Self::lines`].
    pub fn changes(&mut self, session: &str, since_us: u64) -> Result<Vec<(u64, String, String)>> {
        let changes = self.lines()?.iter().filter_map(|line| match line {
            Line::Changed { at_us, session: of, to, diagnostic, .. } if of == session && *at_us >= since_us => {
                Some((*at_us, to.clone(), diagnostic.clone()))
            }
            _ => None,
        });
        Ok(changes.collect())
    }

    /// How many sessions are Up.
    ///
    /// # Errors
    /// As [`Self::lines`].
    pub fn up(&mut self) -> Result<usize> {
        let states: BTreeMap<&str, &str> = self
            .lines()?
            .iter()
            .filter_map(|line| match line {
                Line::Changed { session, to, .. } => Some((session.as_str(), to.as_str())),
                _ => None,
            })
            .collect();
        Ok(states.values().filter(|state| **state == "Up").count())
    }

    /// How often any session left Up at or after `since_us` for this reason.
    ///
    /// # Errors
    /// As [`Self::lines`].
    pub fn downs_because(&mut self, since_us: u64, why: &str) -> Result<usize> {
        let is_down = |line: &&Line| matches!(line, Line::Changed { at_us, from, diagnostic, .. } if from == "Up" && *at_us >= since_us && diagnostic == why);
        Ok(self.lines()?.iter().filter(is_down).count())
    }

    /// How often any session left Up at or after `since_us`.
    ///
    /// # Errors
    /// As [`Self::lines`].
    pub fn downs(&mut self, since_us: u64) -> Result<usize> {
        let is_down =
            |line: &&Line| matches!(line, Line::Changed { at_us, from, .. } if from == "Up" && *at_us >= since_us);
        Ok(self.lines()?.iter().filter(is_down).count())
    }

    /// The negotiated transmit interval and Detection Time that were told last of a session.
    ///
    /// # Errors
    /// As [`Self::lines`].
    pub fn negotiated(&mut self, session: &str) -> Result<(Duration, Duration)> {
        let told = self.lines()?.iter().rev().find_map(|line| match line {
            Line::Status { session: of, transmit_interval_us, detection_time_us, .. } if of == session => {
                Some((Duration::from_micros(*transmit_interval_us), Duration::from_micros(*detection_time_us)))
            }
            _ => None,
        });
        told.with_context(|| format!("nothing was told of {session}"))
    }

    /// Waits until these are the negotiated values of all of these sessions.
    ///
    /// # Errors
    /// They are not, within [`LIMIT`].
    pub fn wait_negotiated(&mut self, sessions: &[&str], transmit_ms: u64, detection_ms: u64) -> Result<()> {
        let wanted = (Duration::from_millis(transmit_ms), Duration::from_millis(detection_ms));
        until("the negotiated intervals", LIMIT, || {
            let told = sessions.iter().map(|session| self.negotiated(session)).collect::<Result<Vec<_>>>()?;
            let all = told.iter().all(|told| *told == wanted);
            Ok(if all { Seen::Yes(()) } else { Seen::not_yet(format!("{told:?}, wanted {wanted:?}")) })
        })
    }

    /// Waits for counters that were taken after now.
    ///
    /// # Errors
    /// None come.
    pub fn counters(&mut self) -> Result<Line> {
        let since = micros_now();
        until("counters", LIMIT, || {
            let fresh = |line: &&Line| matches!(line, Line::Counters { at_us, .. } if *at_us >= since);
            Ok(self.lines()?.iter().rev().find(fresh).cloned().map_or_else(|| Seen::not_yet("old ones"), Seen::Yes))
        })
    }

    /// The time of the lines.
    pub fn now_us() -> u64 {
        micros_now()
    }
}

/// Whoever reads the file sees the old or the new one.
fn write(path: &Path, wishes: &[Wish]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_string(wishes)?)?;
    fs::rename(&new, path).with_context(|| format!("write {}", path.display()))
}
