//! The file of `martlet speaker`: parsed once into a value that cannot be wrong.
//!
//! It knows the file's words and the speaker's configuration; it opens nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use martlet_bgp::{
    Export, Family, GracefulRestart, HoldTime, Import, NeighborConfig, NeighborId, PrefixLimit, PrefixRange,
};
use serde::Deserialize;

/// A file larger than this is refused, octets.
const MAX_FILE: u64 = 64 << 20;

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(rename = "localASN")]
    local_asn: u32,
    router_id: Ipv4Addr,
    #[serde(default)]
    listen: Vec<Listen>,
    #[serde(default)]
    neighbors: Vec<Neighbor>,
    #[serde(default)]
    originate: Vec<IpNet>,
    kernel_table: Option<u32>,
}

/// An address and a port to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// The address.
    pub address: IpAddr,
    /// The port; 179 if not said.
    #[serde(default = "bgp_port")]
    pub port: u16,
}

const fn bgp_port() -> u16 {
    179
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
struct Neighbor {
    address: String,
    #[serde(rename = "remoteASN")]
    remote_asn: Option<u32>,
    #[serde(default = "bgp_port")]
    port: u16,
    #[serde(default)]
    passive: bool,
    hold_time: Option<String>,
    families: Option<BTreeSet<FamilyName>>,
    password: Option<String>,
    #[serde(default)]
    import: Policy,
    #[serde(default)]
    export: Policy,
    local_address: Option<IpAddr>,
    multihop: Option<Multihop>,
    bfd: Option<BfdFile>,
    maximum_prefixes: Option<u32>,
    kernel_table: Option<u32>,
    #[serde(default)]
    route_reflector_client: bool,
    graceful_restart: Option<String>,
    long_lived_stale_time: Option<String>,
    #[serde(default)]
    add_path_receive: bool,
    #[serde(default)]
    disable_family_on_error: bool,
    #[serde(default)]
    dynamic: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FamilyName {
    Ipv4,
    Ipv6,
}

impl From<FamilyName> for Family {
    fn from(name: FamilyName) -> Self {
        match name {
            FamilyName::Ipv4 => Self::Ipv4,
            FamilyName::Ipv6 => Self::Ipv6,
        }
    }
}

/// `true`, or how many hops away the neighbour may be.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Multihop {
    Any(bool),
    Hops(u8),
}

impl Multihop {
    fn parse(self) -> anyhow::Result<Option<u8>> {
        match self {
            Self::Any(any) => Ok(any.then_some(u8::MAX)),
            Self::Hops(0) => bail!("multihop: 0; accepted: true, false, 1 to 255"),
            Self::Hops(hops) => Ok(Some(hops)),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Policy {
    #[default]
    Absent,
    Word(String),
    List(Vec<IpNet>),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BfdFile {
    min_tx: String,
    min_rx: String,
    multiplier: u8,
}

/// What the file says.
#[derive(Debug, PartialEq, Eq)]
pub struct Config {
    /// Our AS number.
    pub local_asn: u32,
    /// Our router id.
    pub router_id: Ipv4Addr,
    /// Where to listen.
    pub listen: BTreeSet<Listen>,
    /// The neighbours by address.
    pub neighbors: BTreeMap<NeighborId, NeighborFile>,
    /// Prefixes to announce.
    pub originate: BTreeSet<IpNet>,
    /// The kernel table that learned routes are written to, if any.
    pub kernel_table: Option<u32>,
}

/// One neighbour: what the speaker knows, and how it is reached.
#[derive(Debug, PartialEq, Eq)]
pub struct NeighborFile {
    /// Its address, or (dynamic) the prefix that it comes from.
    pub address: IpNet,
    /// Whether any address of the prefix may connect.
    pub dynamic: bool,
    /// Its port.
    pub port: u16,
    /// TCP MD5.
    pub password: Option<String>,
    /// Our address.
    pub local_address: Option<IpAddr>,
    /// TTL of a multihop session.
    pub multihop: Option<u8>,
    /// The kernel table that its routes are written to; else the file's.
    pub kernel_table: Option<u32>,
    /// BFD: least transmit and receive intervals, multiplier.
    pub bfd: Option<(Duration, Duration, u8)>,
    /// The speaker's part.
    pub config: NeighborConfig,
}

impl Config {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// Names the file, the key and what would be accepted.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let size = std::fs::metadata(path).with_context(|| format!("{}", path.display()))?.len();
        ensure!(size <= MAX_FILE, "{}: {size} octets, at most {MAX_FILE}", path.display());
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}", path.display()))
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// Names the key and what would be accepted.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let file: File = serde_saphyr::from_str(text)?;
        ensure!(file.local_asn != 0, "localASN: 0 is reserved; accepted: 1 to 4294967295");
        ensure!(!file.router_id.is_unspecified(), "routerId: 0.0.0.0 is not an identifier; accepted: any other");
        let mut neighbors = BTreeMap::new();
        for (index, neighbor) in file.neighbors.into_iter().enumerate() {
            let address = neighbor.address.clone();
            let parsed = neighbor.parse(file.local_asn).with_context(|| format!("neighbors[{index}] {address}"))?;
            ensure!(
                neighbors.insert(NeighborId::new(&address), parsed).is_none(),
                "neighbors[{index}]: {address} stands twice"
            );
        }
        let tables: BTreeSet<u32> =
            neighbors.values().filter_map(|one: &NeighborFile| one.kernel_table).chain(file.kernel_table).collect();
        ensure!(tables.len() <= 1, "kernelTable: {tables:?}; accepted: one table for all that have one");
        ensure!(!tables.contains(&0), "kernelTable: 0 is no table; accepted: 1 to 4294967295");
        Ok(Self {
            local_asn: file.local_asn,
            router_id: file.router_id,
            listen: file.listen.into_iter().collect(),
            neighbors,
            originate: file.originate.into_iter().map(|prefix| prefix.trunc()).collect(),
            kernel_table: file.kernel_table,
        })
    }
}

impl Neighbor {
    fn parse(self, local_asn: u32) -> anyhow::Result<NeighborFile> {
        let address = prefix("address", &self.address)?;
        let is_host = address.prefix_len() == address.max_prefix_len();
        ensure!(self.dynamic || is_host, "address: {address} is a prefix; accepted: an address, or `dynamic: true`");
        ensure!(self.dynamic || self.remote_asn.is_some(), "remoteASN: missing; accepted: 1 to 4294967295");
        ensure!(self.remote_asn != Some(0), "remoteASN: 0 is reserved; accepted: 1 to 4294967295");
        let families: BTreeSet<Family> = match self.families {
            Some(names) => names.into_iter().map(Family::from).collect(),
            None => [Family::of(&address)].into(),
        };
        ensure!(!families.is_empty(), "families: empty; accepted: ipv4, ipv6");
        let mut config = NeighborConfig::new(local_asn, self.remote_asn.unwrap_or(local_asn), families);
        config.remote_as = self.remote_asn;
        config.passive = self.passive || self.dynamic;
        config.hold_time = hold_time(self.hold_time.as_deref())?;
        config.import = self.import.parse("import")?;
        config.export = Export { own: true, transit: self.export.parse("export")?, ..Export::default() };
        config.route_reflector_client = self.route_reflector_client;
        config.maximum_prefixes =
            self.maximum_prefixes.map(|maximum| PrefixLimit { maximum, warning_percent: 75, restart_after: None });
        if let Some(text) = &self.graceful_restart {
            let seconds = u16::try_from(duration("gracefulRestart", text)?.as_secs()).unwrap_or_default();
            ensure!((1..=4095).contains(&seconds), "gracefulRestart: {text}; accepted: 1s to 4095s");
            config.graceful_restart = GracefulRestart { restart_time_s: seconds, restarting: true };
        }
        config.long_lived =
            self.long_lived_stale_time.as_deref().map(|text| duration("longLivedStaleTime", text)).transpose()?;
        config.add_path_receive = self.add_path_receive;
        config.disable_family = self.disable_family_on_error;
        if let Some(password) = &self.password {
            ensure!((1..=80).contains(&password.len()), "password: {} octets; accepted: 1 to 80", password.len());
        }
        let multihop = self.multihop.map(Multihop::parse).transpose()?.flatten();
        let bfd = self.bfd.map(|bfd| bfd.parse()).transpose()?;
        if bfd.is_some() {
            config.bfd = martlet_bgp::Bfd::Loose;
        }
        Ok(NeighborFile {
            address,
            dynamic: self.dynamic,
            port: self.port,
            password: self.password,
            local_address: self.local_address,
            multihop,
            kernel_table: self.kernel_table,
            bfd,
            config,
        })
    }
}

impl BfdFile {
    fn parse(&self) -> anyhow::Result<(Duration, Duration, u8)> {
        ensure!(self.multiplier > 0, "bfd.multiplier: 0; accepted: 1 to 255");
        Ok((duration("bfd.minTx", &self.min_tx)?, duration("bfd.minRx", &self.min_rx)?, self.multiplier))
    }
}

impl Policy {
    fn parse(&self, key: &str) -> anyhow::Result<Import> {
        Ok(match self {
            Self::Absent => Import::None,
            Self::Word(word) => match word.as_str() {
                "all" => Import::All,
                "none" => Import::None,
                "default" => Import::Default,
                other => bail!("{key}: {other}; accepted: all, none, default, or a list of prefixes"),
            },
            Self::List(prefixes) => Import::Prefixes(prefixes.iter().map(exactly).collect()),
        })
    }
}

/// The prefix itself and nothing inside it.
fn exactly(prefix: &IpNet) -> PrefixRange {
    PrefixRange { prefix: prefix.trunc(), min_length: prefix.prefix_len(), max_length: prefix.prefix_len() }
}

fn prefix(key: &str, text: &str) -> anyhow::Result<IpNet> {
    let wrong = |error: &dyn Display| anyhow::anyhow!("{key}: {text}: {error}; accepted: an address or a prefix");
    if text.contains('/') {
        return text.parse().map_err(|error| wrong(&error));
    }
    text.parse::<IpAddr>().map(IpNet::from).map_err(|error| wrong(&error))
}

fn hold_time(text: Option<&str>) -> anyhow::Result<HoldTime> {
    let Some(text) = text else { return Ok(HoldTime::DEFAULT) };
    let given = duration("holdTime", text)?;
    u16::try_from(given.as_secs())
        .ok()
        .filter(|_| given.subsec_nanos() == 0)
        .and_then(HoldTime::new)
        .with_context(|| format!("holdTime: {text}; accepted: 0s, or whole seconds from 3s to 65535s"))
}

fn duration(key: &str, text: &str) -> anyhow::Result<Duration> {
    martlet_api::parse::value::duration(text)
        .with_context(|| format!("{key}: {text}: no duration; accepted: such as 300ms, 24s, 1m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of the documentation, to the letter.
    const DOCUMENTED: &str = r#"
localASN: 65001
routerId: 10.0.0.1
listen: [{address: 10.0.0.1, port: 179}]
neighbors:
- {address: 10.0.0.2, remoteASN: 65002, port: 179, passive: true, holdTime: 90s, families: [ipv4, ipv6], password: secret, import: all, export: all}
originate: [20.0.0.1/32, "2000::1/128"]
"#;

    #[test]
    fn the_documented_file_is_understood() {
        let config = Config::parse(DOCUMENTED).unwrap();
        assert_eq!((config.local_asn, config.router_id), (65001, Ipv4Addr::new(10, 0, 0, 1)));
        let neighbor = &config.neighbors[&NeighborId::new("10.0.0.2")];
        assert_eq!(neighbor.password.as_deref(), Some("secret"));
        assert!(neighbor.config.passive);
        assert_eq!(neighbor.config.families, [Family::Ipv4, Family::Ipv6].into());
        assert_eq!(neighbor.config.import, Import::All);
        assert_eq!(neighbor.config.export.transit, Import::All);
        assert_eq!(config.originate.len(), 2);
    }

    #[test]
    fn what_is_not_said_is_not_passed_on() {
        let config =
            Config::parse("{localASN: 1, routerId: 1.1.1.1, neighbors: [{address: \"fe80::1\", remoteASN: 1}]}")
                .unwrap();
        let neighbor = &config.neighbors[&NeighborId::new("fe80::1")];
        assert_eq!(neighbor.config.import, Import::None);
        assert_eq!(neighbor.config.export.transit, Import::None);
        assert_eq!(neighbor.config.families, [Family::Ipv6].into());
    }

    #[test]
    fn each_fault_names_its_key_and_what_would_be_accepted() {
        for (file, words) in [
            ("{localASN: 1, routerId: 1.1.1.1, colour: red}", &["colour"][..]),
            ("{localASN: 0, routerId: 1.1.1.1}", &["localASN", "1 to"]),
            ("{localASN: 1, routerId: 0.0.0.0}", &["routerId"]),
            ("{localASN: 1, routerId: 1.1.1.1, neighbors: [{address: 10.0.0.0/24, remoteASN: 2}]}", &["dynamic"]),
            ("{localASN: 1, routerId: 1.1.1.1, neighbors: [{address: 10.0.0.1}]}", &["remoteASN"]),
            (
                "{localASN: 1, routerId: 1.1.1.1, neighbors: [{address: 10.0.0.1, remoteASN: 2, holdTime: 2s}]}",
                &["holdTime", "3s"],
            ),
            (
                "{localASN: 1, routerId: 1.1.1.1, neighbors: [{address: 10.0.0.1, remoteASN: 2, import: some}]}",
                &["import", "default"],
            ),
        ] {
            let error = format!("{:#}", Config::parse(file).unwrap_err());
            for word in words {
                assert!(error.contains(word), "{file}: {error}");
            }
        }
    }
}
