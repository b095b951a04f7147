//! Attempts that stand in line for a slot: example by example and under random histories, against a jail
//! that starts each when the one before it is over.

use super::*;

fn lined(slots: u32, in_line: usize) -> Table {
    Table::new(Capacity { in_line, ..capacity(slots) })
}

fn instant(index: u32) -> Input {
    Input::Ended(key(index), ended(Cause::Exit, "", 0))
}

fn began(index: u32) -> Input {
    Input::Began(key(index), v1::Started::default())
}

/// Who is to run, and behind whom.
fn runs(effects: &[Effect]) -> Vec<(u32, Option<u32>)> {
    let of = |effect: &Effect| match effect {
        Effect::Run { key, after, .. } => Some((key.task.index, after.map(|after| after.task.index))),
        Effect::Stop { .. } | Effect::Remove(_) => None,
    };
    effects.iter().filter_map(of).collect()
}

/// One slot whose last attempt, 0, was over in an instant: 1 runs, 2 and 3 stand in line, 4 waits.
fn in_line() -> Table {
    let mut table = lined(1, 2);
    table.handle(Input::Assigned(assignment(0)));
    for index in 1..5 {
        assert_eq!(
            runs(&table.handle(Input::Assigned(assignment(index)))),
            [],
            "nothing is known of the slot"
        );
    }
    assert_eq!(runs(&table.handle(instant(0))), [(1, None), (2, Some(1)), (3, Some(2))]);
    assert_eq!((table.running(), table.waiting(), table.is_busy()), (1, 3, true));
    told(&mut table);
    table
}

#[test]
fn the_line_goes_on_whoever_tells_first() {
    let mut table = in_line();
    assert_eq!(runs(&table.handle(instant(1))), [(4, Some(3))], "2 has the slot");
    assert_eq!(runs(&table.handle(began(2))), []);
    // 3 has begun: 2 is over.
    assert_eq!(runs(&table.handle(began(3))), []);
    assert_eq!((table.running(), table.waiting()), (1, 1));
    assert_eq!(runs(&table.handle(instant(2))), [], "3 has its slot");
    table.handle(instant(3));
    table.handle(instant(4));
    assert_eq!((table.running(), table.waiting(), table.is_busy()), (0, 0, false));
}

#[test]
fn who_is_given_back_is_the_first_to_run_next() {
    let mut table = in_line();
    table.handle(began(1));
    assert_eq!(runs(&table.handle(Input::Returned(key(3)))), []);
    assert_eq!(runs(&table.handle(Input::Returned(key(2)))), [], "1 takes its time: nobody stands behind it");
    let slow = Box::new(v1::Ended { run_ms: 30, ..v1::Ended::default() });
    assert_eq!(runs(&table.handle(Input::Ended(key(1), slow))), [(2, None)]);
    assert_eq!(runs(&table.handle(instant(2))), [(3, None), (4, Some(3))]);
}

#[test]
fn what_is_asked_of_one_in_line_is_done_whatever_becomes_of_it() {
    for begins in [true, false] {
        let mut table = in_line();
        assert_eq!(done(&table.handle(Input::Cancel(key(2)))), ["cancel 2"]);
        table.handle(Input::Withdraw(key(3)));
        assert_eq!(told(&mut table), Vec::<String>::new(), "nobody knows yet");
        if begins {
            table.handle(began(2));
            table.handle(began(3));
            assert_eq!(told(&mut table), ["3 started"]);
            table.handle(Input::Ended(key(2), ended(Cause::Cancelled, "", 0)));
            assert_eq!(told(&mut table), ["2 started", "2 ended cancelled"]);
        } else {
            table.handle(Input::Returned(key(2)));
            table.handle(Input::Returned(key(3)));
            assert_eq!(told(&mut table), ["2 ended cancelled", "3 withdrawn"]);
        }
    }
    let mut table = in_line();
    assert_eq!(done(&table.handle(Input::Verdict(key(2), v1::Verdict::Kill))), ["discard 2"]);
    assert_eq!(done(&table.handle(Input::Returned(key(2)))), ["remove 2"]);
    assert_eq!(done(&table.handle(Input::Shutdown)), ["shutdown 1", "shutdown 3"]);
    table.handle(Input::Returned(key(3)));
    assert_eq!(told(&mut table), ["4 ended infra", "3 ended infra"]);
}

