//! A term begins: the lead was taken under a new epoch, and memory is read anew.

use std::time::Duration;

use mesh_proto::ids::Incarnation;
use sqlx::PgConnection;
use tokio::{
    time::{sleep, timeout},
    try_join,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    core::Options,
    standby::{Taken, timed},
};
use crate::{
    engine::{Engine, types::Time},
    failpoint::{Point, reach},
    spawn::{AbortOnDrop, spawn_owned},
    store::{Clock, Store, StoreError, clock::boot_ms, history, leader, leases, snapshot},
};

/// Between tries to take note that earlier leases are over.
const NOTE_AGAIN: Duration = Duration::from_secs(5);

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
    /// Waits for the end of leases that reach farther than this leader's own; for the term.
    pub leases: Option<AbortOnDrop<()>>,
}

/// Reads everything unfinished, once the lead is taken.
pub(super) async fn begin(store: &Store, options: &Options, taken: Taken) -> Result<Begun, StoreError> {
    let started = boot_ms();
    let Taken { mut connection, row, sent_ms } = taken;
    reach(Point::AfterTake);
    let clock = Clock::new(row.now);
    // What is read must not be older than the lead, and the lead must not look abandoned while
    // much is read: so a second connection reads, and this one goes on beating.
    let mut reading = timed(options.patience, store.connection()).await?;
    let loaded = CancellationToken::new();
    let load = async {
        let silence_ms = leases::promise(&mut reading, options.settings.offline_after_ms).await?;
        let halted = history::halted(&mut reading).await?;
        let snapshot = snapshot::load(&mut reading).await?;
        loaded.cancel();
        Ok::<_, StoreError>((silence_ms, halted, snapshot))
    };
    let beat = async {
        let mut last = (row.seq, sent_ms);
        while timeout(options.beat, loaded.cancelled()).await.is_err() {
            let sent_ms = boot_ms();
            last = (timed(options.patience, leader::fence(&mut connection, row.epoch)).await?, sent_ms);
        }
        Ok(last)
    };
    let ((silence_ms, halted, snapshot), (seq, sent_ms)) = try_join!(load, beat)?;
    reach(Point::AfterLoad);
    let now = clock.now();
    let (jobs, nodes) = (snapshot.jobs.len(), snapshot.nodes.len());
    let mut engine = Engine::restore(options.settings.clone(), snapshot, grace(now, options));
    let leases = (silence_ms > options.settings.offline_after_ms).then(|| {
        info!(silence_ms, "an earlier leader bore silent nodes for longer: its leases are waited for");
        engine.bear_until(now.plus(silence_ms));
        let (store, own_ms) = (store.clone(), options.settings.offline_after_ms);
        spawn_owned("earlier leases", outlive_leases(store, row.epoch, silence_ms, own_ms))
    });
    info!(epoch = row.epoch, jobs, nodes, took_ms = boot_ms() - started, "leads");
    let term = Term { connection, engine, clock, epoch: row.epoch };
    Ok(Begun { term, incarnation: row.incarnation, seq, halted, sent_ms, leases })
}

/// Takes note, once they are over, that leases of earlier leaders need not be waited for any more.
async fn outlive_leases(store: Store, epoch: i64, silence_ms: u64, own_ms: u64) {
    let mut wait = Duration::from_millis(silence_ms);
    loop {
        sleep(wait).await;
        match store.outlive_leases(epoch, own_ms).await {
            Ok(()) | Err(StoreError::Fenced) => return,
            // The next leader only waits longer than it need.
            Err(error) => warn!(error = &error as &dyn std::error::Error, "cannot take note of leases"),
        }
        wait = NOTE_AGAIN;
    }
}

/// The moment from which silence is counted, so that nodes have the grace to come back.
fn grace(now: Time, options: &Options) -> Time {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    now.plus(millis(options.adoption_grace).saturating_sub(options.settings.offline_after_ms))
}
