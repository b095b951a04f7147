//! `agent run`: puts the rooms together and keeps them going until a signal says how to stop.
//!
//! | signal | what happens |
//! |---|---|
//! | SIGTERM, SIGINT without a terminal | detach: tasks run on under the jail |
//! | SIGUSR1 (`agent stop`) | drain: take nothing new, finish what is here, then go, jail and all |
//! | SIGUSR2 (`agent stop --kill`), SIGINT on a terminal | end the tasks, tell of it, then go |

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chrono::Utc;
use mesh_certs::{ChannelOptions, ClientCert, ClientTls, Route, channel_on};
use mesh_proto::ids::NodeId;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::attempts::{Capacity, Input};
use crate::backoff::Backoff;
use crate::blobs::{Blobs, Cache};
use crate::config::{Config, Flags};
use crate::datadir::{DataDir, DataDirError, stop_daemon};
use crate::enroll;
use crate::facts::{self, Machine};
use crate::hub::Hub;
use crate::identity::{Identity, IdentityDir, IdentityError};
use crate::jail;
use crate::jailer::Jailer;
use crate::metrics::Metrics;
use crate::mounts;
use crate::node::NodeRpc;
use crate::records::Records;
use crate::runner::Context;
use crate::seen::Seen;
use crate::session::Session;
use crate::spawn::spawn;
use crate::{http, token};

/// The line that says that the node is registered.
#[derive(serde::Serialize)]
struct ReadyLine<'a> {
    ready: bool,
    node: NodeId,
    name: &'a str,
    http: Option<String>,
}

/// The cache's bound when none is given.
const MAX_CACHE: u64 = 10 << 30;
/// Attempts that may stand in line for a slot: enough that one is there when the daemon is busy.
const IN_LINE: usize = 6;
/// How long an agent that ends its tasks waits for the coordinator to hear of it.
const FAREWELL: Duration = Duration::from_secs(20);

