//! A term begins: the lead was taken under a new epoch, and memory is read anew.

use std::{pin::pin, time::Duration};

use mesh_proto::ids::Incarnation;
use sqlx::PgConnection;
use tokio::time::sleep;
use tracing::info;

use super::{
    core::Options,
    standby::{Taken, timed},
};
use crate::{
    engine::{Engine, types::Time},
    failpoint::{Point, reach},
    store::{Clock, Store, StoreError, clock::boot_ms, history, leader, snapshot},
};

/// One epoch of this process.
pub(super) struct Term {
    pub connection: PgConnection,
    pub engine: Engine,
    pub clock: Clock,
    pub epoch: i64,
}

/// What taking the lead told.
pub(super) struct Begun {
    pub term: Term,
    pub incarnation: Incarnation,
    pub seq: i64,
    /// Why nothing is dispatched.
    pub halted: Option<String>,
    /// Boot-time milliseconds before seq was raised.
    pub sent_ms: u64,
}

/// Reads everything unfinished, once the lead is taken.
pub(super) async fn begin(store: &Store, options: &Options, taken: Taken) -> Result<Begun, StoreError> {
    let started = boot_ms();
    let Taken { mut connection, row, mut sent_ms } = taken;
    reach(Point::AfterTake);
    let clock = Clock::new(row.now);
    let mut seq = row.seq;
    // What is read must not be older than the lead, and the lead must not look abandoned while
    // much is read: so a second connection reads, and this one goes on beating.
    let mut reading = timed(options.patience, store.connection()).await?;
    let halted = history::halted(&mut reading).await?;
    let snapshot = {
        let mut load = pin!(snapshot::load(&mut reading));
        loop {
            tokio::select! {
                snapshot = &mut load => break snapshot?,
                () = sleep(options.beat) => {
                    sent_ms = boot_ms();
                    seq = leader::fence(&mut connection, row.epoch).await?;
                }
            }
        }
    };
    reach(Point::AfterLoad);
    let now = clock.now();
    let (jobs, nodes) = (snapshot.jobs.len(), snapshot.nodes.len());
    let engine = Engine::restore(options.settings.clone(), snapshot, grace(now, options));
    info!(epoch = row.epoch, jobs, nodes, took_ms = boot_ms() - started, "leads");
    let term = Term { connection, engine, clock, epoch: row.epoch };
    Ok(Begun { term, incarnation: row.incarnation, seq, halted, sent_ms })
}

/// The moment from which silence is counted, so that nodes have the grace to come back.
fn grace(now: Time, options: &Options) -> Time {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    now.plus(millis(options.adoption_grace).saturating_sub(options.settings.offline_after_ms))
}
