//! What the table promises, example by example and under random histories.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use mesh_proto::ids::{AttemptKey, JobNumber, TaskKey};
use mesh_proto::v1::{self, Cause, InventoryState, attempt_event::Event};
use proptest::prelude::*;

use super::admission::{Admission, InLine};
use super::*;

mod line;

fn key(index: u32) -> AttemptKey {
    AttemptKey { task: TaskKey { job: JobNumber(1), task: 0, index }, number: 1 }
}

fn assignment(index: u32) -> Arc<v1::Assignment> {
    let resources = v1::Resources { cpu_millis: 1000, ..v1::Resources::default() };
    Arc::new(v1::Assignment {
        attempt: Some(key(index).into()),
        resources: Some(resources),
        ..v1::Assignment::default()
    })
}

fn capacity(slots: u32) -> Capacity {
    Capacity {
        slots,
        cpu_millis: u64::from(slots) * 1000,
        memory_bytes: 8 << 30,
        named: BTreeMap::from([("licence".to_owned(), 1)]),
        in_line: 0,
    }
}

fn ended(cause: Cause, output: &'static str, length: u64) -> Box<v1::Ended> {
    Box::new(v1::Ended {
        cause: cause.into(),
        output: output.into(),
        output_length: length,
        ..v1::Ended::default()
    })
}

/// What the events say, in short.
fn told(table: &mut Table) -> Vec<String> {
    let name = |event: v1::AttemptEvent| {
        let index = AttemptKey::try_from(event.attempt).unwrap().task.index;
        match event.event.unwrap() {
            Event::Started(_) => format!("{index} started"),
            Event::Progress(progress) => format!("{index} {}%", progress.percent),
            Event::Ended(ended) => format!("{index} ended {:?}", ended.cause()).to_lowercase(),
            Event::Withdrawn(_) => format!("{index} withdrawn"),
        }
    };
    table.take_events(usize::MAX).into_iter().map(name).collect()
}

fn done(effects: &[Effect]) -> Vec<String> {
    effects
        .iter()
        .map(|effect| match effect {
            Effect::Run { key, slot, .. } => format!("run {} on {slot}", key.task.index),
            Effect::Stop { key, stop } => format!("{stop:?} {}", key.task.index).to_lowercase(),
            Effect::Remove(key) => format!("remove {}", key.task.index),
        })
        .collect()
}

fn ack(index: u32, ended: bool) -> Input {
    Input::Ack { key: key(index), stale: false, ended }
}

#[test]
fn an_attempt_goes_from_its_assignment_to_its_removal() {
    let mut table = Table::new(capacity(1));
    assert_eq!(done(&table.handle(Input::Assigned(assignment(0)))), ["run 0 on 0"]);
    assert_eq!(done(&table.handle(Input::Assigned(assignment(1)))), Vec::<String>::new());
    table.handle(Input::Started(key(0), v1::Started::default()));
    table.handle(Input::Progress(key(0), v1::Progress { percent: 40, ..Default::default() }));
    assert_eq!(told(&mut table), ["0 started", "0 40%"]);
    let effects = table.handle(Input::Ended(key(0), ended(Cause::Exit, "hi", 2)));
    assert_eq!(done(&effects), ["run 1 on 0"], "its slot is free before its end is durable");
    assert_eq!(told(&mut table), ["0 ended exit"]);
    assert_eq!(done(&table.handle(ack(0, true))), ["remove 0"]);
}

#[test]
fn a_start_just_before_the_end_is_told_with_it() {
    let mut table = Table::new(capacity(1));
    table.handle(Input::Assigned(assignment(0)));
    table.handle(Input::Began(key(0), v1::Started::default()));
    assert_eq!(told(&mut table), Vec::<String>::new(), "the end may come at once");
    table.handle(Input::Ended(key(0), ended(Cause::Exit, "", 0)));
    assert_eq!(told(&mut table), ["0 started", "0 ended exit"]);
    assert_eq!(done(&table.handle(ack(0, false))), Vec::<String>::new());
    assert_eq!(done(&table.handle(ack(0, true))), ["remove 0"]);
}

