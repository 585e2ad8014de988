//! A BFD endpoint (RFC 5880) without sockets, threads or a clock.
//!
//! [`Sessions`] holds every session of a machine. Its driver tells it which sessions there should be (a whole value), which
//! datagrams arrived and the time; it says what to send and what changed.
//!
//! ```text
//!   datagrams     +---------- sessions ----------+
//!  -------------> | packet   which session?      |      packets, changes
//!   wishes, time  |     session (6.8)            | --------------------->
//!  -------------> |  timing  schedule  auth echo |
//!                 +------------------------------+
//! ```
//!
//! RFC 5880 (the protocol), RFC 5881 (one hop), RFC 5883 (several), RFC 9747 (a neighbour without BFD).
#![warn(clippy::indexing_slicing)]

mod auth;
mod discard;
mod echo;
mod io;
mod packet;
mod schedule;
mod session;
mod sessions;
mod timing;

pub use discard::Discard;
pub use io::{
    Auth, AuthKey, AuthKind, Change, Diagnostic, Input, Meta, Output, SessionConfig, SessionId, SessionStatus, State,
};
pub use sessions::Sessions;