/// Runs the daemon until it is told to stop.
pub async fn run(flags: &Flags, join: Option<String>) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    process_limits();
    let mut config = Config::load(flags)?;
    let data = DataDir::hold(&config.data_dir)?;
    config.data_dir.clone_from(&data.path);
    let identity_dir = IdentityDir::of(&data.path)?;
    let identity = enrolled(&identity_dir, join, &config.name).await?;
    let cert = ClientCert::of_node(identity.cert.clone(), &identity.key)?;
    let root = rustix::process::geteuid().is_root();
    let work_root = data.work_root(root)?;
    let machine = Machine::look().context("cannot look at this machine")?;
    let metrics = Arc::new(Metrics::new()?);

    let jail = Jailer::start(jail::Options {
        orphan_timeout: config.timings.orphan_timeout,
        ..jail::Options::new(data.path.join("jail"))
    })
    .await?;
    let probe = jail.probe().await?;
    for layer in probe.layers.iter().filter(|layer| !layer.present) {
        warn!(layer = %layer.name, remedy = %layer.remedy, "a layer of the sandbox is missing");
    }
    let mut offered = BTreeMap::new();
    for (name, tried) in
        mounts::tried(&config.mounts, &[&config.data_dir, &work_root], |mount| jail.try_mount(mount)).await?
    {
        match tried {
            Ok(mount) => drop(offered.insert(name, mount)),
            Err(why) => {
                warn!(mount = %name, %why, "a mount is not offered: mend it and restart the agent");
            }
        }
    }
    config.mounts = offered;
    let config = Arc::new(config);
    let sandbox = facts::sandbox(&probe, &config);
    if probe.strongest < config.sandbox_allow.of_jail() {
        warn!(
            strongest = ?probe.strongest,
            accepted = ?config.sandbox_allow,
            "this node cannot confine tasks as strictly as it is told to and takes none: see `agent check`"
        );
    }

    let timings = config.timings;
    let backoff = Backoff::new(timings.reconnect_min, timings.reconnect_max);
    let tls = ClientTls { ca: identity.ca.clone(), mesh: identity.node.mesh, cert: cert.clone() };
    let options = ChannelOptions {
        connect_timeout: timings.connect_timeout,
        keepalive_interval: timings.keepalive_interval,
        keepalive_timeout: timings.keepalive_timeout,
        user_agent: mesh_proto::version::user_agent(),
    };
    let route = Route::new(identity.node.endpoints.clone());
    let (control, last_error) = channel_on(&route, tls.clone(), options);
    // Content has a connection of its own: it must not stand before results in one queue of bytes.
    let (bulk, _) = channel_on(&route, tls, options);
    let rpc = NodeRpc::new(control, backoff.clone());
    let cache = {
        let blobs = data.path.join("blobs");
        let max = config.limits.cache_size.unwrap_or_else(|| MAX_CACHE.min(facts::disk(&blobs).total / 10));
        tokio::task::spawn_blocking(move || Cache::open(&blobs, max)).await??
    };
    let in_line = if work_root == data.path.join("attempts") && jail.knows_lines() { IN_LINE } else { 0 };
    let capacity = Capacity { in_line, ..machine.capacity(&config) };
    let context = Context {
        config: config.clone(),
        node_name: identity.node.name.as_str().into(),
        jail: jail.clone(),
        blobs: Arc::new(Blobs::new(Arc::new(cache), bulk, backoff, timings.transfer_stall)),
        records: Records::new(data.path.join("attempts"), machine.boot_id.clone()),
        rpc: rpc.clone(),
        work_root: Arc::new(work_root),
        strongest: probe.strongest,
        limits: probe.limits,
        memory_per_slot: capacity.memory_bytes / u64::from(capacity.slots.max(1)),
        root,
    };
    let hub = Hub::new(context, capacity, metrics.clone());
    hub.recover().await?;
    let bound = match config.http_listen {
        Some(listen) => Some(
            http::serve(listen, metrics.clone())
                .await
                .with_context(|| format!("cannot listen on {listen}"))?,
        ),
        None => None,
    };

    let ready = watch::Sender::new(false);
    let mut is_ready = ready.subscribe();
    let (drain, draining) = watch::channel(false);
    let seen = Arc::new(Seen::load(data.path.join("seen.json")));
    let line = serde_json::to_string(&ReadyLine {
        ready: true,
        node: identity.node.node,
        name: &identity.node.name,
        http: bound.map(|address| address.to_string()),
    })?;
    let is_closed = watch::Sender::new(false);
    let mut closed = is_closed.subscribe();
    let session = Session {
        hub: hub.clone(),
        machine,
        sandbox,
        seen: seen.clone(),
        last_error,
        route,
        identity: identity_dir.clone(),
        metrics,
        ready,
        draining,
        closed: is_closed,
        said: String::new(),
    };
    let mut session = std::pin::pin!(session.run());
    spawn("certificate renewal", enroll::keep_renewed(identity_dir, identity, cert, rpc.clone()));
    let mut said = false;
    let stop = loop {
        tokio::select! {
            error = &mut session => return Err(error.into()),
            Ok(()) = is_ready.changed(), if !said => {
                said = true;
                let mut stdout = std::io::stdout().lock();
                writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("cannot say that the agent is ready")?;
            }
            stop = signals.next() => break stop,
        }
    };
    if stop == Asked::Detach {
        info!("stopping; tasks run on and are taken up by the next start");
        seen.keep();
        return Ok(());
    }
    // First the coordinator must know that nothing more is to come: what is given back would
    // otherwise arrive here again.
    drain.send_replace(true);
    let mut wish = stop;
    let mut ending = false;
    let mut deadline = tokio::time::Instant::now() + FAREWELL;
    info!(kill = wish == Asked::Kill, "stopping: nothing new is taken");
    loop {
        let changed = hub.changed.notified();
        let told = *closed.borrow_and_update() || !rpc.is_connected();
        if wish == Asked::Kill && told && !ending {
            ending = true;
            hub.handle(Input::Shutdown);
        }
        if told && hub.is_idle() {
            break;
        }
        tokio::select! {
            error = &mut session => return Err(error.into()),
            () = changed => {}
            Ok(()) = closed.changed() => {}
            () = tokio::time::sleep_until(deadline), if wish == Asked::Kill && hub.counts().0 == 0 => {
                warn!("the coordinator was not told of every end; the next start tells it");
                break;
            }
            again = signals.next() => match again {
                Asked::Detach => return Ok(()),
                Asked::Drain => {}
                Asked::Kill => {
                    wish = Asked::Kill;
                    deadline = tokio::time::Instant::now() + FAREWELL;
                }
            },
        }
    }
    seen.keep();
    jail.shutdown().await.context("the jail does not end")?;
    data.remove_work_root();
    info!("stopped");
    Ok(())
}

/// `agent stop`: stops the daemon of a data directory, or what it left behind when there is none.
pub async fn stop(flags: &Flags, kill: bool) -> anyhow::Result<()> {
    let dir = Config::load(flags)?.data_dir;
    let (path, stopped) = tokio::task::spawn_blocking(move || {
        let stopped = stop_daemon(&dir, kill);
        (dir, stopped)
    })
    .await?;
    match stopped {
        Err(DataDirError::NotRunning(_)) => {}
        stopped => return Ok(stopped?),
    }
    // Nobody holds the directory: tasks may still run on under the jail.
    let (client, mut events) = match jail::Client::connect(&path.join("jail")).await {
        Ok(connected) => connected,
        Err(jail::ClientError::Connect { .. }) => return Err(DataDirError::NotRunning(path).into()),
        Err(error) => return Err(error.into()),
    };
    let living =
        client.list().await?.iter().filter(|task| !matches!(task.state, jail::State::Ended(_))).count();
    if living > 0 && !kill {
        anyhow::bail!(
            "no agent runs on {}, but {living} of its tasks run on: start it to take them up, or end them with \
             agent stop --kill",
            path.display()
        );
    }
    client.shutdown(true).await?;
    while events.recv().await.is_some() {}
    Ok(())
}

