//! A gateway router of another make, as a lab sees it. The makes are in modules of their own; all answer the same questions.

pub mod bird;
pub mod exabgp;
pub mod frr;
pub mod gobgp;
pub mod openbgpd;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::Process;

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

/// What a tagged prefix carries: its MED.
pub const MED: u32 = 77;
/// What a tagged prefix carries: its large community.
pub const LARGE: &str = "64512:2:3";

/// The makes that speak BGP with us in interoperability tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Make {
    /// FRR's `bgpd`.
    Frr,
    /// BIRD 2.
    Bird,
    /// `GoBGP`.
    Gobgp,
    /// `OpenBGPD`, portable.
    Openbgpd,
    /// `ExaBGP`.
    Exabgp,
}

/// A peer with one neighbour, as a whole value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of a configuration")]
pub struct Setup {
    /// Its address.
    pub address: IpAddr,
    /// Its neighbour.
    pub neighbor: IpAddr,
    /// Its AS number.
    pub local_as: u32,
    /// The AS number of its neighbour.
    pub remote_as: u32,
    /// The port that both sides listen on.
    pub port: u16,
    /// TCP MD5.
    pub password: Option<String>,
    /// The hold time, seconds.
    pub hold_time_s: u16,
    /// What it announces as it is; one family, that of the addresses.
    pub announce: IpNet,
    /// What it announces with [`MED`], [`LARGE`] and, to another AS, its own AS twice more in front.
    pub tagged: Option<IpNet>,
    /// It offers graceful restart for its family.
    pub graceful: bool,
    /// It says that it speaks four-octet AS numbers (RFC 6793).
    pub four_octet: bool,
    /// BFD with 300 ms, three times.
    pub bfd: bool,
    /// A restart of it: it may say so (RFC 4724).
    pub restarted: bool,
}

impl Setup {
    /// Whether both sides are of one AS.
    pub const fn internal(&self) -> bool {
        self.local_as == self.remote_as
    }

    /// `ipv4` or `ipv6`.
    pub const fn family(&self) -> &'static str {
        if self.address.is_ipv4() { "ipv4" } else { "ipv6" }
    }
}

/// A route as the peer reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The AS path; sets are flattened.
    pub as_path: Vec<u32>,
    /// The next hop.
    pub next_hop: Option<IpAddr>,
    /// The large communities.
    pub large: BTreeSet<String>,
}

/// Something that a make may not be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Ask for all routes again.
    Refresh,
    /// Say that it kept its forwarding state over a restart.
    Graceful,
    /// Send a shutdown communication.
    SendText,
    /// Read a shutdown communication.
    ReadText,
}

/// A running peer. All of it is asked of its own tools.
pub trait Peer {
    /// What it is, with its version.
    fn title(&self) -> String;

    /// Whether its session is Established.
    ///
    /// # Errors
    /// It does not answer, or not in its usual words.
    fn established(&self) -> Result<bool>;

    /// What it was told by its neighbour.
    ///
    /// # Errors
    /// It does not answer, or not in its usual words.
    fn received(&self) -> Result<BTreeMap<IpNet, Heard>>;

    /// Ends to announce [`Setup::announce`].
    ///
    /// # Errors
    /// It refuses.
    fn withdraw(&self) -> Result<()>;

    /// Asks its neighbour to send all again (RFC 2918).
    ///
    /// # Errors
    /// It refuses.
    fn refresh(&self) -> Result<()>;

    /// Ends the session with a shutdown communication (RFC 9003).
    ///
    /// # Errors
    /// It refuses.
    fn shut_down(&self, text: &str) -> Result<()>;

    /// What it cannot do by its make, with the reason.
    fn lacks(&self) -> &'static [(Lack, &'static str)] {
        &[]
    }

    /// All that it tells of why a session ended.
    ///
    /// # Errors
    /// It does not answer.
    fn reasons(&self) -> Result<String>;

    /// Ends the session and begins a new one at once, without a pause for bad behaviour.
    ///
    /// # Errors
    /// It refuses.
    fn reset(&self) -> Result<()>;

    /// Whether its BFD session is Up.
    ///
    /// # Errors
    /// It has no BFD, or does not answer.
    fn bfd_up(&self) -> Result<bool> {
        bail!("{} has no BFD", self.title())
    }

    /// Its processes; those that they start end with them.
    fn processes(&self) -> &[Process];
}

impl Make {
    /// All.
    pub const ALL: [Self; 5] = [Self::Frr, Self::Bird, Self::Gobgp, Self::Openbgpd, Self::Exabgp];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frr => "frr",
            Self::Bird => "bird",
            Self::Gobgp => "gobgp",
            Self::Openbgpd => "openbgpd",
            Self::Exabgp => "exabgp",
        }
    }

    /// Starts it in a namespace that has [`Setup::address`].
    ///
    /// # Errors
    /// It is not installed, does not start, or does not take its configuration.
    pub fn start(self, lab: &Lab, namespace: &Namespace, setup: &Setup) -> Result<Box<dyn Peer + Send>> {
        let run = Run::new(self, lab, namespace, setup)?;
        Ok(match self {
            Self::Frr => Box::new(frr::Speaker::start(lab, run)?),
            Self::Bird => Box::new(bird::Bird::start(lab, run)?),
            Self::Gobgp => Box::new(gobgp::Gobgp::start(lab, run)?),
            Self::Openbgpd => Box::new(openbgpd::Openbgpd::start(lab, run)?),
            Self::Exabgp => Box::new(exabgp::Exabgp::start(lab, run)?),
        })
    }
}

/// What all makes need: where it runs, what it is to be, its folder.
#[derive(Debug)]
pub(crate) struct Run {
    namespace: Namespace,
    setup: Setup,
    dir: PathBuf,
}

impl Run {
    fn new(make: Make, lab: &Lab, namespace: &Namespace, setup: &Setup) -> Result<Self> {
        let dir = lab.dir().join(format!("{}-{}", namespace.role(), make.name()));
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self { namespace: namespace.clone(), setup: setup.clone(), dir })
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// What a control program of the peer says; an error if it fails.
    fn ask(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.namespace.output(program, arguments)
    }

    fn json(&self, program: &str, arguments: &[&str]) -> Result<serde_json::Value> {
        let said = self.ask(program, arguments)?;
        serde_json::from_str(&said).with_context(|| format!("{program} {}: {said}", arguments.join(" ")))
    }

    fn spawn(&self, lab: &Lab, command: Command) -> Result<Process> {
        let name = command.get_program().to_string_lossy().rsplit('/').next().unwrap_or("peer").to_owned();
        lab.spawn(&format!("{}-{name}", self.namespace.role()), Some(&self.namespace), command)
    }

    /// Fails if the process has ended.
    fn alive(process: &Process) -> Result<()> {
        match process.ended() {
            Some(status) => bail!("{} ended: {status}: {}", process.name(), process.tail(5)),
            None => Ok(()),
        }
    }
}

/// The AS numbers in a text.
fn as_numbers(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}
