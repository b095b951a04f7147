//! What the jail is asked to run: argv, environment and limits of one attempt.
//!
//! May enter: pure construction from the assignment.

use std::time::Duration;

use mesh_proto::names::escape;
use mesh_proto::v1::{self, Assignment};

use crate::beneath::Owner;
use crate::config::{AllowNetwork, Config};
use crate::jail::{Bounds, Level, Mount, Network, Rlimits, StartRequest, WORK};
use crate::runner::{Context, Job};
use crate::stage::{PROGRESS, SCRIPT};

/// The jail's request for an attempt whose work directory is made; `lease` is when its lease ends, if
/// it lives on one. The error says, for people, what
/// this node does not allow: only a coordinator with other facts of it asks for that.
pub fn request(
    context: &Context,
    job: &Job,
    level: Level,
    owner: Option<Owner>,
    lease: Option<Duration>,
) -> Result<StartRequest, String> {
    let assignment = &*job.assignment;
    let config = &context.config;
    let work_dir = context.work_root.join(job.key.to_string()).join("work");
    // Where the task finds it.
    let work = if level == Level::Strict { WORK.to_owned() } else { work_dir.to_string_lossy().into_owned() };
    let strict = level == Level::Strict;
    let network = network(assignment, config)?;
    Ok(StartRequest {
        attempt: job.key,
        argv: argv(assignment, &work),
        env: environment(assignment, job, &context.node_name, &work),
        attempt_dir: context.records.dir(job.key),
        uid: owner.map(|owner| owner.uid),
        gid: owner.map(|owner| owner.gid),
        level,
        timeout: (assignment.timeout_ms > 0).then(|| Duration::from_millis(assignment.timeout_ms)),
        grace: Duration::from_millis(assignment.grace_ms),
        max_output: config.limits.max_output,
        limits: Rlimits { nproc: owner.map(|_| config.limits.max_processes), ..Rlimits::default() },
        hidden: vec![config.data_dir.clone(), (*context.work_root).clone()],
        network,
        mounts: mounts(assignment, config)?,
        bounds: if strict { bounds(assignment, context) } else { Bounds::default() },
        room: None,
        without: Vec::new(),
        lease,
        after: job.after,
        slot: Some(job.slot),
        work_dir,
    })
}

fn network(assignment: &Assignment, config: &Config) -> Result<Network, String> {
    match (assignment.network(), config.allow_network) {
        (v1::Network::None | v1::Network::Unspecified, _) => Ok(Network::None),
        (v1::Network::Host, AllowNetwork::Host) => Ok(Network::Host),
        (v1::Network::Host, AllowNetwork::None) => {
            Err("this node does not lend tasks its network (--allow-network host would let it)".to_owned())
        }
    }
}

fn mounts(assignment: &Assignment, config: &Config) -> Result<Vec<Mount>, String> {
    let mount = |mount: &v1::Mount| {
        let allowed = config.mounts.get(&mount.name).ok_or_else(|| {
            let name = escape(&mount.name);
            format!("this node allows no mount `{name}` (--allow-mount {name}=/PATH would let it)")
        })?;
        if allowed.read_only && !mount.read_only {
            return Err(format!("this node allows mount `{}` read-only: say read_only: true", mount.name));
        }
        Ok(Mount {
            source: allowed.path.clone(),
            to: mount.to.clone().into(),
            read_only: mount.read_only,
            owner: allowed.owner,
        })
    };
    assignment.mounts.iter().map(mount).collect()
}

/// What the attempt as a whole may use.
fn bounds(assignment: &Assignment, context: &Context) -> Bounds {
    let asked = assignment.resources.clone().unwrap_or_default();
    let limits = &context.config.limits;
    let memory = if asked.memory_bytes > 0 { asked.memory_bytes } else { context.memory_per_slot };
    let disk = if asked.disk_bytes > 0 { asked.disk_bytes } else { limits.max_work_size };
    Bounds {
        memory: Some(memory),
        processes: Some(limits.max_processes),
        cpu_millis: (asked.cpu_millis > 0).then_some(u64::from(asked.cpu_millis)),
        disk: Some(disk),
        files: Some(limits.max_work_files),
    }
}

fn argv(assignment: &Assignment, work: &str) -> Vec<String> {
    if assignment.script.is_empty() {
        return assignment.command.clone();
    }
    let script = format!("{work}/{SCRIPT}");
    if assignment.script.starts_with("#!") {
        return vec![script];
    }
    vec!["/bin/sh".to_owned(), "-eu".to_owned(), script]
}

fn environment(assignment: &Assignment, job: &Job, node: &str, work: &str) -> Vec<(String, String)> {
    let task = job.key.task;
    let mut env = std::collections::BTreeMap::from(
        [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", work), ("LANG", "C.UTF-8")]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    env.extend(assignment.env.clone());
    // The job file may change the ones above, never what the mesh says of the attempt.
    let mut say = |key: &str, value: String| env.insert(key.to_owned(), value);
    say("MESH_JOB", task.job.to_string());
    say("MESH_TASK", assignment.task_name.clone());
    say("MESH_INDEX", task.index.to_string());
    say("MESH_ITEM", assignment.item.clone());
    say("MESH_ATTEMPT", job.key.number.to_string());
    say("MESH_NODE", node.to_owned());
    say("MESH_PROGRESS", format!("{work}/{PROGRESS}"));
    if !assignment.traceparent.is_empty() {
        say("TRACEPARENT", assignment.traceparent.clone());
    }
    env.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use mesh_proto::ids::{AttemptKey, JobNumber, TaskKey};

    use super::*;

    fn job(assignment: Assignment) -> Job {
        let key = AttemptKey { task: TaskKey { job: JobNumber(12), task: 0, index: 7 }, number: 2 };
        Job { key, slot: 0, assignment: Arc::new(assignment), resume: false, after: None }
    }

    #[test]
    fn a_script_runs_by_the_shell_unless_it_names_its_interpreter() {
        let script = |text: &str| Assignment { script: text.to_owned(), ..Assignment::default() };
        assert_eq!(argv(&script("echo hi"), "/w"), ["/bin/sh", "-eu", "/w/.mesh/script"]);
        assert_eq!(argv(&script("#!/usr/bin/python3\nprint(1)"), "/w"), ["/w/.mesh/script"]);
        let command = Assignment { command: vec!["echo".into(), "hi".into()], ..Assignment::default() };
        assert_eq!(argv(&command, "/w"), ["echo", "hi"]);
    }

    #[test]
    fn a_task_sees_what_the_contract_says_and_cannot_be_lied_to() {
        let env = HashMap::from([("MESH_JOB", "99"), ("PATH", "/opt/bin"), ("MODE", "fast")])
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let job = job(Assignment {
            task_name: "resize".into(),
            item: "a.jpg".into(),
            env,
            ..Assignment::default()
        });
        let seen: HashMap<String, String> =
            environment(&job.assignment, &job, "desk", "/w").into_iter().collect();
        for (key, value) in [
            ("MESH_JOB", "12"),
            ("MESH_TASK", "resize"),
            ("MESH_INDEX", "7"),
            ("MESH_ITEM", "a.jpg"),
            ("MESH_ATTEMPT", "2"),
            ("MESH_NODE", "desk"),
            ("MESH_PROGRESS", "/w/.mesh/progress"),
            ("HOME", "/w"),
            ("LANG", "C.UTF-8"),
            ("PATH", "/opt/bin"),
            ("MODE", "fast"),
        ] {
            assert_eq!(seen[key], value, "{key}");
        }
        assert!(!seen.contains_key("TRACEPARENT"));
    }
}
