//! The way to the lead: who holds it, whether that one still moves, and when it may be taken.
//!
//! A stand-by looks at the leader's row several times in the takeover time. It takes over
//! * at once when the lead was laid down in good order, or when it is its own (a crash, or memory
//!   that must be read anew);
//! * when the row has stood still for the takeover time on this machine's boot-time clock. Time
//!   in which it could not look (the database was away, this process was stopped) counts for
//!   nothing: the row must be seen standing still from the first look to the last.
//!
//! The taking itself is a compare-and-set on (incarnation, epoch, seq) as they were seen, so of
//! several that try one wins, and a leader that moves meanwhile keeps the lead. The leader's lease
//! ends before anybody can have waited long enough, because it counts from before its beat was
//! sent and a stand-by from after that beat was to be seen.

use std::time::Duration;

use mesh_proto::ids::{CoordinatorId, Incarnation};
use sqlx::PgConnection;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{core::Options, handle::Phase, standing::Standing};
use crate::{
    failpoint::{Point, reach},
    store::{
        Store, StoreError,
        clock::boot_ms,
        coordinators,
        leader::{self, LeaderRow},
    },
};

/// Looks at the leader's row within one takeover time.
const LOOKS: u32 = 12;
/// A leader that froze in the middle of a commit holds its row for so long at the most, in
/// milliseconds, once its successor wants it.
const LOCK_WAIT_MS: u32 = 500;

/// How long the leader's row has been seen to stand still. Pure: time is given to it.
#[derive(Debug, Default)]
pub struct Pulse(Option<Beat>);

#[derive(Debug)]
struct Beat {
    at: (Incarnation, i64, i64),
    since_ms: u64,
    looked_ms: u64,
}

impl Pulse {
    /// Takes a look at the row; `gap_ms` is the longest time between two looks that counts.
    /// Gives the milliseconds for which it has stood still, or none when it has moved.
    pub fn look(&mut self, row: &LeaderRow, now_ms: u64, gap_ms: u64) -> Option<u64> {
        let at = (row.incarnation, row.epoch, row.seq);
        if let Some(beat) = &mut self.0 {
            if beat.at == at && now_ms.saturating_sub(beat.looked_ms) <= gap_ms {
                beat.looked_ms = now_ms;
                return Some(now_ms.saturating_sub(beat.since_ms));
            }
            let moved = beat.at != at;
            *beat = Beat { at, since_ms: now_ms, looked_ms: now_ms };
            return (!moved).then_some(0);
        }
        self.0 = Some(Beat { at, since_ms: now_ms, looked_ms: now_ms });
        Some(0)
    }
}

/// How often a coordinator that waits for the lead looks at the row.
#[must_use]
pub fn look_every(takeover: Duration) -> Duration {
    (takeover / LOOKS).clamp(Duration::from_millis(5), Duration::from_millis(250))
}

/// What was found on the way to the lead.
pub(super) struct Taken {
    pub connection: PgConnection,
    pub row: LeaderRow,
    /// Boot-time milliseconds before it was asked for.
    pub sent_ms: u64,
}

/// How this coordinator comes to stand before the leader's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The process has just begun: a lead that stands under its id is its own.
    Start,
    /// It led this epoch last, and for all it knows still does.
    Epoch(i64),
    /// Its last epoch is over: what stands under its id is not its own.
    Deposed,
}

impl Claim {
    fn holds(self, row: &LeaderRow, id: CoordinatorId) -> bool {
        row.holder == Some(id)
            && match self {
                Self::Start => true,
                Self::Epoch(epoch) => epoch == row.epoch,
                Self::Deposed => false,
            }
    }
}

