//! `dead` and `redrive`: tasks that used up their attempts, and another try for them.

use std::collections::BTreeMap;

use mesh_proto::{limits, names::escape, state::Named as _, v1};
use serde_json::{Value, json};

use super::{Context, keys};
use crate::{
    client::Client,
    error::CliError,
    output::{self, json as show, table},
    reference::Reference,
    watch,
};

/// List dead letters: tasks that failed and used up their attempts
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// JOB, JOB/TASK or JOB/TASK.INDEX; every job unless named
    #[arg(value_name = "JOB[/TASK[.INDEX]]")]
    reference: Option<Reference>,
    /// At most so many
    #[arg(long, default_value_t = limits::DEFAULT_PAGE, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Go on after this cursor: the `next` of the page before
    #[arg(long, value_name = "CURSOR", default_value = "")]
    after: String,
}

pub async fn list(context: &Context, args: &ListArgs) -> Result<u8, CliError> {
    let client = context.client()?;
    let mut request = v1::ListDeadRequest::default();
    if let Some(reference) = &args.reference {
        request.job.clone_from(&reference.job);
        if reference.task.is_some() {
            let job = watch::get(&client, &reference.job).await?;
            let selection = reference.select(&job)?;
            (request.job, request.task, request.index) =
                (job.number.to_string(), selection.task, selection.index);
        }
    }
    let found = pages(&client, request, args.limit, args.after.clone()).await?;
    context.out.show(|| show::dead(&found), || table::dead(context.out, &found.dead))?;
    if !found.next.is_empty() && !context.out.is_json() {
        output::note(&format!("there are more: --after {}", escape(&found.next)));
    }
    Ok(0)
}

/// Up to `limit` dead letters, over as many pages as that takes.
async fn pages(
    client: &Client,
    request: v1::ListDeadRequest,
    limit: u32,
    after: String,
) -> Result<v1::ListDeadResponse, CliError> {
    let mut found = v1::ListDeadResponse { dead: Vec::new(), next: after };
    loop {
        let left = limit - found.dead.len() as u32;
        let page = v1::Page { limit: left.min(limits::MAX_PAGE), after: found.next.clone() };
        let request = v1::ListDeadRequest { page: Some(page), ..request.clone() };
        let page = client
            .call(|| {
                let (mut jobs, request) = (client.jobs(), request.clone());
                async move { jobs.list_dead(request).await }
            })
            .await?;
        let empty = page.dead.is_empty();
        found.dead.extend(page.dead);
        found.next = page.next;
        if found.next.is_empty() || empty || found.dead.len() as u32 >= limit {
            return Ok(found);
        }
    }
}

/// Give dead letters a new series of attempts
#[derive(Debug, clap::Args)]
pub struct RedriveArgs {
    /// JOB: all of its dead letters; JOB/TASK: those of the task; JOB/TASK.INDEX: that one
    #[arg(value_name = "JOB[/TASK[.INDEX]]", required = true)]
    references: Vec<Reference>,
    /// The same key and tasks again are the same redrive
    #[arg(long, value_name = "KEY", value_parser = keys::parse)]
    idempotency_key: Option<String>,
}

pub async fn redrive(context: &Context, args: &RedriveArgs) -> Result<u8, CliError> {
    let client = context.client()?;
    let mut results = Vec::new();
    let mut worst = 0;
    let requests = by_job(&client, args).await?;
    let several = requests.len() > 1;
    for request in requests {
        match redrive_one(&client, request).await {
            Ok(response) => {
                let v1::RedriveResponse { number, redriven, resumed, existed, .. } = response;
                if !context.out.is_json() {
                    let more =
                        if resumed > 0 { format!(", {resumed} come back with them") } else { String::new() };
                    output::line(&format!("{number} {redriven} redriven{more}"))?;
                }
                let state = response.state().upper();
                results.push(json!({
                    "id": number,
                    "state": state,
                    "redriven": redriven,
                    "resumed": resumed,
                    "existed": existed,
                }));
            }
            // The others are to be tried all the same.
            Err(error) if several && !matches!(error, CliError::Unreachable { .. }) => {
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

/// One request for each job, so that all that is named of it comes back at once.
async fn by_job(client: &Client, args: &RedriveArgs) -> Result<Vec<v1::RedriveRequest>, CliError> {
    let idempotency_key = keys::or_new(args.idempotency_key.clone());
    let mut requests: BTreeMap<u64, v1::RedriveRequest> = BTreeMap::new();
    for reference in &args.references {
        let job = watch::get(client, &reference.job).await?;
        let selection = reference.select(&job)?;
        let known = requests.contains_key(&job.number);
        let request = requests.entry(job.number).or_insert_with(|| v1::RedriveRequest {
            job: job.number.to_string(),
            targets: Vec::new(),
            idempotency_key: idempotency_key.clone(),
        });
        if reference.task.is_none() {
            request.targets.clear();
        } else if !known || !request.targets.is_empty() {
            request.targets.push(v1::RedriveTarget { task: selection.task, index: selection.index });
        }
    }
    Ok(requests.into_values().collect())
}

async fn redrive_one(client: &Client, request: v1::RedriveRequest) -> Result<v1::RedriveResponse, CliError> {
    client
        .call(|| {
            let (mut jobs, request) = (client.jobs(), request.clone());
            async move { jobs.redrive(request).await }
        })
        .await
}
