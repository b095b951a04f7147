//! What a client sent is checked here, whatever tool sent it. meshctl says the same with the
//! line of the file; this says it with the name of the task.

use std::collections::HashSet;

use mesh_proto::{
    digest::Digest,
    mounts::{MAX_MOUNTS, check_place},
    names::{check_name, check_path},
    template::{Element, replace},
    v1::{FileEntry, Item, JobSpec, SandboxLevel, TaskSpec, array_spec},
};

use super::{definition::count, needs::check_needs, size::check_size};

/// Longest W3C `traceparent` that is passed on, in bytes.
const MAX_TRACEPARENT: usize = 128;
/// Longest value of a tag, in bytes; a node's is no longer.
const MAX_TAG: usize = 256;

/// How much one job may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tasks, array elements counted.
    pub max_tasks: u64,
    /// Entries of one list.
    pub max_entries: usize,
    /// argv and environment of one task, in bytes.
    pub max_argv_env: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_tasks: mesh_proto::limits::MAX_TASKS,
            max_entries: mesh_proto::limits::MAX_ENTRIES,
            max_argv_env: mesh_proto::limits::MAX_ARGV_ENV,
        }
    }
}

/// A job that cannot be taken, and where it is wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{place} {what}")]
pub struct SpecError {
    place: String,
    what: String,
}

impl SpecError {
    pub(super) fn of(task: &str, key: &str, what: impl Into<String>) -> Self {
        Self { place: format!("task {task:?}: {key}"), what: what.into() }
    }

    fn job(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }
}

/// Checks a whole job.
pub fn check(job: &JobSpec, limits: &Limits) -> Result<(), SpecError> {
    check_name(&job.name).map_err(|error| SpecError::job("name", error.to_string()))?;
    if job.priority > 9 {
        return Err(SpecError::job("priority", "is not within 0 to 9"));
    }
    if job.tasks.is_empty() {
        return Err(SpecError::job("tasks", "is empty; a job has at least one task"));
    }
    entries("tasks", job.tasks.len(), limits)?;
    check_params(job, limits)?;
    let mut names = HashSet::new();
    let mut total = 0_u64;
    for task in &job.tasks {
        check_name(&task.name).map_err(|error| SpecError::of(&task.name, "name", error.to_string()))?;
        if !names.insert(task.name.as_str()) {
            return Err(SpecError::of(&task.name, "name", "is used twice"));
        }
        check_task(job, task, limits)?;
        total = total.saturating_add(count(task)?);
    }
    if total > limits.max_tasks {
        return Err(SpecError::job(
            "tasks",
            format!("are {total}, at most {} are allowed", limits.max_tasks),
        ));
    }
    check_needs(&job.tasks, limits)
}

pub(super) fn entries(place: &str, count: usize, limits: &Limits) -> Result<(), SpecError> {
    if count > limits.max_entries {
        let most = limits.max_entries;
        return Err(SpecError::job(place, format!("has {count} entries, at most {most} are allowed")));
    }
    Ok(())
}

fn check_params(job: &JobSpec, limits: &Limits) -> Result<(), SpecError> {
    entries("params", job.params.len(), limits)?;
    if job.params.iter().any(|(key, value)| key.contains('\0') || value.contains('\0')) {
        return Err(SpecError::job("params", "contain a NUL byte"));
    }
    let bytes: usize = job.params.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > limits.max_argv_env {
        let most = limits.max_argv_env;
        return Err(SpecError::job("params", format!("are {bytes} bytes, at most {most} are allowed")));
    }
    if job.traceparent.len() > MAX_TRACEPARENT || !job.traceparent.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(SpecError::job("traceparent", "is none"));
    }
    Ok(())
}

fn check_task(job: &JobSpec, task: &TaskSpec, limits: &Limits) -> Result<(), SpecError> {
    let bad = |key: &str, what: &str| Err(SpecError::of(&task.name, key, what));
    match (task.command.is_empty(), task.script.is_empty()) {
        (true, true) => return bad("command", "is missing, and so is script; one of them is needed"),
        (false, false) => return bad("command", "stands beside script; only one of them is allowed"),
        (true, false) | (false, true) => {}
    }
    if task.command.first().is_some_and(String::is_empty) {
        return bad("command", "begins with an empty word");
    }
    let argv: usize = task.command.iter().map(|word| word.len() + 1).sum();
    let env: usize = task.env.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    if argv + env > limits.max_argv_env {
        return bad(
            "command",
            &format!("and env are {} bytes, at most {} are allowed", argv + env, limits.max_argv_env),
        );
    }
    if task.script.len() > mesh_proto::limits::MAX_JOB_FILE {
        return bad("script", "is too long");
    }
    let nul =
        task.command.iter().chain(task.env.keys()).chain(task.env.values()).any(|text| text.contains('\0'));
    if nul || task.script.contains('\0') {
        return bad("command", "or env or script contains a NUL byte");
    }
    entries(&format!("task {:?}: env", task.name), task.env.len(), limits)?;
    for key in task.env.keys() {
        if key.is_empty() || key.contains('=') {
            return bad("env", "has a name that is empty or contains `=`");
        }
    }
    if count(task)? == 0 {
        return bad("array", "is empty");
    }
    if let Some(array_spec::Kind::Items(list)) = task.array.as_ref().and_then(|array| array.kind.as_ref()) {
        check_items(&task.name, &list.items)?;
    }
    check_templates(job, task)?;
    match task.array.as_ref().and_then(|array| array.kind.as_ref()) {
        Some(array_spec::Kind::Items(list)) => check_size(task, &job.params, Some(&list.items), limits)?,
        // A list that is a blob is checked when it was read.
        Some(array_spec::Kind::Range(_) | array_spec::Kind::ItemsBlob(_)) | None => {
            check_size(task, &job.params, None, limits)?;
        }
    }
    check_files(task, limits)?;
    check_outputs(task, limits)?;
    check_where(task)?;
    check_mounts(task)?;
    let resources = task.resources.clone().unwrap_or_default();
    if resources.cpu_millis == 0 {
        return bad("resources.cpu", "must be at least 0.001");
    }
    if resources.disk_bytes > 0 {
        return bad("resources.disk", "comes with a later version");
    }
    if resources.named.contains_key("gpu") {
        return bad("resources.gpu", "comes with a later version");
    }
    for name in resources.named.keys() {
        check_name(name)
            .map_err(|error| SpecError::of(&task.name, "resources", format!("{name:?} {error}")))?;
    }
    Ok(())
}

