//! `where`, `retry`, `sandbox`, `network`, `mounts`, `on_disconnect`.

use mesh_proto::{
    mounts::{MAX_MOUNTS, PlaceError, check_place},
    state::Named as _,
    v1,
};

use super::{
    fields::{self, Fields},
    problem::Problem,
    tree::{Node, quote},
};

/// Ends of an attempt that `retry.on` may name. Losses of the infrastructure are always
/// tried again, and a cancelled task never is.
const RETRIABLE: [&str; 8] = ["exit", "signal", "timeout", "oom", "disk", "output", "staging", "sandbox"];

/// Longest value of a tag in bytes.
const MAX_TAG: usize = 256;

pub fn conditions(node: Option<&Node>) -> Result<v1::Where, Problem> {
    let mut conditions = v1::Where::default();
    let Some(node) = node else { return Ok(conditions) };
    let known = ["tags", "capabilities", "os", "arch", "node", "limits"];
    let fields = Fields::open(node, "`where`", &known)?;
    if let Some(tags) = fields.get("tags") {
        for (key, value) in fields::entries(tags, "`tags`")? {
            fields::check_name(&key.name, key.at, "the tag")?;
            let value = tag_value(value, &key.name)?;
            conditions.tags.insert(key.name.clone(), value);
        }
    }
    if let Some(list) = fields.get("capabilities") {
        for node in fields::list(list, "`capabilities`")? {
            conditions.capabilities.push(fields::name(node, "the capability")?.value);
        }
    }
    let word = |key: &str| match fields.get(key) {
        None => Ok(String::new()),
        Some(node) => fields::name(node, &format!("`{key}`")).map(|spot| spot.value),
    };
    conditions.os = word("os")?;
    conditions.arch = word("arch")?;
    conditions.node = word("node")?;
    if let Some(node) = fields.get("limits") {
        fields::one_of(node, "`limits`", &["cgroup"])?.clone_into(&mut conditions.limits);
    }
    Ok(conditions)
}

fn tag_value(node: &Node, key: &str) -> Result<String, Problem> {
    let spot = fields::text(node, &format!("the tag `{key}`"))?;
    if spot.value.is_empty() || spot.value.len() > MAX_TAG || spot.value.chars().any(char::is_control) {
        return Err(Problem::at(
            spot.at,
            format!("the value of tag `{key}` is {}", quote(&spot.value)),
            format!("1 to {MAX_TAG} bytes without control characters"),
        ));
    }
    Ok(spot.value)
}

/// `attempts: 1, on: [exit, signal, timeout, oom], backoff: 1s, max_backoff: 1m, max_lost: 5`.
pub fn default_retry() -> v1::Retry {
    v1::Retry {
        attempts: 1,
        on: [v1::Cause::Exit, v1::Cause::Signal, v1::Cause::Timeout, v1::Cause::Oom].map(i32::from).to_vec(),
        backoff_ms: 1_000,
        max_backoff_ms: 60_000,
        max_lost: 5,
    }
}

pub fn retry(node: Option<&Node>) -> Result<v1::Retry, Problem> {
    let mut retry = default_retry();
    let Some(node) = node else { return Ok(retry) };
    let fields = Fields::open(node, "`retry`", &["attempts", "on", "backoff", "max_backoff", "max_lost"])?;
    if let Some(node) = fields.get("attempts") {
        retry.attempts = fields::whole(node, "`attempts`", 1, 1000)?;
    }
    if let Some(node) = fields.get("on") {
        retry.on.clear();
        for node in fields::list(node, "`on`")? {
            let word = fields::text(node, "an entry of `on`")?;
            let cause = v1::Cause::parse(&word.value)
                .filter(|cause| RETRIABLE.contains(&cause.lower()) && cause.lower() == word.value);
            match (cause, word.value.as_str()) {
                (Some(cause), _) => retry.on.push(cause.into()),
                (None, "lost" | "infra") => {
                    return Err(Problem::at(
                        word.at,
                        format!(
                            "`{}` in `on`: losses of the infrastructure are always tried again",
                            word.value
                        ),
                        "`max_lost` to bound them",
                    ));
                }
                (None, _) => {
                    return Err(Problem::at(
                        word.at,
                        format!("`on` names {}", quote(&word.value)),
                        fields::any_of(&RETRIABLE),
                    ));
                }
            }
        }
    }
    if let Some(node) = fields.get("backoff") {
        retry.backoff_ms = fields::duration_ms(node, "`backoff`")?;
        retry.max_backoff_ms = retry.max_backoff_ms.max(retry.backoff_ms);
    }
    if let Some(node) = fields.get("max_backoff") {
        retry.max_backoff_ms = fields::duration_ms(node, "`max_backoff`")?;
        if retry.max_backoff_ms < retry.backoff_ms {
            return Err(Problem::at(node.at, "`max_backoff` is shorter than `backoff`", "at least as much"));
        }
    }
    if let Some(node) = fields.get("max_lost") {
        retry.max_lost = fields::whole(node, "`max_lost`", 0, 1000)?;
    }
    Ok(retry)
}

