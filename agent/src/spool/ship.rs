//! The output stream of one session: looks at the spools, sends what the flow allows, takes
//! acknowledgements.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use mesh_proto::code::Code;
use mesh_proto::ids::AttemptKey;
use mesh_proto::limits;
use mesh_proto::v1::{OutputChunk, TaskOutputRequest, TaskOutputResponse};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::warn;

use super::flow::{Chunk, Flow};
use crate::attempts::Input;
use crate::hub::Hub;
use crate::jail::protocol::SPOOL;

/// How long output of a running attempt may lie before it is streamed: shorter attempts send it
/// along with their end.
const LINGER: std::time::Duration = std::time::Duration::from_millis(100);
/// Bytes of one message.
const MESSAGE: usize = 1024 * 1024;

/// Ships output until the stream breaks; returns why it did.
pub async fn ship(hub: &Arc<Hub>, session_id: &str, window: u64) -> Status {
    let (send, receive) = mpsc::channel(2);
    // The first message names the session; the coordinator answers the call once it has it.
    let first = TaskOutputRequest { session_id: session_id.to_owned(), chunks: vec![] };
    if send.try_send(first).is_err() {
        return Code::Internal.status("the output stream ended");
    }
    let mut client = hub.context().rpc.client();
    let mut acks = match client.task_output(ReceiverStream::new(receive)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return status,
    };
    let mut shipper = Shipper::new(hub.clone(), session_id.to_owned(), window);
    let mut tick = tokio::time::interval(hub.context().config.timings.output_poll);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // An idle node looks at nothing.
        let changed = hub.changed.notified();
        let idle = hub.shippable().is_empty();
        tokio::select! {
            _ = tick.tick(), if !idle => {}
            () = changed, if idle => {}
            answer = acks.message() => match answer {
                Ok(Some(answer)) => shipper.acked(answer),
                Ok(None) => return Code::Unavailable.status("the coordinator ended the output stream"),
                Err(status) => return status,
            },
        }
        shipper.look();
        // Only as much as the stream takes at once: acknowledgements must be read meanwhile.
        while let Ok(place) = send.try_reserve() {
            let Some(message) = shipper.next_message() else { break };
            place.send(message);
        }
    }
}

struct Shipper {
    hub: Arc<Hub>,
    session_id: String,
    flow: Flow,
    files: HashMap<AttemptKey, File>,
    /// When output of a running attempt was first seen.
    first_seen: HashMap<AttemptKey, Instant>,
}

impl Shipper {
    fn new(hub: Arc<Hub>, session_id: String, window: u64) -> Self {
        let flow = Flow::new(window, limits::MAX_CHUNK);
        Self { hub, session_id, flow, files: HashMap::new(), first_seen: HashMap::new() }
    }

    fn acked(&mut self, answer: TaskOutputResponse) {
        for ack in answer.acks {
            let Ok(key) = AttemptKey::try_from(ack.attempt) else { continue };
            self.flow.acked(key, ack.durable);
            self.hub.handle(Input::OutputDurable { key, durable: ack.durable, discard: ack.discard });
        }
    }

    /// Looks how far the spools have grown.
    fn look(&mut self) {
        let shippable = self.hub.shippable();
        let keys: HashSet<AttemptKey> = shippable.iter().map(|attempt| attempt.key).collect();
        self.files.retain(|key, _| keys.contains(key));
        self.first_seen.retain(|key, _| keys.contains(key));
        self.flow.retain(|key| keys.contains(&key));
        for attempt in shippable {
            let key = attempt.key;
            let length = match self.length(key) {
                // Whoever shortens a spool behind the jail's back has lost its rest for everybody.
                Ok(length) if attempt.length.is_some_and(|whole| length < whole) => {
                    self.give_up(key, attempt.length, &io::ErrorKind::UnexpectedEof.into());
                    continue;
                }
                // What follows the length that the end names would be nobody's.
                Ok(length) => attempt.length.map_or(length, |whole| length.min(whole)),
                Err(error) => {
                    self.give_up(key, attempt.length, &error);
                    continue;
                }
            };
            if length == 0 {
                continue;
            }
            if !attempt.streamed {
                let since = *self.first_seen.entry(key).or_insert_with(Instant::now);
                let short = length <= limits::INLINE_OUTPUT as u64;
                if attempt.length.is_none() && short && since.elapsed() < LINGER {
                    continue;
                }
                if !self.hub.begin_streaming(key) {
                    continue;
                }
            }
            self.flow.available(key, attempt.durable, length);
        }
    }

    fn length(&mut self, key: AttemptKey) -> io::Result<u64> {
        if let Some(file) = self.files.get(&key) {
            return Ok(file.metadata()?.len());
        }
        match File::open(self.hub.context().records.dir(key).join(SPOOL)) {
            Ok(file) => {
                let length = file.metadata()?.len();
                self.files.insert(key, file);
                Ok(length)
            }
            // Not started yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// A spool that cannot be read must not keep its attempt here for ever.
    fn give_up(&mut self, key: AttemptKey, length: Option<u64>, error: &io::Error) {
        warn!(attempt = %key, %error, "output cannot be read");
        if let Some(length) = length {
            self.hub.handle(Input::OutputDurable { key, durable: length, discard: true });
        }
    }

    fn next_message(&mut self) -> Option<TaskOutputRequest> {
        let mut chunks = Vec::new();
        let mut bytes = 0;
        while bytes < MESSAGE {
            let Some(chunk) = self.flow.next_chunk() else { break };
            match self.read(chunk) {
                Ok(data) => {
                    bytes += data.len();
                    chunks.push(OutputChunk {
                        attempt: Some(chunk.key.into()),
                        position: chunk.position,
                        data,
                    });
                }
                Err(error) => {
                    self.flow.unsent(chunk);
                    self.give_up(chunk.key, None, &error);
                }
            }
        }
        let session_id = self.session_id.clone();
        (!chunks.is_empty()).then_some(TaskOutputRequest { session_id, chunks })
    }

    fn read(&self, chunk: Chunk) -> io::Result<Bytes> {
        let file = self.files.get(&chunk.key).ok_or(io::ErrorKind::NotFound)?;
        let mut data = vec![0; chunk.length];
        file.read_exact_at(&mut data, chunk.position)?;
        Ok(data.into())
    }
}
