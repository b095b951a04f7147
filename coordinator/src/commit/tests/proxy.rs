//! A unix socket between the coordinator and Postgres that counts what goes by, can lose a
//! commit on its way there or its answer on the way back, and can be slow.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

use crate::spawn::{AbortOnDrop, spawn, spawn_owned};

pub struct Proxy {
    /// How to connect through it.
    pub options: PgConnectOptions,
    state: Arc<State>,
    _dir: TempDir,
    _task: AbortOnDrop<()>,
}

#[derive(Default)]
struct State {
    /// What clients sent, in writes.
    sent: AtomicU64,
    /// The answer to the next commit is lost, and its connection with it.
    lose: AtomicBool,
    /// What is sent with this text in it never arrives, and its connection is lost.
    swallow: Mutex<Option<&'static str>>,
    /// So much later everything arrives that is sent, in milliseconds.
    delay_ms: AtomicU64,
}

impl Proxy {
    pub fn before(database: &PgConnectOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = format!(".s.PGSQL.{}", database.get_port());
        let target = database.get_socket().expect("tests use a unix socket").join(&name);
        let listener = UnixListener::bind(dir.path().join(&name)).unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let task = spawn_owned("proxy", async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&target).await.unwrap();
                spawn("proxied connection", forward(client, server, Arc::clone(&shared)));
            }
        });
        Self { options: database.clone().socket(dir.path()), state, _dir: dir, _task: task }
    }

    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    pub fn lose_the_next_answer_to_a_commit(&self) {
        self.state.lose.store(true, Ordering::SeqCst);
    }

    /// The next statement that holds this text is lost on its way.
    pub fn lose_the_next_with(&self, text: &'static str) {
        *self.state.swallow.lock().unwrap() = Some(text);
    }

    /// Whether it was lost, whatever it was.
    pub fn lost(&self) -> bool {
        !self.state.lose.load(Ordering::SeqCst) && self.state.swallow.lock().unwrap().is_none()
    }

    /// From now on each request takes so much longer.
    pub fn delay(&self, by: Duration) {
        self.state.delay_ms.store(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl State {
    /// Whether what a client sends is lost.
    fn swallows(&self, bytes: &[u8]) -> bool {
        let mut swallow = self.swallow.lock().unwrap();
        let holds = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        swallow.take_if(|text| holds(text)).is_some()
    }
}

async fn forward(mut client: UnixStream, mut server: UnixStream, state: Arc<State>) {
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(count @ 1..) = read else { return };
                state.sent.fetch_add(1, Ordering::SeqCst);
                if state.swallows(&up[..count]) {
                    return;
                }
                let delay = Duration::from_millis(state.delay_ms.load(Ordering::SeqCst));
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                if server.write_all(&up[..count]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(count @ 1..) = read else { return };
                // A commit is one statement that selects the new seq. Postgres hands its answer
                // over when it has committed.
                let commits = down[..count].windows(9).any(|word| word == b"SELECT 1\0");
                if commits && state.lose.load(Ordering::SeqCst) {
                    state.lose.store(false, Ordering::SeqCst);
                    return;
                }
                if client.write_all(&down[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
