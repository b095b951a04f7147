//! Identities have one spelling each; everything else names nobody.

use mesh_certs::{Ca, Identity, identity_of};
use mesh_proto::ids::{CoordinatorId, MeshId, NodeId};
use proptest::prelude::*;
use rcgen::{DnType, SanType};
use rstest::rstest;
use uuid::Uuid;

use crate::support::{forge, uri};

const MESH: &str = "0191e0b0-0000-7000-8000-00000000000a";
const NODE: &str = "0191e0b0-0000-7000-8000-00000000000b";

fn ca() -> Ca {
    Ca::generate(MESH.parse().unwrap()).unwrap()
}

fn named(ca: &Ca, names: Vec<SanType>) -> Result<Identity, String> {
    let (cert, _) = forge(ca, |params| params.subject_alt_names = names);
    identity_of(&cert, ca.mesh()).map_err(|error| error.to_string())
}

#[rstest]
#[case::no_path("spiffe://{mesh}")]
#[case::root("spiffe://{mesh}/")]
#[case::other_scheme("https://{mesh}/node/{node}")]
#[case::upper_scheme("SPIFFE://{mesh}/node/{node}")]
#[case::upper_mesh("spiffe://{MESH}/node/{node}")]
#[case::upper_node("spiffe://{mesh}/node/{NODE}")]
#[case::plain_uuid("spiffe://{mesh}/node/0191e0b000007000800000000000000b")]
#[case::braced_uuid("spiffe://{mesh}/node/{{node}}")]
#[case::trailing_slash("spiffe://{mesh}/node/{node}/")]
#[case::longer("spiffe://{mesh}/node/{node}/x")]
#[case::dots("spiffe://{mesh}/user/../node/{node}")]
#[case::double_slash("spiffe://{mesh}//node/{node}")]
#[case::query("spiffe://{mesh}/node/{node}?x")]
#[case::fragment("spiffe://{mesh}/user/ada#x")]
#[case::port("spiffe://{mesh}:1/node/{node}")]
#[case::userinfo("spiffe://x@{mesh}/node/{node}")]
#[case::no_id("spiffe://{mesh}/node/")]
#[case::no_name("spiffe://{mesh}/user/")]
#[case::bad_name("spiffe://{mesh}/user/Ada")]
#[case::space(" spiffe://{mesh}/user/ada")]
#[case::kind("spiffe://{mesh}/admin/ada")]
#[case::upper_kind("spiffe://{mesh}/User/ada")]
#[case::percent("spiffe://{mesh}/user/%61da")]
#[case::nul("spiffe://{mesh}/user/ada\0")]
#[case::other_mesh("spiffe://{node}/node/{node}")]
#[case::prefix_mesh("spiffe://{mesh}0/node/{node}")]
fn an_odd_spelling_names_nobody(#[case] form: &str) {
    let text = form
        .replace("{mesh}", MESH)
        .replace("{node}", NODE)
        .replace("{MESH}", &MESH.to_uppercase())
        .replace("{NODE}", &NODE.to_uppercase());
    assert!(named(&ca(), vec![uri(&text)]).is_err(), "{text} names somebody");
}

#[test]
fn exactly_one_uri_counts() {
    let ca = ca();
    let ada = uri(&Identity::User("ada".into()).uri(ca.mesh()));
    let admin = uri(&Identity::User("admin".into()).uri(ca.mesh()));
    let dns = SanType::DnsName("coordinator.example".try_into().unwrap());
    let mail = SanType::Rfc822Name("ada@example".try_into().unwrap());
    assert!(named(&ca, vec![ada.clone()]).is_ok());
    for names in [
        vec![ada.clone(), admin.clone()],
        vec![ada.clone(), ada.clone()],
        vec![ada.clone(), uri("https://example/")],
        vec![ada.clone(), dns.clone()],
        vec![ada.clone(), mail.clone()],
        vec![dns.clone()],
        vec![],
    ] {
        assert!(named(&ca, names.clone()).is_err(), "{names:?} names somebody");
    }
    let coordinator = uri(&Identity::Coordinator(CoordinatorId::generate()).uri(ca.mesh()));
    assert!(named(&ca, vec![coordinator.clone(), dns]).is_ok());
    assert!(named(&ca, vec![coordinator, mail]).is_err());
}

#[test]
fn the_subject_does_not_count() {
    let ca = ca();
    let (cert, _) = forge(&ca, |params| {
        params.distinguished_name.push(DnType::CommonName, Identity::User("admin".into()).uri(ca.mesh()));
    });
    assert!(matches!(identity_of(&cert, ca.mesh()), Ok(Identity::Node(_))));
}

proptest! {
    #[test]
    fn a_path_reads_back_as_itself(bits in any::<u128>(), name in "[a-z0-9_][a-z0-9._-]{0,63}") {
        let id = Uuid::from_u128(bits);
        for identity in [Identity::Node(NodeId(id)), Identity::Coordinator(CoordinatorId(id)), Identity::User(name.clone())] {
            prop_assert_eq!(Identity::from_path(&identity.to_string()), Some(identity));
        }
    }

    #[test]
    fn any_text_names_somebody_in_its_one_spelling_or_nobody(text in "(node|user|coordinator|admin)?/?\\PC{0,70}") {
        if let Some(identity) = Identity::from_path(&text) {
            prop_assert_eq!(identity.to_string(), text);
        }
    }

    #[test]
    fn rubbish_is_no_certificate(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(identity_of(&bytes.into(), MeshId::generate()).is_err());
    }
}
