//! Joining: tokens that work once, tokens that do not, and credentials of strangers.

use std::{fs, process::Command};

use mesh_certs::JoinToken;
use mesh_e2e::{
    AgentOptions, Mesh,
    wait::{self, secs},
};

#[test]
fn a_token_admits_as_often_as_it_says() {
    let mesh = Mesh::start();
    let once = mesh.token(&[]);
    mesh.agent_call("first", &["join", &once, "--name", "first"]).ok();
    let used = mesh.agent_call("second", &["join", &once, "--name", "second"]);
    assert_eq!(used.code, 1, "{used}");

    let twice = mesh.token(&["--uses", "2"]);
    mesh.agent_call("third", &["join", &twice, "--name", "third"]).ok();
    mesh.agent_call("fourth", &["join", &twice, "--name", "fourth"]).ok();
    mesh.agent_call("fifth", &["join", &twice, "--name", "fifth"]).exits(1);

    let bound = mesh.token(&["--node", "sixth"]);
    mesh.agent_call("other", &["join", &bound, "--name", "other"]).exits(1);
    mesh.agent_call("sixth", &["join", &bound, "--name", "sixth"]).ok();

    let names: Vec<String> =
        mesh.json(&["nodes"]).as_array().unwrap().iter().map(|node| node["name"].to_string()).collect();
    assert_eq!(names, [r#""first""#, r#""fourth""#, r#""sixth""#, r#""third""#], "those and no others");

    // A name in use is refused, and does not hide the node that has it.
    let again = mesh.token(&[]);
    mesh.agent_call("imposter", &["join", &again, "--name", "first"]).exits(1).tells("first");
}

#[test]
fn fifty_who_hold_one_token_are_one_member() {
    let mesh = Mesh::start();
    let token = mesh.token(&[]);
    let token = token.as_str();
    let codes: Vec<i32> = std::thread::scope(|scope| {
        let join = |n: usize| {
            let mesh = &mesh;
            scope.spawn(move || {
                let name = format!("n{n}");
                mesh.agent_call(&name, &["join", token, "--name", &name]).code
            })
        };
        let calls: Vec<_> = (0..50).map(join).collect();
        calls.into_iter().map(|call| call.join().expect("a call ends")).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(mesh.json(&["nodes"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_token_that_is_not_good_admits_nobody() {
    let mesh = Mesh::start();
    let other = Mesh::start();
    let refused = |name: &str, token: &str| {
        let out = mesh.agent_call(name, &["join", token, "--name", name]);
        assert_eq!(out.code, 1, "{out}");
        assert!(!out.stderr.contains("panicked"), "{out}");
        assert!(!out.stderr.contains(token), "the token stands in the message: {out}");
        out.stderr
    };

    let expired = mesh.token(&["--ttl", "1s"]);
    let created = mesh.json(&["token", "create", "--uses", "3"]);
    let id = created["id"].as_str().expect("a token has an id");
    assert_eq!(created["uses"], 3);
    let list = mesh.meshctl(&["token", "list"]).ok().stdout;
    assert!(list.contains(id), "a token is listed: {list}");
    assert!(!mesh.meshctl(&["token", "list"]).ok().stdout.contains(created["token"].as_str().unwrap()));
    mesh.meshctl(&["token", "revoke", id]).ok();
    refused("revoked", created["token"].as_str().unwrap());

    // Each character of a token counts: somewhere in the middle lie pin, id and secret.
    let good = mesh.token(&[]);
    for place in [good.len() / 4, good.len() / 2, good.len() - 3] {
        let mut altered: Vec<char> = good.chars().collect();
        altered[place] = if altered[place] == 'a' { 'b' } else { 'a' };
        refused("altered", &altered.into_iter().collect::<String>());
    }
    refused("cut", &good[..good.len() - 5]);
    refused("nonsense", "not-a-token");

    // Whole tokens with one part exchanged, their checksums right.
    let forged = |change: &dyn Fn(&mut JoinToken)| {
        let mut token = JoinToken::parse(&good).expect("our own token reads");
        change(&mut token);
        token.to_text().expect("a forged token writes")
    };
    let theirs = JoinToken::parse(&other.token(&[])).expect("their token reads");
    refused("wrong-pin", &forged(&|token| token.pin = theirs.pin));
    refused("wrong-secret", &forged(&|token| token.secret = theirs.secret));
    refused("unknown-id", &forged(&|token| token.id = "nobody".to_owned()));
    refused("wrong-mesh", &forged(&|token| token.endpoints.clone_from(&theirs.endpoints)));
    refused("nobody-there", &forged(&|token| token.endpoints = vec!["127.0.0.1:9".to_owned()]));
    // None of it spent the token.
    mesh.agent_call("good", &["join", &good, "--name", "good"]).ok();

    // Its second is over by now, or soon.
    let listed = |id: &str| {
        let tokens = mesh.json(&["token", "list"]);
        let list = tokens.as_array().or_else(|| tokens["items"].as_array()).expect("a list").clone();
        list.into_iter().find(|token| token["id"] == id)
    };
    let id = JoinToken::parse(&expired).expect("our own token reads").id;
    wait::until(secs(10), "the token expires", || {
        let ends = listed(&id).and_then(|token| token["expires_at"].as_str().map(str::to_owned));
        ends.is_none_or(|at| at < now()).then_some(())
    });
    refused("late", &expired);
    let names: Vec<String> = mesh
        .json(&["nodes"])
        .as_array()
        .expect("nodes is an array")
        .iter()
        .map(|node| node["name"].as_str().unwrap_or("-").to_owned())
        .collect();
    assert_eq!(names, ["good"]);
    audited(&mesh, "node.join.refused", "wrong secret");
    audited(&mesh, "node.join.refused", "unknown token");
}

/// Waits until a refusal stands in the audit.
fn audited(mesh: &Mesh, action: &str, detail: &str) {
    let query = format!("SELECT count(*) FROM audit WHERE action = '{action}' AND detail LIKE '%{detail}%'");
    wait::until(secs(10), &query, || (mesh.query(&query).trim() != "0").then_some(()));
}

#[test]
fn a_machine_that_was_set_up_anew_gets_its_place_back_once_the_old_one_is_gone() {
    let mesh = Mesh::start();
    let mut old = mesh.agent("attic", AgentOptions::slots(1));
    let id = old.id().to_owned();
    mesh.meshctl(&["tag", "attic", "room=top"]).ok();
    // While it lives its place is its own, and nobody has it by chance.
    let join = |token: &str| mesh.agent_call("anew", &["join", token, "--name", "attic"]).exits(1);
    join(&mesh.token(&["--node", "attic"])).tells("once it is OFFLINE");
    old.kill_all();
    mesh.node_becomes("attic", "OFFLINE");
    join(&mesh.token(&[])).tells("meshctl token create --node attic");

    // Its disk goes on in another machine, and it begins with an empty one.
    fs::rename(old.data_dir(), old.data_dir().with_file_name("stolen")).unwrap();
    mesh.agent_call("attic", &["join", &mesh.token(&["--node", "attic"]), "--name", "attic"]).ok();
    old.restart();
    assert_eq!(old.id(), id, "another node");
    mesh.node_becomes("attic", "HEALTHY");
    let nodes = mesh.json(&["nodes"]);
    assert_eq!(nodes.as_array().map(Vec::len), Some(1), "{nodes}");
    assert_eq!(nodes[0]["tags"]["room"], "top", "{nodes}");
    mesh.submit("{name: after, command: ['true']}").completes();
    mesh.agent_call("stolen", &["run", "--name", "attic"]).exits(1).tells("given to another machine");
    mesh.submit("{name: again, command: ['true']}").completes();
}

/// This moment as RFC 3339, which sorts as text.
fn now() -> String {
    let out = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ"]).output().expect("date runs");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

#[test]
fn a_credential_of_another_mesh_opens_nothing() {
    let mesh = Mesh::start();
    let other = Mesh::start();
    let here = mesh.address("grpc").to_owned();

    // Their whole credential, our address: our coordinator is not whom they trust.
    let mut foreign = other.command(&["nodes", "--endpoint", &here]);
    let out = run(&mut foreign);
    assert_ne!(out.0, 0, "{}", out.1);
    audited(&mesh, "connection.refused", "");

    // Our CA, their key and certificate: our coordinator does not know them.
    let read = |path: std::path::PathBuf| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let (ours, theirs) = (read(mesh.credential()), read(other.credential()));
    let mut mixed = ours.clone();
    mixed["cert"] = theirs["cert"].clone();
    mixed["key"] = theirs["key"].clone();
    let file = mesh.write("mixed.credential", &mixed.to_string());
    mesh.meshctl(&["nodes", "--credential", file.to_str().unwrap()]).exits(2).tells("not of this mesh");

    // Nobody at that address at all.
    mesh.meshctl(&["nodes", "--endpoint", "127.0.0.1:9"]).exits(5);
    mesh.meshctl(&["nodes"]).ok();
}

fn run(command: &mut Command) -> (i32, String) {
    let output = command.output().expect("meshctl runs");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}
