//! Join tokens on their way through people's hands.

use mesh_certs::{CertError, JoinToken, Pin, hash_secret, same_secret};
use mesh_proto::ids::MeshId;
use proptest::prelude::*;
use uuid::Uuid;

fn token() -> JoinToken {
    JoinToken {
        endpoints: vec!["10.0.0.7:7444".into(), "[fe80::1]:7444".into(), "mesh.example:7444".into()],
        mesh: MeshId::generate(),
        pin: Pin([3; 32]),
        id: "t-7f3a".into(),
        secret: JoinToken::new_secret(),
    }
}

#[test]
fn a_token_altered_at_any_byte_is_refused() {
    let text = token().to_text().unwrap();
    for position in 0..text.len() {
        for other in ["A", "b", "9", "-", "_", ".", "!", " ", "ä", ""] {
            let mut altered = text.clone();
            altered.replace_range(position..=position, other);
            if altered != text {
                assert!(JoinToken::parse(&altered).is_err(), "{other:?} at {position} was not noticed");
            }
        }
    }
}

#[test]
fn a_cut_token_is_told_apart_from_no_token() {
    let text = token().to_text().unwrap();
    for length in 6..text.len() {
        assert!(matches!(JoinToken::parse(&text[..length]), Err(CertError::TokenDamaged)), "{length}");
    }
    let swapped = {
        let mut bytes = text.clone().into_bytes();
        bytes.swap(40, 41);
        String::from_utf8(bytes).unwrap()
    };
    if swapped != text {
        assert!(JoinToken::parse(&swapped).is_err());
    }
    for other in ["", "hello", "mesh2.abc", "MESH1.abc"] {
        assert!(matches!(JoinToken::parse(other), Err(CertError::NotAToken)), "{other:?}");
    }
    assert!(JoinToken::parse(&"mesh1.".repeat(10_000)).is_err());
    let message = JoinToken::parse(&text[..40]).unwrap_err().to_string();
    assert_eq!(message, "the token was cut or altered: copy it again");
}

#[test]
fn white_space_from_a_terminal_does_not_matter() {
    let token = token();
    let text = token.to_text().unwrap();
    let wrapped = format!("  {}\n  {}\r\n", &text[..80], &text[80..]);
    assert_eq!(JoinToken::parse(&wrapped).unwrap(), token);
}

#[test]
fn a_token_is_one_word_for_every_shell() {
    let text = token().to_text().unwrap();
    assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{text}");
}

#[test]
fn the_secret_shows_nowhere() {
    let token = token();
    let shown = format!("{token:?} {:#?}", Some(&token));
    let secret = token.secret;
    assert!(!shown.contains(&format!("{secret:?}")));
    assert!(!shown.contains(&hex::encode(secret)));
    assert!(shown.contains("t-7f3a"));
}

#[test]
fn only_the_secret_itself_matches_its_hash() {
    let secret = JoinToken::new_secret();
    let hash = hash_secret(&secret);
    assert!(same_secret(&secret, &hash));
    assert!(!same_secret(&secret[..31], &hash));
    assert!(!same_secret(&hash, &hash));
    assert!(!same_secret(&[], &hash));
    assert_ne!(secret, JoinToken::new_secret());
}

#[test]
fn what_would_not_read_back_is_not_written() {
    let broken: [fn(&mut JoinToken); 7] = [
        |token| token.endpoints.clear(),
        |token| token.endpoints = vec!["a:1".into(); 17],
        |token| token.endpoints = vec!["a".into()],
        |token| token.endpoints = vec!["a:0".into()],
        |token| token.endpoints = vec!["a b:1".into()],
        |token| token.endpoints = vec![format!("{}:1", "a".repeat(254))],
        |token| token.id = "a/b".into(),
    ];
    for change in broken {
        let mut token = token();
        change(&mut token);
        assert!(token.to_text().is_err(), "{token:?}");
    }
}

proptest! {
    #[test]
    fn a_token_survives_its_text(
        bits in any::<u128>(), pin in any::<[u8; 32]>(), secret in any::<[u8; 32]>(),
        id in "[a-z0-9_][a-z0-9._-]{0,63}",
        endpoints in prop::collection::vec("[a-z0-9]([a-z0-9.-]{0,40})?:[1-9][0-9]{0,3}", 1..=16),
    ) {
        let token = JoinToken { endpoints, mesh: MeshId(Uuid::from_u128(bits)), pin: Pin(pin), id, secret };
        prop_assert_eq!(JoinToken::parse(&token.to_text().unwrap()).unwrap(), token);
    }

    #[test]
    fn rubbish_is_no_token(body in "[A-Za-z0-9_-]{0,400}") {
        let text = format!("mesh1.{body}");
        prop_assert!(JoinToken::parse(&text).is_err());
    }
}
