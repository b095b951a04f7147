//! What follows a commit: its words go out, or the batch that was refused is taken apart.

use coordinator::engine::{
    effect::{Ack, Refusal, Reply, Say},
    event::Event,
};

use crate::{
    broken::Broken, commit::reply_of, database::is_final, invariant::Invariant, trouble::CommitPoint,
    world::World,
};

impl World {
    /// Halves a batch that the database refused; an event that is refused alone is the guilty one.
    pub fn split(&mut self, mut events: Vec<Event>, fresh: bool) {
        if self.broken == Some(Broken::BlamesNeighbours) {
            let replies: Vec<_> = events.iter().filter_map(reply_of).collect();
            for id in replies {
                if let Some(asker) = self.core_mut().and_then(|core| core.replies.remove(&id)) {
                    self.answer(asker, Reply::Refused(Refusal::Poison(String::new())));
                }
            }
            return;
        }
        let Some(core) = self.core_mut() else { return };
        if events.len() > 1 {
            let second = events.split_off(events.len() / 2);
            core.replay.push_front(second);
            core.replay.push_front(events);
            return;
        }
        let Some(event) = events.first() else { return };
        if !fresh {
            core.replay.push_front(events);
            return;
        }
        let reply = reply_of(event);
        // Memory and database disagree about a job that was read before: who asks may ask again.
        let misread = matches!(event, Event::JobRedriven { .. });
        self.history.note(self.now, "poison event refused", "");
        if let Some(asker) = reply.and_then(|id| self.core_mut()?.replies.remove(&id)) {
            if misread {
                return self.answer_recovering(asker);
            }
            self.answer(asker, Reply::Refused(Refusal::Poison(String::new())));
        }
    }

    pub fn release_committed(&mut self, says: Vec<Say>) {
        let crash = self.hosts[self.turn].crash_at.filter(|_| !says.is_empty());
        match crash {
            Some((CommitPoint::AmidRelease, down)) => {
                let keep = self.rng.index(says.len());
                self.release(says.into_iter().take(keep).collect());
                self.history.note(self.now, "dies amid saying", "");
                self.crash(down);
            }
            Some((CommitPoint::AfterRelease, down)) => {
                self.release(says);
                self.history.note(self.now, "dies after saying", "");
                self.crash(down);
            }
            Some((CommitPoint::BeforeSend | CommitPoint::InFlight | CommitPoint::BeforeRelease, _))
            | None => {
                self.release(says);
            }
        }
    }

    pub fn release(&mut self, says: Vec<Say>) {
        let lost = self.is_of_lost_history();
        for say in says {
            self.check_say(&say);
            if let Say::Reply(id, reply) = say {
                let mixes = self.broken == Some(Broken::MixesAnswers);
                let Some(core) = self.core_mut() else { return };
                let asker = core.replies.remove(&id);
                let reply = if mixes { core.answered.replace(reply.clone()).unwrap_or(reply) } else { reply };
                if let Some(asker) = asker {
                    self.answer(asker, reply);
                }
            } else {
                self.say(&say);
            }
        }
        if lost {
            self.people_look_again();
        }
    }

    /// What is said is what is committed.
    fn check_say(&mut self, say: &Say) {
        if self.is_of_lost_history() {
            // True when it was committed.
            return;
        }
        let database = &self.database;
        let holds = match say {
            Say::Dispatch { node, attempt, .. } => {
                database.attempts.get(attempt).is_some_and(|row| row.node == *node)
            }
            Say::Ack { attempt, ack: Ack::Durable, ended, .. } => {
                let row = database.attempts.get(attempt);
                row.is_some_and(|row| row.ended.is_some() || !ended && row.started_at.is_some())
            }
            Say::Reply(_, Reply::Submitted { number, uuid, .. }) => {
                database.jobs.get(number).is_some_and(|job| job.new.uuid == *uuid)
            }
            Say::Reply(_, Reply::Cancelled { number, state }) => database
                .jobs
                .get(number)
                .is_some_and(|job| job.row.ending == Some(*state) || is_final(job.row.state)),
            Say::Reply(_, Reply::Redriven { number, .. }) => database.redrives.contains_key(number),
            // One of several views in a batch may be older than the row that landed.
            Say::JobChanged(view) => database
                .jobs
                .get(&view.row.number)
                .is_some_and(|job| view.row.finished_at.is_none() || job.row == view.row),
            Say::Cancel { .. }
            | Say::Withdraw { .. }
            | Say::EndSession { .. }
            | Say::Ack { ack: Ack::Stale, .. }
            | Say::Ended { .. }
            | Say::Unplaced { .. }
            | Say::Placed { .. }
            | Say::Reply(
                _,
                Reply::Registered { .. }
                | Reply::Heard { .. }
                | Reply::Node(_)
                | Reply::Nodes(_)
                | Reply::Explained(_)
                | Reply::Refused(_),
            ) => true,
        };
        if !holds {
            self.history.fail(
                self.now,
                Invariant::SaidAfterCommit,
                format!("said, but not committed: {say:?}"),
            );
        }
    }
}
