//! Three namespaces: ours, theirs, and between them one that is a bridge for the link and a router for what lies behind it.

use std::net::IpAddr;

use anyhow::{Context, Result};

use super::endpoint::Wish;
use crate::lab::Lab;
use crate::namespace::Namespace;

/// The kinds of sessions between two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One hop over IPv4.
    Ipv4,
    /// One hop over IPv6.
    Ipv6,
    /// One hop between link-local addresses.
    LinkLocal,
    /// Two hops over IPv4.
    Multihop4,
    /// Two hops over IPv6.
    Multihop6,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ipv4, Self::Ipv6, Self::LinkLocal, Self::Multihop4, Self::Multihop6];

    /// What its session is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::LinkLocal => "link-local",
            Self::Multihop4 => "multihop-ipv4",
            Self::Multihop6 => "multihop-ipv6",
        }
    }

    /// Whether it goes over several hops.
    pub const fn is_multihop(self) -> bool {
        matches!(self, Self::Multihop4 | Self::Multihop6)
    }
}

/// The stage.
#[derive(Debug)]
pub struct Stage {
    /// Where the product runs.
    pub ours: Namespace,
    /// Where the other end runs.
    pub theirs: Namespace,
    /// The bridge, whose ports `left` and `right` can be cut.
    pub fabric: Namespace,
    link_local: [IpAddr; 2],
}

impl Stage {
    /// Builds it.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn build(lab: &Lab) -> Result<Self> {
        let [ours, theirs, fabric] = [lab.namespace("ours")?, lab.namespace("theirs")?, lab.namespace("fabric")?];
        lab.link((&ours, "eth0"), (&fabric, "left"))?;
        lab.link((&theirs, "eth0"), (&fabric, "right"))?;
        fabric.bridge("bridge", &["left", "right"])?;
        fabric.ip("addr add 10.0.0.254/24 dev bridge\naddr add fd00::fe/64 dev bridge nodad")?;
        for family in ["ipv4", "ipv6"] {
            fabric.sysctl(&format!("net.{family}.conf.all.forwarding"), "1")?;
            // What a neighbour echoes comes back.
            theirs.sysctl(&format!("net.{family}.conf.all.forwarding"), "1")?;
        }
        fabric.sysctl("net.ipv4.conf.all.send_redirects", "0")?;
        fabric.sysctl("net.ipv4.conf.bridge.send_redirects", "0")?;
        for (namespace, own, other) in [(&ours, 1, 2), (&theirs, 2, 1)] {
            namespace.sysctl("net.ipv6.conf.all.accept_redirects", "0")?;
            namespace.sysctl("net.ipv6.conf.eth0.accept_redirects", "0")?;
            namespace.ip(&format!(
                "addr add 10.0.0.{own}/24 dev eth0\naddr add fd00::{own}/64 dev eth0 nodad\n\
                 addr add 192.0.2.{own}/32 dev lo\naddr add fd01::{own}/128 dev lo\n\
                 route add 192.0.2.{other}/32 via 10.0.0.254\nroute add fd01::{other}/128 via fd00::fe"
            ))?;
            fabric.ip(&format!(
                "route add 192.0.2.{own}/32 via 10.0.0.{own}\nroute add fd01::{own}/128 via fd00::{own}"
            ))?;
            namespace.wait_for_links(&["eth0"])?;
        }
        let link_local = [link_local(&ours)?, link_local(&theirs)?];
        Ok(Self { ours, theirs, fabric, link_local })
    }

    /// The addresses of a session: ours, theirs.
    pub fn addresses(&self, kind: Kind) -> [IpAddr; 2] {
        match kind {
            Kind::Ipv4 => [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()],
            Kind::Ipv6 => [[0xfd00, 0, 0, 0, 0, 0, 0, 1].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 2].into()],
            Kind::LinkLocal => self.link_local,
            Kind::Multihop4 => [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()],
            Kind::Multihop6 => [[0xfd01, 0, 0, 0, 0, 0, 0, 1].into(), [0xfd01, 0, 0, 0, 0, 0, 0, 2].into()],
        }
    }

    /// Our end of a session, 300 ms x 5.
    pub fn wish(&self, kind: Kind) -> Wish {
        let [own, other] = self.addresses(kind);
        let wish = Wish::to(kind.name(), "eth0", other);
        if kind.is_multihop() {
            // The router in the middle takes one off.
            Wish { interface: None, local: Some(own), min_ttl: 254, ..wish }
        } else {
            wish
        }
    }

    /// Our end of all kinds of sessions.
    pub fn wishes(&self) -> Vec<Wish> {
        Kind::ALL.iter().map(|kind| self.wish(*kind)).collect()
    }
}

fn link_local(namespace: &Namespace) -> Result<IpAddr> {
    let found = namespace.ip_json(&["-6", "address", "show", "dev", "eth0", "scope", "link"])?;
    let addresses = found.iter().filter_map(|link| link.get("addr_info")?.as_array()).flatten();
    let address = addresses.into_iter().find_map(|address| address.get("local")?.as_str());
    Ok(address.with_context(|| format!("eth0 has no link-local address: {found:?}"))?.parse()?)
}
