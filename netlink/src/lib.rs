//! Kernel state as plain values, and the difference between what is and what should be.
//!
//! [`model`] holds the values; `diff` compares; `kernel` dumps, applies and watches; `nft` writes nftables.

pub mod model;

pub use model::{Action, Family, Link, Mark, NextHop, Object, Owner, Route, RouteKind, Rule, Snapshot};