/// Waits until the lead is to be had, and takes it. [`StoreError::Fenced`] only for a coordinator
/// that cannot stand by.
pub(super) async fn take(
    store: &Store,
    options: &Options,
    claim: Claim,
    phase: &watch::Sender<Phase>,
    standing: &Standing,
) -> Result<Taken, StoreError> {
    let within = options.patience;
    let mut connection = timed(within, store.writer()).await?;
    if let Err(error) =
        timed(within, coordinators::announce(&mut connection, options.id, &options.addresses)).await
    {
        // A leader needs a database that takes writes; a stand-by can wait for it to take them.
        warn!(error = &error as &dyn std::error::Error, "cannot say where this coordinator is reached");
        connection = timed(within, store.writer()).await?;
    }
    let takeover = u64::try_from(options.takeover.as_millis()).unwrap_or(u64::MAX);
    let mut pulse = Pulse::default();
    let mut known = None;
    loop {
        let seen = timed(within, leader::read(&mut connection)).await?;
        standing.saw(seen.incarnation, seen.seq.cast_unsigned());
        let still = pulse.look(&seen, boot_ms(), takeover / 2);
        let vacant = seen.holder.is_none() || claim.holds(&seen, options.id);
        if vacant || still.is_some_and(|still| still >= takeover) {
            match seize(&mut connection, &seen, options).await {
                Ok((row, sent_ms)) => return Ok(Taken { connection, row, sent_ms }),
                // It moved after all.
                Err(StoreError::Fenced) => continue,
                Err(error) => return Err(error),
            }
        }
        if options.alone && (still.is_none() || claim == Claim::Deposed) {
            return Err(StoreError::Fenced);
        }
        if known != Some((seen.holder, seen.epoch)) {
            known = Some((seen.holder, seen.epoch));
            let addresses = timed(within, coordinators::of_leader(&mut connection)).await?;
            info!(epoch = seen.epoch, leader = ?addresses.members, "another coordinator holds the lead; standing by");
            standing.follows(addresses);
            if !options.alone {
                phase.send_replace(Phase::Standby);
            }
        }
        sleep(look_every(options.takeover)).await;
    }
}

/// Takes the lead as it was seen, and says when that was sent. A lock of the former leader on the
/// row is broken: it has had its time.
async fn seize(
    connection: &mut PgConnection,
    seen: &LeaderRow,
    options: &Options,
) -> Result<(LeaderRow, u64), StoreError> {
    let within = options.patience;
    reach(Point::BeforeTake);
    timed(within, leader::bound_waits(connection, LOCK_WAIT_MS)).await?;
    let taken = loop {
        let sent_ms = boot_ms();
        match timed(within, leader::take(connection, seen, options.id)).await {
            Ok(row) => break (row, sent_ms),
            Err(error) if error.is_lock_timeout() => {
                let ended = timed(within, leader::break_lock(connection)).await?;
                warn!(ended, "the former leader stands in the middle of a commit; ended its connection");
            }
            Err(error) => return Err(error),
        }
    };
    timed(within, leader::bound_waits(connection, 0)).await?;
    Ok(taken)
}

/// Gives up what the database does not answer in time.
pub(super) async fn timed<T>(
    limit: Duration,
    what: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(limit, what).await.unwrap_or(Err(StoreError::Silent))
}

#[cfg(test)]
mod unit {
    use super::*;

    fn row(epoch: i64, seq: i64) -> LeaderRow {
        let incarnation = Incarnation(uuid::Uuid::nil());
        LeaderRow { incarnation, epoch, seq, holder: None, now: chrono::DateTime::default() }
    }

    #[test]
    fn only_a_row_that_is_seen_standing_still_counts() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.look(&row(1, 1), 1000, 500), Some(0));
        assert_eq!(pulse.look(&row(1, 1), 1400, 500), Some(400));
        assert_eq!(pulse.look(&row(1, 2), 1700, 500), None, "it moved");
        assert_eq!(pulse.look(&row(1, 2), 2100, 500), Some(400));
        // The database was away, or this process was stopped: nobody knows what the leader did.
        assert_eq!(pulse.look(&row(1, 2), 9000, 500), Some(0));
        assert_eq!(pulse.look(&row(1, 2), 9500, 500), Some(500));
        assert_eq!(pulse.look(&row(2, 2), 9600, 500), None, "somebody else leads");
    }
}