#[test]
fn an_assignment_said_twice_runs_once() {
    let mut table = Table::new(capacity(4));
    assert_eq!(table.handle(Input::Assigned(assignment(0))).len(), 1);
    assert!(table.handle(Input::Assigned(assignment(0))).is_empty());
    table.handle(Input::Ended(key(0), ended(Cause::Exit, "", 0)));
    assert!(table.handle(Input::Assigned(assignment(0))).is_empty(), "it ran already");
}

#[test]
fn an_end_is_told_again_in_each_session_until_it_is_durable() {
    let mut table = Table::new(capacity(1));
    table.handle(Input::Assigned(assignment(0)));
    table.handle(Input::Started(key(0), v1::Started::default()));
    table.handle(Input::Ended(key(0), ended(Cause::Signal, "", 0)));
    assert_eq!(told(&mut table), ["0 started", "0 ended signal"]);
    for _ in 0..2 {
        assert_eq!(table.inventory()[0].state(), InventoryState::Ended);
        table.handle(Input::SessionOpened);
        assert_eq!(told(&mut table), ["0 ended signal"]);
    }
    table.handle(ack(0, false));
    assert!(!table.is_idle(), "the acknowledgement of its start drops nothing");
    table.handle(ack(0, true));
    assert!(table.is_idle());
}

#[test]
fn streamed_output_is_kept_until_it_is_durable_too() {
    let mut table = Table::new(capacity(1));
    table.handle(Input::Assigned(assignment(0)));
    assert!(table.begin_streaming(key(0)));
    assert!(!table.seal(key(0), 10), "some of it went out: the end must not carry it again");
    table.handle(Input::Ended(key(0), ended(Cause::Exit, "", 10)));
    assert!(table.handle(ack(0, true)).is_empty());
    assert_eq!(table.inventory(), [], "its end is durable: nothing to reconcile");
    let durable = |durable| Input::OutputDurable { key: key(0), durable, discard: false };
    assert!(table.handle(durable(9)).is_empty());
    assert_eq!(table.shippable(), [Shippable { key: key(0), durable: 9, length: Some(10), streamed: true }]);
    assert_eq!(done(&table.handle(durable(10))), ["remove 0"]);
}

#[test]
fn short_output_rides_in_the_end_and_is_never_streamed() {
    let mut table = Table::new(capacity(1));
    table.handle(Input::Assigned(assignment(0)));
    assert!(table.seal(key(0), 5));
    assert!(!table.begin_streaming(key(0)));
    assert!(table.shippable().is_empty());
    table.handle(Input::Ended(key(0), ended(Cause::Exit, "12345", 5)));
    assert!(table.shippable().is_empty());
    assert_eq!(done(&table.handle(ack(0, true))), ["remove 0"]);
}

#[test]
fn a_cancel_reaches_whatever_there_is() {
    let mut table = Table::new(capacity(1));
    table.handle(Input::Assigned(assignment(0)));
    table.handle(Input::Assigned(assignment(1)));
    assert!(table.handle(Input::Cancel(key(1))).is_empty());
    assert!(table.handle(Input::Cancel(key(2))).is_empty(), "never heard of");
    assert_eq!(told(&mut table), ["1 ended cancelled", "2 ended cancelled"]);
    assert_eq!(done(&table.handle(Input::Cancel(key(0)))), ["cancel 0"]);
    assert!(table.handle(Input::Cancel(key(0))).is_empty(), "once is enough");
    table.handle(Input::Ended(key(0), ended(Cause::Cancelled, "", 0)));
    assert_eq!(told(&mut table), ["0 ended cancelled"]);
    assert_eq!(done(&table.handle(ack(1, true))), ["remove 1"]);
}

