//! The process dies at every point of the commit path, each time that it comes by: what was
//! acknowledged is there after the restart, and nothing is there twice.
//!
//! A person submits jobs, cancels one and redrives another that failed; a node runs what it is told to, both again and again
//! until they are answered; at one point the commit loop dies and is started anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_proto::{
    ids::{AttemptKey, BootId, JobNumber, NodeId, TaskKey},
    v1::{Cause, SandboxLevel},
};
use sqlx::PgPool;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Options, fixture, options, poison, soon};
use crate::{
    commit::{CommitLoop, Core, CoreError, Outside, Phase},
    engine::{
        Totals,
        effect::{Ack, Refusal, Reply, Say, Verdict},
        event::{AttemptEnd, Event, Held, NewJob, NodeRecord, Redrive, RedriveKey, Registration, ReplyId},
    },
    failpoint::{Point, arm, disarm},
    metrics::Metrics,
    postgres::testing::TestDatabase,
    spawn::spawn,
    store::{Store, StoreError},
    testing::{array, exited, job, joined, needing, new_job, registration, task},
};

/// What the node hears.
enum Heard {
    Say(Say),
    Again,
}

struct Ear(mpsc::UnboundedSender<Heard>);

impl Outside for Ear {
    fn say(&mut self, say: Say) {
        let _ = self.0.send(Heard::Say(say));
    }

    fn accepted(&mut self, _number: JobNumber, _job: &NewJob) {}

    fn register_again(&mut self) {
        let _ = self.0.send(Heard::Again);
    }

    fn step_down(&mut self) {}

    fn totals(&mut self, _totals: Totals) {}
}

/// One life of the coordinator.
struct Life {
    core: Core,
    heard: mpsc::UnboundedReceiver<Heard>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), StoreError>>,
}

impl Life {
    fn begin(database: &TestDatabase, options: &Options) -> Self {
        let (send, heard) = mpsc::unbounded_channel();
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let store = Store::new(database.options.clone(), 4);
        let (commit_loop, core) = CommitLoop::new(store, options.clone(), Ear(send), metrics);
        let stop = CancellationToken::new();
        let running = spawn("commit loop", commit_loop.run(stop.clone()));
        Self { core, heard, stop, running }
    }

    /// Asks until there is an answer.
    async fn ask(&self, event: impl Fn(ReplyId) -> Event) -> Result<Reply, Died> {
        loop {
            let mut phases = self.core.phases();
            soon(phases.wait_for(|phase| *phase == Phase::Leading)).await.map_err(|_| Died)?;
            match soon(self.core.ask(&event)).await {
                Ok(reply) => return Ok(reply),
                Err(CoreError::Refused(refusal)) => return Ok(Reply::Refused(refusal)),
                Err(CoreError::Recovering) if self.running.is_finished() => return Err(Died),
                Err(CoreError::Recovering | CoreError::Full) => tokio::task::yield_now().await,
                Err(CoreError::Ended | CoreError::Standby(_) | CoreError::Mismatch) => return Err(Died),
            }
        }
    }
}

#[derive(Debug)]
struct Died;

/// What a node holds, and what it did.
struct Node {
    record: NodeRecord,
    boot: BootId,
    held: BTreeMap<AttemptKey, Option<Arc<AttemptEnd>>>,
    starts: BTreeMap<AttemptKey, u32>,
    told: BTreeSet<AttemptKey>,
}

/// The people and the node, over the lives of the coordinator.
struct Story {
    pool: PgPool,
    node: Node,
    /// Tells the keys of this story's jobs from those of others.
    number: u32,
    /// The jobs of the person, once they are acknowledged.
    wide: Option<JobNumber>,
    doomed: Option<JobNumber>,
    fragile: Option<JobNumber>,
    cancelled: bool,
    redriven: bool,
    poison_refused: bool,
}

fn wide(story: u32) -> NewJob {
    let tasks = vec![task("first"), needing(array("then", 3), &[("first", false)])];
    NewJob { idempotency_key: Some(format!("wide {story}")), ..new_job(job(tasks)) }
}

fn doomed(story: u32) -> NewJob {
    NewJob { idempotency_key: Some(format!("doomed {story}")), ..new_job(job(vec![task("endless")])) }
}

/// Fails, and ends well when it is tried again.
fn fragile(story: u32) -> NewJob {
    NewJob { idempotency_key: Some(format!("fragile {story}")), ..new_job(job(vec![task("again")])) }
}

