//! `blob put`, `blob get`, `blob stat`.

use std::{
    io,
    path::{Path, PathBuf},
};

use mesh_proto::{
    digest::{Digest, Hasher},
    v1,
};
use serde_json::Value;

use super::Context;
use crate::{
    download::{self, Wanted},
    error::CliError,
    jobfile,
    output::{self, json, time},
    upload::{self, Content, Upload},
};

/// Put, get and find content by its SHA-256
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Bring a file to the mesh; prints its digest
    Put {
        /// File; - is standard input
        file: String,
    },
    /// Get content by its digest
    Get {
        digest: Digest,
        /// File to write to instead of standard output
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Tell which digests the mesh has; 3 when one is not there
    Stat {
        #[arg(required = true)]
        digests: Vec<Digest>,
    },
}

pub async fn run(context: &Context, command: Command) -> Result<u8, CliError> {
    match command {
        Command::Put { file } => put(context, &file).await,
        Command::Get { digest, to } => get(context, digest, to.as_deref()).await,
        Command::Stat { digests } => stat(context, &digests).await,
    }
}

async fn put(context: &Context, file: &str) -> Result<u8, CliError> {
    let client = context.client()?;
    // Standard input can be read once, and its digest goes before its bytes.
    let mut spool = None;
    let (path, digest, size) = if file == "-" {
        let failed = |error| CliError::io("standard input", error);
        let mut spooled = tempfile::NamedTempFile::new().map_err(failed)?;
        let mut hashing = Hashing { hasher: Hasher::default(), to: spooled.as_file_mut() };
        let size = io::copy(&mut io::stdin().lock(), &mut hashing).map_err(failed)?;
        let digest = hashing.hasher.finish();
        let path = spooled.path().to_owned();
        spool = Some(spooled);
        (path, digest, size)
    } else {
        let path = PathBuf::from(file);
        let (digest, size) =
            jobfile::digest_file(&path).map_err(|error| CliError::io(path.display(), error))?;
        (path, digest, size)
    };
    upload::all(&client, context.out, vec![Upload { digest, size, content: Content::File(path) }]).await?;
    drop(spool);
    context.out.show(|| json::blob(digest, size), || digest.to_string())?;
    Ok(0)
}

struct Hashing<'a> {
    hasher: Hasher,
    to: &'a mut std::fs::File,
}

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

async fn get(context: &Context, digest: Digest, to: Option<&Path>) -> Result<u8, CliError> {
    let client = context.client()?;
    let Some(to) = to else {
        download::content(&client, digest, output::print).await?;
        return Ok(0);
    };
    let found = upload::stat(&client, &[digest]).await?;
    let Some((_, size)) = found.first() else { return Err(missing(digest)) };
    let root = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let name = to
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| CliError::Usage(format!("--to {}: expected the name of a file", to.display())))?;
    let entry = v1::FileEntry { digest: digest.to_vec(), size: *size, ..v1::FileEntry::default() };
    download::file(&client, root, &Wanted { entry, path: name.to_owned() }).await?;
    Ok(0)
}

fn missing(digest: Digest) -> CliError {
    CliError::NotFound(format!("the mesh has no content {digest}"))
}

async fn stat(context: &Context, digests: &[Digest]) -> Result<u8, CliError> {
    let client = context.client()?;
    let found = upload::stat(&client, digests).await?;
    context.out.show(
        || found.iter().map(|(digest, size)| json::blob(*digest, *size)).collect::<Value>(),
        || {
            let lines =
                found.iter().map(|(digest, size)| format!("{digest} {size} ({})", time::bytes(*size)));
            lines.collect::<Vec<_>>().join("\n")
        },
    )?;
    match digests.iter().find(|digest| !found.iter().any(|(there, _)| there == *digest)) {
        Some(digest) => Err(missing(*digest)),
        None => Ok(0),
    }
}
