//! Tables for people: plain columns, states in colour on a terminal. Whatever a stranger
//! typed is escaped.

use std::{collections::HashMap, fmt::Write as _};

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use mesh_proto::{
    names::escape,
    state::Named as _,
    v1::{self, JobState, NodeState, TaskState},
};

use super::{
    Out,
    json::task_ref,
    time::{self, glance},
};
use crate::jobfile::Summary;

fn table(out: Out, header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(Cell::new));
    if out.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

fn render(mut table: Table, right: &[usize]) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

fn coloured(out: Out, text: String, colour: Option<Color>) -> Cell {
    match colour.filter(|_| out.colour) {
        Some(colour) => Cell::new(text).fg(colour),
        None => Cell::new(text),
    }
}

fn job_state(out: Out, state: JobState) -> Cell {
    let colour = match state {
        JobState::Completed => Some(Color::Green),
        JobState::Running => Some(Color::Cyan),
        JobState::Failed => Some(Color::Red),
        JobState::PartiallyCompleted | JobState::Cancelled => Some(Color::Yellow),
        JobState::Unspecified | JobState::Queued => None,
    };
    coloured(out, state.upper(), colour)
}

fn task_state(out: Out, state: TaskState) -> Cell {
    let colour = match state {
        TaskState::Completed => Some(Color::Green),
        TaskState::Assigned | TaskState::Running => Some(Color::Cyan),
        TaskState::Failed => Some(Color::Red),
        TaskState::Retrying | TaskState::Cancelled => Some(Color::Yellow),
        TaskState::Unspecified | TaskState::Blocked | TaskState::Queued => None,
    };
    coloured(out, state.upper(), colour)
}

fn node_state(out: Out, node: &v1::NodeInfo) -> Cell {
    let colour = match node.state() {
        NodeState::Healthy => Some(Color::Green),
        NodeState::Suspect => Some(Color::Yellow),
        NodeState::Offline => Some(Color::Red),
        NodeState::Unspecified => None,
    };
    coloured(out, node_state_text(node), colour)
}

fn node_state_text(node: &v1::NodeInfo) -> String {
    let mut text = node.state().upper();
    if node.draining {
        text.push_str(" (draining)");
    } else if node.cordoned {
        text.push_str(" (cordoned)");
    }
    text
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { escape(text) }
}

fn percent(part: f64) -> String {
    format!("{:.0}%", part * 100.0)
}

pub fn jobs(out: Out, jobs: &[v1::Job]) -> String {
    let mut table = table(out, &["JOB", "NAME", "STATE", "DONE", "TASKS", "CREATED", "RAN"]);
    for job in jobs {
        table.add_row(vec![
            Cell::new(job.number),
            Cell::new(escape(&job.name)),
            job_state(out, job.state()),
            Cell::new(percent(job.progress)),
            Cell::new(total(job.counts.unwrap_or_default())),
            Cell::new(time::short(job.created_at_ms)),
            Cell::new(ran(job)),
        ]);
    }
    render(table, &[0, 3, 4])
}

fn total(counts: v1::Counts) -> u64 {
    each_count(counts).iter().map(|(count, _)| count).sum()
}

