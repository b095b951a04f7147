//! Blobs: what goes in comes out, once.

use std::fs;

use mesh_e2e::Mesh;

#[test]
fn what_is_put_comes_back_and_is_kept_once() {
    let mesh = Mesh::start();
    // More than one message holds, and not a multiple of anything.
    let content: Vec<u8> = (0..5_000_011_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let path = mesh.path("blob.bin");
    fs::write(&path, &content).unwrap();
    let digest = mesh.meshctl(&["blob", "put", "blob.bin"]).ok().stdout.trim().to_owned();
    assert_eq!(digest.len(), 64, "{digest}");
    assert_eq!(mesh.meshctl(&["blob", "put", "blob.bin"]).ok().stdout.trim(), digest);

    let stat = mesh.json(&["blob", "stat", &digest]);
    assert!(stat.to_string().contains("5000011"), "{stat:#}");
    let mut get = mesh.command(&["blob", "get", &digest]);
    assert!(get.output().unwrap().stdout == content, "the content changed on its way");

    mesh.meshctl(&["blob", "get", &"0".repeat(64)]).exits(3);
    mesh.meshctl(&["blob", "get", "no-digest"]).exits(2);
}