#[test]
fn only_what_needs_no_more_stands_in_line() {
    let mut admission = Admission::new(Capacity { in_line: 2, ..capacity(2) });
    let plain = |cpu_millis| Need { cpu_millis, plain: true, ..Need::default() };
    admission.queue(key(0), plain(1000));
    admission.queue(key(1), plain(500));
    admission.admit();
    admission.release(key(0), true);
    admission.queue(key(2), plain(1000));
    assert_eq!(admission.admit(), [(key(2), 0)]);
    admission.queue(key(3), plain(500));
    admission.queue(key(4), plain(1000));
    let after =
        |lined: Vec<InLine>| -> Vec<_> { lined.iter().map(|lined| (lined.key, lined.after)).collect() };
    // Behind 3 there is not enough for 4; where 1 runs nothing is known to be over in an instant.
    assert_eq!(after(admission.line_up()), [(key(3), key(2))]);
    let mut admission = Admission::new(Capacity { in_line: 2, ..capacity(1) });
    admission.queue(key(0), plain(1000));
    admission.queue(key(1), plain(1000));
    admission.admit();
    admission.release(key(0), true);
    admission.admit();
    admission.queue(key(2), Need { plain: false, ..plain(1000) });
    admission.queue(key(3), plain(1000));
    assert_eq!(after(admission.line_up()), [], "the head has to be staged, and nobody goes past it");
}

#[derive(Clone, Debug)]
enum Act {
    Assign(u32),
    Cancel(u32),
    Withdraw(u32),
    Kill(u32),
    /// The process of an attempt ends; the end is heard of at once or later.
    End(u32, bool),
    Begin(u32),
    Return(u32),
    Hear,
    Send,
    AckAll,
    Reconnect,
}

fn act() -> impl Strategy<Value = Act> {
    let index = 0_u32..9;
    prop_oneof![
        5 => index.clone().prop_map(Act::Assign),
        1 => index.clone().prop_map(Act::Cancel),
        1 => index.clone().prop_map(Act::Withdraw),
        1 => index.clone().prop_map(Act::Kill),
        6 => (index.clone(), any::<bool>()).prop_map(|(index, late)| Act::End(index, late)),
        3 => index.clone().prop_map(Act::Begin),
        1 => index.prop_map(Act::Return),
        4 => Just(Act::Hear),
        2 => Just(Act::Send),
        2 => Just(Act::AckAll),
        1 => Just(Act::Reconnect),
    ]
}

/// What a jail does with lines.
#[derive(Default)]
struct Jail {
    running: HashMap<AttemptKey, u32>,
    line: Vec<(AttemptKey, AttemptKey, u32)>,
    began: HashSet<AttemptKey>,
}

impl Jail {
    fn start(&mut self, key: AttemptKey, slot: u32) -> Result<(), TestCaseError> {
        prop_assert!(self.began.insert(key), "{} began twice", key);
        prop_assert!(self.running.values().all(|used| *used != slot), "slot {} is shared", slot);
        self.running.insert(key, slot);
        prop_assert!(self.running.len() <= 2, "more than there is: {:?}", self.running);
        Ok(())
    }

    /// Takes an attempt that is to run; what is given back.
    fn take(
        &mut self,
        key: AttemptKey,
        slot: u32,
        after: Option<AttemptKey>,
    ) -> Result<Option<Input>, TestCaseError> {
        let Some(after) = after else {
            self.start(key, slot)?;
            return Ok(None);
        };
        let holds = self.line.iter().any(|(waiting, ..)| *waiting == after);
        let free = self.line.iter().all(|(_, before, _)| *before != after);
        if free && (holds || self.running.contains_key(&after)) {
            self.line.push((key, after, slot));
        } else {
            return Ok(Some(Input::Returned(key)));
        }
        Ok(None)
    }

