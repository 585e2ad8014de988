//! Connections of the core: which may be tried, whose an incoming one is, and which die with their link.
//!
//! The speaker names a neighbour; here it gets its address, its interface and the reason why it cannot be reached.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use martlet_bgp::{CloseReason, ConnectionId, Endpoints, Family, Input as BgpInput, NeighborId, Ticket};
use martlet_clock::Instant;

use super::{Caller, Connection, Event, Incoming, Listener, Listeners, Output, Router, STRANGERS, UNANSWERED};
use crate::intent::{Intent, Transport, family_of};
use crate::plan::{Links, on_link};

impl Router {
    /// What the speaker does not see: a password changes on the living connections, anything else starts the session anew.
    pub(super) fn update_transports(&mut self, now: Instant, before: &Intent) {
        let Some(intent) = &self.intent else { return };
        let mut moved = Vec::new();
        for (id, neighbor) in &intent.neighbors {
            let Some(old) = before.neighbors.get(id).map(|old| &old.transport) else { continue };
            let new = &neighbor.transport;
            let place = |t: &Transport| (t.address, t.interface.clone(), t.source, t.ttl, t.min_ttl, t.ao.clone());
            if place(old) != place(new) {
                moved.push(id.clone());
            } else if old.key != new.key {
                let open = self.connections.iter().filter(|(_, connection)| connection.neighbor == *id);
                let rekey = open.map(|(connection, _)| Output::Rekey(*connection, new.address, new.key.clone()));
                self.outputs.extend(rekey);
            }
        }
        for id in moved {
            self.speaker.handle(now, BgpInput::Reset(&id, "its address or interface changed"));
        }
    }

    /// A connection whose interface lost its carrier or its address is gone: nobody waits for a timer.
    pub(super) fn close_dead(&mut self, now: Instant, before: &Links) {
        let alive = |links: &Links, connection: &Connection| {
            let link = links.live(&connection.interface).map_err(|error| error.to_string())?;
            match connection.local {
                Some(local) if !link.addresses.iter().any(|net| net.addr() == local) => {
                    Err(format!("interface {} lost its address {local}", connection.interface))
                }
                _ => Ok(()),
            }
        };
        let dead: Vec<(ConnectionId, String)> = self
            .connections
            .iter()
            .filter(|(_, connection)| alive(before, connection).is_ok())
            .filter_map(|(id, connection)| Some((*id, alive(&self.links, connection).err()?)))
            .collect();
        for (id, why) in dead {
            self.connections.remove(&id);
            self.outputs.push_back(Output::Close(id));
            self.speaker.handle(now, BgpInput::Closed(id, CloseReason::Other(why.into())));
        }
    }

    /// Listeners for every neighbour whose interface exists.
    pub(super) fn listen(&mut self) {
        let Some(intent) = &self.intent else { return };
        let mut listeners = Listeners::new();
        for neighbor in intent.neighbors.values() {
            let transport = &neighbor.transport;
            if let Some(link) = self.links.get(&transport.interface) {
                let listener = Listener {
                    interface: transport.interface.clone(),
                    index: link.index,
                    family: family_of(&transport.address),
                    port: transport.local_port,
                };
                listeners.entry(listener).or_default().insert(transport.address, caller(transport));
            }
        }
        if listeners != self.listeners {
            self.listeners.clone_from(&listeners);
            self.outputs.push_back(Output::Listen(listeners));
        }
    }

    /// Asks for a connection, or says at once why there can be none.
    pub(super) fn connect(&mut self, now: Instant, id: &NeighborId, connection: ConnectionId) {
        let Some(transport) = self.neighbor(id).map(|neighbor| neighbor.transport.clone()) else {
            let reason = CloseReason::Other("the neighbour is gone".into());
            return self.speaker.handle(now, BgpInput::Closed(connection, reason));
        };
        if let Some(&at) = self.paced.get(id).filter(|at| **at > now) {
            self.held.insert(connection, (at, id.clone()));
            return;
        }
        if let Err(why) = self.reachable(&transport) {
            return self.speaker.handle(now, BgpInput::Closed(connection, CloseReason::Other(why.into())));
        }
        let (interface, local) = (transport.interface.clone(), transport.source);
        self.connections.insert(connection, Connection { neighbor: id.clone(), open: false, interface, local });
        self.outputs.push_back(Output::Connect(connection, transport));
    }

