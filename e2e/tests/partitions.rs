//! The network between an agent and its coordinator breaks: shortly, for long, in one direction,
//! again and again. What really ran is in the witness's file.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use mesh_e2e::{
    Agent, AgentOptions, Job, Mesh, MeshOptions, Proxy, Signal, Way, Witness,
    wait::{self, secs},
};

/// A node silent for 4 s is offline; what lives on a lease dies after 3 s.
const TIMINGS: &str =
    "[timings]\nheartbeat = \"200ms\"\nsuspect_after = \"1500ms\"\noffline_after = \"4s\"\n";
const OFFLINE: Duration = Duration::from_secs(4);

/// A mesh whose node `cut` speaks through the proxy, and whose node `whole` does not.
struct Cable {
    mesh: Mesh,
    proxy: Proxy,
    /// Tasks have the product's own level.
    strict: bool,
}

impl Cable {
    fn new() -> Self {
        Self::with(TIMINGS)
    }

    fn with(timings: &str) -> Self {
        Self::at(timings, false)
    }

    fn strict() -> Self {
        Self::at(TIMINGS, true)
    }

    fn at(timings: &str, strict: bool) -> Self {
        let proxy = Proxy::start();
        let mesh = Mesh::start_with(MeshOptions {
            extra: timings.to_owned(),
            advertise: vec![proxy.address().to_owned()],
            own_timings: true,
            own_sandbox: strict,
            ..Default::default()
        });
        proxy.set_target(mesh.address("grpc"));
        Self { mesh, proxy, strict }
    }

    fn options(&self) -> AgentOptions {
        let options = AgentOptions::slots(2);
        if self.strict { self.mesh.shows_files(options) } else { options }
    }

    /// The node behind the cable, alone as long as the first attempt is to go there.
    fn agent(&self) -> Agent {
        self.mesh.agent("cut", self.options())
    }

    /// The node that the cable passes whatever happens: where replacements go.
    fn whole(&self) -> Agent {
        let whole = self.mesh.agent("whole", self.options());
        self.proxy.spare(whole.pid());
        whole
    }

    /// Calls meshctl past the cable.
    fn direct(&self, args: &[&str]) -> serde_json::Value {
        let direct = self.mesh.address("grpc").to_owned();
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json", "--endpoint", &direct]).collect();
        self.mesh.meshctl(&args).ok().json()
    }

    fn node_becomes(&self, name: &str, state: &str) {
        let found = || {
            let nodes = self.direct(&["nodes"]);
            nodes.as_array()?.iter().find(|node| node["name"] == name && node["state"] == state).cloned()
        };
        wait::until(secs(30), &format!("{name} becomes {state}"), found);
    }

    /// A task that tells the witness of its life ten times a second, until its gate is open.
    fn pulse(&self, witness: &Witness, on_disconnect: &str) -> Job<'_> {
        let gate = self.mesh.path("gate-end");
        let text = format!(
            r"
            name: pulse
            on_disconnect: {on_disconnect}
            mounts: {mounts}
            script: |
              {saw}
              saw start
              until [ -e {gate} ]; do saw alive; sleep 0.1; done
              saw end
            ",
            saw = witness.shell(),
            gate = gate.display(),
            mounts = if self.strict { "[{name: files, to: /files}]" } else { "[]" },
        );
        self.mesh.submit(&if self.strict { self.mesh.inside(&text) } else { text })
    }

    fn finish(&self, job: Job<'_>) {
        self.mesh.gate("end").open();
        let wait = ["wait", &job.id(), "--endpoint", self.mesh.address("grpc")];
        self.mesh.meshctl(&wait).ok();
    }
}

#[track_caller]
fn starts(witness: &Witness, count: usize) {
    let what = format!("{count} starts; there are {:?}", witness.all("start"));
    wait::until(secs(30), &what, || (witness.count("start") == count).then_some(()));
}

/// No attempt was seen alive after the one behind it had begun.
#[track_caller]
fn never_two_at_once(witness: &Witness) {
    let mut latest = 0;
    for event in witness.events() {
        assert!(event.attempt >= latest, "attempt {} lived beside {latest}: {event:?}", event.attempt);
        latest = event.attempt;
    }
}

