//! What the coordinators of one mesh share beside the database: the CA, under a seal in the
//! database, and the directory of blobs and output. Whoever lacks either does not start: as a
//! leader it would be a stranger to every node, or answer for content that it does not have.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use mesh_certs::Ca;
use mesh_proto::ids::MeshId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::ServeError;
use crate::{
    config::Config,
    credentials::pki_dir,
    seal,
    store::{Authority, Store, StoreError, leader},
};

/// Shorter secrets can be guessed.
const SHORTEST: usize = 16;
/// Longer files are no secrets.
const LONGEST: usize = 64 * 1024;
/// The file by which a coordinator knows the shared store again.
const MARKER: &str = "mesh-store.json";

/// Why a coordinator cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    #[error("cannot read the mesh's secret from {}", .path.display())]
    Secret { path: PathBuf, source: io::Error },
    #[error(
        "the secret in {} has fewer than {SHORTEST} bytes: make one with \
         `head -c 32 /dev/urandom | base64`", .0.display()
    )]
    ShortSecret(PathBuf),
    #[error(
        "the secret in {} is not this mesh's: its CA does not open with it. Give every coordinator the \
         same --mesh-secret-file", .0.display()
    )]
    WrongSecret(PathBuf),
    #[error(
        "this mesh is set up for several coordinators: give this one the --mesh-secret-file and \
         the --store-dir that the others have"
    )]
    NoSecret,
    #[error(
        "this database belongs to a mesh whose CA is neither in {} nor in the database. If another \
         coordinator keeps it, start that one with --mesh-secret-file and --store-dir first, then this one \
         with the same; if it was lost, restore that directory from a backup", .0.display()
    )]
    NoAuthority(PathBuf),
    #[error("the CA in {} is not the one of this mesh's other coordinators: move that directory away", .0.display())]
    OtherAuthority(PathBuf),
    #[error("the CA in the database is damaged")]
    Damaged,
    #[error(
        "{} is not the store of this mesh's other coordinators (its {MARKER} is {found}): give as --store-dir \
         the one directory that all of them see, not a copy of it", .dir.display()
    )]
    OtherStore { dir: PathBuf, found: &'static str },
    #[error(
        "blobs and output of this mesh lie in {}: move `blobs` and `output` from there to {} first", .from.display(),
        .to.display()
    )]
    NotMoved { from: PathBuf, to: PathBuf },
    #[error(
        "another coordinator of this mesh is connected to the database as {0}, whose connections this one's role \
         may not end, as it must when it follows a leader that froze in the middle of a commit: name the same \
         role in every --database-url, or GRANT {0} to this one's"
    )]
    OtherRole(String),
    #[error("cannot use the store {}", .path.display())]
    Store { path: PathBuf, source: io::Error },
}

/// The mesh's CA: from the data directory, or from the database where the coordinators share one.
/// Made at the first start of the mesh, and only then.
pub(super) async fn authority(
    config: &Config,
    store: &Store,
    mesh: MeshId,
    data_dir: &Path,
) -> Result<Ca, ServeError> {
    let dir = pki_dir(data_dir)?;
    let own = if Ca::is_in(&dir) { Some(Ca::load_or_create(&dir, mesh)?) } else { None };
    let mut kept = store.authority().await?;
    let Some(path) = &config.mesh_secret_file else {
        return match (kept, own) {
            (Some(_), _) => Err(SharedError::NoSecret.into()),
            (None, Some(own)) => Ok(own),
            (None, None) if is_new(store).await? => Ok(Ca::load_or_create(&dir, mesh)?),
            (None, None) => Err(SharedError::NoAuthority(dir).into()),
        };
    };
    let secret = read_secret(path)?;
    let purpose = format!("ca of mesh {mesh}");
    if kept.is_none() {
        let first = match &own {
            Some(own) => sealed(own, &secret, &purpose),
            None if is_new(store).await? => sealed(&Ca::generate(mesh)?, &secret, &purpose),
            None => return Err(SharedError::NoAuthority(dir).into()),
        };
        // Of several first ones the database keeps one.
        store.share_authority(&first).await?;
        kept = store.authority().await?;
    }
    let kept = kept.ok_or(SharedError::Damaged)?;
    let key = seal::open(&secret, &purpose, &kept.key).map_err(|_| SharedError::WrongSecret(path.clone()))?;
    let key = String::from_utf8(key).map_err(|_| SharedError::Damaged)?;
    let ca = Ca::from_pem(&kept.certificate_pem, &key)?;
    match own {
        Some(own) if own.pin() != ca.pin() => return Err(SharedError::OtherAuthority(dir).into()),
        Some(_) => {}
        // For `admin-credential`, which needs no database.
        None => ca.save(&dir)?,
    }
    Ok(ca)
}

