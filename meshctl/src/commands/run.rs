//! `run`: one command on the mesh as if it ran here. Its output comes as it is written, its
//! files go and come, its exit status becomes this program's.

use std::{path::Path, time::Duration};

use mesh_proto::{
    duration::parse_duration,
    names,
    size::parse_size,
    state::Named as _,
    v1::{self, Cause, TaskState},
};

use super::{Context, fetch, jobs, submit, tasks};
use crate::{
    cli::key_value,
    client::Client,
    error::{CliError, INTERRUPTED, MESH_FAILED},
    jobfile::{self, CommandJob},
    logs::{self, Descriptors, Request, Writer},
    output::{self, Out, table},
    reference::Selection,
    signals::Interrupts,
    waiting, watch,
};

/// Run one command on the mesh: submit, follow, fetch; exits as the command did
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: the command's own; 128+N when signal N ended it, 124 timeout, 137 out of \
                        memory, 125 when the mesh failed rather than the command, 130 after Ctrl-C, which \
                        cancels it."
)]
pub struct Args {
    /// Processors, fractions allowed [default: 1]
    #[arg(long, value_name = "N", value_parser = jobfile::cpu_millis)]
    cpu: Option<u32>,
    /// Memory, such as 512MiB [default: the node's, divided by its slots]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// Units of a named resource; can be repeated
    #[arg(long, value_name = "NAME=N", value_parser = units)]
    resource: Vec<(String, u64)>,
    /// File or directory to bring along, under its relative path or as TO; can be repeated
    #[arg(long = "in", value_name = "PATH[:TO]")]
    inputs: Vec<String>,
    /// Output to fetch to the same place here: a path or glob; one ending in / is created
    /// before the start; can be repeated
    #[arg(long = "out", value_name = "PATH")]
    outputs: Vec<String>,
    /// Environment variable; KEY alone takes it from here; can be repeated
    #[arg(long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// End the command after this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    grace: Option<Duration>,
    /// Try so often when it fails [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    attempts: Option<u32>,
    /// From 0 to 9 [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=9))]
    priority: Option<u32>,
    /// Only on nodes with this tag; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    tag: Vec<(String, String)>,
    /// Only on nodes with this capability; can be repeated
    #[arg(long, value_name = "NAME", value_parser = submit::name)]
    capability: Vec<String>,
    /// Only on this node
    #[arg(long, value_name = "NAME", value_parser = submit::name)]
    node: Option<String>,
    /// Only on this operating system, such as linux
    #[arg(long, value_name = "NAME", value_parser = submit::name)]
    os: Option<String>,
    /// Only on this architecture, such as x86_64
    #[arg(long, value_name = "NAME", value_parser = submit::name)]
    arch: Option<String>,
    /// Only where a cgroup holds the limits
    #[arg(long, value_name = "KIND", value_parser = ["cgroup"])]
    limits: Option<String>,
    /// strict, basic or none [default: the coordinator's]
    #[arg(long, value_name = "LEVEL", value_parser = ["strict", "basic", "none"])]
    sandbox: Option<String>,
    /// none or host
    #[arg(long, value_name = "KIND", default_value = "none", value_parser = ["none", "host"])]
    network: String,
    /// Name of the job [default: the command's]
    #[arg(long, value_parser = submit::name)]
    name: Option<String>,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn size(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("expected more than nothing".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

fn units(text: &str) -> Result<(String, u64), String> {
    let (name, units) = key_value(text)?;
    names::check_name(&name).map_err(|error| format!("the name {error}"))?;
    match units.parse() {
        Ok(units) if units > 0 => Ok((name, units)),
        Ok(_) | Err(_) => Err("expected NAME=N with a whole number from 1".to_owned()),
    }
}

pub async fn run(context: &Context, args: Args) -> Result<u8, CliError> {
    let out = context.out;
    let prepared = jobfile::prepare_command(job(args)?)?;
    let client = context.client()?;
    let mut interrupts = Interrupts::new().map_err(|error| CliError::io("signals", error))?;
    let (submitted, spec) = tokio::select! {
        sent = submit::send(&client, out, prepared, None) => sent?,
        () = interrupts.next() => return Err(CliError::Interrupted(String::new())),
    };
    let number = submitted.number;
    let task = spec.tasks.first().map(|task| task.name.clone()).unwrap_or_default();
    let request = Request {
        job: number,
        selection: Selection { task, index: None, count: 1 },
        follow: true,
        patient: true,
        ..Request::default()
    };
    let mut writer = Writer::new(logs::style(out, 1, Descriptors::Own), Descriptors::Own);
    let ended = tokio::select! {
        ended = waiting::told_why(
            &client, number, output::note, logs::until_done(&client, request, &mut writer, |_| {}),
        ) => ended,
        () = interrupts.next() => return give_up(&client, out, number, &mut interrupts).await,
    };
    let job = match ended {
        Ok(job) => job,
        // Nobody reads the output any more: the command is not wanted either.
        Err(CliError::BrokenPipe) => {
            jobs::cancel_one(&client, &number.to_string(), "nobody reads its output").await?;
            return Err(CliError::BrokenPipe);
        }
        Err(error) => return Err(failed_mesh(out, &error)),
    };
    if job.state() == v1::JobState::Completed {
        return bring_back(&client, out, number, &spec).await;
    }
    how_it_ended(&client, out, &job).await
}

/// The job of these flags.
fn job(args: Args) -> Result<CommandJob, CliError> {
    let program = args.command.first().map(String::as_str).unwrap_or_default();
    Ok(CommandJob {
        name: args.name.unwrap_or_else(|| jobfile::job_name(program)),
        env: args.env.iter().map(|variable| environment(variable)).collect::<Result<_, _>>()?,
        inputs: args.inputs.iter().map(|input| source(input)).collect(),
        outputs: args.outputs.iter().map(|path| path.strip_prefix("./").unwrap_or(path).to_owned()).collect(),
        argv: args.command,
        cpu_millis: args.cpu,
        memory_bytes: args.memory.unwrap_or_default(),
        named: args.resource,
        conditions: v1::Where {
            tags: args.tag.into_iter().collect(),
            capabilities: args.capability,
            os: args.os.unwrap_or_default(),
            arch: args.arch.unwrap_or_default(),
            node: args.node.unwrap_or_default(),
            limits: args.limits.unwrap_or_default(),
        },
        timeout_ms: args.timeout.map_or(0, |timeout| timeout.as_millis() as u64),
        grace_ms: args.grace.map(|grace| grace.as_millis() as u64),
        attempts: args.attempts,
        priority: args.priority,
        sandbox: args.sandbox.as_deref().and_then(v1::SandboxLevel::parse),
        host_network: args.network == "host",
    })
}

fn environment(variable: &str) -> Result<(String, String), CliError> {
    let wrong = |why: &str| CliError::Usage(format!("--env {}: {why}", names::escape(variable)));
    match variable.split_once('=') {
        Some(("", _)) => Err(wrong("expected KEY or KEY=VALUE")),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => match std::env::var(variable) {
            Ok(value) => Ok((variable.to_owned(), value)),
            Err(std::env::VarError::NotPresent) => Err(wrong("it is not set here")),
            Err(std::env::VarError::NotUnicode(_)) => Err(wrong("its value here is not valid UTF-8")),
        },
    }
}

/// `PATH` or `PATH:TO`; a path that holds a colon and exists is a path.
fn source(input: &str) -> (String, Option<String>) {
    if !Path::new(input).exists()
        && let Some((from, to)) = input.rsplit_once(':')
        && !from.is_empty()
        && !to.is_empty()
    {
        return (from.to_owned(), Some(to.to_owned()));
    }
    (input.to_owned(), jobfile::default_place(input))
}

/// Fetches what `--out` named to the same places here.
async fn bring_back(client: &Client, out: Out, number: u64, spec: &v1::JobSpec) -> Result<u8, CliError> {
    if spec.tasks.iter().all(|task| task.outputs.is_empty()) {
        return Ok(0);
    }
    let wanted = fetch::outputs(client, number, &Selection::default(), |_, path| path.to_owned()).await;
    let fetched = match wanted {
        Ok(wanted) => fetch::fetch(client, out, Path::new("."), wanted).await,
        Err(error) => Err(error),
    };
    fetched.map(|_| 0).map_err(|error| failed_mesh(out, &error))
}

/// The exit status of a command that did not complete.
async fn how_it_ended(client: &Client, out: Out, job: &v1::Job) -> Result<u8, CliError> {
    let request = v1::ListTasksRequest { job: job.number.to_string(), ..v1::ListTasksRequest::default() };
    let found =
        tasks::list(client, request, 1, String::new()).await.map_err(|error| failed_mesh(out, &error))?;
    let Some(task) = found.tasks.first() else {
        output::note(&submit::outcome(job));
        return Ok(MESH_FAILED);
    };
    let status = exit_status(task);
    if task.cause() != Cause::Exit {
        // The job's reason only repeats how its task ended, unless somebody cancelled it.
        let why = match task.cause() {
            Cause::Cancelled | Cause::Unspecified if task.message.is_empty() => &job.reason,
            _ => &task.message,
        };
        let why = names::escape(why);
        let colon = if why.is_empty() { "" } else { ": " };
        // Nothing ended it: it was cancelled before it began.
        let how = if task.cause() == Cause::Unspecified {
            task.state().lower().to_owned()
        } else {
            table::cause(task)
        };
        output::note(&format!("job {}: {how}{colon}{why}", job.number));
    }
    Ok(status)
}

/// As a shell would tell it.
fn exit_status(task: &v1::TaskInfo) -> u8 {
    match task.cause() {
        Cause::Exit => match u8::try_from(task.exit_code.unwrap_or_default()) {
            // The command did well and the task did not: something else went wrong.
            Ok(0) if task.state() != TaskState::Completed => MESH_FAILED,
            Ok(code) => code,
            Err(_) => MESH_FAILED,
        },
        Cause::Signal => {
            128_u8.saturating_add(task.signal.and_then(|signal| signal.try_into().ok()).unwrap_or(0))
        }
        Cause::Timeout => 124,
        Cause::Oom => 137,
        Cause::Unspecified
        | Cause::Disk
        | Cause::Output
        | Cause::Staging
        | Cause::Sandbox
        | Cause::Infra
        | Cause::Lost
        | Cause::Cancelled
        | Cause::Fenced => MESH_FAILED,
    }
}

/// After the submit every failure that is not the command's is told as such.
fn failed_mesh(out: Out, error: &CliError) -> CliError {
    out.error(error);
    CliError::Told(MESH_FAILED)
}

/// Cancels the job and waits until its processes are gone; a second Ctrl-C does not wait.
async fn give_up(
    client: &Client,
    out: Out,
    number: u64,
    interrupts: &mut Interrupts,
) -> Result<u8, CliError> {
    output::note(&format!("cancelling job {number} (Ctrl-C again to leave it at that)"));
    let gone = async {
        jobs::cancel_one(client, &number.to_string(), "interrupted").await?;
        watch::until_done(client, number, |_| {}).await
    };
    tokio::select! {
        ended = gone => match ended {
            // It had ended already: there is nothing to cancel.
            Ok(_) | Err(CliError::Answer { code: mesh_proto::code::Code::Conflict, .. }) => {}
            Err(error) => out.error(&error),
        },
        () = interrupts.next() => {}
    }
    Err(CliError::Told(INTERRUPTED))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Cause::Exit, Some(3), None, 3)]
    #[case(Cause::Exit, Some(0), None, 125)]
    #[case(Cause::Signal, None, Some(9), 137)]
    #[case(Cause::Signal, None, Some(15), 143)]
    #[case(Cause::Timeout, None, Some(15), 124)]
    #[case(Cause::Oom, None, Some(9), 137)]
    #[case(Cause::Output, None, None, 125)]
    #[case(Cause::Infra, None, None, 125)]
    #[case(Cause::Cancelled, None, None, 125)]
    fn a_failed_command_is_told_as_a_shell_would(
        #[case] cause: Cause,
        #[case] exit_code: Option<i32>,
        #[case] signal: Option<i32>,
        #[case] status: u8,
    ) {
        let state = TaskState::Failed.into();
        let task = v1::TaskInfo { cause: cause.into(), state, exit_code, signal, ..v1::TaskInfo::default() };
        assert_eq!(exit_status(&task), status);
    }

    #[test]
    fn an_input_may_say_where_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let with_colon = dir.path().join("a:b");
        std::fs::write(&with_colon, "").unwrap();
        let with_colon = with_colon.to_str().unwrap();
        assert_eq!(source("data/x.csv"), ("data/x.csv".into(), None));
        assert_eq!(source("./x.csv"), ("./x.csv".into(), None));
        assert_eq!(source("x.csv:in/y.csv"), ("x.csv".into(), Some("in/y.csv".into())));
        assert_eq!(source(with_colon), (with_colon.into(), Some("a:b".into())));
        assert_eq!(source("../up/x.csv"), ("../up/x.csv".into(), Some("x.csv".into())));
    }
}
