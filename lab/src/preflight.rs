//! What must be there before anything is made: one clear line if it is not.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};

use crate::peer::frr::DAEMONS;
use crate::sys;

/// Programs and the Debian packages that they come from.
const PROGRAMS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("ping", "iputils-ping"),
    ("tcpdump", "tcpdump"),
    ("vtysh", "frr"),
    ("zebra", "frr"),
];

/// What interoperability needs besides.
const PEERS: [(&str, &str); 9] = [
    ("bird", "bird2"),
    ("birdc", "bird2"),
    ("gobgpd", "gobgpd"),
    ("gobgp", "gobgpd"),
    ("bgpctl", "openbgpd"),
    ("exabgp", "exabgp"),
    ("tshark", "tshark"),
    ("nft", "nftables"),
    ("ss", "iproute2"),
];

/// Root, the right to make namespaces, the programs.
///
/// # Errors
/// Something is missing: one line that says what, and what to do.
pub fn check() -> Result<()> {
    if !sys::is_root() {
        bail!("labs need root (they make network namespaces): run as root");
    }
    let unshared = std::thread::spawn(sys::leave).join();
    if let Ok(Err(error)) = unshared {
        bail!(
            "this machine does not let us make network namespaces ({error}): labs need CAP_SYS_ADMIN and CAP_NET_ADMIN"
        );
    }
    programs(&PROGRAMS)
}

/// The peers of interoperability tests and the tools to look at them.
///
/// # Errors
/// Something is missing: one line that says what, and what to do.
pub fn peers() -> Result<()> {
    programs(&PEERS)
}

fn programs(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|(program, _)| !is_there(program)).collect();
    if !missing.is_empty() {
        let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
        let packages: BTreeSet<_> = missing.iter().map(|(_, package)| *package).collect();
        let packages: Vec<_> = packages.into_iter().collect();
        bail!("missing: {}; run deploy/setup.sh, or `apt-get install {}`", programs.join(", "), packages.join(" "));
    }
    Ok(())
}

fn is_there(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain([DAEMONS]).any(|dir| Path::new(dir).join(program).is_file())
}
