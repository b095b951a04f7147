//! The strict sandbox through the whole mesh: who may run what, what a task finds, how its end is called.

use std::fs;

use mesh_e2e::{
    AgentOptions, Mesh,
    wait::{self, secs},
};

#[test]
fn a_strict_task_has_its_mount_its_limits_and_nothing_else_of_the_host() {
    let mesh = Mesh::start();
    let data = mesh.path("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("set"), "measured\n").unwrap();
    let allow = format!("data={}:ro", data.display());
    let _agent = mesh.agent("attic", AgentOptions::slots(2).flag("--allow-mount").flag(&allow));
    let node = mesh.node("attic").unwrap();
    assert_eq!(node["sandbox"]["level"], "strict", "{node}");
    assert_eq!(node["sandbox"]["mounts"][0]["name"], "data");
    let job = mesh.submit(&format!(
        r"
        name: strict
        on_failure: continue
        tasks:
          - name: sees
            sandbox: strict
            mounts: [{{name: data, to: /data, read_only: true}}]
            script: |
              cat /data/set > out.txt
              pwd >> out.txt
              ls -d {} >> out.txt 2>&1 || echo hidden >> out.txt
            outputs: [out.txt]
          - name: eats
            sandbox: strict
            where: {{limits: cgroup}}
            resources: {{memory: 64MiB}}
            script: head -c 200000000 /dev/zero | tail -c 150000000 | wc -c
        ",
        data.display()
    ));
    job.becomes("PARTIALLY_COMPLETED");
    let to = job.fetch();
    let seen = fs::read_to_string(to.join("sees/out.txt")).unwrap();
    assert!(seen.starts_with("measured\n/work\n") && seen.ends_with("hidden\n"), "{seen}");
    let looked = job.task("sees");
    assert_eq!((looked["state"].as_str(), looked["sandbox"].as_str()), (Some("COMPLETED"), Some("strict")));
    assert_eq!(job.task("eats")["cause"], "oom");
}

#[test]
fn a_job_waits_for_a_node_that_has_its_level_and_its_mount() {
    let mesh = Mesh::start();
    let _plain = mesh.agent("attic", AgentOptions::slots(1).flag("--sandbox-allow").flag("strict"));
    let basic = mesh.submit("{name: basic, sandbox: basic, command: ['true']}");
    let mounted = mesh
        .submit("{name: mounted, sandbox: strict, command: [ls, /data], mounts: [{name: data, to: /data}]}");
    let strict = mesh.submit("{name: strict, sandbox: strict, command: ['true']}");
    strict.completes();
    for (job, reason) in [(&basic, "sandbox level basic"), (&mounted, "the mount data to write")] {
        assert_eq!(job.get()["state"], "QUEUED");
        let why = mesh.meshctl(&["why", &job.number.to_string()]).ok();
        assert!(why.stdout.contains(reason), "{why}");
    }
    let allow = format!("data={}", mesh.path("data").display());
    fs::create_dir(mesh.path("data")).unwrap();
    let flags = AgentOptions::slots(1).flag("--allow-mount").flag(&allow);
    let _fit = mesh.agent("office", flags);
    wait::until(secs(30), "both run", || {
        [&basic, &mounted].iter().all(|job| job.get()["state"] == "COMPLETED").then_some(())
    });
    assert_eq!(mounted.task("mounted")["node"], "office");
}
