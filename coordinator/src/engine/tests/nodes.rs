//! Nodes register, fall silent, come back, are cordoned and drained.

use std::collections::BTreeMap;

use super::mesh::{Mesh, array, boot_id, ended, facts, job, key, node_id, ok, task};
use crate::engine::{
    effect::{Refusal, Reply, Say, Verdict},
    event::{Event, Facts, Held, NodeChange, Registration, ReplyId},
    types::{Cause, JobState, NodeState, Resources, TaskState},
};

/// A mesh of one node whose only task runs.
fn running() -> (Mesh, mesh_proto::ids::AttemptKey) {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.start_task(key(number, 0, 0));
    (mesh, attempt)
}

fn cause(mesh: &Mesh, attempt: mesh_proto::ids::AttemptKey) -> Option<Cause> {
    mesh.store.attempts[&attempt].ended.as_ref().map(|(_, end)| end.cause)
}

#[test]
fn no_work_before_the_stream_is_open() {
    let mut mesh = Mesh::new();
    mesh.submit(job(vec![task("a")]));
    mesh.register(0, 0, &[]);
    assert!(mesh.dispatched().is_empty());
    mesh.open(0);
    assert_eq!(mesh.dispatched().len(), 1);
}

#[test]
fn what_still_runs_is_kept() {
    let (mut mesh, attempt) = running();
    mesh.close(0);
    let verdicts = mesh.rejoin(0, 0, &[(attempt, Held::Running)]);
    assert_eq!(verdicts[&attempt], Verdict::Keep);
    assert!(mesh.dispatched().is_empty(), "it is not sent again");
    mesh.end(attempt, ok());
    assert_eq!(mesh.job_state(attempt.task.job), JobState::Completed);
}

#[test]
fn what_ended_meanwhile_is_collected() {
    let (mut mesh, attempt) = running();
    mesh.close(0);
    let verdicts = mesh.rejoin(0, 0, &[(attempt, Held::Ended)]);
    assert_eq!(verdicts[&attempt], Verdict::Collect);
    mesh.end(attempt, ok());
    assert_eq!(mesh.job_state(attempt.task.job), JobState::Completed);
}

#[test]
fn what_nobody_knows_is_not_kept() {
    let (mut mesh, attempt) = running();
    mesh.end(attempt, ok());
    let verdicts = mesh.rejoin(0, 0, &[(attempt, Held::Running)]);
    assert_eq!(verdicts[&attempt], Verdict::Unknown);
}

#[test]
fn an_assignment_that_was_never_heard_is_sent_again() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.current(key(number, 0, 0));
    mesh.close(0);
    mesh.register(0, 0, &[]);
    assert!(mesh.dispatched().is_empty(), "nobody listens yet");
    mesh.open(0);
    assert_eq!(mesh.dispatched(), [(0, attempt)], "the same attempt, no new one");
    assert_eq!(mesh.task(attempt.task).losses, 0);
}

#[test]
fn an_accepted_assignment_is_not_sent_again() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.current(key(number, 0, 0));
    let verdicts = mesh.rejoin(0, 0, &[(attempt, Held::Accepted)]);
    assert_eq!(verdicts[&attempt], Verdict::Keep);
    assert!(mesh.dispatched().is_empty());
}

#[test]
fn a_start_that_only_the_inventory_tells_is_noted() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let attempt = mesh.current(key(number, 0, 0));
    mesh.rejoin(0, 0, &[(attempt, Held::Running)]);
    assert_eq!(mesh.task(attempt.task).state, TaskState::Running);
    assert_eq!(mesh.store.attempts[&attempt].sandbox, None);
    let said = mesh.start(attempt);
    assert!(!said.is_empty());
    assert_eq!(
        mesh.store.attempts[&attempt].sandbox,
        Some(crate::engine::types::SandboxLevel::Basic.into()),
        "the level comes with the agent's own word"
    );
}

