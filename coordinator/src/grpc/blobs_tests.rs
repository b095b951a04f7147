//! The service, as clients on a real connection meet it.

use std::collections::HashSet;

use futures_util::TryStreamExt as _;
use mesh_proto::v1::{blobs_client::BlobsClient, blobs_server::BlobsServer};
use tempfile::TempDir;
use tonic::{service::Routes, transport::Channel};

use super::*;
use crate::{
    blobs::Options,
    grpc::{
        auth::Port,
        testing::{Rig, node, user},
    },
};

const IDLE: Duration = Duration::from_millis(300);

struct Needed(HashSet<Digest>);

impl NodeReads for Needed {
    fn may_read(&self, _node: NodeId, digest: &Digest) -> bool {
        self.0.contains(digest)
    }
}

async fn rig(dir: &TempDir, caller: Identity, needed: &[Digest]) -> (Rig, BlobsClient<Channel>) {
    let store = BlobStore::open(Options {
        dir: dir.path().to_owned(),
        uploads: "tmp".to_owned(),
        max_bytes: 100 << 20,
    })
    .unwrap();
    let reads = Arc::new(Needed(needed.iter().copied().collect()));
    let service = BlobsServer::new(BlobsService::new(store, reads, IDLE));
    let rig = Rig::new(Routes::new(service), Port::Mesh, Some(caller)).await;
    let client = BlobsClient::new(rig.channel.clone());
    (rig, client)
}

fn content(length: usize) -> Bytes {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

fn upload(digest: Digest, size: u64, data: &Bytes) -> Vec<PutBlobRequest> {
    let mut messages = vec![PutBlobRequest { digest: digest.to_vec(), size, data: Bytes::new() }];
    for at in (0..data.len()).step_by(300_000) {
        let data = data.slice(at..data.len().min(at + 300_000));
        messages.push(PutBlobRequest { digest: Vec::new(), size: 0, data });
    }
    messages
}

async fn put(client: &mut BlobsClient<Channel>, data: &Bytes) -> bool {
    let messages = upload(Digest::of(data), data.len() as u64, data);
    client.put(stream::iter(messages)).await.unwrap().into_inner().existed
}

async fn get(
    client: &mut BlobsClient<Channel>,
    digest: Digest,
    offset: u64,
) -> Result<(u64, Vec<u8>), Status> {
    let request = GetBlobRequest { digest: digest.to_vec(), offset };
    let messages: Vec<GetBlobResponse> = client.get(request).await?.into_inner().try_collect().await?;
    let bytes = messages.iter().flat_map(|message| message.data.to_vec()).collect();
    Ok((messages[0].size, bytes))
}

#[tokio::test]
async fn a_person_puts_finds_and_gets_files() {
    let dir = tempfile::tempdir().unwrap();
    let (_rig, mut client) = rig(&dir, user(), &[]).await;
    let (large, empty) = (content(5 << 20), Bytes::new());
    assert!(!put(&mut client, &large).await);
    assert!(!put(&mut client, &empty).await);
    assert!(put(&mut client, &large).await, "the second upload of the same file was stored again");
    let digests = [&large, &Bytes::from_static(b"absent"), &empty].map(|data| Digest::of(data).to_vec());
    let found = client.stat(StatBlobsRequest { digests: digests.to_vec() }).await.unwrap().into_inner().blobs;
    let sizes: Vec<(Vec<u8>, u64)> = found.into_iter().map(|blob| (blob.digest, blob.size)).collect();
    assert_eq!(sizes, [(digests[0].clone(), 5 << 20), (digests[2].clone(), 0)]);
    let whole = get(&mut client, Digest::of(&large), 0).await.unwrap();
    assert!(whole == (5 << 20, large.to_vec()), "the file came back changed");
    assert_eq!(
        get(&mut client, Digest::of(&large), (5 << 20) - 3).await.unwrap().1,
        large[large.len() - 3..]
    );
    assert_eq!(get(&mut client, Digest::of(&empty), 0).await.unwrap(), (0, Vec::new()));
}

#[tokio::test]
async fn a_node_gets_what_its_tasks_need_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (needed, secret) = (content(1000), content(2000));
    let (_rig, mut client) = rig(&dir, node(), &[Digest::of(&needed), Digest::of(b"absent")]).await;
    put(&mut client, &needed).await;
    put(&mut client, &secret).await;
    assert_eq!(get(&mut client, Digest::of(&needed), 0).await.unwrap().1, needed);
    let absent = get(&mut client, Digest::of(b"absent"), 0).await.unwrap_err();
    assert_eq!(Code::of(&absent), Code::NotFound);
    for foreign in [Digest::of(&secret), Digest::of(b"never there")] {
        let refused = get(&mut client, foreign, 0).await.unwrap_err();
        assert_eq!(Code::of(&refused), Code::Denied, "{refused}");
    }
}

#[tokio::test]
async fn a_refused_upload_is_told_why_though_it_still_sends() {
    let dir = tempfile::tempdir().unwrap();
    let (_rig, mut client) = rig(&dir, user(), &[]).await;
    let data = content(32 << 20);
    let digest = Digest::of(&data);
    let mut refuse =
        async |messages: Vec<PutBlobRequest>| client.put(stream::iter(messages)).await.unwrap_err();
    let too_large = refuse(upload(digest, (100 << 20) + 1, &data)).await;
    assert_eq!(Code::of(&too_large), Code::Exhausted, "{too_large}");
    assert!(too_large.message().contains("104857600 bytes"), "{too_large}");
    let longer = refuse(upload(digest, 1000, &data)).await;
    assert_eq!(Code::of(&longer), Code::Invalid, "{longer}");
    let changed = refuse(upload(Digest::of(b"before"), data.len() as u64, &data)).await;
    assert!(changed.message().contains("changed meanwhile"), "{changed}");
    assert_eq!(Code::of(&refuse(Vec::new()).await), Code::Invalid);
    let nameless = PutBlobRequest { digest: vec![1; 31], size: 1, data: Bytes::new() };
    assert_eq!(Code::of(&refuse(vec![nameless]).await), Code::Invalid);
}

#[tokio::test]
async fn an_upload_that_falls_silent_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (_rig, mut client) = rig(&dir, user(), &[]).await;
    let data = content(2 << 20);
    let begun = upload(Digest::of(&data), 3 << 20, &data);
    let silent = client.put(stream::iter(begun).chain(stream::pending())).await.unwrap_err();
    assert_eq!(Code::of(&silent), Code::Timeout, "{silent}");
    while std::fs::read_dir(dir.path().join("tmp")).unwrap().count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_question_about_too_many_blobs_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_rig, mut client) = rig(&dir, user(), &[]).await;
    let digests = vec![vec![0; 32]; MAX_STAT + 1];
    let refused = client.stat(StatBlobsRequest { digests }).await.unwrap_err();
    assert_eq!(Code::of(&refused), Code::Invalid);
}

#[test]
fn a_full_disk_is_told_and_other_trouble_inside_is_not() {
    let full = Status::from(BlobError::from(std::io::Error::from_raw_os_error(28)));
    assert_eq!(Code::of(&full), Code::Exhausted);
    assert!(full.message().contains("disk for blobs is full"), "{full}");
    let inside = Status::from(BlobError::from(std::io::Error::other("/var/lib/secret is gone")));
    assert_eq!(Code::of(&inside), Code::Internal);
    assert!(!inside.message().contains("secret"), "{inside}");
}
