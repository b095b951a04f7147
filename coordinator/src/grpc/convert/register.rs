//! What agents say, as events.

use bytes::Bytes;
use mesh_proto::{
    code::Code,
    ids::{AttemptKey, BootId, SessionId},
    names::check_name,
    v1::{Cause, Ended, FileList, InventoryState, NodeFacts, RegisterNodeRequest, SandboxLevel},
};
use prost::Message as _;
use tonic::Status;

use crate::engine::{
    event::{AttemptEnd, Facts, Held, NodeRecord, Registration},
    types::Resources,
};

/// Longest message of an end, in bytes.
const MAX_TEXT: usize = 1024;
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
    })
}

/// An attempt's end, checked and bounded.
pub fn end(ended: Ended) -> Result<AttemptEnd, Status> {
    let cause = ended.cause();
    if cause == Cause::Unspecified {
        return Err(Code::Invalid.status("an end has no cause"));
    }
    let mut message = ended.message;
    if message.len() > MAX_TEXT {
        let cut = (0..=MAX_TEXT).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(cut);
    }
    let outputs = if ended.outputs.is_empty() {
        Bytes::new()
    } else {
        Bytes::from(FileList { files: ended.outputs }.encode_to_vec())
    };
    Ok(AttemptEnd {
        cause,
        exit_code: (cause == Cause::Exit).then_some(ended.exit_code),
        signal: (cause == Cause::Signal).then_some(ended.signal),
        // Postgres has no NUL in text.
        message: message.replace('\0', "\\0"),
        started: ended.started_at_ms > 0,
        run_ms: ended.run_ms,
        cpu_ms: ended.cpu_ms,
        max_rss_bytes: ended.max_rss_bytes,
        outputs,
        output_length: ended.output_length,
        output: ended.output,
    })
}

/// The level that an agent reports.
#[must_use]
pub fn level(level: i32) -> SandboxLevel {
    SandboxLevel::try_from(level).unwrap_or_default()
}
