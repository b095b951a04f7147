//! An agent as the wire sees it.

use std::sync::Arc;

use bytes::Bytes;
use mesh_certs::NodeKey;
use mesh_proto::{
    PROTOCOL_VERSION,
    ids::{AttemptKey, BootId, NodeId},
    v1::{
        self, AckKind, AssignTaskResponse, Assignment, AttemptEvent, Cause, Ended, InventoryItem, OutputAck,
        OutputChunk, RegisterNodeRequest, RegisterNodeResponse, TaskOutputRequest, TaskOutputResponse,
        TaskResultRequest, TaskResultResponse, attempt_event, node_client::NodeClient,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Client, Mesh, key, soon};
use crate::testing::{joined, node_facts};

pub struct Agent {
    pub node: NodeId,
    pub name: String,
    pub boot: BootId,
    pub key: Arc<NodeKey>,
    pub client: NodeClient<Client>,
    pub session: String,
}

/// Both ends of a stream that both sides speak on.
pub struct Both<Q, A> {
    pub send: mpsc::Sender<Q>,
    pub answers: Streaming<A>,
}

pub type Results = Both<TaskResultRequest, TaskResultResponse>;
pub type Output = Both<TaskOutputRequest, TaskOutputResponse>;

impl Mesh {
    /// An agent whose node has joined, not registered yet.
    pub async fn joined_agent(&self, name: &str) -> Agent {
        let node = joined(&self.pool, name).await.id;
        let key = Arc::new(key());
        self.own(node, &key).await;
        let client = self.agent(node, key.fingerprint());
        let (name, boot) = (name.to_owned(), BootId::generate());
        Agent { node, name, boot, key, client, session: String::new() }
    }

    /// The key is the node's from now on.
    pub async fn own(&self, node: NodeId, key: &NodeKey) {
        sqlx::query("UPDATE nodes SET key_fingerprint = $2 WHERE id = $1")
            .bind(node.0)
            .bind(&key.fingerprint()[..])
            .execute(&self.pool)
            .await
            .unwrap();
    }

    /// An agent that is registered, and its assignments.
    pub async fn working_agent(&self, name: &str, cores: u32) -> (Agent, Streaming<AssignTaskResponse>) {
        let mut agent = self.joined_agent(name).await;
        agent.register(cores, Vec::new()).await.unwrap();
        let assignments = agent.assignments().await.unwrap();
        (agent, assignments)
    }
}

impl Agent {
    pub fn registration(&self, cores: u32, inventory: Vec<InventoryItem>) -> RegisterNodeRequest {
        RegisterNodeRequest {
            protocol: PROTOCOL_VERSION,
            oldest_protocol: 0,
            boot_id: self.boot.to_string(),
            facts: Some(node_facts(cores)),
            inventory,
            seen: None,
            taken_at_us: 0,
        }
    }

    pub async fn register(
        &mut self,
        cores: u32,
        inventory: Vec<InventoryItem>,
    ) -> Result<RegisterNodeResponse, Status> {
        let request = self.registration(cores, inventory);
        let answer = self.client.register_node(request).await?.into_inner();
        self.session.clone_from(&answer.session_id);
        Ok(answer)
    }

    pub async fn assignments(&mut self) -> Result<Streaming<AssignTaskResponse>, Status> {
        let request = v1::AssignTaskRequest { session_id: self.session.clone() };
        Ok(self.client.assign_task(request).await?.into_inner())
    }

    pub async fn results(&mut self) -> Results {
        let (send, receive) = mpsc::channel(8);
        let answers = self.client.task_result(ReceiverStream::new(receive)).await.unwrap().into_inner();
        let first = TaskResultRequest { session_id: self.session.clone(), events: Vec::new() };
        send.send(first).await.unwrap();
        Both { send, answers }
    }

    pub async fn output(&mut self) -> Output {
        let (send, receive) = mpsc::channel(8);
        let answers = self.client.task_output(ReceiverStream::new(receive)).await.unwrap().into_inner();
        let first = TaskOutputRequest { session_id: self.session.clone(), chunks: Vec::new() };
        send.send(first).await.unwrap();
        Both { send, answers }
    }
}

impl Results {
    pub async fn say(&self, attempt: AttemptKey, event: attempt_event::Event) {
        let event = AttemptEvent { attempt: Some(attempt.into()), event: Some(event) };
        self.send.send(TaskResultRequest { session_id: String::new(), events: vec![event] }).await.unwrap();
    }

    pub async fn started(&self, attempt: AttemptKey) {
        let sandbox = v1::SandboxLevel::Basic.into();
        self.say(
            attempt,
            attempt_event::Event::Started(v1::Started { at_ms: 1, sandbox, ..v1::Started::default() }),
        )
        .await;
    }

    /// The next acknowledgement.
    pub async fn ack(&mut self) -> (AttemptKey, AckKind, bool) {
        let acks = soon(self.answers.message()).await.unwrap().expect("the stream goes on").acks;
        assert_eq!(acks.len(), 1, "{acks:?}");
        (AttemptKey::try_from(acks[0].attempt).unwrap(), acks[0].kind(), acks[0].ended)
    }
}

impl Output {
    pub async fn put(&self, attempt: AttemptKey, position: u64, data: Bytes) {
        let chunk = OutputChunk { attempt: Some(attempt.into()), position, data };
        self.send.send(TaskOutputRequest { session_id: String::new(), chunks: vec![chunk] }).await.unwrap();
    }

    pub async fn ack(&mut self) -> OutputAck {
        let acks = soon(self.answers.message()).await.unwrap().expect("the stream goes on").acks;
        assert_eq!(acks.len(), 1, "{acks:?}");
        acks[0]
    }
}

/// The next assignments, as many as these.
pub async fn assigned(stream: &mut Streaming<AssignTaskResponse>, count: usize) -> Vec<Assignment> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(soon(stream.message()).await.unwrap().expect("the stream goes on").assignments);
    }
    all
}

pub fn key_of(assignment: &Assignment) -> AttemptKey {
    AttemptKey::try_from(assignment.attempt).unwrap()
}

pub fn exit(code: i32) -> Ended {
    Ended { cause: Cause::Exit.into(), exit_code: code, started_at_ms: 1, run_ms: 10, ..Ended::default() }
}

pub fn held(attempt: AttemptKey, state: v1::InventoryState) -> InventoryItem {
    InventoryItem { attempt: Some(attempt.into()), state: state.into() }
}
