//! Nodes register, speak, fall silent and come back; what they hold is reconciled.

use std::{collections::BTreeMap, sync::Arc};

use mesh_proto::ids::{AttemptKey, NodeId, SessionId, TaskKey};

use super::{
    cancel::lost,
    effect::{Effects, NodeView, Refusal, Reply, Say, Verdict, Write},
    event::{Held, NodeChange, Registration, ReplyId},
    machine::Engine,
    node::{Node, Session},
    types::{NodeState, Resources, TaskState, Time},
};

impl Engine {
    /// A node registers with everything it holds. What it holds and what it should hold are
    /// brought together: kept, collected, sent again, or ended as lost.
    pub(super) fn register(&mut self, now: Time, reply: ReplyId, new: &Arc<Registration>, fx: &mut Effects) {
        let node = self.nodes.entry(new.node).or_insert_with(|| Node::new(new.record.clone(), now));
        // The row was read before this event; what an operator said since is known only here.
        node.record.name.clone_from(&new.record.name);
        node.record.boot = Some(new.boot);
        node.facts = Some(new.facts.clone());
        node.session = Some(Session { id: new.session, open: false });
        node.state = NodeState::Healthy;
        node.last_contact = node.last_contact.max(now);
        node.spoke = true;
        node.resend.clear();
        let tasks: Vec<TaskKey> = node.tasks.iter().copied().collect();
        fx.writes.push(Write::Node { record: node.record.clone(), facts: Some(new.encoded_facts.clone()) });
        let held: BTreeMap<AttemptKey, Held> = new.inventory.iter().copied().collect();
        self.account(now, new.node, &held);
        self.facts += 1;

        for key in tasks {
            self.reconcile(now, new, key, &held, fx);
        }
        let verdicts = new
            .inventory
            .iter()
            .map(|(attempt, held)| {
                let verdict = match held {
                    _ if !self.is_current(new.node, *attempt) => Verdict::Unknown,
                    Held::Ended => Verdict::Collect,
                    Held::Accepted | Held::Running => Verdict::Keep,
                };
                (*attempt, verdict)
            })
            .collect();
        self.reindex(now, new.node);
        fx.says.push(Say::Reply(reply, Reply::Registered { verdicts }));
    }

    /// Settles one attempt that should be at the node.
    fn reconcile(
        &mut self,
        now: Time,
        new: &Registration,
        key: TaskKey,
        held: &BTreeMap<AttemptKey, Held>,
        fx: &mut Effects,
    ) {
        let Some(task) = self.task(key) else { return };
        let Some(placed) = task.placed() else { return };
        let attempt = AttemptKey { task: key, number: task.attempt };
        let (started, cancelling) = (placed.started_at.is_some(), placed.cancelling);
        if placed.boot != new.boot {
            return self.end_attempt(now, key, &lost("the node restarted"), fx);
        }
        match held.get(&attempt) {
            Some(Held::Running) if !started => {
                self.adopt(key);
                self.note_start(now, key, None, fx);
            }
            Some(Held::Accepted | Held::Running | Held::Ended) => self.adopt(key),
            // It reported the start and knows nothing of it now, or was to end it and never began, or
            // may have begun and ended it in a history that is over.
            None if started || cancelling || attempt.number < self.first_attempt => {
                self.end_attempt(now, key, &lost("the agent has no record of it"), fx);
            }
            // Committed, but never heard by the agent: the same attempt is sent again.
            None => {
                self.adopt(key);
                if let Some(node) = self.nodes.get_mut(&new.node) {
                    node.resend.push(attempt);
                }
            }
        }
    }

    /// Recomputes what is used of a node: its facts, and so its shares, may have changed. What
    /// has begun, as far as is known here or as the agent says, is counted first, the rest in
    /// the order of its assignment as far as it fits. What has ended there, and is only to be told,
    /// takes nothing any more.
    fn account(&mut self, now: Time, id: NodeId, held: &BTreeMap<AttemptKey, Held>) {
        let Some(mut node) = self.nodes.remove(&id) else { return };
        (node.used, node.given_millis) = (Resources::default(), 0);
        node.queue.clear();
        let mut order: Vec<(bool, Time, TaskKey, bool)> = Vec::new();
        for key in node.tasks.iter().copied() {
            self.settle_withdrawal(key);
            let Some(task) = self.task(key) else { continue };
            let attempt = AttemptKey { task: key, number: task.attempt };
            if let Some(placed) = task.placed() {
                let said = held.get(&attempt);
                let ended = said == Some(&Held::Ended);
                let begun = placed.started_at.is_some() || said == Some(&Held::Running) || ended;
                order.push((!begun, placed.assigned_at, key, ended));
            }
        }
        order.sort_unstable();
        for (unstarted, _, key, ended) in order {
            let Some(class) = self.definition(key.job, key.task).map(|definition| definition.class) else {
                continue;
            };
            let Some(wanted) = self.classes.requirements(class) else { continue };
            let share = if ended { Resources::default() } else { node.share(&wanted.resources) };
            let granted = !unstarted || (node.queue.is_empty() && node.fits(&share));
            node.given_millis += share.cpu_millis;
            if granted {
                node.take(&share);
            } else {
                node.queue.push(key, self.expected_ms(key, &node));
            }
            if let Some(placed) = self.task_mut(key).and_then(|task| task.placed_mut()) {
                (placed.taken, placed.granted) = (share, granted);
            }
        }
        self.nodes.insert(id, node);
        self.reindex(now, id);
    }

