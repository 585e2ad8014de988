//! A gateway router of another make, as a lab sees it. The makes are in modules of their own; all answer the same questions.

pub mod frr;

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;

/// How a gateway sees one neighbour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbor {
    /// BGP is Established.
    pub established: bool,
    /// BFD is Up; `None`: there is no BFD session.
    pub bfd_up: Option<bool>,
}

/// A gateway router that runs in a namespace.
pub trait Gateway {
    /// What it is, with its version.
    fn title(&self) -> String;

    /// Its neighbours, by address.
    ///
    /// # Errors
    /// It does not answer, or not in its usual words.
    fn neighbors(&self) -> Result<BTreeMap<IpAddr, Neighbor>>;

    /// The prefixes that it was told by neighbours, and by whom; both families.
    ///
    /// # Errors
    /// It does not answer, or not in its usual words.
    fn learned(&self) -> Result<BTreeMap<IpNet, Vec<IpAddr>>>;

    /// Begins or ends to announce a default route of both families to its neighbours.
    ///
    /// # Errors
    /// It refuses.
    fn announce_default(&self, on: bool) -> Result<()>;

    /// The commands with which a human looks into it.
    fn look(&self) -> Vec<String>;
}
