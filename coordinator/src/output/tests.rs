//! The store on real files.

use std::fs;

use bytes::Bytes;
use futures_util::future::join_all;
use mesh_proto::{
    frame::{HEADER, Kind, header},
    ids::{AttemptKey, JobNumber, TaskKey},
};
use tempfile::TempDir;

use super::*;

fn attempt(job: u64, index: u32) -> AttemptKey {
    AttemptKey { task: TaskKey { job: JobNumber(job), task: 0, index }, number: 1 }
}

fn open(dir: &TempDir) -> OutputStore {
    let options =
        Options { dir: dir.path().to_owned(), max_output: 1 << 20, open_files: 32, waiting_bytes: 1 << 20 };
    OutputStore::open(options).unwrap()
}

fn store() -> (TempDir, OutputStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    (dir, store)
}

/// A spool of `frames` frames whose bytes differ.
fn spool(frames: usize) -> Bytes {
    let mut spool = Vec::new();
    for n in 0..frames {
        let data = format!("line {n} of the output\n");
        spool.extend(header(Kind::Stdout, n as u64 * 7, 1, data.len()));
        spool.extend(data.as_bytes());
    }
    spool.into()
}

async fn append(
    store: &OutputStore,
    key: AttemptKey,
    position: usize,
    data: &[u8],
) -> Result<Ack, OutputError> {
    store.append(key, position as u64, Bytes::copy_from_slice(data)).await?.await
}

async fn all(store: &OutputStore, key: AttemptKey) -> Vec<u8> {
    let mut reader = store.reader(key).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        let piece = reader.read(bytes.len() as u64, 1000).await.unwrap();
        if piece.is_empty() {
            return bytes;
        }
        bytes.extend(piece);
    }
}

fn ack(durable: usize) -> Ack {
    Ack { durable: durable as u64, gap: false }
}

#[tokio::test]
async fn output_of_many_attempts_comes_back_whole_also_after_a_restart() {
    let (dir, first) = store();
    let spool = spool(300);
    // More attempts than files may be open, and more than a batch holds of each.
    let writers = (0..100).map(|index| {
        let (store, spool) = (first.clone(), spool.clone());
        async move {
            let mut acks = Vec::new();
            for at in (0..spool.len()).step_by(997) {
                let piece = spool.slice(at..spool.len().min(at + 997));
                acks.push(store.append(attempt(3, index), at as u64, piece).await.unwrap());
            }
            join_all(acks).await.pop().unwrap().unwrap()
        }
    });
    for last in join_all(writers).await {
        assert_eq!(last, ack(spool.len()));
    }
    for index in 0..100 {
        assert_eq!(all(&first, attempt(3, index)).await, spool);
    }
    drop(first);
    let again = open(&dir);
    for index in 0..100 {
        assert_eq!(all(&again, attempt(3, index)).await, spool);
    }
}

#[tokio::test]
async fn an_overlap_is_kept_once_and_a_gap_is_answered_with_the_end() {
    let (_dir, store) = store();
    let spool = spool(20);
    let key = attempt(1, 0);
    assert_eq!(append(&store, key, 50, &spool[50..100]).await.unwrap(), Ack { durable: 0, gap: true });
    assert_eq!(append(&store, key, 0, &spool[..100]).await.unwrap(), ack(100));
    assert_eq!(append(&store, key, 150, &spool[150..]).await.unwrap(), Ack { durable: 100, gap: true });
    assert_eq!(append(&store, key, 40, &spool[40..200]).await.unwrap(), ack(200));
    assert_eq!(append(&store, key, 0, &spool[..30]).await.unwrap(), ack(200));
    // What this process wrote is not written again, whatever the agent says that it was.
    assert_eq!(append(&store, key, 0, &[b'X'; 200]).await.unwrap(), ack(200));
    assert_eq!(append(&store, key, 200, &spool[200..]).await.unwrap(), ack(spool.len()));
    assert_eq!(all(&store, key).await, spool);
}

