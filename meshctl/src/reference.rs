//! What people type to name a job or a task: `12`, `last`, `12/resize`, `12/resize.7`.

use std::str::FromStr;

use mesh_proto::{names, v1};

use crate::error::CliError;

/// A job, and perhaps one of its tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// A number, a UUID or `last`.
    pub job: String,
    /// What stands after the slash.
    pub task: Option<String>,
}

/// The tasks of a job that a reference names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Empty: every task.
    pub task: String,
    pub index: Option<u32>,
    /// How many tasks these are.
    pub count: u64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    #[error("{} is no job: expected a number, a UUID or `last`", .0.escape_debug())]
    Job(String),
    #[error("{} names no task: expected JOB/TASK or JOB/TASK.INDEX, such as 12/resize.7", .0.escape_debug())]
    Task(String),
}

/// A job: a number, a UUID or `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobId(pub String);

impl FromStr for JobId {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.parse::<u64>().is_ok_and(|number| number > 0) && !text.starts_with('+');
        if number || text == "last" || uuid::Uuid::try_parse(text).is_ok() {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReferenceError::Job(text.chars().take(80).collect()))
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (job, task) = match text.split_once('/') {
            Some((job, task)) => (job, Some(task)),
            None => (text, None),
        };
        let JobId(job) = job.parse()?;
        if let Some(task) = task
            && names::check_name(split_index(task).map_or(task, |(name, _)| name)).is_err()
            && names::check_name(task).is_err()
        {
            return Err(ReferenceError::Task(text.chars().take(80).collect()));
        }
        Ok(Self { job, task: task.map(str::to_owned) })
    }
}

/// `resize.7` as name and index, if it can be read so.
fn split_index(task: &str) -> Option<(&str, u32)> {
    let (name, index) = task.rsplit_once('.')?;
    let digits = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    if digits { Some((name, index.parse().ok()?)) } else { None }
}

impl Reference {
    /// The tasks of `job` that are meant. A name may end in a dot and digits itself, so the
    /// job has the say.
    pub fn select(&self, job: &v1::Job) -> Result<Selection, CliError> {
        let Some(text) = &self.task else {
            let count = job.tasks.iter().map(|task| task.total).sum();
            return Ok(Selection { task: String::new(), index: None, count });
        };
        let find = |name: &str| job.tasks.iter().find(|task| task.name == name);
        if let Some(task) = find(text) {
            return Ok(Selection { task: task.name.clone(), index: None, count: task.total });
        }
        let none = || {
            let names: Vec<&str> = job.tasks.iter().take(20).map(|task| task.name.as_str()).collect();
            let more = if job.tasks.len() > 20 { ", …" } else { "" };
            CliError::NotFound(format!(
                "job {} has no task `{text}`; it has {}{more}",
                job.number,
                names::escape(&names.join(", "))
            ))
        };
        let (name, index) = split_index(text).ok_or_else(none)?;
        let task = find(name).ok_or_else(none)?;
        if !task.array && index > 0 {
            return Err(CliError::NotFound(format!("task `{name}` of job {} is no array", job.number)));
        }
        if u64::from(index) >= task.total {
            return Err(CliError::NotFound(format!(
                "task `{name}` of job {} has {} elements, counted from 0",
                job.number, task.total
            )));
        }
        Ok(Selection { task: name.to_owned(), index: task.array.then_some(index), count: 1 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job() -> v1::Job {
        let task = |name: &str, total, array| v1::TaskSummary {
            name: name.to_owned(),
            total,
            array,
            ..v1::TaskSummary::default()
        };
        v1::Job {
            number: 12,
            tasks: vec![task("resize", 9, true), task("sheet", 1, false), task("v1.2", 1, false)],
            ..v1::Job::default()
        }
    }

    fn select(text: &str) -> Result<(String, Option<u32>, u64), String> {
        let selection = text.parse::<Reference>().unwrap().select(&job());
        selection.map(|s| (s.task, s.index, s.count)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_reference_names_what_it_says() {
        assert_eq!(select("12"), Ok((String::new(), None, 11)));
        assert_eq!(select("last/resize"), Ok(("resize".into(), None, 9)));
        assert_eq!(select("12/resize.8"), Ok(("resize".into(), Some(8), 1)));
        assert_eq!(select("12/sheet"), Ok(("sheet".into(), None, 1)));
        assert_eq!(select("12/v1.2"), Ok(("v1.2".into(), None, 1)));
    }

    #[test]
    fn what_is_not_there_is_said() {
        assert_eq!(
            select("12/resize.9").unwrap_err(),
            "task `resize` of job 12 has 9 elements, counted from 0"
        );
        assert_eq!(select("12/sheet.1").unwrap_err(), "task `sheet` of job 12 is no array");
        assert_eq!(select("12/nope").unwrap_err(), "job 12 has no task `nope`; it has resize, sheet, v1.2");
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in
            ["", "0", "-1", "+1", "1.5", "first", "12/", "12/A", "12/a/b", "12/-x", "/a", "last/.x", "1 2"]
        {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was taken for a reference");
        }
        assert!("01890a5d-ac96-774b-bcce-b302099a8057/x".parse::<Reference>().is_ok());
    }

    proptest! {
        #[test]
        fn nothing_typed_makes_it_panic(text in "\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let _ = reference.select(&job());
            }
        }

        #[test]
        fn a_task_reads_as_it_is_shown(number in 1_u64.., index in 0_u32..9) {
            let reference: Reference = format!("{number}/resize.{index}").parse().unwrap();
            prop_assert_eq!(&reference.job, &number.to_string());
            prop_assert_eq!(reference.select(&job()).unwrap().index, Some(index));
        }
    }
}
