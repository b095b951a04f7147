//! The strict sandbox through the whole mesh: who may run what, what a task finds, how its end is called.

use std::fs;

use mesh_e2e::{
    AgentOptions, Mesh,
    wait::{self, secs},
};
use serde_json::{Value, json};

#[test]
fn a_strict_task_has_its_mount_its_limits_and_nothing_else_of_the_host() {
    let mesh = Mesh::start();
    let data = mesh.path("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("set"), "measured\n").unwrap();
    let allow = format!("data={}:ro", data.display());
    let config = mesh.write("agent.toml", "max_work_size = \"10MiB\"\n");
    let options = AgentOptions::slots(2).flag("--allow-mount").flag(&allow);
    let _agent = mesh.agent("attic", options.flag("--config").flag(config.to_str().unwrap()));
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
          - name: fills
            sandbox: strict
            script: for i in 1 2 3 4 5; do head -c 3000000 /dev/zero > $i; done; sleep 100
        ",
        data.display()
    ));
    job.becomes("PARTIALLY_COMPLETED");
    let to = job.fetch();
    let seen = fs::read_to_string(to.join("sees/out.txt")).unwrap();
    assert!(seen.starts_with("measured\n/work\n") && seen.ends_with("hidden\n"), "{seen}");
    let looked = job.task("sees");
    assert_eq!((looked["state"].as_str(), looked["sandbox"].as_str()), (Some("COMPLETED"), Some("strict")));
    assert_eq!(looked["limits"], node["sandbox"]["limits"], "what held it is recorded");
    assert_eq!(job.task("eats")["cause"], "oom");
    assert_eq!(job.task("fills")["cause"], "disk");
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

#[test]
fn a_node_that_lacks_a_layer_gets_no_strict_job_and_why_says_so() {
    let mesh = Mesh::start();
    // A kernel that seems to be too old to harden a mount.
    let deny = mesh.write("deny.py", include_str!("../../agent/tests/jail/deny.py"));
    let through = ["/usr/bin/python3", deny.to_str().unwrap(), "442", "--"].map(str::to_owned).to_vec();
    let options = AgentOptions { through, ..AgentOptions::slots(2) };
    let _poor = mesh.agent("attic", options);
    let node = mesh.node("attic").unwrap();
    assert_eq!(node["sandbox"]["level"], "basic", "{node}");
    let shown = mesh.meshctl(&["node", "attic"]).ok();
    assert!(shown.stdout.contains("file_tree") && shown.stdout.contains("5.12"), "no remedy: {shown}");
    let strict = mesh.submit("{name: strict, sandbox: strict, command: ['true']}");
    mesh.submit("{name: basic, sandbox: basic, command: ['true']}").completes();
    assert_eq!(strict.get()["state"], "QUEUED");
    let why = mesh.meshctl(&["why", &strict.number.to_string()]).ok();
    assert!(why.stdout.contains("sandbox level strict"), "{why}");
    let _whole = mesh.agent("office", AgentOptions::slots(1));
    strict.completes();
    assert_eq!(strict.task("strict")["node"], "office");
}

#[test]
fn each_attempt_records_what_held_it_to_its_limits() {
    let mesh = Mesh::start();
    // Control groups that cannot be written, or may not, as an ordinary user's.
    let bare = "exec unshare --mount sh -c 'awk \"\\$3 ~ /^cgroup/ {print \\$2}\" /proc/mounts | while read -r dir; do \
                mount -o remount,bind,ro \"$dir\"; done; exec \"$@\"' sh \"$@\"";
    let through = ["/bin/sh", "-c", bare, "sh"].map(str::to_owned).to_vec();
    let _bare = mesh.agent("office", AgentOptions { through, ..AgentOptions::slots(1) });
    let _held = mesh.agent("attic", AgentOptions::slots(1));
    assert_eq!(mesh.node("office").unwrap()["sandbox"]["limits"], "rlimit");
    for (node, level, limits) in [
        ("office", "strict", json!("rlimit")),
        ("attic", "strict", mesh.node("attic").unwrap()["sandbox"]["limits"].clone()),
        ("attic", "basic", Value::Null),
    ] {
        let spec = json!({"name": "held", "sandbox": level, "where": {"node": node}, "command": ["true"]});
        let job = mesh.submit(&spec.to_string());
        job.completes();
        let task = job.task("held");
        assert_eq!((&task["sandbox"], &task["limits"]), (&level.into(), &limits), "{task:#}");
        let why = mesh.json(&["why", &job.id()]);
        let attempt = &why["attempts"][0];
        assert_eq!((&attempt["sandbox"], &attempt["limits"]), (&level.into(), &limits), "{why:#}");
        let told = why["sentences"].to_string();
        let held = limits.as_str().map_or(format!("is {level}."), |limits| format!("({limits})."));
        assert!(told.contains(&format!("Its sandbox is {level}")) && told.contains(&held), "{told}");
    }
    // Who must have the one does not get the other.
    let asks = json!({"name": "asks", "where": {"limits": "cgroup", "node": "office"}, "command": ["true"]});
    let job = mesh.submit(&asks.to_string());
    let why = mesh.meshctl(&["why", &job.id()]).ok();
    assert!(why.stdout.contains("limits"), "{why}");
    assert_eq!(job.state(), "QUEUED");
}