/// Checks the elements of an array.
pub fn check_items(task: &str, items: &[Item]) -> Result<(), SpecError> {
    for item in items {
        if item.value.contains('\0') {
            return Err(SpecError::of(task, "array", "has an item with a NUL byte"));
        }
        if let Some(file) = &item.file {
            check_file(task, "array.files", file)?;
        }
    }
    Ok(())
}

fn check_templates(job: &JobSpec, task: &TaskSpec) -> Result<(), SpecError> {
    let element = task.array.as_ref().map(|_| Element { index: 0, item: "item" });
    let texts = (task.command.iter().map(|text| ("command", text)))
        .chain(task.env.values().map(|text| ("env", text)))
        .chain(task.outputs.iter().map(|text| ("outputs", text)));
    for (key, text) in texts {
        replace(text, element, &job.params)
            .map_err(|error| SpecError::of(&task.name, key, error.to_string()))?;
    }
    Ok(())
}

fn check_files(task: &TaskSpec, limits: &Limits) -> Result<(), SpecError> {
    let place = || format!("task {:?}: inputs", task.name);
    entries(&place(), task.inputs.len(), limits)?;
    for file in &task.inputs {
        check_file(&task.name, "inputs", file)?;
    }
    let total = count(task)?;
    for template in &task.input_templates {
        if template.elements.len() as u64 != total {
            return Err(SpecError::of(&task.name, "inputs", "do not have one list per array element"));
        }
        let files: usize = template.elements.iter().map(|list| list.files.len()).sum();
        entries(&place(), files, limits)?;
        for file in template.elements.iter().flat_map(|list| &list.files) {
            check_file(&task.name, "inputs", file)?;
        }
    }
    Ok(())
}

fn check_file(task: &str, key: &str, file: &FileEntry) -> Result<(), SpecError> {
    check_path(&file.path)
        .map_err(|error| SpecError::of(task, key, format!("path {:?} {error}", file.path)))?;
    if file.path == "inputs" || file.path.starts_with("inputs/") {
        return Err(SpecError::of(task, key, "uses inputs/, which is kept for the outputs of needed tasks"));
    }
    if !file.directory && Digest::try_from(&file.digest[..]).is_err() {
        return Err(SpecError::of(task, key, format!("path {:?} has no SHA-256 digest", file.path)));
    }
    Ok(())
}

fn check_outputs(task: &TaskSpec, limits: &Limits) -> Result<(), SpecError> {
    entries(&format!("task {:?}: outputs", task.name), task.outputs.len(), limits)?;
    for path in &task.outputs {
        check_path(path)
            .map_err(|error| SpecError::of(&task.name, "outputs", format!("path {path:?} {error}")))?;
    }
    Ok(())
}

fn check_where(task: &TaskSpec) -> Result<(), SpecError> {
    let Some(wanted) = &task.r#where else { return Ok(()) };
    for name in wanted.tags.keys().chain(&wanted.capabilities) {
        check_name(name).map_err(|error| SpecError::of(&task.name, "where", format!("{name:?} {error}")))?;
    }
    let words = [("where.node", &wanted.node), ("where.os", &wanted.os), ("where.arch", &wanted.arch)];
    for (key, word) in words.into_iter().filter(|(_, word)| !word.is_empty()) {
        check_name(word).map_err(|error| SpecError::of(&task.name, key, format!("{word:?} {error}")))?;
    }
    if wanted.tags.values().any(|value| value.len() > MAX_TAG) {
        return Err(SpecError::of(&task.name, "where.tags", format!("has a value over {MAX_TAG} bytes")));
    }
    if !matches!(wanted.limits.as_str(), "" | "cgroup") {
        return Err(SpecError::of(&task.name, "where.limits", "knows only `cgroup`"));
    }
    Ok(())
}

/// Mounts stand in places of their own, in a file tree of the task's own.
fn check_mounts(task: &TaskSpec) -> Result<(), SpecError> {
    let bad = |what: String| Err(SpecError::of(&task.name, "mounts", what));
    if task.mounts.is_empty() {
        return Ok(());
    }
    if !matches!(task.sandbox(), SandboxLevel::Unspecified | SandboxLevel::Strict) {
        return bad("need sandbox: strict, the only level with a file tree of its own".to_owned());
    }
    if task.mounts.len() > MAX_MOUNTS {
        return bad(format!("are {}, at most {MAX_MOUNTS} are allowed", task.mounts.len()));
    }
    for (number, mount) in task.mounts.iter().enumerate() {
        check_name(&mount.name)
            .map_err(|error| SpecError::of(&task.name, "mounts", format!("name {:?} {error}", mount.name)))?;
        let others = task.mounts[..number].iter().map(|mount| mount.to.as_str());
        check_place(&mount.to, others)
            .map_err(|error| SpecError::of(&task.name, "mounts", format!("to {:?} {error}", mount.to)))?;
    }
    Ok(())
}
