//! Kernel state as plain values, and the difference between what is and what should be.
//!
//! [`model`] holds the values, [`diff()`] compares, [`kernel`] dumps, applies and watches, [`link`] knows neighbours and
//! sysctls, [`nft`] writes nftables. Sockets are opened in the network namespace of the calling thread.

#![warn(clippy::indexing_slicing)]

pub mod capabilities;
mod datagram;
mod diff;
mod display;
mod error;
mod filter;
pub mod kernel;
pub mod link;
pub mod model;
pub mod nft;
mod sys;

pub use diff::{Change, diff};
pub use error::Error;
pub use kernel::{Event, Events, Kernel, NeighborChange, Neighbors, ObjectsChanged};
pub use model::{Action, Family, Link, Mark, NextHop, Object, Owner, Route, RouteKind, Rule, Snapshot};
