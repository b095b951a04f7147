//! From the model to a job that can be sent: arrays loaded, inputs found, everything checked
//! that can be checked here. Two steps, because `check` need not read the inputs' bytes:
//! [`prepare`] looks, [`Prepared::into_submission`] digests.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use bytes::Bytes;
use mesh_proto::{digest::Digest, limits, template::Element, v1};
use prost::Message as _;

use super::{
    check,
    elements::Elements,
    files::{FileError, FileTable, HashedFile, HashedFiles},
    graph::{self, Vertex},
    inputs::{self, Params, Place, Placed},
    model::{Action, Job, Task},
    problem::{Pos, Problem},
};

/// Elements of an array whose inputs differ: their lists travel in the submit itself.
const MAX_TEMPLATED: u64 = 50_000;

/// What the command line says over the file.
#[derive(Debug, Default)]
pub struct Overrides {
    pub name: Option<String>,
    pub set: Vec<(String, String)>,
}

/// A job with its files known and not yet read.
#[derive(Debug)]
pub struct Prepared {
    name: String,
    priority: u32,
    on_failure: v1::OnFailure,
    params: Params,
    tasks: Vec<PreparedTask>,
    pub files: FileTable,
}

#[derive(Debug)]
struct PreparedTask {
    name: String,
    task: Task,
    elements: Option<Elements>,
    placed: Vec<Placed>,
    /// For each templated input the files of each element.
    templated: Vec<Vec<Vec<Placed>>>,
}

/// Why a job cannot be prepared or sent.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// At a place of the job file.
    #[error("{0}")]
    Problem(Problem),
    #[error("--set {name}: the job has no parameter of that name{known}")]
    UnknownParam { name: String, known: String },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the job is {0} bytes when sent, at most {most} are allowed; put long lists into files", most = limits::MAX_MESSAGE)]
    TooLarge(usize),
}

