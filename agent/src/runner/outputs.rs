//! After a process that ended well: what it promised is looked for, and sent.

use std::collections::HashMap;

use mesh_proto::digest::Digest;
use mesh_proto::v1::{Cause, FileEntry};

use super::{Cut, Runner, end, flat, infra, with_sources};
use crate::beneath::Root;
use crate::collect::{self, Bounds, CollectError};

impl Runner<'_> {
    /// The promised outputs, found, hashed and sent.
    pub(super) async fn collect(&self) -> Result<Vec<FileEntry>, Cut> {
        let work = self.context.work_dir(self.job.key);
        let limits = self.context.config.limits;
        let bounds = Bounds {
            files: limits.max_output_files,
            bytes: limits.max_output_size,
            uid: self.context.owner(self.job.slot).map(|owner| owner.uid),
            patience: Bounds::PATIENCE,
        };
        let assignment = self.job.assignment.clone();
        let found = tokio::task::spawn_blocking(move || {
            let root = Root::open(&work, None)?;
            let entries = collect::collect(&root, &assignment.outputs, bounds)?;
            Ok::<_, CollectError>((root, entries))
        });
        let (root, entries) = flat(found.await)?.map_err(|error| match error {
            CollectError::Io(_) => Cut::infra(&error),
            error => Cut::End(Box::new(end(Cause::Output, error.to_string()))),
        })?;
        let files = entries.iter().filter(|entry| !entry.directory);
        let paths: HashMap<Digest, &FileEntry> =
            files.filter_map(|entry| Some((Digest::try_from(&entry.digest[..]).ok()?, entry))).collect();
        let blobs: Vec<(Digest, u64)> = paths.iter().map(|(digest, entry)| (*digest, entry.size)).collect();
        let open = |digest: Digest| match paths.get(&digest) {
            Some(entry) => root.read(&entry.path).map(|(file, _)| file),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        self.context.blobs.upload(&blobs, open).await.map_err(|error| {
            Cut::End(Box::new(infra(format!("its outputs could not be sent: {}", with_sources(&error)))))
        })?;
        Ok(entries)
    }
}
