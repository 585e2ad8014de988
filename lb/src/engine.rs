//! One packet and the tables of the moment: to which endpoint, or why to none.
//!
//! Pure and shared by all queue threads. A mark is what the kernel is told: `first mark of the service + identifier`
//! (see [`crate::targets`] for the blocks and [`crate::rules`] for what the kernel does with it).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::counters::Reason;
use crate::flow::Classifier;
use crate::hash::{Flow, Seed};
use crate::maglev::Table;
use crate::nfqlb;
use crate::packet::protocol::{ICMP, ICMPV6, SCTP, UDP};
use crate::packet::{Content, Packet, parse};
use crate::translate;

/// The first mark that is ours; also the first table.
pub const FIRST_MARK: u32 = 5000;

/// Octets of IP headers that are looked at: of IPv4 at most 60; of IPv6 its 40 and 64 of extension headers.
const NETWORK_OCTETS: u16 = 104;

/// Everything that a packet is asked against: built aside, then swapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    seed: Seed,
    classifier: Classifier,
    /// By rank of the route.
    backends: Vec<Option<Arc<Backend>>>,
    /// Each service once.
    services: Vec<Arc<Backend>>,
    /// By mark, less the first: what fits through the link to the endpoint; 0: anything.
    mtus: Vec<u32>,
    /// See [`Tables::wants_segments`].
    segments: bool,
    /// See [`Tables::copy_range`].
    copy_range: u16,
    policy: Policy,
}

/// What an operator may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Tell the sender when there is no route or no endpoint, instead of dropping silently.
    pub reject: bool,
    /// How the fragments of one datagram find one endpoint.
    pub fragments: FragmentMode,
    /// Choose as nfqlb does: see [`crate::nfqlb`].
    pub nfqlb: bool,
}

/// How the fragments of one datagram find one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FragmentMode {
    /// The first one is remembered, later ones follow it.
    #[default]
    Table,
    /// By their addresses, not ports: replicas that get one fragment each agree.
    Addresses,
    /// The kernel puts them together before they are queued, without connection tracking.
    Kernel,
}

impl std::str::FromStr for FragmentMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "addresses" => Ok(Self::Addresses),
            "kernel" => Ok(Self::Kernel),
            _ => Err(format!("fragments {text:?}: must be table, addresses or kernel")),
        }
    }
}

/// A Service as a packet sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub service: Arc<str>,
    /// The mark of its identifier 0.
    pub first_mark: u32,
    /// How many marks are its own.
    pub marks: u32,
    /// The endpoints with an IPv4 address.
    pub ipv4: Arc<Table>,
    /// The endpoints with an IPv6 address.
    pub ipv6: Arc<Table>,
}

impl Backend {
    /// The table of the family of `address`.
    pub const fn table(&self, address: IpAddr) -> &Arc<Table> {
        match address {
            IpAddr::V4(_) => &self.ipv4,
            IpAddr::V6(_) => &self.ipv6,
        }
    }
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Choice {
    /// The rank of its route: see [`Classifier::names`].
    pub rank: u32,
    /// The slot of its table.
    pub slot: u32,
    /// The endpoint's identifier.
    pub identifier: u16,
    /// The endpoint's mark.
    pub mark: u32,
    /// The endpoint's port, where it is another than the VIP's.
    #[serde(default)]
    pub target_port: Option<u16>,
}

impl Choice {
    /// The mark that the kernel is told: with the port that it shall write, for which see [`crate::translate`].
    pub fn told(self) -> u32 {
        self.mark | self.target_port.map_or(0, translate::in_mark)
    }
}

impl Tables {
    /// Puts routes and services together; a route whose service is not among them has no endpoint.
    pub fn new(seed: Seed, classifier: Classifier, backends: Vec<Option<Arc<Backend>>>) -> Self {
        let mut services: Vec<Arc<Backend>> = backends.iter().flatten().map(Arc::clone).collect();
        services.sort_by_key(|backend| backend.first_mark);
        services.dedup_by_key(|backend| backend.first_mark);
        let copy_range = classifier.transport_octets().saturating_add(NETWORK_OCTETS);
        Self {
            seed,
            classifier,
            backends,
            services,
            mtus: Vec::new(),
            segments: false,
            copy_range,
            policy: Policy::default(),
        }
    }

