//! `logs`: what tasks wrote.

use mesh_proto::v1::OutputStream;

use super::Context;
use crate::{
    error::CliError,
    logs::{self, Descriptors, Request, Writer},
    reference::Reference,
    signals::Interrupts,
    watch,
};

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
        follow: args.follow,
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