fn each_count(counts: v1::Counts) -> [(u64, &'static str); 8] {
    [
        (counts.blocked, "blocked"),
        (counts.queued, "queued"),
        (counts.assigned, "assigned"),
        (counts.running, "running"),
        (counts.retrying, "retrying"),
        (counts.completed, "completed"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
    ]
}

/// `3 running, 5 completed`
fn counted(counts: v1::Counts) -> String {
    let words: Vec<String> = each_count(counts)
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

fn ran(job: &v1::Job) -> String {
    if job.started_at_ms == 0 { "-".to_owned() } else { glance(job.run_ms) }
}

pub fn job(out: Out, job: &v1::Job) -> String {
    let mut text = String::new();
    let mut lines = vec![
        ("Job", format!("{} {}", job.number, escape(&job.name))),
        ("UUID", escape(&job.uuid)),
        ("State", job.state().upper()),
        ("Progress", percent(job.progress)),
        ("Created", time::short(job.created_at_ms)),
        ("Started", time::short(job.started_at_ms)),
        ("Finished", time::short(job.finished_at_ms)),
        ("Ran", ran(job)),
        ("Owner", dash(&job.owner)),
    ];
    if !job.reason.is_empty() {
        lines.push(("Reason", escape(&job.reason)));
    }
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<9} {value}");
    }
    if !job.tasks.is_empty() {
        let mut rows = table(out, &["TASK", "TASKS", "NEEDS", "STATE"]);
        for task in &job.tasks {
            rows.add_row(vec![
                Cell::new(escape(&task.name)),
                Cell::new(task.total),
                Cell::new(dash(&task.needs.join(", "))),
                Cell::new(counted(task.counts.unwrap_or_default())),
            ]);
        }
        let _ = write!(text, "\n{}", render(rows, &[1]));
    }
    text.trim_end().to_owned()
}

/// How the last attempt ended: `exit 1`, `signal 9`, `timeout`.
pub fn cause(task: &v1::TaskInfo) -> String {
    match task.cause() {
        v1::Cause::Unspecified => "-".to_owned(),
        v1::Cause::Exit => format!("exit {}", task.exit_code.unwrap_or_default()),
        v1::Cause::Signal => format!("signal {}", task.signal.unwrap_or_default()),
        other @ (v1::Cause::Timeout
        | v1::Cause::Oom
        | v1::Cause::Disk
        | v1::Cause::Output
        | v1::Cause::Staging
        | v1::Cause::Sandbox
        | v1::Cause::Infra
        | v1::Cause::Lost
        | v1::Cause::Cancelled
        | v1::Cause::Fenced) => other.lower().to_owned(),
    }
}

pub fn tasks(out: Out, tasks: &[v1::TaskInfo]) -> String {
    let header = ["TASK", "ITEM", "STATE", "TRY", "NODE", "END", "RAN", "MESSAGE"];
    let mut table = table(out, &header);
    for task in tasks {
        let message = match (task.progress, task.state()) {
            (Some(percent), TaskState::Running) => format!("{percent}% {}", task.progress_message),
            _ => task.message.clone(),
        };
        table.add_row(vec![
            Cell::new(escape(&task_ref(task))),
            Cell::new(if task.array { clip(&task.item, 40) } else { "-".to_owned() }),
            task_state(out, task.state()),
            Cell::new(task.attempt),
            Cell::new(dash(&task.node)),
            Cell::new(cause(task)),
            Cell::new(time::between(task.started_at_ms, task.finished_at_ms)),
            Cell::new(dash(&clip(message.trim(), 100))),
        ]);
    }
    render(table, &[3])
}

pub fn dead(out: Out, dead: &[v1::DeadLetter]) -> String {
    let header = ["TASK", "JOB", "END", "TRY", "FAILURES", "LOSSES", "NODE", "WHEN", "MESSAGE"];
    let mut table = table(out, &header);
    for letter in dead {
        let task = letter.task.clone().unwrap_or_default();
        table.add_row(vec![
            Cell::new(escape(&task_ref(&task))),
            Cell::new(escape(&letter.job_name)),
            Cell::new(cause(&task)),
            Cell::new(task.attempt),
            Cell::new(letter.failures),
            Cell::new(letter.losses),
            Cell::new(dash(&task.node)),
            Cell::new(time::short(task.finished_at_ms)),
            Cell::new(dash(&clip(task.message.trim(), 100))),
        ]);
    }
    render(table, &[3, 4, 5])
}

/// At most so many characters, escaped.
fn clip(text: &str, most: usize) -> String {
    let short: String = text.chars().take(most).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("{}{dots}", escape(&short))
}

pub fn nodes(out: Out, nodes: &[v1::NodeInfo]) -> String {
    let header = [
        "NODE", "STATE", "RTT", "LOAD", "RUNNING", "QUEUED", "SLOTS", "MEMORY", "SANDBOX", "SEEN", "VERSION",
    ];
    let mut table = table(out, &header);
    for node in nodes {
        let version = node.facts.as_ref().map_or("", |facts| &facts.version);
        let sandbox = node.facts.as_ref().and_then(|facts| facts.sandbox.as_ref());
        let sandbox =
            sandbox.map(|proved| format!("{} ({})", proved.strongest().lower(), dash(&proved.limits)));
        table.add_row(vec![
            Cell::new(escape(&node.name)),
            node_state(out, node),
            Cell::new(node.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1}ms"))),
            Cell::new(node.load.map_or_else(|| "-".to_owned(), percent)),
            Cell::new(node.running),
            Cell::new(node.queued),
            Cell::new(format!("{}/{}", node.slots_free, node.slots_total)),
            Cell::new(format!("{}/{}", time::bytes(node.memory_free), time::bytes(node.memory_total))),
            Cell::new(sandbox.unwrap_or_else(|| "-".to_owned())),
            Cell::new(seen(node)),
            Cell::new(dash(version)),
        ]);
    }
    render(table, &[2, 3, 4, 5, 6])
}

fn seen(node: &v1::NodeInfo) -> String {
    node.last_heartbeat_ms.map_or_else(|| "-".to_owned(), |age| format!("{} ago", glance(age)))
}

/// `a=1, b=2`
fn pairs<V: ToString>(map: &HashMap<String, V>) -> String {
    let mut pairs: Vec<String> =
        map.iter().map(|(key, value)| format!("{key}={}", value.to_string())).collect();
    pairs.sort_unstable();
    dash(&pairs.join(", "))
}

pub fn node(out: Out, node: &v1::NodeInfo) -> String {
    let facts = node.facts.clone().unwrap_or_default();
    let sandbox = facts.sandbox.clone().unwrap_or_default();
    let cores = |millis: u32| f64::from(millis) / 1000.0;
    let lines = [
        ("Node", escape(&node.name)),
        ("Id", escape(&node.id)),
        ("State", node_state_text(node)),
        ("Last seen", seen(node)),
        ("Round trip", node.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1} ms"))),
        ("Load", node.load.map_or_else(|| "-".to_owned(), percent)),
        ("Reliability", percent(node.reliability)),
        ("Tasks", format!("{} running, {} queued", node.running, node.queued)),
        ("Slots", format!("{} free of {}", node.slots_free, node.slots_total)),
        ("Processors", format!("{} free of {}", cores(node.cpu_millis_free), cores(facts.cpu_millis))),
        ("Memory", format!("{} free of {}", time::bytes(node.memory_free), time::bytes(node.memory_total))),
        ("Resources", pairs(&facts.resources)),
        ("Tags", pairs(&facts.tags)),
        ("Capabilities", dash(&facts.capabilities.join(", "))),
        ("System", dash(format!("{} {} {}", facts.os, facts.arch, facts.kernel).trim())),
        ("Version", dash(&facts.version)),
        ("Joined", time::short(node.joined_at_ms)),
        (
            "Sandbox",
            format!(
                "strongest {}, weakest {}, limits by {}",
                sandbox.strongest().lower(),
                sandbox.weakest().lower(),
                dash(&sandbox.limits)
            ),
        ),
        ("Lends", lent(&sandbox)),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<12} {value}");
    }
    if !sandbox.layers.is_empty() {
        let mut rows = table(out, &["LAYER", "THERE", "REMEDY"]);
        for layer in &sandbox.layers {
            let there = if layer.present { "yes" } else { "no" };
            rows.add_row(vec![escape(&layer.name), there.to_owned(), dash(&layer.remedy)]);
        }
        let _ = write!(text, "\n{}", render(rows, &[]));
    }
    text.trim_end().to_owned()
}