    /// The same with what fits through the links to the endpoints, by mark less the first (0: anything), and a policy.
    #[must_use]
    pub fn with(self, mtus: Vec<u32>, policy: Policy) -> Self {
        Self { mtus, policy, ..self }
    }

    /// The same, with an answer to [`Tables::wants_segments`].
    #[must_use]
    pub fn with_segments(self, segments: bool) -> Self {
        Self { segments, ..self }
    }

    /// Whether a packet that is made of segments must be queued as segments. A queue does not say how large they are; so
    /// where larger ones come in than go out, nobody but the kernel could tell the sender, and that would not be the VIP.
    pub const fn wants_segments(&self) -> bool {
        self.segments
    }

    /// Octets of a packet that its routes look at.
    pub const fn copy_range(&self) -> u16 {
        self.copy_range
    }

    /// What the operator chose.
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// What fits through the link to the endpoint of a mark.
    pub fn mtu(&self, mark: u32) -> u32 {
        let number = mark.checked_sub(FIRST_MARK).and_then(|number| usize::try_from(number).ok());
        number.and_then(|number| self.mtus.get(number)).copied().filter(|mtu| *mtu > 0).unwrap_or(u32::MAX)
    }

    /// The routes.
    pub const fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    /// The seed of its flows.
    pub const fn seed(&self) -> Seed {
        self.seed
    }

    /// The service of the route of a rank, if there is one.
    pub fn backend(&self, rank: usize) -> Option<&Arc<Backend>> {
        self.backends.get(rank)?.as_ref()
    }

    /// The routes that have a service for themselves, by service.
    pub fn only_routes(&self) -> BTreeMap<&Arc<str>, &Arc<str>> {
        let mut leading: BTreeMap<_, Option<_>> = BTreeMap::new();
        for (name, backend) in self.classifier.names().iter().zip(&self.backends) {
            let Some(backend) = backend else { continue };
            leading.entry(&backend.service).and_modify(|only| *only = None).or_insert(Some(name));
        }
        leading.into_iter().filter_map(|(service, only)| Some((service, only?))).collect()
    }

    /// The services that routes lead to, by their marks.
    pub fn services(&self) -> &[Arc<Backend>] {
        &self.services
    }

    /// Service and identifier of a mark, counted from [`FIRST_MARK`].
    pub fn endpoint(&self, number: u32) -> Option<(&Arc<str>, u16)> {
        let mark = number + FIRST_MARK;
        let after = self.services.partition_point(|backend| backend.first_mark <= mark);
        let backend = self.services.get(after.checked_sub(1)?)?;
        let identifier = mark - backend.first_mark;
        (identifier < backend.marks).then_some((&backend.service, u16::try_from(identifier).ok()?))
    }

    /// Where a flow goes. `transport`: see [`Classifier::matches`].
    ///
    /// # Errors
    /// [`Reason::NoRoute`] and [`Reason::NoEndpoint`]. The best route alone decides: what it has no endpoint for does not
    /// fall to a worse one. Only an echo asks on: it is meant for the VIP, not for a service.
    pub fn choose(&self, flow: &Flow, transport: Option<&[u8]>) -> Result<Choice, Reason> {
        let mut result = Err(Reason::NoRoute);
        for rank in self.classifier.matches(flow, transport) {
            result = self.of_route(rank, flow);
            if result.is_ok() || !is_echo(flow) {
                break;
            }
        }
        result
    }

    fn of_route(&self, rank: u32, flow: &Flow) -> Result<Choice, Reason> {
        let backend = usize::try_from(rank).ok().and_then(|rank| self.backend(rank)).ok_or(Reason::NoEndpoint)?;
        let table = backend.table(flow.destination);
        let hash = if self.policy.nfqlb { nfqlb::hash(flow) } else { flow.hash(self.seed) };
        let identifier = table.lookup(hash).ok_or(Reason::NoEndpoint)?;
        let mark = backend.first_mark + u32::from(identifier);
        let target_port = self.classifier.translation(rank, flow.protocol, flow.destination_port);
        Ok(Choice { rank, slot: table.slot(hash), identifier, mark, target_port })
    }

