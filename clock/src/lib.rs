//! Time for cores that have no clock.
//!
//! A core never asks what time it is: its driver tells it, with every call. This crate holds the three things that cores
//! share for that: [`Instant`] (a point in time without a `now()`), [`Timers`] (a table of deadlines) and [`Dice`] (seeded
//! randomness, for jitter). It knows nothing of the operating system, so the same core runs under a test, a simulation and
//! a kernel.

mod dice;
mod instant;
mod timers;

pub use dice::Dice;
pub use instant::Instant;
pub use timers::Timers;
