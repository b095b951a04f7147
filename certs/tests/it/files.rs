//! Keys and credentials on disk.

use std::{fs, os::unix::fs::PermissionsExt as _};

use mesh_certs::{Ca, Credential, Identity, NodeKey};
use mesh_proto::ids::MeshId;

use crate::support::HOUR;

type Change = fn(&mut Credential, &Ca);

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn secrets_are_readable_by_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::load_or_create(dir.path(), MeshId::generate()).unwrap();
    assert_eq!(mode(&dir.path().join("ca.key")), 0o600);

    let path = dir.path().join("node.key");
    let key = NodeKey::load_or_create(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(NodeKey::load_or_create(&path).unwrap().fingerprint(), key.fingerprint());

    let path = dir.path().join("admin.credential");
    // A file that others could read is replaced by one that they cannot.
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let user = ca.issue_user("admin", HOUR).unwrap();
    Credential::new(&ca, vec!["10.0.0.7:7443".into()], user).save(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "temporary files stay behind: {left:?}");
}

#[test]
fn a_credential_survives_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("credential");
    let ca = Ca::generate(MeshId::generate()).unwrap();
    let user = ca.issue_user("ada", HOUR).unwrap();
    Credential::new(&ca, vec!["10.0.0.7:7443".into(), "[::1]:7443".into()], user).save(&path).unwrap();
    let read = Credential::load(&path).unwrap();
    assert_eq!(read.mesh, ca.mesh());
    assert_eq!(read.endpoints, ["10.0.0.7:7443", "[::1]:7443"]);
    assert_eq!(read.ca_der().unwrap(), ca.cert_der());
    assert_eq!(read.identity().unwrap(), Identity::User("ada".into()));
    assert!(!format!("{read:?}").contains("PRIVATE"));
}

#[test]
fn a_broken_credential_says_where_and_what() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("credential");
    let missing = Credential::load(&path).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read") && missing.contains("credential"), "{missing}");

    let ca = Ca::generate(MeshId::generate()).unwrap();
    let other = Ca::generate(MeshId::generate()).unwrap();
    let good = Credential::new(&ca, vec!["a:1".into()], ca.issue_user("ada", HOUR).unwrap());
    let broken: [(Change, &str); 7] = [
        (|it, _| it.endpoints.clear(), "names no endpoint"),
        (|it, _| it.endpoints = vec!["a".into()], "HOST:PORT"),
        (|it, other| it.ca = other.cert_pem(), "another mesh"),
        (|it, _| it.ca = it.cert.clone(), "no CA certificate"),
        (|it, other| it.key = other.key_pem(), "does not belong to the certificate"),
        (|it, _| it.cert = String::new(), "no PEM certificate"),
        (|it, _| it.key = "x".into(), "the private key"),
    ];
    for (change, expected) in broken {
        let mut credential = good.clone();
        change(&mut credential, &other);
        credential.save(&path).unwrap();
        let message = Credential::load(&path).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        assert!(!message.contains("PRIVATE"), "{message}");
    }
    for (text, expected) in [("", "JSON"), ("{}", "missing field"), ("[1,2", "JSON")] {
        fs::write(&path, text).unwrap();
        let message = Credential::load(&path).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    fs::write(&path, vec![b' '; 2 << 20]).unwrap();
    assert!(Credential::load(&path).unwrap_err().to_string().contains("at most"));
}
