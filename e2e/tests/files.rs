//! Files that travel: many, large, executable, in directories; and those that must not.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use mesh_e2e::{AgentOptions, Mesh};

#[test]
fn directories_programs_and_large_files_arrive_as_they_were() {
    let (mesh, _agents) = Mesh::with_agents(["attic", "lab"]);
    mesh.write("tools/bin/hello", "#!/bin/sh\necho hello from $MESH_NODE\n");
    fs::set_permissions(mesh.path("tools/bin/hello"), fs::Permissions::from_mode(0o755)).unwrap();
    mesh.write("tools/share/ü ber.txt", "umlaut\n");
    let large: Vec<u8> = (0..9_000_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(mesh.path("large.bin"), &large).unwrap();
    let job = mesh.submit(
        r#"
        name: travel
        tasks:
          - name: there
            where: {node: attic}
            inputs: [{from: tools, to: kit}, {from: tools/share/, to: flat}, {from: large.bin}]
            script: |
              kit/bin/hello
              cat "flat/ü ber.txt"
              mkdir -p out/deep/er
              cp large.bin out/deep/er/
              cp -p kit/bin/hello out/run-me
              printf '' > out/empty
              echo x > one.log
              echo y > two.log
            outputs: [out/, "*.log"]
          - name: back
            needs: [there]
            where: {node: lab}
            script: |
              test -x inputs/there/out/run-me
              inputs/there/out/run-me
              cat inputs/there/one.log inputs/there/two.log
              cmp inputs/there/out/deep/er/large.bin large.bin
            inputs: [{from: large.bin}]
        "#,
    );
    job.completes();
    assert_eq!(job.log("there"), "hello from attic\numlaut\n");
    assert_eq!(job.log("back"), "hello from lab\nx\ny\n");
    let to = job.fetch().join("there");
    assert!(fs::read(to.join("out/deep/er/large.bin")).unwrap() == large, "the content changed on its way");
    assert_eq!(fs::metadata(to.join("out/empty")).unwrap().len(), 0);
    assert_eq!(fs::metadata(to.join("out/run-me")).unwrap().permissions().mode() & 0o111, 0o111);
    assert_eq!(fs::read_to_string(to.join("two.log")).unwrap(), "y\n");
}

#[test]
fn a_task_may_need_more_files_than_fit_in_an_assignment() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    let lines = (0..20_000).fold(String::new(), |text, n| text + &format!("line number {n} of many\n"));
    mesh.write("lines.txt", &lines);
    for n in 0..400 {
        mesh.write(&format!("many/{n:03}.txt"), &format!("{n}\n"));
    }
    let job = mesh.submit(
        r#"
        name: many
        tasks:
          - name: make
            array: {range: "1-5"}
            script: |
              for n in $(seq 1 100); do echo "$MESH_ITEM" > "out/$n.txt"; done
            outputs: [out/]
          - name: sum
            needs: [make]
            inputs: [{from: "many/*.txt"}]
            script: |
              ls inputs/make/*/out/*.txt | wc -l
              cat inputs/make/*/out/*.txt | awk '{ n += $1 } END { print n }'
              cat many/*.txt | awk '{ n += $1 } END { print n }'
        "#,
    );
    job.completes();
    assert_eq!(job.log("sum"), "500\n1500\n79800\n");

    // A list of items that is longer than a message carries goes another way.
    let job = mesh.submit_with(
        "{name: long, array: {lines: lines.txt}, command: [echo, '{item}'], where: {node: nowhere}}",
        &[],
    );
    let page = mesh.json(&["tasks", &job.id(), "--limit", "3"]);
    assert_eq!(page["items"][2]["item"], "line number 2 of many", "{page:#}");
    assert_eq!(job.get()["counts"]["queued"], 20_000);
    mesh.meshctl(&["cancel", &job.id()]).ok();
    assert_eq!(job.becomes("CANCELLED")["counts"]["cancelled"], 20_000);
}

#[test]
fn what_leads_out_of_the_work_directory_is_not_collected() {
    let (mesh, _agents) = Mesh::with_agents(["attic"]);
    mesh.write("secret", "do not tell\n");
    let secret = mesh.path("secret");
    let job = mesh.submit(&format!(
        r#"
        name: escape
        on_failure: continue
        tasks:
          - {{name: link, script: "ln -s {secret} out.txt", outputs: [out.txt]}}
          - {{name: dir, script: "rmdir out; ln -s {dir} out", outputs: [out/]}}
          - {{name: fifo, script: "mkfifo out.txt", outputs: [out.txt]}}
          - {{name: good, script: "echo fine > out.txt", outputs: [out.txt]}}
        "#,
        secret = secret.display(),
        dir = secret.parent().unwrap().display(),
    ));
    mesh.meshctl(&["wait", &job.id()]).exits(1);
    for name in ["link", "dir", "fifo"] {
        let task = job.task(name);
        assert_eq!((&task["state"], &task["cause"]), (&"FAILED".into(), &"output".into()), "{task:#}");
    }
    assert_eq!(job.task("good")["state"], "COMPLETED");
    let fetched = mesh.meshctl(&["fetch", &job.id(), "--to", "fetched"]);
    assert_eq!(fs::read_to_string(mesh.path("fetched/good/out.txt")).unwrap(), "fine\n", "{fetched}");

    // Fetching writes below its directory, also when somebody put a link there.
    fs::create_dir_all(mesh.path("trap/good")).unwrap();
    fs::remove_dir(mesh.path("trap/good")).unwrap();
    fs::create_dir(mesh.path("elsewhere")).unwrap();
    symlink(mesh.path("elsewhere"), mesh.path("trap/good")).unwrap();
    let out = mesh.meshctl(&["fetch", &job.id(), "--to", "trap"]);
    assert!(!mesh.path("elsewhere/out.txt").exists(), "it wrote through a link: {out}");
}

#[test]
fn endless_output_is_cut_and_marked() {
    let mesh = Mesh::start();
    let config = mesh.write("agent.toml", "max_output = \"1MiB\"\n");
    let options = AgentOptions::default().flag("--config").flag(config.to_str().unwrap());
    let _attic = mesh.agent("attic", options);
    let job = mesh.submit("{name: chatter, script: 'yes | head -c 20000000; echo the end is not lost >&2'}");
    job.completes();
    let log = mesh.meshctl(&["logs", &format!("{}/chatter", job.id())]).ok();
    assert_eq!(log.stdout.len(), 1024 * 1024);
    assert!(log.stdout.starts_with("y\ny\n"));
    assert!(log.stderr.contains("from byte 1048576 on"), "nobody says where it was cut: {:?}", log.stderr);
}
