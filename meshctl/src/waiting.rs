//! A word to whoever waits for a job that nobody will take: one that asks for more than any node has
//! waits as quietly as one whose turn comes next.

use std::{pin::pin, time::Duration};

use mesh_proto::{names, v1};
use tokio::time::sleep;

use crate::{client::Client, watch};

/// How long a job may wait before that is looked into.
const AFTER: Duration = Duration::from_secs(3);
/// Sentences that are repeated here; `meshctl why` has them all.
const SENTENCES: usize = 3;

/// Does the work, and has `say` tell once why the job does not begin, when no node suits it.
pub async fn told_why<T>(
    client: &Client,
    number: u64,
    say: impl Fn(&str),
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    let looked = async {
        sleep(AFTER).await;
        reason(client, number).await
    };
    let found = tokio::select! {
        biased;
        done = &mut work => return done,
        found = looked => found,
    };
    if let Some(found) = found {
        say(&found);
    }
    work.await
}

/// Why no node takes it. Whoever waits has better things to report than a question that failed.
async fn reason(client: &Client, number: u64) -> Option<String> {
    let job = watch::get(client, &number.to_string()).await.ok()?;
    if job.state() != v1::JobState::Queued {
        return None;
    }
    let request = v1::ExplainTaskRequest { job: number.to_string(), ..v1::ExplainTaskRequest::default() };
    let answer = client
        .call(|| {
            let (mut jobs, request) = (client.jobs(), request.clone());
            async move { jobs.explain_task(request).await }
        })
        .await
        .ok()?;
    if answer.now?.suitable > 0 {
        return None;
    }
    let sentences: Vec<String> =
        answer.sentences.iter().take(SENTENCES).map(|sentence| names::escape(sentence)).collect();
    Some(format!("{} (`meshctl why {number}` says more; the job goes on waiting)", sentences.join(" ")))
}
