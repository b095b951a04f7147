//! Jobs from submit to fetch: who runs what, in which order, and how it ends.

use std::{collections::BTreeSet, fs};

use mesh_e2e::{
    AgentOptions, Mesh,
    wait::{self, secs},
};
use serde_json::json;

#[test]
fn three_agents_share_an_array_and_the_result_is_fetched() {
    let mesh = Mesh::start();
    let _agents = ["attic", "office", "lab"].map(|name| mesh.agent(name, AgentOptions::slots(1)));
    let witness = mesh.witness();
    let gate = mesh.gate("all");
    mesh.write("numbers/a.txt", "3\n");
    mesh.write("numbers/b.txt", "4\n");
    mesh.write("numbers/c.txt", "5\n");
    let job = mesh.submit(&format!(
        r#"
        name: squares
        tasks:
          - name: square
            array: {{files: "numbers/*.txt"}}
            script: |
              {saw}
              saw start
              {wait}
              read n < "$MESH_ITEM"
              echo $((n * n)) > "out/$(basename "$MESH_ITEM")"
            outputs: [out/]
          - name: sum
            needs: [square]
            script: |
              cat inputs/square/*/out/*.txt | awk '{{ n += $1 }} END {{ print n }}' > sum.txt
            outputs: [sum.txt]
        "#,
        saw = witness.shell(),
        wait = gate.shell()
    ));
    // One slot each and three that wait for one another: each must be on its own node.
    wait::until(secs(30), "all three run at once", || (witness.count("start") == 3).then_some(()));
    // What runs tells of it a moment before the coordinator has heard.
    let running = wait::until(secs(10), "the job to run", || {
        let job = job.get();
        (job["state"] == "RUNNING").then_some(job)
    });
    assert_eq!(running["counts"]["blocked"], 1);
    gate.open();
    let done = job.completes();
    assert_eq!(done["counts"]["completed"], 4);
    assert_eq!(done["progress"], 1.0);

    let nodes: BTreeSet<String> = witness.all("start").into_iter().map(|event| event.node).collect();
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    let told: BTreeSet<String> =
        (0..3).map(|n| job.task(&format!("square.{n}"))["node"].as_str().unwrap_or("-").to_owned()).collect();
    assert_eq!(told, nodes, "meshctl names other nodes than those that ran it");

    let to = job.fetch();
    assert_eq!(fs::read_to_string(to.join("sum/sum.txt")).unwrap(), "50\n");
    assert_eq!(fs::read_to_string(to.join("square/1/out/b.txt")).unwrap(), "16\n");
}

#[test]
fn arrays_of_four_kinds_with_their_templates() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    mesh.write("words.txt", "red\ngreen blue\n");
    mesh.write("data/b.tar.gz", "B");
    mesh.write("data/a.txt", "A");
    mesh.write("side/a.txt.note", "for a");
    mesh.write("side/b.tar.gz.note", "for b");
    let job = mesh.submit_with(
        r#"
        name: kinds
        params: {greeting: hello, other: "{item}"}
        tasks:
          - name: range
            array: {range: "3-9:3"}
            command: [echo, "{index}={item}", "{x}", "${HOME}"]
          - name: items
            array: {items: [one, "two words", 3]}
            command: [sh, -c, 'echo "$0 $MESH_INDEX $MESH_ITEM $COLOUR"', "{params.greeting}"]
            env: {COLOUR: "c{index}"}
          - name: lines
            array: {lines: words.txt}
            command: [echo, "{item}", "{params.other}"]
          - name: files
            array: {files: "data/*"}
            inputs: [{from: "side/{name}.note", to: note}]
            command: [sh, -c, 'cat "$1" note > "$2.out"; echo "$2 $3"', "-", "{item}", "{stem}", "{name}"]
            outputs: ["{stem}.out"]
          - name: pairs
            array: {range: "0-1"}
            needs: [{task: files, same_index: true}]
            script: cat inputs/files/*/*.out
        "#,
        &["--set", "greeting=good day"],
    );
    job.completes();
    assert_eq!(job.log("range.0"), "0=3 {x} ${HOME}\n");
    assert_eq!(job.log("range.2"), "2=9 {x} ${HOME}\n");
    assert_eq!(job.log("items.1"), "good day 1 two words c1\n");
    assert_eq!(job.log("items.2"), "good day 2 3 c2\n");
    assert_eq!(job.log("lines.1"), "green blue {item}\n");
    assert_eq!(job.log("files.0"), "a a.txt\n", "files are sorted");
    assert_eq!(job.log("files.1"), "b.tar b.tar.gz\n");
    assert_eq!(job.log("pairs.0"), "Afor a", "the element of the same index and no other");
    assert_eq!(job.log("pairs.1"), "Bfor b");
    assert_eq!(job.task("range.1")["item"], "6");
    let to = job.fetch();
    assert_eq!(fs::read_to_string(to.join("files/1/b.tar.out")).unwrap(), "Bfor b");
}

#[test]
fn a_failed_task_stops_its_job_or_only_what_needs_it() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    let text = |on_failure: &str| {
        format!(
            r#"
            name: mixed
            on_failure: {on_failure}
            tasks:
              - {{name: part, array: {{items: [good, bad]}}, command: [test, "{{item}}", "=", good]}}
              - {{name: pair, array: {{range: "0-1"}}, needs: [{{task: part, same_index: true}}], command: ["true"]}}
              - {{name: all, needs: [part], command: ["true"]}}
            "#
        )
    };
    let job = mesh.submit(&text("continue"));
    mesh.meshctl(&["wait", &job.id()]).exits(1);
    let done = job.get();
    assert_eq!(done["state"], "PARTIALLY_COMPLETED", "{done:#}");
    assert_eq!(job.task("part.1")["state"], "FAILED");
    assert_eq!(job.task("part.1")["cause"], "exit");
    assert_eq!(job.task("part.1")["exit_code"], 1);
    assert_eq!(job.task("pair.0")["state"], "COMPLETED", "what does not need the failed one goes on");
    assert_eq!(job.task("pair.1")["state"], "CANCELLED");
    assert_eq!(job.task("all")["state"], "CANCELLED");

    let job = mesh.submit(&text("stop"));
    mesh.meshctl(&["wait", &job.id()]).exits(1);
    let done = job.get();
    assert_eq!(done["state"], "FAILED", "{done:#}");
    assert_eq!(job.task("all")["state"], "CANCELLED");
    assert!(done["reason"].as_str().is_some_and(|reason| reason.contains("part.1")), "{done:#}");
}