/// What of the node its operator gives strict tasks.
fn lent(sandbox: &v1::Sandbox) -> String {
    let mount = |mount: &v1::Mount| {
        let how = if mount.read_only { " (read-only)" } else { "" };
        format!("mount {}{how}", escape(&mount.name))
    };
    let mut lent: Vec<String> = sandbox.mounts.iter().map(mount).collect();
    lent.sort_unstable();
    lent.extend(sandbox.host_network.then(|| "its network".to_owned()));
    if lent.is_empty() { "-".to_owned() } else { lent.join(", ") }
}

pub fn tokens(out: Out, tokens: &[v1::TokenInfo], now_ms: i64) -> String {
    let mut table = table(out, &["TOKEN", "USED", "NODE", "BY", "CREATED", "EXPIRES", "STATE"]);
    for token in tokens {
        let state = if token.revoked {
            "revoked"
        } else if token.used >= token.uses {
            "used up"
        } else if token.expires_at_ms <= now_ms {
            "expired"
        } else {
            "valid"
        };
        table.add_row(vec![
            escape(&token.id),
            format!("{}/{}", token.used, token.uses),
            dash(&token.node),
            dash(&token.created_by),
            time::short(token.created_at_ms),
            time::short(token.expires_at_ms),
            state.to_owned(),
        ]);
    }
    render(table, &[])
}

