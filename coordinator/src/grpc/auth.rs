//! Who may call what: ONE table for every RPC that is served, on which port and to which
//! roles. What the table does not name is not served.
//!
//! May enter: identities to roles, roles to RPCs. Whose job or attempt it is, a handler asks
//! with the [`Caller`] that it finds in the request.

use std::{collections::HashMap, net::SocketAddr, sync::LazyLock};

use mesh_certs::{Identity, Peer};
use mesh_proto::{code::Code, ids::NodeId};
use tonic::{Request, Status};

/// What an identity may do, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything that people may do.
    Admin,
    /// Nodes.
    Operator,
    /// Jobs of its own.
    Submitter,
    /// Looks, and changes nothing.
    Viewer,
    /// A node's agent; never a person.
    Node,
}

/// Where an RPC is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Mutual TLS: every caller has an identity.
    Mesh,
    /// Server TLS only, for those who have no identity yet.
    Join,
}

/// Which sides stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Unary,
    ServerStream,
    ClientStream,
    Both,
}

/// A row of the table.
#[derive(Debug)]
pub struct Rpc {
    pub service: &'static str,
    pub method: &'static str,
    pub shape: Shape,
    pub port: Port,
    /// Empty on the join port, where nobody has a role.
    pub roles: &'static [Role],
}

impl Rpc {
    /// Whether it is of gRPC itself: health and reflection, which a stand-by serves as well.
    pub fn is_of_grpc(&self) -> bool {
        self.service.starts_with("grpc.")
    }

    /// Whether a halted coordinator refuses it. People may look, certificates are renewed, and the
    /// database is accepted.
    pub fn changes(&self) -> bool {
        const LOOKS: [&str; 15] = [
            "GetJob",
            "ListJobs",
            "ListTasks",
            "WatchJob",
            "StreamLogs",
            "ExplainTask",
            "ListOutputs",
            "ListNodes",
            "GetNode",
            "GetStatus",
            "ListTokens",
            "Get",
            "Stat",
            "RenewCertificate",
            "AcceptDatabase",
        ];
        !self.is_of_grpc() && !LOOKS.contains(&self.method)
    }
}

use Role::{Admin, Node, Operator, Submitter, Viewer};
use Shape::{Both, ClientStream, ServerStream, Unary};

const JOBS: &str = "mesh.v1.Jobs";
const NODE: &str = "mesh.v1.Node";
const NODES: &str = "mesh.v1.Nodes";
const ACCESS: &str = "mesh.v1.Access";
const BLOBS: &str = "mesh.v1.Blobs";
const HEALTH: &str = "grpc.health.v1.Health";

const EVERYBODY: &[Role] = &[Admin, Operator, Submitter, Viewer, Node];
const PEOPLE: &[Role] = &[Admin, Operator, Submitter, Viewer];
const SUBMITTERS: &[Role] = &[Admin, Submitter];
const OPERATORS: &[Role] = &[Admin, Operator];
const ADMINS: &[Role] = &[Admin];
const AGENTS: &[Role] = &[Node];
const DATA: &[Role] = &[Admin, Submitter, Viewer, Node];
const DATA_WRITERS: &[Role] = &[Admin, Submitter, Node];

/// Every RPC that is served.
pub const RPCS: &[Rpc] = &[
    Rpc { service: "mesh.v1.Enrollment", method: "Join", shape: Unary, port: Port::Join, roles: &[] },
    rpc(NODE, "RegisterNode", Unary, AGENTS),
    rpc(NODE, "Heartbeat", Unary, AGENTS),
    rpc(NODE, "AssignTask", ServerStream, AGENTS),
    rpc(NODE, "TaskResult", Both, AGENTS),
    rpc(NODE, "TaskOutput", Both, AGENTS),
    rpc(NODE, "ListInputs", ServerStream, AGENTS),
    rpc(NODE, "RenewCertificate", Unary, AGENTS),
    rpc(JOBS, "SubmitJob", Unary, SUBMITTERS),
    rpc(JOBS, "GetJob", Unary, PEOPLE),
    rpc(JOBS, "ListJobs", Unary, PEOPLE),
    rpc(JOBS, "ListTasks", Unary, PEOPLE),
    rpc(JOBS, "CancelJob", Unary, SUBMITTERS),
    rpc(JOBS, "ListDead", Unary, PEOPLE),
    rpc(JOBS, "Redrive", Unary, SUBMITTERS),
    rpc(JOBS, "WatchJob", ServerStream, PEOPLE),
    rpc(JOBS, "StreamLogs", ServerStream, PEOPLE),
    rpc(JOBS, "ExplainTask", Unary, PEOPLE),
    rpc(JOBS, "ListOutputs", ServerStream, PEOPLE),
    rpc(NODES, "ListNodes", Unary, PEOPLE),
    rpc(NODES, "GetNode", Unary, PEOPLE),
    rpc(NODES, "Cordon", Unary, OPERATORS),
    rpc(NODES, "Uncordon", Unary, OPERATORS),
    rpc(NODES, "Drain", Unary, OPERATORS),
    rpc(NODES, "Tag", Unary, OPERATORS),
    rpc(NODES, "GetStatus", Unary, PEOPLE),
    rpc(NODES, "AcceptDatabase", Unary, ADMINS),
    rpc(ACCESS, "CreateToken", Unary, ADMINS),
    rpc(ACCESS, "ListTokens", Unary, ADMINS),
    rpc(ACCESS, "RevokeToken", Unary, ADMINS),
    rpc(BLOBS, "Put", ClientStream, DATA_WRITERS),
    rpc(BLOBS, "Get", ServerStream, DATA),
    rpc(BLOBS, "Stat", Unary, DATA),
    rpc(HEALTH, "Check", Unary, EVERYBODY),
    rpc(HEALTH, "Watch", ServerStream, EVERYBODY),
    rpc("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", Both, PEOPLE),
    rpc("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", Both, PEOPLE),
];

