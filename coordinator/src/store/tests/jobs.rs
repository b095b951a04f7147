//! Jobs as people read them.

use mesh_proto::{
    ids::{JobId, JobNumber},
    v1::JobState,
};

use super::Kit;
use crate::{
    engine::event::NewJob,
    store::jobs::JobRef,
    testing::{exited, job, new_job, task},
};

fn keyed(owner: &str, key: Option<&str>) -> NewJob {
    NewJob {
        owner: owner.to_owned(),
        idempotency_key: key.map(str::to_owned),
        ..new_job(job(vec![task("one")]))
    }
}

#[tokio::test]
async fn a_key_finds_its_owners_job_and_nobody_elses_also_when_it_is_over() {
    let mut kit = Kit::new().await;
    let mine = kit.submit(keyed("ada", Some("k%_'; DROP TABLE jobs; --"))).await;
    let theirs = kit.submit(keyed("bob", Some("k%_'; DROP TABLE jobs; --"))).await;
    kit.cancel(mine).await;
    let find = async |owner: &str, key: &str| {
        kit.store.job_by_key(owner, key).await.unwrap().map(|(number, _, digest)| (number, digest))
    };
    assert_eq!(find("ada", "k%_'; DROP TABLE jobs; --").await, Some((mine, vec![7; 32])));
    assert_eq!(find("bob", "k%_'; DROP TABLE jobs; --").await.unwrap().0, theirs);
    for (owner, key) in [("ada", "k%"), ("ada", "%"), ("a%", "k%_'; DROP TABLE jobs; --"), ("ada", "")] {
        assert_eq!(find(owner, key).await, None, "{owner} {key}");
    }
}

#[tokio::test]
async fn jobs_are_found_by_number_uuid_and_last() {
    let mut kit = Kit::new().await;
    let first = kit.submit(keyed("ada", None)).await;
    let second = kit.submit(keyed("ada", None)).await;
    kit.submit(keyed("bob", None)).await;
    let uuid = kit.store.job(first).await.unwrap().unwrap().uuid;
    let find = async |job: JobRef| kit.store.job_number(&job).await.unwrap();
    assert_eq!(find(JobRef::Uuid(uuid)).await, Some(first));
    assert_eq!(find(JobRef::Uuid(JobId::generate())).await, None);
    assert_eq!(find(JobRef::Last("ada".to_owned())).await, Some(second));
    assert_eq!(find(JobRef::Last("%".to_owned())).await, None, "a name is no pattern");
    assert!(kit.store.job(JobNumber(99)).await.unwrap().is_none());
    assert!(kit.store.job(JobNumber(u64::MAX)).await.unwrap().is_none(), "past what the database counts");
}

#[tokio::test]
async fn pages_of_jobs_join_without_gap_or_overlap() {
    let mut kit = Kit::new().await;
    kit.node("amber", 1).await;
    for owner in ["ada", "bob"].iter().cycle().take(9) {
        kit.submit(keyed(owner, None)).await;
        if let Some(dispatched) = kit.dispatched().first().copied() {
            kit.end(dispatched, exited(i32::from(*owner == "bob"))).await;
        }
    }
    let page = async |limit, states: &[JobState], owner: Option<&str>| {
        let mut all = Vec::new();
        loop {
            let before = all.last().copied();
            let rows = kit.store.jobs(before, limit, states, owner).await.unwrap();
            assert!(rows.len() <= limit as usize);
            if rows.is_empty() {
                return all.iter().map(|number: &JobNumber| number.0).collect::<Vec<u64>>();
            }
            all.extend(rows.iter().map(|row| row.number));
        }
    };
    for limit in [1, 2, 4, 9, 50] {
        assert_eq!(page(limit, &[], None).await, [9, 8, 7, 6, 5, 4, 3, 2, 1], "{limit} a page");
    }
    assert_eq!(page(2, &[], Some("bob")).await, [8, 6, 4, 2]);
    assert_eq!(page(2, &[JobState::Failed], None).await, [8, 6, 4, 2]);
    assert_eq!(page(2, &[JobState::Completed, JobState::Failed], Some("ada")).await, [9, 7, 5, 3, 1]);
    assert_eq!(page(2, &[JobState::Running], None).await, [0_u64; 0]);
    assert_eq!(page(2, &[], Some("a_a")).await, [0_u64; 0], "an owner is no pattern");
}