#[test]
fn a_reboot_loses_what_ran() {
    let (mut mesh, attempt) = running();
    mesh.rejoin(0, 1, &[]);
    assert_eq!(cause(&mesh, attempt), Some(Cause::Lost));
    let again = mesh.current(attempt.task);
    assert_eq!((again.number, mesh.task(again.task).losses), (2, 1));
    assert_eq!(mesh.dispatched(), [(0, again)], "the node itself takes it again");
    assert_eq!(mesh.store.attempts[&again].boot, boot_id(0, 1));
    assert_eq!(mesh.store.nodes[&node_id(0)].boot, Some(boot_id(0, 1)));
}

/// The process may have started just before the machine went down: only a new attempt tells
/// the two apart.
#[test]
fn a_reboot_loses_what_was_only_assigned() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let first = mesh.current(key(number, 0, 0));
    mesh.rejoin(0, 1, &[]);
    assert_eq!(cause(&mesh, first), Some(Cause::Lost));
    assert_eq!(mesh.current(first.task).number, 2);
}

#[test]
fn what_is_left_of_an_older_boot_is_not_kept() {
    let (mut mesh, attempt) = running();
    let verdicts = mesh.rejoin(0, 1, &[(attempt, Held::Ended)]);
    assert_eq!(verdicts[&attempt], Verdict::Unknown, "its files may not have reached the disk");
}

#[test]
fn a_running_attempt_that_the_agent_forgot_is_lost() {
    let (mut mesh, attempt) = running();
    mesh.rejoin(0, 0, &[]);
    assert_eq!(cause(&mesh, attempt), Some(Cause::Lost));
    assert_eq!(mesh.current(attempt.task).number, 2);
}

#[test]
fn silence_is_suspected_then_offline() {
    let mut mesh = Mesh::with_nodes(1);
    mesh.pass(15_000, &[]);
    assert_eq!(mesh.node_state(0), NodeState::Healthy);
    mesh.pass(1_000, &[]);
    assert_eq!(mesh.node_state(0), NodeState::Suspect);
    mesh.submit(job(vec![task("a")]));
    assert!(mesh.dispatched().is_empty(), "a suspect gets no work");
    mesh.pass(14_000, &[]);
    assert_eq!(mesh.node_state(0), NodeState::Suspect);
    mesh.pass(1_000, &[]);
    assert_eq!(mesh.node_state(0), NodeState::Offline);
    assert!(mesh.says.iter().any(|say| matches!(say, Say::EndSession { .. })), "so that it registers again");
}

#[test]
fn a_word_makes_a_suspect_healthy_again() {
    let (mut mesh, attempt) = running();
    mesh.pass(20_000, &[]);
    assert_eq!(mesh.node_state(0), NodeState::Suspect);
    let heartbeat = mesh.heartbeat(0);
    mesh.step(heartbeat);
    assert_eq!(mesh.node_state(0), NodeState::Healthy);
    assert_eq!(mesh.current(attempt.task), attempt, "it was suspected, not replaced");
    mesh.end(attempt, ok());
    mesh.submit(job(vec![task("b")]));
    assert_eq!(mesh.dispatched().len(), 1);
}

#[test]
fn a_heartbeat_of_an_older_session_counts_for_nothing() {
    let mut mesh = Mesh::with_nodes(1);
    let old = mesh.heartbeat(0);
    mesh.register(0, 0, &[]);
    mesh.pass(16_000, &[]);
    mesh.step(old);
    assert_eq!(mesh.node_state(0), NodeState::Suspect);
}

/// Whether a heartbeat that is sent now would be answered with a lease.
fn counts(mesh: &mut Mesh, heartbeat: &Event) -> bool {
    let Event::Heartbeat { node, session, load_permille, rtt_us, .. } = *heartbeat else { unreachable!() };
    let reply = ReplyId(7_000_000);
    let said = mesh.step(Event::Heartbeat { reply: Some(reply), node, session, load_permille, rtt_us });
    let heard = said.iter().find_map(|say| match say {
        Say::Reply(to, Reply::Heard { counts }) if *to == reply => Some(*counts),
        _ => None,
    });
    heard.expect("an answer")
}

