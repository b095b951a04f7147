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

/// Where in `steps` each of these is; all must be there.
fn places_of(steps: &[Step], wanted: &[fn(&Step) -> bool]) -> Vec<usize> {
    let place = |wanted: &fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
    wanted.iter().map(place).collect()
}

const LAST: [fn(&Step) -> bool; 5] = [
    |step| matches!(step, Step::Fork),
    |step| matches!(step, Step::DropCapabilities),
    |step| matches!(step, Step::NoNewPrivileges),
    |step| matches!(step, Step::Restrict),
    |step| matches!(step, Step::Filter),
];

#[test]
fn power_goes_in_order_mounts_root_capabilities_landlock_filter() {
    // With a mount nobody stands, also under root.
    let mounts = vec![mount("/data")];
    for (request, facts) in [(StartRequest { mounts, ..root() }, &ROOT), (strict(), &USER)] {
        let steps = go(&request, facts).unwrap();
        let mut order = places_of(
            &steps,
            &[
                |step| matches!(step, Step::Hold(_)),
                |step| matches!(step, Step::EnterTree),
                |step| matches!(step, Step::OwnProc),
            ],
        );
        if facts.uid == 0 {
            order.extend(places_of(
                &steps,
                &[|step| matches!(step, Step::ClearGroups), |step| matches!(step, Step::EnterUser)],
            ));
        }
        order.extend(places_of(&steps, &LAST));
        assert!(order.is_sorted(), "{steps:?}");
        assert_eq!(order.last(), Some(&(steps.len() - 1)), "something comes after the filter");
    }
}

#[test]
fn a_standing_keeper_keeps_its_power_and_the_task_gives_it_up_in_order() {
    let request = root();
    let plan = super::super::plan(&request, &places(), &ROOT).unwrap();
    let mut order = places_of(
        &plan.steps,
        &[
            |step| matches!(step, Step::NumbersAnew),
            |step| matches!(step, Step::Restore(_)),
            |step| matches!(step, Step::Fork),
            |step| matches!(step, Step::EnterUser),
            |step| matches!(step, Step::DropBoundingSet),
            |step| matches!(step, Step::Uid(70001)),
        ],
    );
    order.extend(places_of(&plan.steps, &LAST[1..]));
    assert!(order.is_sorted(), "{:?}", plan.steps);
    assert_eq!(order.last(), Some(&(plan.steps.len() - 1)), "something comes after the filter");
    assert!(plan.brought.iter().any(|step| matches!(step, Step::Hold(_))));
    let ground = Ground::of(&request, &ROOT).unwrap();
    assert!(ground.stands);
    let steps = ground_steps(&ground);
    // Whoever sits there sees nothing of the machine any more, and is seen by no task.
    let order = places_of(
        &steps,
        &[
            |step| matches!(step, Step::JoinGroup(_)),
            |step| matches!(step, Step::OwnGroups),
            |step| matches!(step, Step::OwnUser { .. }),
            |step| matches!(step, Step::Pivot(_)),
            |step| matches!(step, Step::StandingProc),
        ],
    );
    assert!(order.is_sorted(), "{steps:?}");
    assert_eq!(order.last(), Some(&(steps.len() - 1)));
}

#[test]
fn what_a_task_shares_with_no_other_keeps_a_keeper_from_standing() {
    let stands = |request: &StartRequest, facts| Ground::of(request, facts).unwrap().stands;
    assert!(stands(&root(), &ROOT));
    assert!(!stands(&strict(), &USER), "whoever has the jail's uid reaches its keeper");
    assert!(!stands(&StartRequest { mounts: vec![mount("/data")], ..root() }, &ROOT));
    assert!(!stands(&StartRequest { without: vec![Wall::Seccomp], ..root() }, &ROOT));
}

fn ground_steps(on: &Ground) -> Vec<Step> {
    let system = System { directories: vec!["/usr".into()], ..System::default() };
    ground(on, &system, Path::new("/tree"), &["/sys/fs/cgroup/a/cgroup.procs".into()], &ROOT).unwrap()
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