    /// Where a packet goes; of a fragment: of the first one, unless fragments go by their addresses.
    ///
    /// # Errors
    /// The reason why it is dropped.
    pub fn fate(&self, packet: &Packet<'_>) -> Result<Choice, Reason> {
        if packet.fragment.is_some() && self.policy.fragments == FragmentMode::Addresses {
            return self.by_addresses(packet);
        }
        if let Content::Error(inner) = packet.content {
            let inner = parse(inner).map_err(|_| Reason::ForeignError)?;
            let flow = flow_of_error(packet, &inner)?;
            self.choose_either(&flow, None, sctp_in_udp(&flow, inner.transport, true))
        } else {
            let flow = flow_of(packet).ok_or(Reason::FragmentLost)?;
            self.choose_either(&flow, Some(packet.transport), sctp_in_udp(&flow, packet.transport, false))
        }
    }

    /// As [`Tables::choose`], but for the association `inside` of a UDP packet, if a route looks for it and is better than
    /// what the packet itself finds.
    fn choose_either(&self, flow: &Flow, transport: Option<&[u8]>, inside: Option<Flow>) -> Result<Choice, Reason> {
        let port = flow.destination_port;
        let Some(inside) = inside.filter(|_| self.classifier.has_sctp_in_udp(flow.destination, port)) else {
            return self.choose(flow, transport);
        };
        let octets = transport.map(|octets| octets.get(UDP_HEADER..).unwrap_or_default());
        let mut by_inside = self.classifier.matches(&inside, octets);
        let by_inside = by_inside.find(|rank| self.classifier.sctp_in_udp_port(*rank) == Some(port));
        let by_packet = self.classifier.matches(flow, transport).next();
        match (by_inside, by_packet) {
            (Some(rank), better) if better.is_none_or(|better| rank <= better) => {
                // The ports outside are UDP's.
                self.of_route(rank, &inside).map(|choice| Choice { target_port: None, ..choice })
            }
            _ => self.choose(flow, transport),
        }
    }

    /// Where all fragments of a datagram go by what each of them knows: addresses and protocol. The best route of VIP,
    /// protocol and source counts, whatever its ports.
    fn by_addresses(&self, packet: &Packet<'_>) -> Result<Choice, Reason> {
        let Packet { source, destination, protocol, .. } = *packet;
        let flow = Flow { source, destination, protocol, source_port: 0, destination_port: 0 };
        let rank = self.classifier.matches_any_port(&flow).next().ok_or(Reason::NoRoute)?;
        let port = match packet.content {
            Content::Ports { destination, .. } => Some(destination),
            _ => None,
        };
        let target_port = port.and_then(|port| self.classifier.translation(rank, protocol, port));
        self.of_route(rank, &flow).map(|choice| Choice { target_port, ..choice })
    }
}

/// Whether it is an ICMP echo.
fn is_echo(flow: &Flow) -> bool {
    matches!(flow.protocol, ICMP | ICMPV6)
}

/// The flow of a packet that says so itself.
fn flow_of(packet: &Packet<'_>) -> Option<Flow> {
    let (source_port, destination_port) = match packet.content {
        Content::Ports { source, destination } => (source, destination),
        Content::Echo { id } => (id, 0),
        Content::Error(_) | Content::LaterFragment => return None,
    };
    let Packet { source, destination, protocol, .. } = *packet;
    Some(Flow { source, destination, protocol, source_port, destination_port })
}

/// The flow of the packet that an ICMP error is about: the endpoint sent it, so that source and destination change places.
fn flow_of_error(packet: &Packet<'_>, inner: &Packet<'_>) -> Result<Flow, Reason> {
    let flow = flow_of(inner).filter(|flow| flow.source == packet.destination).ok_or(Reason::ForeignError)?;
    let turned = Flow { source: flow.destination, destination: flow.source, ..flow };
    Ok(match inner.content {
        // The identifier of an echo is the same both ways.
        Content::Echo { .. } => turned,
        _ => Flow { source_port: flow.destination_port, destination_port: flow.source_port, ..turned },
    })
}

/// Octets of a UDP header.
const UDP_HEADER: usize = 8;

/// The flow of the SCTP packet that may be in a UDP packet (RFC 6951), towards the VIP; `turned`: the UDP packet comes from
/// there.
fn sctp_in_udp(flow: &Flow, transport: &[u8], turned: bool) -> Option<Flow> {
    if flow.protocol != UDP {
        return None;
    }
    let ports = transport.get(UDP_HEADER..)?.first_chunk::<4>()?;
    let [a, b, c, d] = *ports;
    let (first, second) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let (source_port, destination_port) = if turned { (second, first) } else { (first, second) };
    Some(Flow { protocol: SCTP, source_port, destination_port, ..*flow })
}

#[cfg(test)]
mod tests;
