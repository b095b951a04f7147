//! A submitted job, seen through `meshctl`.

use std::{ffi::OsStr, path::PathBuf};

use serde_json::Value;

use crate::{
    Mesh,
    wait::{self, secs},
};

/// A submitted job.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    mesh: &'a Mesh,
    pub number: u64,
}

impl<'a> Job<'a> {
    pub(crate) fn new(mesh: &'a Mesh, number: u64) -> Self {
        Self { mesh, number }
    }
}

impl Job<'_> {
    /// The number as people type it.
    pub fn id(&self) -> String {
        self.number.to_string()
    }

    /// `meshctl job` as JSON.
    #[track_caller]
    pub fn get(&self) -> Value {
        self.mesh.json(&["job", &self.id()])
    }

    #[track_caller]
    pub fn state(&self) -> String {
        self.get()["state"].as_str().expect("a job has a state").to_owned()
    }

    /// Every task, over all pages.
    #[track_caller]
    pub fn tasks(&self) -> Vec<Value> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let id = self.id();
            let mut args = vec!["tasks", &id, "--limit", "500"];
            if let Some(after) = &after {
                args.extend(["--after", after]);
            }
            let mut page = self.mesh.json(&args);
            all.append(page["items"].as_array_mut().expect("a page has items"));
            match page["next"].as_str() {
                Some(next) if !next.is_empty() => after = Some(next.to_owned()),
                _ => return all,
            }
        }
    }

    /// One task: `name`, or `name.index` of an array.
    #[track_caller]
    pub fn task(&self, name: &str) -> Value {
        let wanted = format!("{}/{name}", self.number);
        let found = self.tasks().into_iter().find(|task| task["ref"] == *wanted);
        found.unwrap_or_else(|| panic!("job {} has no task {name}", self.number))
    }

    /// Waits until the job is in this state.
    #[track_caller]
    pub fn becomes(&self, state: &str) -> Value {
        let what = format!("job {} becomes {state}", self.number);
        let last = wait::within(secs(60), || Some(self.get()).filter(|job| job["state"] == state));
        last.unwrap_or_else(|| panic!("not within a minute: {what}; it is {:#}", self.get()))
    }

    /// Waits until a task is in this state.
    #[track_caller]
    pub fn task_becomes(&self, name: &str, state: &str) -> Value {
        let last = wait::within(secs(60), || Some(self.task(name)).filter(|task| task["state"] == state));
        last.unwrap_or_else(|| {
            panic!("not within a minute: {name} becomes {state}; it is {:#}", self.task(name))
        })
    }

    /// Waits for the end and asserts that all went well.
    #[track_caller]
    pub fn completes(&self) -> Value {
        let out = self.mesh.meshctl(&["wait", &self.id()]);
        let job = self.get();
        assert_eq!(out.code, 0, "{out}\n{job:#}\n{:#?}", self.tasks());
        assert_eq!(job["state"], "COMPLETED", "{job:#}");
        job
    }

    /// The log of one task, raw.
    #[track_caller]
    pub fn log(&self, task: &str) -> String {
        self.mesh.meshctl(&["logs", &format!("{}/{task}", self.number)]).ok().stdout
    }

    /// Fetches the outputs into a new directory.
    #[track_caller]
    pub fn fetch(&self) -> PathBuf {
        let to = self.mesh.path(&format!("fetched-{}", self.number));
        self.mesh
            .meshctl(&[OsStr::new("fetch"), OsStr::new(&self.id()), OsStr::new("--to"), to.as_os_str()])
            .ok();
        to
    }
}
