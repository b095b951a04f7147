//! `tasks`: the tasks of a job, page by page.

use mesh_proto::{
    limits,
    state::Named as _,
    v1::{self, TaskState},
};

use super::{Context, jobs::names_of};
use crate::{
    client::Client,
    error::CliError,
    output::{self, json, table},
    reference::Reference,
    watch,
};

/// List the tasks of a job
#[derive(Debug, clap::Args)]
pub struct Args {
    /// JOB, JOB/TASK or JOB/TASK.INDEX
    #[arg(value_name = "JOB[/TASK[.INDEX]]")]
    reference: Reference,
    /// Only tasks in this state; can be repeated
    #[arg(long, value_parser = task_state)]
    state: Vec<TaskState>,
    /// At most so many
    #[arg(long, default_value_t = limits::DEFAULT_PAGE, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Go on after this cursor: the `next` of the page before
    #[arg(long, value_name = "CURSOR", default_value = "")]
    after: String,
}

fn task_state(text: &str) -> Result<TaskState, String> {
    TaskState::parse(text).ok_or_else(names_of::<TaskState>)
}

pub async fn run(context: &Context, args: &Args) -> Result<u8, CliError> {
    let client = context.client()?;
    let mut request = v1::ListTasksRequest {
        job: args.reference.job.clone(),
        page: None,
        states: args.state.iter().map(|state| (*state).into()).collect(),
        task: String::new(),
        index: None,
    };
    if args.reference.task.is_some() {
        let job = watch::get(&client, &args.reference.job).await?;
        let selection = args.reference.select(&job)?;
        request.job = job.number.to_string();
        request.task = selection.task;
        request.index = selection.index;
    }
    let found = list(&client, request, args.limit, args.after.clone()).await?;
    context.out.show(|| json::tasks(&found), || table::tasks(context.out, &found.tasks))?;
    if !found.next.is_empty() && !context.out.is_json() {
        output::note(&format!("there are more: --after {}", mesh_proto::names::escape(&found.next)));
    }
    Ok(0)
}

/// Up to `limit` tasks, over as many pages as that takes.
pub async fn list(
    client: &Client,
    request: v1::ListTasksRequest,
    limit: u32,
    after: String,
) -> Result<v1::ListTasksResponse, CliError> {
    let mut found = v1::ListTasksResponse { tasks: Vec::new(), next: after };
    loop {
        let left = limit - found.tasks.len() as u32;
        let page = v1::Page { limit: left.min(limits::MAX_PAGE), after: found.next.clone() };
        let request = v1::ListTasksRequest { page: Some(page), ..request.clone() };
        let page = client
            .call(|| {
                let (mut jobs, request) = (client.jobs(), request.clone());
                async move { jobs.list_tasks(request).await }
            })
            .await?;
        let empty = page.tasks.is_empty();
        found.tasks.extend(page.tasks);
        found.next = page.next;
        if found.next.is_empty() || empty || found.tasks.len() as u32 >= limit {
            return Ok(found);
        }
    }
}
