//! One element of one task definition, as its agent is told it.

use std::{collections::HashMap, sync::Arc};

use mesh_proto::{
    ids::AttemptKey,
    limits::INLINE_INPUTS,
    template::{Element, TemplateError, replace},
    v1::{Assignment, FileEntry, Item, JobSpec, TaskSpec, array_spec},
};
use prost::Message;

/// Inputs of an assignment up to this encoded size ride in it, in bytes.
const INLINE_INPUT_BYTES: usize = 256 * 1024;

/// A stored job, ready to be assigned from.
#[derive(Debug)]
pub struct Plan {
    /// Without its tasks.
    pub job: JobSpec,
    pub tasks: Vec<PlannedTask>,
    by_name: HashMap<String, u32>,
}

impl Plan {
    #[must_use]
    pub fn new(job: JobSpec, tasks: Vec<PlannedTask>) -> Self {
        let by_name =
            tasks.iter().zip(0..).map(|(task, position)| (task.spec.name.clone(), position)).collect();
        Self { job, tasks, by_name }
    }

    /// The position and the plan of the task of this name.
    #[must_use]
    pub fn task(&self, name: &str) -> Option<(u32, &PlannedTask)> {
        let position = *self.by_name.get(name)?;
        Some((position, self.tasks.get(position as usize)?))
    }

    /// What it weighs in memory, in bytes, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        let items = |items: &Arc<Vec<Item>>| {
            let files = |item: &Item| item.file.as_ref().map_or(0, |file| 96 + file.path.len());
            items.iter().map(|item| 128 + item.value.len() + files(item)).sum::<usize>()
        };
        let tasks = self.tasks.iter().map(|task| {
            256 + 2 * task.spec.encoded_len() + task.spec.name.len() + task.items.as_ref().map_or(0, items)
        });
        256 + 2 * self.job.encoded_len() + tasks.sum::<usize>()
    }
}

/// A stored task definition with its items.
#[derive(Debug)]
pub struct PlannedTask {
    pub spec: TaskSpec,
    /// None when the array is a range, or there is no array.
    pub items: Option<Arc<Vec<Item>>>,
    /// Elements; 1 for a single task.
    pub total: u32,
}

impl PlannedTask {
    /// The value of an element; none when the task is no array.
    #[must_use]
    pub fn item(&self, index: u32) -> Option<String> {
        match (&self.items, self.spec.array.as_ref()?.kind.as_ref()?) {
            (Some(items), _) => items.get(index as usize).map(|item| item.value.clone()),
            (None, array_spec::Kind::Range(range)) => {
                Some((range.first.saturating_add(range.step.saturating_mul(i64::from(index)))).to_string())
            }
            (None, array_spec::Kind::Items(_) | array_spec::Kind::ItemsBlob(_)) => None,
        }
    }

    /// The files that an element brings from its job file.
    #[must_use]
    pub fn own_inputs(&self, index: u32) -> Vec<FileEntry> {
        let mut inputs = self.spec.inputs.clone();
        for template in &self.spec.input_templates {
            if let Some(list) = template.elements.get(index as usize) {
                inputs.extend(list.files.iter().cloned());
            }
        }
        if let Some(file) =
            self.items.as_ref().and_then(|items| items.get(index as usize)).and_then(|item| item.file.clone())
        {
            inputs.push(file);
        }
        inputs
    }
}

/// Where an output of a needed task stands in the work directory.
#[must_use]
pub fn input_path(task: &str, index: Option<u32>, path: &str) -> String {
    match index {
        Some(index) => format!("inputs/{task}/{index}/{path}"),
        None => format!("inputs/{task}/{path}"),
    }
}

/// The assignment of one attempt; `inputs` is everything that must stand in its work directory.
pub fn assignment(
    plan: &Plan,
    attempt: AttemptKey,
    inputs: Vec<FileEntry>,
) -> Result<Assignment, TemplateError> {
    let Some(task) = plan.tasks.get(attempt.task.task as usize) else {
        return Ok(Assignment { attempt: Some(attempt.into()), ..Assignment::default() });
    };
    let spec = &task.spec;
    let item = task.item(attempt.task.index);
    let element = item.as_deref().map(|item| Element { index: attempt.task.index, item });
    let fill = |text: &String| replace(text, element, &plan.job.params);
    let env = spec
        .env
        .iter()
        .map(|(key, value)| Ok((key.clone(), fill(value)?)))
        .collect::<Result<HashMap<_, _>, TemplateError>>()?;
    let listed = inputs.len() > INLINE_INPUTS
        || inputs.iter().map(Message::encoded_len).sum::<usize>() > INLINE_INPUT_BYTES;
    Ok(Assignment {
        attempt: Some(attempt.into()),
        job_name: plan.job.name.clone(),
        task_name: spec.name.clone(),
        array: spec.array.is_some(),
        item: item.clone().unwrap_or_default(),
        command: spec.command.iter().map(fill).collect::<Result<_, _>>()?,
        script: spec.script.clone(),
        env,
        resources: spec.resources.clone(),
        timeout_ms: spec.timeout_ms,
        grace_ms: spec.grace_ms,
        sandbox: spec.sandbox,
        network: spec.network,
        inputs: if listed { Vec::new() } else { inputs },
        inputs_listed: listed,
        outputs: spec.outputs.iter().map(fill).collect::<Result<_, _>>()?,
        traceparent: plan.job.traceparent.clone(),
        on_disconnect: spec.on_disconnect,
        mounts: spec.mounts.clone(),
    })
}
