//! Refusals on their way into the audit: who was not let in, and who asked for what it may not.
//!
//! Whoever is refused can go on asking, so what is written is bounded: each refusal once a minute,
//! ten of strangers and ten of members in that minute, the others as one number; and the latest
//! [`KEPT`] are kept. Nobody who is refused waits for the database, and none of it is lost silently:
//! what there is no room for is counted.
//!
//! May enter: what becomes of a refusal. Whether it is one, the edges decide.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_proto::names;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::store::{Store, access::REFUSALS};

/// How long a refusal is not written again.
const TURN: Duration = Duration::from_mins(1);
/// Refusals that are written in a turn, of strangers and of members each.
const EACH: usize = 10;
/// Refusals that wait to be written. When full, the next ones are counted.
const WAITING: usize = 64;
/// Refusals that the audit keeps; the oldest go first.
const KEPT: u32 = 10_000;
/// After so many written ones the oldest are looked for.
const PRUNE: u32 = 500;
/// Bytes of each text.
const TEXT: usize = 200;

/// One refusal, as it stands in the audit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Refused {
    /// It has no certificate of this mesh.
    pub stranger: bool,
    /// An identity, or an address.
    pub actor: String,
    pub action: Action,
    pub subject: String,
    pub detail: String,
}

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Connection,
    Call,
    Join,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Connection => REFUSALS[0],
            Self::Call => REFUSALS[1],
            Self::Join => REFUSALS[2],
        }
    }
}

/// Takes refusals. Cheap to clone.
#[derive(Clone)]
pub struct Refusals {
    queue: mpsc::Sender<Refused>,
    /// Those that found it full.
    lost: Arc<AtomicU64>,
}

/// The other end: writes them.
pub struct Writer {
    queue: mpsc::Receiver<Refused>,
    lost: Arc<AtomicU64>,
}

impl Refusals {
    pub fn new() -> (Self, Writer) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        (Self { queue: sender, lost: Arc::clone(&lost) }, Writer { queue: receiver, lost })
    }

    pub fn note(&self, refused: Refused) {
        if self.queue.try_send(refused).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Writer {
    /// The next one, as it was noted.
    #[cfg(test)]
    pub(crate) fn waiting(&mut self) -> Option<Refused> {
        self.queue.try_recv().ok()
    }

    /// Writes until the process shuts down.
    pub async fn run(mut self, store: Store, stop: CancellationToken) {
        let mut ledger = Ledger::default();
        let mut turn = Instant::now() + TURN;
        // What was there before this start counts as well.
        let mut written = PRUNE;
        loop {
            let rows = tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(turn), if ledger.is_open() => {
                    turn = Instant::now() + TURN;
                    ledger.close(self.lost.swap(0, Ordering::Relaxed))
                }
                refused = self.queue.recv() => {
                    let Some(refused) = refused else { return };
                    if !ledger.is_open() {
                        turn = Instant::now() + TURN;
                    }
                    ledger.take(refused).into_iter().collect()
                }
            };
            for row in rows {
                written += 1;
                let noted = store.note(&row.actor, row.action, &row.subject, &row.detail).await;
                if let Err(error) = noted {
                    warn!(%error, "a refusal is missing in the audit");
                }
            }
            if written >= PRUNE {
                written = 0;
                if let Err(error) = store.forget_refusals(KEPT).await {
                    warn!(%error, "old refusals stay in the audit");
                }
            }
        }
    }
}

/// A row as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    actor: String,
    action: &'static str,
    subject: String,
    detail: String,
}

/// What was written in this turn, and what was not.
#[derive(Default)]
struct Ledger {
    strangers: Page,
    members: Page,
}

#[derive(Default)]
struct Page {
    written: HashSet<Refused>,
    more: u64,
}

impl Ledger {
    /// Whether there is something to remember until the turn is over.
    fn is_open(&self) -> bool {
        !self.strangers.written.is_empty() || !self.members.written.is_empty()
    }

    fn take(&mut self, refused: Refused) -> Option<Row> {
        let page = if refused.stranger { &mut self.strangers } else { &mut self.members };
        if page.written.len() >= EACH || page.written.contains(&refused) {
            page.more += 1;
            return None;
        }
        let row = Row {
            actor: short(&refused.actor),
            action: refused.action.name(),
            subject: short(&refused.subject),
            detail: short(&refused.detail),
        };
        page.written.insert(refused);
        Some(row)
    }

    /// The turn is over: what was not written one by one, as numbers.
    fn close(&mut self, lost: u64) -> Vec<Row> {
        let pages = [
            ("strangers", std::mem::take(&mut self.strangers).more),
            ("members", std::mem::take(&mut self.members).more),
        ];
        pages
            .into_iter()
            .chain([("unknown", lost)])
            .filter(|(_, more)| *more > 0)
            .map(|(subject, more)| Row {
                actor: "coordinator".to_owned(),
                action: REFUSALS[3],
                subject: subject.to_owned(),
                detail: more.to_string(),
            })
            .collect()
    }
}

/// What a stranger typed, shown and bounded.
fn short(text: &str) -> String {
    let mut text = names::escape(text);
    let mut end = text.len().min(TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(stranger: bool, actor: &str, subject: &str) -> Refused {
        Refused {
            stranger,
            actor: actor.to_owned(),
            action: Action::Call,
            subject: subject.to_owned(),
            detail: "denied".to_owned(),
        }
    }

    #[test]
    fn a_flood_of_refusals_is_a_few_rows_and_a_number() {
        let mut ledger = Ledger::default();
        let of_strangers =
            (0..100_000).filter_map(|n| ledger.take(refused(true, &format!("a{n}"), "x"))).count();
        assert_eq!(of_strangers, EACH);
        // Strangers in numbers do not hide what a member does.
        assert!(ledger.take(refused(false, "node/1", "Jobs/CancelJob")).is_some());
        assert_eq!(ledger.take(refused(false, "node/1", "Jobs/CancelJob")), None, "written already");
        let rows: Vec<_> = ledger.close(3).into_iter().map(|row| (row.subject, row.detail)).collect();
        let expected = [("strangers", "99990"), ("members", "1"), ("unknown", "3")];
        assert_eq!(rows, expected.map(|(subject, detail)| (subject.to_owned(), detail.to_owned())));
        assert!(!ledger.is_open());
        assert!(ledger.take(refused(false, "node/1", "Jobs/CancelJob")).is_some(), "a new minute");
    }

    #[test]
    fn what_a_stranger_typed_is_escaped_and_cut() {
        let mut ledger = Ledger::default();
        let row = ledger.take(refused(true, "a\u{1b}[2J", &"ü".repeat(500))).unwrap();
        assert_eq!(row.actor, "a\\x1b[2J");
        assert!(row.subject.len() <= TEXT && row.subject.starts_with('ü'), "{}", row.subject);
    }

    #[tokio::test]
    async fn who_is_refused_never_waits() {
        let (refusals, writer) = Refusals::new();
        for number in 0..1_000 {
            refusals.note(refused(true, &number.to_string(), "x"));
        }
        assert_eq!(writer.lost.load(Ordering::Relaxed), 1_000 - WAITING as u64);
    }
}