#[test]
fn whatever_a_strict_task_leaves_is_collected_bounded_or_refused() {
    let mesh = Mesh::start();
    mesh.write("secret", "do not tell\n");
    let config = mesh.write("agent.toml", "max_output_files = 100\nmax_output_size = \"1MiB\"\n");
    let _attic = mesh.agent("attic", AgentOptions::slots(2).flag("--config").flag(config.to_str().unwrap()));
    let many = "import os\nfor i in range(20000): os.close(os.open(f'out/{i}', 65))";
    let scripts = [
        ("link", "ln -s /etc/passwd out/x"),
        ("way", "rmdir out; ln -s /etc out"),
        ("loop", "ln -s . out/x"),
        ("fifo", "mkfifo out/x"),
        ("socket", "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"out/x\")'"),
        ("device", "mknod out/x c 1 3 || echo refused; ln /etc/passwd out/y || echo refused"),
        (
            "deep",
            "d=$(printf 'd%.0s' $(seq 200)); cd out; for i in $(seq 15); do mkdir $d; cd $d; done; echo x > x",
        ),
        ("strange", "touch \"$(printf 'out/not \\377utf8')\""),
        ("many", &format!("python3 -c \"{many}\"")),
        ("large", "head -c 2000000 /dev/zero > out/x"),
        ("sparse", "truncate -s 90G out/x"),
        ("names", "cd out; echo 1 > 'a\nb'; echo 2 > ' '; echo 3 > '-rf'; ln a* hard; mkdir empty"),
    ];
    let tasks: Vec<Value> = scripts
        .iter()
        .map(|(name, script)| json!({"name": name, "script": script, "sandbox": "strict", "outputs": ["out/"]}))
        .collect();
    let job = mesh.submit(&json!({"name": "left", "on_failure": "continue", "tasks": tasks}).to_string());
    mesh.meshctl(&["wait", &job.id()]).exits(1);
    for (name, said) in [
        ("link", "`out/x` is a symbolic link"),
        ("way", "`out`"),
        ("loop", "`out/x` is a symbolic link"),
        ("fifo", "`out/x` is a FIFO, a socket or a device"),
        ("socket", "`out/x` is a FIFO, a socket or a device"),
        ("deep", "not valid UTF-8 or too long"),
        ("strange", "not valid UTF-8 or too long"),
        ("many", "more than 100 files"),
        ("large", "more than 1048576 bytes"),
        ("sparse", "more than 1048576 bytes"),
    ] {
        let task = job.task(name);
        assert_eq!((&task["state"], &task["cause"]), (&"FAILED".into(), &"output".into()), "{task:#}");
        let message = task["message"].as_str().unwrap_or_default();
        assert!(message.contains(said), "{name}: {task:#}");
    }
    assert_eq!(job.log("device"), "refused\nrefused\n");
    let names = job.task("names");
    assert_eq!(names["state"], "COMPLETED", "{names:#}");
    let to = job.fetch().join("names/out");
    for (name, content) in [("a\nb", "1\n"), ("hard", "1\n"), (" ", "2\n"), ("-rf", "3\n")] {
        assert_eq!(fs::read_to_string(to.join(name)).unwrap(), content);
    }
    assert!(to.join("empty").is_dir());
}

#[test]
fn a_task_that_spins_does_not_hold_up_the_heartbeats() {
    let mesh = Mesh::start();
    let _attic = mesh.agent("attic", AgentOptions::slots(1));
    // Twenty processes that spin for five seconds and try to be more important than others.
    let spin = "
import os, time
for _ in range(20):
    if os.fork() == 0:
        for attempt in (lambda: os.nice(-20), lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))):
            try: attempt(); print('raised', flush=True)
            except OSError: pass
        end = time.monotonic() + 5
        while time.monotonic() < end: pass
        os._exit(0)
for _ in range(20): os.wait()
print('spun')";
    let job = mesh.submit(
        &json!({"name": "spin", "sandbox": "strict", "command": ["/usr/bin/python3", "-c", spin]})
            .to_string(),
    );
    job.task_becomes("spin", "RUNNING");
    wait::until(secs(60), "it ends, the node healthy all the time", || {
        assert_eq!(mesh.node("attic").unwrap()["state"], "HEALTHY", "a heartbeat was late");
        (job.state() == "COMPLETED").then_some(())
    });
    assert_eq!(job.log("spin"), "spun\n", "a priority was raised");
    assert_eq!(job.task("spin")["attempt"], 1);
}
