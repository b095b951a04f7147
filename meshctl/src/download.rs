//! Content from the mesh into local files: verified by its digest, put in place whole, and
//! never outside the directory that the person named.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use mesh_proto::{
    digest::{Digest, Hasher},
    names, v1,
};
use tonic::Status;

use crate::{
    client::{Client, Patience},
    error::CliError,
    jobfile,
};

/// A file to be written below a directory.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub entry: v1::FileEntry,
    /// Relative to the directory.
    pub path: String,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written,
    /// The same content was there already.
    Kept,
    Directory,
}

/// Writes one file below `root`.
pub async fn file(client: &Client, root: &Path, wanted: &Wanted) -> Result<Outcome, CliError> {
    let target = place(root, &wanted.path)?;
    if wanted.entry.directory {
        fs::create_dir_all(&target).map_err(|error| CliError::io(target.display(), error))?;
        return Ok(Outcome::Directory);
    }
    let digest = Digest::try_from(wanted.entry.digest.as_slice())
        .map_err(|_| CliError::Corrupt(format!("the mesh names {} by no digest", shown(&wanted.path))))?;
    if is_same(&target, digest, wanted.entry.size, wanted.entry.executable) {
        return Ok(Outcome::Kept);
    }
    let parent = target.parent().unwrap_or(root);
    let failed = |error| CliError::io(target.display(), error);
    let mode = if wanted.entry.executable { 0o777 } else { 0o666 };
    // The mode of a new file, less what the person's umask takes away.
    let mut temporary = tempfile::Builder::new()
        .prefix(".mesh-")
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(parent)
        .map_err(failed)?;
    content(client, digest, |data| temporary.write_all(data).map_err(failed)).await?;
    if target.is_dir() {
        return Err(CliError::Usage(format!("{} is a directory and stands in the way", target.display())));
    }
    temporary.persist(&target).map_err(|error| failed(error.error))?;
    Ok(Outcome::Written)
}

/// Hands over the content of a blob, and ends well only when it is the right one. A broken
/// connection goes on where it broke.
pub async fn content(
    client: &Client,
    digest: Digest,
    mut take: impl FnMut(&[u8]) -> Result<(), CliError>,
) -> Result<u64, CliError> {
    let mut hasher = Hasher::default();
    let mut received = 0;
    let mut patience = Patience::short(client);
    loop {
        match piece(client, digest, &mut received, &mut hasher, &mut take, &mut patience).await {
            Ok(()) => break,
            Err(Broken::Local(error)) => return Err(error),
            Err(Broken::Remote(status)) => patience.failed(status).await?,
        }
    }
    let found = hasher.finish();
    if found != digest {
        return Err(CliError::Corrupt(format!("the mesh sent {found} for the content {digest}")));
    }
    Ok(received)
}

enum Broken {
    Local(CliError),
    Remote(Status),
}

async fn piece(
    client: &Client,
    digest: Digest,
    received: &mut u64,
    hasher: &mut Hasher,
    take: &mut impl FnMut(&[u8]) -> Result<(), CliError>,
    patience: &mut Patience<'_>,
) -> Result<(), Broken> {
    let request = v1::GetBlobRequest { digest: digest.to_vec(), offset: *received };
    let mut stream = client.blobs().get(request).await.map_err(Broken::Remote)?.into_inner();
    let mut size = None;
    while let Some(message) = stream.message().await.map_err(Broken::Remote)? {
        patience.succeeded();
        size.get_or_insert(message.size);
        hasher.update(&message.data);
        take(&message.data).map_err(Broken::Local)?;
        *received += message.data.len() as u64;
    }
    if size.is_some_and(|size| *received < size) {
        return Err(Broken::Remote(Status::unavailable("the content ended too early")));
    }
    Ok(())
}

/// The place of `path` below `root`, its directories made. No part of the way below `root`
/// may be a symbolic link: it could lead anywhere.
fn place(root: &Path, path: &str) -> Result<PathBuf, CliError> {
    names::check_path(path).map_err(|error| {
        CliError::Corrupt(format!("the mesh names an output {}, which {error}", shown(path)))
    })?;
    let mut here = root.to_owned();
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    fs::create_dir_all(root).map_err(|error| CliError::io(root.display(), error))?;
    for (at, part) in parts.iter().enumerate() {
        here.push(part);
        let last = at + 1 == parts.len();
        match fs::symlink_metadata(&here) {
            Ok(meta) if meta.is_symlink() && !last => {
                return Err(CliError::Usage(format!(
                    "{} is a symbolic link: nothing is written through it",
                    here.display()
                )));
            }
            Ok(meta) if !meta.is_dir() && !last => {
                return Err(CliError::Usage(format!(
                    "{} is a file, and a directory is needed there",
                    here.display()
                )));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !last {
                    match fs::create_dir(&here) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(CliError::io(here.display(), error));
                        }
                        Ok(()) | Err(_) => {}
                    }
                }
            }
            Err(error) => return Err(CliError::io(here.display(), error)),
        }
    }
    Ok(here)
}

fn shown(path: &str) -> String {
    format!("\"{}\"", names::escape(path))
}

/// Whether the file is there already, byte for byte.
fn is_same(path: &Path, digest: Digest, size: u64, executable: bool) -> bool {
    let Ok(meta) = fs::symlink_metadata(path) else { return false };
    if !meta.is_file() || meta.len() != size || (meta.permissions().mode() & 0o100 != 0) != executable {
        return false;
    }
    jobfile::digest_file(path).is_ok_and(|(found, _)| found == digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_placed_outside() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        fs::write(root.path().join("file"), "x").unwrap();
        for bad in ["../x", "/x", "a/../../x", "", "a\0b", "link/x", "file/x"] {
            assert!(place(root.path(), bad).is_err(), "{bad:?} was placed");
        }
        assert_eq!(place(root.path(), "a/b/c").unwrap(), root.path().join("a/b/c"));
        assert!(root.path().join("a/b").is_dir());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_is_the_same_only_when_everything_is() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        fs::write(&path, "hello").unwrap();
        let digest = Digest::of(b"hello");
        assert!(is_same(&path, digest, 5, false));
        assert!(!is_same(&path, digest, 5, true));
        assert!(!is_same(&path, Digest::of(b"world"), 5, false));
        assert!(!is_same(&root.path().join("g"), digest, 5, false));
        let link = root.path().join("l");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(!is_same(&link, digest, 5, false), "a link is replaced by the file itself");
    }
}