#[test]
fn only_a_heartbeat_that_puts_off_the_replacement_counts() {
    let (mut mesh, attempt) = running();
    let old = mesh.heartbeat(0);
    assert!(counts(&mut mesh, &old));
    mesh.rejoin(0, 0, &[(attempt, Held::Running)]);
    assert!(!counts(&mut mesh, &old), "of an older session");
    mesh.join(1, facts(1));
    mesh.pass(29_000, &[1]);
    let beat = mesh.heartbeat(0);
    assert!(counts(&mut mesh, &beat));
    // From here a lease may run: it must be over when the attempt is replaced.
    mesh.pass(30_000, &[1]);
    assert_eq!(mesh.current(attempt.task), attempt, "the lease may still run");
    mesh.pass(2_000, &[1]);
    assert_ne!(mesh.current(attempt.task), attempt);
    assert!(!counts(&mut mesh, &beat), "its node was given up");
}

#[test]
fn the_end_of_an_older_session_ends_nothing() {
    let mut mesh = Mesh::with_nodes(1);
    let Event::Heartbeat { node, session, .. } = mesh.heartbeat(0) else { unreachable!() };
    mesh.rejoin(0, 0, &[]);
    mesh.step(Event::SessionClosed { node, session });
    mesh.submit(job(vec![task("a")]));
    assert_eq!(mesh.dispatched().len(), 1);
}

#[test]
fn an_attempt_of_an_offline_node_goes_elsewhere() {
    let (mut mesh, attempt) = running();
    mesh.pass(31_000, &[]);
    assert_eq!(mesh.task(attempt.task).state, TaskState::Running, "still current: nobody replaced it");
    assert_eq!(cause(&mesh, attempt), None);
    mesh.join(1, facts(1));
    let second = mesh.current(attempt.task);
    assert_eq!(mesh.dispatched(), [(1, second)]);
    assert_eq!(cause(&mesh, attempt), Some(Cause::Lost), "in the commit of its replacement");
    let verdicts = mesh.rejoin(0, 0, &[(attempt, Held::Running)]);
    assert_eq!(verdicts[&attempt], Verdict::Unknown);
    mesh.end(attempt, ok());
    assert!(matches!(mesh.says[..], [Say::Ack { ack: crate::engine::effect::Ack::Stale, .. }]));
    mesh.end(second, ok());
    assert_eq!(mesh.job_state(attempt.task.job), JobState::Completed);
}

#[test]
fn an_attempt_that_is_back_before_its_replacement_is_adopted() {
    let (mut mesh, attempt) = running();
    mesh.pass(31_000, &[]);
    let verdicts = mesh.rejoin(0, 0, &[(attempt, Held::Running)]);
    assert_eq!(verdicts[&attempt], Verdict::Keep);
    mesh.join(1, facts(1));
    assert!(mesh.dispatched().is_empty(), "it needs no replacement");
    mesh.end(attempt, ok());
    assert_eq!(mesh.job_state(attempt.task.job), JobState::Completed);
}

#[test]
fn a_result_from_an_offline_node_is_taken() {
    let (mut mesh, attempt) = running();
    mesh.pass(31_000, &[]);
    mesh.end(attempt, ok());
    assert_eq!(mesh.job_state(attempt.task.job), JobState::Completed);
}

/// The start of an attempt, in flight while its node was given up, must not bind the task to
/// a node that then never comes back.
#[test]
fn a_late_word_does_not_bind_a_task_to_a_dead_node() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![task("a")]));
    let a = key(number, 0, 0);
    mesh.pass(31_000, &[]);
    assert_eq!(mesh.node_state(0), NodeState::Offline);
    mesh.start_task(a);
    assert_eq!(mesh.node_state(0), NodeState::Suspect, "it spoke, but has no session");
    mesh.join(1, facts(1));
    assert!(mesh.dispatched().is_empty(), "adopted: it may well come back");
    mesh.pass(31_000, &[1]);
    assert_eq!(mesh.dispatched(), [(1, mesh.current(a))], "it did not");
}

