//! `fetch`: the output files of a job into a local directory.

use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mesh_proto::{names, v1};
use serde_json::json;
use tonic::Status;

use super::Context;
use crate::{
    client::{Client, Patience},
    download::{self, Outcome, Wanted},
    error::CliError,
    output::{Out, progress, time},
    reference::{Reference, Selection},
    watch,
};

/// Files on their way at once.
const PARALLEL: usize = 8;

/// Fetch the output files of a job
#[derive(Debug, clap::Args)]
pub struct Args {
    /// JOB, JOB/TASK or JOB/TASK.INDEX
    #[arg(value_name = "JOB[/TASK[.INDEX]]")]
    reference: Reference,
    /// Directory to write to [default: ./mesh-NUMBER]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

pub async fn run(context: &Context, args: &Args) -> Result<u8, CliError> {
    let client = context.client()?;
    let job = watch::get(&client, &args.reference.job).await?;
    let selection = args.reference.select(&job)?;
    let root = args.to.clone().unwrap_or_else(|| PathBuf::from(format!("mesh-{}", job.number)));
    let wanted = outputs(&client, job.number, &selection, place_of).await?;
    let fetched = fetch(&client, context.out, &root, wanted).await?;
    context.out.show(
        || {
            json!({
                "directory": root,
                "files": fetched.files,
                "written": fetched.written,
                "bytes": fetched.bytes,
            })
        },
        || {
            let kept = fetched.files - fetched.written;
            let kept = if kept > 0 { format!(", {kept} there already") } else { String::new() };
            let files = if fetched.files == 1 { "file" } else { "files" };
            format!("{} {files} in {} ({}{kept})", fetched.files, root.display(), time::bytes(fetched.bytes))
        },
    )?;
    Ok(0)
}

/// `TASK/[INDEX/]PATH`
fn place_of(task: &v1::TaskOutputs, path: &str) -> String {
    if task.array { format!("{}/{}/{path}", task.task, task.index) } else { format!("{}/{path}", task.task) }
}

/// The output files that are selected, each with the place that `place` gives it.
pub async fn outputs(
    client: &Client,
    job: u64,
    selection: &Selection,
    place: impl Fn(&v1::TaskOutputs, &str) -> String,
) -> Result<Vec<Wanted>, CliError> {
    let mut patience = Patience::short(client);
    loop {
        match list(client, job, selection, &place).await {
            Ok(wanted) => return Ok(wanted),
            Err(status) => patience.failed(status).await?,
        }
    }
}

async fn list(
    client: &Client,
    job: u64,
    selection: &Selection,
    place: &impl Fn(&v1::TaskOutputs, &str) -> String,
) -> Result<Vec<Wanted>, Status> {
    let request = v1::ListOutputsRequest { job: job.to_string(), task: selection.task.clone() };
    let mut stream = client.jobs().list_outputs(request).await?.into_inner();
    let mut wanted = Vec::new();
    while let Some(message) = stream.message().await? {
        for task in message.tasks {
            if selection.index.is_some_and(|index| index != task.index) {
                continue;
            }
            let places: Vec<String> = task.files.iter().map(|entry| place(&task, &entry.path)).collect();
            wanted.extend(task.files.into_iter().zip(places).map(|(entry, path)| Wanted { entry, path }));
        }
    }
    Ok(wanted)
}

/// How many files there are, how many of them were written now, and the bytes of all.
#[derive(Debug, Default)]
pub struct Fetched {
    pub files: u64,
    pub written: u64,
    pub bytes: u64,
}

/// Writes the files below `root`.
pub async fn fetch(client: &Client, out: Out, root: &Path, wanted: Vec<Wanted>) -> Result<Fetched, CliError> {
    for file in &wanted {
        names::check_path(&file.path).map_err(|error| {
            CliError::Corrupt(format!(
                "the mesh names an output \"{}\", which {error}",
                names::escape(&file.path)
            ))
        })?;
    }
    let bytes = wanted.iter().map(|file| file.entry.size).sum();
    let bar = progress::bytes(out, "fetching", bytes);
    let fetched = stream::iter(wanted)
        .map(|file| {
            let bar = bar.clone();
            async move {
                let outcome = download::file(client, root, &file).await?;
                bar.inc(file.entry.size);
                Ok::<_, CliError>(outcome)
            }
        })
        .buffer_unordered(PARALLEL)
        .try_fold(Fetched { bytes, ..Fetched::default() }, |mut sum, outcome| async move {
            match outcome {
                Outcome::Written => (sum.files, sum.written) = (sum.files + 1, sum.written + 1),
                Outcome::Kept => sum.files += 1,
                Outcome::Directory => {}
            }
            Ok(sum)
        })
        .await;
    bar.finish_and_clear();
    fetched
}
