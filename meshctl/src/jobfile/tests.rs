//! Every class of bad job file with its exact message, and what good ones become.

use std::fs;

use mesh_proto::v1::{self, array_spec::Kind};
use rstest::rstest;
use tempfile::TempDir;

use super::{JobFileError, Overrides, Prepared, Submission, from_text, job_name};

/// A directory with some files, and a job file beside them.
struct Site(TempDir);

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for path in ["photos/b.jpg", "photos/a.jpg", "data/deep/x.csv", "data/y.csv", "inputs/z"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
        }
        fs::write(dir.path().join("three.txt"), "one\ntwo\r\n\nfour\n").unwrap();
        fs::write(dir.path().join("empty.txt"), "").unwrap();
        fs::create_dir(dir.path().join("hollow")).unwrap();
        Self(dir)
    }

    fn load_with(&self, text: &str, overrides: &Overrides) -> Result<Prepared, JobFileError> {
        from_text(text.as_bytes(), "job.yaml", "job", self.0.path(), overrides)
    }

    fn load(&self, text: &str) -> Result<Prepared, JobFileError> {
        self.load_with(text, &Overrides::default())
    }

    fn error(&self, text: &str) -> String {
        match self.load(text) {
            Ok(_) => panic!("this was taken for a job:\n{text}"),
            Err(error) => error.to_string().replace(self.0.path().to_str().unwrap(), "DIR"),
        }
    }

    fn submission(&self, text: &str) -> Submission {
        match self.load(text) {
            Ok(prepared) => prepared.into_submission().unwrap(),
            Err(error) => panic!("{error}"),
        }
    }

    fn task(&self, text: &str) -> v1::TaskSpec {
        self.submission(text).spec.tasks.remove(0)
    }
}

/// The line of a single task plus one more line.
fn with(line: &str) -> String {
    format!("command: [\"true\"]\n{line}\n")
}

