//! What every process of the house serves besides its work: a control socket, a page of metrics, health.
//!
//! How a question travels is known here; what can be asked and what is answered, each process knows.

pub mod control;
pub mod health;
pub mod metrics;