const fn rpc(service: &'static str, method: &'static str, shape: Shape, roles: &'static [Role]) -> Rpc {
    Rpc { service, method, shape, port: Port::Mesh, roles }
}

/// The row of a request's path, `/<service>/<method>`.
pub fn find(path: &str) -> Option<&'static Rpc> {
    static BY_PATH: LazyLock<HashMap<String, &'static Rpc>> =
        LazyLock::new(|| RPCS.iter().map(|rpc| (format!("/{}/{}", rpc.service, rpc.method), rpc)).collect());
    BY_PATH.get(path).copied()
}

/// Roles of people, by the name in their certificate.
pub trait UserRoles: Send + Sync {
    /// `None`: the mesh knows nobody of this name (any more).
    fn role(&self, user: &str) -> Option<Role>;
}

/// Every user's certificate is an admin's: the only kind that is issued so far.
pub struct EveryUserIsAdmin;

impl UserRoles for EveryUserIsAdmin {
    fn role(&self, _user: &str) -> Option<Role> {
        Some(Admin)
    }
}

/// Who makes a request; the layer puts it among the request's extensions. There is none on the
/// join port.
#[derive(Clone, Debug)]
pub struct Caller {
    pub peer: Peer,
    pub role: Role,
    pub addr: SocketAddr,
    /// The place of its connection among those that were accepted.
    pub opened: u64,
}

impl Caller {
    /// The caller of a request that came through the layer.
    pub fn of<T>(request: &Request<T>) -> Result<&Self, Status> {
        request.extensions().get().ok_or_else(|| Code::Unauthenticated.status("no identity"))
    }

    /// The node that calls. Its id comes from here only, never from a message.
    pub fn node(&self) -> Result<NodeId, Status> {
        match &self.peer.identity {
            Identity::Node(id) => Ok(*id),
            Identity::User(_) | Identity::Coordinator(_) => {
                Err(Code::Denied.status("only a node may do this"))
            }
        }
    }

    /// The name of the person that calls.
    pub fn user(&self) -> Result<&str, Status> {
        match &self.peer.identity {
            Identity::User(name) => Ok(name),
            Identity::Node(_) | Identity::Coordinator(_) => {
                Err(Code::Denied.status("only a person may do this"))
            }
        }
    }
}

/// The role of an identity; none: it may do nothing.
pub fn role_of(identity: &Identity, users: &dyn UserRoles) -> Option<Role> {
    match identity {
        Identity::Node(_) => Some(Node),
        Identity::User(name) => users.role(name),
        Identity::Coordinator(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Write as _};

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// Every RPC of every service that the server can have, with its shape.
    fn served() -> Vec<(String, String, Shape)> {
        let sets = [
            mesh_proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut served = Vec::new();
        for file in sets.into_iter().flat_map(|set| FileDescriptorSet::decode(set).unwrap().file) {
            for service in &file.service {
                for method in &service.method {
                    let shape = match (method.client_streaming(), method.server_streaming()) {
                        (false, false) => Unary,
                        (false, true) => ServerStream,
                        (true, false) => ClientStream,
                        (true, true) => Both,
                    };
                    let name = format!("{}.{}", file.package(), service.name());
                    served.push((name, method.name().to_owned(), shape));
                }
            }
        }
        served
    }

    #[test]
    fn the_table_names_every_rpc_that_is_served_and_no_other() {
        let mut paths = BTreeSet::new();
        for (service, method, shape) in served() {
            let path = format!("/{service}/{method}");
            let row =
                find(&path).unwrap_or_else(|| panic!("{path} is not in the table: nobody could call it"));
            assert_eq!(row.shape, shape, "{path}");
            assert_eq!(row.roles.is_empty(), row.port == Port::Join, "{path}");
            paths.insert(path);
        }
        assert_eq!(paths.len(), RPCS.len(), "the table names RPCs that do not exist, or one of them twice");
        assert!(find("/mesh.v1.Jobs/DropTables").is_none());
        assert!(find("").is_none());
    }

    /// The whole table once more, from the point of view of each role: a change of the table
    /// has to be meant.
    #[test]
    fn each_role_may_call_exactly_this() {
        let mut text = String::new();
        for role in EVERYBODY {
            writeln!(text, "{role:?}:").unwrap();
            for rpc in RPCS.iter().filter(|rpc| rpc.roles.contains(role)) {
                writeln!(text, "  {}/{}", rpc.service, rpc.method).unwrap();
            }
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn nodes_and_people_share_blobs_and_health_only() {
        for rpc in RPCS.iter().filter(|rpc| rpc.roles.contains(&Node)) {
            let shared = [BLOBS, HEALTH].contains(&rpc.service);
            assert_eq!(rpc.service == NODE, !shared, "{rpc:?}");
            assert_eq!(rpc.roles.len() > 1, shared, "{rpc:?}");
        }
        assert_eq!(RPCS.iter().filter(|rpc| rpc.port == Port::Join).count(), 1);
    }

    #[test]
    fn another_coordinator_has_no_role() {
        let id = mesh_proto::ids::CoordinatorId::generate();
        assert_eq!(role_of(&Identity::Coordinator(id), &EveryUserIsAdmin), None);
        assert_eq!(role_of(&Identity::User("ada".into()), &EveryUserIsAdmin), Some(Admin));
        assert_eq!(role_of(&Identity::Node(NodeId::generate()), &EveryUserIsAdmin), Some(Node));
    }
}
