//! Stored jobs, ready to be assigned from: a bounded cache over the store and the blobs.

use std::sync::Arc;

use mesh_proto::{
    digest::Digest,
    ids::{AttemptKey, JobNumber, TaskKey},
    v1::{Assignment, FileEntry, FileList, Item, ItemList, JobSpec, TaskSpec, array_spec},
};
use prost::Message as _;

use super::cache::Cache;
use crate::{
    blobs::{BlobError, BlobStore},
    engine::event::NewJob,
    spec::{self, Plan, PlannedTask},
    store::{Store, StoreError},
};

/// Bytes of jobs that are kept at hand, about.
const JOBS: usize = 64 * 1024 * 1024;
/// Bytes of output lists of needed tasks that are kept at hand, about.
const OUTPUTS: usize = 32 * 1024 * 1024;
/// Rows of outputs that one query reads.
const PAGE: u32 = 1000;
/// An encoded list of a million items of a hundred bytes.
const MAX_ITEMS: u64 = 256 * 1024 * 1024;

/// An attempt cannot be put into words.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("the job is not in the store")]
    Gone,
    #[error("an element's templates stand for nothing")]
    Template(#[from] mesh_proto::template::TemplateError),
    #[error("the list of the array's items cannot be read")]
    Items(#[source] BlobError),
    #[error("the list of the array's items is damaged")]
    Damaged,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PlanError {
    /// Whether trying again can help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Store(StoreError::Silent | StoreError::Database(_)) => true,
            Self::Gone | Self::Template(_) | Self::Items(_) | Self::Damaged | Self::Store(_) => false,
        }
    }
}

/// The outputs of a completed definition, by element.
type Outputs = Arc<Vec<(u32, FileList)>>;

/// The cache. Cloning is cheap.
#[derive(Clone)]
pub struct Plans(Arc<Inner>);

struct Inner {
    store: Store,
    blobs: BlobStore,
    jobs: Cache<JobNumber, Arc<Plan>>,
    outputs: Cache<(JobNumber, u32), Outputs>,
}

impl Plans {
    #[must_use]
    pub fn new(store: Store, blobs: BlobStore) -> Self {
        Self(Arc::new(Inner { store, blobs, jobs: Cache::new(JOBS), outputs: Cache::new(OUTPUTS) }))
    }

    /// Nothing is at hand any more, as after a start.
    #[cfg(test)]
    pub(crate) fn forget(&self) {
        self.0.jobs.clear();
        self.0.outputs.clear();
    }

    /// A job's plan.
    pub async fn plan(&self, job: JobNumber) -> Result<Arc<Plan>, PlanError> {
        if let Some(plan) = self.0.jobs.get(&job) {
            return Ok(plan);
        }
        let spec = self.0.store.job_spec(job).await?.ok_or(PlanError::Gone)?;
        let mut tasks = Vec::new();
        for definition in self.0.store.definitions(job).await? {
            let items = self.items(&definition.spec).await?;
            tasks.push(PlannedTask { spec: definition.spec, items, total: definition.total });
        }
        let plan = Arc::new(Plan::new(spec, tasks));
        self.0.jobs.put(job, Arc::clone(&plan), plan.weight());
        Ok(plan)
    }

    /// Keeps the plan of a job that was accepted just now: its first assignments follow at once
    /// and need not read it back. A list of items that is a blob is read when it is needed.
    pub fn learn(&self, number: JobNumber, job: &NewJob) {
        let Ok(spec) = JobSpec::decode(&job.spec[..]) else { return };
        let tasks: Option<Vec<PlannedTask>> = job
            .tasks
            .iter()
            .map(|definition| {
                let spec = TaskSpec::decode(&definition.spec[..]).ok()?;
                let items = match spec.array.as_ref().and_then(|array| array.kind.as_ref()) {
                    None | Some(array_spec::Kind::Range(_)) => None,
                    Some(array_spec::Kind::Items(list)) => Some(Arc::new(list.items.clone())),
                    Some(array_spec::Kind::ItemsBlob(_)) => return None,
                };
                Some(PlannedTask { spec, items, total: definition.total })
            })
            .collect();
        if let Some(tasks) = tasks {
            let plan = Arc::new(Plan::new(spec, tasks));
            let weight = plan.weight();
            self.0.jobs.put(number, plan, weight);
        }
    }

