//! BFD in the lab: the product's BFD thread as a program, FRR and BIRD as its other end, a stage between them.
//!
//! ```text
//!   martlet-lab bfd  eth0 --- left [bridge] right --- eth0  bfdd, BIRD, or a second martlet-lab bfd
//!   10.0.0.1, 192.0.2.1        10.0.0.254                   10.0.0.2, 192.0.2.2
//! ```
//!
//! The addresses 192.0.2.0/24 lie behind the router in the middle: sessions between them go over several hops.

mod endpoint;
mod ours;
mod peers;
mod stage;

pub use endpoint::{Arguments, Key, Line, Wish, serve};
pub use ours::Endpoint;
pub use peers::{Bird, bird_config, frr_config};
pub use stage::{Kind, Stage};
