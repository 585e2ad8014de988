//! Attachments of a Pod: what Multus and the CNI plugins would do, by the `NetworkAttachmentDefinition`s.
//!
//! Known plugins: `macvlan` and `bridge` (a link to the bridge in the fabric that `master` or `bridge` names), `dummy` (nothing: this kernel
//! may lack it), `tuning` (sysctls). Addresses come from the ranges of `ipam`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Lab;
use crate::namespace::Namespace;

/// The annotation of Multus.
const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// Addresses that are looked at before a subnet counts as used up.
const MOST_TRIED: usize = 10_000;

/// An interface of a Pod besides `lo`.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Namespace and name of the definition.
    pub network: String,
    /// In the Pod.
    pub interface: String,
    /// With the length of their subnet.
    pub addresses: Vec<IpNet>,
}

impl Attachment {
    /// As Multus writes it.
    pub fn status(&self) -> Value {
        let ips: Vec<_> = self.addresses.iter().map(|address| address.addr().to_string()).collect();
        json!({"name": self.network, "interface": self.interface, "ips": ips, "dns": {}})
    }
}

/// The bridges, and the addresses that are taken.
pub struct Fabric<'lab> {
    lab: &'lab Lab,
    namespace: Namespace,
    taken: BTreeSet<IpAddr>,
    /// The last address of each subnet that was given out.
    last: BTreeMap<IpNet, IpAddr>,
}

#[derive(Deserialize)]
struct Wish {
    name: String,
    interface: Option<String>,
}

impl<'lab> Fabric<'lab> {
    pub fn new(lab: &'lab Lab, namespace: &Namespace) -> Self {
        Self { lab, namespace: namespace.clone(), taken: BTreeSet::new(), last: BTreeMap::new() }
    }

    /// Attaches a Pod as its annotation says.
    pub fn attach(
        &mut self,
        pod: &Namespace,
        role: &str,
        object: &Pod,
        tenant: &str,
        definitions: &BTreeMap<String, Value>,
    ) -> Result<Vec<Attachment>> {
        let text = object.annotations().get(NETWORKS).map_or("[]", String::as_str);
        let wishes: Vec<Wish> = serde_json::from_str(text).with_context(|| format!("{NETWORKS}: {text}"))?;
        let mut attachments = Vec::new();
        for (number, wish) in wishes.into_iter().enumerate() {
            let config =
                definitions.get(&wish.name).with_context(|| format!("no NetworkAttachmentDefinition {}", wish.name))?;
            let interface = wish.interface.unwrap_or_else(|| format!("net{}", number + 1));
            let mut attachment =
                Attachment { network: format!("{tenant}/{}", wish.name), interface, addresses: Vec::new() };
            let plugins = config["plugins"].as_array().cloned().unwrap_or_else(|| vec![config.clone()]);
            for plugin in &plugins {
                match plugin["type"].as_str().unwrap_or_default() {
                    "macvlan" | "bridge" => self.link(pod, &format!("{role}-{number}"), plugin, &mut attachment)?,
                    "dummy" => {}
                    "tuning" => tune(pod, plugin)?,
                    other => bail!("NetworkAttachmentDefinition {}: the lab knows no plugin {other:?}", wish.name),
                }
            }
            attachments.push(attachment);
        }
        Ok(attachments)
    }

    fn link(&mut self, pod: &Namespace, port: &str, plugin: &Value, attachment: &mut Attachment) -> Result<()> {
        let bridge =
            plugin["master"].as_str().or_else(|| plugin["bridge"].as_str()).context("neither master nor bridge")?;
        let interface = attachment.interface.as_str();
        self.lab.link((pod, interface), (&self.namespace, port))?;
        self.namespace.ip(&format!("link set {port} master {bridge}"))?;
        for range in plugin["ipam"]["ranges"].as_array().into_iter().flatten() {
            let address = self.take(&range[0])?;
            pod.ip(&format!(
                "addr add {address} dev {interface}{}",
                if address.addr().is_ipv6() { " nodad" } else { "" }
            ))?;
            attachment.addresses.push(address);
        }
        pod.wait_for_links(&[interface])
    }

    /// The next free address of a range, round and round as `host-local` does: an address that was in use a moment ago is still in
    /// the neighbour tables of others.
    fn take(&mut self, range: &Value) -> Result<IpNet> {
        let subnet: IpNet = range["subnet"].as_str().context("a range without subnet")?.parse()?;
        let start: Option<IpAddr> = range["rangeStart"].as_str().map(str::parse).transpose()?;
        let hosts = || subnet.hosts().filter(|host| start.is_none_or(|start| *host >= start));
        let last = self.last.get(&subnet).copied();
        let after = hosts().filter(|host| last.is_none_or(|last| *host > last));
        let mut round = after.chain(hosts()).take(MOST_TRIED);
        let address = round.find(|host| !self.taken.contains(host)).with_context(|| format!("{subnet} is used up"))?;
        self.taken.insert(address);
        self.last.insert(subnet, address);
        Ok(IpNet::new(address, subnet.prefix_len())?)
    }

    /// The addresses of a Pod that is gone are free again.
    pub fn release(&mut self, attachments: &[Attachment]) {
        for address in attachments.iter().flat_map(|attachment| &attachment.addresses) {
            self.taken.remove(&address.addr());
        }
    }
}

fn tune(pod: &Namespace, plugin: &Value) -> Result<()> {
    for (key, value) in plugin["sysctl"].as_object().into_iter().flatten() {
        pod.sysctl(key, value.as_str().unwrap_or_default())?;
    }
    Ok(())
}

/// Makes the VIPs addresses of the Pod's own.
pub fn own(pod: &Namespace, vips: &str) -> Result<()> {
    for vip in vips.split(',') {
        let vip: IpAddr = vip.trim().parse().with_context(|| format!("VIP {vip:?}"))?;
        match vip {
            IpAddr::V4(vip) => pod.ip(&format!("addr add {vip}/32 dev lo\nrule add from {vip} lookup 5000"))?,
            IpAddr::V6(vip) => {
                pod.ip(&format!("addr add {vip}/128 dev lo nodad"))?;
                pod.ip6(&format!("rule add from {vip} lookup 5000"))?;
            }
        }
    }
    Ok(())
}

/// Lets what comes from a VIP go to all of `hops`, for the `round`th time.
///
/// Each round adds routes of a better metric and removes those of the last: `replace` of IPv6 leaves old next hops behind.
pub fn route_back(pod: &Namespace, hops: &BTreeSet<IpAddr>, round: u32) -> Result<()> {
    let metric = |round: u32| 1_000_000 - round;
    for ipv4 in [true, false] {
        let mut of_family = String::new();
        for hop in hops.iter().filter(|hop| hop.is_ipv4() == ipv4) {
            let _ = write!(of_family, " nexthop via {hop}");
        }
        let run = |command: &str| if ipv4 { pod.ip(command) } else { pod.ip6(command) };
        if !of_family.is_empty() {
            run(&format!("route add default table 5000 metric {}{of_family}", metric(round)))?;
        }
        if round > 0 {
            run(&format!("route flush table 5000 metric {}", metric(round - 1)))?;
        }
    }
    Ok(())
}
