//! Why a task waits, ran where it ran, or failed: what the engine says now, what was recorded
//! when it was placed, and how its attempts ended, put into sentences.

use mesh_proto::{
    code::Code,
    ids::{JobNumber, TaskKey},
    state::Named as _,
    v1::{
        AttemptInfo, Cause, ExplainTaskRequest, ExplainTaskResponse, Limits, ListTasksRequest, Page,
        Placement, RejectionCount, SandboxLevel, TaskInfo, TaskState,
    },
};
use tonic::Status;

use super::{convert::millis, tasks::Lister};
use crate::{
    commit::{Core, CoreError},
    engine::{
        Explanation,
        effect::{Refusal, Reply},
        event::{Event, WhatIf},
        placement::Survey,
    },
    store::{
        Store,
        decisions::{self, AttemptHistory},
        jobs::JobRecord,
    },
};

/// The states of tasks in the order in which they most want explaining.
const TELLING: [&[TaskState]; 5] = [
    &[TaskState::Failed],
    &[TaskState::Retrying, TaskState::Queued, TaskState::Assigned],
    &[TaskState::Blocked],
    &[TaskState::Running],
    &[TaskState::Completed, TaskState::Cancelled],
];

/// What an explanation reads.
pub struct Explainer<'a> {
    pub core: &'a Core,
    pub store: &'a Store,
    pub lister: Lister<'a>,
}

impl Explainer<'_> {
    /// Explains one task of a job: the one that is named, or the most telling one.
    pub async fn explain(
        &self,
        job: &JobRecord,
        request: ExplainTaskRequest,
    ) -> Result<ExplainTaskResponse, Status> {
        let task = self.choose(job, &request).await?;
        let key: TaskKey =
            task.key.map(Into::into).ok_or_else(|| Code::Internal.status("the task has no key"))?;
        let what_if = request.what_if.map(what_if).transpose()?;
        let now = match self.core.ask(|reply| Event::TaskAsked { reply, key, what_if: what_if.clone() }).await
        {
            Ok(Reply::Explained(explanation)) => Some(*explanation),
            // The job is over: there is nothing to place.
            Err(CoreError::Refused(Refusal::NoSuchJob)) => None,
            Ok(_) => return Err(CoreError::Mismatch.into()),
            Err(error) => return Err(error.into()),
        };
        let history = self.store.history(key).await?;
        let recorded = history.last().and_then(|attempt| attempt.decision.clone());
        let mut sentences = match (&what_if, &now) {
            (Some(_), Some(now)) => supposed(&now.survey),
            (Some(_), None) => vec!["The job is over, so nothing of it will be placed.".to_owned()],
            (None, _) => told(&task, job, &history, now.as_ref()),
        };
        if what_if.is_none() {
            sentences.extend(changed(&task, recorded.as_ref(), now.as_ref()));
        }
        Ok(ExplainTaskResponse {
            sentences,
            now: now.map(|now| placement(&now)),
            recorded,
            attempts: history.iter().map(attempt).collect(),
            task: Some(task),
        })
    }

    async fn choose(&self, job: &JobRecord, request: &ExplainTaskRequest) -> Result<TaskInfo, Status> {
        let ask = |states: &[TaskState]| ListTasksRequest {
            job: String::new(),
            page: Some(Page { limit: 1, after: String::new() }),
            states: states.iter().map(|state| (*state).into()).collect(),
            task: request.task.clone(),
            index: request.index,
        };
        for states in TELLING {
            let found = self.lister.list(job, ask(states)).await?;
            if let Some(task) = found.tasks.into_iter().next() {
                return Ok(task);
            }
        }
        Err(Code::NotFound.status("the job has no such task"))
    }
}

fn what_if(asked: mesh_proto::v1::WhatIf) -> Result<WhatIf, Status> {
    let sandbox = asked.sandbox.map(SandboxLevel::try_from).transpose();
    let sandbox = sandbox.map_err(|_| Code::Invalid.status("there is no such sandbox level"))?;
    let mut tags: std::collections::BTreeMap<String, Option<String>> =
        asked.tags.into_iter().map(|(tag, value)| (tag, Some(value))).collect();
    tags.extend(asked.without_tags.into_iter().map(|tag| (tag, None)));
    Ok(WhatIf {
        cpu_millis: asked.cpu_millis.map(u64::from),
        memory: asked.memory_bytes,
        tags,
        node: asked.node.map(|node| (!node.is_empty()).then_some(node)),
        sandbox,
    })
}

fn placement(now: &Explanation) -> Placement {
    let survey = &now.survey;
    Placement {
        at_ms: 0,
        nodes: survey.nodes,
        suitable: survey.suitable,
        with_room: survey.with_room,
        rejections: survey
            .rejections
            .iter()
            .map(|rejection| RejectionCount {
                reason: rejection.reason.to_owned(),
                count: rejection.count,
                sentence: rejection.sentence.clone(),
            })
            .collect(),
        best: survey.best.iter().map(decisions::candidate).collect(),
        coefficients: Some(decisions::coefficients(&survey.coefficients)),
        ahead: now.ahead,
    }
}

