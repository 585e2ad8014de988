//! Plays of the BFD core: one end against a test, two ends over a bad network, packets of others, chance.

mod alone;
mod corpus;
mod packet;
mod procedures;
mod random;
mod reception;
mod reordering;
mod world;
