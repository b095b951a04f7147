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
use mesh_proto::ids::CoordinatorId;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

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
/// or for another mesh or CA; pointed at the endpoints of today.
pub fn keep_admin_credential(
    ca: &Ca,
    data_dir: &Path,
    endpoints: &[String],
) -> Result<(PathBuf, Credential), CredentialError> {
    let path = admin_file(data_dir);
    let credential = match Credential::load(&path) {
        Ok(kept) if kept.ca == ca.cert_pem() && !expires_soon(&kept) => {
            Credential { endpoints: endpoints.to_vec(), ..kept }
        }
        Ok(_) | Err(_) => admin_credential(ca, "admin", endpoints)?,
    };
    credential.save(&path)?;
    Ok((path, credential))
}

/// Where the admin's credential lies.
pub fn admin_file(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.credential")
}

/// Whether less than half of its life is left, or it cannot be told.
fn expires_soon(credential: &Credential) -> bool {
    let half = chrono::Duration::from_std(USER_LIFETIME / 2).unwrap_or_default();
    let ends = CertificateDer::from_pem_slice(credential.cert.as_bytes())
        .ok()
        .and_then(|der| mesh_certs::not_after(&der).ok());
    ends.is_none_or(|ends| ends - chrono::Utc::now() < half)
}

/// Puts the credential where meshctl looks, unless the caller names one in `MESH_CREDENTIAL`.
/// Failing is no reason not to serve.
pub fn install_default(credential: &Credential) {
    if std::env::var_os("MESH_CREDENTIAL").is_some() {
        return;
    }
    let Ok(base) = etcetera::choose_base_strategy() else { return };
    let path = base.config_dir().join("mesh/credential");
    if let Err(error) = install(&path, credential) {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(path = %path.display(), error, "cannot install the admin's credential as the default");
    }
}

/// Keeps a file in step with the credential, unless it is of another mesh or none at all.
fn install(path: &Path, credential: &Credential) -> Result<(), CredentialError> {
    let ours = match Credential::load(path) {
        Ok(kept) => kept.mesh == credential.mesh,
        Err(_) => !path.exists(),
    };
    if !ours {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(|source| CredentialError::Make { path: dir.to_owned(), source })?;
    }
    Ok(credential.save(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use mesh_certs::Identity;
    use mesh_proto::ids::MeshId;

    use super::*;

    fn ca() -> Ca {
        Ca::generate(MeshId::generate()).unwrap()
    }

    fn at(port: u16) -> Vec<String> {
        vec![format!("mesh.example:{port}")]
    }

    #[test]
    fn the_id_of_an_installation_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = coordinator_id(dir.path()).unwrap();
        assert_eq!(coordinator_id(dir.path()).unwrap(), first);
        fs::write(dir.path().join("coordinator.id"), "half a").unwrap();
        let error = coordinator_id(dir.path()).unwrap_err();
        assert!(matches!(error, CredentialError::Id(_)), "a damaged id is told, not replaced: {error}");
    }

    #[test]
    fn the_directory_of_the_ca_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki_dir(dir.path()).unwrap();
        assert_eq!(fs::metadata(&pki).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(pki_dir(dir.path()).unwrap(), pki, "again");
        let error = pki_dir(&dir.path().join("no/where")).unwrap_err();
        assert!(matches!(error, CredentialError::Make { .. }), "{error}");
    }

    #[test]
    fn the_admins_credential_stays_while_it_is_good_and_follows_the_endpoints() {
        let dir = tempfile::tempdir().unwrap();
        let ca = ca();
        let (path, first) = keep_admin_credential(&ca, dir.path(), &at(1)).unwrap();
        assert_eq!(first.identity().unwrap(), Identity::User("admin".to_owned()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (_, again) = keep_admin_credential(&ca, dir.path(), &at(2)).unwrap();
        assert_eq!((&again.cert, &again.endpoints), (&first.cert, &at(2)));
        assert_eq!(Credential::load(&path).unwrap().endpoints, at(2));
    }

    #[test]
    fn an_admins_credential_that_is_of_no_use_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let ca = ca();
        let (path, first) = keep_admin_credential(&ca, dir.path(), &at(1)).unwrap();
        let made_anew = |what: &str| {
            let (_, again) = keep_admin_credential(&ca, dir.path(), &at(1)).unwrap();
            assert_ne!(again.cert, first.cert, "{what}");
            assert_eq!(again.ca, ca.cert_pem(), "{what}");
        };
        fs::write(&path, "no credential").unwrap();
        made_anew("damaged");
        let short = ca.issue_user("admin", Duration::from_hours(1)).unwrap();
        Credential::new(&ca, at(1), short).save(&path).unwrap();
        made_anew("about to expire");
        // The CA was made anew for the same mesh: the old certificate opens no door.
        let other = Ca::generate(ca.mesh()).unwrap();
        admin_credential(&other, "admin", &at(1)).unwrap().save(&path).unwrap();
        made_anew("of another CA");
        admin_credential(&self::ca(), "admin", &at(1)).unwrap().save(&path).unwrap();
        made_anew("of another mesh");
    }

    #[test]
    fn a_default_credential_of_another_mesh_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config/mesh/credential");
        let (mine, theirs) = (ca(), ca());
        let first = admin_credential(&mine, "admin", &at(1)).unwrap();
        install(&path, &first).unwrap();
        let moved = Credential { endpoints: at(2), ..first };
        install(&path, &moved).unwrap();
        assert_eq!(Credential::load(&path).unwrap().endpoints, at(2), "kept in step");
        install(&path, &admin_credential(&theirs, "admin", &at(3)).unwrap()).unwrap();
        assert_eq!(Credential::load(&path).unwrap().mesh, mine.mesh());
        fs::write(&path, "something else").unwrap();
        install(&path, &moved).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "something else", "what we do not know we keep");
    }
}
