//! Operators take nodes out and bring them back. They ask until they have an answer.

use coordinator::engine::{
    effect::Reply,
    event::{Event, NodeChange, ReplyId},
};

use crate::{
    client::DEADLINE,
    edge::Asker,
    invariant::Invariant,
    plan::{MS, SECOND},
    world::{Happening, World},
};

/// A change of a node that an operator wants.
#[derive(Debug)]
pub struct Operation {
    pub node: usize,
    pub change: NodeChange,
    call: u64,
    pub done: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum OperatorStep {
    Ask,
    Late { call: u64 },
}

impl World {
    /// Lets an operator change a node, until that is acknowledged.
    pub fn operate(&mut self, node: usize, change: NodeChange) {
        // What was wanted of this node before is not wanted any more.
        for earlier in self.operations.iter_mut().filter(|earlier| earlier.node == node) {
            earlier.done = true;
            earlier.call = 0;
        }
        if change == NodeChange::Uncordon {
            let id = self.machines[node].id;
            self.history.cordoned.remove(&id);
        }
        self.history.note(self.now, "operator", format_args!("{change:?} node {node}"));
        self.operations.push(Operation { node, change, call: 0, done: false });
        self.operator_step(self.operations.len() - 1, OperatorStep::Ask);
    }

    pub fn operator_step(&mut self, index: usize, step: OperatorStep) {
        let operation = &self.operations[index];
        if operation.done {
            return;
        }
        match step {
            OperatorStep::Late { call } if call != operation.call => {}
            OperatorStep::Late { call } => self.operator_unavailable(index, call),
            OperatorStep::Ask => {
                let call = self.number();
                self.turn = self.rng.index(self.hosts.len());
                self.operations[index].call = call;
                self.after(
                    DEADLINE,
                    Happening::Operator { operation: index, step: OperatorStep::Late { call } },
                );
                if self.core().is_none_or(|core| !core.leading || core.halted) {
                    return self.operator_unavailable(index, call);
                }
                let node = self.machines[self.operations[index].node].id;
                let change = self.operations[index].change.clone();
                let event = Event::NodeChanged { reply: ReplyId(0), node, change, record: None };
                self.enqueue(event, Some(Asker::Operator { operation: index, call }));
            }
        }
    }

    pub fn operator_answered(&mut self, index: usize, call: u64, reply: &Reply) {
        let operation = &mut self.operations[index];
        if operation.call != call || operation.done {
            return;
        }
        operation.done = true;
        let node = operation.node;
        if !matches!(reply, Reply::Node(_)) {
            return self.history.fail(
                self.now,
                Invariant::RightAnswer,
                format!("an operator is answered {reply:?}"),
            );
        }
        if self.operations[index].change != NodeChange::Uncordon {
            let id = self.machines[node].id;
            self.history.cordoned.insert(id);
        }
    }

    pub fn operator_unavailable(&mut self, index: usize, call: u64) {
        if self.operations[index].call != call || self.operations[index].done {
            return;
        }
        self.operations[index].call = 0;
        let wait = self.rng.range(100 * MS, SECOND);
        self.after(wait, Happening::Operator { operation: index, step: OperatorStep::Ask });
    }
}
