//! Nodes, as columns.

use std::collections::BTreeMap;

use bytes::Bytes;
use mesh_proto::ids::NodeId;
use uuid::Uuid;

use crate::engine::event::NodeRecord;

#[derive(Default)]
pub(super) struct Nodes<'a> {
    pub id: Vec<Uuid>,
    pub boot: Vec<Option<Uuid>>,
    pub cordoned: Vec<bool>,
    pub draining: Vec<bool>,
    pub tags: Vec<serde_json::Value>,
    /// None: as they were.
    pub facts: Vec<Option<&'a [u8]>>,
}

impl<'a> Nodes<'a> {
    pub fn of(rows: &'a BTreeMap<NodeId, (NodeRecord, Option<Bytes>)>) -> Self {
        let mut columns = Self::default();
        for (id, (record, facts)) in rows {
            columns.id.push(id.0);
            columns.boot.push(record.boot.map(|boot| boot.0));
            columns.cordoned.push(record.cordoned);
            columns.draining.push(record.draining);
            columns.tags.push(serde_json::json!(record.tags));
            columns.facts.push(facts.as_deref());
        }
        columns
    }
}
