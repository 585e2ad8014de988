//! Everything that the kernel tells of a network namespace, whoever owns it, as rows for a human: what `--debug` prints.
//!
//! It is read as it is said: names where the kernel has names, numbers of tables and protocols as numbers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Kernel, decode};
use crate::Error;

/// A row: a value for each name.
pub type Row = BTreeMap<&'static str, String>;

/// Everything, in the order of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// Links, with their addresses.
    pub links: Vec<Row>,
    /// Rules of both families.
    pub rules: Vec<Row>,
    /// Routes of both families and of all tables.
    pub routes: Vec<Row>,
    /// Neighbours (ARP, ND).
    pub neighbors: Vec<Row>,
}

impl Kernel {
    /// Everything of the network namespace.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel cannot be asked.
    pub async fn whole(&mut self) -> Result<Whole, Error> {
        let links = self.links().await?;
        let name = |index: u32| links.get(&index).map_or_else(|| index.to_string(), |link| link.name.to_string());
        let mut whole = Whole::default();
        for (index, link) in &links {
            let addresses: Vec<_> = link.addresses.iter().map(ToString::to_string).collect();
            whole.links.push(Row::from([
                ("index", index.to_string()),
                ("name", link.name.to_string()),
                ("up", link.up.to_string()),
                ("carrier", link.carrier.to_string()),
                ("mtu", link.mtu.to_string()),
                ("addresses", addresses.join(" ")),
            ]));
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RuleMessage::default();
            request.header.family = family;
            let answers = self.ask(RouteNetlinkMessage::GetRule(request), "the kernel's rules cannot be read").await?;
            whole.rules.extend(answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRule(message) => Some(rule(message)),
                _ => None,
            }));
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let answers =
                self.ask(RouteNetlinkMessage::GetRoute(request), "the kernel's routes cannot be read").await?;
            whole.routes.extend(answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => Some(route(message, name)),
                _ => None,
            }));
        }
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.ask(request, "the kernel's neighbours cannot be read").await?;
        whole.neighbors.extend(answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => Some(neighbor(message, name)),
            _ => None,
        }));
        Ok(whole)
    }
}

fn family(family: AddressFamily) -> String {
    match family {
        AddressFamily::Inet => "ipv4".into(),
        AddressFamily::Inet6 => "ipv6".into(),
        other => format!("{other:?}"),
    }
}

fn prefix(address: Option<IpAddr>, length: u8) -> String {
    address.map_or_else(|| "all".into(), |address| format!("{address}/{length}"))
}

fn rule(message: &RuleMessage) -> Row {
    let header = &message.header;
    let mut row = Row::from([
        ("family", family(header.family)),
        ("priority", "0".into()),
        ("from", "all".into()),
        ("to", "all".into()),
        ("action", format!("{:?}", header.action)),
        ("table", header.table.to_string()),
    ]);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => drop(row.insert("from", prefix(Some(*address), header.src_len))),
            RuleAttribute::Destination(address) => drop(row.insert("to", prefix(Some(*address), header.dst_len))),
            RuleAttribute::Priority(number) => drop(row.insert("priority", number.to_string())),
            RuleAttribute::Table(number) => drop(row.insert("table", number.to_string())),
            RuleAttribute::FwMark(mark) => drop(row.insert("fwmark", format!("{mark:#x}"))),
            RuleAttribute::FwMask(mask) => drop(row.insert("fwmask", format!("{mask:#x}"))),
            RuleAttribute::Goto(priority) => drop(row.insert("goto", priority.to_string())),
            RuleAttribute::Iifname(name) => drop(row.insert("input-interface", name.clone())),
            RuleAttribute::Oifname(name) => drop(row.insert("output-interface", name.clone())),
            RuleAttribute::Protocol(protocol) => drop(row.insert("protocol", u8::from(*protocol).to_string())),
            _ => {}
        }
    }
    row
}

fn route(message: &RouteMessage, name: impl Fn(u32) -> String) -> Row {
    let header = &message.header;
    let length = header.destination_prefix_length;
    let mut row = Row::from([
        ("family", family(header.address_family)),
        ("destination", "default".into()),
        ("table", header.table.to_string()),
        ("type", format!("{:?}", header.kind)),
        ("protocol", u8::from(header.protocol).to_string()),
        ("scope", format!("{:?}", header.scope)),
    ]);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                drop(row.insert("destination", prefix(decode::address(address), length)));
            }
            RouteAttribute::Table(number) => drop(row.insert("table", number.to_string())),
            RouteAttribute::Priority(number) => drop(row.insert("metric", number.to_string())),
            RouteAttribute::Oif(index) => drop(row.insert("interface", name(*index))),
            RouteAttribute::PrefSource(address) => {
                row.extend(decode::address(address).map(|address| ("source", address.to_string())));
            }
            RouteAttribute::MultiPath(hops) => {
                let words = hops.iter().map(decode::next_hop).map(|hop| {
                    let gateway = hop.gateway.map_or_else(|| "link".into(), |gateway| gateway.to_string());
                    let interface = hop.interface.map_or_else(|| "?".into(), &name);
                    format!("{gateway}%{interface} weight {}", hop.weight)
                });
                drop(row.insert("next-hops", words.collect::<Vec<_>>().join(", ")));
            }
            other => row.extend(decode::gateway(other).map(|gateway| ("gateway", gateway.to_string()))),
        }
    }
    row
}

fn neighbor(message: &NeighbourMessage, name: impl Fn(u32) -> String) -> Row {
    let header = &message.header;
    let mut row = Row::from([
        ("family", family(header.family)),
        ("interface", name(header.ifindex)),
        ("state", format!("{:?}", header.state)),
    ]);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                drop(row.insert("address", address.to_string()));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                drop(row.insert("address", address.to_string()));
            }
            NeighbourAttribute::LinkLayerAddress(octets) => {
                let words: Vec<_> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
                drop(row.insert("link-layer-address", words.join(":")));
            }
            _ => {}
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Owner;

    #[tokio::test]
    async fn what_every_namespace_has_is_shown() {
        let owner = Owner { protocol: 201, tables: Vec::new(), priorities: Vec::new() };
        let (mut kernel, _events) = Kernel::open(owner).unwrap();
        let whole = kernel.whole().await.unwrap();
        let has = |rows: &[Row], wanted: &[(&str, &str)]| {
            rows.iter().any(|row| wanted.iter().all(|(key, value)| row.get(key).is_some_and(|have| have == value)))
        };
        assert!(has(&whole.links, &[("name", "lo"), ("index", "1")]), "{whole:#?}");
        assert!(has(&whole.rules, &[("family", "ipv4"), ("priority", "0"), ("table", "255")]), "{whole:#?}");
        assert!(has(&whole.rules, &[("family", "ipv4"), ("priority", "32766"), ("table", "254")]), "{whole:#?}");
    }
}