#[rstest]
// What is no YAML, or no job.
#[case::empty("", "1:1: the file is empty; expected a job")]
#[case::comment("# nothing\n", "1:1: the file is empty; expected a job")]
#[case::text("hello", "1:1: the job is the text \"hello\"; expected a map of keys and values")]
#[case::list("- a\n", "1:1: the job is a list; expected a map of keys and values")]
#[case::two("a: 1\n---\nb: 2\n", "3:1: a second document begins here; expected one job in a file")]
#[case::duplicate_key(
    "name: a\nname: b\n",
    "2:1: the key \"name\" stands here twice; expected every key at most once"
)]
#[case::version("version: 2\ncommand: [a]\n", "1:10: `version` is `2`; expected a whole number from 1 to 1")]
// Keys.
#[case::unknown_key(
    "comand: [a]\n",
    "1:1: the job has no key `comand`; expected `command`, by the look of it"
)]
#[case::unknown_task_key(
    "tasks:\n  - name: a\n    command: [a]\n    output: [x]\n",
    "4:5: a task has no key `output`; expected `outputs`, by the look of it"
)]
#[case::no_tasks(
    "name: a\n",
    "1:1: there is neither `command` nor `script`; expected one of them, to say what the task runs"
)]
#[case::empty_tasks("tasks: []\n", "1:8: `tasks` is empty; expected at least one task")]
#[case::mixed(
    "command: [a]\ntasks:\n  - {name: a, command: [a]}\n",
    "1:1: `command` belongs to a task, and this job has `tasks`; expected it below one of the tasks"
)]
#[case::both(
    "command: [a]\nscript: b\n",
    "2:1: the task has both `command` and `script`; expected one of them"
)]
#[case::neither(
    "tasks:\n  - name: a\n",
    "2:5: there is neither `command` nor `script`; expected one of them, to say what the task runs"
)]
#[case::nameless("tasks:\n  - command: [a]\n", "2:5: this task has no name; expected the key `name`")]
// Types.
#[case::shell_line(
    "command: echo hi\n",
    "1:10: `command` is the text \"echo hi\", and no shell would split it; expected a list such as [echo, hello], or `script` for a shell"
)]
#[case::empty_command("command: []\n", "1:10: `command` is empty; expected at least the program's name")]
#[case::null_word(
    "command: [a, ~]\n",
    "1:14: a word of `command` is nothing; expected text (write \"\" for an empty one)"
)]
#[case::map_word("command: [a, {b: c}]\n", "1:14: a word of `command` is a map; expected text")]
#[case::empty_script("script: \" \"\n", "1:9: `script` is empty; expected at least one line")]
#[case::priority(
    "priority: high\ncommand: [a]\n",
    "1:11: `priority` is the text \"high\"; expected a whole number from 0 to 9"
)]
#[case::priority_range(
    "priority: 10\ncommand: [a]\n",
    "1:11: `priority` is `10`; expected a whole number from 0 to 9"
)]
#[case::priority_negative(
    "priority: -1\ncommand: [a]\n",
    "1:11: `priority` is `-1`; expected a whole number from 0 to 9"
)]
#[case::on_failure(
    "on_failure: ignore\ncommand: [a]\n",
    "1:13: `on_failure` is \"ignore\"; expected `stop` or `continue`"
)]
#[case::env_list(&with("env: [a]"), "2:6: `env` is a list; expected a map of keys and values")]
#[case::env_name(&with("env: {\"a=b\": c}"), "2:7: the variable \"a=b\" of `env` has no valid name; expected a name without `=` and NUL")]
#[case::env_nul(&with("env: {A: \"x\\0y\"}"), "2:10: `A` of `env` contains a NUL byte; expected text without it")]
#[case::outputs_text(&with("outputs: out/"), "2:10: `outputs` is the text \"out/\"; expected a list")]
// Names.
#[case::job_name(
    "name: My Job\ncommand: [a]\n",
    "1:7: the job's name \"My Job\" contains 'M'; allowed are a-z, 0-9, `.`, `_` and `-`; expected 1 to 64 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter, digit or `_`"
)]
#[case::dash_name(
    "tasks:\n  - {name: -x, command: [a]}\n",
    "2:12: the task's name \"-x\" begins with '-'; expected 1 to 64 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter, digit or `_`"
)]
#[case::control_name(
    "name: \"a\\e[2J\"\ncommand: [a]\n",
    "1:7: the job's name \"a\\x1b[2J\" contains '\\u{1b}'; allowed are a-z, 0-9, `.`, `_` and `-`; expected 1 to 64 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter, digit or `_`"
)]
#[case::param_name(
    "params: {\"a b\": 1}\ncommand: [a]\n",
    "1:10: the parameter \"a b\" has no valid name; expected letters, digits, `.`, `_` and `-`, at most 64"
)]
// Numbers, sizes, durations.
#[case::nan(&with("resources: {cpu: .nan}"), "2:18: `cpu` is `.nan`; expected a number from 0.001 to 100000")]
#[case::infinite(&with("resources: {cpu: .inf}"), "2:18: `cpu` is `.inf`; expected a number from 0.001 to 100000")]
#[case::overflow(&with("resources: {cpu: 1e999}"), "2:18: `cpu` is `1e999`; expected a number from 0.001 to 100000")]
#[case::negative(&with("resources: {cpu: -1}"), "2:18: `cpu` is `-1`; expected a number from 0.001 to 100000")]
#[case::zero(&with("resources: {cpu: 0}"), "2:18: `cpu` is `0`; expected a number from 0.001 to 100000")]
#[case::cpu_text(&with("resources: {cpu: \"2\"}"), "2:18: `cpu` is the text \"2\"; expected a number from 0.001 to 100000")]
#[case::memory_unit(&with("resources: {memory: 5 potatoes}"), "2:21: `memory`: `potatoes` is no unit of size: expected B, KB, MB, GB, TB (1000) or KiB, MiB, GiB, TiB (1024)")]
#[case::memory_zero(&with("resources: {memory: 0}"), "2:21: `memory` is zero; expected a size such as 512MiB or 2GB")]
#[case::memory_negative(&with("resources: {memory: -1}"), "2:21: `memory`: `-1` is no size: expected a number and a unit, such as 512MiB or 2GB")]
#[case::memory_large(&with("resources: {memory: 9223372036854775808}"), "2:21: `memory`: `9223372036854775808` is too large: the most is 8EiB less one byte")]
#[case::named_typo(&with("resources: {memry: 1GB}"), "2:13: the resource `memry` is the text \"1GB\"; expected a whole number of units, or did you mean `memory`?")]
#[case::named_zero(&with("resources: {licence: 0}"), "2:22: the resource `licence` is `0`; expected a whole number from 1 to 1000000000")]
#[case::timeout_unit(&with("timeout: 5"), "2:10: `timeout`: `5` is no duration: expected numbers with units, such as 500ms, 10s, 1m30s, 2h or 1d")]
#[case::timeout_zero(&with("timeout: 0s"), "2:10: `timeout` is zero; expected more, or no `timeout` for none")]
#[case::grace(&with("grace: [1]"), "2:8: `grace` is a list; expected a duration such as 500ms, 10s, 1m30s, 2h or 1d")]
#[case::attempts(&with("retry: {attempts: 0}"), "2:19: `attempts` is `0`; expected a whole number from 1 to 1000")]
#[case::retry_on(&with("retry: {on: [crash]}"), "2:14: `on` names \"crash\"; expected `exit`, `signal`, `timeout`, `oom`, `disk`, `output`, `staging` or `sandbox`")]
#[case::retry_lost(&with("retry: {on: [lost]}"), "2:14: `lost` in `on`: losses of the infrastructure are always tried again; expected `max_lost` to bound them")]
#[case::backoff(&with("retry: {backoff: 2m, max_backoff: 1m}"), "2:35: `max_backoff` is shorter than `backoff`; expected at least as much")]
#[case::limits(&with("where: {limits: rlimit}"), "2:17: `limits` is \"rlimit\"; expected `cgroup`")]
// Mounts.
#[case::mount_place(&with("mounts: [{name: data, to: data}]"), "2:27: the mount's place \"data\" is no absolute path without `.` and `..`; expected an absolute path, such as /data")]
#[case::mount_taken(&with("mounts: [{name: data, to: /usr/data}]"), "2:27: the mount's place \"/usr/data\" lies in a directory that every task has; /data or /mnt/data would do; expected a place of its own, such as /data")]
#[case::mount_twice(&with("mounts: [{name: a, to: /data}, {name: b, to: /data/b}]"), "2:46: the mount's place \"/data/b\" lies in another mount, or another one in it; expected a place of its own, such as /data")]
#[case::mount_bare(&with("mounts: [{name: data}]"), "2:10: this mount lacks its name or its place; expected `name` and `to`")]
#[case::mount_level(&with("mounts: [{name: data, to: /data}]\nsandbox: basic"), "2:9: `mounts` needs a file tree of the task's own, which this level of `sandbox` has not; expected `sandbox: strict`, or none of the two")]
#[case::on_disconnect(&with("on_disconnect: stop"), "2:16: `on_disconnect` is \"stop\"; expected `keep` or `kill`")]
// What comes later.
#[case::gpu(&with("resources: {gpu: 1}"), "2:13: `gpu` comes in a later version; this one cannot honour it; expected a job file without it")]
#[case::disk(&with("resources: {disk: 1GB}"), "2:13: `disk` comes in a later version; this one cannot honour it; expected a job file without it")]
// Arrays.
#[case::array_kinds(&with("array: {range: 1-2, items: [a]}"), "2:8: `array` has 2 of its keys; expected exactly one of `range`, `items`, `lines` or `files`")]
#[case::array_empty(&with("array: {}"), "2:8: `array` has 0 of its keys; expected exactly one of `range`, `items`, `lines` or `files`")]
#[case::range_order(&with("array: {range: 10-1}"), "2:16: the range \"10-1\" ends before it begins; expected FIRST-LAST or FIRST-LAST:STEP, such as 1-1000 or 0-90:10")]
#[case::range_step(&with("array: {range: \"1-9:0\"}"), "2:16: the range \"1-9:0\" has no positive step; expected FIRST-LAST or FIRST-LAST:STEP, such as 1-1000 or 0-90:10")]
#[case::range_number(&with("array: {range: 5}"), "2:16: the range \"5\" has no two bounds; expected FIRST-LAST or FIRST-LAST:STEP, such as 1-1000 or 0-90:10")]
#[case::range_overflow(&with("array: {range: 1-99999999999999999999}"), "2:16: the range \"1-99999999999999999999\" has a number that is out of range; expected FIRST-LAST or FIRST-LAST:STEP, such as 1-1000 or 0-90:10")]
#[case::range_long(&with("array: {range: 1-1000001}"), "2:16: the array has 1000001 elements; expected at most 1000000")]
#[case::items_empty(&with("array: {items: []}"), "2:16: `items` is empty; expected at least one item")]
#[case::lines_missing(&with("array: {lines: none.txt}"), "2:16: there is no file \"none.txt\"; expected a text file with one item a line, relative to the job file")]
#[case::lines_empty(&with("array: {lines: empty.txt}"), "2:16: \"empty.txt\" is empty; expected at least one line")]
#[case::files_none(&with("array: {files: \"*.png\"}"), "2:16: no file matches \"*.png\"; expected at least one")]
#[case::files_outside(&with("array: {files: \"../*\"}"), "2:16: the glob \"../*\" leaves the job file's directory; expected a relative one: each file is an input at its relative path")]
#[case::files_reserved(&with("array: {files: \"inputs/*\"}"), "2:16: the place \"inputs/z\" is inside `inputs/`, where the outputs of needed tasks arrive; expected another directory")]
// Needs.
#[case::unknown_need(
    "tasks:\n  - {name: resize, command: [a]}\n  - {name: b, command: [a], needs: [resise]}\n",
    "3:37: `needs` names `resise`, and there is no such task; expected `resize`, by the look of it"
)]
#[case::duplicate_task(
    "tasks:\n  - {name: a, command: [a]}\n  - {name: a, command: [b]}\n",
    "3:12: there are two tasks with the name `a`; expected a name of its own for each"
)]
#[case::cycle(
    "tasks:\n  - {name: a, command: [x], needs: [c]}\n  - {name: b, command: [x], needs: [a]}\n  - {name: c, command: [x], needs: [b]}\n  - {name: d, command: [x], needs: [a]}\n",
    "3:37: the tasks need each other in a cycle: a → c → b → a; expected needs without a cycle"
)]
#[case::self_cycle(
    "tasks:\n  - {name: a, command: [x], needs: [a]}\n",
    "2:37: the tasks need each other in a cycle: a → a; expected needs without a cycle"
)]
#[case::needed_twice(
    "tasks:\n  - {name: a, command: [x]}\n  - {name: b, command: [x], needs: [a, a]}\n",
    "3:40: `a` is needed twice; expected once"
)]
#[case::same_index_no_array(
    "tasks:\n  - {name: a, command: [x]}\n  - {name: b, command: [x], array: {range: 1-2}, needs: [{task: a, same_index: true}]}\n",
    "3:65: `same_index`: `a` is no array; expected two arrays with as many elements each"
)]
#[case::same_index_length(
    "tasks:\n  - {name: a, command: [x], array: {lines: three.txt}}\n  - {name: b, command: [x], array: {range: 1-2}, needs: [{task: a, same_index: true}]}\n",
    "3:65: `same_index`: `b` has 2 elements and `a` has 4; expected two arrays with as many elements each"
)]
// Templates.
#[case::no_array(
    "command: [a, \"{item}\"]\n",
    "1:14: {item} is used, but the task is no array; expected `array`, or text without it"
)]
#[case::no_param(
    "command: [a, \"{params.x}\"]\n",
    "1:14: {params.x} is used, but there is no such parameter; expected it in `params`, or `--set x=VALUE`"
)]
#[case::env_template(&with("env: {A: \"{index}\"}"), "2:10: {index} is used, but the task is no array; expected `array`, or text without it")]
// Inputs and outputs.
#[case::input_missing(&with("inputs: [nope.csv]"), "2:10: there is no file \"nope.csv\"; expected a file, a directory or a glob, relative to the job file")]
#[case::input_glob(&with("inputs: [{from: \"*.csv\"}]"), "2:17: no file matches \"*.csv\"; expected at least one")]
#[case::input_outside(&with("inputs: [/etc/hostname]"), "2:10: \"/etc/hostname\" is not below the job file's directory; expected `to`, to say where it goes in the work directory")]
#[case::input_escape(&with("inputs: [{from: three.txt, to: ../x}]"), "2:32: the place \"../x\" contains the part \"..\"; expected a path inside the work directory")]
#[case::input_reserved(&with("inputs: [{from: three.txt, to: inputs/x}]"), "2:32: the place \"inputs/x\" is inside `inputs/`, where the outputs of needed tasks arrive; expected another directory")]
#[case::input_not_dir(&with("inputs: [three.txt/]"), "2:10: three.txt/: Not a directory (os error 20); expected a file, a directory or a glob, relative to the job file")]
#[case::input_twice(&with("inputs: [{from: three.txt, to: x}, {from: empty.txt, to: x}]"), "2:17: two inputs go to \"x\"; expected one for each place")]
#[case::input_below_file(&with("inputs: [{from: three.txt, to: x}, {from: empty.txt, to: x/y}]"), "2:17: \"x/y\" goes below \"x\", which is a file; expected another place")]
#[case::input_unnamed(&with("inputs: [{to: x}]"), "2:10: this input names no file; expected the key `from`")]
#[case::output_outside(&with("outputs: [../x]"), "2:11: the output \"../x\" contains the part \"..\"; expected a path or glob inside the work directory")]
#[case::output_absolute(&with("outputs: [/etc/passwd]"), "2:11: the output \"/etc/passwd\" is absolute; a path relative to the work directory is expected; expected a path or glob inside the work directory")]
#[case::output_reserved(&with("outputs: [inputs/x]"), "2:11: the output \"inputs/x\" is inside `inputs/`, where the outputs of needed tasks arrive; expected another directory")]
#[case::output_item(&with("array: {items: [a, ..]}\noutputs: [\"out/{item}\"]"), "3:11: the output \"out/..\" contains the part \"..\"; expected a path or glob inside the work directory")]
fn a_bad_job_file_is_refused_at_its_place(#[case] text: &str, #[case] expected: &str) {
    assert_eq!(Site::new().error(text), format!("job.yaml:{expected}"));
}