/// Unspecified: the coordinator's default.
pub fn sandbox(node: Option<&Node>) -> Result<v1::SandboxLevel, Problem> {
    let Some(node) = node else { return Ok(v1::SandboxLevel::Unspecified) };
    let word = fields::one_of(node, "`sandbox`", &["strict", "basic", "none"])?;
    Ok(v1::SandboxLevel::parse(word).unwrap_or(v1::SandboxLevel::Unspecified))
}

pub fn on_disconnect(node: Option<&Node>) -> Result<v1::OnDisconnect, Problem> {
    let Some(node) = node else { return Ok(v1::OnDisconnect::Keep) };
    Ok(match fields::one_of(node, "`on_disconnect`", &["keep", "kill"])? {
        "kill" => v1::OnDisconnect::Kill,
        _ => v1::OnDisconnect::Keep,
    })
}

pub fn network(node: Option<&Node>) -> Result<v1::Network, Problem> {
    let Some(node) = node else { return Ok(v1::Network::None) };
    Ok(match fields::one_of(node, "`network`", &["none", "host"])? {
        "host" => v1::Network::Host,
        _ => v1::Network::None,
    })
}

/// `[{name, to, read_only}]`, in a file tree of the task's own.
pub fn mounts(node: Option<&Node>, sandbox: Option<&Node>) -> Result<Vec<v1::Mount>, Problem> {
    let Some(list) = node else { return Ok(Vec::new()) };
    let nodes = fields::list(list, "`mounts`")?;
    if let Some(sandbox) = sandbox
        && !matches!(self::sandbox(Some(sandbox))?, v1::SandboxLevel::Strict)
    {
        return Err(Problem::at(
            list.at,
            "`mounts` needs a file tree of the task's own, which this level of `sandbox` has not",
            "`sandbox: strict`, or none of the two",
        ));
    }
    if nodes.len() > MAX_MOUNTS {
        return Err(Problem::at(
            list.at,
            format!("`mounts` has {} entries", nodes.len()),
            format!("at most {MAX_MOUNTS}"),
        ));
    }
    let mut mounts: Vec<v1::Mount> = Vec::new();
    for node in nodes {
        let fields = Fields::open(node, "a mount", &["name", "to", "read_only"])?;
        let (Some(name), Some(to)) = (fields.get("name"), fields.get("to")) else {
            return Err(Problem::at(node.at, "this mount lacks its name or its place", "`name` and `to`"));
        };
        let name = fields::name(name, "the mount's name")?.value;
        let to = fields::text(to, "`to`")?;
        check_place(&to.value, mounts.iter().map(|mount| mount.to.as_str())).map_err(|error| {
            let what = format!("the mount's place {} {error}", quote(&to.value));
            let expected = match error {
                PlaceError::Path => "an absolute path, such as /data",
                PlaceError::Taken | PlaceError::Nested => "a place of its own, such as /data",
            };
            Problem::at(to.at, what, expected)
        })?;
        let read_only =
            fields.get("read_only").map_or(Ok(false), |node| fields::truth(node, "`read_only`"))?;
        mounts.push(v1::Mount { name, to: to.value, read_only });
    }
    Ok(mounts)
}