#[tokio::test]
async fn a_tail_torn_by_a_crash_is_replaced_by_what_the_agent_sends_again() {
    let (dir, first) = store();
    let spool = spool(20);
    let key = attempt(1, 0);
    append(&first, key, 0, &spool[..300]).await.unwrap();
    drop(first);
    let path = dir.path().join("1").join(key.to_string());
    // The crash left the length and a part of the data: a hole inside a frame, zeros at the end.
    let mut torn = spool[..400].to_vec();
    torn[300 + HEADER..390].fill(0);
    torn.resize(5000, 0);
    fs::write(&path, &torn).unwrap();
    let store = open(&dir);
    let kept = store.reader(key).await.unwrap().durable();
    assert!((300..5000).contains(&kept), "{kept} bytes were kept");
    // The agent knows that 300 bytes were acknowledged and goes on there.
    append(&store, key, 300, &spool[300..]).await.unwrap();
    let bytes = all(&store, key).await;
    assert_eq!(bytes[..], spool[..]);
}

#[tokio::test]
async fn an_acknowledged_part_of_a_frame_survives_a_restart() {
    let (dir, first) = store();
    let spool = spool(5);
    let key = attempt(9, 3);
    let middle = spool.len() - 5;
    append(&first, key, 0, &spool[..middle]).await.unwrap();
    drop(first);
    let store = open(&dir);
    assert_eq!(append(&store, key, middle, &spool[middle..]).await.unwrap(), ack(spool.len()));
    assert_eq!(all(&store, key).await, spool);
}

#[tokio::test]
async fn a_follower_wakes_for_every_durable_byte() {
    let (_dir, store) = store();
    let spool = spool(50);
    let key = attempt(4, 1);
    let mut reader = store.reader(key).await.unwrap();
    assert_eq!(reader.read(0, 100).await.unwrap(), Bytes::new());
    let follower = crate::spawn::spawn("follower", {
        let whole = spool.len() as u64;
        async move {
            let mut seen = Vec::new();
            while (seen.len() as u64) < whole {
                reader.grown(seen.len() as u64).await.unwrap();
                seen.extend(reader.read(seen.len() as u64, 333).await.unwrap());
            }
            seen
        }
    });
    for at in (0..spool.len()).step_by(100) {
        append(&store, key, at, &spool[at..spool.len().min(at + 100)]).await.unwrap();
    }
    assert_eq!(follower.await.unwrap(), spool);
}

#[tokio::test]
async fn removing_a_job_ends_its_readers_and_leaves_the_others() {
    let (dir, store) = store();
    let spool = spool(3);
    for job in [5, 6] {
        append(&store, attempt(job, 0), 0, &spool).await.unwrap();
    }
    let mut reader = store.reader(attempt(5, 0)).await.unwrap();
    store.remove(JobNumber(5)).await.unwrap();
    store.remove(JobNumber(5)).await.unwrap();
    assert!(matches!(reader.grown(spool.len() as u64).await, Err(OutputError::Removed)));
    assert!(!dir.path().join("5").exists());
    assert!(all(&store, attempt(5, 0)).await.is_empty());
    assert_eq!(all(&store, attempt(6, 0)).await, spool);
}

#[tokio::test]
async fn one_attempt_cannot_fill_the_disk_or_the_memory() {
    let (_dir, store) = store();
    let key = attempt(7, 0);
    let too_long = store.append(key, (1 << 20) - 10, Bytes::from_static(&[1; 11])).await.err().unwrap();
    assert!(matches!(too_long, OutputError::TooLong { max: 1_048_576 }), "{too_long}");
    assert!(matches!(
        store.append(key, u64::MAX, Bytes::from_static(&[1])).await.err().unwrap(),
        OutputError::TooLong { .. }
    ));
    let large = Bytes::from(vec![1; mesh_proto::limits::MAX_CHUNK + 1]);
    assert!(matches!(store.append(key, 0, large).await.err().unwrap(), OutputError::Piece { .. }));
}

#[tokio::test]
async fn a_disk_that_refuses_is_told_and_costs_nothing_that_was_acknowledged() {
    let (dir, store) = store();
    let spool = spool(3);
    fs::write(dir.path().join("8"), b"a file where the job's directory should be").unwrap();
    assert!(matches!(append(&store, attempt(8, 0), 0, &spool).await, Err(OutputError::Io(_))));
    assert_eq!(append(&store, attempt(9, 0), 0, &spool).await.unwrap(), ack(spool.len()));
    fs::remove_file(dir.path().join("8")).unwrap();
    assert_eq!(append(&store, attempt(8, 0), 0, &spool).await.unwrap(), ack(spool.len()));
}
