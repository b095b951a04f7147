//! From the tree to the model: keys, types, names, single values.

use mesh_proto::v1;

use super::{
    array,
    fields::{self, Fields},
    model::{Action, Input, Job, Need, Task},
    problem::{Pos, Problem, Spot},
    resources, settings,
    tree::{Node, Value, quote},
};

const JOB_KEYS: [&str; 6] = ["version", "name", "priority", "on_failure", "params", "tasks"];
const TASK_KEYS: [&str; 17] = [
    "name",
    "command",
    "script",
    "array",
    "needs",
    "inputs",
    "outputs",
    "env",
    "resources",
    "where",
    "timeout",
    "grace",
    "retry",
    "sandbox",
    "network",
    "mounts",
    "on_disconnect",
];

pub fn job(root: &Node) -> Result<Job, Problem> {
    if matches!(root.value, Value::Null) {
        return Err(Problem::at(Pos::START, "the file is empty", "a job"));
    }
    let has_tasks = fields::entries(root, "the job")?.iter().any(|(key, _)| key.name == "tasks");
    let mut known = JOB_KEYS.to_vec();
    if !has_tasks {
        known.extend(TASK_KEYS.iter().filter(|key| **key != "name"));
    } else if let Some((key, _)) = fields::entries(root, "the job")?
        .iter()
        .find(|(key, _)| key.name != "name" && TASK_KEYS.contains(&key.name.as_str()))
    {
        return Err(Problem::at(
            key.at,
            format!("`{}` belongs to a task, and this job has `tasks`", key.name),
            "it below one of the tasks",
        ));
    }
    let fields = Fields::open(root, "the job", &known)?;
    if let Some(version) = fields.get("version") {
        fields::whole(version, "`version`", 1, 1)?;
    }
    let name = fields.get("name").map(|node| fields::name(node, "the job's name")).transpose()?;
    let tasks = match fields.get("tasks") {
        Some(node) => {
            let tasks = fields::list(node, "`tasks`")?;
            if tasks.is_empty() {
                return Err(Problem::at(node.at, "`tasks` is empty", "at least one task"));
            }
            tasks.iter().map(named_task).collect::<Result<_, _>>()?
        }
        None => vec![task(&fields, None)?],
    };
    Ok(Job {
        name: name.map(|name| name.value),
        priority: fields.get("priority").map_or(Ok(5), |node| fields::whole(node, "`priority`", 0, 9))?,
        on_failure: match fields.get("on_failure") {
            None => v1::OnFailure::Stop,
            Some(node) => match fields::one_of(node, "`on_failure`", &["stop", "continue"])? {
                "continue" => v1::OnFailure::Continue,
                _ => v1::OnFailure::Stop,
            },
        },
        params: fields.get("params").map_or(Ok(Vec::new()), params)?,
        tasks,
    })
}

fn named_task(node: &Node) -> Result<Task, Problem> {
    let fields = Fields::open(node, "a task", &TASK_KEYS)?;
    let Some(name) = fields.get("name") else {
        return Err(Problem::at(node.at, "this task has no name", "the key `name`"));
    };
    task(&fields, Some(fields::name(name, "the task's name")?))
}

fn task(fields: &Fields, name: Option<Spot<String>>) -> Result<Task, Problem> {
    let action = match (fields.get("command"), fields.get("script")) {
        (Some(command), None) => Action::Command(argv(command)?),
        (None, Some(script)) => {
            let script = fields::text(script, "`script`")?;
            if script.value.trim().is_empty() {
                return Err(Problem::at(script.at, "`script` is empty", "at least one line"));
            }
            Action::Script(script.value)
        }
        (Some(_), Some(_)) => {
            return Err(Problem::at(
                fields.key_at("script"),
                "the task has both `command` and `script`",
                "one of them",
            ));
        }
        (None, None) => {
            return Err(Problem::at(
                fields.at,
                "there is neither `command` nor `script`",
                "one of them, to say what the task runs",
            ));
        }
    };
    let array = fields.get("array").map(array::parse).transpose()?;
    Ok(Task {
        name,
        at: fields.at,
        action,
        array,
        needs: each(fields, "needs", need)?,
        inputs: each(fields, "inputs", input)?,
        outputs: each(fields, "outputs", |node| fields::text(node, "an output"))?,
        env: fields.get("env").map_or(Ok(Vec::new()), env)?,
        resources: resources::parse(fields.get("resources"))?,
        conditions: settings::conditions(fields.get("where"))?,
        timeout_ms: match fields.get("timeout") {
            None => 0,
            Some(node) => match fields::duration_ms(node, "`timeout`")? {
                0 => {
                    return Err(Problem::at(node.at, "`timeout` is zero", "more, or no `timeout` for none"));
                }
                timeout => timeout,
            },
        },
        grace_ms: fields.get("grace").map_or(Ok(10_000), |node| fields::duration_ms(node, "`grace`"))?,
        retry: settings::retry(fields.get("retry"))?,
        sandbox: settings::sandbox(fields.get("sandbox"))?,
        network: settings::network(fields.get("network"))?,
        mounts: settings::mounts(fields.get("mounts"), fields.get("sandbox"))?,
        on_disconnect: settings::on_disconnect(fields.get("on_disconnect"))?,
    })
}

