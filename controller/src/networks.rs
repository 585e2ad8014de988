//! Which address of a Pod counts: the annotations of a Gateway's infrastructure against what Multus wrote on the Pod.
//!
//! An address counts only if its attachment matches name *and* interface of an entry of `meridio-experiment/networks` *and* it
//! lies in one of `meridio-experiment/network-subnets`. Pure; knows nothing of slices.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;

/// The networks towards the endpoints: a JSON list of name (and namespace) and interface.
pub use martlet_api::crd::NETWORKS_ANNOTATION as NETWORKS;
/// The subnets of the endpoints: a JSON list of CIDRs.
pub use martlet_api::crd::SUBNETS_ANNOTATION as SUBNETS;
/// What Multus writes on a Pod.
pub const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// The networks in which a Gateway finds its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks {
    attachments: Vec<Attachment>,
    subnets: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Attachment {
    namespace: String,
    name: String,
    interface: String,
}

/// Why the annotations of a Gateway cannot be used. Names annotation, value and what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An annotation is not there.
    #[error("infrastructure.annotations: {_0} is missing: {}", example(_0))]
    Missing(&'static str),
    /// An annotation is there, but cannot be read.
    #[error("infrastructure.annotations: {annotation}: {value:?}: {error}: {}", example(annotation))]
    Malformed {
        /// Its name.
        annotation: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        error: String,
    },
}

impl Problem {
    /// The reason of a condition.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) => "AnnotationMissing",
            Self::Malformed { .. } => "AnnotationMalformed",
        }
    }
}

fn example(annotation: &str) -> &'static str {
    if annotation == SUBNETS {
        r#"expected a JSON list of subnets such as ["169.111.100.0/24"]"#
    } else {
        r#"expected a JSON list such as [{"name":"macvlan-nad-1","interface":"net1"}]"#
    }
}

/// The addresses of a Pod that count, at most one of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The first IPv4 address that counts.
    pub ipv4: Option<Ipv4Addr>,
    /// The first IPv6 address that counts.
    pub ipv6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Whether none counts.
    pub const fn is_empty(&self) -> bool {
        self.ipv4.is_none() && self.ipv6.is_none()
    }

    /// Both, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

/// One entry of [`NETWORKS`].
#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    interface: String,
}

/// One entry of [`STATUS`].
#[derive(Deserialize)]
struct StatusEntry {
    name: String,
    #[serde(default)]
    interface: String,
    #[serde(default)]
    ips: Vec<String>,
}

impl Networks {
    /// Reads the annotations of a Gateway in `namespace`; a network that names no namespace is in the Gateway's.
    ///
    /// # Errors
    /// An annotation is missing or malformed, or names nothing.
    pub fn parse(annotations: &BTreeMap<String, String>, namespace: &str) -> Result<Self, Problem> {
        let entries: Vec<Entry> = read(annotations, NETWORKS)?;
        let attachments = entries
            .into_iter()
            .map(|entry| {
                let (named, name) = split(&entry.name);
                let namespace = entry.namespace.as_deref().filter(|own| !own.is_empty()).or(named).unwrap_or(namespace);
                Attachment { namespace: namespace.to_owned(), name: name.to_owned(), interface: entry.interface }
            })
            .collect();
        let subnets = read::<IpNet>(annotations, SUBNETS)?.iter().map(IpNet::trunc).collect();
        Ok(Self { attachments, subnets })
    }

    /// The subnets.
    pub fn subnets(&self) -> &[IpNet] {
        &self.subnets
    }

    /// The addresses of a Pod that count, by the value of its annotation [`STATUS`].
    ///
    /// # Errors
    /// The value is no list of network states: the text says why.
    pub fn addresses(&self, status: &str) -> Result<Addresses, String> {
        let mut found = Addresses::default();
        for address in self.attached_addresses(status)? {
            if !self.subnets.iter().any(|subnet| subnet.contains(&address)) {
                continue;
            }
            match address {
                IpAddr::V4(address) => _ = found.ipv4.get_or_insert(address),
                IpAddr::V6(address) => _ = found.ipv6.get_or_insert(address),
            }
        }
        Ok(found)
    }

    /// The subnets in which a Pod has no address that counts, by the value of its annotation [`STATUS`].
    ///
    /// # Errors
    /// As [`Self::addresses`].
    pub fn without_address(&self, status: &str) -> Result<Vec<IpNet>, String> {
        let addresses = self.attached_addresses(status)?;
        let is_empty = |subnet: &&IpNet| !addresses.iter().any(|address| subnet.contains(address));
        Ok(self.subnets.iter().filter(is_empty).copied().collect())
    }

    /// All addresses on the networks, in whatever subnet.
    fn attached_addresses(&self, status: &str) -> Result<Vec<IpAddr>, String> {
        let entries: Vec<StatusEntry> = serde_json::from_str(status).map_err(|error| format!("{STATUS}: {error}"))?;
        let texts = entries.iter().filter(|entry| self.attached(entry)).flat_map(|entry| &entry.ips);
        texts
            .map(|text| {
                // Some plugins write a length behind it.
                let text = text.split('/').next().unwrap_or_default();
                text.parse().map_err(|_| format!("{STATUS}: {text:?} is no IP address"))
            })
            .collect()
    }

