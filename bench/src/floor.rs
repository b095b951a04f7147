//! The floors: what this machine needs for the least that must happen, without a mesh.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};

use crate::{processes::Usage, stats::median};

/// Processes that are started and reaped in a second, `width` at a time. The standard
/// library starts them by posix_spawn.
pub fn spawns_per_second(width: usize, time: Duration) -> f64 {
    let began = Instant::now();
    let starters: Vec<_> = (0..width)
        .map(|_| {
            thread::spawn(move || {
                let mut count = 0_u32;
                while began.elapsed() < time {
                    Command::new("/bin/true").status().expect("/bin/true starts");
                    count += 1;
                }
                count
            })
        })
        .collect();
    let count: u32 =
        starters.into_iter().map(|starter| starter.join().expect("it only starts processes")).sum();
    f64::from(count) / began.elapsed().as_secs_f64()
}

/// The processor time of one process, from its start to its end, in milliseconds; that of its starter is
/// not in it.
pub fn process_ms() -> f64 {
    const COUNT: u32 = 500;
    let own = [std::process::id()];
    let before = Usage::of_buried(&own);
    for _ in 0..COUNT {
        Command::new("/bin/true").status().expect("/bin/true starts");
    }
    millis(Usage::of_buried(&own).since(&before)) / f64::from(COUNT)
}

/// How long one process takes from its start to its reaping, in milliseconds.
pub fn spawn_ms() -> f64 {
    let one = || {
        let began = Instant::now();
        Command::new("/bin/true").status().expect("/bin/true starts");
        millis(began.elapsed())
    };
    median(&(0..50).map(|_| one()).collect::<Vec<f64>>())
}

/// How long 8 KiB, a page of Postgres, take to the disk where `dir` is, in milliseconds.
pub fn sync_ms(dir: &Path) -> anyhow::Result<f64> {
    let mut file = tempfile::tempfile_in(dir).context("make a file for the fdatasync floor")?;
    file.write_all(&vec![0; 1 << 20])?;
    file.sync_all()?;
    let one = |file: &File| -> std::io::Result<f64> {
        let began = Instant::now();
        file.write_all_at(&[1; 8 << 10], 0)?;
        file.sync_data()?;
        Ok(millis(began.elapsed()))
    };
    let runs = (0..50).map(|_| one(&file)).collect::<Result<Vec<f64>, _>>()?;
    Ok(median(&runs))
}

/// Rows of a plain queue table that one client claims and completes in a second, 100 in each
/// commit, in the very Postgres that the mesh uses.
pub async fn queue_rows_per_second(postgres: &PgConnectOptions, time: Duration) -> anyhow::Result<f64> {
    let mut connection = PgConnection::connect_with(postgres).await?;
    let make = "DROP TABLE IF EXISTS floor_queue;
        CREATE TABLE floor_queue (id bigserial PRIMARY KEY, state text NOT NULL DEFAULT 'queued', worker text);
        CREATE INDEX floor_waiting ON floor_queue (id) WHERE state = 'queued';
        INSERT INTO floor_queue (state) SELECT 'queued' FROM generate_series(1, 200000)";
    sqlx::raw_sql(make).execute(&mut connection).await?;
    let began = Instant::now();
    let mut rows = 0;
    while began.elapsed() < time {
        let claimed: Vec<i64> = sqlx::query_scalar(
            "UPDATE floor_queue SET state = 'running', worker = 'w' WHERE id IN (
                SELECT id FROM floor_queue WHERE state = 'queued' ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED
             ) RETURNING id",
        )
        .fetch_all(&mut connection)
        .await?;
        let done = sqlx::query("UPDATE floor_queue SET state = 'done' WHERE id = ANY ($1)")
            .bind(&claimed)
            .execute(&mut connection)
            .await?;
        rows += done.rows_affected();
    }
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    sqlx::raw_sql("DROP TABLE floor_queue").execute(&mut connection).await?;
    connection.close().await?;
    Ok(rate)
}

#[must_use]
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
