//! The files by which this installation and its admin are known: the coordinator's id, its
//! certificate, and the admin's credential.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use etcetera::BaseStrategy as _;
use mesh_certs::{Ca, CertError, Credential, KeyedCert, write_private};
use mesh_proto::ids::{CoordinatorId, MeshId};

/// How long the coordinator's own certificate is good for; it is replaced daily.
pub const SERVER_LIFETIME: Duration = Duration::from_hours(24 * 30);
/// How long a user's certificate is good for.
const USER_LIFETIME: Duration = Duration::from_hours(24 * 365);

/// What can go wrong with these files.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("cannot create {path}")]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{0} does not hold a coordinator's id; restore it, or remove it to make a new one")]
    Id(PathBuf),
    #[error(transparent)]
    Cert(#[from] CertError),
}

/// Where the CA's key and certificate lie, for their owner alone.
pub fn pki_dir(data_dir: &Path) -> Result<PathBuf, CredentialError> {
    let path = data_dir.join("pki");
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(CredentialError::Make { path, source })
        }
        Ok(()) | Err(_) => Ok(path),
    }
}

/// The id of this installation, made at its first start.
pub fn coordinator_id(data_dir: &Path) -> Result<CoordinatorId, CredentialError> {
    let path = data_dir.join("coordinator.id");
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| CredentialError::Id(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = CoordinatorId::generate();
            write_private(&path, format!("{id}\n").as_bytes())?;
            Ok(id)
        }
        Err(source) => Err(CredentialError::Read { path, source }),
    }
}

/// A fresh certificate for the coordinator's ports.
pub fn server_certificate(
    ca: &Ca,
    id: CoordinatorId,
    hosts: &[String],
) -> Result<KeyedCert, CredentialError> {
    Ok(ca.issue_coordinator(id, hosts, SERVER_LIFETIME)?)
}

/// A new credential for a user, who becomes an admin.
pub fn admin_credential(ca: &Ca, user: &str, endpoints: &[String]) -> Result<Credential, CredentialError> {
    let cert = ca.issue_user(user, USER_LIFETIME)?;
    Ok(Credential::new(ca, endpoints.to_vec(), cert))
}

/// Keeps `admin.credential` in the data directory good: made when it is missing or unusable,
/// or for another mesh; pointed at the endpoints of today. The caller's default credential is
/// made when they have none, and kept in step when it is this mesh's.
pub fn keep_admin_credential(
    ca: &Ca,
    data_dir: &Path,
    endpoints: &[String],
) -> Result<PathBuf, CredentialError> {
    let path = data_dir.join("admin.credential");
    let credential = match Credential::load(&path) {
        Ok(kept) if is_of(&kept, ca.mesh()) && !expires_soon(&kept) => {
            Credential { endpoints: endpoints.to_vec(), ..kept }
        }
        Ok(_) | Err(_) => admin_credential(ca, "admin", endpoints)?,
    };
    credential.save(&path)?;
    install_default(&credential, ca.mesh());
    Ok(path)
}

fn is_of(credential: &Credential, mesh: MeshId) -> bool {
    credential.mesh.to_string() == mesh.to_string()
}

/// Whether less than half of its life is left, or it cannot be told.
fn expires_soon(credential: &Credential) -> bool {
    let half = chrono::Duration::from_std(USER_LIFETIME / 2).unwrap_or_default();
    rustls_pem(&credential.cert).is_none_or(|der| {
        mesh_certs::not_after(&der).is_ok_and(|not_after| not_after - chrono::Utc::now() < half)
    })
}

fn rustls_pem(pem: &str) -> Option<rustls::pki_types::CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject as _;
    rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

/// Puts the credential where meshctl looks, unless the caller has one of another mesh there or
/// names one in `MESH_CREDENTIAL`. Failing is no reason not to serve.
fn install_default(credential: &Credential, mesh: MeshId) {
    if std::env::var_os("MESH_CREDENTIAL").is_some() {
        return;
    }
    let Ok(base) = etcetera::choose_base_strategy() else { return };
    let path = base.config_dir().join("mesh/credential");
    let ours = match Credential::load(&path) {
        Ok(kept) => is_of(&kept, mesh),
        Err(_) => !path.exists(),
    };
    if !ours {
        return;
    }
    let made = path.parent().map(fs::create_dir_all).transpose();
    if let Err(error) = made
        .map_err(|error| error.to_string())
        .and_then(|_| credential.save(&path).map_err(|error| error.to_string()))
    {
        tracing::warn!(path = %path.display(), %error, "cannot install the admin's credential as the default");
    }
}
