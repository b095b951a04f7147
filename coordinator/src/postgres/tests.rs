//! The private cluster against the real Postgres of this machine. As root these tests run
//! Postgres as its own user, otherwise as the caller.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

use super::home::Home;
use super::owner::Owner;
use super::{Cluster, Options, PostgresError, check_given, run_alone, start};

/// A data directory that none but its owner can enter, as `mktemp -d` makes them. Whatever runs
/// in it when the test ends, passed or not, is ended.
struct DataDir {
    dir: TempDir,
}

impl DataDir {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn options(&self) -> Options {
        Options { data_dir: self.path().to_owned(), bin_dir: None }
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        let pid_file = self.path().join("postgres/postmaster.pid");
        let Ok(text) = std::fs::read_to_string(&pid_file) else { return };
        let Some(pid) = text.lines().next().and_then(|line| line.parse::<i32>().ok()) else { return };
        // A test of a stale pid file may have failed half-way: only a Postgres is ended.
        if std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with("postgres"))
        {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGQUIT);
        }
    }
}

async fn connect(cluster: &Cluster) -> PgConnection {
    PgConnection::connect_with(&cluster.connect_options()).await.unwrap()
}

async fn text(connection: &mut PgConnection, sql: &'static str) -> String {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

async fn put(cluster: &Cluster, value: &str) {
    let mut connection = connect(cluster).await;
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS kept (v text)").execute(&mut connection).await.unwrap();
    sqlx::query("INSERT INTO kept VALUES ($1)").bind(value).execute(&mut connection).await.unwrap();
}

async fn get(cluster: &Cluster) -> String {
    text(&mut connect(cluster).await, "SELECT string_agg(v, ',' ORDER BY v) FROM kept").await
}

fn kill(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

#[tokio::test]
async fn a_fresh_cluster_is_durable_and_private() {
    let data = DataDir::new();
    let cluster = start(data.options()).await.unwrap();
    assert!(!cluster.adopted());
    let mut connection = connect(&cluster).await;
    for (sql, expected) in [
        ("SELECT current_setting('fsync')", "on"),
        ("SELECT current_setting('synchronous_commit')", "on"),
        ("SELECT current_setting('full_page_writes')", "on"),
        ("SELECT current_setting('listen_addresses')", ""),
        ("SELECT current_setting('jit')", "off"),
        ("SELECT current_setting('data_checksums')", "on"),
        ("SELECT current_setting('server_encoding')", "UTF8"),
        ("SELECT current_user::text", "mesh"),
        ("SELECT current_setting('is_superuser')", "off"),
        ("SELECT current_database()::text", "mesh"),
    ] {
        assert_eq!(text(&mut connection, sql).await, expected, "{sql}");
    }
    let dir = std::fs::metadata(data.path().join("postgres")).unwrap();
    assert_eq!(dir.permissions().mode() & 0o777, 0o700, "others can reach the socket");
    assert_ne!(dir.uid(), 0, "Postgres runs as root");

    let pool = sqlx::PgPool::connect_with(cluster.connect_options()).await.unwrap();
    check_given(&pool).await.unwrap();
    pool.close().await;
    PgConnection::connect(&cluster.url()).await.expect("the url leads to the database");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_stop_and_a_start_keep_what_was_stored() {
    let data = DataDir::new();
    let cluster = start(data.options()).await.unwrap();
    let pid = cluster.pid();
    put(&cluster, "one").await;
    // A client that hangs on must not hold up the end of the coordinator.
    let mut lingering = connect(&cluster).await;
    cluster.stop().await.unwrap();
    assert!(lingering.ping().await.is_err());
    assert!(!data.path().join("postgres/postmaster.pid").exists(), "postgres runs on after its stop");

    let cluster = start(data.options()).await.unwrap();
    assert!(!cluster.adopted());
    assert_ne!(cluster.pid(), pid);
    assert_eq!(get(&cluster).await, "one");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_cluster_left_by_a_killed_coordinator_is_adopted() {
    let data = DataDir::new();
    let cluster = start(data.options()).await.unwrap();
    put(&cluster, "one").await;
    let pid = cluster.pid();
    // What is left when the process is killed: no stop is run.
    drop(cluster);

    let cluster = start(data.options()).await.unwrap();
    assert!(cluster.adopted());
    assert_eq!(cluster.pid(), pid);
    assert_eq!(get(&cluster).await, "one");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn the_postmaster_is_out_of_reach_of_what_ends_the_coordinator() {
    let data = DataDir::new();
    let cluster = start(data.options()).await.unwrap();
    let postmaster = nix::unistd::Pid::from_raw(cluster.pid());
    assert_eq!(
        nix::unistd::getsid(Some(postmaster)).unwrap(),
        postmaster,
        "a terminal's Ctrl-C would reach it"
    );
    let status = std::fs::read_to_string(format!("/proc/{postmaster}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
    assert_ne!(parent, std::process::id().to_string());
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_postmaster_is_replaced_and_nothing_committed_is_lost() {
    let data = DataDir::new();
    let cluster = start(data.options()).await.unwrap();
    put(&cluster, "one").await;
    let pid = cluster.pid();
    kill(pid, nix::sys::signal::Signal::SIGKILL);

    // Its children are still ending while this starts: two sets of writers must not meet.
    let cluster = start(data.options()).await.unwrap();
    assert!(!cluster.adopted());
    assert_ne!(cluster.pid(), pid);
    assert_eq!(get(&cluster).await, "one");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_postmaster_that_ends_while_it_is_adopted_is_replaced() {
    let data = DataDir::new();
    let cluster = start(data.options()).await.unwrap();
    put(&cluster, "one").await;
    let pid = cluster.pid();
    // It is there and lets clients connect, but answers none.
    kill(pid, nix::sys::signal::Signal::SIGSTOP);
    let before = open_sockets();
    let starting = crate::spawn::spawn("start", start(data.options()));
    while open_sockets() == before {
        assert!(!starting.is_finished(), "the start did not connect to the postmaster it found");
        tokio::task::yield_now().await;
    }
    kill(pid, nix::sys::signal::Signal::SIGKILL);

    let cluster = starting.await.unwrap().unwrap();
    assert!(!cluster.adopted());
    assert_eq!(get(&cluster).await, "one");
    cluster.stop().await.unwrap();
}

/// Each test is a process of its own, so what changes here is this test's.
fn open_sockets() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

#[tokio::test]
async fn a_pid_file_that_names_a_stranger_is_stale() {
    let data = DataDir::new();
    let cluster = start(data.options()).await.unwrap();
    put(&cluster, "one").await;
    let text = std::fs::read_to_string(data.path().join("postgres/postmaster.pid")).unwrap();
    let pid = cluster.pid().to_string();
    cluster.stop().await.unwrap();

    // Another cluster of the same user: alive, and truly a postmaster, but not this one's.
    let other = DataDir::new();
    let stranger = start(other.options()).await.unwrap();
    let owner = Owner::find(&data.path().join("postgres")).unwrap();
    let home = Home::open(&data.path().join("postgres")).unwrap();
    home.write("postmaster.pid", &text.replacen(&pid, &stranger.pid().to_string(), 1), &owner).unwrap();

    let cluster = start(data.options()).await.unwrap();
    assert!(!cluster.adopted());
    assert_ne!(cluster.pid(), stranger.pid());
    assert_eq!(get(&cluster).await, "one");
    connect(&stranger).await.ping().await.expect("the stranger was left alone");
    cluster.stop().await.unwrap();
    stranger.stop().await.unwrap();
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_works_all_the_same() {
    let data = DataDir::new();
    let long = data.path().join("a-directory-with-a-long-name".repeat(3)).join("and another".repeat(6));
    std::fs::create_dir_all(&long).unwrap();
    let options = Options { data_dir: long.clone(), bin_dir: None };
    let cluster = start(options.clone()).await.unwrap();
    put(&cluster, "one").await;
    PgConnection::connect(&cluster.url()).await.expect("the url leads to the database");
    drop(cluster);
    let cluster = start(options).await.unwrap();
    assert!(cluster.adopted());
    assert_eq!(get(&cluster).await, "one");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn an_unfinished_cluster_is_made_again() {
    let data = DataDir::new();
    let new = data.path().join("postgres.new");
    std::fs::create_dir(&new).unwrap();
    std::fs::write(new.join("half"), "x").unwrap();
    let cluster = start(data.options()).await.unwrap();
    assert!(!new.exists());
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_no_cluster_is_not_touched() {
    let data = DataDir::new();
    let dir = data.path().join("postgres");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("thesis.txt"), "x").unwrap();
    let error = start(data.options()).await.unwrap_err();
    assert!(matches!(error, PostgresError::NoCluster(_)), "{error}");
    assert_eq!(std::fs::read_to_string(dir.join("thesis.txt")).unwrap(), "x");
}

#[tokio::test]
async fn a_start_that_fails_says_what_postgres_said() {
    let data = DataDir::new();
    start(data.options()).await.unwrap().stop().await.unwrap();
    let auto = data.path().join("postgres/postgresql.auto.conf");
    std::fs::write(&auto, "shared_buffers = 'a lot'\n").unwrap();
    let error = start(data.options()).await.unwrap_err().to_string();
    assert!(error.contains("shared_buffers"), "{error}");
}

/// Another user of the machine, root's own tests only: an ordinary user cannot become another.
#[tokio::test]
async fn another_user_of_this_machine_does_not_get_in() {
    let data = DataDir::new();
    let cluster = start(data.options()).await.unwrap();
    if nix::unistd::Uid::effective().is_root() {
        // As if every directory on the way were open, so that peer alone stands in the way.
        let mut dir: PathBuf = data.path().join("postgres");
        let socket = dir.join(".s.PGSQL.5432");
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).unwrap();
        while dir.starts_with(data.path()) {
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
            dir.pop();
        }
        let psql = |uid: u32| {
            let mut psql = std::process::Command::new("psql");
            std::os::unix::process::CommandExt::uid(&mut psql, uid);
            psql.args(["-w", "-U", "mesh", "-d", "mesh", "-c", "SELECT 1", "-h"]);
            psql.arg(data.path().join("postgres")).current_dir("/").output().unwrap()
        };
        let refused = psql(nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.as_raw());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("Peer authentication failed"), "{said}");
        assert!(psql(0).status.success());
    }
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn alone_it_runs_until_a_signal_and_then_is_gone() {
    let data = DataDir::new();
    let mut url = String::new();
    run_alone(data.options(), |cluster| {
        url = cluster.url();
        kill(std::process::id() as i32, nix::sys::signal::Signal::SIGTERM);
    })
    .await
    .unwrap();
    assert!(url.starts_with("postgres://mesh@"), "{url}");
    assert!(!data.path().join("postgres/postmaster.pid").exists(), "postgres runs on");
}
