//! The highest point of the coordinator's history that this node has seen, kept on disk: a
//! coordinator that is behind it is stale and is not obeyed.

use std::path::PathBuf;
use std::sync::Mutex;

use mesh_proto::digest::Digest;
use mesh_proto::v1::CommitPoint;
use serde::{Deserialize, Serialize};

use crate::records::write_whole;

/// A coordinator speaks for an older history than this node has seen.
#[derive(Debug, thiserror::Error)]
#[error(
    "the coordinator stands at epoch {theirs} (history {their_incarnation}), but this node has obeyed epoch \
     {ours} (history {our_incarnation}): it is stale, or its database went back in time"
)]
pub struct StaleLeader {
    theirs: u64,
    ours: u64,
    their_incarnation: String,
    our_incarnation: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Point {
    incarnation: String,
    /// The highest of this history.
    epoch: u64,
    /// What is brought back: the highest commit of this history, the epoch that it was told in, and
    /// what proves to a coordinator that one of them told it.
    seq: u64,
    told_in: u64,
    proof: Vec<u8>,
}

/// The file: a point with the digest of what it says, or a damaged digit would pass for a higher
/// epoch and shut the node out of its mesh.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    incarnation: String,
    epoch: u64,
    seq: u64,
    /// Missing with its proof in files of the first version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    told_in: Option<u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    proof: String,
    #[serde(default)]
    sum: Option<String>,
}

impl Kept {
    fn new(point: &Point) -> Self {
        let Point { incarnation, epoch, seq, told_in, proof } = point.clone();
        let kept =
            Self { incarnation, epoch, seq, told_in: Some(told_in), proof: hex::encode(proof), sum: None };
        Self { sum: Some(kept.sum()), ..kept }
    }

    fn sum(&self) -> String {
        let Self { incarnation, epoch, seq, told_in, proof, sum: _ } = self;
        let told = told_in.map(|told_in| format!(" {told_in} {proof}")).unwrap_or_default();
        Digest::of(format!("{incarnation} {epoch} {seq}{told}").as_bytes()).to_string()
    }

    fn read(bytes: &[u8]) -> Option<Point> {
        let kept: Self = serde_json::from_slice(bytes).ok()?;
        if kept.sum.as_ref().is_some_and(|sum| *sum != kept.sum()) {
            return None;
        }
        let Self { incarnation, epoch, seq, told_in, proof, sum: _ } = kept;
        Some(Point {
            incarnation,
            epoch,
            seq,
            told_in: told_in.unwrap_or(epoch),
            proof: hex::decode(proof).ok()?,
        })
    }
}

/// The highest commit point seen.
#[derive(Debug)]
pub struct Seen {
    path: PathBuf,
    highest: Mutex<Point>,
}

impl Seen {
    /// Reads what was kept. A file that is missing or damaged means that nothing was seen: the
    /// coordinator's own fence still holds.
    pub fn load(path: PathBuf) -> Self {
        let kept = std::fs::read(&path).ok().and_then(|bytes| Kept::read(&bytes));
        Self { path, highest: Mutex::new(kept.unwrap_or_default()) }
    }

    /// The highest commit as it was told, for the coordinator to compare with its own.
    pub fn point(&self) -> Option<CommitPoint> {
        let Point { incarnation, epoch: _, seq, told_in, proof } = self.lock().clone();
        (!incarnation.is_empty()).then_some(CommitPoint { incarnation, epoch: told_in, seq, proof })
    }

    /// Takes note of where a coordinator stands, or refuses it. Within one epoch messages may
    /// overtake each other on different streams, so that a lower `seq` says nothing here.
    pub fn observe(&self, leader: Option<&CommitPoint>) -> Result<(), StaleLeader> {
        let Some(leader) = leader else { return Ok(()) };
        let mut highest = self.lock();
        let theirs = (leader.incarnation.as_str(), leader.epoch);
        let ours = (highest.incarnation.as_str(), highest.epoch);
        if theirs < ours {
            return Err(StaleLeader {
                theirs: leader.epoch,
                ours: highest.epoch,
                their_incarnation: leader.incarnation.clone(),
                our_incarnation: highest.incarnation.clone(),
            });
        }
        let risen = theirs > ours;
        // Within one history `seq` never falls: what falls is for the coordinator to hear of.
        if leader.incarnation != highest.incarnation || leader.seq > highest.seq {
            let CommitPoint { incarnation, epoch, seq, proof } = leader.clone();
            *highest = Point { incarnation, epoch, seq, told_in: epoch, proof };
        } else {
            highest.epoch = leader.epoch;
        }
        if risen {
            self.save(&highest);
        }
        Ok(())
    }

    /// Writes the point down; called now and then, since `seq` moves with every commit.
    pub fn keep(&self) {
        self.save(&self.lock());
    }

    fn save(&self, point: &Point) {
        let bytes = serde_json::to_vec(&Kept::new(point)).unwrap_or_default();
        if let Err(error) = write_whole(&self.path, &bytes) {
            tracing::warn!(path = %self.path.display(), %error, "cannot keep the highest epoch seen");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Point> {
        self.highest.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(incarnation: &str, epoch: u64, seq: u64) -> CommitPoint {
        let proof = format!("{incarnation} {epoch} {seq}").into_bytes();
        CommitPoint { incarnation: incarnation.to_owned(), epoch, seq, proof }
    }

    #[test]
    fn a_damaged_file_says_nothing_and_one_of_the_first_version_still_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seen.json");
        Seen::load(path.clone()).observe(Some(&point("a", 4, 100))).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, damaged).unwrap();
            let read = Seen::load(path.clone()).point();
            assert!(read.is_none() || read == Some(point("a", 4, 100)), "bit {bit} flipped: {read:?}");
        }
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(Seen::load(path.clone()).point(), None);
        std::fs::write(&path, br#"{"incarnation":"a","epoch":3,"seq":7}"#).unwrap();
        let without_proof = CommitPoint { proof: Vec::new(), ..point("a", 3, 7) };
        assert_eq!(Seen::load(path).point(), Some(without_proof));
    }

    #[test]
    fn an_older_epoch_is_refused_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seen.json");
        let seen = Seen::load(path.clone());
        assert_eq!(seen.point(), None);
        seen.observe(Some(&point("a", 4, 100))).unwrap();
        seen.observe(Some(&point("a", 4, 90))).unwrap();
        assert!(seen.observe(Some(&point("a", 3, 999))).is_err());
        let again = Seen::load(path);
        assert_eq!(again.point(), Some(point("a", 4, 100)));
        assert!(again.observe(Some(&point("a", 3, 999))).is_err());
        again.observe(Some(&point("a", 5, 1))).unwrap();
        assert_eq!(
            again.point(),
            Some(point("a", 4, 100)),
            "what the mesh has lost is forgotten, or unproved"
        );
        assert!(again.observe(Some(&point("a", 4, 101))).is_err(), "the epoch before");
        again.observe(Some(&point("b", 1, 1))).unwrap();
        assert!(again.observe(Some(&point("a", 6, 1))).is_err(), "the older history");
    }
}