#[test]
fn files_beyond_the_limits_are_refused() {
    let site = Site::new();
    let item = "x, ".repeat(10_001);
    assert_eq!(
        site.error(&with(&format!("array: {{items: [{item}]}}"))),
        "job.yaml:2:16: `items` has 10001 entries; expected at most 10000"
    );
    let many: String = ["a", "b", "c"]
        .map(|name| format!("  - {{name: {name}, command: [a], array: {{range: 1-400000}}}}\n"))
        .concat();
    assert_eq!(
        site.error(&format!("tasks:\n{many}")),
        "job.yaml:4:44: up to here the job has 1200000 tasks; expected at most 1000000"
    );
    let long = "x".repeat(70_000);
    assert_eq!(
        site.error(&format!("command: [a, {long}]\nenv: {{A: {long}}}\n")),
        "job.yaml:2:10: the command and the environment together are too long; expected at most 131072 bytes; long data belongs into an input file"
    );
    let huge = format!("command: [a]\n# {}\n", "x".repeat(4 << 20));
    assert_eq!(
        site.error(&huge),
        format!("job.yaml:1:1: the file is {} bytes long; expected at most 4194304 bytes", huge.len())
    );
    let item = "y".repeat(70_000);
    assert_eq!(
        site.error(&format!("command: [a, \"{{item}}\"]\narray: {{items: [{item}]}}\n")),
        "job.yaml:2:16: item 0 is 70000 bytes long; expected at most 65536 bytes"
    );
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let error = from_text(b"name: a\n\xff\n", "job.yaml", "job", ".".as_ref(), &Overrides::default());
    assert_eq!(error.unwrap_err().to_string(), "job.yaml:2:1: this is not valid UTF-8; expected text");
}

