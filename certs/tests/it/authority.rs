//! What the CA signs, and what nobody gets out of it.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use mesh_certs::{Ca, CertError, Identity, NodeKey, Trust, identity_of};
use mesh_proto::ids::{CoordinatorId, MeshId, NodeId};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
};
use rustls::server::danger::ClientCertVerifier as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use crate::support::{HOUR, der_of, uri};

fn ca() -> Ca {
    Ca::generate(MeshId::generate()).unwrap()
}

fn parse(der: &CertificateDer<'static>) -> X509Certificate<'static> {
    let bytes: &'static [u8] = Vec::leak(der.to_vec());
    X509Certificate::from_der(bytes).unwrap().1
}

/// What a node's certificate is, whatever was asked for.
fn assert_plain_node(der: &CertificateDer<'static>, mesh: MeshId, node: NodeId) {
    assert_eq!(identity_of(der, mesh).unwrap(), Identity::Node(node));
    let cert = parse(der);
    let constraints = cert.basic_constraints().unwrap().expect("it says that it is no CA");
    assert!(!constraints.value.ca, "it is a CA");
    let usage = cert.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let purposes = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.client_auth && !purposes.server_auth && !purposes.any && purposes.other.is_empty());
    let names = &cert.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert!(matches!(names[..], [GeneralName::URI(_)]), "{names:?}");
    assert_eq!(cert.subject().to_string(), "CN=mesh node");
}

#[test]
fn a_greedy_request_gets_a_plain_node_certificate() {
    let ca = ca();
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec!["coordinator.example".to_owned()]).unwrap();
    greedy.distinguished_name.push(DnType::CommonName, "admin");
    greedy.subject_alt_names.push(uri(&Identity::User("admin".into()).uri(ca.mesh())));
    greedy.subject_alt_names.push(uri(&Identity::Coordinator(CoordinatorId::generate()).uri(ca.mesh())));
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any, ExtendedKeyUsagePurpose::ServerAuth];
    greedy.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    let csr = greedy.serialize_request(&key).unwrap();

    let node = NodeId::generate();
    let issued = ca.issue_node(csr.der(), node, HOUR).unwrap();
    assert_plain_node(&issued.der, ca.mesh(), node);
    assert!(issued.not_after <= Utc::now() + TimeDelta::hours(1));
    assert_eq!(issued.key_fingerprint, mesh_certs::key_fingerprint(&issued.der).unwrap());
}

#[test]
fn an_ordinary_request_gets_one_too() {
    let ca = ca();
    let key = NodeKey::generate().unwrap();
    let node = NodeId::generate();
    let first = ca.issue_node(&key.csr_der().unwrap(), node, HOUR).unwrap();
    assert_plain_node(&first.der, ca.mesh(), node);
    assert_eq!(first.key_fingerprint, key.fingerprint());
    let second = ca.issue_node(&key.csr_der().unwrap(), node, HOUR).unwrap();
    assert_ne!(parse(&first.der).serial, parse(&second.der).serial, "two certificates share a serial number");
}

#[test]
fn a_request_without_proof_of_its_key_is_refused() {
    let ca = ca();
    let key = NodeKey::generate().unwrap();
    let csr = key.csr_der().unwrap();
    ca.issue_node(&csr, NodeId::generate(), HOUR).unwrap();
    // SEQUENCE { info, algorithm, signature }: the info is what is signed, and it holds the key.
    let info = 3..5 + usize::from(csr[4]);
    assert_eq!((csr[0], csr[1], csr[3]), (0x30, 0x81, 0x30));
    for position in 0..csr.len() {
        let mut altered = csr.clone();
        altered[position] ^= 1;
        // The wrapping may be read leniently; a key that nobody proved is never signed.
        if let Ok(issued) = ca.issue_node(&altered, NodeId::generate(), HOUR) {
            assert!(!info.contains(&position), "a request altered at byte {position} was signed");
            assert_eq!(issued.key_fingerprint, key.fingerprint());
        }
    }
    let mut longer = csr.clone();
    longer.push(0);
    for bad in [&csr[..csr.len() - 1], &[], &longer, &vec![0x30; 1 << 20]] {
        assert!(matches!(ca.issue_node(bad, NodeId::generate(), HOUR), Err(CertError::Request(_))));
    }
}

#[test]
fn a_key_of_another_kind_is_refused() {
    let ca = ca();
    for kind in [&PKCS_ED25519, &PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(kind).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let refused = ca.issue_node(csr.der(), NodeId::generate(), HOUR);
        assert!(matches!(refused, Err(CertError::Request(_))), "{kind:?}");
    }
}

