//! References and pages.

use mesh_proto::{
    code::Code,
    ids::{JobId, JobNumber},
    limits::{DEFAULT_PAGE, MAX_PAGE},
    v1::Page,
};
use tonic::Status;

use crate::store::jobs::JobRef;

/// Rows of a page, within its bounds.
#[must_use]
pub fn limit(page: &Page) -> u32 {
    match page.limit {
        0 => DEFAULT_PAGE,
        limit => limit.min(MAX_PAGE),
    }
}

/// A job by number, UUID, or `last` for the caller's latest.
pub fn parse_job(text: &str, caller: &str) -> Result<JobRef, Status> {
    if text == "last" {
        return Ok(JobRef::Last(caller.to_owned()));
    }
    if let Ok(number) = text.parse::<u64>()
        && number > 0
        && i64::try_from(number).is_ok()
    {
        return Ok(JobRef::Number(JobNumber(number)));
    }
    text.parse::<JobId>()
        .map(JobRef::Uuid)
        .map_err(|_| Code::Invalid.status("a job is named by its number, its UUID, or `last`"))
}
