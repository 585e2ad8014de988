//! Removes what labs leave behind: processes in their namespaces, the namespaces, FRR's state folders, run folders.
//!
//! Everything of a lab carries the process id of its owner in its name; the run folder says when that process started, so that
//! a process id that was given to another does not protect a dead lab.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::lab::PREFIX;
use crate::namespace::ip;
use crate::sys::{self, Signal};

/// In a run folder: who owns the lab ([`owner_of`]).
pub const OWNER: &str = "owner";
/// In a run folder: the lab was left up on purpose.
pub const KEPT: &str = "kept";
/// In a run folder: the lab failed, its logs stay.
pub const FAILED: &str = "failed";

const NAMESPACES: &str = "/run/netns";
const FRR_STATE: &str = "/var/run/frr";

/// How much a sweep removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Labs whose owner is dead; those kept on purpose and the logs of failed ones stay.
    Dead,
    /// Those too.
    Everything,
}

/// Removes the labs whose owner is dead, or only the one of this name. Returns their names.
///
/// # Errors
/// A folder cannot be read, or a namespace cannot be removed.
pub fn sweep(depth: Depth, only: Option<&str>) -> Result<BTreeSet<String>> {
    let temp = std::env::temp_dir();
    let mut labs = BTreeSet::new();
    let namespaces = names_in(Path::new(NAMESPACES));
    labs.extend(namespaces.iter().filter_map(|name| lab_of(name)));
    labs.extend(names_in(&temp).iter().filter_map(|name| lab_of(name)));
    labs.retain(|lab| {
        if only.is_some_and(|only| only != lab) {
            return false;
        }
        let dir = temp.join(lab);
        let kept = dir.join(KEPT).exists();
        // The owner of a kept lab is done with it, whether it still runs or not.
        if kept { depth == Depth::Everything } else { !is_alive(lab, &dir) }
    });
    for lab in &labs {
        let own: Vec<_> = namespaces.iter().filter(|name| lab_of(name).as_ref() == Some(lab)).cloned().collect();
        remove_namespaces(&own)?;
        let dir = temp.join(lab);
        if depth == Depth::Everything || !dir.join(FAILED).exists() {
            // Another sweep may have been quicker.
            let _ = fs::remove_dir_all(dir);
        }
    }
    Ok(labs)
}

/// Kills what runs in the namespaces, removes them and FRR's folders of the same names.
///
/// # Errors
/// A namespace is still there afterwards.
pub fn remove_namespaces(names: &[String]) -> Result<()> {
    for name in names {
        kill_in(name);
    }
    for name in names {
        let _ = fs::remove_dir_all(Path::new(FRR_STATE).join(name));
        if let Err(error) = ip(&["netns", "delete", name])
            && Path::new(NAMESPACES).join(name).exists()
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Kills what runs in a namespace, until nobody is left there.
pub(crate) fn kill_in(name: &str) {
    // What was started a moment ago may start another: look again until nobody is left.
    for _ in 0..50 {
        let pids = pids_in(&Path::new(NAMESPACES).join(name));
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            let _ = sys::kill(pid, Signal::Kill);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Process id and start time (clock ticks since boot) of a living process: what an owner is known by.
pub fn owner_of(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; after it the state is field 3, the start time field 22.
    let (_, rest) = stat.rsplit_once(')')?;
    let since = rest.split_ascii_whitespace().nth(19)?;
    Some(format!("{pid} {since}"))
}

/// `mlab-12-ab34` of `mlab-12-ab34-gateway`.
fn lab_of(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix(PREFIX)?.splitn(3, '-');
    let (pid, random) = (parts.next()?, parts.next()?);
    pid.parse::<u32>().ok()?;
    Some(format!("{PREFIX}{pid}-{random}"))
}

fn is_alive(lab: &str, dir: &Path) -> bool {
    let pid = lab.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse().ok());
    let Some(now) = pid.and_then(owner_of) else { return false };
    // Without the file the lab is just being made, or its folder is gone: the process id alone decides.
    fs::read_to_string(dir.join(OWNER)).map_or(true, |owner| owner.is_empty() || owner == now)
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The processes whose network namespace is the one mounted at `path`.
fn pids_in(path: &Path) -> Vec<u32> {
    use std::os::unix::fs::MetadataExt;
    let Ok(wanted) = fs::metadata(path) else { return Vec::new() };
    let is_in = |pid: &u32| {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        fs::metadata(path).is_ok_and(|found| found.ino() == wanted.ino() && found.dev() == wanted.dev())
    };
    let own = std::process::id();
    names_in(Path::new("/proc"))
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(|pid| *pid != own)
        .filter(is_in)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_is_read_from_the_name_of_a_namespace() {
        assert_eq!(lab_of("mlab-12-ab34-gateway"), Some("mlab-12-ab34".to_owned()));
        assert_eq!(lab_of("mlab-12-ab34"), Some("mlab-12-ab34".to_owned()));
        assert_eq!(lab_of("mlab-x-ab34"), None);
        assert_eq!(lab_of("cni-1234"), None);
    }

    #[test]
    fn a_process_id_that_was_given_to_another_does_not_protect_a_dead_lab() {
        let dir = std::env::temp_dir().join(format!("martlet-sweep-test-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let lab = format!("{PREFIX}{}-0000", std::process::id());
        fs::write(dir.join(OWNER), owner_of(std::process::id()).unwrap()).unwrap();
        assert!(is_alive(&lab, &dir));
        fs::write(dir.join(OWNER), format!("{} 1", std::process::id())).unwrap();
        assert!(!is_alive(&lab, &dir));
        fs::remove_dir_all(&dir).unwrap();
    }
}
