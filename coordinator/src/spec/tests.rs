//! What is refused and where it is said to be wrong; what the engine and the agents are told.

use std::{collections::HashMap, sync::Arc, time::Instant};

use mesh_proto::{
    digest::Digest,
    ids::{AttemptKey, JobNumber, TaskKey},
    limits::INLINE_INPUTS,
    v1::{
        self, ArraySpec, BlobRef, Cause, FileEntry, FileList, InputTemplate, Item, ItemList, JobSpec,
        OnDisconnect, SandboxLevel, TaskSpec, array_spec,
    },
};

use super::{Limits, Plan, PlannedTask, assignment, check, complete, count, definitions, input_path};
use crate::testing::{array, job, needing, task};

fn refusal(job: &JobSpec) -> String {
    check(job, &Limits::default()).expect_err("it should be refused").to_string()
}

/// A job of one task, changed so.
fn changed(change: impl FnOnce(&mut TaskSpec)) -> JobSpec {
    let mut one = task("one");
    change(&mut one);
    job(vec![one])
}

fn range(first: i64, last: i64, step: i64) -> ArraySpec {
    ArraySpec { kind: Some(array_spec::Kind::Range(v1::Range { first, last, step })) }
}

fn items(items: Vec<Item>) -> ArraySpec {
    ArraySpec { kind: Some(array_spec::Kind::Items(ItemList { items })) }
}

fn item(value: &str) -> Item {
    Item { value: value.to_owned(), file: None }
}

fn file(path: &str) -> FileEntry {
    FileEntry { path: path.to_owned(), digest: Digest::of(b"x").to_vec(), ..FileEntry::default() }
}

fn mount(name: &str, to: &str) -> v1::Mount {
    v1::Mount { name: name.to_owned(), to: to.to_owned(), read_only: false }
}

