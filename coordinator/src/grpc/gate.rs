//! Whether this coordinator serves a call at all: a stand-by sends every caller to the leader, and
//! a halted leader changes nothing.
//!
//! May enter: what one coordinator's role means for calls. Who may call what is `auth`'s business.

use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::auth::{Port, Rpc};
use crate::commit::{Core, Phase, halted_status, standby_status};

/// Asked by the layer before each call.
pub trait Gate: Send + Sync {
    /// Refuses, or gives the token whose end is the end of every stream.
    fn admit(&self, rpc: &Rpc) -> Result<CancellationToken, Status>;

    /// How a stream ends when its token has.
    fn ended(&self, port: Port) -> Status;
}

impl Gate for Core {
    fn admit(&self, rpc: &Rpc) -> Result<CancellationToken, Status> {
        // Before the phase is looked at: a token that is cancelled in between ends the stream.
        let reign = self.standing().reign();
        if *self.phases().borrow() == Phase::Standby && !rpc.is_of_grpc() {
            return Err(self.ended(rpc.port));
        }
        match self.standing().halted() {
            Some(reason) if rpc.changes() => Err(halted_status(&reason)),
            Some(_) | None => Ok(reign),
        }
    }

    fn ended(&self, port: Port) -> Status {
        if let Some(reason) = self.standing().halted() {
            return halted_status(&reason);
        }
        let leader = self.standing().leader();
        standby_status(match port {
            Port::Mesh => &leader.members,
            Port::Join => &leader.joining,
        })
    }
}
