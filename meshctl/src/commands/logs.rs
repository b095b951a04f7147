//! `logs`: what tasks wrote.

use mesh_proto::v1::{self, OutputStream};

use super::Context;
use crate::{
    error::CliError,
    logs::{self, Descriptors, Request, Writer},
    reference::Reference,
    signals::Interrupts,
    watch,
};

/// Output that comes later than this after the end of its job does not come at all.
const LATE_MS: i64 = 60_000;

/// Show the output of tasks
#[derive(Debug, clap::Args)]
pub struct Args {
    /// JOB, JOB/TASK or JOB/TASK.INDEX
    #[arg(value_name = "JOB[/TASK[.INDEX]]")]
    reference: Reference,
    /// Of this attempt instead of the latest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempt: Option<u32>,
    /// Only standard output
    #[arg(long, conflicts_with = "stderr")]
    stdout: bool,
    /// Only standard error
    #[arg(long)]
    stderr: bool,
    /// Go on until the tasks have ended
    #[arg(short, long)]
    follow: bool,
}

pub async fn run(context: &Context, args: &Args) -> Result<u8, CliError> {
    let client = context.client()?;
    let job = watch::get(&client, &args.reference.job).await?;
    let selection = args.reference.select(&job)?;
    let mut writer =
        Writer::new(logs::style(context.out, selection.count, Descriptors::Own), Descriptors::Own);
    let request = Request {
        job: job.number,
        selection,
        attempt: args.attempt.unwrap_or_default(),
        follow: args.follow || may_be_coming(&job),
        patient: args.follow,
        only: match (args.stdout, args.stderr) {
            (true, _) => Some(OutputStream::Stdout),
            (_, true) => Some(OutputStream::Stderr),
            (false, false) => None,
        },
    };
    let mut interrupts = Interrupts::new().map_err(|error| CliError::io("signals", error))?;
    tokio::select! {
        result = logs::stream(&client, request, &mut writer) => result?,
        () = interrupts.next() => return Err(CliError::Interrupted(String::new())),
    }
    Ok(0)
}

/// Whether the last output may still be on its way: results never wait for it. To follow a
/// job that has ended is to read all of its output.
fn may_be_coming(job: &v1::Job) -> bool {
    let age_ms = chrono::Utc::now().timestamp_millis() - job.finished_at_ms;
    job.state().is_terminal() && age_ms < LATE_MS
}
