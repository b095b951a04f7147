//! The engine's tests: one file per noun, and `model.rs`, which plays random histories; `races.rs`
//! plays those in which two things meet.

mod agent;
mod attempts;
mod cancel;
mod dag;
mod drawn;
mod explain;
mod failures;
mod feed;
mod jobs;
mod mesh;
mod model;
mod nodes;
mod place;
mod races;
mod redrive;
pub(crate) mod restore;
mod retry;
mod score;
mod store;