impl Story {
    fn new(pool: &PgPool, record: &NodeRecord, number: u32) -> Self {
        let node = Node {
            record: record.clone(),
            boot: BootId::generate(),
            held: BTreeMap::new(),
            starts: BTreeMap::new(),
            told: BTreeSet::new(),
        };
        let pool = pool.clone();
        Self {
            pool,
            node,
            number,
            wide: None,
            doomed: None,
            fragile: None,
            cancelled: false,
            redriven: false,
            poison_refused: false,
        }
    }

    /// Plays it with one death, and says whether anybody died.
    async fn play(mut self, database: &TestDatabase, options: &Options, point: Point, passes: u32) -> bool {
        let mut life = Life::begin(database, options);
        arm(point, passes, life.running.abort_handle());
        let store = Store::new(database.options.clone(), 2);
        let mut lives = 1;
        loop {
            if self.go_on(&mut life, &store).await.is_ok() {
                life.stop.cancel();
                if soon(life.running).await.is_ok_and(|end| end.is_ok()) {
                    break;
                }
            } else {
                assert!(soon(life.running).await.is_err(), "it ended, and nobody let it die");
            }
            lives += 1;
            assert!(lives <= 2, "it died twice");
            life = Life::begin(database, options);
        }
        self.check().await;
        let died = !disarm();
        assert_eq!(lives, if died { 2 } else { 1 });
        died
    }

    /// Goes on until everything is over, or until the coordinator dies.
    async fn go_on(&mut self, life: &mut Life, store: &Store) -> Result<(), Died> {
        self.register(life).await?;
        if self.doomed.is_none() {
            self.doomed = Some(submit(life, doomed(self.number)).await?);
        }
        if self.wide.is_none() {
            self.wide = Some(submit(life, wide(self.number)).await?);
        }
        if self.fragile.is_none() {
            self.fragile = Some(submit(life, fragile(self.number)).await?);
        }
        if !self.poison_refused {
            let poison = Arc::new(poison());
            let reply = life.ask(|reply| Event::JobSubmitted { reply, job: Arc::clone(&poison) }).await?;
            assert!(matches!(reply, Reply::Refused(Refusal::Poison(_))), "{reply:?}");
            self.poison_refused = true;
        }
        let number = self.doomed.unwrap();
        if !self.cancelled {
            let cancel = |reply| Event::JobCancelled { reply, job: number, reason: "enough".to_owned() };
            // It is not known any more if it was over before the answer came.
            let reply = life.ask(cancel).await?;
            let gone = matches!(reply, Reply::Refused(Refusal::NoSuchJob));
            assert!(gone || matches!(reply, Reply::Cancelled { .. }), "{reply:?}");
            self.cancelled = true;
        }
        self.work(life).await?;
        if !self.redriven {
            self.redrive(life, store).await?;
            self.redriven = true;
        }
        self.work(life).await
    }

    /// The node does what it is told to until everything is over.
    async fn work(&mut self, life: &mut Life) -> Result<(), Died> {
        while !self.over().await {
            match soon(life.heard.recv()).await {
                None => return Err(Died),
                Some(Heard::Again) => self.register(life).await?,
                Some(Heard::Say(say)) => self.hear(life, say).await?,
            }
        }
        Ok(())
    }