#[test]
fn a_stall_of_the_coordinator_is_not_held_against_nodes() {
    let (mut mesh, attempt) = running();
    mesh.join(1, facts(1));
    mesh.now = mesh.now.plus(600_000);
    mesh.step(Event::Tick);
    assert_eq!((mesh.node_state(0), mesh.node_state(1)), (NodeState::Healthy, NodeState::Healthy));
    assert_eq!(mesh.current(attempt.task), attempt);
    mesh.pass(31_000, &[1]);
    assert_eq!(mesh.node_state(0), NodeState::Offline, "true silence still counts");
}

#[test]
fn silence_before_a_stall_still_counts() {
    let mut mesh = Mesh::with_nodes(1);
    mesh.pass(10_000, &[]);
    mesh.now = mesh.now.plus(600_000);
    mesh.step(Event::Tick);
    mesh.pass(5_000, &[]);
    assert_eq!(mesh.node_state(0), NodeState::Healthy);
    mesh.pass(1_000, &[]);
    assert_eq!(mesh.node_state(0), NodeState::Suspect);
}

#[test]
fn a_cordoned_node_keeps_its_work_and_gets_no_more() {
    for (stop, name) in [(NodeChange::Cordon, "cordon"), (NodeChange::Drain, "drain")] {
        let (mut mesh, attempt) = running();
        mesh.change(0, stop);
        mesh.end(attempt, ok());
        assert_eq!(mesh.job_state(attempt.task.job), JobState::Completed, "{name}");
        let next = mesh.submit(job(vec![task("b")]));
        assert!(mesh.dispatched().is_empty(), "{name}");
        mesh.change(0, NodeChange::Uncordon);
        assert_eq!(mesh.dispatched(), [(0, mesh.current(key(next, 0, 0)))], "{name}");
    }
}

/// The row that comes with a registration was read before it was handled.
#[test]
fn a_registration_does_not_undo_what_an_operator_said() {
    let mut mesh = Mesh::with_nodes(1);
    let registration = mesh.registration(0, 0, facts(1));
    let tags = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    mesh.change(0, NodeChange::Cordon);
    mesh.change(0, NodeChange::Tag { set: tags.clone(), remove: Vec::new() });
    mesh.send_registration(registration);
    mesh.open(0);
    mesh.submit(job(vec![task("a")]));
    assert!(mesh.dispatched().is_empty(), "it is cordoned");
    let row = &mesh.store.nodes[&node_id(0)];
    assert!(row.cordoned);
    assert_eq!(row.tags, tags);
}

#[test]
fn tags_are_set_and_removed() {
    let mut mesh = Mesh::with_nodes(1);
    let tags = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(tag, value)| ((*tag).to_owned(), (*value).to_owned())).collect()
    };
    mesh.change(0, NodeChange::Tag { set: tags(&[("a", "1"), ("b", "2")]), remove: Vec::new() });
    mesh.change(0, NodeChange::Tag { set: tags(&[("b", "3")]), remove: vec!["a".to_owned()] });
    assert_eq!(mesh.store.nodes[&node_id(0)].tags, tags(&[("b", "3")]));
}

#[test]
fn a_node_that_nobody_knows_cannot_be_changed() {
    let mut mesh = Mesh::new();
    let said = mesh.step(Event::NodeChanged {
        reply: ReplyId(1),
        node: node_id(9),
        change: NodeChange::Cordon,
        record: None,
    });
    assert!(matches!(said, [Say::Reply(ReplyId(1), Reply::Refused(Refusal::NoSuchNode))]));
}

