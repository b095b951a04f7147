//! `status`: the mesh at a glance.

use mesh_proto::v1;

use super::Context;
use crate::{
    error::CliError,
    output::{json, table},
};

/// Show the mesh at a glance
#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(context: &Context, _: &Args) -> Result<u8, CliError> {
    let client = context.client()?;
    let status = client
        .call(|| {
            let mut nodes = client.nodes();
            async move { nodes.get_status(v1::GetStatusRequest {}).await }
        })
        .await?;
    context.out.show(|| json::status(&status), || table::status(&status))?;
    Ok(0)
}
