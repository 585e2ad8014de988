//! A network namespace: run `ip`, set a sysctl, run a closure or a program in it; ports of a bridge that can be cut.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::sys;
use crate::wait::{LIMIT, Seen, until};

/// A named network namespace. Clones name the same one; the [`crate::Lab`] removes it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    role: Arc<str>,
    file: Arc<File>,
}

/// How a port of a bridge is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Frames vanish in both directions; both ends keep their carrier.
    Silent,
    /// The end at this port loses its carrier; the other ends of the bridge keep theirs.
    Carrier,
}

impl Namespace {
    /// Opens the namespace of that name under `/run/netns`.
    pub(crate) fn open(name: &str, role: &str) -> Result<Self> {
        let path = PathBuf::from("/run/netns").join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { name: name.into(), role: role.into(), file: Arc::new(file) })
    }

    /// Its name, as `ip -n` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it plays in its lab.
    pub fn role(&self) -> &str {
        &self.role
    }

    pub(crate) fn descriptor(&self) -> Result<OwnedFd> {
        Ok(self.file.as_fd().try_clone_to_owned()?)
    }

    /// Runs a closure on a thread in the namespace. Sockets that it opens stay in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| sys::enter(self.file.as_fd()).map(|()| work()));
            match thread.join() {
                Ok(result) => result.with_context(|| format!("enter the namespace {}", self.name)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs a program in the namespace to its end. The output is returned whatever the exit status.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        sys::confine(&mut command, Some(self.descriptor()?), false);
        command.output().with_context(|| format!("start {program}"))
    }

    /// As [`Self::run`], for its standard output.
    ///
    /// # Errors
    /// It cannot be started, or its exit status is not 0.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.run(program, arguments)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {} in {}: {}: {}", arguments.join(" "), self.role, output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs one `ip` command, or several on a line each, in the namespace.
    ///
    /// # Errors
    /// One of them fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.ip_batch(&[], lines)
    }

    /// As [`Self::ip`] with `-6`, which rules need.
    ///
    /// # Errors
    /// One of them fails.
    pub fn ip6(&self, lines: &str) -> Result<()> {
        self.ip_batch(&["-6"], lines)
    }

    fn ip_batch(&self, flags: &[&str], lines: &str) -> Result<()> {
        let mut ip = self.ip_waiting(flags)?;
        ip.tell(lines)?;
        ip.end().with_context(|| lines.to_owned())
    }

    /// An `ip` that runs already: what it is told is done at once, where a new process takes milliseconds.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ip_waiting(&self, flags: &[&str]) -> Result<WaitingIp> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name])
            .args(flags)
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip")?;
        let stdin = child.stdin.take().context("ip without standard input")?;
        Ok(WaitingIp { role: Arc::clone(&self.role), stdin, child })
    }

    /// The answer of `ip -j <arguments>` in the namespace; an empty answer is an empty list.
    ///
    /// # Errors
    /// `ip` fails, or does not answer in JSON.
    pub fn ip_json(&self, arguments: &[&str]) -> Result<Vec<serde_json::Value>> {
        let text = self.output("ip", &[&["-j"], arguments].concat())?;
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_str(&text).with_context(|| format!("ip -j {}: {text}", arguments.join(" ")))
    }

    /// Waits until these interfaces have carrier and an IPv6 link-local address that can be used.
    ///
    /// # Errors
    /// One has not, within [`LIMIT`].
    pub fn wait_for_links(&self, interfaces: &[&str]) -> Result<()> {
        let waits = |found: &serde_json::Value| {
            let state = found.get("operstate").and_then(serde_json::Value::as_str).unwrap_or_default();
            let addresses = found.get("addr_info").and_then(serde_json::Value::as_array);
            let usable = |address: &serde_json::Value| {
                address.get("scope").is_some_and(|scope| scope == "link") && address.get("tentative").is_none()
            };
            state != "UP" || !addresses.into_iter().flatten().any(usable)
        };
        for interface in interfaces {
            until(&format!("the link {interface} of {}", self.role), LIMIT, || {
                let found = self.ip_json(&["address", "show", "dev", interface])?;
                let ready = found.first().is_some_and(|found| !waits(found));
                Ok(if ready { Seen::Yes(()) } else { Seen::not_yet(format!("{found:?}")) })
            })?;
        }
        Ok(())
    }

    /// The routes of a table, `-4` or `-6`; a table that does not exist is empty.
    ///
    /// # Errors
    /// `ip` cannot be run.
    pub fn routes(&self, family: &str, table: &str) -> Result<Vec<serde_json::Value>> {
        let output = self.run("ip", &["-j", family, "route", "show", "table", table])?;
        if !output.status.success() || output.stdout.trim_ascii().is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("ip -j {family} route show table {table}"))
    }

    /// Sets a sysctl, such as `net.ipv4.conf.all.forwarding`.
    ///
    /// # Errors
    /// It does not exist, or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.inside(|| fs::write(&path, value))?
            .with_context(|| format!("set the sysctl {key}={value} in {}", self.role))
    }

    /// Makes a bridge that forwards at once, and puts the given interfaces in it.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn bridge(&self, name: &str, ports: &[&str]) -> Result<()> {
        let mut lines = vec![format!("link add {name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0")];
        lines.extend(ports.iter().map(|port| format!("link set {port} master {name}")));
        lines.push(format!("link set {name} up"));
        self.ip(&lines.join("\n"))
    }

    /// Cuts a port of a bridge in this namespace.
    ///
    /// # Errors
    /// `ip` or `bridge` refuses.
    pub fn cut(&self, port: &str, how: Cut) -> Result<()> {
        match how {
            Cut::Silent => self.port_state(port, "disabled"),
            Cut::Carrier => self.ip(&format!("link set {port} down")),
        }
    }

    /// Mends what [`Self::cut`] cut.
    ///
    /// # Errors
    /// `ip` or `bridge` refuses.
    pub fn mend(&self, port: &str) -> Result<()> {
        self.ip(&format!("link set {port} up"))?;
        // The bridge refuses ("Network is down") until it has seen the carrier.
        until(&format!("the port {port} to forward"), LIMIT, || {
            Ok(self.port_state(port, "forwarding").map_or_else(|error| Seen::not_yet(error.to_string()), Seen::Yes))
        })
    }

    fn port_state(&self, port: &str, state: &str) -> Result<()> {
        self.output("bridge", &["link", "set", "dev", port, "state", state]).map(drop)
    }
}

/// An `ip` in a namespace that waits for what it is told. It ends when this is dropped.
#[derive(Debug)]
pub struct WaitingIp {
    role: Arc<str>,
    stdin: ChildStdin,
    child: Child,
}

impl WaitingIp {
    /// Tells it to run one command, or several on a line each; does not wait for it.
    ///
    /// # Errors
    /// It has ended.
    pub fn tell(&mut self, lines: &str) -> Result<()> {
        self.stdin.write_all(format!("{lines}\n").as_bytes()).with_context(|| format!("tell ip in {}", self.role))
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// A command failed.
    pub fn end(self) -> Result<()> {
        drop(self.stdin);
        let output = self.child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip in {}: {}", self.role, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// Runs `ip` outside of any lab's namespace.
///
/// # Errors
/// It cannot be started, or fails.
pub fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output().context("start ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
