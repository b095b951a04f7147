//! Tasks, as columns.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use mesh_proto::{ids::TaskKey, state::Named as _};
use uuid::Uuid;

use crate::{engine::effect::TaskRow, store::clock::stamp};

#[derive(Default)]
pub(super) struct Tasks<'a> {
    pub job: Vec<i64>,
    pub task: Vec<i32>,
    pub index: Vec<i32>,
    pub state: Vec<&'static str>,
    pub attempt: Vec<i32>,
    pub node: Vec<Option<Uuid>>,
    pub own_failures: Vec<i32>,
    pub losses: Vec<i32>,
    pub cause: Vec<Option<&'static str>>,
    pub exit_code: Vec<Option<i32>>,
    pub signal: Vec<Option<i32>>,
    pub message: Vec<Option<&'a str>>,
    pub started_at: Vec<Option<DateTime<Utc>>>,
    pub finished_at: Vec<Option<DateTime<Utc>>>,
}

impl<'a> Tasks<'a> {
    pub fn of(rows: &'a BTreeMap<TaskKey, TaskRow>) -> Self {
        let mut c = Self::default();
        for row in rows.values() {
            let end = row.end.as_deref();
            c.job.push(row.key.job.0 as i64);
            c.task.push(row.key.task as i32);
            c.index.push(row.key.index as i32);
            c.state.push(row.state.lower());
            c.attempt.push(row.attempt as i32);
            c.node.push(row.node.map(|node| node.0));
            c.own_failures.push(row.own_failures as i32);
            c.losses.push(row.losses as i32);
            c.cause.push(end.map(|end| end.cause.lower()));
            c.exit_code.push(end.and_then(|end| end.exit_code));
            c.signal.push(end.and_then(|end| end.signal));
            c.message.push(end.map(|end| end.message.as_str()).filter(|text| !text.is_empty()));
            c.started_at.push(row.started_at.map(stamp));
            c.finished_at.push(row.finished_at.map(stamp));
        }
        c
    }
}
