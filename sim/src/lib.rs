//! Whole lives of a node in a simulated world, from a seed.
//!
//! The cores, logs, recovery, merges and scrubs are the production ones; disks, clock and
//! connections are simulated. A history ([`history`]) says what goes wrong and how often; the
//! world ([`world`]) plays it, restarts the node again and again, and holds what producers,
//! readers, a controller and guests saw against a model. The same seed gives the same history, byte for
//! byte.

mod background;
mod command;
mod controller;
mod guest;
mod history;
mod link;
mod model;
mod producer;
mod reader;
mod world;

pub use command::{SimArgs, run};
pub use history::{History, Outcome};
pub use world::play;
