//! What the kernel of a namespace says about its routes, with the time at which it said so (`ip -ts monitor route`).

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::wait::{Seen, until};

/// A stream of route events of a namespace.
#[derive(Debug)]
pub struct RouteMonitor {
    role: String,
    path: PathBuf,
}

/// A route that came, changed or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEvent {
    /// When the kernel's message was read.
    pub at: SystemTime,
    /// It went.
    pub deleted: bool,
    /// The rest of the line, in the words of `ip route`.
    pub route: String,
}

impl RouteMonitor {
    /// Starts it.
    ///
    /// # Errors
    /// `ip` cannot be started.
    pub fn start(lab: &Lab, namespace: &Namespace) -> Result<Self> {
        let name = format!("routes-{}", namespace.role());
        let path = lab.dir().join("log").join(format!("{name}.events"));
        let mut command = Command::new("ip");
        command.args(["-ts", "-o", "monitor", "route"]).env("TZ", "UTC");
        lab.spawn_into(&name, namespace, command, &path)?;
        // It says nothing when it is ready: let it see a route of its own (a table that nobody reads).
        let monitor = Self { role: namespace.role().to_owned(), path };
        until("ip monitor to be ready", crate::wait::LIMIT, || {
            namespace.ip("route replace unreachable 192.0.2.0/24 table 4099")?;
            namespace.ip("route del unreachable 192.0.2.0/24 table 4099")?;
            let seen = monitor.events()?.iter().any(|event| event.deleted && event.route.contains("table 4099"));
            Ok(if seen { Seen::Yes(()) } else { Seen::not_yet("no event") })
        })?;
        Ok(monitor)
    }

    /// All events so far.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub fn events(&self) -> Result<Vec<RouteEvent>> {
        let text = std::fs::read_to_string(&self.path).with_context(|| format!("read {}", self.path.display()))?;
        Ok(parse_all(&text))
    }

    /// Waits for an event at or after `since`.
    ///
    /// # Errors
    /// None within `limit`.
    pub fn wait(
        &self,
        what: &str,
        since: SystemTime,
        limit: Duration,
        matches: impl Fn(&RouteEvent) -> bool,
    ) -> Result<RouteEvent> {
        until(&format!("{what} (ip monitor route in {})", self.role), limit, || {
            let events = self.events()?;
            let found = events.iter().filter(|event| event.at >= since).find(|event| matches(event)).cloned();
            Ok(found.map_or_else(|| Seen::not_yet(format!("{:?}", events.last().map(|e| &e.route))), Seen::Yes))
        })
    }
}

/// The events of what `ip -ts -o monitor route` wrote so far.
pub fn parse_all(text: &str) -> Vec<RouteEvent> {
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(parse).collect()
}

/// `[2026-11-21T08:28:57.123456] Deleted 20.0.0.1 via .. `
fn parse(line: &str) -> Option<RouteEvent> {
    let (stamp, rest) = line.strip_prefix('[')?.split_once(']')?;
    let at = time_of(stamp)?;
    let rest = rest.trim().trim_start_matches("[ROUTE]");
    let (deleted, route) = rest.strip_prefix("Deleted ").map_or((false, rest), |route| (true, route));
    Some(RouteEvent { at, deleted, route: route.trim().to_owned() })
}

/// The time of `2026-11-21T08:28:57.123456` in UTC.
fn time_of(stamp: &str) -> Option<SystemTime> {
    let (date, clock) = stamp.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<u64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (clock, micros) = clock.split_once('.')?;
    let micros: u64 = micros.parse().ok()?;
    let mut clock = clock.splitn(3, ':').map(str::parse::<u64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    // Years begin in March, so that the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    // 1970-01-01 counted the same way.
    let days = days.checked_sub(719_469)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_stamp_is_read_to_the_microsecond() {
        let at = |stamp| time_of(stamp).unwrap().duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(at("1970-01-01T00:00:00.000000"), Duration::ZERO);
        assert_eq!(at("2024-02-29T12:00:00.000001"), Duration::new(1_709_208_000, 1_000));
        assert_eq!(at("2026-11-21T08:28:57.123456"), Duration::new(1_795_249_737, 123_456_000));
    }

    #[test]
    fn a_deleted_route_is_told_from_a_new_one() {
        let event =
            parse("[2026-11-21T08:28:57.123456] Deleted 20.0.0.1 via 169.254.100.1 dev ext0 proto bgp").unwrap();
        assert!(event.deleted);
        assert_eq!(event.route, "20.0.0.1 via 169.254.100.1 dev ext0 proto bgp");
        assert!(!parse("[2026-11-21T08:28:57.123456] 20.0.0.1 dev ext0").unwrap().deleted);
        assert_eq!(parse("garbage"), None);
    }
}