#[test]
fn a_small_file_means_all_the_defaults() {
    let spec = Site::new().submission("command: [echo, 1.10, yes, true]\n").spec;
    insta::assert_debug_snapshot!(spec);
}

#[test]
fn a_full_file_says_everything() {
    let site = Site::new();
    let mut spec = site
        .submission(
            r#"
version: 1
name: thumbnails
priority: 0
on_failure: continue
params: {size: 256x256}
tasks:
  - name: resize
    command: [convert, "{item}", -resize, "{params.size}", "out/{name}"]
    array: {files: "photos/*.jpg"}
    outputs: [out/]
    env: {N: 1.50}
    resources: {cpu: 0.5, memory: 512MiB, licence: 2}
    where: {tags: {zone: Zone A}, capabilities: [avx2], os: linux, arch: x86_64, node: n1, limits: cgroup}
    timeout: 1m30s
    grace: 0s
    retry: {attempts: 3, on: [exit, output], backoff: 2m, max_lost: 0}
    sandbox: basic
    network: host
    on_disconnect: kill
  - name: sheet
    needs: [resize]
    script: |
      montage inputs/resize/*/out/* sheet.png
    outputs: [sheet.png]
    sandbox: strict
    mounts: [{name: data, to: /data, read_only: true}, {name: scratch, to: /mnt/scratch}]
  - name: pair
    needs: [{task: resize, same_index: true}, sheet]
    array: {range: "0-2:2"}
    command: ["true"]
"#,
        )
        .spec;
    if let Some(Kind::Items(list)) = spec.tasks[0].array.as_mut().and_then(|array| array.kind.as_mut()) {
        for file in list.items.iter_mut().filter_map(|item| item.file.as_mut()) {
            assert_eq!(std::mem::take(&mut file.digest).len(), 32);
        }
    }
    insta::assert_debug_snapshot!(spec);
}

#[test]
fn json_is_a_job_file_too() {
    let task = Site::new().task(r#"{"command": ["echo", "a\tb"], "resources": {"cpu": 2, "memory": 1024}}"#);
    assert_eq!(task.command, ["echo", "a\tb"]);
    let resources = task.resources.unwrap();
    assert_eq!((resources.cpu_millis, resources.memory_bytes), (2000, 1024));
}

#[test]
fn a_single_task_has_the_name_of_its_job() {
    let site = Site::new();
    let named = site.submission("name: hello\ncommand: [a]\n").spec;
    assert_eq!((named.name.as_str(), named.tasks[0].name.as_str()), ("hello", "hello"));
    let overrides = Overrides { name: Some("other".into()), set: Vec::new() };
    let renamed = site.load_with("name: hello\ncommand: [a]\n", &overrides).unwrap();
    let renamed = renamed.into_submission().unwrap().spec;
    assert_eq!((renamed.name.as_str(), renamed.tasks[0].name.as_str()), ("other", "hello"));
}

#[test]
fn set_overrides_what_the_file_uses_and_nothing_else() {
    let site = Site::new();
    let set = |key: &str| Overrides { name: None, set: vec![(key.into(), "v=1".into())] };
    let text = "params: {a: 1}\ncommand: [x, \"{params.b}\"]\n";
    let spec = site.load_with(text, &set("b")).unwrap().into_submission().unwrap().spec;
    assert_eq!(spec.params["b"], "v=1");
    assert_eq!(spec.params["a"], "1");
    let error = site.load_with(text, &set("c")).unwrap_err().to_string();
    assert_eq!(error, "--set c: the job has no parameter of that name; it has a, b");
}

fn items(spec: v1::TaskSpec) -> Vec<v1::Item> {
    match spec.array.unwrap().kind.unwrap() {
        Kind::Items(list) => list.items,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_four_arrays_have_their_elements() {
    let site = Site::new();
    let range = site.task(&with("array: {range: \"1-1000000\"}"));
    assert_eq!(
        range.array.unwrap().kind.unwrap(),
        Kind::Range(v1::Range { first: 1, last: 1_000_000, step: 1 })
    );
    let values = |line: &str| -> Vec<String> {
        items(site.task(&with(line))).into_iter().map(|item| item.value).collect()
    };
    assert_eq!(values("array: {items: [001, yes, \"\"]}"), ["001", "yes", ""]);
    assert_eq!(values("array: {lines: three.txt}"), ["one", "two", "", "four"]);
    let files = items(site.task(&with("array: {files: \"**/*.jpg\"}")));
    let told: Vec<_> =
        files.iter().map(|item| (item.value.as_str(), item.file.clone().unwrap().path)).collect();
    assert_eq!(
        told,
        [("photos/a.jpg", "photos/a.jpg".to_owned()), ("photos/b.jpg", "photos/b.jpg".to_owned())]
    );
}