#[test]
fn a_partition_shorter_than_the_lease_costs_nothing() {
    let cable = Cable::new();
    let _cut = cable.agent();
    let witness = cable.mesh.witness();
    for way in [Some(Way::Up), Some(Way::Down), None] {
        let job = cable.pulse(&witness, "kill");
        let gate = cable.mesh.path("gate-end");
        starts(&witness, 1);
        match way {
            Some(way) => cable.proxy.swallow(way),
            None => cable.proxy.partition(),
        }
        wait::holds(secs(1), "it is not replaced", || witness.count("start") == 1);
        cable.proxy.heal();
        let healed = witness.count("alive");
        wait::until(secs(10), "it lives on", || (witness.count("alive") > healed + 5).then_some(()));
        cable.node_becomes("cut", "HEALTHY");
        cable.finish(job);
        assert_eq!(job.task("pulse")["attempt"], 1, "{way:?}");
        std::fs::remove_file(gate).unwrap();
        std::fs::write(witness.path(), "").unwrap();
    }
}

/// Behind a long cut a kept task is replaced; once healed, the loser is ended and one result counts.
fn kept_behind(cut_off: impl Fn(&Proxy)) {
    let cable = Cable::new();
    let cut = cable.agent();
    let witness = cable.mesh.witness();
    let job = cable.pulse(&witness, "keep");
    starts(&witness, 1);
    let _whole = cable.whole();
    cut_off(&cable.proxy);
    cable.node_becomes("cut", "OFFLINE");
    starts(&witness, 2);
    let seen = witness.count("alive");
    let both = || {
        let alive = witness.all("alive");
        (1..=2).all(|attempt| alive.iter().skip(seen).any(|event| event.attempt == attempt)).then_some(())
    };
    wait::until(secs(10), "both live, each on its side", both);
    cable.proxy.heal();
    let healed = Instant::now();
    wait::until(secs(20), "the loser is ended", || cut.tasks().is_empty().then_some(()));
    let took = healed.elapsed();
    assert!(took <= secs(5), "the loser lived for {took:?} after the healing");
    cable.node_becomes("cut", "HEALTHY");
    cable.finish(job);
    assert_eq!(job.task("pulse")["attempt"], 2);
    assert_eq!(witness.count("end"), 1, "one result");
    assert_eq!(witness.count("start"), 2);
}

#[test]
fn behind_a_long_partition_a_kept_task_is_replaced_and_ended_once_healed() {
    kept_behind(Proxy::partition);
}

#[test]
fn a_kept_task_whose_node_is_not_heard_for_long_is_replaced_and_ended_once_healed() {
    kept_behind(|proxy| proxy.swallow(Way::Up));
}

#[test]
fn a_kept_task_whose_node_hears_nothing_for_long_is_replaced_and_ended_once_healed() {
    kept_behind(|proxy| proxy.swallow(Way::Down));
}

/// Breaks the network of a node on whose lease a task lives, in several ways; the task is gone before
/// another attempt begins.
fn killed_before_it_is_replaced(break_off: impl Fn(&Cable, &mut Agent)) {
    killed_on(&Cable::new(), break_off);
}

fn killed_on(cable: &Cable, break_off: impl Fn(&Cable, &mut Agent)) {
    let mut cut = cable.agent();
    if cable.strict && !cable.mesh.is_strict("cut") {
        return;
    }
    let witness = cable.mesh.witness();
    let job = cable.pulse(&witness, "kill");
    starts(&witness, 1);
    let _whole = cable.whole();
    break_off(cable, &mut cut);
    let broken = Instant::now();
    starts(&witness, 2);
    assert!(broken.elapsed() + secs(1) >= OFFLINE, "replaced after {:?}", broken.elapsed());
    wait::until(secs(10), "the second lives", || (witness.all("alive").last()?.attempt == 2).then_some(()));
    assert_eq!(cut.tasks(), BTreeSet::new(), "of the first attempt something lives");
    cable.proxy.heal();
    cut.restart();
    cable.node_becomes("cut", "HEALTHY");
    cable.finish(job);
    never_two_at_once(&witness);
    assert_eq!(job.task("pulse")["attempt"], 2);
    let why = cable.direct(&["why", &format!("{}/pulse", job.id())]);
    assert!(why["attempts"].as_array().unwrap().iter().any(|attempt| attempt["cause"] == "lost"), "{why:#}");
}

#[test]
fn behind_a_long_partition_a_leased_task_never_runs_beside_its_replacement() {
    killed_before_it_is_replaced(|cable, _| cable.proxy.partition());
}

#[test]
fn a_strict_task_with_a_lease_never_runs_beside_its_replacement() {
    killed_on(&Cable::strict(), |cable, cut| {
        cable.proxy.partition();
        cut.kill_daemon();
    });
}

