//! Records of placement decisions, and the attempts that they sent out.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use mesh_proto::{
    ids::TaskKey,
    v1::{CandidateNode, Cause, Coefficients, Placement, RejectionCount},
};
use prost::Message as _;

use super::{
    Store, StoreError,
    clock::stamp,
    names::{confined, optional},
};
use crate::engine::{
    placement::{self, Decision},
    types::Confined,
};

/// Bytes of a node's name that a record keeps.
const NAME: usize = 24;
/// Bytes of a record at the most.
const MAX: usize = 512;

/// One attempt at a task, for explanations.
#[derive(Clone, Debug)]
pub struct AttemptHistory {
    pub number: u32,
    /// The node's name.
    pub node: Option<String>,
    pub cause: Option<Cause>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub message: String,
    pub assigned_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub sandbox: Confined,
    pub decision: Option<Placement>,
}

/// Records as columns.
pub(super) struct Columns {
    pub id: Vec<i64>,
    pub at: Vec<DateTime<Utc>>,
    pub data: Vec<Vec<u8>>,
}

impl Columns {
    pub fn of(decisions: &[Arc<Decision>]) -> Self {
        Self {
            id: decisions.iter().map(|decision| decision.id as i64).collect(),
            at: decisions.iter().map(|decision| stamp(decision.at)).collect(),
            data: decisions.iter().map(|decision| encode(decision)).collect(),
        }
    }
}

/// A candidate on the wire.
#[must_use]
pub fn candidate(candidate: &placement::Candidate) -> CandidateNode {
    CandidateNode {
        name: candidate.name.clone(),
        score: candidate.score as f32,
        rtt: candidate.terms.rtt as f32,
        load: candidate.terms.load as f32,
        queue: candidate.terms.queue as f32,
        unreliability: candidate.terms.unreliability as f32,
        busy: candidate.busy.clone().unwrap_or_default(),
    }
}

/// Coefficients on the wire.
#[must_use]
pub fn coefficients(by: &placement::Coefficients) -> Coefficients {
    Coefficients {
        alpha: by.alpha as f32,
        beta: by.beta as f32,
        gamma: by.gamma as f32,
        delta: by.delta as f32,
        version: by.version,
    }
}

/// A record, within its bound whatever the nodes are called.
fn encode(decision: &Decision) -> Vec<u8> {
    let mut record = Placement {
        nodes: decision.nodes,
        suitable: decision.suitable,
        with_room: decision.with_room,
        rejections: decision
            .rejected
            .iter()
            .map(|(reason, count)| RejectionCount {
                reason: (*reason).to_owned(),
                count: *count,
                sentence: String::new(),
            })
            .collect(),
        best: decision
            .best
            .iter()
            .map(|best| {
                let mut best = candidate(best);
                best.name.truncate(NAME);
                best
            })
            .collect(),
        coefficients: Some(coefficients(&decision.coefficients)),
        ..Placement::default()
    };
    while record.encoded_len() > MAX && record.best.pop().is_some() {}
    record.encode_to_vec()
}

impl Store {
    /// A task's attempts, oldest first, the latest hundred.
    pub async fn history(&self, task: TaskKey) -> Result<Vec<AttemptHistory>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT a.number, n.name AS "node?", a.cause::text AS cause, a.exit_code, a.signal, a.message,
                a.assigned_at, a.started_at, a.ended_at, a.sandbox, a.limits, d.data AS "data?", d.at AS "decided_at?"
               FROM attempts a
               LEFT JOIN nodes n ON n.id = a.node
               LEFT JOIN decisions d ON d.id = a.decision
               WHERE a.job = $1 AND a.task = $2 AND a.index = $3
               ORDER BY a.number DESC LIMIT 100"#,
            task.job.0 as i64,
            task.task as i32,
            task.index as i32,
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .rev()
            .map(|row| {
                let decision = match row.data {
                    Some(data) => {
                        let record =
                            Placement::decode(&data[..]).map_err(|_| StoreError::Corrupt("decision"))?;
                        Some(Placement {
                            at_ms: row.decided_at.map_or(0, |at| at.timestamp_millis()),
                            ..record
                        })
                    }
                    None => None,
                };
                Ok(AttemptHistory {
                    number: row.number as u32,
                    node: row.node,
                    cause: optional(row.cause.as_deref(), "cause")?,
                    exit_code: row.exit_code,
                    signal: row.signal,
                    message: row.message.unwrap_or_default(),
                    assigned_at: row.assigned_at,
                    started_at: row.started_at,
                    ended_at: row.ended_at,
                    sandbox: confined(row.sandbox, row.limits).unwrap_or_default(),
                    decision,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{placement::Terms, types::Time};

    #[test]
    fn a_record_fits_whatever_the_nodes_are_called() {
        let best = placement::Candidate {
            name: "n".repeat(64),
            terms: Terms { rtt: 0.5, load: 0.25, queue: 0.125, unreliability: 0.1 },
            score: 1.5,
            busy: None,
        };
        let reasons = ["away", "name", "os", "arch", "tag", "capability", "sandbox", "limits", "size"];
        let decision = Decision {
            id: u64::MAX / 2,
            at: Time(1),
            nodes: 10_000,
            suitable: 10_000,
            with_room: 10_000,
            rejected: reasons.map(|reason| (reason, 10_000)).to_vec(),
            best: vec![best; placement::BEST],
            coefficients: placement::Coefficients::default(),
        };
        let record = encode(&decision);
        assert!(record.len() <= MAX, "{} bytes", record.len());
        assert_eq!(Placement::decode(&record[..]).unwrap().best.len(), placement::BEST);
    }
}
