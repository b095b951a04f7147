//! A text sealed by a secret: PBKDF2-HMAC-SHA256 makes the key, AES-256-GCM seals and proves.
//!
//! The secret may be a passphrase, so each guess at it has to cost something; and a database is
//! copied about, so what lies in it must not open without the secret.

use std::num::NonZeroU32;

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    pbkdf2,
};

/// Rounds for what is sealed from now on; what was sealed names its own.
const ROUNDS: u32 = 600_000;
const SALT_LEN: usize = 16;

/// A sealed text and what opening it needs beside the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub salt: Vec<u8>,
    pub rounds: u32,
    pub nonce: Vec<u8>,
    /// With its proof at the end.
    pub text: Vec<u8>,
}

/// The secret is another one, or the sealed text was altered.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the secret does not open it")]
pub struct Shut;

/// Seals `text`. It opens only under the same `purpose`, which is not secret.
pub fn seal(secret: &[u8], purpose: &str, text: &[u8]) -> Sealed {
    let salt: [u8; SALT_LEN] = rand::random();
    let nonce: [u8; NONCE_LEN] = rand::random();
    let rounds = NonZeroU32::new(ROUNDS).unwrap_or(NonZeroU32::MIN);
    let mut sealed = text.to_vec();
    // The salt is new, so the key is, and no nonce is ever used twice with it.
    key(secret, &salt, rounds)
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(purpose.as_bytes()),
            &mut sealed,
        )
        .expect("a text in memory is within what AES-GCM takes");
    Sealed { salt: salt.to_vec(), rounds: ROUNDS, nonce: nonce.to_vec(), text: sealed }
}

/// Opens what [`seal`] sealed.
pub fn open(secret: &[u8], purpose: &str, sealed: &Sealed) -> Result<Vec<u8>, Shut> {
    let rounds = NonZeroU32::new(sealed.rounds).ok_or(Shut)?;
    let nonce = Nonce::try_assume_unique_for_key(&sealed.nonce).map_err(|_| Shut)?;
    let mut text = sealed.text.clone();
    let opened = key(secret, &sealed.salt, rounds)
        .open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut text)
        .map_err(|_| Shut)?;
    Ok(opened.to_vec())
}

fn key(secret: &[u8], salt: &[u8], rounds: NonZeroU32) -> LessSafeKey {
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, secret, &mut key);
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("the key has the length of its cipher"))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn only_the_same_secret_and_purpose_open_it() {
        let sealed = seal(b"correct horse", "mesh a", b"the key");
        assert_eq!(open(b"correct horse", "mesh a", &sealed).unwrap(), b"the key");
        assert_eq!(open(b"correct horsf", "mesh a", &sealed), Err(Shut));
        assert_eq!(open(b"correct horse", "mesh b", &sealed), Err(Shut));
        let mut altered = sealed.clone();
        altered.text[0] ^= 1;
        assert_eq!(open(b"correct horse", "mesh a", &altered), Err(Shut));
        assert!(!sealed.text.windows(7).any(|part| part == b"the key"));
        let again = seal(b"correct horse", "mesh a", b"the key");
        assert!(again.salt != sealed.salt && again.text != sealed.text);
    }
}