#[test]
fn attempts_end_with_their_true_cause_and_are_retried_as_asked() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let job = mesh.submit(&format!(
        r#"
        name: stubborn
        tasks:
          - name: third
            retry: {{attempts: 3, backoff: 200ms, max_backoff: 400ms}}
            script: |
              {saw}
              saw try
              test "$MESH_ATTEMPT" = 3
        "#,
        saw = witness.shell()
    ));
    job.task_becomes("third", "RETRYING");
    job.completes();
    assert_eq!(job.task("third")["attempt"], 3);
    let attempts: Vec<u32> = witness.all("try").iter().map(|event| event.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);

    let job = mesh.submit(
        r#"
        name: causes
        on_failure: continue
        tasks:
          - {name: exit, command: [sh, -c, "exit 7"]}
          - {name: signal, command: [sh, -c, "kill -KILL $$"]}
          - {name: output, command: ["true"], outputs: [missing.txt]}
          - {name: absent, command: [no-such-program]}
          - {name: late, command: [sleep, "60"], timeout: 300ms, grace: 100ms}
          - {name: not-again, command: [sh, -c, "exit 1"], retry: {attempts: 3, on: [signal]}}
        "#,
    );
    mesh.meshctl(&["wait", &job.id()]).exits(1);
    assert_eq!(job.state(), "FAILED", "nothing of it completed");
    let end = |name: &str| {
        let task = job.task(name);
        assert_eq!(task["state"], "FAILED", "{task:#}");
        (task["cause"].clone(), task["exit_code"].clone(), task["signal"].clone())
    };
    assert_eq!(end("exit"), (json!("exit"), json!(7), json!(null)));
    assert_eq!(end("signal"), (json!("signal"), json!(null), json!(9)));
    assert_eq!(end("output").0, json!("output"));
    assert_eq!(end("absent"), (json!("exit"), json!(127), json!(null)));
    assert_eq!(end("late").0, json!("timeout"));
    assert_eq!(job.task("not-again")["attempt"], 1, "an exit was not to be retried");
}

#[test]
fn progress_shows_while_a_task_runs() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    let gate = mesh.gate("progress");
    let job = mesh.submit(&format!(
        "{{name: half, script: 'echo \"40 resizing\" > $MESH_PROGRESS; {}'}}",
        gate.shell()
    ));
    wait::until(secs(20), "the progress shows", || {
        let task = job.task("half");
        (task["progress"] == 40 && task["progress_message"] == "resizing").then_some(())
    });
    gate.open();
    job.completes();
}

#[test]
fn a_timeout_ends_the_whole_process_tree() {
    let (mesh, agents) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let job = mesh.submit(&format!(
        r#"
        name: deaf
        timeout: 1s
        grace: 300ms
        script: |
          {saw}
          trap "" TERM
          # A grandchild in a session of its own, whose parent is gone, deaf to SIGTERM.
          setsid sh -c 'trap "" TERM; {saw}; saw grandchild; while :; do sleep 1; done' &
          setsid sh -c '(trap "" TERM; {saw}; saw orphan; exec sleep 600) & exit' &
          saw parent
          while :; do sleep 1; done
        "#,
        saw = witness.shell()
    ));
    mesh.meshctl(&["wait", &job.id()]).exits(1);
    assert_eq!(job.get()["state"], "FAILED");
    let events = witness.events();
    assert_eq!(events.len(), 3, "{events:?}");
    agents[0].settles();
}

