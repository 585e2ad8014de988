//! Namespaces, links, peers and probes: what demo, labs, interoperability tests and benchmarks share.
//!
//! Nothing depends on it. It looks at the product only from outside: through the gateway's own commands, captures, the kernel's
//! events, and the client's connections.

pub mod app;
pub mod bench;
pub mod bfd;
pub mod capture;
pub mod cluster;
pub mod demo;
pub mod interop;
pub mod lab;
pub mod monitor;
pub mod namespace;
pub mod pair;
pub mod peer;
pub mod player;
pub mod preflight;
pub mod probe;
pub mod process;
pub mod stage;
pub mod stream;
pub mod sweep;
pub mod sys;
pub mod topology;
pub mod wait;
pub mod wire;

pub use lab::{End, Lab};
pub use namespace::{Cut, Namespace};
pub use process::Process;
pub use sys::Signal;
