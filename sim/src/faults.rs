//! What goes wrong, how it is healed, and what must be true in the end.

use std::collections::BTreeMap;

use coordinator::engine::{
    Engine,
    effect::{Effects, NodeView, Reply, Say},
    event::{Event, NodeChange, ReplyId},
    types::Counts,
};
use mesh_proto::ids::{AttemptKey, SessionId};
use mesh_proto::v1::Verdict;

use crate::{
    daemon::Phase,
    database::is_final,
    host::Host,
    invariant::Invariant,
    network::Registered,
    plan::{Micros, SECOND},
    trouble::Fault,
    world::{Happening, World},
};

/// How long a process that lost its attempt may live once its node is back.
const KILLED_WITHIN: Micros = 5 * SECOND;

impl World {
    pub fn strike(&mut self, fault: Fault) {
        if self.healed {
            return;
        }
        match fault {
            Fault::KillDaemon { node, down } => self.kill_daemon(node, down, false),
            Fault::DamageRecord { node, down } => self.kill_daemon(node, down, true),
            Fault::Reboot { node, down } => self.reboot(node, down),
            Fault::Cut { node } => self.cut_node(node),
            Fault::Partition { node, host, up, down, lasts } => self.partition(node, host, (up, down), lasts),
            Fault::Flap { node, lasts } => {
                self.history.note(self.now, "link flaps", format_args!("{node}"));
                self.partition(Some(node), None, (true, true), SECOND);
                self.cut_node(node);
                if lasts > 2 * SECOND {
                    let again = Fault::Flap { node, lasts: lasts - 2 * SECOND };
                    self.after(2 * SECOND, Happening::Fault(again));
                }
            }
            Fault::CrashCoordinator { host, down } => {
                self.turn = host;
                self.crash(down);
            }
            Fault::CrashAt { host, point, down } => self.hosts[host].crash_at = Some((point, down)),
            Fault::Freeze { host, lasts } => self.freeze(host, lasts),
            Fault::CutOffDatabase { host, lasts } => self.cut_off_database(host, lasts),
            Fault::WallClock { ms } => {
                self.history.note(self.now, "wall clock jumps", format_args!("{ms} ms"));
                self.wall_ms += ms;
            }
            Fault::DatabaseDown { lasts } => {
                self.history.note(self.now, "database down", "");
                self.database_down = true;
                self.outage += 1;
                let outage = self.outage;
                self.after(lasts, Happening::DatabaseUp { outage });
            }
            Fault::DatabaseSlow { lasts } => {
                self.history.note(self.now, "database slow", "");
                self.database_slow_until = self.now + lasts;
            }
            Fault::DatabaseReadOnly { lasts } => {
                self.history.note(self.now, "database read-only", "");
                self.database_read_only_until = self.now + lasts;
            }
            Fault::Cordon { node, drain } => {
                self.operate(node, if drain { NodeChange::Drain } else { NodeChange::Cordon });
            }
            Fault::Uncordon { node } => self.operate(node, NodeChange::Uncordon),
        }
    }

    /// Between a node and a host, or all of either kind.
    fn partition(
        &mut self,
        node: Option<usize>,
        host: Option<usize>,
        directions: (bool, bool),
        lasts: Micros,
    ) {
        for at in (0..self.machines.len()).filter(|at| node.is_none_or(|node| node == *at)) {
            for to in (0..self.hosts.len()).filter(|to| host.is_none_or(|host| host == *to)) {
                self.block(at, to, directions, lasts);
            }
        }
    }

    pub fn database_up(&mut self, outage: Option<u64>) {
        if self.database_down && outage.is_none_or(|outage| outage == self.outage) {
            self.history.note(self.now, "database up", "");
            self.database_down = false;
        }
    }

    /// Everything that can be mended is.
    pub fn heal(&mut self) {
        self.history.note(self.now, "all is healed", "");
        self.healed = true;
        for host in &mut self.hosts {
            host.crash_at = None;
            host.frozen_until = host.frozen_until.min(self.now);
            host.cut_off_until = host.cut_off_until.min(self.now);
        }
        self.database_slow_until = 0;
        self.database_read_only_until = 0;
        self.database_up(None);
        for node in 0..self.machines.len() {
            for host in 0..self.hosts.len() {
                self.unblock(node, host, None);
            }
            self.operate(node, NodeChange::Uncordon);
        }
        self.at(self.now + SECOND, Happening::Probe);
    }