fn sealed(ca: &Ca, secret: &[u8], purpose: &str) -> Authority {
    Authority { certificate_pem: ca.cert_pem(), key: seal::seal(secret, purpose, ca.key_pem().as_bytes()) }
}

/// A stand-by ends connections of the leader that it follows.
pub(super) async fn role(store: &Store) -> Result<(), ServeError> {
    match store.role_out_of_reach().await? {
        Some(role) => Err(SharedError::OtherRole(role).into()),
        None => Ok(()),
    }
}

/// Whether nobody ever led this mesh, so that no node can know a CA of it.
async fn is_new(store: &Store) -> Result<bool, StoreError> {
    let mut connection = store.connection().await?;
    let row = leader::read(&mut connection).await?;
    Ok(row.epoch == 0)
}

fn read_secret(path: &Path) -> Result<Vec<u8>, SharedError> {
    let mut secret =
        fs::read(path).map_err(|source| SharedError::Secret { path: path.to_owned(), source })?;
    secret.truncate(LONGEST);
    while secret.last().is_some_and(u8::is_ascii_whitespace) {
        secret.pop();
    }
    if secret.len() < SHORTEST {
        return Err(SharedError::ShortSecret(path.to_owned()));
    }
    Ok(secret)
}

/// What the marker file says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    mesh: MeshId,
    store: Uuid,
}

/// The directory of blobs and output. A shared one is known by its marker file.
pub(super) async fn store_dir(
    config: &Config,
    store: &Store,
    mesh: MeshId,
    data_dir: &Path,
) -> Result<PathBuf, ServeError> {
    let Some(dir) = &config.store_dir else { return Ok(data_dir.to_owned()) };
    let failed = |source| SharedError::Store { path: dir.clone(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    if dir != data_dir && data_dir.join("blobs").exists() && !dir.join("blobs").exists() {
        return Err(SharedError::NotMoved { from: data_dir.to_owned(), to: dir.clone() }.into());
    }
    if config.mesh_secret_file.is_some() {
        let known = store.store_id().await?;
        let found = marker(dir)?;
        let other = |found| SharedError::OtherStore { dir: dir.clone(), found };
        let marker = match (known, found) {
            (_, Some(found)) if found.mesh != mesh => return Err(other("of another mesh").into()),
            (_, Some(found)) => found,
            (None, None) => mark(dir, mesh).map_err(failed)?,
            (Some(_), None) => return Err(other("missing").into()),
        };
        if store.name_store(marker.store).await? != marker.store {
            return Err(other("of another store").into());
        }
    }
    Ok(dir.clone())
}

fn marker(dir: &Path) -> Result<Option<Marker>, SharedError> {
    match fs::read(dir.join(MARKER)) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|_| SharedError::OtherStore { dir: dir.to_owned(), found: "damaged" }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SharedError::Store { path: dir.to_owned(), source }),
    }
}

/// Marks a new store. Of several that do so at once, all see the same marker afterwards.
fn mark(dir: &Path, mesh: MeshId) -> io::Result<Marker> {
    let new = Marker { mesh, store: Uuid::new_v4() };
    let draft = dir.join(format!("{MARKER}.{}", new.store));
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(&serde_json::to_vec(&new)?)?;
    file.sync_all()?;
    let linked = fs::hard_link(&draft, dir.join(MARKER));
    fs::remove_file(&draft)?;
    match linked {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    fs::File::open(dir)?.sync_all()?;
    Ok(serde_json::from_slice(&fs::read(dir.join(MARKER))?)?)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn two_that_mark_a_store_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = MeshId::generate();
        let first = mark(dir.path(), mesh).unwrap();
        assert_eq!(mark(dir.path(), mesh).unwrap(), first);
        assert_eq!(marker(dir.path()).unwrap(), Some(first));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "drafts are left");
    }

    #[test]
    fn a_secret_that_can_be_guessed_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "letmein\n").unwrap();
        assert!(matches!(read_secret(file.path()), Err(SharedError::ShortSecret(_))));
        fs::write(file.path(), "0123456789abcdef\n").unwrap();
        assert_eq!(read_secret(file.path()).unwrap(), b"0123456789abcdef", "an editor's newline counts");
    }
}
