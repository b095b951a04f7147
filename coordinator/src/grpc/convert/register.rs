//! What agents say, as events.

use bytes::Bytes;
use mesh_proto::{
    code::Code,
    digest::Digest,
    ids::{AttemptKey, BootId, SessionId},
    limits::{INLINE_OUTPUT, MAX_ENTRIES},
    names::{check_name, check_path},
    v1::{Cause, Ended, FileEntry, FileList, InventoryState, NodeFacts, RegisterNodeRequest, SandboxLevel},
};
use prost::Message as _;
use tonic::Status;

use crate::engine::{
    event::{AttemptEnd, Facts, Held, NodeRecord, Registration},
    types::Resources,
};

/// Longest message of an end, in bytes.
const MAX_TEXT: usize = 1024;
/// The largest number that the database holds.
const MOST: u64 = i64::MAX as u64;
/// Most attempts of one inventory.
const MAX_INVENTORY: usize = 100_000;

/// A registration, checked.
pub fn registration(
    request: &RegisterNodeRequest,
    record: NodeRecord,
    session: SessionId,
) -> Result<Registration, Status> {
    let invalid = |what: &str| Code::Invalid.status(format!("the registration {what}"));
    let boot: BootId = request.boot_id.parse().map_err(|_| invalid("has no boot id"))?;
    let facts = request.facts.as_ref().ok_or_else(|| invalid("has no facts"))?;
    if request.inventory.len() > MAX_INVENTORY {
        return Err(invalid("lists too many attempts"));
    }
    let inventory = request
        .inventory
        .iter()
        .map(|item| {
            let attempt = AttemptKey::try_from(item.attempt).map_err(|error| invalid(&error.to_string()))?;
            let held = match item.state() {
                InventoryState::Unspecified | InventoryState::Accepted => Held::Accepted,
                InventoryState::Running => Held::Running,
                InventoryState::Ended => Held::Ended,
            };
            Ok((attempt, held))
        })
        .collect::<Result<_, Status>>()?;
    Ok(Registration {
        node: record.id,
        session,
        boot,
        facts: node_facts(facts)?,
        encoded_facts: Bytes::from(facts.encode_to_vec()),
        inventory,
        record,
    })
}

fn node_facts(facts: &NodeFacts) -> Result<Facts, Status> {
    let names = facts.tags.keys().chain(&facts.capabilities).chain(facts.resources.keys());
    for name in names {
        check_name(name).map_err(|error| Code::Invalid.status(format!("the fact {name:?} {error}")))?;
    }
    // An agent that is about to stop registers without slots and processors: nothing fits there.
    if (facts.slots == 0) != (facts.cpu_millis == 0) {
        return Err(Code::Invalid.status("the facts have slots without processors, or these without those"));
    }
    let sandbox = facts.sandbox.clone().unwrap_or_default();
    for mount in &sandbox.mounts {
        check_name(&mount.name)
            .map_err(|error| Code::Invalid.status(format!("the mount {:?} {error}", mount.name)))?;
    }
    Ok(Facts {
        total: Resources {
            cpu_millis: u64::from(facts.cpu_millis),
            memory: facts.memory_bytes,
            named: facts.resources.clone().into_iter().collect(),
        },
        slots: facts.slots,
        tags: facts.tags.clone().into_iter().collect(),
        capabilities: facts.capabilities.iter().cloned().collect(),
        os: facts.os.clone(),
        arch: facts.arch.clone(),
        sandbox: (sandbox.strongest(), sandbox.weakest()),
        cgroup: sandbox.limits == "cgroup",
        host_network: sandbox.host_network,
        mounts: sandbox.mounts.into_iter().map(|mount| (mount.name, !mount.read_only)).collect(),
    })
}

/// An attempt's end, checked and bounded.
pub fn end(ended: Ended) -> Result<AttemptEnd, Status> {
    let ended_cause = ended.cause();
    if ended_cause == Cause::Unspecified {
        return Err(Code::Invalid.status("an end has no cause"));
    }
    // What other nodes and people are handed must be what they can take. The attempt still has
    // to end, or its agent would say the same again for ever.
    let bad = bad_output(&ended.outputs);
    let cause = if bad.is_some() { Cause::Output } else { ended_cause };
    // Postgres has no NUL in text.
    let mut message = bad.unwrap_or(ended.message).replace('\0', "\\0");
    message.truncate(message.floor_char_boundary(MAX_TEXT));
    let outputs = if ended.outputs.is_empty() || cause != ended_cause {
        Bytes::new()
    } else {
        Bytes::from(FileList { files: ended.outputs }.encode_to_vec())
    };
    let output = if ended.output.len() > INLINE_OUTPUT { Bytes::new() } else { ended.output };
    Ok(AttemptEnd {
        cause,
        exit_code: (cause == Cause::Exit).then_some(ended.exit_code),
        signal: (cause == Cause::Signal).then_some(ended.signal),
        message,
        started: ended.started_at_ms > 0,
        run_ms: ended.run_ms.min(MOST),
        cpu_ms: ended.cpu_ms.min(MOST),
        max_rss_bytes: ended.max_rss_bytes.min(MOST),
        outputs,
        output_length: ended.output_length.min(MOST),
        output,
    })
}

/// What is wrong with the files that an attempt left, if anything is.
fn bad_output(files: &[FileEntry]) -> Option<String> {
    if files.len() > MAX_ENTRIES {
        return Some(format!("{} output files, at most {MAX_ENTRIES} are allowed", files.len()));
    }
    files.iter().find_map(|file| match check_path(&file.path) {
        Err(error) => Some(format!("the output {:?} {error}", file.path)),
        Ok(()) if !file.directory && Digest::try_from(&file.digest[..]).is_err() => {
            Some(format!("the output {:?} has no SHA-256 digest", file.path))
        }
        Ok(()) => None,
    })
}

/// The level that an agent reports.
#[must_use]
pub fn level(level: i32) -> SandboxLevel {
    SandboxLevel::try_from(level).unwrap_or_default()
}