impl From<Problem> for PrepareError {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// `default_name` is for a job whose file names none; `base` is where relative paths begin.
pub fn prepare(
    job: Job,
    default_name: &str,
    base: &Path,
    overrides: &Overrides,
) -> Result<Prepared, PrepareError> {
    let params = params(&job, overrides)?;
    let own_name = job.name.clone().unwrap_or_else(|| default_name.to_owned());
    let mut files = FileTable::default();
    let mut tasks = Vec::new();
    let mut total = 0_u64;
    for task in job.tasks {
        let elements =
            task.array.as_ref().map(|array| Elements::load(array, base, &mut files)).transpose()?;
        total = total.saturating_add(elements.as_ref().map_or(1, Elements::count));
        if total > limits::MAX_TASKS {
            return Err(Problem::at(
                task.array.as_ref().map_or(task.at, |array| array.at),
                format!("up to here the job has {total} tasks"),
                format!("at most {}", limits::MAX_TASKS),
            )
            .into());
        }
        let name = task.name.as_ref().map_or_else(|| own_name.clone(), |name| name.value.clone());
        tasks.push(PreparedTask { name, task, elements, placed: Vec::new(), templated: Vec::new() });
    }
    let vertices: Vec<Vertex> = tasks
        .iter()
        .map(|prepared| Vertex {
            name: &prepared.name,
            at: prepared.task.name.as_ref().map_or(prepared.task.at, |name| name.at),
            needs: &prepared.task.needs,
            elements: prepared.elements.as_ref().map(Elements::count),
        })
        .collect();
    graph::check(&vertices)?;
    graph::check_same_index(&vertices)?;
    for prepared in &mut tasks {
        check::task(&prepared.task, prepared.elements.as_ref(), &params)?;
        find_inputs(prepared, &mut Place { base, params: &params, files: &mut files })?;
    }
    Ok(Prepared {
        name: overrides.name.clone().unwrap_or(own_name),
        priority: job.priority,
        on_failure: job.on_failure,
        params,
        tasks,
        files,
    })
}

fn params(job: &Job, overrides: &Overrides) -> Result<Params, PrepareError> {
    let mut params: Params =
        job.params.iter().map(|(name, value)| (name.value.clone(), value.clone())).collect();
    let mut used = HashSet::new();
    job.tasks.iter().for_each(|task| check::params_used(task, &mut used));
    for (name, value) in &overrides.set {
        if !params.contains_key(name) && !used.contains(name) {
            let mut known: Vec<&str> = params.keys().chain(&used).map(String::as_str).collect();
            known.sort_unstable();
            known.dedup();
            let known =
                if known.is_empty() { String::new() } else { format!("; it has {}", known.join(", ")) };
            return Err(PrepareError::UnknownParam { name: name.clone(), known });
        }
        params.insert(name.clone(), value.clone());
    }
    Ok(params)
}

fn find_inputs(prepared: &mut PreparedTask, place: &mut Place) -> Result<(), Problem> {
    let at = prepared.task.inputs.first().map_or(prepared.task.at, |input| input.from.at);
    for input in &prepared.task.inputs {
        let Some(elements) = prepared.elements.as_ref().filter(|_| inputs::is_template(input)) else {
            prepared.placed.extend(inputs::expand(input, None, place)?);
            continue;
        };
        if elements.count() > MAX_TEMPLATED {
            return Err(Problem::at(
                input.from.at,
                format!("this input differs between {} elements", elements.count()),
                format!("at most {MAX_TEMPLATED}; `array: {{files: GLOB}}` has no such limit"),
            ));
        }
        let mut lists = Vec::new();
        elements.try_for_each(|element: Element| {
            lists.push(inputs::expand(input, Some(element), place)?);
            Ok::<(), Problem>(())
        })?;
        prepared.templated.push(lists);
    }
    dedup(&mut prepared.placed);
    if prepared.placed.len() > limits::MAX_ENTRIES {
        return Err(Problem::at(
            at,
            format!("the task has {} input files", prepared.placed.len()),
            format!("at most {}; an archive counts as one", limits::MAX_ENTRIES),
        ));
    }
    conflicts(prepared, at)
}

fn dedup(placed: &mut Vec<Placed>) {
    let mut seen = HashSet::new();
    placed.retain(|placed| seen.insert((placed.path.clone(), placed.file)));
}

fn conflicts(prepared: &PreparedTask, at: Pos) -> Result<(), Problem> {
    inputs::check_conflicts(prepared.placed.iter(), at)?;
    if prepared.templated.is_empty() {
        return Ok(());
    }
    let count = prepared.elements.as_ref().map_or(0, Elements::count) as usize;
    let fixed: HashMap<&str, _> =
        prepared.placed.iter().map(|placed| (placed.path.as_str(), placed.file)).collect();
    for index in 0..count {
        let own = prepared.templated.iter().flat_map(|lists| &lists[index]);
        inputs::check_conflicts(own.clone(), at)?;
        for placed in own {
            if fixed.get(placed.path.as_str()).is_some_and(|file| *file != placed.file) {
                return Err(Problem::at(
                    at,
                    format!("two inputs go to {}", super::tree::quote(&placed.path)),
                    "one for each place",
                ));
            }
        }
    }
    Ok(())
}

/// What `check` tells.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    pub name: String,
    pub definitions: usize,
    pub tasks: u64,
    pub input_files: usize,
    pub input_bytes: u64,
}

/// A job ready to be sent, and the content that the mesh must have first.
pub struct Submission {
    pub spec: v1::JobSpec,
    pub files: Vec<HashedFile>,
    /// Long item lists, which travel as blobs.
    pub lists: Vec<(Digest, Bytes)>,
}

impl Prepared {
    pub fn summary(&self) -> Summary {
        Summary {
            name: self.name.clone(),
            definitions: self.tasks.len(),
            tasks: self.tasks.iter().map(|task| task.elements.as_ref().map_or(1, Elements::count)).sum(),
            input_files: self.files.len(),
            input_bytes: self.files.bytes(),
        }
    }

