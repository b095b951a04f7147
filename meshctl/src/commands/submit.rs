//! `submit`: a job file to the mesh, and if wanted wait for what becomes of it.

use mesh_proto::{state::Named as _, v1};
use serde_json::{Value, json};

use super::{Context, jobs, keys};
use crate::{
    cli::key_value,
    client::Client,
    error::CliError,
    jobfile::{self, Overrides, Prepared, Submission},
    logs::{self, Descriptors, Request, Writer},
    output::{self, Out, json as show},
    reference::Selection,
    signals::Interrupts,
    upload, waiting, watch,
};

/// Submit a job file; prints the job's number
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Job file; - is standard input
    file: String,
    /// Wait until the job has ended; 0 when it completed, 1 otherwise
    #[arg(long)]
    wait: bool,
    /// Wait, and show the tasks' output on standard error meanwhile
    #[arg(long)]
    follow: bool,
    /// Override a parameter of the file; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = param)]
    set: Vec<(String, String)>,
    /// Name of the job instead of the file's
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// The same key and job again is the same job
    #[arg(long, value_name = "KEY", value_parser = keys::parse)]
    idempotency_key: Option<String>,
}

fn param(text: &str) -> Result<(String, String), String> {
    let (key, value) = key_value(text)?;
    if !jobfile::is_param_name(&key) {
        return Err("a parameter's name is of letters, digits, `.`, `_` and `-`".to_owned());
    }
    if value.contains('\0') {
        return Err("the value contains a NUL byte".to_owned());
    }
    Ok((key, value))
}

/// A job's name from a flag.
pub fn name(text: &str) -> Result<String, String> {
    mesh_proto::names::check_name(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

pub async fn run(context: &Context, args: Args) -> Result<u8, CliError> {
    let out = context.out;
    let prepared = jobfile::load(&args.file, &Overrides { name: args.name, set: args.set })?;
    let client = context.client()?;
    let (submitted, _) = send(&client, out, prepared, args.idempotency_key).await?;
    let waits = args.wait || args.follow;
    if !out.is_json() {
        output::line(&submitted.number.to_string())?;
    } else if !waits {
        output::print_json(&receipt(&submitted))?;
    }
    if !waits {
        return Ok(0);
    }
    let mut interrupts = Interrupts::new().map_err(|error| CliError::io("signals", error))?;
    let number = submitted.number;
    let ended = async {
        if args.follow {
            waiting::told_why(&client, number, output::note, follow(&client, out, number)).await
        } else {
            jobs::until_done(&client, out, number).await
        }
    };
    let job = tokio::select! {
        job = ended => job?,
        () = interrupts.next() => {
            return Err(CliError::Interrupted(format!(
                "; job {number} goes on (`meshctl cancel {number}` ends it)"
            )));
        }
    };
    if out.is_json() {
        output::print_json(&show::job(&job))?;
    } else if job.state() != v1::JobState::Completed {
        output::note(&outcome(&job));
    }
    Ok(jobs::exit(&[job]))
}

fn receipt(submitted: &v1::SubmitJobResponse) -> Value {
    json!({"id": submitted.number, "uuid": submitted.uuid, "existed": submitted.existed})
}

/// `job 12 FAILED: why`
pub fn outcome(job: &v1::Job) -> String {
    let reason = mesh_proto::names::escape(&job.reason);
    let colon = if reason.is_empty() { "" } else { ": " };
    format!("job {} {}{colon}{reason}", job.number, job.state().upper())
}

/// Uploads what the job needs and submits it.
pub async fn send(
    client: &Client,
    out: Out,
    prepared: Prepared,
    key: Option<String>,
) -> Result<(v1::SubmitJobResponse, v1::JobSpec), CliError> {
    let submission: Submission = prepared.into_submission()?;
    upload::submission(client, out, &submission).await?;
    let idempotency_key = keys::or_new(key);
    let request = v1::SubmitJobRequest { spec: Some(submission.spec), idempotency_key };
    let response = client
        .call(|| {
            let (mut jobs, request) = (client.jobs(), request.clone());
            async move { jobs.submit_job(request).await }
        })
        .await?;
    Ok((response, request.spec.unwrap_or_default()))
}

/// Shows the output of every task on standard error until the job has ended.
async fn follow(client: &Client, out: Out, number: u64) -> Result<v1::Job, CliError> {
    let job = watch::get(client, &number.to_string()).await?;
    let count = job.tasks.iter().map(|task| task.total).sum();
    let mut writer = Writer::new(logs::style(out, count, Descriptors::Error), Descriptors::Error);
    let request = Request {
        job: number,
        selection: Selection { count, ..Selection::default() },
        follow: true,
        patient: true,
        ..Request::default()
    };
    logs::until_done(client, request, &mut writer, |_| {}).await
}