    fn attached(&self, status: &StatusEntry) -> bool {
        let (namespace, name) = split(&status.name);
        self.attachments.iter().any(|attachment| {
            attachment.name == name
                && attachment.interface == status.interface
                && namespace.is_none_or(|namespace| namespace == attachment.namespace)
        })
    }
}

/// `namespace/name`, or a name alone.
fn split(name: &str) -> (Option<&str>, &str) {
    name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name))
}

/// A JSON list that is not empty.
fn read<T: for<'de> Deserialize<'de>>(
    annotations: &BTreeMap<String, String>,
    annotation: &'static str,
) -> Result<Vec<T>, Problem> {
    let value = annotations.get(annotation).ok_or(Problem::Missing(annotation))?;
    let malformed = |error: String| Problem::Malformed { annotation, value: value.clone(), error };
    let list: Vec<T> = serde_json::from_str(value).map_err(|error| malformed(error.to_string()))?;
    if list.is_empty() {
        return Err(malformed("the list is empty".to_owned()));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(networks: &str, subnets: &str) -> Result<Networks, Problem> {
        let annotations = [(NETWORKS.to_owned(), networks.to_owned()), (SUBNETS.to_owned(), subnets.to_owned())];
        Networks::parse(&annotations.into(), "tenant")
    }

    fn seed() -> Networks {
        networks(r#"[{"name":"macvlan-nad-1","interface":"net1"}]"#, r#"["169.111.100.0/24", "fd00:100::/64"]"#)
            .unwrap()
    }

    fn status(name: &str, interface: &str, ips: &str) -> String {
        format!(
            r#"[{{"name":"cbr0","interface":"eth0","ips":["169.111.100.99"],"default":true}},
                    {{"name":"{name}","interface":"{interface}","ips":[{ips}],"mac":"02:00:00:00:00:01"}}]"#
        )
    }

    #[test]
    fn an_address_counts_by_name_interface_and_subnet() {
        let found =
            seed().addresses(&status("tenant/macvlan-nad-1", "net1", r#""169.111.100.3", "fd00:100::3""#)).unwrap();
        assert_eq!(found.iter().map(|a| a.to_string()).collect::<Vec<_>>(), ["169.111.100.3", "fd00:100::3"]);
    }

    #[test]
    fn a_name_without_namespace_in_the_status_matches() {
        assert!(!seed().addresses(&status("macvlan-nad-1", "net1", r#""169.111.100.3""#)).unwrap().is_empty());
    }

    #[test]
    fn one_subnet_on_two_networks_counts_on_the_named_one_only() {
        for (name, interface) in [("tenant/macvlan-nad-2", "net1"), ("tenant/macvlan-nad-1", "net2"), ("cbr0", "net1")]
        {
            let status = status(name, interface, r#""169.111.100.3""#);
            assert!(seed().addresses(&status).unwrap().is_empty(), "{name} {interface}");
        }
    }

    #[test]
    fn the_same_network_name_in_another_namespace_does_not_count() {
        assert!(seed().addresses(&status("other/macvlan-nad-1", "net1", r#""169.111.100.3""#)).unwrap().is_empty());
        for entry in [
            r#"[{"name":"other/macvlan-nad-1","interface":"net1"}]"#,
            r#"[{"name":"macvlan-nad-1","namespace":"other","interface":"net1"}]"#,
        ] {
            let networks = networks(entry, r#"["169.111.100.0/24"]"#).unwrap();
            assert!(
                !networks.addresses(&status("other/macvlan-nad-1", "net1", r#""169.111.100.3""#)).unwrap().is_empty()
            );
        }
    }

    #[test]
    fn an_address_outside_the_subnets_does_not_count() {
        assert!(seed().addresses(&status("tenant/macvlan-nad-1", "net1", r#""169.111.101.3""#)).unwrap().is_empty());
    }

    #[test]
    fn of_two_addresses_of_a_family_the_first_counts() {
        let status = status("tenant/macvlan-nad-1", "net1", r#""169.111.100.9", "169.111.100.3""#);
        assert_eq!(seed().addresses(&status).unwrap().ipv4, Some(Ipv4Addr::new(169, 111, 100, 9)));
    }

    #[test]
    fn what_is_missing_or_malformed_is_named_with_a_remedy() {
        let missing = Networks::parse(&BTreeMap::new(), "tenant").unwrap_err();
        assert_eq!(missing.reason(), "AnnotationMissing");
        assert!(missing.to_string().contains(NETWORKS) && missing.to_string().contains("macvlan-nad-1"), "{missing}");
        let good = r#"[{"name":"a","interface":"b"}]"#;
        for (first, second, named) in [
            ("not json", r#"["10.0.0.0/8"]"#, NETWORKS),
            ("[]", r#"["10.0.0.0/8"]"#, NETWORKS),
            (r#"[{"name":"a"}]"#, r#"["10.0.0.0/8"]"#, NETWORKS),
            (good, r#"["10.0.0.0/33"]"#, SUBNETS),
            (good, r#"{"a":1}"#, SUBNETS),
        ] {
            let error = networks(first, second).unwrap_err();
            assert_eq!(error.reason(), "AnnotationMalformed");
            assert!(error.to_string().contains(named), "{error}");
        }
        assert!(seed().addresses("nonsense").unwrap_err().contains(STATUS));
    }
}
