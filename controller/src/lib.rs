//! The Controller-Manager: what it makes and says of the Gateways of its namespace.
//!
//! Pure functions of whole values, one file for each kind of object; [`mod@endpoints`] is the model.

pub mod endpoints;
pub mod networks;
