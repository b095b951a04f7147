//! The tables of `docs/failures.md`, row by row: what an end means for the task, for what needs
//! it, and for the job.

use std::collections::BTreeSet;

use mesh_proto::state::Named as _;

use super::mesh::{Mesh, array, ended, facts, job, key, ok, task};
use crate::engine::{
    event::{AttemptEnd, Need, NewDefinition, NewJob, NodeChange},
    types::{Cause, JobState, Retry, TaskState},
};

const PAGE: &str = include_str!("../../../../docs/failures.md");

/// The rows of a table, each a list of cells; a cell holds what it names, apart by commas.
fn table(header: &str) -> Vec<Vec<String>> {
    let rows: Vec<Vec<String>> = PAGE
        .lines()
        .skip_while(|line| !line.starts_with(header))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect();
    assert!(!rows.is_empty(), "docs/failures.md has no table {header}");
    rows
}

fn each(cell: &str) -> Vec<&str> {
    cell.split(", ").collect()
}

/// One row of the first table, for one of its ends.
struct Row {
    end: AttemptEnd,
    cancelled: bool,
    retry: Retry,
    /// Failures and losses that are counted.
    counts: (u32, u32),
    then: TaskState,
}

fn ends() -> Vec<Row> {
    let mut ends = Vec::new();
    for row in table("| the attempt ends with |") {
        let [how, and, counts, then] = &row[..] else { panic!("{row:?}") };
        for cause in each(how) {
            let end = match cause {
                "exit 0" => ok(),
                "exit" => AttemptEnd { exit_code: Some(3), ..ended(Cause::Exit) },
                cause => ended(Cause::parse(cause).unwrap_or_else(|| panic!("no cause {cause}"))),
            };
            let all = || Cause::ALL.to_vec();
            let (attempts, on, max_lost) = match and.as_str() {
                "-" | "the job was cancelled" => (5, all(), 5),
                "retry.on names it, attempts are left" => (2, all(), 0),
                "retry.on names it, no attempt is left" => (1, all(), 5),
                "retry.on does not name it" => {
                    (5, all().into_iter().filter(|other| *other != end.cause).collect(), 5)
                }
                "at most max_lost losses" => (1, Vec::new(), 1),
                "more than max_lost losses" => (5, all(), 0),
                other => panic!("what is {other:?}?"),
            };
            ends.push(Row {
                end,
                cancelled: and == "the job was cancelled",
                retry: Retry { attempts, on, max_lost, ..task("").retry },
                counts: match counts.as_str() {
                    "nothing" => (0, 0),
                    "failure" => (1, 0),
                    "loss" => (0, 1),
                    other => panic!("what is {other:?}?"),
                },
                then: TaskState::parse(then).unwrap_or_else(|| panic!("no state {then}")),
            });
        }
    }
    ends
}

/// Plays one end in one job, and says what became of a.1, b.0, b.1, c and the job.
fn play(end: &Row, keep_going: bool, needs: Vec<Need>) -> (Vec<TaskState>, JobState) {
    let mut mesh = Mesh::new().without_queues();
    mesh.join(0, facts(2));
    let a = NewDefinition { retry: end.retry.clone(), ..array("a", 2) };
    let tasks = vec![a, NewDefinition { needs, ..array("b", 2) }, task("c")];
    let number = mesh.submit(NewJob { keep_going, ..job(tasks) });
    let (first, second) = (key(number, 0, 0), key(number, 0, 1));
    mesh.start_task(first);
    mesh.start_task(second);
    // Nothing else begins before the first one was looked at.
    mesh.change(0, NodeChange::Cordon);
    if end.cancelled {
        mesh.cancel(number).expect("it runs");
    }
    let again = AttemptEnd {
        message: end.end.message.clone(),
        outputs: end.end.outputs.clone(),
        output: end.end.output.clone(),
        ..end.end
    };
    mesh.end_task(first, again);
    let row = mesh.task(first);
    assert_eq!((row.state, (row.own_failures, row.losses)), (end.then, end.counts), "a.0 itself");
    let over = mesh.store.jobs[&number].row.ending.is_some();
    mesh.end_task(second, if over { ended(Cause::Cancelled) } else { ok() });
    mesh.change(0, NodeChange::Uncordon);
    let open = |mesh: &Mesh| {
        let mut open =
            mesh.store.attempts.values().filter(|row| row.ended.is_none() && row.key.task != first);
        open.next().map(|row| row.key)
    };
    while let Some(attempt) = open(&mesh) {
        mesh.end(attempt, ok());
    }
    let others = [second, key(number, 1, 0), key(number, 1, 1), key(number, 2, 0)];
    (others.map(|other| mesh.state(other)).to_vec(), mesh.job_state(number))
}

#[test]
fn every_row_of_the_tables_holds() {
    let jobs = table("| a.0 |");
    let mut played = 0;
    for end in ends() {
        for on_failure in ["stop", "continue"] {
            for needs in ["nothing", "all", "same_index"] {
                let what = format!(
                    "{:?} {:?} of {:?}, {on_failure}, needs {needs}",
                    end.end.cause, end.end.exit_code, end.retry
                );
                // A task that ended well does not undo the cancel of its job.
                let of = if end.cancelled { TaskState::Cancelled } else { end.then };
                let named = |cell: &String, name: &str| each(cell).contains(&name);
                let rows: Vec<_> = jobs
                    .iter()
                    .filter(|row| {
                        named(&row[0], &of.upper()) && named(&row[1], on_failure) && named(&row[2], needs)
                    })
                    .collect();
                let [row] = &rows[..] else { panic!("{} rows for {what}", rows.len()) };
                let need = |same_index| vec![Need { task: 0, same_index }];
                let needs = match needs {
                    "nothing" => Vec::new(),
                    "all" => need(false),
                    _ => need(true),
                };
                let (tasks, job) = play(&end, on_failure == "continue", needs);
                let tasks: Vec<String> = tasks.into_iter().map(TaskState::upper).collect();
                assert_eq!((&tasks[..], job.upper()), (&row[3..7], row[7].clone()), "{what}");
                played += 1;
            }
        }
    }
    assert!(played > 200, "only {played} were played");
}

#[test]
fn the_first_table_names_every_cause() {
    let rows = table("| the attempt ends with |");
    let named = |cancelled: bool| -> BTreeSet<String> {
        let rows = rows.iter().filter(|row| (row[1] == "the job was cancelled") == cancelled);
        rows.flat_map(|row| each(&row[0])).filter(|name| *name != "exit 0").map(str::to_owned).collect()
    };
    let all: BTreeSet<String> = Cause::ALL.iter().map(|cause| cause.lower().to_owned()).collect();
    assert_eq!((named(false), named(true)), (all.clone(), all));
}
