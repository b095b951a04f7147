//! The coordinator's Node service as this node calls it, with the id of the session that is open.
//!
//! May enter: calls outside the session's own streams.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::code::Code;
use mesh_proto::ids::AttemptKey;
use mesh_proto::limits;
use mesh_proto::v1::node_client::NodeClient;
use mesh_proto::v1::{FileEntry, ListInputsRequest};
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

use crate::backoff::Backoff;

/// How long a message of a list may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client of the Node service; clones share the session.
#[derive(Clone, Debug)]
pub struct NodeRpc {
    client: NodeClient<Channel>,
    session: Arc<watch::Sender<Option<String>>>,
    backoff: Backoff,
}

impl NodeRpc {
    pub fn new(channel: Channel, backoff: Backoff) -> Self {
        let client = NodeClient::new(channel)
            .max_decoding_message_size(limits::MAX_MESSAGE)
            .max_encoding_message_size(limits::MAX_MESSAGE);
        Self { client, session: Arc::default(), backoff }
    }

    pub fn client(&self) -> NodeClient<Channel> {
        self.client.clone()
    }

    /// Names the session that is open now; none between sessions.
    pub fn set_session(&self, id: Option<String>) {
        self.session.send_replace(id);
    }

    /// Whether the node is registered.
    pub fn is_connected(&self) -> bool {
        self.session.borrow().is_some()
    }

    /// The files of an attempt whose assignment could not carry them. Waits for a session and
    /// tries again when one breaks; drop the future to give up.
    pub async fn list_inputs(&self, key: AttemptKey) -> Result<Vec<FileEntry>, Status> {
        let mut backoff = self.backoff.clone();
        loop {
            let session_id = match self.session.subscribe().wait_for(Option::is_some).await {
                Ok(session) => session.clone().unwrap_or_default(),
                Err(_) => return Err(Code::Unavailable.status("the agent stops")),
            };
            match self.list_once(session_id, key).await {
                Ok(inputs) => return Ok(inputs),
                Err(status) => match Code::of(&status) {
                    Code::Unavailable
                    | Code::Timeout
                    | Code::Stale
                    | Code::Internal
                    | Code::Unauthenticated => {
                        tokio::time::sleep(backoff.next_wait()).await;
                    }
                    Code::Invalid
                    | Code::NotFound
                    | Code::Denied
                    | Code::Conflict
                    | Code::Exhausted
                    | Code::Version => return Err(status),
                },
            }
        }
    }

    async fn list_once(&self, session_id: String, key: AttemptKey) -> Result<Vec<FileEntry>, Status> {
        let late = |_| Code::Timeout.status("no answer in time");
        let request = ListInputsRequest { session_id, attempt: Some(key.into()) };
        let mut client = self.client.clone();
        let call = tokio::time::timeout(PATIENCE, client.list_inputs(request));
        let mut stream = call.await.map_err(late)??.into_inner();
        let mut inputs = Vec::new();
        while let Some(part) = tokio::time::timeout(PATIENCE, stream.message()).await.map_err(late)?? {
            inputs.extend(part.inputs);
            if inputs.len() > limits::MAX_TASKS as usize {
                return Err(Code::Invalid.status("the list of inputs does not end"));
            }
        }
        Ok(inputs)
    }
}
