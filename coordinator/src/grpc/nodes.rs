//! The Nodes service: what operators see of nodes and do to them.

use std::{collections::HashMap, sync::Arc};

use mesh_proto::{
    code::Code,
    ids::{CoordinatorId, MeshId, NodeId},
    names::check_name,
    v1::{
        AcceptDatabaseRequest, AcceptDatabaseResponse, CordonRequest, DrainRequest, GetNodeRequest,
        GetStatusRequest, ListNodesRequest, ListNodesResponse, MeshStatus, NodeInfo, TagRequest,
        UncordonRequest, nodes_server::Nodes,
    },
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{auth::Caller, convert};
use crate::{
    commit::{Core, CoreError},
    engine::{
        Totals,
        effect::{NodeView, Reply},
        event::{Event, NodeChange},
    },
    store::Store,
};

/// Serves nodes.
pub struct NodesService {
    pub core: Core,
    pub store: Store,
    pub totals: watch::Receiver<Totals>,
    pub mesh: MeshId,
    pub coordinator: CoordinatorId,
    pub started_at_ms: i64,
    pub ca: Arc<mesh_certs::Ca>,
}

#[tonic::async_trait]
impl Nodes for NodesService {
    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        self.core.readable()?;
        let page = request.into_inner().page.unwrap_or_default();
        let limit = convert::limit(&page);
        let stored = self.store.nodes(&page.after, limit).await?;
        let views = self.views().await?;
        let next = if stored.len() < limit as usize { None } else { stored.last() };
        let next = next.map(|last| last.record.name.clone()).unwrap_or_default();
        let nodes = stored.iter().map(|node| convert::node_info(node, views.get(&node.record.id))).collect();
        Ok(Response::new(ListNodesResponse { nodes, next }))
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<NodeInfo>, Status> {
        let node = self.node(&request.get_ref().node).await?;
        self.info(node).await
    }

    async fn cordon(&self, request: Request<CordonRequest>) -> Result<Response<NodeInfo>, Status> {
        let caller = Caller::of(&request)?.user()?.to_owned();
        self.change(&caller, &request.get_ref().node, NodeChange::Cordon, "node.cordon").await
    }

    async fn uncordon(&self, request: Request<UncordonRequest>) -> Result<Response<NodeInfo>, Status> {
        let caller = Caller::of(&request)?.user()?.to_owned();
        self.change(&caller, &request.get_ref().node, NodeChange::Uncordon, "node.uncordon").await
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<NodeInfo>, Status> {
        let caller = Caller::of(&request)?.user()?.to_owned();
        self.change(&caller, &request.get_ref().node, NodeChange::Drain, "node.drain").await
    }

    async fn tag(&self, request: Request<TagRequest>) -> Result<Response<NodeInfo>, Status> {
        let caller = Caller::of(&request)?.user()?.to_owned();
        let request = request.into_inner();
        for (name, value) in &request.set {
            check_name(name).map_err(|error| Code::Invalid.status(format!("the tag {name:?} {error}")))?;
            if value.len() > 256 || value.chars().any(char::is_control) {
                return Err(Code::Invalid.status(format!(
                    "the value of tag {name:?} is longer than 256 bytes or has control characters"
                )));
            }
        }
        let change = NodeChange::Tag { set: request.set.into_iter().collect(), remove: request.remove };
        self.change(&caller, &request.node, change, "node.tag").await
    }

    async fn get_status(&self, _request: Request<GetStatusRequest>) -> Result<Response<MeshStatus>, Status> {
        self.core.readable()?;
        let totals = self.totals.borrow().clone();
        let (nodes, jobs, tasks) = convert::status_counts(&totals);
        Ok(Response::new(MeshStatus {
            mesh_id: self.mesh.to_string(),
            coordinator_id: self.coordinator.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            leader: Some(self.core.standing().point()),
            started_at_ms: self.started_at_ms,
            nodes,
            jobs,
            tasks: Some(tasks),
            slots_total: totals.slots as u32,
            slots_free: totals.slots_free as u32,
            ca_not_after_ms: self.ca.not_after().timestamp_millis(),
            halted: self.core.standing().halted().unwrap_or_default(),
        }))
    }

    async fn accept_database(
        &self,
        request: Request<AcceptDatabaseRequest>,
    ) -> Result<Response<AcceptDatabaseResponse>, Status> {
        let caller = Caller::of(&request)?.user()?.to_owned();
        self.core.readable()?;
        if self.core.standing().halted().is_none() {
            return Err(Code::Conflict.status("the mesh is not halted: there is nothing to accept"));
        }
        let unix_ms = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or(0);
        self.store.accept_history(self.core.standing().epoch(), &caller, unix_ms).await?;
        tracing::warn!(%caller, "an operator accepted the database as it is; a new history begins");
        Ok(Response::new(AcceptDatabaseResponse {}))
    }
}

impl NodesService {
    async fn node(&self, name: &str) -> Result<NodeId, Status> {
        self.core.readable()?;
        let id = self.store.node_id(name).await?;
        id.ok_or_else(|| {
            Code::NotFound.status(format!("there is no node {name:?}: `meshctl nodes` lists them"))
        })
    }

    async fn views(&self) -> Result<HashMap<NodeId, NodeView>, Status> {
        match self.core.ask(|reply| Event::NodesAsked { reply }).await? {
            Reply::Nodes(views) => Ok(views.into_iter().map(|view| (view.record.id, view)).collect()),
            _ => Err(CoreError::Mismatch.into()),
        }
    }

    async fn info(&self, id: NodeId) -> Result<Response<NodeInfo>, Status> {
        let views = self.views().await?;
        let stored = self.store.node(id).await?;
        let stored = stored.ok_or_else(|| Code::NotFound.status("there is no such node"))?;
        Ok(Response::new(convert::node_info(&stored, views.get(&id))))
    }

    async fn change(
        &self,
        caller: &str,
        name: &str,
        change: NodeChange,
        action: &str,
    ) -> Result<Response<NodeInfo>, Status> {
        let node = self.node(name).await?;
        let record = self.store.node(node).await?.map(|stored| Box::new(stored.record));
        self.store.note(caller, action, &node.to_string(), "").await?;
        match self.core.ask(|reply| Event::NodeChanged { reply, node, change, record }).await? {
            Reply::Node(_) => self.info(node).await,
            _ => Err(CoreError::Mismatch.into()),
        }
    }
}