#[test]
fn what_is_not_current_is_killed_and_says_nothing() {
    let mut table = Table::new(capacity(2));
    table.handle(Input::Assigned(assignment(0)));
    table.handle(Input::Started(key(0), v1::Started::default()));
    table.handle(Input::Assigned(assignment(1)));
    told(&mut table);
    let kill = |index| Input::Verdict(key(index), v1::Verdict::Kill);
    assert_eq!(done(&table.handle(kill(0))), ["discard 0"]);
    assert_eq!(table.inventory().len(), 1);
    assert_eq!(done(&table.handle(Input::Ended(key(0), ended(Cause::Exit, "", 0)))), ["remove 0"]);
    table.handle(Input::Ended(key(1), ended(Cause::Exit, "", 0)));
    let stale = Input::Ack { key: key(1), stale: true, ended: true };
    assert_eq!(done(&table.handle(stale)), ["remove 1"]);
    assert!(table.is_idle());
}

#[test]
fn collect_sends_the_end_again() {
    let mut table = Table::new(capacity(1));
    table.handle(Input::Assigned(assignment(0)));
    table.handle(Input::Ended(key(0), ended(Cause::Exit, "", 0)));
    told(&mut table);
    table.handle(Input::Verdict(key(0), v1::Verdict::Collect));
    assert_eq!(told(&mut table), ["0 ended exit"]);
}

#[test]
fn a_withdrawal_is_answered_by_what_is_true() {
    let mut table = Table::new(capacity(1));
    table.handle(Input::Assigned(assignment(0)));
    table.handle(Input::Started(key(0), v1::Started::default()));
    table.handle(Input::Assigned(assignment(1)));
    told(&mut table);
    for index in 0..3 {
        table.handle(Input::Withdraw(key(index)));
    }
    assert_eq!(told(&mut table), ["0 started", "1 withdrawn", "2 withdrawn"]);
    let effects = table.handle(Input::Ended(key(0), ended(Cause::Exit, "", 0)));
    assert!(effects.is_empty(), "what was given back does not start");
}

/// Seen in a simulation: the assignment, said again in a new session, comes after the answer to
/// the withdrawal, on another stream.
#[test]
fn what_was_given_back_does_not_start_when_its_assignment_comes_late() {
    let mut table = Table::new(capacity(1));
    table.handle(Input::Assigned(assignment(0)));
    table.handle(Input::Assigned(assignment(1)));
    table.handle(Input::Withdraw(key(1)));
    table.handle(Input::SessionOpened);
    assert_eq!(told(&mut table), ["1 withdrawn"]);
    table.handle(ack(1, true));
    table.handle(Input::Assigned(assignment(1)));
    let effects = table.handle(Input::Ended(key(0), ended(Cause::Exit, "", 0)));
    assert_eq!(done(&effects), Vec::<String>::new(), "it runs elsewhere by now");
    table.handle(Input::SessionOpened);
    assert_eq!(told(&mut table), ["0 ended exit"], "nothing is left of it in the next session");
}

#[test]
fn a_shutdown_ends_what_runs_and_starts_nothing_that_waits() {
    let mut table = Table::new(capacity(1));
    for index in 0..2 {
        table.handle(Input::Assigned(assignment(index)));
    }
    assert_eq!(done(&table.handle(Input::Shutdown)), ["shutdown 0"]);
    table.handle(Input::Assigned(assignment(2)));
    assert_eq!(told(&mut table), ["1 ended infra", "2 withdrawn"]);
    assert!(!table.is_idle());
    assert!(table.handle(Input::Ended(key(0), ended(Cause::Infra, "", 0))).is_empty());
    assert_eq!(told(&mut table), ["0 ended infra"]);
    table.handle(ack(0, true));
    table.handle(ack(1, true));
    assert!(table.is_idle());
}

