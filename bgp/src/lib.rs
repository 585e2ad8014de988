//! A BGP-4 speaker (RFC 4271) without sockets, threads or a clock.
//!
//! [`Speaker`] holds every neighbour of one router. A driver tells it what it should be ([`Input::SetNeighbors`],
//! [`Input::SetAnnounced`]: whole values, the speaker computes the difference), what happened on its connections, and the
//! time; it asks for connections and tells what happened in return. What is to be sent is *pulled*: when a connection has
//! room the driver calls [`Speaker::transmit`], so a slow neighbour never makes a queue grow. What was learned is pulled
//! too: [`Speaker::changed`] names prefixes whose best paths changed, [`Speaker::paths`] tells them.

mod announce;
mod collision;
mod config;
mod connection;
mod framer;
mod fsm;
mod intern;
mod io;
mod last_resort;
mod learn;
mod look;
mod neighbor;
mod policy;
mod rib;
mod session;
mod speaker;
mod wire;
mod wish;

pub use config::{
    Bfd, Community, Export, Family, GracefulRestart, HoldTime, Import, Local, NeighborConfig, NeighborId, PrefixLimit,
    PrefixRange, Role,
};
pub use io::{
    BfdState, CloseReason, ConnectionId, Counters, Endpoints, Event, Input, NeighborState, NeighborStatus, Output,
    Path, Ticket,
};
pub use look::RouteDetails;
pub use speaker::Speaker;
