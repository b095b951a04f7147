//! Compiles `proto/mesh/v1/*.proto` without an installed protoc and keeps the
//! descriptor set, which gRPC reflection serves.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 7] = ["common", "enrollment", "node", "jobs", "nodes", "access", "blobs"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<String> = FILES.iter().map(|name| format!("proto/mesh/v1/{name}.proto")).collect();
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(&files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("mesh.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".mesh.v1.OutputChunk.data")
        .bytes(".mesh.v1.PutBlobRequest.data")
        .bytes(".mesh.v1.GetBlobResponse.data")
        .bytes(".mesh.v1.LogChunk.data")
        .bytes(".mesh.v1.Ended.output")
        .compile_fds(descriptors)?;
    Ok(())
}
