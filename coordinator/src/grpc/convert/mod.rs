//! Domain values and wire messages, each way once.

mod job;
mod node;
mod page;
mod register;

pub use job::{apply, counts, job, task_counts};
pub use node::{node_info, status_counts};
pub use page::{limit, parse_job};
pub use register::{end, level, registration};

use chrono::{DateTime, Utc};
use mesh_proto::code::Code;
use tonic::Status;

use crate::{commit::CoreError, store::StoreError};

/// Milliseconds of a stamp; 0 stands for never.
#[must_use]
pub fn millis(stamp: Option<DateTime<Utc>>) -> i64 {
    stamp.map_or(0, |stamp| stamp.timestamp_millis())
}

/// What a caller is told of a failed read: that it can be tried again, not what went wrong.
impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Rows(_) => Code::Invalid.status("the database refused a value of this request"),
            StoreError::Fenced => Code::Unavailable.status("another coordinator leads this mesh"),
            StoreError::Conflict(_) | StoreError::Corrupt(_) | StoreError::Migrate(_) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a read failed");
                Code::Internal.status("the coordinator could not read what it stored")
            }
            StoreError::Full(_) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the database failed");
                CoreError::Full.into()
            }
            StoreError::Silent | StoreError::Database(_) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the database failed");
                Code::Unavailable.status("the database does not answer; try again in a moment")
            }
        }
    }
}