#[test]
fn a_long_list_travels_as_a_blob() {
    let site = Site::new();
    let lines = (0..50_000).map(|n| format!("item number {n}")).collect::<Vec<_>>().join("\n");
    fs::write(site.0.path().join("long.txt"), lines).unwrap();
    let submission = site.submission(&with("array: {lines: long.txt}"));
    let Kind::ItemsBlob(blob) = submission.spec.tasks[0].array.clone().unwrap().kind.unwrap() else {
        panic!()
    };
    let (digest, bytes) = &submission.lists[0];
    assert_eq!((blob.digest, blob.size, blob.count), (digest.to_vec(), bytes.len() as u64, 50_000));
    let list: v1::ItemList = prost::Message::decode(bytes.clone()).unwrap();
    assert_eq!(list.items[49_999].value, "item number 49999");
}

#[rstest]
#[case::file("three.txt", "three.txt")]
#[case::dotted("./three.txt", "three.txt")]
#[case::renamed("{from: three.txt, to: a/b.txt}", "a/b.txt")]
#[case::into("{from: data/y.csv, to: in/}", "in/y.csv")]
#[case::directory("data", "data/deep/x.csv data/y.csv")]
#[case::directory_into("{from: data, to: in/}", "in/data/deep/x.csv in/data/y.csv")]
#[case::directory_as("{from: data, to: in}", "in/deep/x.csv in/y.csv")]
#[case::contents("data/", "deep/x.csv y.csv")]
#[case::contents_into("{from: data/, to: in/}", "in/deep/x.csv in/y.csv")]
#[case::glob("data/*.csv", "data/y.csv")]
#[case::glob_into("{from: \"data/**/*.csv\", to: in}", "in/deep/x.csv in/y.csv")]
#[case::glob_directory("{from: \"d*\", to: in/}", "in/data/deep/x.csv in/data/y.csv")]
#[case::empty_directory("hollow", "hollow/")]
#[case::outside("{from: /etc/hostname, to: h}", "h")]
fn an_input_stands_where_it_was_put(#[case] input: &str, #[case] expected: &str) {
    let task = Site::new().task(&with(&format!("inputs: [{input}]")));
    let places: Vec<String> = task
        .inputs
        .iter()
        .map(|entry| if entry.directory { format!("{}/", entry.path) } else { entry.path.clone() })
        .collect();
    assert_eq!(places.join(" "), expected);
}

