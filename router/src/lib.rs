//! The Router container: announces VIPs by BGP while their load balancer can serve them, and programs the kernel.
//!
//! Pure: [`intent`] (objects -> wish), [`gate`] (which VIPs now), [`plan`] and [`mirror`] (what the kernel should hold, and
//! the next changes), [`core`] (all of it around the BGP speaker, without I/O). Around them: [`driver`] (the one loop, over
//! four traits) with [`wires`] (its connections), and what stands behind the traits in production: [`net`], [`bfd_io`],
//! [`watch`], [`readiness`]. [`run`] wires it up.

pub mod bfd_io;
pub mod control;
pub mod core;
pub mod debug;
pub mod driver;
pub mod gate;
pub mod health;
pub mod intent;
pub mod log;
pub mod metrics;
pub mod mirror;
pub mod net;
pub mod net_ao;
pub mod net_plain;
pub mod options;
pub mod plan;
pub mod readiness;
pub mod ring;
pub mod run;
pub mod signals;
pub mod speaker;
pub mod state;
mod supervision;
mod sys;
pub mod sysctl;
pub mod watch;
pub mod wires;
