//! A BFD endpoint for the command line: what the router's BFD thread does, without a router.
//!
//! ```text
//! bfd --interface ext0 --remote 169.254.100.150 --min-tx 300 --min-rx 300 --multiplier 5
//! ```
//!
//! Prints one line for every event, with `CLOCK_MONOTONIC` in microseconds, and the counters at the end. Several
//! `--remote` are several sessions, several `--local` as many times more; without `--interface` they go over several hops.
//! Lines on standard input change the running sessions: `set min-tx=50 min-rx=50 multiplier=3`, `admin-down`, `admin-up`,
//! `status`; `quit` or its end stops.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use martlet_bfd::{Auth, AuthKey, AuthKind, SessionConfig, SessionId};
use martlet_router::bfd_io::{BfdHandle, BfdThread, Event, Options, Status, now};
use tokio::io::{AsyncBufReadExt, BufReader};

struct Arguments {
    sessions: Vec<SessionId>,
    config: SessionConfig,
    stall_guard: bool,
}

fn main() -> Result<()> {
    let arguments = parse(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(arguments))
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut config = SessionConfig::default();
    let (mut interface, mut stall_guard) = (None, true);
    let (mut remotes, mut locals) = (Vec::new(), Vec::new());
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "--interface" => interface = Some(Arc::from(value()?)),
            "--remote" => remotes.push(value()?.parse::<IpAddr>().context("--remote")?),
            "--local" => locals.push(Some(value()?.parse::<IpAddr>().context("--local")?)),
            "--passive" => config.passive = true,
            "--no-stall-guard" => stall_guard = false,
            "--unaffiliated" => config.unaffiliated = true,
            "--auth" => config.auth = Some(auth(&value()?)?),
            other => change(&mut config, other.trim_start_matches('-'), &value()?)?,
        }
    }
    if remotes.is_empty() {
        bail!("--remote ADDRESS is missing");
    }
    if locals.is_empty() {
        locals.push(None);
    }
    let interface = &interface;
    let to = |remote| locals.iter().map(move |&local| SessionId { remote, interface: interface.clone(), local });
    Ok(Arguments { sessions: remotes.into_iter().flat_map(to).collect(), config, stall_guard })
}

/// `sha1:7:secret`: kind, key id, secret.
fn auth(text: &str) -> Result<Auth> {
    let mut parts = text.splitn(3, ':');
    let kind = match parts.next() {
        Some("password") => AuthKind::SimplePassword,
        Some("md5") => AuthKind::KeyedMd5,
        Some("meticulous-md5") => AuthKind::MeticulousKeyedMd5,
        Some("sha1") => AuthKind::KeyedSha1,
        Some("meticulous-sha1") => AuthKind::MeticulousKeyedSha1,
        _ => bail!("--auth KIND:ID:SECRET, KIND one of password, md5, meticulous-md5, sha1, meticulous-sha1"),
    };
    let id = parts.next().context("--auth: no key id")?.parse()?;
    let secret = parts.next().context("--auth: no secret")?.into();
    Ok(Auth { kind, keys: vec![AuthKey { id, secret }] })
}

fn change(config: &mut SessionConfig, name: &str, value: &str) -> Result<()> {
    let millis = || -> Result<Duration> { Ok(Duration::from_millis(value.parse().context("milliseconds")?)) };
    match name {
        "min-tx" => config.min_tx = millis()?,
        "min-rx" => config.min_rx = millis()?,
        "multiplier" => config.multiplier = value.parse()?,
        "min-ttl" => config.min_ttl = value.parse()?,
        "echo" => config.echo = Some(millis()?),
        "echo-rx" => config.echo_rx = Some(millis()?),
        _ => bail!("{name}: unknown"),
    }
    Ok(())
}

async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { sessions, mut config, stall_guard } = arguments;
    let seed = now().as_nanos() ^ u64::from(std::process::id()).rotate_left(40);
    let (mut handle, status, mut events) = BfdThread::spawn_with(Options { stall_guard, ..Options::new(seed) })?;
    let wish = |config: &SessionConfig| -> BTreeMap<_, _> {
        sessions.iter().map(|session| (session.clone(), config.clone())).collect()
    };
    handle.set(wish(&config));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => tell(&event),
                None => break,
            },
            line = lines.next_line() => {
                let Some(line) = line? else { break };
                if line == "quit" {
                    break;
                }
                if let Err(error) = obey(&line, &mut config, &handle, &status) {
                    println!("{error:#}");
                }
                handle.set(wish(&config));
            }
        }
    }
    let statistics = handle.statistics();
    drop(handle);
    while let Ok(event) = events.try_recv() {
        tell(&event);
    }
    println!("{statistics:#?}");
    Ok(())
}

fn obey(
    line: &str,
    config: &mut SessionConfig,
    handle: &BfdHandle,
    status: &tokio::sync::watch::Receiver<Status>,
) -> Result<()> {
    let mut words = line.split_whitespace();
    match words.next() {
        Some("set") => words.try_for_each(|word| {
            let (name, value) = word.split_once('=').context("NAME=VALUE is wanted")?;
            change(config, name, value)
        })?,
        Some("admin-down") => config.admin_down = true,
        Some("admin-up") => config.admin_down = false,
        Some("status") => println!("{:#?}\n{:#?}", *status.borrow(), handle.statistics()),
        _ => bail!("{line}: unknown"),
    }
    Ok(())
}

fn tell(event: &Event) {
    let at = now().as_nanos() / 1000;
    match event {
        Event::Changed(change) => println!(
            "{at} {} {:?} -> {:?} ({:?}, remote {:?})",
            change.session, change.from, change.to, change.diagnostic, change.remote_state
        ),
        Event::Stalled(late) => println!("{at} stalled for {late:?}"),
        Event::Problem(problem) => println!("{at} {problem}"),
    }
}
