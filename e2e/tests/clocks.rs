//! Wall clocks jump, of one side or of both, while tasks run: nothing is given up, nothing ends early,
//! and who comes back under a wrong clock is let in.

use mesh_e2e::{
    AgentOptions, Mesh, MeshOptions, WallClock,
    wait::{self, secs},
};

const HOUR: i64 = 3600;

/// The last moment that a log names.
fn says(log: &str) -> String {
    let last = log.lines().rev().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    last.and_then(|line| line["timestamp"].as_str().map(str::to_owned)).expect("a log with moments")
}

#[test]
fn wall_clocks_that_jump_by_an_hour_cost_no_task_and_no_lease() {
    let (Some(mine), Some(theirs)) = (WallClock::right(), WallClock::right()) else {
        return mesh_skip::skip("there is no C compiler to make a clock with");
    };
    let mut mesh = Mesh::start_with(MeshOptions { through: mine.through(), ..MeshOptions::default() });
    let mut agent = mesh.agent("attic", AgentOptions { through: theirs.through(), ..AgentOptions::slots(3) });
    let witness = mesh.witness();
    let gate = mesh.gate("task");
    let number = mesh
        .submit(&format!(
            r"
            name: through
            tasks:
              - name: kept
                script: |
                  {saw}; saw start; {gate}; saw end
              - name: leased
                on_disconnect: kill
                script: |
                  {saw}; saw start; {gate}; saw end
              - name: timed
                timeout: 20m
                retry: {{attempts: 3}}
                script: |
                  {saw}; saw start; {gate}; saw end
            ",
            saw = witness.shell(),
            gate = gate.shell()
        ))
        .number;
    wait::until(secs(30), "they run", || (witness.count("start") == 3).then_some(()));
    for (coordinator, node) in [(HOUR, 0), (HOUR, HOUR), (0, HOUR), (-HOUR, 0), (-HOUR, -HOUR), (0, -HOUR)] {
        mine.jump(coordinator);
        theirs.jump(node);
        // Longer than a silent node is borne, and than a lease lasts.
        wait::holds(secs(4), "the tasks run on", || {
            let healthy = mesh.node("attic").is_some_and(|node| node["state"] == "HEALTHY");
            healthy && (witness.count("start"), witness.count("end")) == (3, 0)
        });
    }
    // Both come back while their clocks are apart.
    mine.jump(HOUR);
    theirs.jump(-HOUR / 2);
    agent.kill_daemon();
    mesh.kill_coordinator();
    mesh.start_coordinator();
    agent.restart();
    mesh.node_becomes("attic", "HEALTHY");
    let (first, second) = (says(&mesh.log()), says(&agent.log()));
    assert_ne!(first[..13], second[..13], "the clocks were not set");
    gate.open();
    mesh.job(number).completes();
    assert_eq!((witness.count("start"), witness.count("end")), (3, 3));
    let job = mesh.job(number);
    for name in ["kept", "leased", "timed"] {
        assert_eq!(job.task(name)["attempt"], 1, "{name}");
    }
    mesh.submit("{name: after, command: ['true']}").completes();
}
