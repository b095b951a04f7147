//! Attempts, as columns.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use mesh_proto::{ids::AttemptKey, state::Named as _};
use uuid::Uuid;

use crate::{
    engine::{effect::AttemptRow, types::Limits},
    store::clock::stamp,
};

#[derive(Default)]
pub(super) struct Attempts<'a> {
    pub job: Vec<i64>,
    pub task: Vec<i32>,
    pub index: Vec<i32>,
    pub number: Vec<i32>,
    pub state: Vec<&'static str>,
    pub node: Vec<Uuid>,
    pub boot: Vec<Uuid>,
    pub cause: Vec<Option<&'static str>>,
    pub exit_code: Vec<Option<i32>>,
    pub signal: Vec<Option<i32>>,
    pub message: Vec<Option<&'a str>>,
    pub sandbox: Vec<Option<i16>>,
    pub limits: Vec<Option<i16>>,
    pub assigned_at: Vec<DateTime<Utc>>,
    pub started_at: Vec<Option<DateTime<Utc>>>,
    pub ended_at: Vec<Option<DateTime<Utc>>>,
    pub run_ms: Vec<Option<i64>>,
    pub cpu_ms: Vec<Option<i64>>,
    pub max_rss: Vec<Option<i64>>,
    pub outputs: Vec<Option<&'a [u8]>>,
    pub output_length: Vec<i64>,
    pub output: Vec<Option<&'a [u8]>>,
    pub decision: Vec<Option<i64>>,
}

impl<'a> Attempts<'a> {
    pub fn of(rows: &'a BTreeMap<AttemptKey, AttemptRow>) -> Self {
        let mut c = Self::default();
        for row in rows.values() {
            let end = row.ended.as_ref().map(|(_, end)| end.as_ref());
            c.job.push(row.key.task.job.0 as i64);
            c.task.push(row.key.task.task as i32);
            c.index.push(row.key.task.index as i32);
            c.number.push(row.key.number as i32);
            c.state.push(match (end, row.started_at) {
                (Some(_), _) => "ended",
                (None, Some(_)) => "running",
                (None, None) => "assigned",
            });
            c.node.push(row.node.0);
            c.boot.push(row.boot.0);
            c.cause.push(end.map(|end| end.cause.lower()));
            c.exit_code.push(end.and_then(|end| end.exit_code));
            c.signal.push(end.and_then(|end| end.signal));
            c.message.push(end.map(|end| end.message.as_str()).filter(|text| !text.is_empty()));
            c.sandbox.push(row.sandbox.map(|confined| confined.level as i16));
            // At other levels than strict nothing holds it.
            let limits = row.sandbox.map(|confined| confined.limits);
            c.limits.push(limits.filter(|limits| *limits != Limits::Unspecified).map(|limits| limits as i16));
            c.assigned_at.push(stamp(row.assigned_at));
            c.started_at.push(row.started_at.map(stamp));
            c.ended_at.push(row.ended.as_ref().map(|(at, _)| stamp(*at)));
            c.run_ms.push(end.map(|end| end.run_ms as i64));
            c.cpu_ms.push(end.map(|end| end.cpu_ms as i64));
            c.max_rss.push(end.map(|end| end.max_rss_bytes as i64));
            c.outputs.push(end.map(|end| &end.outputs[..]).filter(|bytes| !bytes.is_empty()));
            c.output_length.push(end.map_or(0, |end| end.output_length as i64));
            c.output.push(end.map(|end| &end.output[..]).filter(|bytes| !bytes.is_empty()));
            c.decision.push(row.decision.map(|id| id as i64));
        }
        c
    }
}
