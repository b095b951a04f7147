//! One file for each kind of figure. Each takes what it needs and gives figures.

pub mod accept;
pub mod idle;
pub mod latency;
pub mod layers;
pub mod placement;
pub mod processes;
pub mod results;
