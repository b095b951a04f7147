//! The engine's tests: one file per noun.

mod attempts;
mod cancel;
mod dag;
mod jobs;
mod mesh;
mod nodes;
mod place;
mod restore;
mod retry;
mod store;