fn attempt(attempt: &AttemptHistory) -> AttemptInfo {
    AttemptInfo {
        number: attempt.number,
        node: attempt.node.clone().unwrap_or_default(),
        cause: attempt.cause.unwrap_or(Cause::Unspecified).into(),
        exit_code: attempt.exit_code,
        signal: attempt.signal,
        message: attempt.message.clone(),
        assigned_at_ms: attempt.assigned_at.timestamp_millis(),
        started_at_ms: millis(attempt.started_at),
        ended_at_ms: millis(attempt.ended_at),
        sandbox: attempt.sandbox.level.into(),
        limits: attempt.sandbox.limits.into(),
    }
}

/// What is so, by the task's state.
fn told(
    task: &TaskInfo,
    job: &JobRecord,
    history: &[AttemptHistory],
    now: Option<&Explanation>,
) -> Vec<String> {
    let name = name(task, job.number);
    let mut sentences = Vec::new();
    match task.state() {
        TaskState::Blocked => {
            sentences.push(format!("{name} waits for what it needs."));
            for (needed, done, total) in now.iter().flat_map(|now| &now.waits_for) {
                sentences.push(if *total == 1 {
                    format!("{needed} is not completed.")
                } else {
                    format!("{needed} is not completed: {done} of {total} are.")
                });
            }
        }
        TaskState::Queued => {
            sentences.push(format!("{name} waits for a node."));
            sentences.extend(now.into_iter().flat_map(waiting));
        }
        TaskState::Assigned => {
            let node = &task.node;
            sentences.push(match now.and_then(|now| now.queue_place) {
                Some(place) => format!(
                    "{name} is given to {node} and waits in its short queue, {} before it.",
                    count(u64::from(place), "task", "tasks")
                ),
                None => format!("{name} is given to {node}, which has not said yet that it began."),
            });
            if now.is_some_and(|now| now.unreachable) {
                sentences
                    .push(format!("{node} is offline; the task goes to another node when one has room."));
            }
        }
        TaskState::Running => {
            sentences.push(format!("{name} runs on {}.", task.node));
            if now.is_some_and(|now| now.unreachable) {
                sentences.push(format!(
                    "{} is offline; if it does not come back first, another node runs it again.",
                    task.node
                ));
            }
            sentences.extend(chosen(task, history));
        }
        TaskState::Retrying => {
            sentences.push(match now.and_then(|now| now.retry_in_ms) {
                Some(ms) => format!("{name} is tried again in {}.", seconds(ms)),
                None => format!("{name} is tried again soon."),
            });
        }
        TaskState::Completed => {
            sentences.push(format!("{name} completed on {}.", task.node));
            sentences.extend(chosen(task, history));
        }
        TaskState::Failed => sentences.push(format!("{name} failed: {}.", end(task))),
        TaskState::Cancelled if task.attempt == 0 => {
            let reason = if job.reason.is_empty() { String::new() } else { format!(": {}", job.reason) };
            sentences.push(format!("{name} was cancelled before it was given to a node{reason}."));
            if job.reason.is_empty() {
                sentences.push("A task that it needs did not complete.".to_owned());
            }
        }
        TaskState::Cancelled => sentences.push(format!("{name} was cancelled: {}.", job.reason)),
        TaskState::Unspecified => {}
    }
    sentences.extend(confined(task));
    let ended = history.iter().filter(|attempt| attempt.cause.is_some());
    if task.attempt > 1 || matches!(task.state(), TaskState::Failed | TaskState::Retrying) {
        for attempt in ended.rev().take(5).collect::<Vec<_>>().into_iter().rev() {
            sentences.push(ended_so(attempt));
        }
    }
    sentences
}

/// In which sandbox the last attempt runs, or ran, once its agent has said so.
fn confined(task: &TaskInfo) -> Option<String> {
    let level = match task.sandbox() {
        SandboxLevel::Unspecified => return None,
        level => level.lower(),
    };
    let held = match task.limits() {
        Limits::Unspecified => "",
        Limits::Rlimit => ", its limits held for each process and for its user (rlimit)",
        Limits::Cgroup => ", its limits held by control groups (cgroup)",
    };
    Some(format!("Its sandbox is {level}{held}."))
}

/// `3/resize.7`.
fn name(task: &TaskInfo, job: JobNumber) -> String {
    let index = task.key.map_or(0, |key| key.index);
    let element = if task.array { format!(".{index}") } else { String::new() };
    format!("{job}/{}{element}", task.name)
}

