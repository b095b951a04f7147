//! The database: given, or a private cluster that is brought back when it dies.

use std::{convert::Infallible, future::pending, time::Duration};

use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;
use tracing::warn;

use super::error::ServeError;
use crate::{
    commit::Phase,
    config::Config,
    postgres::{self, Cluster},
};

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
    pub async fn watch(&self, mut phases: watch::Receiver<Phase>) -> Infallible {
        let Self::Private { options, cluster, .. } = self else { return pending().await };
        loop {
            if phases.wait_for(|phase| *phase == Phase::Recovering).await.is_err() {
                // The commit loop has ended, and says itself why.
                return pending().await;
            }
            let mut cluster = cluster.lock().await;
            match postgres::start(options.clone()).await {
                Ok(started) => *cluster = Some(started),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "cannot bring the private Postgres back");
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
