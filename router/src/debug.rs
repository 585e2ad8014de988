//! `martlet router --debug`: one JSON for whoever is asked for help: version, time, the kernel's whole state, environment.
//!
//! The keys are those of the frontend's own `--debug`. Values of variables that may be secret are blanked. It needs no running
//! router.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use martlet_netlink::Kernel;
use martlet_netlink::kernel::Whole;
use serde_json::{Value, json};

use crate::intent::Settings;
use crate::plan;

/// In the name of a variable whose value nobody else should see.
const SECRETS: [&str; 6] = ["PASS", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "AUTH"];
/// What a blanked value looks like.
const BLANK: &str = "***";

/// The report on this machine.
///
/// # Errors
/// The kernel cannot be asked.
pub async fn report() -> Result<Value> {
    let (mut kernel, _events) = Kernel::open(plan::owner(&Settings::default())).context("cannot open netlink")?;
    let whole = kernel.whole().await.context("cannot read the kernel")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let environment = std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect();
    Ok(compose(now, &whole, &system(), &environment))
}

fn compose(now: u64, whole: &Whole, system: &BTreeMap<&str, String>, environment: &BTreeMap<String, String>) -> Value {
    let shown: BTreeMap<&str, &str> = environment.iter().map(|(name, value)| (&**name, shown(name, value))).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "unix-time": now,
        "network-interfaces": whole.links,
        "rules": whole.rules,
        "routes": whole.routes,
        "neighbors": whole.neighbors,
        "system-information": system,
        "environment-variables": shown,
    })
}

fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    let name = name.to_uppercase();
    // `user:password@host` may stand in any URL.
    let is_secret = SECRETS.iter().any(|word| name.contains(word)) || value.contains("://") && value.contains('@');
    if is_secret && !value.is_empty() { BLANK } else { value }
}

fn system() -> BTreeMap<&'static str, String> {
    let files = [
        ("kernel", "/proc/sys/kernel/osrelease"),
        ("kernel-version", "/proc/sys/kernel/version"),
        ("host-name", "/proc/sys/kernel/hostname"),
        ("uptime-seconds", "/proc/uptime"),
        ("load", "/proc/loadavg"),
    ];
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mut found: BTreeMap<_, _> = files.into_iter().map(|(name, path)| (name, read(path))).collect();
    let status = read("/proc/self/status");
    for (name, key) in [("user-ids", "Uid:"), ("capabilities", "CapEff:")] {
        let value = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        found.insert(name, value.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    found.insert("architecture", std::env::consts::ARCH.into());
    found.insert("processors", std::thread::available_parallelism().map_or(0, usize::from).to_string());
    let complaints = crate::sysctl::complaints(crate::sysctl::read);
    found.insert("sysctls", if complaints.is_empty() { "as needed".into() } else { complaints.join("; ") });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_the_keys_of_the_contract_and_no_secret() {
        let whole = Whole {
            links: vec![[("index", "1".into()), ("name", "lo".into())].into()],
            rules: vec![[("priority", "100".into()), ("from", "20.0.0.1/32".into())].into()],
            routes: vec![[("destination", "default".into()), ("table", "4096".into())].into()],
            neighbors: vec![[("address", "169.254.100.150".into()), ("state", "Reachable".into())].into()],
        };
        let environment = [
            ("NFE_TABLE_ID", "4096"),
            ("BGP_PASSWORD", "hunter2"),
            ("API_TOKEN", "abc"),
            ("PROXY", "http://me:hunter2@proxy"),
            ("EMPTY_KEY", ""),
        ];
        let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let system = [("kernel", "6.18.0".to_owned())].into();
        let text = serde_json::to_string_pretty(&compose(1_700_000_000, &whole, &system, &environment)).unwrap();
        let text = text.replace(&format!("\"{}\"", env!("CARGO_PKG_VERSION")), "\"VERSION\"");
        assert_eq!(text, include_str!("../tests/debug.json").trim_end());
    }

    #[tokio::test]
    async fn a_real_report_shows_the_loopback() {
        let report = report().await.unwrap();
        let links = report["network-interfaces"].as_array().unwrap();
        assert!(links.iter().any(|link| link["name"] == "lo"), "{report:#}");
        assert!(report["unix-time"].as_u64().unwrap() > 1_700_000_000);
    }
}
