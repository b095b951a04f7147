//! meshctl as a process against a coordinator that does as it is told: what a person sees,
//! what a program reads, and with which status it ends.

#![forbid(unsafe_code)]

mod cli;
mod connection;
mod fake;
mod files;
mod jobs;
mod logs;
mod nodes;
mod run;
mod services;