#[test]
fn a_cancel_reaches_the_processes() {
    let (mesh, agents) = Mesh::with_agents(["attic"]);
    let witness = mesh.witness();
    let job = mesh.submit(&format!(
        r#"
        name: endless
        tasks:
          - name: polite
            grace: 20s
            script: |
              {saw}
              trap 'saw term; exit 0' TERM
              saw polite
              while :; do sleep 0.1; done
          - {{name: waiting, needs: [polite], command: ["true"]}}
          - name: deaf
            grace: 200ms
            script: |
              {saw}
              trap "" TERM
              (setsid sh -c 'while :; do sleep 1; done' &)
              saw deaf
              while :; do sleep 1; done
        "#,
        saw = witness.shell()
    ));
    wait::until(secs(30), "both run", || {
        (witness.count("polite") + witness.count("deaf") == 2).then_some(())
    });
    mesh.meshctl(&["cancel", &job.id()]).ok();
    let done = job.becomes("CANCELLED");
    assert_eq!(done["counts"]["cancelled"], 3, "{done:#}");
    assert_eq!(witness.count("term"), 1, "SIGTERM comes first");
    agents[0].settles();
    mesh.meshctl(&["cancel", &job.id()]).ok();
    mesh.meshctl(&["wait", &job.id()]).exits(1);

    let done = mesh.submit("{name: quick, command: ['true']}");
    done.completes();
    mesh.meshctl(&["cancel", &done.id()]).exits(6);
    mesh.meshctl(&["cancel", "4711"]).exits(3);
}

#[test]
fn one_key_makes_one_job() {
    let mesh = Mesh::start();
    let file = mesh.job_file("{name: once, command: [echo, one]}");
    let other = mesh.job_file("{name: once, command: [echo, two]}");
    let submit = |file: &std::path::Path| {
        let path = file.to_str().unwrap();
        mesh.meshctl(&["submit", path, "--idempotency-key", "k-1"])
    };
    let first = submit(&file).ok().stdout;
    assert_eq!(submit(&file).ok().stdout, first, "the same key and payload is the same job");
    submit(&other).exits(6);
    let jobs = mesh.json(&["jobs"]);
    let count = jobs.as_array().or_else(|| jobs["items"].as_array()).expect("a list of jobs").len();
    assert_eq!(count, 1, "{jobs:#}");
    assert_eq!(mesh.job(first.trim().parse().unwrap()).state(), "QUEUED", "no node: it waits");
}

#[test]
fn urgent_jobs_pass_those_that_wait() {
    let mesh = Mesh::start();
    let _agent = mesh.agent("attic", AgentOptions::slots(1));
    let witness = mesh.witness();
    let gate = mesh.gate("slot");
    let text = |name: &str, priority: u32, then: &str| {
        format!("{{name: {name}, priority: {priority}, script: '{}; saw {name}; {then}'}}", witness.shell())
    };
    let holder = mesh.submit(&text("holder", 5, &gate.shell()));
    holder.becomes("RUNNING");
    wait::until(secs(20), "the slot is taken", || (witness.count("holder") == 1).then_some(()));
    let low = ["low-a", "low-b", "low-c"].map(|name| mesh.submit(&text(name, 1, ":")));
    let high = mesh.submit(&text("high", 9, ":"));
    gate.open();
    for job in low.iter().chain([&high]) {
        job.completes();
    }
    let order: Vec<String> = witness.events().into_iter().map(|event| event.what).collect();
    let place = |name: &str| order.iter().position(|what| what == name).unwrap();
    // A node holds a short queue: the first of the low ones may be there already.
    assert!(place("high") < place("low-b"), "{order:?}");
    assert!(place("low-b") < place("low-c"), "like ones keep their order: {order:?}");
}

#[test]
fn resources_are_never_promised_twice() {
    let mesh = Mesh::start();
    let _agent =
        mesh.agent("attic", AgentOptions::slots(4).flag("--memory=1GiB").flag("--resource=licence=1"));
    let witness = mesh.witness();
    let text = |resources: &str| {
        format!(
            r#"
            name: hungry
            array: {{range: "1-4"}}
            resources: {resources}
            script: |
              {saw}
              saw start
              sleep 0.2
              saw end
            "#,
            saw = witness.shell()
        )
    };
    for resources in ["{memory: 600MiB, cpu: 0.1}", "{cpu: 0.1, memory: 1MiB, licence: 1}"] {
        let before = witness.events().len();
        mesh.submit(&text(resources)).completes();
        let running = witness.events()[before..].iter().fold((0_i32, 0_i32), |(now, most), event| {
            let now = if event.what == "start" { now + 1 } else { now - 1 };
            (now, most.max(now))
        });
        assert_eq!(running, (0, 1), "more than one ran at once with {resources}");
    }
    let job = mesh.submit("{name: too-big, command: ['true'], resources: {memory: 2GiB}}");
    let small = mesh.submit("{name: small, command: ['true']}");
    small.completes();
    assert_eq!(job.state(), "QUEUED", "what no node can hold waits, and holds up nobody");
}
