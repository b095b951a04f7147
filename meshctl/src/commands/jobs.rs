//! `jobs`, `job`, `wait`, `cancel`.

use futures_util::future::try_join_all;
use mesh_proto::{
    limits,
    state::Named as _,
    v1::{self, JobState},
};
use serde_json::{Value, json};

use super::Context;
use crate::{
    client::Client,
    error::CliError,
    output::{self, Out, json as show, progress, table},
    reference::JobId,
    signals::Interrupts,
    waiting, watch,
};

/// List jobs, newest first
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only jobs in this state; can be repeated
    #[arg(long, value_parser = job_state)]
    state: Vec<JobState>,
    /// Only one's own
    #[arg(long)]
    mine: bool,
    /// At most so many
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

fn job_state(text: &str) -> Result<JobState, String> {
    JobState::parse(text).ok_or_else(names_of::<JobState>)
}

/// For a flag's error: the names that there are.
pub fn names_of<T: mesh_proto::state::Named>() -> String {
    let names: Vec<&str> = T::ALL.iter().map(|value| value.lower()).collect();
    format!("expected one of {}", names.join(", "))
}

pub async fn list(context: &Context, args: &ListArgs) -> Result<u8, CliError> {
    let client = context.client()?;
    let mut jobs = Vec::new();
    let mut after = String::new();
    loop {
        let left = args.limit - jobs.len() as u32;
        let request = v1::ListJobsRequest {
            page: Some(v1::Page { limit: left.min(limits::MAX_PAGE), after: after.clone() }),
            states: args.state.iter().map(|state| (*state).into()).collect(),
            mine: args.mine,
        };
        let page = client
            .call(|| {
                let (mut jobs, request) = (client.jobs(), request.clone());
                async move { jobs.list_jobs(request).await }
            })
            .await?;
        let empty = page.jobs.is_empty();
        jobs.extend(page.jobs);
        jobs.truncate(args.limit as usize);
        after = page.next;
        if after.is_empty() || empty || jobs.len() as u32 >= args.limit {
            break;
        }
    }
    context.out.show(|| jobs.iter().map(show::job).collect(), || table::jobs(context.out, &jobs))?;
    if !after.is_empty() && !context.out.is_json() {
        output::note(&format!("there are more than {}: --limit shows them", args.limit));
    }
    Ok(0)
}

/// Show a job
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// Number, UUID, or `last` for one's own latest
    #[arg(value_name = "JOB")]
    id: JobId,
}

pub async fn get(context: &Context, args: &GetArgs) -> Result<u8, CliError> {
    let job = watch::get(&context.client()?, &args.id.0).await?;
    context.out.show(|| show::job(&job), || table::job(context.out, &job))?;
    Ok(0)
}

/// Wait until jobs have ended; 0 when all completed, 1 otherwise
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    #[arg(value_name = "JOB", required = true)]
    ids: Vec<JobId>,
}

pub async fn wait(context: &Context, args: &WaitArgs) -> Result<u8, CliError> {
    let client = context.client()?;
    let mut interrupts = Interrupts::new().map_err(|error| CliError::io("signals", error))?;
    let waiting = async {
        // `last` and UUIDs become numbers at once: a later job shall not take their place.
        let numbers = try_join_all(args.ids.iter().map(|id| watch::get(&client, &id.0))).await?;
        let client = &client;
        // Several bars would overwrite each other.
        let bar = Out { progress: context.out.progress && numbers.len() == 1, ..context.out };
        try_join_all(numbers.iter().map(|job| async move {
            let job = until_done(client, bar, job.number).await?;
            if !context.out.is_json() {
                output::line(&format!("{} {}", job.number, job.state().upper()))?;
            }
            Ok::<_, CliError>(job)
        }))
        .await
    };
    let jobs = tokio::select! {
        jobs = waiting => jobs?,
        () = interrupts.next() => return Err(CliError::Interrupted("; the jobs go on".to_owned())),
    };
    if context.out.is_json() {
        output::print_json(&jobs.iter().map(show::job).collect::<Value>())?;
    }
    Ok(exit(&jobs))
}

/// Waits for one job with its bar.
pub async fn until_done(client: &Client, out: Out, number: u64) -> Result<v1::Job, CliError> {
    let bar = progress::tasks(out, number);
    let say = |why: &str| bar.suspend(|| output::note(why));
    let work = watch::until_done(client, number, |job| progress::show_job(&bar, job));
    let result = waiting::told_why(client, number, say, work).await;
    bar.finish_and_clear();
    result
}

/// 0 when all completed, 1 otherwise.
pub fn exit(jobs: &[v1::Job]) -> u8 {
    u8::from(jobs.iter().any(|job| job.state() != JobState::Completed))
}

/// End jobs that have not ended by themselves
#[derive(Debug, clap::Args)]
pub struct CancelArgs {
    #[arg(value_name = "JOB", required = true)]
    ids: Vec<JobId>,
    /// Why, for those who look later
    #[arg(long, default_value = "")]
    reason: String,
}

pub async fn cancel(context: &Context, args: &CancelArgs) -> Result<u8, CliError> {
    let client = context.client()?;
    let mut results = Vec::new();
    let mut worst = 0;
    for JobId(id) in &args.ids {
        match cancel_one(&client, id, &args.reason).await {
            Ok(response) => {
                let state = response.state().upper();
                if !context.out.is_json() {
                    let already = if response.already { " already" } else { "" };
                    let how = if response.state().is_terminal() { "cancelled" } else { "being cancelled" };
                    output::line(&format!("{}{already} {how}", response.number))?;
                }
                results.push(json!({"id": response.number, "state": state, "already": response.already}));
            }
            // The others are to be cancelled all the same.
            Err(error) if args.ids.len() > 1 && !matches!(error, CliError::Unreachable { .. }) => {
                context.out.error(&error);
                worst = worst.max(error.exit());
            }
            Err(error) => return Err(error),
        }
    }
    if context.out.is_json() {
        output::print_json(&Value::Array(results))?;
    }
    Ok(worst)
}

pub async fn cancel_one(client: &Client, job: &str, reason: &str) -> Result<v1::CancelJobResponse, CliError> {
    client
        .call(|| {
            let mut jobs = client.jobs();
            let request = v1::CancelJobRequest { job: job.to_owned(), reason: reason.to_owned() };
            async move { jobs.cancel_job(request).await }
        })
        .await
}
