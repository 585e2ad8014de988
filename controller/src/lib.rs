//! The Controller-Manager: what it makes and says of the Gateways of its namespace.
//!
//! Pure functions of whole values, one file for each kind of object; [`mod@endpoints`] is the model.

pub mod conditions;
pub mod deployment;
pub mod endpoints;
pub mod gateway;
pub mod networks;
pub mod routers;
pub mod routes;
