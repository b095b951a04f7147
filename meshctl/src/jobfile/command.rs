//! A job of one command, as `meshctl run` makes it from its flags. Nothing in it is a
//! template: what stands on a command line is meant as it stands.

use std::path::Path;

use mesh_proto::v1;

use super::{
    JobFileError, Prepared,
    inputs::check_place,
    model::{Action, Input, Job, Task},
    prepare::{self, Overrides, PrepareError},
    problem::{Pos, Spot},
    resources, settings,
};

/// What `run` was asked for.
#[derive(Debug, Default)]
pub struct CommandJob {
    pub name: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Local path, and where it goes if that was said.
    pub inputs: Vec<(String, Option<String>)>,
    pub outputs: Vec<String>,
    /// None: one.
    pub cpu_millis: Option<u32>,
    pub memory_bytes: u64,
    pub named: Vec<(String, u64)>,
    pub conditions: v1::Where,
    pub timeout_ms: u64,
    pub grace_ms: Option<u64>,
    pub attempts: Option<u32>,
    pub priority: Option<u32>,
    pub sandbox: Option<v1::SandboxLevel>,
    pub host_network: bool,
}

/// Checks the job and finds its inputs, relative to the working directory.
pub fn prepare(job: CommandJob) -> Result<Prepared, JobFileError> {
    let mut literals = Literals::default();
    let words = job.argv.iter().map(|word| literals.spot(word)).collect();
    let env = job.env.iter().map(|(name, value)| (spot(name), literals.spot(value))).collect();
    let outputs = job.outputs.iter().map(|output| literals.spot(output)).collect();
    let inputs = job
        .inputs
        .iter()
        .map(|(from, to)| Input { from: literals.spot(from), to: to.as_deref().map(|to| literals.spot(to)) })
        .collect();
    let mut retry = settings::default_retry();
    retry.attempts = job.attempts.unwrap_or(retry.attempts);
    let default = resources::default();
    let task = Task {
        name: None,
        at: Pos::START,
        action: Action::Command(words),
        array: None,
        needs: Vec::new(),
        inputs,
        outputs,
        env,
        resources: v1::Resources {
            cpu_millis: job.cpu_millis.unwrap_or(default.cpu_millis),
            memory_bytes: job.memory_bytes,
            named: job.named.into_iter().collect(),
            ..default
        },
        conditions: job.conditions,
        timeout_ms: job.timeout_ms,
        grace_ms: job.grace_ms.unwrap_or(10_000),
        retry,
        sandbox: job.sandbox.unwrap_or(v1::SandboxLevel::Unspecified),
        network: if job.host_network { v1::Network::Host } else { v1::Network::None },
        mounts: Vec::new(),
        on_disconnect: v1::OnDisconnect::Keep,
    };
    let model = Job {
        name: None,
        priority: job.priority.unwrap_or(5),
        on_failure: v1::OnFailure::Stop,
        params: literals.params,
        tasks: vec![task],
    };
    prepare::prepare(model, &job.name, Path::new(""), &Overrides::default()).map_err(|error| match error {
        PrepareError::Problem(problem) => JobFileError::Flag(problem.message()),
        other @ (PrepareError::UnknownParam { .. } | PrepareError::File(_) | PrepareError::TooLarge(_)) => {
            JobFileError::Override(other)
        }
    })
}

fn spot(text: &str) -> Spot<String> {
    Spot { at: Pos::START, value: text.to_owned() }
}

/// Texts that hold a brace become parameters: what a parameter stands for is not replaced
/// again, so that `{name}` of a command line stays `{name}`.
#[derive(Default)]
struct Literals {
    params: Vec<(Spot<String>, String)>,
}

impl Literals {
    fn spot(&mut self, text: &str) -> Spot<String> {
        if !text.contains('{') {
            return spot(text);
        }
        let name = format!("literal-{}", self.params.len());
        let value = format!("{{params.{name}}}");
        self.params.push((spot(&name), text.to_owned()));
        spot(&value)
    }
}

/// Where a file named on the command line goes by itself: its relative path, or its name
/// alone when it is not below the working directory.
pub fn default_place(from: &str) -> Option<String> {
    let plain = from.strip_prefix("./").unwrap_or(from);
    if check_place(plain.trim_end_matches('/'), Pos::START).is_ok() {
        return None;
    }
    let name = Path::new(from).file_name()?.to_str()?;
    Some(name.to_owned())
}
