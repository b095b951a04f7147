//! Whose turn it is in a line, and what happens to those that cannot have theirs.

use mesh_proto::ids::AttemptKey;

use super::{
    super::{
        clock,
        protocol::{Event, ExitCause, Killer, StartRequest},
    },
    Known, Server, unstarted,
};

impl Server {
    /// Lets an attempt wait until `after` is over, which holds its slot; the events are to be told.
    pub(super) fn stand_in_line(&mut self, request: Box<StartRequest>, after: AttemptKey) -> Vec<Event> {
        let attempt = request.attempt;
        if self.known.contains_key(&attempt) || self.line.holds(attempt) {
            return self.event_of(attempt).into_iter().collect();
        }
        // Not behind one that is over: its slot may be another's by now. Nor behind one that was given back
        // while this was on its way, and was given anew for another slot: this one's is not free then.
        let place = match self.known.get(&after) {
            Some(Known::Running(number)) => self.live(*number).map(|running| running.place),
            Some(Known::Ended(_)) | None => self.line.request(after).map(|before| before.slot),
        };
        if place == Some(request.slot) && self.line.join(request, after, clock::boot()) {
            return Vec::new();
        }
        vec![Event::Returned(attempt)]
    }

    /// An attempt is over: starts the one that stood behind it.
    pub(super) fn go_on(&mut self, over: AttemptKey) {
        let mut over = over;
        while let Some(request) = self.line.next(over) {
            let attempt = request.attempt;
            // Whoever asked again would be given another lease.
            if request.lease.is_some_and(|lease| lease <= clock::boot()) {
                return self.send_back(attempt);
            }
            self.begin(&request);
            let Some(Known::Ended(record)) = self.known.get(&attempt) else { return };
            self.tell(&Event::Ended(record.clone()));
            over = attempt;
        }
    }

    /// Starts an attempt in its turn; what refuses it is its end.
    fn begin(&mut self, request: &StartRequest) {
        if let Err(reason) = self.start(request) {
            let record = unstarted(request.attempt, ExitCause::SpawnFailed(reason), Killer::Request);
            self.known.insert(request.attempt, Known::Ended(record));
        }
    }

    /// Gives one back that has left the line, and those behind it.
    pub(super) fn send_back(&mut self, attempt: AttemptKey) {
        self.tell(&Event::Returned(attempt));
        self.send_back_behind(attempt);
    }

    pub(super) fn send_back_behind(&mut self, attempt: AttemptKey) {
        for behind in self.line.leave_behind(attempt) {
            self.tell(&Event::Returned(behind));
        }
    }
}