    async fn items(&self, task: &TaskSpec) -> Result<Option<Arc<Vec<Item>>>, PlanError> {
        match task.array.as_ref().and_then(|array| array.kind.as_ref()) {
            None | Some(array_spec::Kind::Range(_)) => Ok(None),
            Some(array_spec::Kind::Items(list)) => Ok(Some(Arc::new(list.items.clone()))),
            Some(array_spec::Kind::ItemsBlob(blob)) => Ok(Some(Arc::new(self.item_blob(blob).await?))),
        }
    }

    /// The items of a list that was uploaded; as many as announced.
    pub async fn item_blob(&self, blob: &mesh_proto::v1::BlobRef) -> Result<Vec<Item>, PlanError> {
        let digest = Digest::try_from(&blob.digest[..]).map_err(|_| PlanError::Damaged)?;
        let bytes = self.0.blobs.get_bytes(digest, MAX_ITEMS).await.map_err(PlanError::Items)?;
        let list = ItemList::decode(bytes).map_err(|_| PlanError::Damaged)?;
        if list.items.len() == blob.count as usize { Ok(list.items) } else { Err(PlanError::Damaged) }
    }

    /// Everything that must stand in the work directory of a task.
    pub async fn inputs(&self, plan: &Plan, key: TaskKey) -> Result<Vec<FileEntry>, PlanError> {
        let Some(task) = plan.tasks.get(key.task as usize) else { return Ok(Vec::new()) };
        let mut inputs = task.own_inputs(key.index);
        for need in &task.spec.needs {
            let Some((position, needed)) = plan.task(&need.task) else { continue };
            let array = needed.spec.array.is_some();
            let outputs = if need.same_index {
                let one = self.0.store.outputs(key.job, position, key.index, 1).await?;
                Arc::new(one.into_iter().filter(|(index, _)| *index == key.index).collect())
            } else {
                self.outputs(key.job, position).await?
            };
            for (index, files) in outputs.iter() {
                inputs.extend(files.files.iter().map(|file| FileEntry {
                    path: spec::input_path(&need.task, array.then_some(*index), &file.path),
                    ..file.clone()
                }));
            }
        }
        Ok(inputs)
    }

    /// The outputs of a definition that is completed and so does not change any more.
    async fn outputs(&self, job: JobNumber, task: u32) -> Result<Outputs, PlanError> {
        if let Some(outputs) = self.0.outputs.get(&(job, task)) {
            return Ok(outputs);
        }
        let mut all: Vec<(u32, FileList)> = Vec::new();
        loop {
            let first = all.last().map_or(0, |(index, _)| index + 1);
            let page = self.0.store.outputs(job, task, first, PAGE).await?;
            let more = page.len() == PAGE as usize;
            all.extend(page);
            if !more {
                break;
            }
        }
        let weight = all.iter().map(|(_, files)| 64 + files.encoded_len() * 2).sum();
        let outputs = Arc::new(all);
        self.0.outputs.put((job, task), Arc::clone(&outputs), weight);
        Ok(outputs)
    }

    /// An attempt as its agent is told it, and the digests that its node may read.
    pub async fn assignment(&self, attempt: AttemptKey) -> Result<(Assignment, Vec<Digest>), PlanError> {
        let plan = self.plan(attempt.task.job).await?;
        let inputs = self.inputs(&plan, attempt.task).await?;
        let digests = digests(&inputs);
        Ok((spec::assignment(&plan, attempt, inputs)?, digests))
    }
}

/// What a list of inputs is made of.
#[must_use]
pub fn digests(inputs: &[FileEntry]) -> Vec<Digest> {
    inputs.iter().filter_map(|file| Digest::try_from(&file.digest[..]).ok()).collect()
}