    /// As the handler does it: what was done under the key before is not done again.
    async fn redrive(&self, life: &Life, store: &Store) -> Result<(), Died> {
        let job = self.fragile.unwrap();
        loop {
            if store.redrive_by_key(job, "ann", "once").await.unwrap().is_some() {
                return Ok(());
            }
            let redrive = Arc::new(Redrive {
                job,
                targets: Vec::new(),
                stored: store.stored_job(job).await.unwrap().filter(|job| job.finished_at.is_some()),
                by: "ann".to_owned(),
                detail: String::new(),
                key: Some(RedriveKey { key: "once".to_owned(), payload_digest: [0; 32] }),
            });
            let asked = |reply| Event::JobRedriven { reply, redrive: Arc::clone(&redrive) };
            match life.ask(asked).await? {
                Reply::Redriven { redriven: 1, .. } => return Ok(()),
                Reply::Refused(Refusal::Changed(_) | Refusal::NothingDead(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn register(&mut self, life: &Life) -> Result<(), Died> {
        let held = |end: &Option<_>| if end.is_some() { Held::Ended } else { Held::Running };
        let new = Registration {
            inventory: self.node.held.iter().map(|(key, end)| (*key, held(end))).collect(),
            ..registration(&self.node.record, self.node.boot, 4)
        };
        let (session, registration) = (new.session, Arc::new(new));
        let register = |reply| Event::NodeRegistered { reply, registration: Arc::clone(&registration) };
        let reply = life.ask(register).await?;
        let Reply::Registered { verdicts } = reply else { panic!("{reply:?}") };
        for (key, verdict) in verdicts {
            if verdict == Verdict::Unknown {
                self.settled(key).await;
            }
        }
        self.tell(life, Event::SessionOpened { node: self.node.record.id, session }).await?;
        let words: Vec<_> = self.node.held.iter().map(|(key, end)| (*key, end.clone())).collect();
        for (key, end) in words {
            let runs = end.is_none();
            self.word(life, key, end).await?;
            if runs {
                self.runs(life, key).await?;
            }
        }
        Ok(())
    }

    async fn tell(&self, life: &Life, event: Event) -> Result<(), Died> {
        // What is lost while memory is read anew is said again with the next registration.
        match life.core.tell(event).await {
            Ok(()) | Err(CoreError::Recovering | CoreError::Full) => Ok(()),
            Err(CoreError::Ended | CoreError::Standby(_) | CoreError::Refused(_) | CoreError::Mismatch) => {
                Err(Died)
            }
        }
    }

    async fn word(&self, life: &Life, attempt: AttemptKey, end: Option<Arc<AttemptEnd>>) -> Result<(), Died> {
        let node = self.node.record.id;
        let event = match end {
            Some(end) => Event::AttemptEnded { node, attempt, end },
            None => Event::AttemptStarted { node, attempt, sandbox: SandboxLevel::Basic.into() },
        };
        self.tell(life, event).await
    }

    async fn hear(&mut self, life: &Life, say: Say) -> Result<(), Died> {
        match say {
            Say::Dispatch { attempt, .. } => {
                assert!(self.row(attempt).await.is_some(), "{attempt} was sent and is not stored");
                if self.node.held.contains_key(&attempt) || self.node.told.contains(&attempt) {
                    return Ok(());
                }
                *self.node.starts.entry(attempt).or_default() += 1;
                self.node.held.insert(attempt, None);
                self.word(life, attempt, None).await?;
                self.runs(life, attempt).await?;
            }
            Say::Cancel { attempt, .. } => {
                self.ends(life, attempt, AttemptEnd::declared(Cause::Cancelled, "cancelled")).await?;
            }
            Say::Ack { attempt, ack: Ack::Durable, ended: true, .. } => {
                let stored = self.row(attempt).await;
                assert_eq!(stored.as_deref(), Some("ended"), "{attempt} was acknowledged");
                self.node.held.remove(&attempt);
                self.node.told.insert(attempt);
            }
            Say::Ack { attempt, ack: Ack::Stale, ended: true, .. } => self.settled(attempt).await,
            Say::EndSession { .. } | Say::Withdraw { .. } => panic!("nobody was away: {say:?}"),
            Say::Ack { .. }
            | Say::Reply(..)
            | Say::JobChanged(_)
            | Say::Ended { .. }
            | Say::Unplaced { .. }
            | Say::Placed { .. } => {}
        }
        Ok(())
    }

    /// Processes end at once, but for one that never does.
    async fn runs(&mut self, life: &Life, attempt: AttemptKey) -> Result<(), Died> {
        if Some(attempt.task.job) == self.doomed {
            return Ok(());
        }
        let fails = Some(attempt.task.job) == self.fragile && attempt.number == 1;
        self.ends(life, attempt, exited(i32::from(fails))).await
    }

    async fn ends(&mut self, life: &Life, attempt: AttemptKey, end: AttemptEnd) -> Result<(), Died> {
        let end = Arc::new(end);
        if !self.node.told.contains(&attempt) {
            self.node.held.insert(attempt, Some(Arc::clone(&end)));
        }
        self.word(life, attempt, Some(end)).await
    }

    /// The engine does not hold this attempt any more: then its end is stored, as told.
    async fn settled(&mut self, attempt: AttemptKey) {
        if self.node.told.contains(&attempt) {
            return;
        }
        assert_eq!(self.row(attempt).await.as_deref(), Some("ended"), "{attempt} is forgotten");
        assert!(self.node.held.remove(&attempt).flatten().is_some(), "{attempt} ended without a word");
        self.node.told.insert(attempt);
    }

    /// The state of an attempt as it is stored.
    async fn row(&self, attempt: AttemptKey) -> Option<String> {
        let AttemptKey { task: TaskKey { job, task, index }, number } = attempt;
        sqlx::query_scalar(
            "SELECT state::text FROM attempts WHERE job = $1 AND task = $2 AND index = $3 AND number = $4",
        )
        .bind(job.0.cast_signed())
        .bind(task.cast_signed())
        .bind(index.cast_signed())
        .bind(number.cast_signed())
        .fetch_optional(&self.pool)
        .await
        .unwrap()
    }

    async fn over(&self) -> bool {
        let open: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE finished_at IS NULL")
            .fetch_one(&self.pool)
            .await
            .unwrap();
        open == 0 && self.node.held.is_empty()
    }

    /// What was acknowledged is there, and nothing twice.
    async fn check(&self) {
        let (doomed, wide, fragile) = (self.doomed.unwrap(), self.wide.unwrap(), self.fragile.unwrap());
        let jobs: Vec<(i64, String, String)> = sqlx::query_as(
            "SELECT number, idempotency_key, state::text FROM jobs WHERE idempotency_key LIKE '% ' || $1
             ORDER BY idempotency_key",
        )
        .bind(self.number.to_string())
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let expected =
            [(doomed, "doomed", "cancelled"), (fragile, "fragile", "completed"), (wide, "wide", "completed")]
                .map(|(job, key, state)| {
                    (job.0.cast_signed(), format!("{key} {}", self.number), state.to_owned())
                });
        assert_eq!(jobs, expected, "each job once, under the number that was acknowledged");
        let attempts: Vec<(i64, i32, i32, i32, String, Uuid)> = sqlx::query_as(
            "SELECT job, task, index, number, cause::text, node FROM attempts WHERE job IN ($1, $2, $3)",
        )
        .bind(doomed.0.cast_signed())
        .bind(wide.0.cast_signed())
        .bind(fragile.0.cast_signed())
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let tries = attempts.iter().filter(|row| row.0 == expected[1].0).count();
        let redriven: i64 =
            sqlx::query_scalar("SELECT count(*) FROM audit WHERE action = 'job.redrive' AND subject = $1")
                .bind(fragile.0.to_string())
                .fetch_one(&self.pool)
                .await
                .unwrap();
        assert_eq!((tries, redriven), (2, 1), "one redrive, one new attempt");
        let ends: Vec<_> = attempts.iter().filter(|row| row.0 == expected[2].0).collect();
        assert_eq!(ends.len(), 4, "one attempt for each task: {ends:?}");
        assert!(ends.iter().all(|row| row.3 == 1 && row.4 == "exit"), "{ends:?}");
        assert!(attempts.iter().all(|row| NodeId(row.5) == self.node.record.id), "{attempts:?}");
        let stored: BTreeSet<_> = attempts.iter().map(|row| (row.0, row.1, row.2, row.3)).collect();
        for (key, times) in &self.node.starts {
            let TaskKey { job, task, index } = key.task;
            let row =
                (job.0.cast_signed(), task.cast_signed(), index.cast_signed(), key.number.cast_signed());
            assert!(stored.contains(&row), "the process of {key} is not stored");
            assert_eq!(*times, 1, "{key} started more than once");
        }
        let completed: i64 =
            sqlx::query_scalar("SELECT count(*) FROM tasks WHERE job = $1 AND state = 'completed'")
                .bind(wide.0.cast_signed())
                .fetch_one(&self.pool)
                .await
                .unwrap();
        assert_eq!(completed, 4, "the results");
    }
}

async fn submit(life: &Life, job: NewJob) -> Result<JobNumber, Died> {
    let job = Arc::new(job);
    match life.ask(|reply| Event::JobSubmitted { reply, job: Arc::clone(&job) }).await? {
        Reply::Submitted { number, .. } => Ok(number),
        other => panic!("{other:?}"),
    }
}

/// Plays stories in one database, each with a death at another pass of a point, until it is not
/// passed so often any more.
async fn die_at(points: &[Point]) {
    let (database, pool) = fixture().await;
    let record = joined(&pool, "amber").await;
    let (options, mut stories) = (options(), 0);
    for &point in points {
        let mut passes = 0;
        loop {
            let story = Story::new(&pool, &record, stories);
            stories += 1;
            if !story.play(&database, &options, point, passes).await {
                break;
            }
            // Words are many, and one in four of the later ones tells as much as all.
            passes += if passes < 12 { 1 } else { 4 };
        }
        assert!(passes > 0, "{point:?} is never reached");
    }
}

/// The points, dealt to four tests that can run side by side.
async fn die_at_every_fourth(first: usize) {
    let mine: Vec<Point> = Point::ALL.iter().copied().skip(first).step_by(4).collect();
    assert!(!mine.is_empty());
    die_at(&mine).await;
}

#[tokio::test]
async fn a_crash_in_the_commit_path_loses_and_doubles_nothing_0() {
    die_at_every_fourth(0).await;
}

#[tokio::test]
async fn a_crash_in_the_commit_path_loses_and_doubles_nothing_1() {
    die_at_every_fourth(1).await;
}

#[tokio::test]
async fn a_crash_in_the_commit_path_loses_and_doubles_nothing_2() {
    die_at_every_fourth(2).await;
}

#[tokio::test]
async fn a_crash_in_the_commit_path_loses_and_doubles_nothing_3() {
    die_at_every_fourth(3).await;
}
