//! What goes on beside serving: tasks that look after one thing each until the process ends.

use std::{path::PathBuf, sync::Arc, time::Duration};

use mesh_certs::{Ca, ServerCert};
use mesh_proto::ids::CoordinatorId;
use tokio::{sync::watch, time::Instant};
use tracing::{debug, error, warn};

use crate::{
    commit::Phase,
    credentials,
    directory::Directory,
    http::Readiness,
    store::{Store, StoreError, coordinators::Addresses},
};

/// How often the coordinator's own certificate is replaced.
const CERTIFICATE_TURN: Duration = Duration::from_hours(24);
/// How often a coordinator that is not alone looks who else there is.
const LOOK: Duration = Duration::from_secs(2);
/// How often it says that it is there.
const ANNOUNCE: Duration = Duration::from_mins(1);

/// Replaces the coordinator's own certificate daily.
pub(super) async fn turn_certificate(
    cert: Arc<ServerCert>,
    ca: Arc<Ca>,
    id: CoordinatorId,
    hosts: Vec<String>,
) {
    loop {
        tokio::time::sleep(CERTIFICATE_TURN).await;
        let turned = credentials::server_certificate(&ca, id, &hosts)
            .and_then(|fresh| Ok(cert.replace(&fresh, &ca.cert_der())?));
        if let Err(error) = turned {
            error!(error = &error as &dyn std::error::Error, "cannot replace the coordinator's certificate");
        }
    }
}

/// Says on `/readyz` whether the mesh is served.
pub(super) async fn readiness(
    mut phases: watch::Receiver<Phase>,
    mut halts: watch::Receiver<Option<String>>,
    readiness: watch::Sender<Readiness>,
    store: Store,
) {
    loop {
        let phase = *phases.borrow_and_update();
        readiness.send_replace(match phase {
            Phase::Leading if halts.borrow_and_update().is_some() => Readiness::Halted,
            Phase::Leading => Readiness::Ready,
            Phase::Recovering if store.answers().await => Readiness::Starting,
            Phase::Recovering => Readiness::NoDatabase,
            Phase::Standby => Readiness::Standby,
            Phase::Ended => Readiness::Stopping,
        });
        let changed = async {
            if phase == Phase::Recovering {
                let _ = tokio::time::timeout(Duration::from_secs(1), phases.changed()).await;
                Ok(())
            } else {
                tokio::select! {
                    changed = phases.changed() => changed,
                    changed = halts.changed() => changed,
                }
            }
        };
        if changed.await.is_err() {
            return;
        }
    }
}

/// What looking after the directory needs.
pub(super) struct Known {
    pub store: Store,
    pub id: CoordinatorId,
    pub own: Addresses,
    pub directory: Directory,
    pub ca: Arc<Ca>,
    pub data_dir: PathBuf,
}

/// Keeps the directory in step with the coordinators that there are, and the admin's credential
/// with the directory.
pub(super) async fn directory(known: Known, mut phases: watch::Receiver<Phase>) {
    let mut said = Instant::now();
    loop {
        // A new leader comes first in it.
        if let Ok(Err(_)) = tokio::time::timeout(LOOK, phases.changed()).await {
            return;
        }
        if said.elapsed() >= ANNOUNCE {
            said = Instant::now();
            tell(known.store.announce(known.id, &known.own).await.err());
        }
        match known.store.addresses().await {
            Ok(addresses) => {
                if !known.directory.learn(addresses, &known.own) {
                    continue;
                }
                let endpoints = known.directory.members();
                let kept = credentials::keep_admin_credential(&known.ca, &known.data_dir, &endpoints);
                match kept {
                    Ok((_, admin)) => credentials::install_default(&admin),
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        warn!(error, "cannot bring the admin's credential up to date");
                    }
                }
            }
            Err(error) => tell(Some(error)),
        }
    }
}

/// The commit room says loudly when the database is away.
fn tell(error: Option<StoreError>) {
    if let Some(error) = error {
        debug!(error = &error as &dyn std::error::Error, "cannot look after the coordinators' addresses");
    }
}
