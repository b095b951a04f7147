//! The connection of a node that joins: it knows only the pin of the mesh's CA, and sends
//! nothing, least of all its token's secret, before the server has proved that it is of that CA.

use std::sync::{Arc, Mutex, PoisonError};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Uri};

use crate::{
    client::{ChannelOptions, client_config, endpoint},
    dial::{Dialer, LastError},
    error::CertError,
    route::Route,
    token::JoinToken,
    trust::CoordinatorVerifier,
};

/// Connects to the join port that the token names. When this returns a channel, its server has
/// been checked: its chain holds the CA with the token's pin, which signed its certificate, and
/// that names a coordinator of the token's mesh.
pub async fn pinned_channel(token: &JoinToken) -> Result<Channel, CertError> {
    let options = ChannelOptions::default();
    let config = client_config(CoordinatorVerifier::pinned(token.pin, token.mesh), None);
    let dialer = Arc::new(Dialer::new(
        Route::new(token.endpoints.clone()),
        config,
        options.connect_timeout,
        LastError::default(),
    ));
    // The first connection is made here, for its error; later ones go through the same check.
    let first = Arc::new(Mutex::new(Some(dialer.dial().await?)));
    let connector = tower::service_fn(move |_: Uri| {
        let dialer = Arc::clone(&dialer);
        let made = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            match made {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => dialer.dial().await.map(TokioIo::new),
            }
        }
    });
    Ok(endpoint(options).connect_with_connector_lazy(connector))
}
