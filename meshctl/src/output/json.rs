//! The JSON of every noun, as the contract spells it: states UPPERCASE, times RFC 3339 UTC,
//! durations `_ms`, unknown `null`.

use std::collections::HashMap;

use mesh_proto::{digest::Digest, state::Named as _, v1};
use serde_json::{Map, Value, json};

use super::time::rfc3339;
use crate::jobfile::Summary;

fn text_or_null(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

fn counts(counts: Option<v1::Counts>) -> Value {
    let counts = counts.unwrap_or_default();
    json!({
        "blocked": counts.blocked,
        "queued": counts.queued,
        "assigned": counts.assigned,
        "running": counts.running,
        "retrying": counts.retrying,
        "completed": counts.completed,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
    })
}

pub fn job(job: &v1::Job) -> Value {
    let mut value = json!({
        "id": job.number,
        "uuid": job.uuid,
        "name": job.name,
        "owner": text_or_null(&job.owner),
        "state": job.state().upper(),
        "priority": job.priority,
        "on_failure": match job.on_failure() {
            v1::OnFailure::Unspecified => Value::Null,
            v1::OnFailure::Stop => "stop".into(),
            v1::OnFailure::Continue => "continue".into(),
        },
        "created_at": rfc3339(job.created_at_ms),
        "started_at": rfc3339(job.started_at_ms),
        "finished_at": rfc3339(job.finished_at_ms),
        "run_ms": (job.started_at_ms != 0).then_some(job.run_ms),
        "progress": job.progress,
        "counts": counts(job.counts),
        "reason": text_or_null(&job.reason),
    });
    if !job.tasks.is_empty() {
        value["tasks"] = job.tasks.iter().map(summary).collect();
    }
    value
}

fn summary(task: &v1::TaskSummary) -> Value {
    json!({
        "name": task.name,
        "array": task.array,
        "total": task.total,
        "needs": task.needs,
        "counts": counts(task.counts),
    })
}

/// `12/resize.7`, or `12/sheet` for a task that is no array.
pub fn task_ref(task: &v1::TaskInfo) -> String {
    let key = task.key.unwrap_or_default();
    if task.array {
        format!("{}/{}.{}", key.job, task.name, key.index)
    } else {
        format!("{}/{}", key.job, task.name)
    }
}

pub fn task(task: &v1::TaskInfo) -> Value {
    let key = task.key.unwrap_or_default();
    json!({
        "ref": task_ref(task),
        "name": task.name,
        "index": task.array.then_some(key.index),
        "item": task.array.then_some(&task.item),
        "state": task.state().upper(),
        "attempt": (task.attempt > 0).then_some(task.attempt),
        "node": text_or_null(&task.node),
        "cause": match task.cause() {
            v1::Cause::Unspecified => Value::Null,
            cause => cause.lower().into(),
        },
        "exit_code": task.exit_code,
        "signal": task.signal,
        "progress": task.progress,
        "progress_message": text_or_null(&task.progress_message),
        "message": text_or_null(&task.message),
        "queued_at": rfc3339(task.queued_at_ms),
        "started_at": rfc3339(task.started_at_ms),
        "finished_at": rfc3339(task.finished_at_ms),
        "sandbox": level(task.sandbox()),
        "limits": limits(task.limits()),
    })
}

pub fn tasks(response: &v1::ListTasksResponse) -> Value {
    json!({
        "items": response.tasks.iter().map(task).collect::<Vec<_>>(),
        "next": text_or_null(&response.next),
    })
}

pub fn dead(response: &v1::ListDeadResponse) -> Value {
    let letter = |letter: &v1::DeadLetter| {
        let mut value = task(&letter.task.clone().unwrap_or_default());
        value["job"] = json!(letter.task.as_ref().and_then(|task| task.key).map(|key| key.job));
        value["job_name"] = json!(letter.job_name);
        value["failures"] = json!(letter.failures);
        value["losses"] = json!(letter.losses);
        value
    };
    json!({
        "items": response.dead.iter().map(letter).collect::<Vec<_>>(),
        "next": text_or_null(&response.next),
    })
}

fn level(level: v1::SandboxLevel) -> Value {
    match level {
        v1::SandboxLevel::Unspecified => Value::Null,
        v1::SandboxLevel::None | v1::SandboxLevel::Basic | v1::SandboxLevel::Strict => level.lower().into(),
    }
}

fn limits(limits: v1::Limits) -> Value {
    match limits {
        v1::Limits::Unspecified => Value::Null,
        v1::Limits::Rlimit | v1::Limits::Cgroup => limits.lower().into(),
    }
}

pub fn node(node: &v1::NodeInfo) -> Value {
    let facts = node.facts.clone().unwrap_or_default();
    let sandbox = facts.sandbox.clone().unwrap_or_default();
    let layer = |layer: &v1::SandboxLayer| json!({"name": layer.name, "present": layer.present, "remedy": text_or_null(&layer.remedy)});
    let gpu = |gpu: &v1::Gpu| json!({"name": gpu.name, "uuid": gpu.uuid, "memory": gpu.memory_bytes});
    json!({
        "id": node.id,
        "name": node.name,
        "state": node.state().upper(),
        "cordoned": node.cordoned,
        "draining": node.draining,
        "rtt_ms": node.rtt_ms,
        "load": node.load,
        "running": node.running,
        "queued": node.queued,
        "reliability": node.reliability,
        "slots": {"total": node.slots_total, "free": node.slots_free},
        "cpu": {"total": cores(facts.cpu_millis), "free": cores(node.cpu_millis_free)},
        "memory": {"total": node.memory_total, "free": node.memory_free},
        "tags": facts.tags,
        "capabilities": facts.capabilities,
        "resources": facts.resources,
        "sandbox": {
            "level": level(sandbox.strongest()),
            "weakest": level(sandbox.weakest()),
            "limits": text_or_null(&sandbox.limits),
            "host_network": sandbox.host_network,
            "mounts": sandbox.mounts.iter().map(|mount| json!({"name": mount.name, "read_only": mount.read_only})).collect::<Vec<_>>(),
            "layers": sandbox.layers.iter().map(layer).collect::<Vec<_>>(),
        },
        "version": text_or_null(&facts.version),
        "os": text_or_null(&facts.os),
        "arch": text_or_null(&facts.arch),
        "kernel": text_or_null(&facts.kernel),
        "gpus": facts.gpus.iter().map(gpu).collect::<Vec<_>>(),
        "last_heartbeat_ms": node.last_heartbeat_ms,
        "joined_at": rfc3339(node.joined_at_ms),
    })
}

fn cores(millis: u32) -> f64 {
    f64::from(millis) / 1000.0
}

pub fn token_created(token: &v1::CreateTokenResponse) -> Value {
    json!({
        "id": token.id,
        "token": token.token,
        "expires_at": rfc3339(token.expires_at_ms),
        "uses": token.uses,
        "node": text_or_null(&token.node),
    })
}

pub fn token(token: &v1::TokenInfo) -> Value {
    json!({
        "id": token.id,
        "created_at": rfc3339(token.created_at_ms),
        "expires_at": rfc3339(token.expires_at_ms),
        "uses": token.uses,
        "used": token.used,
        "node": text_or_null(&token.node),
        "created_by": text_or_null(&token.created_by),
        "revoked": token.revoked,
    })
}

pub fn blob(digest: Digest, size: u64) -> Value {
    json!({"digest": digest.to_string(), "size": size})
}

pub fn why(answer: &v1::ExplainTaskResponse) -> Value {
    let placement = |placement: &v1::Placement| {
        let by = placement.coefficients.unwrap_or_default();
        let round = |value: f32| (f64::from(value) * 1e6).round() / 1e6;
        json!({
            "at": rfc3339(placement.at_ms),
            "nodes": placement.nodes,
            "suitable": placement.suitable,
            "with_room": placement.with_room,
            "ahead": placement.ahead,
            "rejections": placement.rejections.iter().map(|rejection| json!({
                "reason": rejection.reason,
                "count": rejection.count,
                "sentence": text_or_null(&rejection.sentence),
            })).collect::<Vec<_>>(),
            "best": placement.best.iter().map(|node| json!({
                "name": node.name,
                "score": round(node.score),
                "rtt": round(node.rtt),
                "load": round(node.load),
                "queue": round(node.queue),
                "unreliability": round(node.unreliability),
                "busy": text_or_null(&node.busy),
            })).collect::<Vec<_>>(),
            "coefficients": {
                "alpha": round(by.alpha),
                "beta": round(by.beta),
                "gamma": round(by.gamma),
                "delta": round(by.delta),
                "version": by.version,
            },
        })
    };
    json!({
        "task": answer.task.as_ref().map(task),
        "sentences": answer.sentences,
        "now": answer.now.as_ref().map(placement),
        "recorded": answer.recorded.as_ref().map(placement),
        "attempts": answer.attempts.iter().map(|attempt| json!({
            "attempt": attempt.number,
            "node": text_or_null(&attempt.node),
            "cause": (attempt.cause() != v1::Cause::Unspecified).then(|| attempt.cause().lower()),
            "exit_code": attempt.exit_code,
            "signal": attempt.signal,
            "message": text_or_null(&attempt.message),
            "assigned_at": rfc3339(attempt.assigned_at_ms),
            "started_at": rfc3339(attempt.started_at_ms),
            "ended_at": rfc3339(attempt.ended_at_ms),
            "sandbox": level(attempt.sandbox()),
            "limits": limits(attempt.limits()),
        })).collect::<Vec<_>>(),
    })
}

pub fn status(status: &v1::MeshStatus) -> Value {
    let sorted = |map: &HashMap<String, u64>| -> Value {
        map.iter().map(|(key, count)| (key.clone(), Value::from(*count))).collect::<Map<_, _>>().into()
    };
    let tasks = status.tasks.unwrap_or_default();
    let leader = status.leader.clone().unwrap_or_default();
    json!({
        "mesh": status.mesh_id,
        "coordinator": status.coordinator_id,
        "version": status.version,
        "leader": {
            "incarnation": text_or_null(&leader.incarnation),
            "epoch": leader.epoch,
            "seq": leader.seq,
        },
        "started_at": rfc3339(status.started_at_ms),
        "nodes": sorted(&status.nodes),
        "jobs": sorted(&status.jobs),
        "tasks": {
            "blocked": tasks.blocked,
            "queued": tasks.queued,
            "assigned": tasks.assigned,
            "running": tasks.running,
            "retrying": tasks.retrying,
        },
        "slots": {"total": status.slots_total, "free": status.slots_free},
        "ca_expires_at": rfc3339(status.ca_not_after_ms),
        "halted": text_or_null(&status.halted),
    })
}

pub fn check(summary: &Summary) -> Value {
    json!({
        "name": summary.name,
        "definitions": summary.definitions,
        "tasks": summary.tasks,
        "input_files": summary.input_files,
        "input_bytes": summary.input_bytes,
    })
}
