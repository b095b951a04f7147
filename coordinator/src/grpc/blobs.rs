//! The Blobs service.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use mesh_certs::Identity;
use mesh_proto::{
    code::Code,
    digest::Digest,
    ids::NodeId,
    v1::{
        BlobStat, GetBlobRequest, GetBlobResponse, PutBlobRequest, PutBlobResponse, StatBlobsRequest,
        StatBlobsResponse, blobs_server::Blobs,
    },
};
use tonic::{Request, Response, Status, Streaming};

use super::auth::Caller;
use crate::blobs::{BlobError, BlobStore, Stored};

/// Digests of one Stat.
const MAX_STAT: usize = 1000;

/// Which blobs a node may read: those that one of its current attempts needs.
pub trait NodeReads: Send + Sync {
    fn may_read(&self, node: NodeId, digest: &Digest) -> bool;
}

/// Serves a store.
pub struct BlobsService {
    store: BlobStore,
    reads: Arc<dyn NodeReads>,
    /// An upload that sends nothing for so long is given up.
    idle: Duration,
}

impl BlobsService {
    pub fn new(store: BlobStore, reads: Arc<dyn NodeReads>, idle: Duration) -> Self {
        Self { store, reads, idle }
    }
}

#[tonic::async_trait]
impl Blobs for BlobsService {
    type GetStream = Pin<Box<dyn Stream<Item = Result<GetBlobResponse, Status>> + Send>>;

    async fn put(
        &self,
        request: Request<Streaming<PutBlobRequest>>,
    ) -> Result<Response<PutBlobResponse>, Status> {
        let mut pieces = Box::pin(pieces(request.into_inner(), self.idle));
        let Some(first) = pieces.next().await.transpose()? else {
            return Err(Code::Invalid.status("the upload is empty: the first message names digest and size"));
        };
        let digest = digest(&first.digest)?;
        let data = stream::iter([Ok(first.data)]).chain(pieces.map(|piece| piece.map(|piece| piece.data)));
        let data = data.filter(|piece| std::future::ready(!piece.as_ref().is_ok_and(Bytes::is_empty)));
        let stored = self.store.put_stream(digest, first.size, data).await?;
        Ok(Response::new(PutBlobResponse { existed: stored == Stored::Existed }))
    }

    async fn get(&self, request: Request<GetBlobRequest>) -> Result<Response<Self::GetStream>, Status> {
        let digest = digest(&request.get_ref().digest)?;
        if let Identity::Node(node) = Caller::of(&request)?.peer.identity
            && !self.reads.may_read(node, &digest)
        {
            return Err(Code::Denied.status(format!("no task on this node needs blob {digest}")));
        }
        let reader = self.store.open_blob(digest, request.get_ref().offset).await?;
        // The size comes before the data, also where there is none.
        let head = stream::iter([Ok(GetBlobResponse { size: reader.size(), data: Bytes::new() })]);
        let data = reader.into_stream().map(|piece| Ok(GetBlobResponse { size: 0, data: piece? }));
        Ok(Response::new(Box::pin(head.chain(data))))
    }

    async fn stat(&self, request: Request<StatBlobsRequest>) -> Result<Response<StatBlobsResponse>, Status> {
        let digests = request.into_inner().digests;
        if digests.len() > MAX_STAT {
            let asked = digests.len();
            return Err(
                Code::Invalid.status(format!("{asked} digests asked, at most {MAX_STAT} are allowed"))
            );
        }
        let digests = digests.iter().map(|bytes| digest(bytes)).collect::<Result<_, _>>()?;
        let found = self.store.stat(digests).await?;
        let blobs = found.into_iter().map(|(digest, size)| BlobStat { digest: digest.to_vec(), size });
        Ok(Response::new(StatBlobsResponse { blobs: blobs.collect() }))
    }
}

fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    Digest::try_from(bytes).map_err(|error| Code::Invalid.status(error.to_string()))
}

/// The messages of an upload, each of which has to come in time.
fn pieces(
    messages: Streaming<PutBlobRequest>,
    idle: Duration,
) -> impl Stream<Item = Result<PutBlobRequest, Status>> {
    stream::try_unfold(messages, move |mut messages| async move {
        match tokio::time::timeout(idle, messages.message()).await {
            Ok(message) => Ok(message?.map(|message| (message, messages))),
            Err(_) => Err(Code::Timeout.status(format!("the upload sent nothing for {idle:?}"))),
        }
    })
}

impl From<BlobError> for Status {
    fn from(error: BlobError) -> Self {
        let code = match &error {
            BlobError::NotFound(_) => Code::NotFound,
            BlobError::TooLarge { .. } | BlobError::NoSpace => Code::Exhausted,
            BlobError::Size { .. } | BlobError::Digest { .. } | BlobError::Offset { .. } => Code::Invalid,
            BlobError::Io(source) => {
                tracing::error!(error = %source, "the blob store failed");
                Code::Internal
            }
        };
        code.status(error.to_string())
    }
}

#[cfg(test)]
#[path = "blobs_tests.rs"]
mod tests;