    fn reachable(&self, transport: &Transport) -> Result<(), String> {
        let (address, name) = (transport.address, &transport.interface);
        let link = self.links.live(name).map_err(|error| error.to_string())?;
        let family = family_of(&address);
        if !link.addresses.iter().any(|net| Family::of(net) == family) {
            let family = crate::gate::words(family);
            return Err(format!("interface {name} has no {family} address; give it one, or correct spec.interface"));
        }
        if !transport.multihop && !on_link(link, address) {
            return Err(format!(
                "{address} is in no network of interface {name}; correct spec.address, or set bgp.multihop"
            ));
        }
        Ok(())
    }

    fn endpoints(&self, interface: &str, local: SocketAddr, remote: SocketAddr) -> Endpoints {
        let addresses = || self.links.get(interface).into_iter().flat_map(|link| &link.addresses).map(IpNet::addr);
        let v6 = |address: IpAddr| if let IpAddr::V6(v6) = address { Some(v6) } else { None };
        let link_local = addresses().filter_map(v6).find(std::net::Ipv6Addr::is_unicast_link_local);
        let is_other = |address: &IpAddr| {
            address.is_ipv4() != local.is_ipv4() && !v6(*address).is_some_and(|v6| v6.is_unicast_link_local())
        };
        Endpoints { local, remote, local_link_local: link_local, local_other: addresses().find(is_other) }
    }

    pub(super) fn on_connected(&mut self, now: Instant, id: ConnectionId, local: SocketAddr, remote: SocketAddr) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.local = Some(local.ip());
        connection.open = true;
        self.unanswered.remove(&connection.neighbor);
        let interface = connection.interface.clone();
        let endpoints = self.endpoints(&interface, local, remote);
        self.speaker.handle(now, BgpInput::Connected(id, endpoints));
    }

    pub(super) fn on_incoming(&mut self, now: Instant, incoming: &Incoming<'_>) {
        let (remote, interface) = (incoming.remote, incoming.interface);
        let intent = self.intent.as_ref().filter(|_| self.configured);
        let known = intent.and_then(|intent| {
            intent.neighbor_at(remote.ip().to_canonical(), interface, incoming.local.port()).cloned()
        });
        let Some(neighbor) = known else {
            if self.strangers.len() < STRANGERS && self.strangers.insert(remote.ip()) {
                self.tell(Event::Stranger(remote, interface.into()));
            }
            return self.outputs.push_back(Output::Refuse(incoming.ticket));
        };
        self.tickets.insert(incoming.ticket, (neighbor.clone(), incoming.local.ip()));
        let endpoints = self.endpoints(interface, incoming.local, remote);
        self.speaker.handle(now, BgpInput::Incoming(incoming.ticket, &neighbor, endpoints));
    }

    /// The speaker gives a connect up that nobody answered: after a second of those an operator should know.
    pub(super) fn count_unanswered(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id).filter(|connection| !connection.open) else { return };
        let neighbor = connection.neighbor.clone();
        let count = self.unanswered.entry(neighbor.clone()).or_default();
        *count = count.saturating_add(1);
        if *count == UNANSWERED
            && let Some(text) = self.no_answer(&neighbor)
        {
            self.tell(Event::NoAnswer(neighbor, text));
        }
    }

    /// What to say of a neighbour that does not answer.
    pub(super) fn no_answer(&self, id: &NeighborId) -> Option<String> {
        self.unanswered.get(id).filter(|count| **count >= UNANSWERED)?;
        let Transport { address, remote_port, interface, .. } = &self.neighbor(id)?.transport;
        Some(format!(
            "no answer from {address} port {remote_port} over {interface}: check the address, the port, filters, the \
             TTL that it accepts, and that both sides have the same MD5 password or none"
        ))
    }

    pub(super) fn accept(&mut self, ticket: Ticket, id: ConnectionId) {
        let taken = self.tickets.remove(&ticket).and_then(|(neighbor, local)| {
            let transport = self.neighbor(&neighbor)?.transport.clone();
            Some((neighbor, local, transport))
        });
        let Some((neighbor, local, transport)) = taken else { return self.outputs.push_back(Output::Refuse(ticket)) };
        let interface = transport.interface.clone();
        self.connections.insert(id, Connection { neighbor, open: true, interface, local: Some(local) });
        self.outputs.push_back(Output::Accept(ticket, id, caller(&transport)));
    }
}

fn caller(transport: &Transport) -> Caller {
    let (key, ao) = (transport.key.clone(), transport.ao.clone());
    Caller { key, ao, ttl: transport.ttl, min_ttl: transport.min_ttl }
}