fn wanting(wanted: v1::Where) -> JobSpec {
    changed(|task| task.r#where = Some(wanted))
}

#[test]
fn a_good_job_is_taken() {
    let tasks = vec![
        array("resize", 3),
        needing(array("check", 3), &[("resize", true)]),
        needing(task("sheet"), &[("check", false), ("resize", false)]),
    ];
    check(&job(tasks), &Limits::default()).unwrap();
}

#[test]
fn a_bad_job_is_refused_with_its_place() {
    let named = |name: &str| JobSpec { name: name.to_owned(), ..job(vec![task("one")]) };
    let twice = job(vec![task("one"), task("one")]);
    let params = |key: &str, value: &str| JobSpec {
        params: [(key.to_owned(), value.to_owned())].into(),
        ..job(vec![task("one")])
    };
    let traced = |text: &str| JobSpec { traceparent: text.to_owned(), ..job(vec![task("one")]) };
    for (job, expected) in [
        (named(""), "name is empty"),
        (named("A"), "name contains 'A'; allowed are a-z, 0-9, `.`, `_` and `-`"),
        (JobSpec { priority: 10, ..job(vec![task("one")]) }, "priority is not within 0 to 9"),
        (job(Vec::new()), "tasks is empty; a job has at least one task"),
        (twice, r#"task "one": name is used twice"#),
        (params("k", "nul\0"), "params contain a NUL byte"),
        (params("k", &"x".repeat(200_000)), "params are 200001 bytes, at most 131072 are allowed"),
        (traced("a b"), "traceparent is none"),
        (traced("nul\0"), "traceparent is none"),
        (traced(&"0".repeat(129)), "traceparent is none"),
    ] {
        assert_eq!(refusal(&job), expected);
    }
}

#[test]
fn a_bad_task_is_refused_with_its_place() {
    type Change = fn(&mut TaskSpec);
    let cases: &[(Change, &str)] = &[
        (|t| t.name = "-x".into(), "name begins with '-'"),
        (|t| t.command.clear(), "command is missing, and so is script; one of them is needed"),
        (|t| t.script = "true".into(), "command stands beside script; only one of them is allowed"),
        (|t| t.command = vec![String::new()], "command begins with an empty word"),
        (
            |t| t.command = vec!["x".repeat(200_000)],
            "command and env are 200001 bytes, at most 131072 are allowed",
        ),
        (|t| t.command.push("a\0".into()), "command or env or script contains a NUL byte"),
        (|t| t.env = [("A".into(), "\0".into())].into(), "command or env or script contains a NUL byte"),
        (|t| t.env = [("A=B".into(), String::new())].into(), "env has a name that is empty or contains `=`"),
        (|t| t.env = [(String::new(), "x".into())].into(), "env has a name that is empty or contains `=`"),
        (|t| t.command.push("{item}".into()), "command {item} is used, but the task is no array"),
        (
            |t| t.command.push("{params.k}".into()),
            "command {params.k} is used, but there is no such parameter",
        ),
        (|t| t.outputs.push("{index}".into()), "outputs {index} is used, but the task is no array"),
        (|t| t.array = Some(ArraySpec::default()), "array is of no kind"),
        (|t| t.array = Some(range(1, 0, 1)), "array.range is empty or has a step below 1"),
        (|t| t.array = Some(range(0, 5, 0)), "array.range is empty or has a step below 1"),
        (|t| t.array = Some(range(0, 5, -1)), "array.range is empty or has a step below 1"),
        (|t| t.array = Some(items(Vec::new())), "array is empty"),
        (|t| t.array = Some(items(vec![item("a"), item("nul\0")])), "array has an item with a NUL byte"),
        (
            |t| t.array = Some(items(vec![Item { value: "a".into(), file: Some(file("/a")) }])),
            r#"array.files path "/a" is absolute; a path relative to the work directory is expected"#,
        ),
        (|t| t.inputs.push(file("../up")), r#"inputs path "../up" contains the part "..""#),
        (
            |t| t.inputs.push(file("inputs/resize/x")),
            "inputs uses inputs/, which is kept for the outputs of needed tasks",
        ),
        (
            |t| t.inputs.push(FileEntry { path: "a".into(), ..FileEntry::default() }),
            r#"inputs path "a" has no SHA-256 digest"#,
        ),
        (
            |t| t.input_templates.push(InputTemplate { elements: vec![FileList::default(); 2] }),
            "inputs do not have one list per array element",
        ),
        (|t| t.outputs.push("a//b".into()), r#"outputs path "a//b" contains the part """#),
        (
            |t| t.mounts.push(mount("data", "/data")),
            "mounts need sandbox: strict, the only level with a file tree of its own",
        ),
        (
            |t| {
                t.set_sandbox(SandboxLevel::Strict);
                t.mounts.push(mount("data", "/etc"));
            },
            r#"mounts to "/etc" lies in a directory that every task has; /data or /mnt/data would do"#,
        ),
        (
            |t| {
                t.set_sandbox(SandboxLevel::Strict);
                t.mounts = vec![mount("a", "/data"), mount("b", "/data/b")];
            },
            r#"mounts to "/data/b" lies in another mount, or another one in it"#,
        ),
        (|t| t.resources = Some(v1::Resources::default()), "resources.cpu must be at least 0.001"),
        (|t| t.resources.as_mut().unwrap().disk_bytes = 1, "resources.disk comes with a later version"),
        (
            |t| t.resources.as_mut().unwrap().named = [("gpu".into(), 1)].into(),
            "resources.gpu comes with a later version",
        ),
        (
            |t| t.resources.as_mut().unwrap().named = [("a b".into(), 1)].into(),
            r#"resources "a b" contains ' '; allowed are a-z, 0-9, `.`, `_` and `-`"#,
        ),
    ];
    for (change, expected) in cases {
        let job = changed(change);
        assert_eq!(refusal(&job), format!("task {:?}: {expected}", job.tasks[0].name));
    }
}

#[test]
fn a_bad_where_is_refused_with_its_place() {
    let word = |text: &str| text.to_owned();
    for (wanted, expected) in [
        (
            v1::Where { tags: [(word("A"), word("x"))].into(), ..v1::Where::default() },
            "where \"A\" contains 'A'",
        ),
        (v1::Where { capabilities: vec![word("")], ..v1::Where::default() }, "where \"\" is empty"),
        (
            v1::Where { node: word("a\u{1b}[2J"), ..v1::Where::default() },
            "where.node \"a\\u{1b}[2J\" contains",
        ),
        (v1::Where { os: word("Linux"), ..v1::Where::default() }, "where.os \"Linux\" contains 'L'"),
        (v1::Where { limits: word("rlimit"), ..v1::Where::default() }, "where.limits knows only `cgroup`"),
    ] {
        let said = refusal(&wanting(wanted));
        assert!(said.starts_with(&format!("task \"one\": {expected}")), "{said}");
    }
}

#[test]
fn bad_needs_are_refused_with_their_place() {
    let ring = vec![
        needing(task("a"), &[("c", false)]),
        needing(task("b"), &[("a", false)]),
        needing(task("c"), &[("b", false)]),
        needing(task("after"), &[("a", false)]),
        task("free"),
    ];
    let cases = [
        (vec![needing(task("a"), &[("b", false)])], r#"task "a": needs names "b", which is no task"#),
        (
            vec![task("a"), needing(task("b"), &[("a", false), ("a", false)])],
            r#"task "b": needs names "a" twice"#,
        ),
        (vec![needing(task("a"), &[("a", false)])], r#"task "a": needs lead back to the task itself"#),
        (
            vec![array("a", 2), needing(array("b", 3), &[("a", true)])],
            r#"task "b": needs names "a" with same_index, but the two are not arrays of one length"#,
        ),
        (
            vec![task("a"), needing(task("b"), &[("a", true)])],
            r#"task "b": needs names "a" with same_index, but the two are not arrays of one length"#,
        ),
    ];
    for (tasks, expected) in cases {
        assert_eq!(refusal(&job(tasks)), expected);
    }
    let said = refusal(&job(ring));
    let of = ["a", "b", "c"].map(|name| format!("task {name:?}: needs lead back to the task itself"));
    assert!(of.contains(&said), "a task of the ring is named, not one behind it: {said}");
}

#[test]
fn limits_hold() {
    let few = Limits { max_tasks: 10, max_entries: 3, max_argv_env: 100 };
    let said = |job: &JobSpec| check(job, &few).unwrap_err().to_string();
    assert_eq!(said(&job(vec![array("a", 6), array("b", 5)])), "tasks are 11, at most 10 are allowed");
    let four = ["a", "b", "c", "d"].map(task).to_vec();
    assert_eq!(said(&job(four)), "tasks has 4 entries, at most 3 are allowed");
    let wide = changed(|task| task.outputs = vec!["x".to_owned(); 4]);
    assert_eq!(said(&wide), r#"task "one": outputs has 4 entries, at most 3 are allowed"#);
    let env = changed(|task| task.env = (0..4).map(|at| (at.to_string(), String::new())).collect());
    assert_eq!(said(&env), r#"task "one": env has 4 entries, at most 3 are allowed"#);
    let huge = changed(|task| task.array = Some(range(i64::MIN, i64::MAX, 1)));
    assert_eq!(said(&huge), format!("tasks are {}, at most 10 are allowed", u64::MAX));
}

#[test]
fn elements_are_counted() {
    let of = |array| count(&TaskSpec { array, ..task("one") }).unwrap();
    assert_eq!(of(None), 1);
    assert_eq!(of(Some(range(1, 10, 3))), 4);
    assert_eq!(of(Some(range(-3, -3, 7))), 1);
    assert_eq!(of(Some(range(i64::MIN, i64::MAX, 1))), u64::MAX, "as many as can be said, not none");
    assert_eq!(of(Some(items(vec![item("a"), item("a")]))), 2);
    let blob = array_spec::Kind::ItemsBlob(BlobRef { count: 7, ..BlobRef::default() });
    assert_eq!(of(Some(ArraySpec { kind: Some(blob) })), 7);
}

#[test]
fn a_job_of_as_many_tasks_and_needs_as_there_may_be_is_judged_quickly() {
    let name = |at: usize| format!("t{at}");
    let tasks: Vec<TaskSpec> = (0..10_000)
        .map(|at: usize| {
            // Each needs the one before it and some of the first, in an order that is the worst
            // for a walk through the list.
            let mut needs: Vec<(String, bool)> =
                (at.saturating_sub(1)..at).map(|to| (name(to), false)).collect();
            needs.extend((0..20.min(at.saturating_sub(1))).map(|to| (name(to), false)));
            let needs: Vec<(&str, bool)> = needs.iter().map(|(name, same)| (name.as_str(), *same)).collect();
            needing(task(&name(at)), &needs)
        })
        .rev()
        .collect();
    let job = job(tasks);
    let started = Instant::now();
    check(&job, &Limits::default()).unwrap();
    let made = definitions(&job.tasks).unwrap();
    assert!(started.elapsed().as_secs() < 5, "it took {:?}", started.elapsed());
    assert_eq!(made[0].needs.len(), 21);
}

#[test]
fn what_is_left_open_gets_its_documented_default() {
    let mut job = job(vec![
        TaskSpec { name: "bare".to_owned(), command: vec!["true".to_owned()], ..TaskSpec::default() },
        task("full"),
    ]);
    let full = job.tasks[1].clone();
    complete(&mut job, SandboxLevel::None);
    check(&job, &Limits::default()).unwrap();
    assert_eq!(job.tasks[1], full, "what is there stays");
    let bare = &definitions(&job.tasks).unwrap()[0];
    assert_eq!(bare.requirements.resources.cpu_millis, 1000);
    assert_eq!(bare.requirements.sandbox, SandboxLevel::None);
    let retry = &bare.retry;
    assert_eq!(
        (retry.attempts, retry.backoff_ms, retry.max_backoff_ms, retry.max_lost),
        (1, 1000, 60_000, 5)
    );
    assert_eq!(retry.on, [Cause::Exit, Cause::Signal, Cause::Timeout, Cause::Oom]);
}

#[test]
fn the_engine_is_told_what_was_asked() {
    let mut asked = array("resize", 4);
    asked.resources = Some(v1::Resources {
        cpu_millis: 250,
        memory_bytes: 1 << 20,
        disk_bytes: 0,
        named: [("license".to_owned(), 2)].into(),
    });
    asked.r#where = Some(v1::Where {
        tags: [("rack".to_owned(), "b2".to_owned())].into(),
        capabilities: vec!["ffmpeg".to_owned()],
        os: "linux".to_owned(),
        arch: String::new(),
        node: "amber".to_owned(),
        limits: "cgroup".to_owned(),
    });
    let tasks = vec![task("first"), needing(asked, &[("first", false)])];
    let made = &definitions(&tasks).unwrap()[1];
    assert_eq!((made.name.as_str(), made.array, made.total), ("resize", true, 4));
    assert_eq!((made.needs[0].task, made.needs[0].same_index), (0, false));
    let wanted = &made.requirements;
    assert_eq!((wanted.resources.cpu_millis, wanted.resources.memory), (250, 1 << 20));
    assert_eq!(wanted.resources.named["license"], 2);
    assert_eq!(wanted.tags["rack"], "b2");
    assert!(wanted.capabilities.contains("ffmpeg") && wanted.cgroup);
    assert_eq!(wanted.capabilities.len(), 1);
    assert_eq!((wanted.os.as_deref(), wanted.arch.as_deref()), (Some("linux"), None));
    assert_eq!(wanted.node.as_deref(), Some("amber"));
    let mut leased = task("leased");
    leased.set_on_disconnect(OnDisconnect::Kill);
    let wanted = &definitions(&[leased]).unwrap()[0].requirements;
    assert!(wanted.capabilities.contains(mesh_proto::names::LEASE), "an agent without leases would run it");
    let none = trying_never();
    assert_eq!(definitions(&[none]).unwrap()[0].retry.attempts, 1, "the first attempt is always there");
}

fn trying_never() -> TaskSpec {
    crate::testing::trying(task("one"), 0)
}

fn attempt(task: u32, index: u32) -> AttemptKey {
    AttemptKey { task: TaskKey { job: JobNumber(12), task, index }, number: 1 }
}

fn plan(spec: TaskSpec, items: Option<Vec<Item>>, params: &[(&str, &str)]) -> Plan {
    let params: HashMap<String, String> =
        params.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let total = count(&spec).unwrap() as u32;
    let job = JobSpec {
        name: "thumbnails".to_owned(),
        params,
        traceparent: "00-1".to_owned(),
        ..JobSpec::default()
    };
    Plan::new(job, vec![PlannedTask { spec, items: items.map(Arc::new), total }])
}

#[test]
fn an_assignment_stands_for_its_element() {
    let mut spec = task("resize");
    spec.command = ["convert", "{item}", "-q", "{params.q}", "{literal}"].map(str::to_owned).to_vec();
    spec.env = [("N".to_owned(), "{index}-{stem}".to_owned())].into();
    spec.outputs = vec!["out/{name}".to_owned()];
    spec.inputs = vec![file("tool")];
    spec.input_templates = vec![InputTemplate {
        elements: vec![FileList { files: vec![file("zero")] }, FileList { files: vec![file("one")] }],
    }];
    let photos = vec![
        Item { value: "p/a.jpg".to_owned(), file: Some(file("p/a.jpg")) },
        Item { value: "p/{index}.jpg".to_owned(), file: Some(file("p/{index}.jpg")) },
    ];
    spec.array = Some(items(photos.clone()));
    let plan = plan(spec, Some(photos), &[("q", "{item}")]);
    let inputs = plan.tasks[0].own_inputs(1);
    let paths: Vec<&str> = inputs.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["tool", "one", "p/{index}.jpg"]);
    let told = assignment(&plan, attempt(0, 1), inputs).unwrap();
    assert_eq!(told.item, "p/{index}.jpg");
    assert_eq!(
        told.command,
        ["convert", "p/{index}.jpg", "-q", "{item}", "{literal}"],
        "what an item or a parameter holds is not replaced again"
    );
    assert_eq!(told.env["N"], "1-{index}");
    assert_eq!(told.outputs, ["out/{index}.jpg"]);
    assert_eq!((told.job_name.as_str(), told.task_name.as_str(), told.array), ("thumbnails", "resize", true));
    assert_eq!(told.traceparent, "00-1");
    assert_eq!(told.attempt, Some(attempt(0, 1).into()));
}

#[test]
fn a_script_is_left_as_it_is() {
    let spec = TaskSpec { command: Vec::new(), script: "echo {item} {params.q}".to_owned(), ..array("a", 2) };
    let told = assignment(&plan(spec, None, &[]), attempt(0, 1), Vec::new()).unwrap();
    assert_eq!((told.script.as_str(), told.item.as_str()), ("echo {item} {params.q}", "1"));
}

#[test]
fn the_elements_of_a_range_are_its_numbers() {
    let spec = TaskSpec { array: Some(range(-2, 7, 3)), ..task("a") };
    let plan = plan(spec, None, &[]);
    let seen: Vec<_> = (0..4).map(|index| plan.tasks[0].item(index).unwrap()).collect();
    assert_eq!(seen, ["-2", "1", "4", "7"]);
}

#[test]
fn many_or_long_inputs_are_listed_apart() {
    let plan = plan(task("a"), None, &[]);
    let told = |inputs| assignment(&plan, attempt(0, 0), inputs).unwrap();
    let some = told(vec![file("x"); INLINE_INPUTS]);
    assert_eq!((some.inputs.len(), some.inputs_listed), (INLINE_INPUTS, false));
    let many = told(vec![file("x"); INLINE_INPUTS + 1]);
    assert!(many.inputs.is_empty() && many.inputs_listed);
    let long = told(vec![file(&"x".repeat(2000)); 200]);
    assert!(long.inputs.is_empty() && long.inputs_listed, "an assignment must fit its message");
}

#[test]
fn outputs_of_needed_tasks_have_their_places() {
    assert_eq!(input_path("resize", Some(7), "out/a.png"), "inputs/resize/7/out/a.png");
    assert_eq!(input_path("sheet", None, "sheet.png"), "inputs/sheet/sheet.png");
}

#[test]
fn argv_and_environment_are_measured_with_their_templates_replaced() {
    let limits = Limits { max_argv_env: 100, ..Limits::default() };
    let twice = |item: &str| {
        let list = ItemList {
            items: vec![
                Item { value: "short".to_owned(), file: None },
                Item { value: item.to_owned(), file: None },
            ],
        };
        let mut task = array("a", 2);
        task.array = Some(ArraySpec { kind: Some(array_spec::Kind::Items(list)) });
        task.command = vec!["cat".to_owned(), "{item}{item}".to_owned()];
        task
    };
    // `cat`, its end, and the item twice with its own.
    assert_eq!(check(&job(vec![twice(&"x".repeat(47))]), &limits), Ok(()));
    let error = check(&job(vec![twice(&"x".repeat(48))]), &limits).unwrap_err().to_string();
    assert_eq!(
        error,
        "task \"a\": command and env of element 1 are 101 bytes with their templates replaced, at most 100 are allowed"
    );
    let mut spec = job(vec![task("one")]);
    spec.tasks[0].env.insert("K".to_owned(), "{params.p}".repeat(2));
    spec.params.insert("p".to_owned(), "y".repeat(60));
    let error = check(&spec, &limits).unwrap_err().to_string();
    assert!(error.contains("command and env are 128 bytes with their templates replaced"), "{error}");
    let mut range = array("r", 10);
    let numbers = v1::Range { first: 1_000_000_000, last: 1_000_000_009, step: 1 };
    range.array = Some(ArraySpec { kind: Some(array_spec::Kind::Range(numbers)) });
    range.command = vec!["{item}".repeat(10)];
    let error = check(&job(vec![range]), &limits).unwrap_err().to_string();
    assert!(error.contains("of element 9 are 101 bytes"), "{error}");
}
