//! Dead letters: tasks that used up their attempts, as people read them.

use mesh_proto::ids::JobNumber;

use super::{
    Store, StoreError,
    tasks::{TaskRecord, task_record},
};

/// A task that used up its attempts, with the names of its job and its definition.
#[derive(Clone, Debug)]
pub struct Dead {
    pub job: JobNumber,
    pub job_name: String,
    pub name: String,
    pub own_failures: u32,
    pub losses: u32,
    pub task: TaskRecord,
}

/// The last dead letter of a page: job, definition, element.
pub type DeadCursor = (JobNumber, u32, u32);

impl Store {
    /// Dead letters after `after`: of one job, of one of its definitions, of one element; or of
    /// every job, the newest first.
    pub async fn dead(
        &self,
        job: Option<JobNumber>,
        target: Option<(u32, Option<u32>)>,
        after: Option<DeadCursor>,
        limit: u32,
    ) -> Result<Vec<Dead>, StoreError> {
        let mut found = Vec::new();
        if let Some(job) = job {
            let after = after.map(|(_, task, index)| (task, index));
            self.dead_of(job, target, after, limit, &mut found).await?;
            return Ok(found);
        }
        let (mut before, mut inside) = match after {
            // The rest of the job where the page before ended, then those before it.
            Some((job, task, index)) => (job.0.saturating_add(1), Some((task, index))),
            None => (u64::MAX, None),
        };
        while (found.len() as u32) < limit {
            let next = sqlx::query_scalar!(
                "SELECT number FROM jobs WHERE number < $1 AND counts[7] > 0 ORDER BY number DESC LIMIT 1",
                i64::try_from(before).unwrap_or(i64::MAX),
            )
            .fetch_optional(&self.pool)
            .await?;
            let Some(number) = next else { break };
            before = number as u64;
            let job = JobNumber(before);
            let inside = inside.take().filter(|_| after.is_some_and(|(at, ..)| at == job));
            self.dead_of(job, None, inside, limit - found.len() as u32, &mut found).await?;
        }
        Ok(found)
    }

    async fn dead_of(
        &self,
        job: JobNumber,
        target: Option<(u32, Option<u32>)>,
        after: Option<(u32, u32)>,
        limit: u32,
        found: &mut Vec<Dead>,
    ) -> Result<(), StoreError> {
        let Ok(number) = i64::try_from(job.0) else { return Ok(()) };
        let (task, index) = match target {
            Some((task, index)) => (Some(task as i32), index.map(|index| index as i32)),
            None => (None, None),
        };
        let (after_task, after_index) = after.map_or((-1, -1), |(task, index)| (task as i32, index as i32));
        let rows = sqlx::query_file!(
            "src/store/dead.sql",
            number,
            task,
            index,
            after_task,
            after_index,
            i64::from(limit)
        )
        .fetch_all(&self.pool)
        .await?;
        for row in rows {
            found.push(Dead {
                job,
                job_name: row.job_name,
                name: row.name,
                own_failures: row.own_failures as u32,
                losses: row.losses as u32,
                task: task_record!(row),
            });
        }
        Ok(())
    }
}
