//! Before an attempt's process: whether this node runs it at its level, its record, its work directory
//! and what is put there.

use std::sync::Arc;

use mesh_proto::digest::Digest;
use mesh_proto::v1::{self, Cause, FileEntry};

use super::{Cut, Runner, end, flat, infra, stopped};
use crate::beneath::{Owner, Root};
use crate::blobs::BlobError;
use crate::config::Level;
use crate::facts::wire_level;
use crate::jail;
use crate::records::RecordError;
use crate::stage;

impl Runner<'_> {
    /// Writes the attempt down and makes its work directory; the level that it is to run at.
    pub(super) async fn prepare(&mut self) -> Result<jail::Level, Cut> {
        let assignment = &self.job.assignment;
        if assignment.inputs.is_empty() && !assignment.inputs_listed {
            // Nothing to wait for: one way to a blocking thread and back.
            let (write, make) = (self.writing(), self.making());
            let staged = tokio::task::spawn_blocking(move || {
                write().map_err(|error| Cut::infra(&error))?;
                make().map(drop).map_err(|error| Cut::stage(&error))
            });
            flat(staged.await)??;
            return self.level();
        }
        flat(tokio::task::spawn_blocking(self.writing()).await)?.map_err(|error| Cut::infra(&error))?;
        let level = self.level()?;
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            stop = stopped(&mut stop) => return Err(Cut::Stopped(stop)),
            staged = self.stage() => staged?,
        }
        Ok(level)
    }

    /// Whether it must not outlive its node's lease.
    pub(super) fn lives_on_lease(&self) -> bool {
        self.job.assignment.on_disconnect() == v1::OnDisconnect::Kill
    }

    /// The level to run at, or why this node does not.
    pub(super) fn level(&self) -> Result<jail::Level, Cut> {
        let refuse = |why: String| Err(Cut::End(Box::new(end(Cause::Sandbox, why))));
        if self.lives_on_lease() && !self.context.jail.knows_leases() {
            return refuse(
                "the jail that runs here is of an older version and would not end it when the node is cut off \
                 (`on_disconnect: kill`); it goes with the last task of that version"
                    .to_owned(),
            );
        }
        match self.job.assignment.sandbox() {
            wanted @ (v1::SandboxLevel::Strict | v1::SandboxLevel::Basic)
                if wire_level(self.context.strongest) < wanted =>
            {
                refuse(format!(
                    "this node cannot confine tasks at level {}; `agent check` says why",
                    if wanted == v1::SandboxLevel::Strict { "strict" } else { "basic" }
                ))
            }
            v1::SandboxLevel::Basic if self.context.config.sandbox_allow == Level::Strict => refuse(
                "this node runs tasks in the strict sandbox alone (--sandbox-allow basic would let it)"
                    .to_owned(),
            ),
            v1::SandboxLevel::None if self.context.config.sandbox_allow != Level::None => refuse(
                "this node does not run tasks without a sandbox (--sandbox-allow none would let it)"
                    .to_owned(),
            ),
            v1::SandboxLevel::None => Ok(jail::Level::None),
            v1::SandboxLevel::Basic => Ok(jail::Level::Basic),
            v1::SandboxLevel::Strict | v1::SandboxLevel::Unspecified => Ok(jail::Level::Strict),
        }
    }

    /// Blocking work: the assignment to its record.
    fn writing(&self) -> impl FnOnce() -> Result<(), RecordError> + Send + 'static {
        let (records, job) = (self.context.records.clone(), &self.job);
        let (key, slot, assignment) = (job.key, job.slot, job.assignment.clone());
        let owner = self.context.owner(slot);
        move || {
            records.write(key, slot, &assignment)?;
            if let Some(Owner { gid, .. }) = owner {
                let dir = records.dir(key);
                std::os::unix::fs::chown(&dir, None, Some(gid))
                    .map_err(|source| RecordError::Io { path: dir, source })?;
            }
            Ok(())
        }
    }

    /// Blocking work: the work directory, without inputs.
    fn making(&self) -> impl FnOnce() -> Result<Root, stage::StageError> + Send + 'static {
        let (path, assignment) = (self.context.work_dir(self.job.key), self.job.assignment.clone());
        let owner = self.context.owner(self.job.slot);
        let in_data_dir = *self.context.work_root == self.context.config.data_dir.join("attempts");
        move || {
            if !in_data_dir && let Some(area) = path.parent() {
                make_area(area, owner).map_err(stage::StageError::Work)?;
            }
            stage::work_dir(&path, owner, &assignment)
        }
    }

    async fn stage(&self) -> Result<(), Cut> {
        let inputs = self.inputs().await?;
        let made = tokio::task::spawn_blocking(self.making());
        let root = Arc::new(flat(made.await)?.map_err(|error| Cut::stage(&error))?);
        for entry in inputs {
            let content = if entry.directory { None } else { Some(self.fetch(&entry).await?) };
            let root = root.clone();
            let placed = tokio::task::spawn_blocking(move || {
                let mut content = content;
                stage::place(&root, &entry, content.as_mut())
            });
            flat(placed.await)?.map_err(|error| Cut::stage(&error))?;
        }
        Ok(())
    }

    async fn inputs(&self) -> Result<Vec<FileEntry>, Cut> {
        if !self.job.assignment.inputs_listed {
            return Ok(self.job.assignment.inputs.clone());
        }
        self.context.rpc.list_inputs(self.job.key).await.map_err(|status| {
            Cut::End(Box::new(end(
                Cause::Staging,
                format!("the coordinator does not list the inputs: {}", status.message()),
            )))
        })
    }

    async fn fetch(&self, entry: &FileEntry) -> Result<std::fs::File, Cut> {
        let staging = |problem: String| Cut::End(Box::new(end(Cause::Staging, problem)));
        let digest = Digest::try_from(&entry.digest[..])
            .map_err(|error| staging(format!("input `{}`: {error}", entry.path)))?;
        self.context.blobs.fetch(digest, entry.size).await.map_err(|error| match error {
            BlobError::Disk(_) | BlobError::Stopped => Cut::infra(&error),
            BlobError::Stalled { .. } => {
                Cut::End(Box::new(infra(format!("input `{}` could not be fetched: {error}", entry.path))))
            }
            BlobError::Missing(_) | BlobError::Corrupt(_) | BlobError::Refused(_) => {
                staging(format!("input `{}`: {error}", entry.path))
            }
        })
    }
}

/// A directory that only the slot's user may pass through.
fn make_area(area: &std::path::Path, owner: Option<Owner>) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    match std::fs::DirBuilder::new().mode(0o710).create(area) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    match owner {
        Some(Owner { gid, .. }) => std::os::unix::fs::chown(area, None, Some(gid)),
        None => Ok(()),
    }
}
