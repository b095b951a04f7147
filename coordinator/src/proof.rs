//! Proof that a commit point was given out by a coordinator of this mesh. Agents bring back the
//! highest point that they have seen, and one that is ahead of the database halts the mesh: so a
//! node must not be able to invent one.

use mesh_proto::v1::CommitPoint;
use ring::{hkdf, hmac};

/// Proves points, and knows what it proved. Every coordinator of a mesh has the same, made from
/// the key that they share.
#[derive(Clone, Debug)]
pub struct Prover(hmac::Key);

impl Prover {
    /// # Panics
    /// Never: a key has the length of its hash.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        let key = hkdf::Salt::new(hkdf::HKDF_SHA256, b"mesh").extract(secret);
        let key = key.expand(&[b"commit points"], hmac::HMAC_SHA256);
        Self(key.expect("a key as long as its hash").into())
    }

    /// Gives the point its proof.
    pub fn prove(&self, point: &mut CommitPoint) {
        point.proof = hmac::sign(&self.0, &text(point)).as_ref().to_vec();
    }

    /// Whether a coordinator of this mesh gave this very point out.
    #[must_use]
    pub fn proved(&self, point: &CommitPoint) -> bool {
        hmac::verify(&self.0, &text(point), &point.proof).is_ok()
    }
}

fn text(point: &CommitPoint) -> Vec<u8> {
    let numbers = [point.epoch.to_be_bytes(), point.seq.to_be_bytes()];
    [numbers.as_flattened(), point.incarnation.as_bytes()].concat()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn only_what_was_given_out_is_proved() {
        let prover = Prover::new(b"the key of the CA");
        let mut point = CommitPoint { incarnation: "a".to_owned(), epoch: 3, seq: 99, ..Default::default() };
        assert!(!prover.proved(&point), "no proof");
        prover.prove(&mut point);
        assert!(prover.proved(&point));
        assert!(Prover::new(b"the key of the CA").proved(&point), "another coordinator");
        assert!(!Prover::new(b"another key").proved(&point));
        let other = [
            CommitPoint { seq: 100, ..point.clone() },
            CommitPoint { epoch: 4, ..point.clone() },
            CommitPoint { incarnation: "b".to_owned(), ..point.clone() },
            CommitPoint { proof: point.proof[..31].to_vec(), ..point.clone() },
        ];
        assert!(other.iter().all(|point| !prover.proved(point)), "{other:?}");
    }
}
