//! A BFD endpoint (RFC 5880) without sockets, threads or a clock.
//!
//! [`Sessions`] holds every session of a machine. Its driver tells it which sessions there should be (a whole value), which
//! datagrams arrived and the time; it says what to send and what changed.

mod io;
mod sessions;

pub use io::{
    Auth, AuthKey, AuthKind, Change, Diagnostic, Input, Meta, Output, SessionConfig, SessionId, SessionStatus, State,
};
pub use sessions::Sessions;
