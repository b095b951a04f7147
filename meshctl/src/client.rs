//! The connection to the coordinator: which credential, which addresses, how long to try.
//!
//! A call that fails because nobody answers is tried again for [`SHORT`]; then the command
//! ends. When a stand-by answers, another coordinator leads or is about to: the client goes on to
//! it, and tries for [`FAILOVER`]. Who waits for a job instead has [`Patience`] without end: the
//! mesh goes on while its coordinator restarts.

use std::{
    env,
    future::Future,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_certs::{ChannelOptions, ClientTls, ConnectError, Credential, LastError, Route};
use mesh_proto::{
    code::{CODE_HEADER, Code, RETRY_AFTER_HEADER},
    limits,
    v1::{
        access_client::AccessClient, blobs_client::BlobsClient, jobs_client::JobsClient,
        nodes_client::NodesClient,
    },
};
use tokio::time::{sleep, timeout};
use tonic::{Response, Status, transport::Channel};

use crate::{error::CliError, output::note};

/// How long a single call is tried again when the coordinator does not answer.
const SHORT: Duration = Duration::from_secs(3);
/// How long a single call is tried again once a stand-by has answered: longer than it takes one to
/// take over.
const FAILOVER: Duration = Duration::from_secs(20);
/// How long a single call may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between pings of the connection, and how long one may take to be answered.
const PING: Duration = Duration::from_secs(4);
/// Being away for so long is not worth a word.
const UNNOTICED: Duration = Duration::from_millis(500);
/// Between two tries: at first, and at most.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(2);

/// Where the credential and the addresses come from.
#[derive(Debug, Default, clap::Args)]
pub struct ConnectArgs {
    /// Credential file [default: ~/.config/mesh/credential]
    #[arg(
        long,
        global = true,
        display_order = 1000,
        value_name = "FILE",
        env = "MESH_CREDENTIAL",
        hide_env_values = true
    )]
    pub credential: Option<PathBuf>,
    /// Address of the coordinator instead of the credential's; can be repeated
    #[arg(long, global = true, display_order = 1000, value_name = "HOST:PORT")]
    pub endpoint: Vec<String>,
}

/// A connection that comes about at the first call. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    route: Route,
    last: LastError,
    tried: String,
    /// The person was told that the coordinator is away: once, whoever notices first.
    away: Arc<AtomicBool>,
}

impl Client {
    pub fn new(args: &ConnectArgs) -> Result<Self, CliError> {
        let path = credential_path(args.credential.as_deref())?;
        let credential = Credential::load(&path).map_err(CliError::Credential)?;
        let tls = ClientTls::of(&credential).map_err(CliError::Credential)?;
        let endpoints = if args.endpoint.is_empty() { credential.endpoints } else { args.endpoint.clone() };
        for endpoint in &endpoints {
            check_endpoint(endpoint)?;
        }
        let tried = endpoints.join(", ");
        let route = Route::new(endpoints);
        // A frozen coordinator keeps its connections: somebody else may lead by now.
        let options = ChannelOptions {
            keepalive_interval: PING,
            keepalive_timeout: PING,
            user_agent: mesh_proto::version::user_agent(),
            ..ChannelOptions::default()
        };
        let (channel, last) = mesh_certs::channel_on(&route, tls, options);
        Ok(Self { channel, route, last, tried, away: Arc::default() })
    }

    pub fn jobs(&self) -> JobsClient<Channel> {
        JobsClient::new(self.channel.clone()).max_decoding_message_size(limits::MAX_MESSAGE)
    }

    pub fn nodes(&self) -> NodesClient<Channel> {
        NodesClient::new(self.channel.clone()).max_decoding_message_size(limits::MAX_MESSAGE)
    }

    pub fn access(&self) -> AccessClient<Channel> {
        AccessClient::new(self.channel.clone())
    }

    pub fn blobs(&self) -> BlobsClient<Channel> {
        BlobsClient::new(self.channel.clone()).max_decoding_message_size(limits::MAX_MESSAGE)
    }