#[test]
fn nothing_outlives_the_ca_and_short_lifetimes_are_kept() {
    let ca = ca();
    let csr = NodeKey::generate().unwrap().csr_der().unwrap();
    let issue = |lifetime| ca.issue_node(&csr, NodeId::generate(), lifetime).unwrap().not_after;
    assert_eq!(issue(Duration::MAX), ca.not_after());
    let short = issue(Duration::from_secs(10)) - Utc::now();
    assert!(short <= TimeDelta::seconds(10) && short > TimeDelta::seconds(5), "{short}");
}

#[test]
fn a_coordinator_carries_its_addresses_and_a_user_its_name() {
    let ca = ca();
    let id = CoordinatorId::generate();
    let hosts = ["10.0.0.7", "::1", "mesh.example", "10.0.0.7"].map(str::to_owned);
    let cert = der_of(&ca.issue_coordinator(id, &hosts, HOUR).unwrap().cert_pem);
    assert_eq!(identity_of(&cert, ca.mesh()).unwrap(), Identity::Coordinator(id));
    let parsed = parse(&cert);
    let purposes = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.client_auth && purposes.server_auth);
    let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.contains(&GeneralName::IPAddress(&[10, 0, 0, 7])));
    assert!(names.contains(&GeneralName::DNSName("mesh.example")));
    for bad in ["", "a b", "host:7443", "*.example", "ä.example", ".", "a..b"] {
        let refused = ca.issue_coordinator(id, &[bad.to_owned()], HOUR);
        assert!(matches!(refused, Err(CertError::Host(_))), "{bad:?} went into a certificate");
    }

    let user = der_of(&ca.issue_user("ada", HOUR).unwrap().cert_pem);
    assert_eq!(identity_of(&user, ca.mesh()).unwrap(), Identity::User("ada".to_owned()));
    for bad in ["", "Ada", "a/b", "-a", "a\n", "ada/../admin"] {
        assert!(matches!(ca.issue_user(bad, HOUR), Err(CertError::UserName { .. })), "{bad:?}");
    }
}

#[test]
fn a_ca_survives_its_files_and_nothing_else_passes_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = MeshId::generate();
    let first = Ca::load_or_create(dir.path(), mesh).unwrap();
    let again = Ca::load_or_create(dir.path(), mesh).unwrap();
    assert_eq!(first.cert_der(), again.cert_der());
    assert_eq!(first.pin(), again.pin());
    assert_eq!(again.mesh(), mesh);

    let error = Ca::load_or_create(dir.path(), MeshId::generate()).unwrap_err();
    assert!(matches!(error, CertError::OtherMesh { .. }), "{error}");

    let other = Ca::generate(mesh).unwrap();
    assert!(matches!(Ca::from_pem(&first.cert_pem(), &other.key_pem()), Err(CertError::KeyMismatch)));
    let leaf = first.issue_user("ada", HOUR).unwrap();
    assert!(Ca::from_pem(&leaf.cert_pem, &leaf.key_pem).is_err(), "a user's certificate passed for a CA");

    // What a crash between the two writes leaves behind: a key that signed nothing yet.
    std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
    let fresh = Ca::load_or_create(dir.path(), mesh).unwrap();
    assert_ne!(fresh.pin(), first.pin());
    // A lost key is no such thing: the mesh's members trust that CA.
    std::fs::remove_file(dir.path().join("ca.key")).unwrap();
    let error = Ca::load_or_create(dir.path(), mesh).unwrap_err();
    assert!(error.to_string().contains("ca.key"), "{error}");
}

#[test]
fn an_issued_certificate_signs_nothing() {
    // The other half of "never a CA": even if a node tries, its signature leads nowhere.
    let ca = ca();
    let key = NodeKey::generate().unwrap();
    let issued = ca.issue_node(&key.csr_der().unwrap(), NodeId::generate(), HOUR).unwrap();
    let pair = KeyPair::from_pem(&key.pem()).unwrap();
    let node_as_ca = Issuer::from_ca_cert_der(&issued.der, pair).unwrap();
    let victim = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(&Identity::User("admin".into()).uri(ca.mesh()))];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let forged = params.signed_by(&victim, &node_as_ca).unwrap();
    let judge = |cert, between: &[CertificateDer<'static>]| {
        Trust::of(&ca).verify_client_cert(cert, between, UnixTime::now())
    };
    judge(&issued.der, &[]).unwrap();
    assert!(
        judge(forged.der(), std::slice::from_ref(&issued.der)).is_err(),
        "a node signed an administrator"
    );
}
