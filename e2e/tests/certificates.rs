//! Certificates of seconds: renewed by the agents themselves, streams unbroken.

use mesh_e2e::{
    AgentOptions, Mesh, MeshOptions,
    wait::{self, secs},
};

#[test]
fn certificates_renew_themselves_under_a_running_task() {
    let options = MeshOptions { extra: "certificate_lifetime = \"6s\"\n".to_owned(), ..Default::default() };
    let mesh = Mesh::start_with(options);
    let attic = mesh.agent("attic", AgentOptions::slots(1));
    let witness = mesh.witness();
    let gate = mesh.gate("task");
    let job = mesh.submit(&format!(
        "{{name: held, script: '{}; saw start; {}; echo done; saw end'}}",
        witness.shell(),
        gate.shell()
    ));
    wait::until(secs(30), "it runs", || (witness.count("start") == 1).then_some(()));
    let renewed = || {
        let line = r#"mesh_grpc_requests_total{code="ok",method="RenewCertificate",service="mesh.v1.Node"}"#;
        mesh.figure(line)
    };
    let registered =
        || mesh.figure(r#"mesh_grpc_requests_total{code="ok",method="RegisterNode",service="mesh.v1.Node"}"#);
    let before = registered();
    // Three lives of a certificate pass.
    wait::until(secs(40), "four renewals", || (renewed() >= 4).then_some(()));
    assert_eq!(mesh.node("attic").expect("it is listed")["state"], "HEALTHY");
    assert_eq!(registered(), before, "the session was broken by a renewal");
    gate.open();
    job.completes();
    assert_eq!(job.log("held"), "done\n");
    assert_eq!(witness.count("start"), 1);
    drop(attic);
}
