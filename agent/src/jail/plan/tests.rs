//! What a plan holds, for whom, in which order.

use std::time::Duration;

use mesh_proto::ids::{AttemptKey, JobNumber, TaskKey};

use super::{
    super::protocol::{Bounds, Network, Rlimits},
    *,
};

pub const ROOT: Facts = Facts {
    uid: 0,
    gid: 0,
    strongest: Level::Strict,
    nofile: 1 << 20,
    oom_score_adj: 0,
    limits: Limits::Cgroup,
    testing: false,
};
pub const USER: Facts = Facts { uid: 1000, gid: 100, ..ROOT };

pub fn request() -> StartRequest {
    StartRequest {
        attempt: AttemptKey { task: TaskKey { job: JobNumber(1), task: 0, index: 0 }, number: 1 },
        argv: vec!["tool".into(), "arg".into()],
        env: vec![("PATH".into(), "/a::/b".into())],
        work_dir: "/data/attempts/1/work".into(),
        attempt_dir: "/data/attempts/1".into(),
        uid: None,
        gid: None,
        level: Level::Basic,
        timeout: None,
        grace: Duration::from_secs(1),
        max_output: 1,
        limits: Rlimits::default(),
        hidden: vec![],
        network: Network::None,
        mounts: vec![],
        bounds: Bounds::default(),
        room: None,
        without: vec![],
        lease: None,
        after: None,
        slot: None,
    }
}

pub fn places() -> Places {
    Places {
        work_dir: "/data/attempts/1/work".into(),
        attempt_dir: "/data/attempts/1".into(),
        hidden: vec!["/run/mesh".into(), "/data/attempts".into(), "/data".into()],
    }
}

#[test]
fn no_request_ever_becomes_root() {
    for (uid, gid) in
        [(None, None), (Some(0), Some(0)), (Some(0), Some(5)), (Some(5), Some(0)), (Some(5), None)]
    {
        for level in [Level::None, Level::Basic] {
            let request = StartRequest { uid, gid, level, ..request() };
            assert_eq!(plan(&request, &places(), &ROOT).unwrap_err(), Refusal::Root, "{uid:?} {gid:?}");
        }
    }
    let other = StartRequest { uid: Some(0), ..request() };
    assert_eq!(plan(&other, &places(), &USER).unwrap_err(), Refusal::OtherUser(0));
}

#[test]
fn a_level_that_was_not_proved_is_refused_and_never_replaced() {
    for (strongest, level) in
        [(Level::None, Level::Basic), (Level::None, Level::Strict), (Level::Basic, Level::Strict)]
    {
        let facts = Facts { strongest, ..USER };
        let request = StartRequest { level, ..request() };
        assert_eq!(plan(&request, &places(), &facts).unwrap_err(), Refusal::Level(level));
    }
}

#[test]
fn the_uid_changes_after_what_needs_root_and_privileges_go_last() {
    let request = StartRequest { uid: Some(70001), gid: Some(70001), ..request() };
    let plan = plan(&request, &places(), &ROOT).unwrap();
    let at = |step: &Step| plan.steps.iter().position(|s| s == step).unwrap();
    assert!(at(&Step::OwnProc) < at(&Step::Fork));
    assert!(at(&Step::Fork) < at(&Step::ClearGroups));
    assert!(at(&Step::ClearGroups) < at(&Step::Gid(70001)));
    assert!(at(&Step::Gid(70001)) < at(&Step::Uid(70001)));
    assert!(at(&Step::Uid(70001)) < at(&Step::NoNewPrivileges));
    assert!(at(&Step::DropCapabilities) < at(&Step::NoNewPrivileges));
    assert_eq!(plan.namespaces & sys::NEW_USER, 0, "root needs no user namespace");
}

#[test]
fn a_cover_hides_all_of_a_tree_and_shows_the_work_directory_alone() {
    let plan = plan(&request(), &places(), &USER).unwrap();
    let c = |text: &str| CString::new(text).unwrap();
    let mounts: Vec<_> = plan
        .steps
        .iter()
        .filter(|step| {
            matches!(
                step,
                Step::Hold(_) | Step::Cover(_) | Step::MakeDir(_) | Step::Seal(_) | Step::Restore(_)
            )
        })
        .cloned()
        .collect();
    assert_eq!(
        mounts,
        [
            Step::Hold(c("/data/attempts/1/work")),
            Step::Cover(c("/data")),
            Step::MakeDir(c("/data/attempts")),
            Step::MakeDir(c("/data/attempts/1")),
            Step::MakeDir(c("/data/attempts/1/work")),
            Step::Seal(c("/data")),
            Step::Restore(c("/data/attempts/1/work")),
            Step::Cover(c("/run/mesh")),
            Step::Seal(c("/run/mesh")),
        ]
    );
}

#[test]
fn the_attempt_directory_is_hidden_though_nobody_named_it() {
    let places = Places { hidden: vec![], work_dir: "/slots/1".into(), ..places() };
    let plan = plan(&request(), &places, &USER).unwrap();
    assert!(plan.steps.contains(&Step::Cover(c"/data/attempts/1".into())));
    let inside = Places { attempt_dir: "/slots/1/meta".into(), ..places };
    assert!(matches!(super::plan(&request(), &inside, &USER), Err(Refusal::AttemptInWork(_))));
}

#[test]
fn commands_are_searched_as_a_shell_would() {
    let programs = |argv: &str| {
        let request = StartRequest { argv: vec![argv.into()], ..request() };
        plan(&request, &places(), &USER).map(|plan| plan.programs)
    };
    assert_eq!(programs("tool").unwrap(), [c"/a/tool".into(), c"./tool".into(), CString::from(c"/b/tool")]);
    assert_eq!(programs("./tool").unwrap(), [CString::from(c"./tool")]);
    assert_eq!(programs("").unwrap_err(), Refusal::NoCommand);
    assert_eq!(programs("a\0b").unwrap_err(), Refusal::Nul);
}

#[test]
fn environment_names_that_would_forge_another_are_refused() {
    let request = StartRequest { env: vec![("A=B".into(), "C".into())], ..request() };
    assert_eq!(plan(&request, &places(), &USER).unwrap_err(), Refusal::Variable("A=B".into()));
}
