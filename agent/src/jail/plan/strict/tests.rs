//! The order of a strict task's steps, and what it may ask for.

use std::ffi::CString;

use super::{
    super::tests::{ROOT, USER, places, request},
    *,
};

fn strict() -> StartRequest {
    StartRequest { level: Level::Strict, ..request() }
}

fn root() -> StartRequest {
    StartRequest { uid: Some(70001), gid: Some(70001), ..strict() }
}

fn mount(to: &str) -> Mount {
    Mount { source: "/srv/data".into(), to: to.into(), read_only: true, owner: None }
}

fn go(request: &StartRequest, facts: &Facts) -> Result<Vec<Step>, Refusal> {
    super::super::plan(request, &places(), facts).map(|plan| plan.steps)
}

#[test]
fn power_goes_in_order_mounts_root_capabilities_landlock_filter() {
    for (request, facts) in [(root(), &ROOT), (strict(), &USER)] {
        let steps = go(&request, facts).unwrap();
        let at = |wanted: fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
        let order = [
            at(|step| matches!(step, Step::Hold(_))),
            at(|step| matches!(step, Step::EnterTree)),
            at(|step| matches!(step, Step::OwnProc)),
            at(|step| matches!(step, Step::Fork)),
            at(|step| matches!(step, Step::DropCapabilities)),
            at(|step| matches!(step, Step::NoNewPrivileges)),
            at(|step| matches!(step, Step::Restrict)),
            at(|step| matches!(step, Step::Filter)),
        ];
        assert!(order.is_sorted(), "{steps:?}");
        assert_eq!(order[7], steps.len() - 1, "something comes after the filter");
    }
    let steps = go(&root(), &ROOT).unwrap();
    let at = |wanted: &Step| steps.iter().position(|step| step == wanted).unwrap();
    assert!(at(&Step::OwnProc) < at(&Step::EnterUser), "root mounts before it enters the user namespace");
    assert!(at(&Step::ClearGroups) < at(&Step::EnterUser));
    assert!(at(&Step::EnterUser) < at(&Step::Uid(70001)));
}

#[test]
fn walls_are_left_away_only_in_a_jail_for_tests() {
    let request = StartRequest { without: vec![Wall::Seccomp], ..strict() };
    assert_eq!(go(&request, &USER).unwrap_err(), Refusal::Testing);
    let steps = go(&request, &Facts { testing: true, ..USER }).unwrap();
    assert!(!steps.contains(&Step::Filter) && steps.contains(&Step::Restrict));
}

#[test]
fn a_mount_needs_a_place_of_its_own() {
    let with = |mounts: &[&str]| {
        let mounts = mounts.iter().map(|to| mount(to)).collect();
        go(&StartRequest { mounts, ..strict() }, &USER)
    };
    for to in ["/", "data", "/etc/x", "/usr", "/work/data", "/proc/1", "/a/../etc", "/dev/shm", ""] {
        assert_eq!(with(&[to]).unwrap_err(), Refusal::Place(to.into()), "{to}");
    }
    assert!(matches!(with(&["/data", "/data/more"]), Err(Refusal::Place(_))));
    let steps = with(&["/mnt/a", "/mnt/b"]).unwrap();
    let made: Vec<&Step> = steps.iter().filter(|step| matches!(step, Step::MakeDir(_))).collect();
    let dir = |path: &str| Step::MakeDir(CString::new(path).unwrap());
    assert_eq!(made, [&dir("/mnt"), &dir("/mnt/a"), &dir("/mnt/b")]);
    let basic = StartRequest { mounts: vec![mount("/data")], ..request() };
    assert_eq!(go(&basic, &USER).unwrap_err(), Refusal::Mounts(Level::Basic));
}

#[test]
fn without_groups_each_process_is_bounded() {
    let bounds = Bounds { memory: Some(1 << 30), processes: Some(50), disk: Some(9), ..Bounds::default() };
    let request = StartRequest { bounds, ..strict() };
    let steps = go(&request, &Facts { limits: Limits::Rlimit, ..USER }).unwrap();
    assert!(steps.contains(&Step::Limit(Limit::Data, 1 << 30)));
    assert!(steps.contains(&Step::Limit(Limit::Processes, 50)));
    let steps = go(&request, &USER).unwrap();
    assert!(!steps.iter().any(|step| matches!(step, Step::Limit(Limit::Data, _))));
    assert!(steps.contains(&Step::Limit(Limit::FileSize, 9)));
}

#[test]
fn a_plan_reaches_the_helper_as_it_is() {
    let request = StartRequest {
        argv: vec!["tool".into(), "\u{fc}\n\"".into()],
        mounts: vec![mount("/data")],
        ..root()
    };
    let plan = super::super::plan(&request, &places(), &ROOT).unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    let back: Plan = serde_json::from_str(&text).unwrap();
    assert_eq!((back.steps, back.argv, back.programs), (plan.steps, plan.argv, plan.programs));
}
