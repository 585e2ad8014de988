//! Plays of the BFD core: one end against a test, two ends over a bad network, packets of others, chance.

#[path = "play/alone.rs"]
mod alone;
#[path = "play/corpus.rs"]
mod corpus;
#[path = "play/packet.rs"]
mod packet;
#[path = "play/procedures.rs"]
mod procedures;
#[path = "play/random.rs"]
mod random;
#[path = "play/reception.rs"]
mod reception;
#[path = "play/reordering.rs"]
mod reordering;
#[path = "play/world.rs"]
mod world;
