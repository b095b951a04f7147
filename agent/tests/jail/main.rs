//! The jail driven as the daemon drives it: the real binary, real processes, real kills. Each test
//! runs as whoever runs it and, when that is root, once more as an ordinary user.

mod abuse;
mod alone;
mod attacks;
mod containment;
mod endings;
mod hoards;
mod lease;
mod leavings;
mod line;
mod ordinary;
mod output;
mod powers;
mod programs;
mod quotas;
mod remedies;
mod reuse;
mod rooms;
mod running;
mod slots;
mod standing;
mod strict;
mod support;
mod takeover;
mod weaken;
