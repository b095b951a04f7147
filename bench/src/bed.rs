//! The mesh under measurement: started as a user would, with the product's own timings.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use mesh_certs::{ChannelOptions, ClientTls, Credential, JoinToken};
use mesh_e2e::{Agent, AgentOptions, Mesh, MeshOptions, wait};
use mesh_proto::v1::{
    CreateTokenRequest, GetStatusRequest, access_client::AccessClient, jobs_client::JobsClient,
    nodes_client::NodesClient,
};
use sqlx::postgres::PgConnectOptions;
use tonic::transport::Channel;

use crate::{
    floor::millis,
    processes::{Usage, children, name},
    stats::median,
};

/// What the load generator does in a second is more than a person may.
const CONFIG: &str = "[limits]\nsubmits_per_second = 100000\njoins_per_second = 100000\n";

/// A running mesh and a connection of its administrator.
pub struct Bed {
    pub mesh: Mesh,
    pub channel: Channel,
    pub tls: ClientTls,
    pub endpoints: Vec<String>,
}

impl Bed {
    /// Starts a coordinator with a Postgres of its own. Within a tokio runtime.
    pub fn start() -> anyhow::Result<Self> {
        let options = MeshOptions { extra: CONFIG.to_owned(), own_timings: true, ..MeshOptions::default() };
        let mesh = Mesh::start_with(options);
        let credential = Credential::load(&mesh.credential())?;
        let tls = ClientTls::of(&credential)?;
        let endpoints = credential.endpoints;
        let (channel, _last) = mesh_certs::channel(endpoints.clone(), tls.clone(), ChannelOptions::default());
        Ok(Self { mesh, channel, tls, endpoints })
    }

    #[must_use]
    pub fn jobs(&self) -> JobsClient<Channel> {
        JobsClient::new(self.channel.clone())
    }

    /// A real agent that takes tasks without a sandbox too.
    #[must_use]
    pub fn agent(&self, slots: u32) -> Agent {
        self.mesh.agent("worker", AgentOptions::slots(slots).flag("--sandbox-allow=none"))
    }

    /// A token that admits many.
    pub async fn token(&self) -> anyhow::Result<JoinToken> {
        let request = CreateTokenRequest { uses: 10_000, ..CreateTokenRequest::default() };
        let answer = AccessClient::new(self.channel.clone()).create_token(request).await?;
        Ok(JoinToken::parse(&answer.into_inner().token)?)
    }

    /// The mesh's Postgres, as its superuser.
    #[must_use]
    pub fn postgres(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(self.mesh.data_dir().join("postgres"))
            .username("postgres")
            .database("postgres")
    }

    fn postmaster(&self) -> anyhow::Result<u32> {
        let path: PathBuf = self.mesh.data_dir().join("postgres/postmaster.pid");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.lines().next().and_then(|line| line.parse().ok()).ok_or_else(|| anyhow!("no pid of Postgres"))
    }

    #[must_use]
    pub fn coordinator(&self) -> u32 {
        self.mesh.coordinator_pid()
    }

    /// What the coordinator and every process of its Postgres have used.
    pub fn coordinator_usage(&self) -> anyhow::Result<[Usage; 2]> {
        let postmaster = self.postmaster()?;
        let mut postgres = children(postmaster);
        postgres.push(postmaster);
        Ok([Usage::of(&[self.coordinator()]), Usage::of(&postgres)])
    }

    /// How long one call that touches no disk takes over the open connection, in milliseconds.
    pub async fn call_ms(&self) -> anyhow::Result<f64> {
        let mut nodes = NodesClient::new(self.channel.clone());
        let mut runs = Vec::new();
        for _ in 0..50 {
            let began = Instant::now();
            nodes.get_status(GetStatusRequest {}).await?;
            runs.push(millis(began.elapsed()));
        }
        Ok(median(&runs))
    }
}

/// The agent's jail: the process beside the daemon that keeps slots and tasks.
pub fn jail_of(agent: &Agent) -> anyhow::Result<u32> {
    let jail = wait::within(Duration::from_secs(10), || {
        agent.processes().into_iter().find(|pid| name(*pid) == "mesh-jail")
    });
    jail.ok_or_else(|| anyhow!("the agent has no jail"))
}
