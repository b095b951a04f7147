//! Jobs come in.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_proto::ids::JobNumber;

use super::{
    effect::{Effects, Refusal, Reply, Say, Write},
    event::{Need, NewDefinition, NewJob, ReplyId},
    job::{Definition, Job},
    machine::Engine,
    ranges::{Attempts, Elements},
    types::{Counts, JobState, TaskState, Time},
};

impl Engine {
    /// Accepts a job, or names the one that its key made before.
    pub(super) fn submit(&mut self, now: Time, reply: ReplyId, new: &Arc<NewJob>, fx: &mut Effects) {
        if let Some(key) = &new.idempotency_key
            && let Some(number) = self.keys.get(&(new.owner.clone(), key.clone()))
            && let Some(job) = self.jobs.get(number)
        {
            let answer = if job.payload_digest == new.payload_digest {
                Reply::Submitted { number: *number, uuid: job.uuid, existed: true }
            } else {
                Reply::Refused(Refusal::KeyUsed(*number))
            };
            fx.says.push(Say::Reply(reply, answer));
            return;
        }
        let number = JobNumber(self.next_job);
        self.next_job += 1;
        fx.writes.push(Write::NewJob { number, job: Arc::clone(new), created_at: now });
        fx.says.push(Say::Reply(reply, Reply::Submitted { number, uuid: new.uuid, existed: false }));

        let tasks = self.definitions(&new.tasks);
        if let Some(key) = &new.idempotency_key {
            self.keys.insert((new.owner.clone(), key.clone()), number);
        }
        for definition in &tasks {
            self.totals.add(&definition.counts);
        }
        self.jobs.insert(
            number,
            Job {
                number,
                uuid: new.uuid,
                owner: new.owner.clone(),
                priority: new.priority,
                keep_going: new.keep_going,
                idempotency_key: new.idempotency_key.clone(),
                payload_digest: new.payload_digest,
                state: JobState::Queued,
                ending: None,
                reason: String::new(),
                created_at: now,
                started_at: None,
                tasks,
            },
        );
        self.dirty.entry(number).or_default();
        for task in 0..new.tasks.len() as u32 {
            self.unblock_all(now, number, task);
        }
    }

    /// Definitions as they begin: every element blocked.
    pub(super) fn definitions(&mut self, new: &[NewDefinition]) -> Vec<Definition> {
        let mut definitions: Vec<Definition> = new
            .iter()
            .map(|definition| {
                let mut counts = Counts::default();
                counts[TaskState::Blocked] = u64::from(definition.total);
                Definition {
                    name: definition.name.clone(),
                    array: definition.array,
                    total: definition.total,
                    class: self.classes.join(&definition.requirements),
                    retry: definition.retry.clone(),
                    needs: definition.needs.clone(),
                    dependents: Vec::new(),
                    ready: Elements::default(),
                    again: BTreeSet::new(),
                    live: BTreeMap::new(),
                    completed: Elements::default(),
                    dropped: Elements::default(),
                    dead: Elements::default(),
                    past: Attempts::default(),
                    counts,
                    ready_at: Time::default(),
                    run_ms: None,
                }
            })
            .collect();
        for (task, definition) in new.iter().enumerate() {
            for need in &definition.needs {
                if let Some(needed) = definitions.get_mut(need.task as usize) {
                    needed.dependents.push(Need { task: task as u32, same_index: need.same_index });
                }
            }
        }
        definitions
    }
}
