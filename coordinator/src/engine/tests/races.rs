//! Things that meet: a cancel and an end, a withdrawal and a start, a drain and an assignment, a
//! redrive and a cancel. Each is played in a thousand histories of little else, so that they meet in
//! every order, with commits that fail and memory that is read anew between them.

use proptest::prelude::*;

use super::model::{How, NODES, Op, Shape, TaskShape, play};

fn tasks(attempts: u32) -> impl Strategy<Value = Vec<TaskShape>> {
    let task = (1_u32..4, any::<(u8, u8)>()).prop_map(move |(total, needs)| TaskShape {
        total,
        needs,
        wants: 0,
        attempts,
        max_lost: 2,
        backoff_ms: 0,
    });
    proptest::collection::vec(task, 1..3)
}

fn submit(attempts: u32) -> impl Strategy<Value = Op> {
    (any::<bool>(), 0_u8..10, tasks(attempts)).prop_map(|(keep_going, priority, tasks)| {
        Op::Submit(Shape { keep_going, priority, key: None, payload: false, tasks })
    })
}

fn node() -> std::ops::Range<u32> {
    0..NODES
}

fn start() -> impl Strategy<Value = Op> {
    (node(), any::<usize>()).prop_map(|(node, pick)| Op::Start(node, pick))
}

fn finish(how: How) -> impl Strategy<Value = Op> {
    (node(), any::<usize>()).prop_map(move |(node, pick)| Op::Finish(node, pick, how))
}

fn tell() -> impl Strategy<Value = Op> {
    (node(), any::<usize>(), any::<bool>()).prop_map(|(node, pick, end)| Op::Tell(node, pick, end))
}

fn change() -> impl Strategy<Value = Op> {
    (node(), 0_u8..4).prop_map(|(node, change)| Op::Change(node, change))
}

fn redrive() -> impl Strategy<Value = Op> {
    let target = proptest::option::of((0_u32..2, proptest::option::of(0_u32..3)));
    (any::<usize>(), target).prop_map(|(pick, target)| Op::Redrive(pick, target))
}

/// Commits that fail and memory that is read anew; the nodes come back.
fn trouble() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::Rebuild),
        1 => any::<bool>().prop_map(Op::CommitFails),
        6 => node().prop_map(Op::Register),
        8 => node().prop_map(Op::Open),
        1 => any::<usize>().prop_map(Op::Repeat),
    ]
}

/// Work is at hand at every node, then the race begins. Not every step is a batch of its own.
fn history(attempts: u32, race: impl Strategy<Value = Op>) -> impl Strategy<Value = Vec<(Op, bool)>> {
    let begin = (submit(attempts), submit(attempts)).prop_map(|(one, two)| {
        let nodes = || 0..NODES;
        let mut steps = vec![one, two];
        steps.extend(nodes().map(Op::Register));
        steps.extend(nodes().map(Op::Open));
        steps.extend(nodes().map(Op::Obey));
        steps.extend(nodes().map(|node| Op::Start(node, 0)));
        steps.into_iter().map(|step| (step, true)).collect::<Vec<_>>()
    });
    let race = proptest::collection::vec((race, proptest::bool::weighted(0.5)), 5..40);
    (begin, race).prop_map(|(mut steps, race)| {
        steps.extend(race);
        steps
    })
}

fn a_thousand() -> ProptestConfig {
    ProptestConfig { cases: 1_000, max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(a_thousand())]

    #[test]
    fn a_cancel_meets_ends(history in history(2, prop_oneof![
        4 => any::<usize>().prop_map(Op::Cancel),
        4 => finish(How::Well),
        2 => finish(How::Badly),
        6 => tell(),
        3 => node().prop_map(Op::Obey),
        2 => start(),
        2 => trouble(),
    ])) {
        play(&history, None).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn a_withdrawal_meets_starts(history in history(1, prop_oneof![
        // What is asked back: by a drain, by what is more urgent, by a node with nothing to do.
        3 => change(),
        3 => submit(1),
        6 => start(),
        6 => tell(),
        4 => node().prop_map(Op::Obey),
        2 => finish(How::Well),
        2 => trouble(),
    ])) {
        play(&history, None).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn a_drain_meets_assignments(history in history(1, prop_oneof![
        6 => change(),
        5 => submit(1),
        3 => node().prop_map(Op::Obey),
        2 => node().prop_map(Op::Close),
        3 => node().prop_map(|node| Op::Work(node, How::Well)),
        4 => trouble(),
    ])) {
        play(&history, None).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn a_redrive_meets_cancels(history in history(1, prop_oneof![
        6 => redrive(),
        3 => any::<usize>().prop_map(Op::Cancel),
        6 => node().prop_map(|node| Op::Work(node, How::Badly)),
        2 => node().prop_map(|node| Op::Work(node, How::Well)),
        3 => tell(),
        2 => start(),
        2 => trouble(),
    ])) {
        play(&history, None).map_err(TestCaseError::fail)?;
    }
}