fn each<T>(
    fields: &Fields,
    key: &str,
    read: impl Fn(&Node) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    match fields.get(key) {
        None => Ok(Vec::new()),
        Some(node) => fields::list(node, &format!("`{key}`"))?.iter().map(read).collect(),
    }
}

fn argv(node: &Node) -> Result<Vec<Spot<String>>, Problem> {
    if let Value::Text(line) | Value::Plain(line) = &node.value {
        return Err(Problem::at(
            node.at,
            format!("`command` is the text {}, and no shell would split it", quote(line)),
            "a list such as [echo, hello], or `script` for a shell",
        ));
    }
    let words = fields::list(node, "`command`")?;
    let words: Vec<_> =
        words.iter().map(|word| fields::text(word, "a word of `command`")).collect::<Result<_, _>>()?;
    match words.first() {
        None => Err(Problem::at(node.at, "`command` is empty", "at least the program's name")),
        Some(program) if program.value.is_empty() => {
            Err(Problem::at(program.at, "the program's name is empty", "a program such as `echo`"))
        }
        Some(_) => Ok(words),
    }
}

fn need(node: &Node) -> Result<Need, Problem> {
    if !matches!(node.value, Value::Map(_)) {
        let task = fields::text(node, "a need")?;
        return Ok(Need { at: task.at, task: task.value, same_index: false });
    }
    let fields = Fields::open(node, "a need", &["task", "same_index"])?;
    let Some(task) = fields.get("task") else {
        return Err(Problem::at(node.at, "this need names no task", "the key `task`"));
    };
    let task = fields::text(task, "`task`")?;
    let same_index =
        fields.get("same_index").map_or(Ok(false), |node| fields::truth(node, "`same_index`"))?;
    Ok(Need { at: task.at, task: task.value, same_index })
}

fn input(node: &Node) -> Result<Input, Problem> {
    if !matches!(node.value, Value::Map(_)) {
        return Ok(Input { from: fields::text(node, "an input")?, to: None });
    }
    let fields = Fields::open(node, "an input", &["from", "to"])?;
    let Some(from) = fields.get("from") else {
        return Err(Problem::at(node.at, "this input names no file", "the key `from`"));
    };
    let from = fields::text(from, "`from`")?;
    if from.value.is_empty() {
        return Err(Problem::at(from.at, "`from` is empty", "a file, a directory or a glob"));
    }
    Ok(Input { from, to: fields.get("to").map(|node| fields::text(node, "`to`")).transpose()? })
}

type Variable = (Spot<String>, Spot<String>);

fn env(node: &Node) -> Result<Vec<Variable>, Problem> {
    let mut variables = Vec::new();
    for (key, value) in fields::entries(node, "`env`")? {
        if key.name.is_empty() || key.name.contains(['=', '\0']) {
            return Err(Problem::at(
                key.at,
                format!("the variable {} of `env` has no valid name", quote(&key.name)),
                "a name without `=` and NUL",
            ));
        }
        let what = format!("`{}` of `env`", super::tree::shorten(&key.name));
        variables.push((Spot { at: key.at, value: key.name.clone() }, fields::text(value, &what)?));
    }
    Ok(variables)
}

fn params(node: &Node) -> Result<Vec<(Spot<String>, String)>, Problem> {
    let mut params = Vec::new();
    for (key, value) in fields::entries(node, "`params`")? {
        if !is_param_name(&key.name) {
            return Err(Problem::at(
                key.at,
                format!("the parameter {} has no valid name", quote(&key.name)),
                "letters, digits, `.`, `_` and `-`, at most 64",
            ));
        }
        let what = format!("the parameter `{}`", key.name);
        params.push((Spot { at: key.at, value: key.name.clone() }, fields::text(value, &what)?.value));
    }
    Ok(params)
}

/// Whether `{params.NAME}` can name it.
pub fn is_param_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