/// Sentences first, the numbers under them.
pub fn why(out: Out, answer: &v1::ExplainTaskResponse) -> String {
    let mut text = String::new();
    for sentence in &answer.sentences {
        let _ = writeln!(text, "{}", escape(sentence));
    }
    let shown = [(&answer.now, "Nodes now"), (&answer.recorded, "Nodes when it was placed")];
    for (placement, title) in shown {
        let Some(placement) = placement.as_ref().filter(|placement| !placement.best.is_empty()) else {
            continue;
        };
        let by = placement.coefficients.unwrap_or_default();
        let mut table = table(out, &["NODE", "SCORE", "RTT", "LOAD", "QUEUE", "UNRELIABLE", "BUSY"]);
        for node in &placement.best {
            table.add_row(vec![
                Cell::new(escape(&node.name)),
                Cell::new(format!("{:.3}", node.score)),
                Cell::new(format!("{:.3}", node.rtt)),
                Cell::new(format!("{:.3}", node.load)),
                Cell::new(format!("{:.3}", node.queue)),
                Cell::new(format!("{:.3}", node.unreliability)),
                Cell::new(dash(&node.busy)),
            ]);
        }
        let _ = write!(
            text,
            "\n{title}: {} in all, {} suitable, {} with room; \
             score = {}·RTT + {}·load + {}·queue + {}·unreliability, lower is better\n{}",
            placement.nodes,
            placement.suitable,
            placement.with_room,
            by.alpha,
            by.beta,
            by.gamma,
            by.delta,
            render(table, &[1, 2, 3, 4, 5])
        );
    }
    text.trim_end().to_owned()
}

pub fn status(status: &v1::MeshStatus) -> String {
    let listed = |map: &HashMap<String, u64>| {
        let mut words: Vec<(&String, &u64)> = map.iter().filter(|(_, count)| **count > 0).collect();
        words.sort_unstable();
        let words: Vec<String> = words.iter().map(|(state, count)| format!("{count} {state}")).collect();
        if words.is_empty() { "none".to_owned() } else { escape(&words.join(", ")) }
    };
    let tasks = status.tasks.unwrap_or_default();
    let leader = status.leader.clone().unwrap_or_default();
    let tasks = counted(v1::Counts {
        blocked: tasks.blocked,
        queued: tasks.queued,
        assigned: tasks.assigned,
        running: tasks.running,
        retrying: tasks.retrying,
        ..v1::Counts::default()
    });
    let coordinator = format!("{} (version {})", escape(&status.coordinator_id), escape(&status.version));
    let lines = [
        ("Mesh", escape(&status.mesh_id)),
        ("Coordinator", coordinator),
        ("Leader", format!("epoch {}, commit {}", leader.epoch, leader.seq)),
        ("Started", time::short(status.started_at_ms)),
        ("Nodes", listed(&status.nodes)),
        ("Slots", format!("{} free of {}", status.slots_free, status.slots_total)),
        ("Jobs", listed(&status.jobs)),
        ("Tasks", if tasks == "-" { "none".to_owned() } else { tasks }),
        ("CA expires", time::short(status.ca_not_after_ms)),
    ];
    let lines = lines.map(|(name, value)| format!("{name:<12} {value}")).join("\n");
    if status.halted.is_empty() {
        return lines;
    }
    format!("{lines}\nHALTED       {}", escape(&status.halted))
}

pub fn check(summary: &Summary) -> String {
    let plural = |count: u64, one: &str, many: &str| {
        if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
    };
    format!(
        "{}: {}, {}, {} ({})",
        summary.name,
        plural(summary.definitions as u64, "definition", "definitions"),
        plural(summary.tasks, "task", "tasks"),
        plural(summary.input_files as u64, "input file", "input files"),
        time::bytes(summary.input_bytes),
    )
}