#[test]
fn a_leased_task_of_a_stopped_daemon_never_runs_beside_its_replacement() {
    killed_before_it_is_replaced(|_, cut| cut.signal(Signal::SIGSTOP));
}

#[test]
fn a_leased_task_of_a_killed_daemon_behind_a_partition_never_runs_beside_its_replacement() {
    killed_before_it_is_replaced(|cable, cut| {
        cable.proxy.swallow(Way::Down);
        cut.kill_daemon();
    });
}

#[test]
fn what_is_lost_on_the_way_back_ends_a_leased_task_as_well() {
    killed_before_it_is_replaced(|cable, _| cable.proxy.swallow(Way::Down));
}

#[test]
fn a_lease_outlasts_a_coordinator_that_comes_back_with_less_patience() {
    let patient = "[timings]\nheartbeat = \"200ms\"\nsuspect_after = \"1500ms\"\noffline_after = \"12s\"\n";
    let hasty = "[timings]\nheartbeat = \"200ms\"\nsuspect_after = \"700ms\"\noffline_after = \"1500ms\"\n";
    let mut cable = Cable::with(patient);
    let _cut = cable.agent();
    let witness = cable.mesh.witness();
    let number = cable.pulse(&witness, "kill").number;
    starts(&witness, 1);
    let _whole = cable.whole();
    cable.proxy.partition();
    cable.mesh.kill_coordinator();
    cable.mesh.configure(hasty);
    cable.mesh.start_coordinator();
    starts(&witness, 2);
    let second = || (witness.all("alive").last()?.attempt == 2).then_some(());
    wait::until(secs(10), "the second lives", second);
    cable.proxy.heal();
    cable.node_becomes("cut", "HEALTHY");
    cable.finish(cable.mesh.job(number));
    never_two_at_once(&witness);
    assert_eq!(cable.mesh.job(number).task("pulse")["attempt"], 2);
}

#[test]
fn a_flapping_link_costs_no_attempt_and_no_flood() {
    // A lease outlasts some of the flaps.
    let cable = Cable::with("[timings]\nheartbeat = \"200ms\"\noffline_after = \"16s\"\n");
    let _cut = cable.agent();
    let witness = cable.mesh.witness();
    let kept = cable.pulse(&witness, "keep");
    let leased = cable.pulse(&witness, "kill");
    starts(&witness, 2);
    let before = cable.proxy.taken();
    for _ in 0..8 {
        cable.proxy.cut();
        wait::holds(secs(1), "nothing is begun again", || witness.count("start") == 2);
        cable.proxy.heal();
        wait::holds(secs(1), "nothing is begun again", || witness.count("start") == 2);
    }
    let tries = cable.proxy.taken() - before;
    assert!(tries < 150, "{tries} connections in 16 s of flaps");
    cable.node_becomes("cut", "HEALTHY");
    cable.finish(kept);
    cable.finish(leased);
    for job in [kept, leased] {
        assert_eq!(job.task("pulse")["attempt"], 1);
    }
    assert_eq!((witness.count("start"), witness.count("end")), (2, 2));
}

#[test]
fn a_postgres_that_is_away_for_longer_than_the_lease_ends_leased_tasks_and_no_others() {
    let cable = Cable::new();
    let _cut = cable.agent();
    let (kept, leased) = (cable.mesh.witness(), Witness::new(cable.mesh.path("leased")));
    let keep = cable.pulse(&kept, "keep");
    let kill = cable.pulse(&leased, "kill");
    starts(&kept, 1);
    starts(&leased, 1);
    let stopped = cable.mesh.stop_postgres();
    let mut seen = leased.count("alive");
    // Nothing more for longer than between two pulses: the process is gone.
    wait::until(secs(15), "the leased one ends", || {
        let now = leased.count("alive");
        let still = wait::within(secs(1), || (leased.count("alive") > now).then_some(())).is_none();
        seen = now;
        still.then_some(())
    });
    let alive = kept.count("alive");
    wait::until(secs(5), "the kept one lives", || (kept.count("alive") > alive + 3).then_some(()));
    drop(stopped);
    starts(&leased, 2);
    cable.finish(keep);
    cable.finish(kill);
    assert_eq!(keep.task("pulse")["attempt"], 1);
    assert_eq!((kept.count("start"), kept.count("end")), (1, 1));
    never_two_at_once(&leased);
    assert!(seen > 0);
}