    /// The assignment stream is there: what it missed is said now.
    pub(super) fn open_session(&mut self, now: Time, id: NodeId, session: SessionId, fx: &mut Effects) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(live) = node.session.as_mut().filter(|live| live.id == session) else { return };
        live.open = true;
        for attempt in std::mem::take(&mut node.resend) {
            fx.says.push(Say::Dispatch { node: id, session, attempt });
        }
        for key in node.tasks.clone() {
            let Some(task) = self.task(key) else { continue };
            if task.placed().is_some_and(|placed| placed.cancelling) {
                let attempt = AttemptKey { task: key, number: task.attempt };
                self.say_cancel(id, attempt, fx);
            }
        }
        self.reindex(now, id);
    }

    pub(super) fn close_session(&mut self, now: Time, id: NodeId, session: SessionId) {
        if let Some(node) = self.nodes.get_mut(&id)
            && node.session.is_some_and(|live| live.id == session)
        {
            node.session = None;
            self.reindex(now, id);
        }
    }

    /// Tells whether it counts: whether the node's silence is measured from here.
    pub(super) fn heartbeat(
        &mut self,
        now: Time,
        id: NodeId,
        session: SessionId,
        load_permille: u32,
        rtt_us: Option<u64>,
    ) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        if node.session.is_none_or(|live| live.id != session) {
            return false;
        }
        node.load_permille = Some(load_permille.min(1000));
        if let Some(rtt) = rtt_us {
            node.measure(rtt);
        }
        self.heard(now, id);
        self.reindex(now, id);
        true
    }

    /// The node spoke.
    pub(super) fn heard(&mut self, now: Time, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.last_contact = node.last_contact.max(now);
        node.spoke = true;
        if node.session.is_some() && node.state != NodeState::Healthy {
            node.state = NodeState::Healthy;
            self.reindex(now, id);
        } else if node.state == NodeState::Offline {
            // A word on an old stream. What it adopts must be given up again if the node does
            // not register after all, so its silence counts from here.
            node.state = NodeState::Suspect;
        }
    }

    /// Suspects nodes that are silent, and gives up those that are so for long.
    pub(super) fn expire_nodes(&mut self, now: Time, fx: &mut Effects) {
        let mut gone = Vec::new();
        let mut suspected = Vec::new();
        for (id, node) in &mut self.nodes {
            let silence = now.since(node.last_contact);
            let state = if silence > self.settings.offline_after_ms && now >= self.borne_until {
                NodeState::Offline
            } else if silence > self.settings.suspect_after_ms {
                NodeState::Suspect
            } else {
                continue;
            };
            if node.state == state || node.state == NodeState::Offline {
                continue;
            }
            node.state = state;
            if state == NodeState::Offline {
                gone.push(*id);
            } else {
                suspected.push(*id);
            }
        }
        for id in suspected {
            self.reindex(now, id);
        }
        for id in gone {
            self.give_up(now, id, fx);
        }
    }

    /// A node is offline: its attempts stay current, but may be replaced.
    fn give_up(&mut self, now: Time, id: NodeId, fx: &mut Effects) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if let Some(session) = node.session.take() {
            fx.says.push(Say::EndSession { node: id, session: session.id });
        }
        for key in node.tasks.clone() {
            let Some(definition) = self.definition_mut(key.job, key.task) else { continue };
            let Some(placed) = definition.live.get_mut(&key.index).and_then(|task| task.placed_mut()) else {
                continue;
            };
            if placed.cancelling {
                self.end_attempt(now, key, &lost("its node is offline"), fx);
                continue;
            }
            placed.unreachable = true;
            definition.again.insert(key.index);
            self.requeue(key.job, key.task);
        }
        self.reindex(now, id);
    }

    /// An operator changes a node.
    pub(super) fn change_node(
        &mut self,
        now: Time,
        reply: ReplyId,
        id: NodeId,
        change: &NodeChange,
        fx: &mut Effects,
    ) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return Self::refuse(reply, Refusal::NoSuchNode, fx);
        };
        match change {
            NodeChange::Cordon => node.record.cordoned = true,
            NodeChange::Uncordon => {
                node.record.cordoned = false;
                node.record.draining = false;
            }
            NodeChange::Drain => node.record.draining = true,
            NodeChange::Tag { set, remove } => {
                node.record.tags.extend(set.clone());
                for tag in remove {
                    node.record.tags.remove(tag);
                }
            }
        }
        fx.writes.push(Write::Node { record: node.record.clone(), facts: None });
        if *change == NodeChange::Drain {
            self.withdraw_all(id, fx);
        }
        // The operator's tags are facts to the filter.
        self.facts += 1;
        self.reindex(now, id);
        if let Some(node) = self.nodes.get(&id) {
            fx.says.push(Say::Reply(reply, Reply::Node(Box::new(self.view(now, node)))));
        }
    }

    /// A node as people see it.
    pub(super) fn view(&self, now: Time, node: &Node) -> NodeView {
        let running = node
            .tasks
            .iter()
            .filter(|key| self.task(**key).is_some_and(|task| task.state() == TaskState::Running))
            .count();
        node.view(now, running as u32)
    }
}
