//! Nodes as people see them.

use std::collections::HashMap;

use mesh_proto::{
    state::Named as _,
    v1::{NodeInfo, NodeState, mesh_status},
};

use crate::{
    engine::{Totals, effect::NodeView},
    store::nodes::StoredNode,
};

/// A node's row together with what the engine knows of it now.
#[must_use]
pub fn node_info(stored: &StoredNode, view: Option<&NodeView>) -> NodeInfo {
    let mut facts = stored.facts.clone().unwrap_or_default();
    facts.tags.extend(stored.record.tags.clone());
    let mut info = NodeInfo {
        id: stored.record.id.to_string(),
        name: stored.record.name.clone(),
        state: NodeState::Offline.into(),
        cordoned: stored.record.cordoned,
        draining: stored.record.draining,
        reliability: 1.0,
        slots_total: facts.slots,
        memory_total: facts.memory_bytes,
        facts: Some(facts),
        joined_at_ms: stored.joined_at.timestamp_millis(),
        ..NodeInfo::default()
    };
    if let Some(view) = view {
        info.state = view.state.into();
        info.cordoned = view.record.cordoned;
        info.draining = view.record.draining;
        info.rtt_ms = view.rtt_us.map(|us| us as f64 / 1000.0);
        info.load = view.load_permille.map(|load| f64::from(load) / 1000.0);
        info.running = view.running;
        info.queued = view.queued;
        info.reliability = view.reliability;
        info.last_heartbeat_ms = view.silent_ms;
        if view.connected {
            info.slots_total = view.slots;
            info.slots_free = view.slots_free;
            info.cpu_millis_free = view.cpu_millis_free as u32;
            info.memory_total = view.memory_total;
            info.memory_free = view.memory_free;
        }
    }
    info
}

/// Counts by state, for the status.
#[must_use]
pub fn status_counts(totals: &Totals) -> (HashMap<String, u64>, HashMap<String, u64>, mesh_status::Counts) {
    use mesh_proto::v1::TaskState;
    let nodes = [NodeState::Healthy, NodeState::Suspect, NodeState::Offline];
    let nodes =
        nodes.iter().zip(totals.nodes).map(|(state, count)| (state.lower().to_owned(), count)).collect();
    let jobs = [("queued".to_owned(), totals.jobs[0]), ("running".to_owned(), totals.jobs[1])].into();
    let tasks = mesh_status::Counts {
        blocked: totals.tasks[TaskState::Blocked],
        queued: totals.tasks[TaskState::Queued],
        assigned: totals.tasks[TaskState::Assigned],
        running: totals.tasks[TaskState::Running],
        retrying: totals.tasks[TaskState::Retrying],
    };
    (nodes, jobs, tasks)
}
