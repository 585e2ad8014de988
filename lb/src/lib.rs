//! The load balancer of one Gateway: a stateless choice of an endpoint for each packet to a VIP.
//!
//! Pure parts, which know no socket and no clock: [`hash`] and [`maglev`] (the wire contract between replicas; [`nfqlb`]:
//! another one's), [`packet`] (octets to a value), [`flow`] (`L34Route`s), [`engine`] (a packet and the tables: an
//! endpoint), [`fragment`], [`icmp`] and [`verdict`] (what else a packet needs), [`targets`] (a view of the objects: tables
//! and marks), [`rules`] (marks: routes, rules and nftables), [`offload`] (the engine's decisions as nftables),
//! [`translate`] (ports, as nftables), [`ready`] (which VIPs are served), [`counters`], [`status`] and [`show`] (what is shown).
//!
//! At the edge: [`queue`] (nfqueue, one thread a queue), [`readiness`] (the unix socket to the router), [`follow`] (a new
//! view, and what is done about it in which order), [`control`], [`metrics`] and
//! [`health`] (the surfaces), [`run`] (the wiring).

pub mod control;
pub mod counters;
pub mod direct;
pub mod engine;
pub mod flow;
pub mod follow;
pub mod fragment;
pub mod hash;
pub mod health;
pub mod icmp;
pub mod ingress;
pub mod maglev;
pub mod metrics;
pub mod nfqlb;
pub mod offload;
pub mod packet;
pub mod queue;
pub mod readiness;
pub mod ready;
pub mod rules;
pub mod run;
pub mod show;
pub mod status;
pub mod targets;
pub mod translate;
pub mod verdict;
