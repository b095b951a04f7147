//! The database: given, or a private cluster that is brought back when it dies.

use std::{convert::Infallible, future::pending, path::Path, time::Duration};

use sqlx::postgres::PgConnectOptions;
use tracing::warn;

use super::error::ServeError;
use crate::{
    commit::{Core, Phase},
    config::Config,
    postgres::{self, Cluster},
};

/// Postgres ends when it cannot make its next file of the log, which has 16 MiB.
const LEAST_SPACE: u64 = 32 * 1024 * 1024;

/// Whether too little is left on a private cluster's disk.
fn is_full(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|disk| disk.f_bavail * disk.f_frsize < LEAST_SPACE)
}

/// The database: given, or a private cluster that is watched.
pub(super) enum Database {
    Given(PgConnectOptions),
    Private {
        options: postgres::Options,
        cluster: tokio::sync::Mutex<Option<Cluster>>,
        connect: PgConnectOptions,
    },
}

impl Database {
    pub async fn open(config: &Config) -> Result<Self, ServeError> {
        if let Some(url) = &config.database_url {
            let options: PgConnectOptions = url.expose().parse().map_err(ServeError::Url)?;
            return Ok(Self::Given(options));
        }
        let options =
            postgres::Options { data_dir: config.data_dir.clone(), bin_dir: config.pg_bin_dir.clone() };
        let cluster = postgres::start(options.clone()).await?;
        let connect = cluster.connect_options();
        Ok(Self::Private { options, cluster: tokio::sync::Mutex::new(Some(cluster)), connect })
    }

    pub fn connect(&self) -> PgConnectOptions {
        match self {
            Self::Given(options) | Self::Private { connect: options, .. } => options.clone(),
        }
    }

    /// Brings a private cluster that died back up, as often as the commit room misses it.
    pub async fn watch(&self, core: &Core) -> Infallible {
        let Self::Private { options, cluster, .. } = self else { return pending().await };
        let mut phases = core.phases();
        loop {
            if phases.wait_for(|phase| *phase == Phase::Recovering).await.is_err() {
                // The commit loop has ended, and says itself why.
                return pending().await;
            }
            let mut cluster = cluster.lock().await;
            match postgres::start(options.clone()).await {
                Ok(started) => *cluster = Some(started),
                Err(error) => {
                    let full = is_full(&options.data_dir);
                    core.standing().fills(full);
                    let error = &error as &dyn std::error::Error;
                    warn!(error, disk_full = full, "cannot bring the private Postgres back");
                }
            }
            drop(cluster);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub async fn close(self) {
        let Self::Private { cluster, .. } = self else { return };
        let cluster = cluster.into_inner();
        if let Some(cluster) = cluster
            && let Err(error) = cluster.stop().await
        {
            warn!(
                error = &error as &dyn std::error::Error,
                "the private Postgres did not stop in good order"
            );
        }
    }
}
