//! A Postgres for tests: one cluster for all test processes of a checkout, a database per test.
//!
//! The first process that asks makes the cluster under `target/test-postgres`, without fsync, and
//! brings a template to the newest migration; every test copies the template, which takes some
//! milliseconds. Nothing has to be set up or ended by hand: while a process uses the cluster it
//! holds a shared lock, and a watcher ends the cluster when nobody has held it for a while.
//! A cluster found stopped is made anew: without fsync it may be damaged, and it costs a second.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgPool};
use tokio::sync::OnceCell;

use super::cluster::{Cluster, Options, start_with};
use super::home::Home;
use super::owner::Owner;
use super::settings::{self, Durability};

/// Ends the cluster when nobody uses it. `$1` is the directory of locks and cluster.
const WATCHER: &str = r#"
cd "$1" || exit 1
while sleep 20; do
    [ -e postgres/postmaster.pid ] || exit 0
    exec 9>>users.lock
    if flock --nonblock --exclusive 9; then
        kill -INT "$(head -n 1 postgres/postmaster.pid)"
        while [ -e postgres/postmaster.pid ]; do sleep 0.1; done
        exit 0
    fi
    exec 9>&-
done
"#;

/// A migrated database of one test's own; dropped with this value.
#[derive(Debug)]
pub struct TestDatabase {
    /// For `--database-url`, by this user on this machine while this process lives.
    pub url: String,
    pub options: PgConnectOptions,
    name: String,
}

/// Makes a fresh, migrated database.
///
/// # Panics
/// When there is no Postgres to be had: a test that needs one cannot tell anything without it.
pub async fn database() -> TestDatabase {
    let server = server().await;
    let name = new_name();
    server
        .run(&format!("CREATE DATABASE {name} OWNER {} TEMPLATE {}", settings::ROLE, server.template))
        .await;
    server.open(name)
}

/// Makes a fresh database without any table in it, for tests of the migrations themselves.
///
/// # Panics
/// As [`database`].
pub async fn empty_database() -> TestDatabase {
    let server = server().await;
    let name = new_name();
    server.run(&format!("CREATE DATABASE {name} OWNER {}", settings::ROLE)).await;
    server.open(name)
}

fn new_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl TestDatabase {
    /// A pool of at most `connections` connections.
    ///
    /// # Panics
    /// When the database does not answer.
    pub async fn pool(&self, connections: u32) -> PgPool {
        PgPoolOptions::new()
            .max_connections(connections)
            .connect_with(self.options.clone())
            .await
            .expect("the test database answers")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let name = self.name.clone();
        // On a thread with a runtime of its own: the test's may be ending.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                if let Some(server) = SERVER.get() {
                    server.run(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
                }
            });
            std::io::Result::Ok(())
        })
        .join();
        if !matches!(dropped, Ok(Ok(()))) {
            eprintln!("could not drop the test database {}", self.name);
        }
    }
}

/// What one process knows of the shared cluster.
#[derive(Debug)]
struct Server {
    cluster: Cluster,
    template: String,
    /// Shared while this process lives: the cluster is in use.
    _used: File,
}

static SERVER: OnceCell<Server> = OnceCell::const_new();

async fn server() -> &'static Server {
    SERVER.get_or_init(|| async { begin(&root()).await }).await
}

/// `test-postgres` in the directory that cargo builds into.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| manifest.join("../target"), PathBuf::from);
    target.join("test-postgres")
}

async fn begin(root: &Path) -> Server {
    std::fs::create_dir_all(root).expect("the target directory is writable");
    let used = lock(&root.join("users.lock"), FlockOperation::LockShared);
    // One process at a time starts the cluster and makes the template.
    let starting = lock(&root.join("start.lock"), FlockOperation::LockExclusive);
    if !runs(&root.join("postgres")).await {
        match std::fs::remove_dir_all(root.join("postgres")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("old test cluster: {error}"),
            Ok(()) | Err(_) => {}
        }
    }
    let options = Options { data_dir: root.to_owned(), bin_dir: None };
    let cluster = start_with(options, Durability::None).await.expect("a test cluster starts");
    if !cluster.adopted() {
        watch(root);
    }
    let template = template(&cluster).await;
    drop(starting);
    Server { cluster, template, _used: used }
}