#[test]
fn each_element_has_its_own_inputs() {
    let site = Site::new();
    fs::write(site.0.path().join("data/[a].csv"), "a").unwrap();
    fs::write(site.0.path().join("data/a.csv"), "wrong").unwrap();
    let task = site.task(&with(
        "array: {items: [y, \"[a]\"]}\ninputs: [three.txt, {from: \"data/{item}*.csv\", to: \"in/{index}/\"}, {from: \"data/{item}.csv\", to: one.csv}]",
    ));
    assert_eq!(task.inputs.len(), 1);
    let told: Vec<Vec<Vec<(String, u64)>>> = task
        .input_templates
        .iter()
        .map(|template| {
            let files =
                |list: &v1::FileList| list.files.iter().map(|file| (file.path.clone(), file.size)).collect();
            template.elements.iter().map(files).collect()
        })
        .collect();
    assert_eq!(
        told,
        [
            [vec![("in/0/y.csv".to_owned(), 5)], vec![("in/1/[a].csv".to_owned(), 1)]],
            [vec![("one.csv".to_owned(), 5)], vec![("one.csv".to_owned(), 1)]],
        ]
    );
}

#[test]
fn content_and_the_executable_bit_travel() {
    use std::os::unix::fs::PermissionsExt as _;

    let site = Site::new();
    let tool = site.0.path().join("tool");
    fs::write(&tool, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("tool", site.0.path().join("link")).unwrap();
    let submission = site.submission(&with("inputs: [link, three.txt]"));
    let inputs = &submission.spec.tasks[0].inputs;
    assert_eq!((inputs[0].path.as_str(), inputs[0].executable, inputs[0].size), ("link", true, 10));
    assert!(!inputs[1].executable);
    assert_eq!(inputs[0].digest, mesh_proto::digest::Digest::of(b"#!/bin/sh\n").to_vec());
    assert_eq!(submission.files.len(), 2);
}

#[test]
fn a_circle_of_links_and_a_pipe_are_refused() {
    let site = Site::new();
    std::os::unix::fs::symlink("..", site.0.path().join("data/up")).unwrap();
    assert!(site.error(&with("inputs: [data]")).contains("loop"), "{}", site.error(&with("inputs: [data]")));
    fs::remove_file(site.0.path().join("data/up")).unwrap();
    let pipe = std::os::unix::net::UnixListener::bind(site.0.path().join("data/socket")).unwrap();
    assert_eq!(
        site.error(&with("inputs: [data]")),
        "job.yaml:2:10: DIR/data/socket is neither a file nor a directory; expected a regular file"
    );
    drop(pipe);
}

#[test]
fn a_file_name_becomes_a_job_name() {
    let cases = [
        ("jobs/thumbs.yaml", "thumbs"),
        ("My Job.YML", "my-job.yml"),
        ("/x/.hidden.json", "hidden"),
        ("---", "job"),
        ("/usr/bin/python3.11", "python3.11"),
        ("été.yaml", "t-"),
    ];
    for (path, name) in cases {
        assert_eq!(job_name(path), name, "{path}");
        mesh_proto::names::check_name(&job_name(path)).unwrap();
    }
    assert_eq!(job_name(&"x".repeat(100)).len(), 64);
}

proptest::proptest! {
    #[test]
    fn no_file_makes_it_panic(text in "[ a-z{}\\[\\]:,\"'&*#\n-]{0,200}") {
        let _ = from_text(text.as_bytes(), "f", "job", ".".as_ref(), &Overrides::default());
    }
}