#[test]
fn small_attempts_may_be_more_than_the_slots_and_each_has_its_own_place() {
    let mut admission = Admission::new(capacity(2));
    for index in 0..10 {
        admission.queue(key(index), Need { cpu_millis: 250, ..Need::default() });
    }
    let places: Vec<u32> = admission.admit().iter().map(|(_, slot)| *slot).collect();
    assert_eq!(places, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn what_was_recovered_runs_on_in_its_slot() {
    let mut table = Table::new(capacity(2));
    let running = |index, slot| Input::Recovered {
        assignment: assignment(index),
        slot,
        started: Some(v1::Started::default()),
        ended: None,
    };
    assert!(table.handle(running(0, 0)).is_empty());
    let over = Input::Recovered {
        assignment: assignment(1),
        slot: 1,
        started: None,
        ended: Some(ended(Cause::Exit, "", 7)),
    };
    table.handle(over);
    assert_eq!(done(&table.handle(Input::Assigned(assignment(2)))), ["run 2 on 1"]);
    table.handle(Input::SessionOpened);
    assert_eq!(told(&mut table), ["0 started", "1 ended exit"]);
    assert!(!table.seal(key(0), 1), "whether some of it went out before is not known");
    let states: Vec<_> = table.inventory().iter().map(v1::InventoryItem::state).collect();
    assert_eq!(states, [InventoryState::Running, InventoryState::Ended, InventoryState::Accepted]);
}

/// Seen in a simulation: the jail had ended one and begun the next in its slot while there was no daemon.
#[test]
fn of_two_found_in_one_slot_the_one_that_is_over_gives_nothing_away() {
    let mut table = Table::new(capacity(2));
    for index in 0..2 {
        let (started, ended) = (None, None);
        table.handle(Input::Recovered { assignment: assignment(index), slot: 0, started, ended });
    }
    table.handle(Input::Ended(key(0), ended(Cause::Exit, "", 0)));
    assert_eq!(done(&table.handle(Input::Assigned(assignment(2)))), ["run 2 on 1"], "1 runs on 0");
    table.handle(Input::Ended(key(1), ended(Cause::Exit, "", 0)));
    assert_eq!(done(&table.handle(Input::Assigned(assignment(3)))), ["run 3 on 0"]);
}

#[test]
fn messages_are_cut_to_their_size() {
    let mut table = Table::new(capacity(10));
    for index in 0..10 {
        table.handle(Input::Assigned(assignment(index)));
        let long = Box::new(v1::Ended { message: "x".repeat(1000), ..v1::Ended::default() });
        table.handle(Input::Ended(key(index), long));
    }
    assert_eq!(table.take_events(2500).len(), 3);
    assert_eq!(table.take_events(1).len(), 1, "one goes, however large");
    assert_eq!(table.take_events(usize::MAX).len(), 6);
}

#[test]
fn a_large_attempt_at_the_head_gets_its_turn() {
    let mut admission = Admission::new(capacity(4));
    let need = |cpu_millis| Need { cpu_millis, ..Need::default() };
    admission.queue(key(0), need(1000));
    assert_eq!(admission.admit().len(), 1);
    admission.queue(key(1), need(4000));
    let mut passed = 0;
    for index in 2..100 {
        admission.queue(key(index), need(1000));
        for (key, _) in admission.admit() {
            passed += 1;
            admission.release(key, false);
        }
    }
    assert!((1..=16).contains(&passed), "{passed} went past");
    admission.release(key(0), false);
    assert_eq!(admission.admit().first().map(|(key, _)| *key), Some(key(1)));
}

#[test]
fn named_resources_and_memory_are_not_over_committed() {
    let mut admission = Admission::new(capacity(4));
    let licence = Need { named: BTreeMap::from([("licence".to_owned(), 1)]), ..Need::default() };
    let memory = Need { memory_bytes: 6 << 30, ..Need::default() };
    for (index, need) in [licence.clone(), licence, memory.clone(), memory].into_iter().enumerate() {
        admission.queue(key(index as u32), need);
    }
    let admitted: Vec<u32> = admission.admit().iter().map(|(key, _)| key.task.index).collect();
    assert_eq!(admitted, [0, 2]);
}

#[derive(Clone, Debug)]
enum Act {
    Assign(u32),
    Cancel(u32),
    Withdraw(u32),
    Kill(u32),
    Start(u32),
    End(u32),
    Send,
    AckAll,
    Reconnect,
}

fn act() -> impl Strategy<Value = Act> {
    let index = 0_u32..6;
    prop_oneof![
        4 => index.clone().prop_map(Act::Assign),
        1 => index.clone().prop_map(Act::Cancel),
        1 => index.clone().prop_map(Act::Withdraw),
        1 => index.clone().prop_map(Act::Kill),
        4 => index.clone().prop_map(Act::Start),
        4 => index.prop_map(Act::End),
        3 => Just(Act::Send),
        3 => Just(Act::AckAll),
        1 => Just(Act::Reconnect),
    ]
}

proptest! {
    /// Whatever happens in whatever order: nothing runs twice, slots are never shared, nothing
    /// that runs is removed, and once everything has ended and is acknowledged nothing is held.
    #[test]
    fn no_history_breaks_the_table(acts in proptest::collection::vec(act(), 0..120)) {
        let mut table = Table::new(capacity(2));
        let mut running: HashMap<AttemptKey, u32> = HashMap::new();
        let mut stopped: HashSet<AttemptKey> = HashSet::new();
        let mut ran: HashSet<AttemptKey> = HashSet::new();
        let mut used: HashSet<u32> = HashSet::new();
        let mut flying: Vec<(AttemptKey, bool)> = Vec::new();
        let drain = (0..6).flat_map(|index| [Act::End(index), Act::Send, Act::AckAll]);
        let finish: Vec<Act> = drain.clone().chain(drain.clone()).chain(drain).collect();
        for act in acts.into_iter().chain(finish) {
            let inputs = match act {
                // An attempt number is given once by a coordinator.
                Act::Assign(index) if used.insert(index) => vec![Input::Assigned(assignment(index))],
                Act::Assign(index) if running.contains_key(&key(index)) => {
                    vec![Input::Assigned(assignment(index))]
                }
                Act::Cancel(index) => vec![Input::Cancel(key(index))],
                Act::Withdraw(index) => vec![Input::Withdraw(key(index))],
                Act::Kill(index) => vec![Input::Verdict(key(index), v1::Verdict::Kill)],
                Act::Start(index) if running.contains_key(&key(index)) => {
                    vec![Input::Started(key(index), v1::Started::default())]
                }
                Act::End(index) if running.remove(&key(index)).is_some() => {
                    let cause = if stopped.remove(&key(index)) { Cause::Cancelled } else { Cause::Exit };
                    vec![Input::Ended(key(index), ended(cause, "", 0))]
                }
                Act::Assign(_) | Act::Start(_) | Act::End(_) => vec![],
                Act::Send => {
                    for event in table.take_events(usize::MAX) {
                        let ended = matches!(event.event, Some(Event::Ended(_)));
                        flying.push((AttemptKey::try_from(event.attempt).unwrap(), ended));
                    }
                    vec![]
                }
                Act::AckAll => {
                    flying.drain(..).map(|(key, ended)| Input::Ack { key, stale: false, ended }).collect()
                }
                Act::Reconnect => {
                    flying.clear();
                    vec![Input::SessionOpened]
                }
            };
            for input in inputs {
                for effect in table.handle(input) {
                    match effect {
                        Effect::Run { key, slot, .. } => {
                            prop_assert!(ran.insert(key), "{key} ran twice");
                            prop_assert!(running.values().all(|used| *used != slot), "slot {slot} is shared");
                            running.insert(key, slot);
                        }
                        Effect::Stop { key, .. } => {
                            prop_assert!(running.contains_key(&key));
                            stopped.insert(key);
                        }
                        Effect::Remove(key) => {
                            prop_assert!(!running.contains_key(&key), "{key} was removed while it ran");
                        }
                    }
                }
            }
            prop_assert_eq!(table.running(), running.len());
        }
        prop_assert!(table.is_idle(), "{:?}", table);
    }
}