fn count(count: u64, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

/// Why nobody takes it yet.
fn waiting(now: &Explanation) -> Vec<String> {
    let survey = &now.survey;
    let mut sentences = Vec::new();
    if survey.nodes == 0 {
        return vec!["The mesh has no nodes: join one with `agent run --join TOKEN`.".to_owned()];
    }
    if survey.suitable == 0 {
        sentences
            .push(format!("None of the {} is suitable.", count(u64::from(survey.nodes), "node", "nodes")));
    } else if survey.with_room == 0 {
        sentences.push(format!(
            "{} suitable, but {} busy.",
            count(u64::from(survey.suitable), "node is", "nodes are"),
            if survey.suitable == 1 { "it is" } else { "all are" },
        ));
        if let Some(best) = survey.best.first()
            && let Some(busy) = &best.busy
        {
            sentences.push(format!("The best of them, {}, has {busy}.", best.name));
        }
    } else {
        sentences.push("A node has room; it is placed in a moment.".to_owned());
    }
    sentences.extend(survey.rejections.iter().map(|rejection| format!("{}.", rejection.sentence)));
    if now.ahead > 0 {
        sentences.push(format!(
            "{} served before it.",
            count(now.ahead, "task definition is", "task definitions are")
        ));
    }
    sentences
}

/// What other requirements would find.
fn supposed(survey: &Survey) -> Vec<String> {
    let mut sentences = vec![match (survey.suitable, survey.with_room) {
        (0, _) => "With that, no node would be suitable.".to_owned(),
        (suitable, 0) => {
            format!(
                "With that, {} be suitable, but busy.",
                count(u64::from(suitable), "node would", "nodes would")
            )
        }
        (_, _) => {
            let best = survey.best.iter().find(|best| best.busy.is_none());
            let best = best.map(|best| best.name.clone()).unwrap_or_default();
            format!("With that, it would run on {best} now.")
        }
    }];
    sentences.extend(survey.rejections.iter().map(|rejection| format!("{}.", rejection.sentence)));
    sentences
}

/// Why this node, as it was recorded.
fn chosen(task: &TaskInfo, history: &[AttemptHistory]) -> Option<String> {
    let record = history.last()?.decision.as_ref()?;
    let suited = match (record.suitable, record.nodes) {
        (1, 1) => "the only node was suitable".to_owned(),
        (suitable, nodes) => format!("{suitable} of {nodes} nodes were suitable"),
    };
    let place = record.best.iter().position(|best| task.node.starts_with(&best.name));
    let why = match place {
        _ if record.with_room == 0 => {
            format!("all were busy, and it joined the short queue of {}", task.node)
        }
        Some(0) => format!("{} had the best score", task.node),
        Some(_) | None => {
            format!("those with better scores were full by then, so that it came to {}", task.node)
        }
    };
    Some(format!("When it was placed, {suited}; {why}."))
}

/// Whether the same decision would fall otherwise now.
fn changed(task: &TaskInfo, recorded: Option<&Placement>, now: Option<&Explanation>) -> Option<String> {
    let (recorded, now) = (recorded?, now?);
    if task.state() != TaskState::Running {
        return None;
    }
    let then = recorded.best.iter().find(|best| task.node.starts_with(&best.name))?;
    let here = now.survey.best.iter().find(|best| best.name == task.node)?;
    let best = now.survey.best.first()?;
    let moved = [
        ("round trip", f64::from(then.rtt), here.terms.rtt),
        ("load", f64::from(then.load), here.terms.load),
        ("queue", f64::from(then.queue), here.terms.queue),
        ("unreliability", f64::from(then.unreliability), here.terms.unreliability),
    ];
    let most = moved.into_iter().max_by(|a, b| (a.2 - a.1).abs().total_cmp(&(b.2 - b.1).abs()))?;
    if (most.2 - most.1).abs() < 0.05 {
        return Some("Since then its node has not changed much.".to_owned());
    }
    let now_best = if best.name == task.node {
        String::new()
    } else {
        format!(" By score, {} would come first now.", best.name)
    };
    Some(format!("Since then its node's {} went from {:.2} to {:.2}.{now_best}", most.0, most.1, most.2))
}

fn end(task: &TaskInfo) -> String {
    describe(task.cause(), task.exit_code, task.signal, &task.message)
}

fn ended_so(attempt: &AttemptHistory) -> String {
    let node = attempt.node.clone().unwrap_or_else(|| "a node that is gone".to_owned());
    let cause = attempt.cause.unwrap_or(Cause::Unspecified);
    let end = describe(cause, attempt.exit_code, attempt.signal, &attempt.message);
    format!("Attempt {} on {node} ended: {end}.", attempt.number)
}

fn describe(cause: Cause, exit_code: Option<i32>, signal: Option<i32>, message: &str) -> String {
    let cause = match (exit_code, signal) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => cause.lower().to_owned(),
    };
    let message = mesh_proto::names::escape(message);
    if message.is_empty() { cause } else { format!("{cause} ({message})") }
}
