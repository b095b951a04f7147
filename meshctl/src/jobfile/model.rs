//! A job as its file says it: types are right, names are valid, places are kept for the
//! messages of later checks. Nothing here has looked at another file yet.

use mesh_proto::v1;

use super::problem::{Pos, Spot};

#[derive(Debug)]
pub struct Job {
    pub name: Option<String>,
    pub priority: u32,
    pub on_failure: v1::OnFailure,
    pub params: Vec<(Spot<String>, String)>,
    pub tasks: Vec<Task>,
}

#[derive(Debug)]
pub struct Task {
    /// None: the single task at top level, which takes the job's name.
    pub name: Option<Spot<String>>,
    pub at: Pos,
    pub action: Action,
    pub array: Option<Spot<Array>>,
    pub needs: Vec<Need>,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Spot<String>>,
    pub env: Vec<(Spot<String>, Spot<String>)>,
    pub resources: v1::Resources,
    pub conditions: v1::Where,
    pub timeout_ms: u64,
    pub grace_ms: u64,
    pub retry: v1::Retry,
    pub sandbox: v1::SandboxLevel,
    pub network: v1::Network,
    pub mounts: Vec<v1::Mount>,
    pub on_disconnect: v1::OnDisconnect,
}

#[derive(Debug)]
pub enum Action {
    Command(Vec<Spot<String>>),
    Script(String),
}

#[derive(Debug)]
pub enum Array {
    Range(Range),
    Items(Vec<String>),
    /// A file, one item a line.
    Lines(String),
    /// A glob: each file is an item and an input.
    Files(String),
}

/// `first`, `first + step`, … up to and including `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: i64,
    pub last: i64,
    pub step: i64,
}

impl Range {
    pub fn count(self) -> u64 {
        let span = i128::from(self.last) - i128::from(self.first);
        u64::try_from(span / i128::from(self.step) + 1).unwrap_or(u64::MAX)
    }

    /// The value of an element; the index must be below the count.
    pub fn value(self, index: u32) -> i64 {
        self.first + i64::from(index) * self.step
    }
}

#[derive(Debug)]
pub struct Need {
    pub at: Pos,
    pub task: String,
    pub same_index: bool,
}

#[derive(Debug)]
pub struct Input {
    pub from: Spot<String>,
    pub to: Option<Spot<String>>,
}