#[test]
fn a_node_that_shrank_finishes_what_it_has_and_gets_no_more_until_it_fits() {
    let mut mesh = Mesh::new().without_queues();
    mesh.join(0, facts(2));
    let number = mesh.submit(job(vec![array("a", 3)]));
    let held: Vec<_> = [0, 1].map(|index| (mesh.start_task(key(number, 0, index)), Held::Running)).into();
    mesh.shrunk = true;
    let registration = Registration { inventory: held, ..mesh.registration(0, 0, facts(1)) };
    mesh.send_registration(registration);
    mesh.open(0);
    mesh.end_task(key(number, 0, 0), ok());
    assert!(mesh.dispatched().is_empty(), "one task fills it now");
    mesh.shrunk = false;
    mesh.end_task(key(number, 0, 1), ok());
    assert_eq!(mesh.dispatched(), [(0, mesh.current(key(number, 0, 2)))]);
}

/// An agent that is about to stop registers so.
#[test]
fn a_node_without_slots_finishes_what_it_has_and_gets_no_more() {
    let (mut mesh, attempt) = running();
    mesh.shrunk = true;
    let base = facts(1);
    let stopping = Facts { slots: 0, total: Resources { cpu_millis: 0, ..base.total.clone() }, ..base };
    let inventory = vec![(attempt, Held::Running)];
    let registration = Registration { inventory, ..mesh.registration(0, 0, stopping) };
    assert_eq!(mesh.send_registration(registration)[&attempt], Verdict::Keep);
    mesh.open(0);
    let next = mesh.submit(job(vec![task("b")]));
    mesh.end(attempt, ok());
    assert_eq!(mesh.job_state(attempt.task.job), JobState::Completed);
    assert!(mesh.dispatched().is_empty());
    mesh.rejoin(0, 0, &[]);
    assert_eq!(mesh.dispatched(), [(0, mesh.current(key(next, 0, 0)))], "it is back");
}

#[test]
fn a_node_that_grew_takes_more() {
    let mut mesh = Mesh::with_nodes(1);
    let number = mesh.submit(job(vec![array("a", 3)]));
    let first = mesh.start_task(key(number, 0, 0));
    let grown = Facts { slots: 1, ..facts(3) };
    let registration =
        Registration { inventory: vec![(first, Held::Running)], ..mesh.registration(0, 0, grown) };
    mesh.send_registration(registration);
    mesh.open(0);
    assert!(mesh.dispatched().is_empty(), "its one slot's share is all of its memory");
    let registration =
        Registration { inventory: vec![(first, Held::Running)], ..mesh.registration(0, 0, facts(3)) };
    mesh.send_registration(registration);
    mesh.open(0);
    assert_eq!(mesh.dispatched().len(), 2);
}

#[test]
fn the_view_of_a_node_tells_what_it_holds() {
    let (mut mesh, _) = running();
    mesh.submit(job(vec![task("b")]));
    mesh.pass(3_000, &[]);
    let said = mesh.step(Event::NodesAsked { reply: ReplyId(77) });
    let [Say::Reply(ReplyId(77), Reply::Nodes(views))] = said else { panic!("{said:?}") };
    let [view] = &views[..] else { panic!("{views:?}") };
    assert_eq!((view.running, view.queued, view.slots, view.slots_free), (1, 0, 1, 0));
    assert_eq!((view.memory_total, view.memory_free), (1 << 30, 0));
    assert_eq!(view.silent_ms, Some(3_000));
    assert!(view.connected);
}

#[test]
fn faults_of_the_node_lower_its_reliability_and_faults_of_tasks_do_not() {
    let after = |end: fn() -> crate::engine::event::AttemptEnd| {
        let (mut mesh, attempt) = running();
        mesh.end(attempt, end());
        mesh.engine.nodes[&node_id(0)].reliability(mesh.now)
    };
    assert!(after(|| ended(Cause::Infra)) < 1.0);
    assert!(after(|| ended(Cause::Infra)) > 0.5, "one failure does not condemn a new node");
    assert!(after(super::mesh::failed) >= 1.0);
    assert!(after(ok) >= 1.0);
}
