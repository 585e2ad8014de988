//! The Controller-Manager: what it makes and says of the Gateways of its namespace.
//!
//! Watches fill a [`world::World`], a whole value; [`plan::plan`], a pure function, says what is to be done; what does it knows
//! nothing of why. Each kind of object has a pure function of its own: [`mod@endpoints`] is the model.

pub mod act;
pub mod conditions;
pub mod deployment;
pub mod endpoints;
pub mod events;
pub mod gateway;
pub mod health;
pub mod lease;
pub mod networks;
pub mod notes;
pub mod plan;
pub mod pods;
pub mod routers;
pub mod routes;
pub mod run;
pub mod watch;
pub mod world;

pub use run::{Options, run};

/// Who owns the fields that we apply.
pub const FIELD_MANAGER: &str = "martlet-controller";