    /// What is not over yet.
    pub fn unfinished(&self) -> Option<String> {
        if let Some(open) = self.database.jobs.values().find(|job| !is_final(job.row.state)) {
            let tasks: Vec<String> = self
                .database
                .tasks
                .values()
                .filter(|row| row.key.job == open.row.number && row.finished_at.is_none())
                .map(|row| format!("{} {:?} attempt {}", row.key, row.state, row.attempt))
                .collect();
            return Some(format!(
                "{} is {:?}, ending {:?}: {tasks:?}",
                open.row.number, open.row.state, open.row.ending
            ));
        }
        self.unserved()
            .or_else(|| (0..self.machines.len()).find_map(|node| self.leftover(node)))
            .or_else(|| self.history.alive().next().map(|(key, fact)| format!("{key} lives: {fact:?}")))
    }

    /// Nothing is left behind.
    pub fn check_end(&mut self) {
        self.check_people();
        let leads = |host: &Host| {
            host.process.as_ref().is_some_and(|core| core.leading && core.epoch == self.database.epoch)
        };
        match self.hosts.iter().position(leads) {
            Some(host) => self.turn = host,
            None => return self.history.fail(self.now, Invariant::EverythingEnds, "nobody leads"),
        }
        let views = self.node_views();
        let busy = views.iter().find(|view| {
            view.running + view.queued > 0
                || view.slots_free != view.slots
                || view.memory_free != view.memory_total
        });
        if let Some(view) = busy {
            self.history.fail(
                self.now,
                Invariant::EverythingEnds,
                format!("resources are not given back: {view:?}"),
            );
        }
        let mut tasks = Counts::default();
        for job in self.database.jobs.values() {
            tasks.add(&job.row.counts);
        }
        let totals = self.core().and_then(|core| core.engine.as_ref()).map(Engine::totals);
        let jobs = self.database.jobs.len() as u64;
        match totals {
            Some(totals) if totals.tasks == tasks && totals.jobs.iter().sum::<u64>() == jobs => {}
            Some(totals) => {
                self.history.fail(
                    self.now,
                    Invariant::CountsAgree,
                    format!("{jobs} jobs with {tasks:?} are counted as {totals:?}"),
                );
            }
            None => self.history.fail(self.now, Invariant::EverythingEnds, "nobody leads"),
        }
    }

    /// A node is back: what was replaced meanwhile must die soon.
    pub fn check_killed_later(&mut self, node: usize, registered: &Registered) {
        let verdicts: BTreeMap<AttemptKey, Verdict> = registered.verdicts.iter().copied().collect();
        let id = self.machines[node].id;
        let replaced = |key: &AttemptKey| {
            let row = self.database.attempts.get(key).filter(|row| row.node == id);
            let told = verdicts.get(key);
            // What was answered before the database went back in time was right then.
            let counts = self.timeline == 0 || told == Some(&Verdict::Kill);
            row.is_none_or(|row| row.ended.is_some()) && told.is_some() && counts
        };
        let here = self.history.alive().filter(|(_, fact)| fact.node == node).map(|(key, _)| key);
        let doomed: Vec<AttemptKey> = here.filter(replaced).collect();
        for key in doomed {
            self.after(KILLED_WITHIN, Happening::MustBeDead { node, key, session: registered.session });
        }
    }

    /// Of a node that was back for all that time: one that is away again comes back again.
    pub fn must_be_dead(&mut self, node: usize, key: AttemptKey, session: SessionId) {
        let lives = self.history.processes.get(&(key, node)).is_some_and(|fact| fact.ended.is_none());
        let phase = self.machines[node].daemon.as_ref().map(|daemon| &daemon.phase);
        let stayed = matches!(phase, Some(Phase::Live { session: live, .. }) if *live == session);
        if lives && stayed {
            self.history.fail(
                self.now,
                Invariant::ReplacedDies,
                format!("{key} was replaced, its node {node} is back, and it lives on"),
            );
        }
    }

    /// Asks the engine for its nodes, outside of any batch.
    fn node_views(&mut self) -> Vec<NodeView> {
        let time = self.time();
        let Some(engine) = self.core_mut().and_then(|core| core.engine.as_mut()) else {
            return Vec::new();
        };
        let mut fx = Effects::default();
        engine.handle(time, &Event::NodesAsked { reply: ReplyId(0) }, &mut fx);
        fx.says
            .into_iter()
            .find_map(|say| match say {
                Say::Reply(_, Reply::Nodes(views)) => Some(views),
                _ => None,
            })
            .unwrap_or_default()
    }
}
