//! What changes while the coordinator runs: at a SIGHUP the weights of the score are read from
//! the configuration file again. A rebuild begins with those of the start, so they are told
//! again after it.

use std::path::PathBuf;

use tokio::signal::unix::Signal;
use tracing::{info, warn};

use crate::{
    commit::{Core, Phase},
    config::Config,
    engine::{event::Event, types::Coefficients},
};

/// Follows the signal for as long as the coordinator serves.
pub async fn follow(mut hangups: Signal, file: Option<PathBuf>, core: Core) {
    let mut phases = core.phases();
    let mut changed: Option<Coefficients> = None;
    loop {
        tokio::select! {
            heard = hangups.recv() => {
                if heard.is_none() {
                    return;
                }
                let Some(file) = &file else {
                    info!("nothing to read again: there is no configuration file");
                    continue;
                };
                match Config::read_placement(file) {
                    Ok(placement) => changed = Some(placement.coefficients()),
                    Err(error) => {
                        warn!(error = &error as &dyn std::error::Error, "the configuration stays as it was");
                        continue;
                    }
                }
            }
            again = phases.changed() => {
                if again.is_err() {
                    return;
                }
                if *phases.borrow_and_update() != Phase::Leading {
                    continue;
                }
            }
        }
        let Some(coefficients) = changed else { continue };
        // While it recovers, the change of phase that follows tells it.
        if core.tell(Event::CoefficientsChanged { coefficients }).await.is_ok() {
            info!(?coefficients, "nodes are weighed anew");
        }
    }
}
