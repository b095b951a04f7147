//! What a job needs is brought to the mesh first: ask which blobs it has, send the others.

use std::{
    collections::HashSet,
    io::Read as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use mesh_proto::{digest::Digest, limits, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    client::Client,
    error::CliError,
    jobfile::Submission,
    output::{Out, progress},
};

/// Digests in one question.
const STAT_BATCH: usize = 1000;
/// Blobs on their way at once, and chunks of each read ahead.
const PARALLEL: usize = 16;
const READ_AHEAD: usize = 4;

/// One thing to send.
#[derive(Clone, Debug)]
pub enum Content {
    File(PathBuf),
    Bytes(Bytes),
}

#[derive(Clone, Debug)]
pub struct Upload {
    pub digest: Digest,
    pub size: u64,
    pub content: Content,
}

/// Brings everything to the mesh that the submission names.
pub async fn submission(client: &Client, out: Out, submission: &Submission) -> Result<(), CliError> {
    let files = submission.files.iter().map(|file| Upload {
        digest: file.digest,
        size: file.size,
        content: Content::File(file.path.clone()),
    });
    let lists = submission.lists.iter().map(|(digest, bytes)| Upload {
        digest: *digest,
        size: bytes.len() as u64,
        content: Content::Bytes(bytes.clone()),
    });
    all(client, out, files.chain(lists).collect()).await
}

/// Sends what the mesh does not have.
pub async fn all(client: &Client, out: Out, mut uploads: Vec<Upload>) -> Result<(), CliError> {
    let mut seen = HashSet::new();
    uploads.retain(|upload| seen.insert(upload.digest));
    if uploads.is_empty() {
        return Ok(());
    }
    let digests: Vec<Digest> = uploads.iter().map(|upload| upload.digest).collect();
    let present: HashSet<Digest> =
        stat(client, &digests).await?.into_iter().map(|(digest, _)| digest).collect();
    uploads.retain(|upload| !present.contains(&upload.digest));
    let bar = progress::bytes(out, "sending", uploads.iter().map(|upload| upload.size).sum());
    let result = stream::iter(uploads)
        .map(|upload| put(client, upload, bar.clone()))
        .buffer_unordered(PARALLEL)
        .try_for_each(|_| async { Ok(()) })
        .await;
    bar.finish_and_clear();
    result
}

/// Those of the digests that the mesh has, with their sizes.
pub async fn stat(client: &Client, digests: &[Digest]) -> Result<Vec<(Digest, u64)>, CliError> {
    let mut found = Vec::new();
    for batch in digests.chunks(STAT_BATCH) {
        let response = client
            .call(|| {
                let mut blobs = client.blobs();
                let digests = batch.iter().map(|digest| digest.to_vec()).collect();
                async move { blobs.stat(v1::StatBlobsRequest { digests }).await }
            })
            .await?;
        for blob in response.blobs {
            let digest = Digest::try_from(blob.digest.as_slice())
                .map_err(|_| CliError::Corrupt("the coordinator named a blob by no digest".to_owned()))?;
            found.push((digest, blob.size));
        }
    }
    Ok(found)
}

/// Sends one blob; tells whether it was there already.
pub async fn put(client: &Client, upload: Upload, bar: ProgressBar) -> Result<bool, CliError> {
    let before = bar.position();
    let what = match &upload.content {
        Content::File(path) => path.display().to_string(),
        Content::Bytes(_) => "the list of items".to_owned(),
    };
    // A big blob takes as long as it takes: no deadline, but tries like any other call.
    let mut patience = crate::client::Patience::short(client);
    loop {
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        let feeder = {
            let (upload, bar) = (upload.clone(), bar.clone());
            tokio::task::spawn_blocking(move || feed(&upload, &sender, &bar))
        };
        let answer = client.blobs().put(ReceiverStream::new(receiver)).await;
        let fed = feeder
            .await
            .map_err(|error| CliError::Corrupt(format!("{what} was not read to its end: {error}")))?;
        match (answer, fed) {
            (_, Err(error)) => return Err(error),
            (Ok(response), Ok(())) => return Ok(response.into_inner().existed),
            (Err(status), Ok(())) => patience.failed(status).await.map_err(|error| match error {
                CliError::Answer { code, message } => {
                    CliError::Answer { code, message: format!("{what}: {message}") }
                }
                other => other,
            })?,
        }
        bar.set_position(before);
    }
}

/// Puts the messages of one upload into the channel; ends early when nobody takes them.
fn feed(
    upload: &Upload,
    sender: &mpsc::Sender<v1::PutBlobRequest>,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    let mut first = true;
    let mut send = |data: Bytes| {
        let mut message = v1::PutBlobRequest { data, ..v1::PutBlobRequest::default() };
        if std::mem::take(&mut first) {
            message.digest = upload.digest.to_vec();
            message.size = upload.size;
        }
        bar.inc(message.data.len() as u64);
        sender.blocking_send(message).is_ok()
    };
    if upload.size == 0 {
        send(Bytes::new());
        return Ok(());
    }
    match &upload.content {
        Content::Bytes(bytes) => {
            let mut rest = bytes.clone();
            while !rest.is_empty() && send(rest.split_to(rest.len().min(limits::MAX_CHUNK))) {}
            Ok(())
        }
        Content::File(path) => feed_file(path, upload.size, &mut send),
    }
}

fn feed_file(path: &Path, size: u64, send: &mut impl FnMut(Bytes) -> bool) -> Result<(), CliError> {
    let failed = |error| CliError::io(path.display(), error);
    let mut file = std::fs::File::open(path).map_err(failed)?.take(size);
    let mut left = size;
    while left > 0 {
        let mut chunk = vec![0; left.min(limits::MAX_CHUNK as u64) as usize];
        file.read_exact(&mut chunk).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                CliError::Usage(format!("{} became shorter while it was sent", path.display()))
            }
            _ => failed(error),
        })?;
        left -= chunk.len() as u64;
        if !send(chunk.into()) {
            break;
        }
    }
    Ok(())
}
