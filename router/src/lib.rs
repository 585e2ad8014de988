//! The Router container: announces VIPs by BGP while their load balancer can serve them, and programs the kernel.
//!
//! Pure: [`intent`] (objects -> wish), [`gate`] (which VIPs now), [`plan`] and [`mirror`] (what the kernel should hold, and
//! the next changes), [`core`] (all of it around the BGP speaker, without I/O).

pub mod core;
pub mod gate;
pub mod intent;
pub mod mirror;
pub mod plan;
