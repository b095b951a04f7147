//! The store on real files.

use std::fs;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use mesh_proto::digest::Digest;
use tempfile::TempDir;

use super::*;

fn store(max_bytes: u64) -> (TempDir, BlobStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, max_bytes);
    (dir, store)
}

fn open(dir: &TempDir, max_bytes: u64) -> BlobStore {
    BlobStore::open(Options { dir: dir.path().to_owned(), uploads: "tmp".to_owned(), max_bytes }).unwrap()
}

/// Bytes that differ at every place that a mixed-up piece could land.
fn content(length: usize) -> Bytes {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

async fn put(
    store: &BlobStore,
    digest: Digest,
    size: u64,
    data: &Bytes,
    step: usize,
) -> Result<Stored, BlobError> {
    let pieces: Vec<Result<Bytes, BlobError>> =
        (0..data.len()).step_by(step).map(|at| Ok(data.slice(at..data.len().min(at + step)))).collect();
    store.put_stream(digest, size, stream::iter(pieces)).await
}

async fn read(store: &BlobStore, digest: Digest, offset: u64) -> Result<Vec<u8>, BlobError> {
    let pieces: Vec<Bytes> = store.open_blob(digest, offset).await?.into_stream().try_collect().await?;
    assert!(pieces.iter().all(|piece| piece.len() <= CHUNK));
    Ok(pieces.concat())
}

fn temporary_files(dir: &TempDir) -> usize {
    fs::read_dir(dir.path().join("tmp")).unwrap().count()
}

#[tokio::test]
async fn what_is_put_comes_back_from_any_offset_also_after_a_restart() {
    let (dir, store) = store(u64::MAX);
    for (length, step) in [(0, 1), (1, 1), (70_000, 7), (3 * CHUNK + 17, 100_000), (5 << 20, 3 << 20)] {
        let data = content(length);
        let digest = Digest::of(&data);
        assert_eq!(put(&store, digest, length as u64, &data, step).await.unwrap(), Stored::New);
        assert_eq!(temporary_files(&dir), 0);
        let again = open(&dir, u64::MAX);
        for offset in [0, length / 3, length] {
            assert_eq!(read(&again, digest, offset as u64).await.unwrap(), data[offset..], "from {offset}");
        }
        assert!(matches!(read(&again, digest, length as u64 + 1).await, Err(BlobError::Offset { .. })));
    }
}

#[tokio::test]
async fn a_blob_that_is_here_is_not_stored_twice() {
    let (dir, store) = store(u64::MAX);
    let data = content(200_000);
    let digest = Digest::of(&data);
    put(&store, digest, 200_000, &data, 65_536).await.unwrap();
    assert_eq!(put(&store, digest, 200_000, &data, 65_536).await.unwrap(), Stored::Existed);
    assert!(matches!(put(&store, digest, 7, &data, 65_536).await, Err(BlobError::Size { .. })));
    assert_eq!(temporary_files(&dir), 0);
}

#[tokio::test]
async fn racing_uploads_of_one_blob_all_succeed() {
    let (dir, store) = store(u64::MAX);
    let data = content(1_500_000);
    let digest = Digest::of(&data);
    let uploads = (0..16).map(|n| put(&store, digest, 1_500_000, &data, 10_000 + n));
    for outcome in join_all(uploads).await {
        outcome.unwrap();
    }
    assert_eq!(read(&store, digest, 0).await.unwrap(), data);
    assert_eq!(temporary_files(&dir), 0);
}

#[tokio::test]
async fn a_lying_or_broken_upload_leaves_nothing() {
    let (dir, store) = store(1_000_000);
    let data = content(500_000);
    let digest = Digest::of(&data);
    let other = Digest::of(b"something else");
    assert!(matches!(
        put(&store, other, 500_000, &data, 9_000).await,
        Err(BlobError::Digest { announced, got }) if announced == other && got == digest
    ));
    assert!(matches!(
        put(&store, digest, 500_001, &data, 9_000).await,
        Err(BlobError::Size { announced: 500_001, got: 500_000 })
    ));
    assert!(matches!(put(&store, digest, 499_999, &data, 9_000).await, Err(BlobError::Size { .. })));
    assert!(matches!(
        put(&store, digest, 1_000_001, &data, 9_000).await,
        Err(BlobError::TooLarge { size: 1_000_001, max: 1_000_000 })
    ));
    let cut = stream::iter([Ok(data.slice(..400_000)), Err(BlobError::NoSpace)]);
    assert!(matches!(store.put_stream(digest, 500_000, cut).await, Err(BlobError::NoSpace)));
    assert_eq!(store.stat(vec![digest, other]).await.unwrap(), []);
    assert!(matches!(read(&store, digest, 0).await, Err(BlobError::NotFound(_))));
    assert_eq!(temporary_files(&dir), 0);
}

#[tokio::test]
async fn an_upload_given_up_in_the_middle_leaves_nothing() {
    let (dir, store) = store(u64::MAX);
    let data = content(8 << 20);
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, BlobError>>(1);
    let receiver = stream::unfold(receiver, |mut r| async { r.recv().await.map(|item| (item, r)) });
    let digest = Digest::of(&data);
    let upload = crate::spawn::spawn_owned("upload", {
        let store = store.clone();
        async move { store.put_stream(digest, 8 << 20, receiver).await }
    });
    for at in 0..4 {
        sender.send(Ok(data.slice(at << 20..(at + 1) << 20))).await.unwrap();
    }
    drop(upload);
    sender.closed().await;
    // The piece under way on the blocking pool ends by itself and takes the file with it.
    while temporary_files(&dir) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn leftovers_of_a_crash_are_swept_at_the_next_start() {
    let (dir, first) = store(u64::MAX);
    let data = content(1000);
    put(&first, Digest::of(&data), 1000, &data, 1000).await.unwrap();
    drop(first);
    fs::write(dir.path().join("tmp").join("half"), b"half a blob").unwrap();
    let store = open(&dir, u64::MAX);
    assert_eq!(temporary_files(&dir), 0);
    assert_eq!(store.stat(vec![Digest::of(&data)]).await.unwrap(), [(Digest::of(&data), 1000)]);
}

#[tokio::test]
async fn stat_answers_in_the_order_asked() {
    let (_dir, store) = store(u64::MAX);
    let blobs: Vec<Bytes> = (1..6).map(|n| content(n * 100)).collect();
    for blob in &blobs {
        put(&store, Digest::of(blob), blob.len() as u64, blob, 100).await.unwrap();
    }
    let mut asked: Vec<Digest> = blobs.iter().rev().map(|blob| Digest::of(blob)).collect();
    asked.insert(2, Digest::of(b"absent"));
    let sizes: Vec<u64> = store.stat(asked).await.unwrap().into_iter().map(|(_, size)| size).collect();
    assert_eq!(sizes, [500, 400, 300, 200, 100]);
}

#[tokio::test]
async fn small_blobs_come_whole_and_large_ones_are_refused() {
    let (_dir, store) = store(u64::MAX);
    let data = content(5000);
    put(&store, Digest::of(&data), 5000, &data, 5000).await.unwrap();
    assert_eq!(store.get_bytes(Digest::of(&data), 5000).await.unwrap(), data);
    assert!(matches!(
        store.get_bytes(Digest::of(&data), 4999).await,
        Err(BlobError::TooLarge { size: 5000, max: 4999 })
    ));
}

#[tokio::test]
async fn a_reader_that_stops_reading_holds_no_thread() {
    let (_dir, store) = store(u64::MAX);
    let data = content(10 * CHUNK);
    let digest = Digest::of(&data);
    put(&store, digest, data.len() as u64, &data, CHUNK).await.unwrap();
    // More stopped readers than the blocking pool has threads.
    let mut stopped = Vec::new();
    for _ in 0..600 {
        let mut pieces = Box::pin(store.open_blob(digest, 9 * CHUNK as u64).await.unwrap().into_stream());
        let mut whole = Box::pin(store.open_blob(digest, 0).await.unwrap().into_stream());
        assert!(pieces.next().await.unwrap().is_ok());
        if stopped.len() < 20 {
            assert!(whole.next().await.unwrap().is_ok());
        }
        stopped.push((pieces, whole));
    }
    assert_eq!(read(&store, digest, 0).await.unwrap(), data);
}
