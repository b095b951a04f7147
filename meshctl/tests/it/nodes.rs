//! nodes, node, cordon, drain, tag, token, status.

use mesh_proto::v1::{self, NodeState};

use super::fake::Fake;

fn fake() -> Fake {
    let fake = Fake::start();
    let facts = v1::NodeFacts {
        name: "attic".into(),
        version: "0.1.0".into(),
        slots: 4,
        cpu_millis: 4000,
        resources: [("licence".to_owned(), 2)].into(),
        tags: [("zone".to_owned(), "a".to_owned())].into(),
        capabilities: vec!["avx2".into(), "ssd".into()],
        os: "linux".into(),
        arch: "x86_64".into(),
        kernel: "6.1.0".into(),
        sandbox: Some(v1::Sandbox {
            strongest: v1::SandboxLevel::Basic.into(),
            weakest: v1::SandboxLevel::Basic.into(),
            limits: "rlimit".into(),
            layers: vec![
                v1::SandboxLayer { name: "pid namespace".into(), present: true, remedy: String::new() },
                v1::SandboxLayer {
                    name: "cgroup".into(),
                    present: false,
                    remedy: "run it under systemd".into(),
                },
            ],
            host_network: true,
            mounts: [("media", false), ("data", true)]
                .map(|(name, read_only)| v1::Mount { name: name.into(), to: String::new(), read_only })
                .into(),
        }),
        ..v1::NodeFacts::default()
    };
    let attic = v1::NodeInfo {
        id: "0190aaaa-0000-7000-8000-00000000000a".into(),
        name: "attic".into(),
        state: NodeState::Healthy.into(),
        rtt_ms: Some(0.42),
        load: Some(0.5),
        running: 2,
        queued: 1,
        reliability: 0.97,
        slots_total: 4,
        slots_free: 2,
        memory_total: 8 << 30,
        memory_free: 6 << 30,
        facts: Some(facts),
        last_heartbeat_ms: Some(1200),
        joined_at_ms: 1_762_000_000_000,
        cpu_millis_free: 2500,
        ..v1::NodeInfo::default()
    };
    let office = v1::NodeInfo {
        id: "0190aaaa-0000-7000-8000-00000000000b".into(),
        name: "office".into(),
        state: NodeState::Offline.into(),
        draining: true,
        cordoned: true,
        reliability: 1.0,
        ..v1::NodeInfo::default()
    };
    fake.world(|world| world.nodes = vec![attic, office]);
    fake
}

#[test]
fn nodes_are_shown_to_people_and_programs() {
    let fake = fake();
    insta::assert_snapshot!("nodes", fake.run(&["nodes"]).exits(0).stdout);
    insta::assert_json_snapshot!("nodes_json", fake.json(&["nodes"]));
    insta::assert_snapshot!("node", fake.run(&["node", "attic"]).exits(0).stdout);
    assert_eq!(fake.json(&["node", "office"])["state"], "OFFLINE");
    fake.run(&["node", "cellar"]).exits(3);
}

#[test]
fn operators_change_nodes() {
    let fake = fake();
    assert!(fake.run(&["cordon", "attic"]).exits(0).stdout.contains("HEALTHY (cordoned)"));
    assert_eq!(fake.json(&["drain", "attic"])["draining"], true);
    assert_eq!(fake.json(&["uncordon", "attic"])["cordoned"], false);
    let tagged = fake.json(&["tag", "attic", "disk=fast", "zone=b"]);
    assert_eq!(tagged["tags"], serde_json::json!({"disk": "fast", "zone": "b"}));
    let tagged = fake.json(&["tag", "attic", "--remove", "zone"]);
    assert_eq!(tagged["tags"], serde_json::json!({"disk": "fast"}));
}

#[test]
fn a_token_stands_alone_on_standard_output() {
    let fake = fake();
    let outcome = fake.run(&["token", "create"]).exits(0);
    assert_eq!(outcome.stdout, "mesh1.secret\n");
    assert!(outcome.stderr.contains("agent run --join mesh1.secret"), "{}", outcome.stderr);
    let bound = fake.run(&["token", "create", "--node", "attic"]).exits(0);
    assert!(bound.stderr.contains("agent run --join mesh1.secret --name attic\n"), "{}", bound.stderr);
    let json = fake.json(&["token", "create", "--node", "attic", "--uses", "3", "--ttl", "1h"]);
    assert_eq!(
        json,
        serde_json::json!({
            "id": "t1", "token": "mesh1.secret", "expires_at": "2025-11-01T13:26:40.000Z",
            "uses": 3, "node": "attic",
        })
    );
}

#[test]
fn tokens_are_listed_and_revoked() {
    let fake = fake();
    fake.world(|world| {
        let token = v1::TokenInfo {
            id: "t1".into(),
            created_at_ms: 1_762_000_000_000,
            expires_at_ms: 4_000_000_000_000,
            uses: 2,
            used: 1,
            created_by: "ann".into(),
            ..v1::TokenInfo::default()
        };
        let used = v1::TokenInfo { id: "t2".into(), used: 2, node: "attic".into(), ..token.clone() };
        let expired = v1::TokenInfo { id: "t3".into(), expires_at_ms: 1_762_000_600_000, ..token.clone() };
        world.tokens = vec![token, used, expired];
    });
    fake.run(&["token", "revoke", "t9"]).exits(3);
    insta::assert_snapshot!("tokens", fake.run(&["token", "list"]).exits(0).stdout);
    assert_eq!(fake.run(&["token", "revoke", "t1"]).exits(0).stdout, "t1 revoked\n");
    assert_eq!(fake.json(&["token", "list"])[0]["revoked"], true);
}

#[test]
fn the_mesh_is_seen_at_a_glance() {
    let fake = fake();
    insta::assert_snapshot!("status", fake.run(&["status"]).exits(0).stdout);
    insta::assert_json_snapshot!("status_json", fake.json(&["status"]));
}
