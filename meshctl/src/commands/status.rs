//! `status`: the mesh at a glance; `accept-database`: the way out of a halt.

use mesh_proto::v1;

use super::Context;
use crate::{
    error::CliError,
    output::{json, note, table},
};

/// Go on with a database that went back in time
///
/// The mesh halts when nodes have seen more than the database holds: an older copy was restored, or
/// an older replica promoted. This begins a new history with what the database holds; what it does
/// not know is lost, and its tasks are ended.
#[derive(Debug, clap::Args)]
pub struct AcceptDatabaseArgs {}

pub async fn accept_database(context: &Context, _: &AcceptDatabaseArgs) -> Result<u8, CliError> {
    let client = context.client()?;
    client
        .call(|| {
            let mut nodes = client.nodes();
            async move { nodes.accept_database(v1::AcceptDatabaseRequest {}).await }
        })
        .await?;
    note("the database is accepted; nodes come back within seconds");
    Ok(0)
}

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