    /// Calls once, and again for a short while when nobody answers.
    pub async fn call<T, F, R>(&self, request: F) -> Result<T, CliError>
    where
        F: Fn() -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let mut patience = Patience::short(self);
        loop {
            let status = match timeout(DEADLINE, request()).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Code::Timeout.status(format!("no answer within {} s", DEADLINE.as_secs())),
            };
            patience.failed(status).await?;
        }
    }

    /// What a failed call means for the person.
    pub fn explain(&self, status: Status) -> CliError {
        if status.code() == tonic::Code::Unimplemented && status.metadata().get(CODE_HEADER).is_none() {
            let text = "the coordinator does not know this call: it is older than this meshctl, upgrade it";
            return Code::Version.status(text).into();
        }
        if !is_transport(&status) {
            return match Code::of(&status) {
                Code::Unavailable | Code::Timeout => {
                    CliError::Unreachable { tried: self.tried.clone(), reason: message_of(&status) }
                }
                Code::Invalid
                | Code::NotFound
                | Code::Unauthenticated
                | Code::Denied
                | Code::Conflict
                | Code::Exhausted
                | Code::Stale
                | Code::Version
                | Code::Internal => status.into(),
            };
        }
        match self.last.get() {
            Some(error) if error.is_rejection() => CliError::Rejected(error.to_string()),
            Some(error) => CliError::Unreachable {
                tried: self.tried.clone(),
                reason: match &*error {
                    ConnectError::Unreachable { endpoint, problem } if *endpoint == self.tried => {
                        problem.clone()
                    }
                    error => error.to_string(),
                },
            },
            None => CliError::Unreachable { tried: self.tried.clone(), reason: message_of(&status) },
        }
    }
}

fn message_of(status: &Status) -> String {
    match status.message() {
        "" => "it does not answer".to_owned(),
        message => mesh_proto::names::escape(message),
    }
}

/// Whether the connection failed rather than the call: no answer of the coordinator is in it.
fn is_transport(status: &Status) -> bool {
    status.metadata().get(CODE_HEADER).is_none()
        && matches!(
            status.code(),
            tonic::Code::Unavailable
                | tonic::Code::Unknown
                | tonic::Code::Cancelled
                | tonic::Code::Internal
                | tonic::Code::DeadlineExceeded
        )
}

/// Whether it can go well when tried again.
fn is_passing(status: &Status) -> bool {
    is_transport(status) || matches!(Code::of(status), Code::Unavailable)
}

/// How often, and how long, something is tried again.
pub struct Patience<'a> {
    client: &'a Client,
    /// None: for ever, with a notice.
    limit: Option<Duration>,
    since: Option<Instant>,
    delay: Duration,
}

impl<'a> Patience<'a> {
    /// For what a person waits for at the prompt.
    pub fn short(client: &'a Client) -> Self {
        Self { client, limit: Some(SHORT), since: None, delay: FIRST_DELAY }
    }

    /// For what goes on for as long as a job does.
    pub fn endless(client: &'a Client) -> Self {
        Self { client, limit: None, since: None, delay: FIRST_DELAY }
    }

    /// Sleeps until the next try, or says that there is none.
    pub async fn failed(&mut self, status: Status) -> Result<(), CliError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.client.route.heed(&status) {
            self.limit = self.limit.map(|limit| limit.max(FAILOVER));
        }
        let error = self.client.explain(status.clone());
        if !is_passing(&status)
            || matches!(error, CliError::Rejected(_))
            || self.limit.is_some_and(|limit| since.elapsed() >= limit)
        {
            return Err(error);
        }
        // A restart that is over in a moment is nobody's concern.
        if self.limit.is_none()
            && since.elapsed() > UNNOTICED
            && !self.client.away.swap(true, Ordering::Relaxed)
        {
            note(&format!("{error}; trying again"));
        }
        let asked = status
            .metadata()
            .get(RETRY_AFTER_HEADER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_millis);
        sleep(asked.unwrap_or(self.delay).min(MAX_DELAY)).await;
        self.delay = (self.delay * 2).min(MAX_DELAY);
        Ok(())
    }

    /// It went well: the next failure is a new one.
    pub fn succeeded(&mut self) {
        if self.client.away.swap(false, Ordering::Relaxed) {
            note("the coordinator answers again");
        }
        self.since = None;
        self.delay = FIRST_DELAY;
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), CliError> {
    let valid = endpoint
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if valid {
        Ok(())
    } else {
        Err(CliError::Usage(format!(
            "--endpoint {}: expected HOST:PORT",
            mesh_proto::names::escape(endpoint)
        )))
    }
}

/// `--credential` or `MESH_CREDENTIAL`, else the file in the configuration directory.
fn credential_path(named: Option<&Path>) -> Result<PathBuf, CliError> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let home = etcetera::home_dir().ok();
    let own = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let places: Vec<PathBuf> = [own, home.map(|home| home.join(".config"))]
        .into_iter()
        .flatten()
        .map(|config| config.join("mesh/credential"))
        .collect();
    if let Some(path) = places.iter().find(|path| path.exists()) {
        return Ok(path.clone());
    }
    let places: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
    Err(CliError::NoCredential(format!(
        "there is no credential (looked for {}): name one with --credential or MESH_CREDENTIAL, or get one \
         on the coordinator's host with `coordinator admin-credential`",
        if places.is_empty() { "a home directory".to_owned() } else { places.join(" and ") },
    )))
}