async fn runs(dir: &Path) -> bool {
    let (Ok(home), Ok(owner)) = (Home::open(dir), Owner::find(dir)) else { return false };
    matches!(home.postmaster(&owner).await, Ok(Some(postmaster)) if !postmaster.stopping)
}

fn lock(path: &Path, how: FlockOperation) -> File {
    let file = OpenOptions::new().create(true).append(true).open(path).expect("a lock file opens");
    flock(&file, how).expect("a lock file locks");
    file
}

/// Starts the watcher in a session of its own, so that no end of a test run ends it.
fn watch(root: &Path) {
    // `setsid --fork` ends at once; the watcher itself is nobody's child.
    std::process::Command::new("setsid")
        .args(["--fork", "sh", "-c", WATCHER, "watch-test-postgres"])
        .arg(root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("setsid (util-linux) is installed");
}

/// Makes the template of these migrations where it is missing, and returns its name.
async fn template(cluster: &Cluster) -> String {
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    let migrator = if migrations.is_dir() {
        Migrator::new(migrations.as_path()).await.expect("the migrations are readable")
    } else {
        Migrator::with_migrations(Vec::new())
    };
    let mut hash = Sha256::new();
    for migration in migrator.iter() {
        hash.update(migration.version.to_be_bytes());
        hash.update(&migration.checksum);
    }
    let name = format!("template_{}", &hex::encode(hash.finalize())[..16]);

    let mut admin = cluster
        .options_for(settings::SUPERUSER, "postgres")
        .connect()
        .await
        .expect("the test cluster answers");
    let made: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(&name)
        .fetch_one(&mut admin)
        .await
        .expect("the catalogue is readable");
    if !made {
        // Under its name only when it is whole: a failed migration must not leave half a template.
        let unfinished = format!("{name}_new");
        let role = settings::ROLE;
        for sql in [
            format!("DROP DATABASE IF EXISTS {unfinished} WITH (FORCE)"),
            format!("CREATE DATABASE {unfinished} OWNER {role}"),
        ] {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut admin).await.expect("a template is made");
        }
        let mut connection =
            cluster.options_for(role, &unfinished).connect().await.expect("the template answers");
        migrator.run(&mut connection).await.expect("the migrations apply");
        connection.close().await.expect("the template's connection closes");
        let sql = format!("ALTER DATABASE {unfinished} RENAME TO {name}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut admin).await.expect("the template is named");
    }
    admin.close().await.expect("the connection closes");
    name
}

impl Server {
    async fn run(&self, sql: &str) {
        let mut admin = self
            .cluster
            .options_for(settings::SUPERUSER, "postgres")
            .connect()
            .await
            .expect("the test cluster answers");
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut admin).await.expect("the statement runs");
        admin.close().await.expect("the connection closes");
    }

    fn open(&self, name: String) -> TestDatabase {
        let options = self.cluster.options_for(settings::ROLE, &name);
        TestDatabase { url: options.to_url_lossy().to_string(), options, name }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[tokio::test]
    async fn every_test_has_a_database_of_its_own() {
        let (one, two) = tokio::join!(database(), database());
        let (first, second) = (one.pool(2).await, two.pool(2).await);
        sqlx::raw_sql("CREATE TABLE mine (a int)").execute(&first).await.unwrap();
        let seen: Option<String> =
            sqlx::query_scalar("SELECT to_regclass('mine')::text").fetch_one(&second).await.unwrap();
        assert_eq!(seen, None, "one test sees the tables of another");
    }

    #[tokio::test]
    async fn a_database_is_gone_after_its_test_even_while_a_pool_is_open() {
        let database = database().await;
        let pool = database.pool(2).await;
        sqlx::raw_sql("SELECT 1").execute(&pool).await.unwrap();
        let name = database.name.clone();
        drop(database);
        let other = empty_database().await;
        let left: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(&name)
            .fetch_one(&other.pool(1).await)
            .await
            .unwrap();
        assert!(!left);
    }
}
