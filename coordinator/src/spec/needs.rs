//! Which task needs which: every name found once, and no ring.

use std::collections::{HashMap, HashSet};

use mesh_proto::v1::TaskSpec;

use super::{
    check::{Limits, SpecError, entries},
    definition::count,
};

/// The position of each task by its name.
pub(super) fn positions(tasks: &[TaskSpec]) -> HashMap<&str, u32> {
    tasks.iter().map(|task| task.name.as_str()).zip(0..).collect()
}

/// Needs name other tasks, element by element only where both have as many, and form no ring.
/// Costs no more than there are needs.
pub(super) fn check_needs(tasks: &[TaskSpec], limits: &Limits) -> Result<(), SpecError> {
    let positions = positions(tasks);
    // Who needs this, and how many needs are not met yet.
    let mut needed_by: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
    let mut left: Vec<usize> = Vec::with_capacity(tasks.len());
    for (position, task) in tasks.iter().enumerate() {
        entries(&format!("task {:?}: needs", task.name), task.needs.len(), limits)?;
        let bad = |what: String| SpecError::of(&task.name, "needs", what);
        let mut seen = HashSet::new();
        for need in &task.needs {
            let needed = *positions
                .get(need.task.as_str())
                .ok_or_else(|| bad(format!("names {:?}, which is no task", need.task)))?
                as usize;
            if !seen.insert(needed) {
                return Err(bad(format!("names {:?} twice", need.task)));
            }
            let other = &tasks[needed];
            if need.same_index
                && (task.array.is_none() || other.array.is_none() || count(task)? != count(other)?)
            {
                let what = format!(
                    "names {:?} with same_index, but the two are not arrays of one length",
                    need.task
                );
                return Err(bad(what));
            }
            needed_by[needed].push(position);
        }
        left.push(task.needs.len());
    }
    let mut free: Vec<usize> =
        left.iter().enumerate().filter(|(_, needs)| **needs == 0).map(|(position, _)| position).collect();
    let mut met = 0;
    while let Some(position) = free.pop() {
        met += 1;
        for &dependent in &needed_by[position] {
            left[dependent] -= 1;
            if left[dependent] == 0 {
                free.push(dependent);
            }
        }
    }
    if met == tasks.len() {
        return Ok(());
    }
    let ring = ring(tasks, &positions, &left);
    Err(SpecError::of(ring, "needs", "lead back to the task itself"))
}

/// A task of a ring: from one that is never met, back along needs that are never met, until one
/// comes twice.
fn ring<'a>(tasks: &'a [TaskSpec], positions: &HashMap<&str, u32>, left: &[usize]) -> &'a str {
    let stuck = |position: &usize| left[*position] > 0;
    let mut at = (0..tasks.len()).find(stuck).unwrap_or_default();
    let mut seen = HashSet::new();
    while seen.insert(at) {
        let next = tasks[at].needs.iter().filter_map(|need| positions.get(need.task.as_str()));
        let Some(next) = next.map(|position| *position as usize).find(stuck) else { break };
        at = next;
    }
    &tasks[at].name
}