    /// Digests the files and writes the message.
    pub fn into_submission(self) -> Result<Submission, PrepareError> {
        let files = self.files.hash()?;
        let mut lists = Vec::new();
        let tasks = self.tasks.into_iter().map(|task| task_spec(task, &files, &mut lists)).collect();
        let spec = v1::JobSpec {
            name: self.name,
            priority: self.priority,
            on_failure: self.on_failure.into(),
            params: self.params,
            tasks,
            traceparent: String::new(),
        };
        // Room for the idempotency key and the frame around it.
        let size = spec.encoded_len() + 1024;
        if size > limits::MAX_MESSAGE {
            return Err(PrepareError::TooLarge(size));
        }
        Ok(Submission { spec, files: files.into_vec(), lists })
    }
}

fn task_spec(prepared: PreparedTask, files: &HashedFiles, lists: &mut Vec<(Digest, Bytes)>) -> v1::TaskSpec {
    let PreparedTask { name, task, elements, placed, templated } = prepared;
    let entries = |placed: Vec<Placed>| placed.into_iter().map(|placed| entry(placed, files)).collect();
    let (command, script) = match task.action {
        Action::Command(words) => (words.into_iter().map(|word| word.value).collect(), String::new()),
        Action::Script(script) => (Vec::new(), script),
    };
    v1::TaskSpec {
        name,
        command,
        script,
        array: elements.map(|elements| array_spec(elements, files, lists)),
        needs: task
            .needs
            .into_iter()
            .map(|need| v1::Need { task: need.task, same_index: need.same_index })
            .collect(),
        inputs: entries(placed),
        input_templates: templated
            .into_iter()
            .map(|elements| v1::InputTemplate {
                elements: elements
                    .into_iter()
                    .map(|placed| v1::FileList { files: entries(placed) })
                    .collect(),
            })
            .collect(),
        outputs: task.outputs.into_iter().map(|output| output.value).collect(),
        env: task.env.into_iter().map(|(name, value)| (name.value, value.value)).collect(),
        resources: Some(task.resources),
        r#where: Some(task.conditions),
        timeout_ms: task.timeout_ms,
        grace_ms: task.grace_ms,
        retry: Some(task.retry),
        sandbox: task.sandbox.into(),
        network: task.network.into(),
        on_disconnect: task.on_disconnect.into(),
        mounts: task.mounts,
    }
}

fn entry(placed: Placed, files: &HashedFiles) -> v1::FileEntry {
    match placed.file {
        None => v1::FileEntry { path: placed.path, directory: true, ..v1::FileEntry::default() },
        Some(id) => {
            let file = files.get(id);
            v1::FileEntry {
                path: placed.path,
                digest: file.digest.to_vec(),
                size: file.size,
                executable: file.executable,
                directory: false,
            }
        }
    }
}

fn array_spec(elements: Elements, files: &HashedFiles, lists: &mut Vec<(Digest, Bytes)>) -> v1::ArraySpec {
    use v1::array_spec::Kind;
    let kind = match elements {
        Elements::Range(range) => {
            Kind::Range(v1::Range { first: range.first, last: range.last, step: range.step })
        }
        Elements::List(items) => {
            let count = items.len() as u32;
            let items = items
                .into_iter()
                .map(|item| v1::Item {
                    file: item
                        .file
                        .map(|id| entry(Placed { path: item.value.clone(), file: Some(id) }, files)),
                    value: item.value,
                })
                .collect();
            let list = v1::ItemList { items };
            if list.encoded_len() <= limits::INLINE_ITEMS {
                Kind::Items(list)
            } else {
                let bytes = Bytes::from(list.encode_to_vec());
                let digest = Digest::of(&bytes);
                let blob = v1::BlobRef { digest: digest.to_vec(), size: bytes.len() as u64, count };
                lists.push((digest, bytes));
                Kind::ItemsBlob(blob)
            }
        }
    };
    v1::ArraySpec { kind: Some(kind) }
}