/// `agent join`: enrols and returns.
pub async fn join(flags: &Flags, token: &str) -> anyhow::Result<()> {
    let config = Config::load(flags)?;
    let data = DataDir::hold(&config.data_dir)?;
    let dir = IdentityDir::of(&data.path)?;
    let identity = enrolled(&dir, Some(token.to_owned()), &config.name).await?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "node {} ({}) of mesh {}", identity.node.name, identity.node.node, identity.node.mesh)?;
    Ok(())
}

/// The node's identity; joins first when there is none, or when the one there is has expired.
async fn enrolled(dir: &IdentityDir, token: Option<String>, name: &str) -> anyhow::Result<Identity> {
    if dir.is_enrolled() {
        let identity = dir.load()?;
        let end = identity.not_after()?;
        if end > Utc::now() {
            if token.is_some() {
                info!(node = %identity.node.node, name = %identity.node.name, "enrolled already: the token is not used");
            }
            return Ok(identity);
        }
        let Some(token) = token else {
            anyhow::bail!(
                "this node's certificate expired at {end}: join again with a new token (`meshctl token create` \
                 makes one): agent run --join TOKEN"
            );
        };
        info!(%end, "the certificate has expired: joining again with the same key");
        enroll::join(dir, &token::read(&token)?, &identity.node.name).await?;
        return Ok(dir.load()?);
    }
    let token = token.ok_or(IdentityError::NotEnrolled)?;
    enroll::join(dir, &token::read(&token)?, name).await?;
    Ok(dir.load()?)
}

/// `agent check`: tries each layer of the sandbox here and prints what was found.
pub async fn check(flags: &Flags) -> anyhow::Result<bool> {
    let config = Config::load(flags)?;
    // In a directory of its own: a running daemon's jail is left alone. Where the data directory is, or will
    // be, for that may be a place that tasks see.
    let place = config.data_dir.ancestors().find(|dir| dir.is_dir());
    let dir = place
        .and_then(|place| tempfile::tempdir_in(place).ok())
        .map_or_else(tempfile::tempdir, Ok)
        .context("cannot make a directory to try the sandbox in")?;
    let path: PathBuf = dir.path().join("jail");
    let (client, _events) = jail::Client::ensure(&jail::Options::new(path)).await?;
    let probe = client.probe().await;
    let mounts = mounts::tried(&config.mounts, &[&config.data_dir], |mount| client.try_mount(mount)).await;
    client.shutdown(true).await?;
    let (probe, mounts) = (probe?, mounts?);
    let mut stdout = std::io::stdout().lock();
    for layer in &probe.layers {
        if layer.present {
            writeln!(stdout, "ok       {}", layer.name)?;
        } else {
            writeln!(stdout, "missing  {}: {}", layer.name, layer.remedy)?;
        }
    }
    for (name, tried) in &mounts {
        match tried {
            Ok(mount) => writeln!(stdout, "ok       mount {name}: {}", mount.path.display())?,
            Err(why) => writeln!(stdout, "missing  mount {name}: {why}")?,
        }
    }
    writeln!(stdout, "strongest level: {}", format!("{:?}", probe.strongest).to_lowercase())?;
    let limits = match probe.limits {
        jail::Limits::Cgroup => "cgroup (a task as a whole)",
        jail::Limits::Rlimit => "rlimit (each process of a task)",
    };
    writeln!(stdout, "limits: {limits}")?;
    let enough = probe.strongest >= config.sandbox_allow.of_jail();
    if !enough {
        writeln!(
            stdout,
            "this node would take no task: it accepts level {} at the weakest (--sandbox-allow)",
            format!("{:?}", config.sandbox_allow).to_lowercase()
        )?;
    }
    Ok(enough)
}

/// Modes are as this program sets them, and descriptors as many as the machine allows.
fn process_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
    umask(rustix::fs::Mode::from(0o022));
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        warn!(%error, "the limit of open files stays as it is");
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Detach,
    Drain,
    Kill,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    drain: Signal,
    kill: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            drain: on(SignalKind::user_defined1())?,
            kill: on(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Detach,
            _ = self.interrupt.recv() => {
                if std::io::stdin().is_terminal() { Asked::Kill } else { Asked::Detach }
            }
            _ = self.drain.recv() => Asked::Drain,
            _ = self.kill.recv() => Asked::Kill,
        }
    }
}