    fn end(&mut self, key: AttemptKey) -> Result<bool, TestCaseError> {
        if self.running.remove(&key).is_none() {
            return Ok(false);
        }
        if let Some(place) = self.line.iter().position(|(_, before, _)| *before == key) {
            let (next, _, slot) = self.line.remove(place);
            self.start(next, slot)?;
        }
        Ok(true)
    }

    fn give_back(&mut self, key: AttemptKey) -> Vec<Input> {
        let mut back = Vec::new();
        let mut next = self.line.iter().position(|(waiting, ..)| *waiting == key);
        while let Some(place) = next {
            let (gone, ..) = self.line.remove(place);
            back.push(Input::Returned(gone));
            next = self.line.iter().position(|(_, before, _)| *before == gone);
        }
        back
    }
}

proptest! {
    /// Whatever happens in whatever order, and however late the daemon hears of it: nothing begins
    /// twice, no slot is shared, no more runs than there is room for, and in the end nothing is held.
    #[test]
    fn no_history_of_lines_breaks_the_table(acts in proptest::collection::vec(act(), 0..160)) {
        let mut table = lined(2, 2);
        let mut jail = Jail::default();
        let mut used: HashSet<u32> = HashSet::new();
        let mut late: VecDeque<Input> = VecDeque::new();
        let mut flying: Vec<(AttemptKey, bool)> = Vec::new();
        let drain = (0..9).flat_map(|index| [Act::End(index, false), Act::Hear, Act::Send, Act::AckAll]);
        let finish: Vec<Act> = std::iter::repeat_n(drain, 12).flatten().collect();
        for act in acts.into_iter().chain(finish) {
            let mut inputs: VecDeque<Input> = VecDeque::new();
            match act {
                Act::Assign(index) if used.insert(index) => {
                    inputs.push_back(Input::Assigned(assignment(index)));
                }
                Act::Cancel(index) => inputs.push_back(Input::Cancel(key(index))),
                Act::Withdraw(index) => inputs.push_back(Input::Withdraw(key(index))),
                Act::Kill(index) => inputs.push_back(Input::Verdict(key(index), v1::Verdict::Kill)),
                Act::End(index, heard_late) => {
                    if jail.end(key(index))? {
                        let end = [began(index), instant(index)];
                        if heard_late { late.extend(end) } else { inputs.extend(end) }
                    }
                }
                Act::Begin(index) if jail.running.contains_key(&key(index)) => inputs.push_back(began(index)),
                Act::Assign(_) | Act::Begin(_) => {}
                Act::Return(index) => inputs.extend(jail.give_back(key(index))),
                Act::Hear => inputs.extend(late.pop_front()),
                Act::Send => {
                    for event in table.take_events(usize::MAX) {
                        let ended = matches!(event.event, Some(Event::Ended(_)));
                        flying.push((AttemptKey::try_from(event.attempt).unwrap(), ended));
                    }
                }
                Act::AckAll => {
                    inputs.extend(flying.drain(..).map(|(key, ended)| Input::Ack { key, stale: false, ended }));
                }
                Act::Reconnect => {
                    flying.clear();
                    inputs.push_back(Input::SessionOpened);
                }
            }
            while let Some(input) = inputs.pop_front() {
                for effect in table.handle(input) {
                    match effect {
                        Effect::Run { key, slot, after, .. } => inputs.extend(jail.take(key, slot, after)?),
                        Effect::Stop { key, .. } => {
                            let waits = jail.line.iter().any(|(waiting, ..)| *waiting == key);
                            prop_assert!(waits || jail.began.contains(&key));
                            inputs.extend(jail.give_back(key));
                        }
                        Effect::Remove(key) => {
                            let waits = jail.line.iter().any(|(waiting, ..)| *waiting == key);
                            prop_assert!(!waits && !jail.running.contains_key(&key), "{} was removed", key);
                        }
                    }
                }
            }
        }
        prop_assert!(table.is_idle() && table.waiting() == 0, "{:?}", table);
    }
}
