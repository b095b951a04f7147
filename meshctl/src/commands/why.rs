//! `why`: why a task waits, why it ran there, why it failed; or what it would find if it asked
//! for something else.

use mesh_proto::{
    names::check_name,
    size::parse_size,
    state::Named as _,
    v1::{self, SandboxLevel},
};

use super::Context;
use crate::{
    error::CliError,
    output::{json, table},
    reference::Reference,
    watch,
};

/// Say why a task waits, ran where it ran, or failed
#[derive(Debug, clap::Args)]
pub struct Args {
    /// JOB, JOB/TASK or JOB/TASK.INDEX; of several tasks the one that most wants explaining
    #[arg(value_name = "JOB[/TASK[.INDEX]]")]
    reference: Reference,
    /// What it would find if it asked for this instead: cpu=N, memory=SIZE, tag.NAME=VALUE
    /// (empty: without the tag), node=NAME (empty: any), sandbox=LEVEL
    #[arg(long = "if", value_name = "KEY=VALUE[,KEY=VALUE…]", value_parser = what_if)]
    what_if: Option<v1::WhatIf>,
}

fn what_if(text: &str) -> Result<v1::WhatIf, String> {
    let mut wanted = v1::WhatIf::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is no KEY=VALUE"))?;
        match key {
            "cpu" => {
                let cores: f64 = value.parse().map_err(|_| format!("cpu is a number, not `{value}`"))?;
                if !(0.001..=1e6).contains(&cores) {
                    return Err("cpu is at least 0.001".to_owned());
                }
                wanted.cpu_millis = Some((cores * 1000.0).round() as u32);
            }
            "memory" => {
                wanted.memory_bytes = Some(parse_size(value).map_err(|error| format!("memory: {error}"))?);
            }
            "node" => wanted.node = Some(value.to_owned()),
            "sandbox" => {
                let level = SandboxLevel::parse(value)
                    .ok_or_else(|| format!("`{value}` is no sandbox level: strict, basic or none"))?;
                wanted.sandbox = Some(level.into());
            }
            _ => {
                let tag = key
                    .strip_prefix("tag.")
                    .ok_or_else(|| format!("`{key}` is none of cpu, memory, tag.NAME, node, sandbox"))?;
                check_name(tag).map_err(|error| format!("the tag `{tag}` {error}"))?;
                if value.is_empty() {
                    wanted.without_tags.push(tag.to_owned());
                } else {
                    wanted.tags.insert(tag.to_owned(), value.to_owned());
                }
            }
        }
    }
    Ok(wanted)
}

pub async fn run(context: &Context, args: &Args) -> Result<u8, CliError> {
    let client = context.client()?;
    let mut request = v1::ExplainTaskRequest {
        job: args.reference.job.clone(),
        what_if: args.what_if.clone(),
        ..v1::ExplainTaskRequest::default()
    };
    if args.reference.task.is_some() {
        let job = watch::get(&client, &args.reference.job).await?;
        let selection = args.reference.select(&job)?;
        request.job = job.number.to_string();
        request.task = selection.task;
        request.index = selection.index;
    }
    let answer = client
        .call(|| {
            let (mut jobs, request) = (client.jobs(), request.clone());
            async move { jobs.explain_task(request).await }
        })
        .await?;
    context.out.show(|| json::why(&answer), || table::why(context.out, &answer))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suppositions_are_read() {
        let wanted = what_if("cpu=2,tag.site=lab,memory=512MiB,node=,tag.gone=").unwrap();
        assert_eq!(wanted.cpu_millis, Some(2000));
        assert_eq!(wanted.memory_bytes, Some(512 << 20));
        assert_eq!(wanted.tags["site"], "lab");
        assert_eq!(wanted.without_tags, ["gone"]);
        assert_eq!(wanted.node.as_deref(), Some(""));
        assert_eq!(what_if("cpu=0.5").unwrap().cpu_millis, Some(500));
    }

    #[test]
    fn what_cannot_be_supposed_is_told() {
        for (text, part) in [
            ("cpu", "`cpu` is no KEY=VALUE"),
            ("cpu=x", "cpu is a number"),
            ("cpu=NaN", "cpu is at least"),
            ("cpu=-1", "cpu is at least"),
            ("colour=red", "`colour` is none of"),
            ("tag.A=1", "the tag `A`"),
            ("memory=much", "memory: "),
            ("sandbox=soft", "`soft` is no sandbox level"),
        ] {
            let error = what_if(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
