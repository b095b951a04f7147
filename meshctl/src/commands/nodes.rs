//! `nodes`, `node`, `cordon`, `uncordon`, `drain`, `tag`.

use std::{collections::HashMap, future::Future};

use mesh_proto::{limits, v1};
use tonic::{Response, Status, transport::Channel};

use super::Context;
use crate::{
    cli::key_value,
    error::CliError,
    output::{json, table},
};

type Nodes = v1::nodes_client::NodesClient<Channel>;

/// List nodes
#[derive(Debug, clap::Args)]
pub struct ListArgs {}

pub async fn list(context: &Context, _: &ListArgs) -> Result<u8, CliError> {
    let client = context.client()?;
    let mut nodes = Vec::new();
    let mut after = String::new();
    loop {
        let page = v1::Page { limit: limits::MAX_PAGE, after: after.clone() };
        let response = client
            .call(|| {
                let (mut nodes, page) = (client.nodes(), page.clone());
                async move { nodes.list_nodes(v1::ListNodesRequest { page: Some(page) }).await }
            })
            .await?;
        let empty = response.nodes.is_empty();
        nodes.extend(response.nodes);
        after = response.next;
        if after.is_empty() || empty {
            break;
        }
    }
    context.out.show(|| nodes.iter().map(json::node).collect(), || table::nodes(context.out, &nodes))?;
    Ok(0)
}

/// Show a node
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// Name or id
    node: String,
}

pub async fn get(context: &Context, args: &GetArgs) -> Result<u8, CliError> {
    let node = args.node.clone();
    let found = one(context, |mut nodes| {
        let request = v1::GetNodeRequest { node: node.clone() };
        async move { nodes.get_node(request).await }
    })
    .await?;
    context.out.show(|| json::node(&found), || table::node(context.out, &found))?;
    Ok(0)
}

/// Place nothing new on a node; what runs there goes on
#[derive(Debug, clap::Args)]
pub struct CordonArgs {
    /// Name or id
    node: String,
}

pub async fn cordon(context: &Context, args: &CordonArgs) -> Result<u8, CliError> {
    let node = args.node.clone();
    let changed = one(context, |mut nodes| {
        let request = v1::CordonRequest { node: node.clone() };
        async move { nodes.cordon(request).await }
    })
    .await?;
    show(context, &changed)
}

/// Let a node have tasks again; ends a drain too
#[derive(Debug, clap::Args)]
pub struct UncordonArgs {
    /// Name or id
    node: String,
}

pub async fn uncordon(context: &Context, args: &UncordonArgs) -> Result<u8, CliError> {
    let node = args.node.clone();
    let changed = one(context, |mut nodes| {
        let request = v1::UncordonRequest { node: node.clone() };
        async move { nodes.uncordon(request).await }
    })
    .await?;
    show(context, &changed)
}

/// Place nothing new on a node and take back what waits there
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// Name or id
    node: String,
}

pub async fn drain(context: &Context, args: &DrainArgs) -> Result<u8, CliError> {
    let node = args.node.clone();
    let changed = one(context, |mut nodes| {
        let request = v1::DrainRequest { node: node.clone() };
        async move { nodes.drain(request).await }
    })
    .await?;
    show(context, &changed)
}

/// Set or remove tags of a node
#[derive(Debug, clap::Args)]
pub struct TagArgs {
    /// Name or id
    node: String,
    /// Tags to set
    #[arg(value_name = "KEY=VALUE", value_parser = key_value, required_unless_present = "remove")]
    set: Vec<(String, String)>,
    /// A tag to remove; can be repeated
    #[arg(long, value_name = "KEY")]
    remove: Vec<String>,
}

pub async fn tag(context: &Context, args: &TagArgs) -> Result<u8, CliError> {
    let set: HashMap<String, String> = args.set.iter().cloned().collect();
    let changed = one(context, |mut nodes| {
        let request =
            v1::TagRequest { node: args.node.clone(), set: set.clone(), remove: args.remove.clone() };
        async move { nodes.tag(request).await }
    })
    .await?;
    show(context, &changed)
}

/// One call that answers with a node.
async fn one<F, R>(context: &Context, request: F) -> Result<v1::NodeInfo, CliError>
where
    F: Fn(Nodes) -> R,
    R: Future<Output = Result<Response<v1::NodeInfo>, Status>>,
{
    let client = context.client()?;
    client.call(|| request(client.nodes())).await
}

/// What became of the node that was changed.
fn show(context: &Context, node: &v1::NodeInfo) -> Result<u8, CliError> {
    context.out.show(|| json::node(node), || table::nodes(context.out, std::slice::from_ref(node)))?;
    Ok(0)
}
