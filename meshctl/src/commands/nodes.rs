//! `nodes`, `node`, `cordon`, `uncordon`, `drain`, `tag`.

use std::{collections::HashMap, future::Future, time::Duration};

use mesh_proto::{code::Code, limits, names::escape, v1};
use tokio::time::sleep;
use tonic::{Response, Status, transport::Channel};

use super::Context;
use crate::{
    cli::key_value,
    client::Patience,
    error::CliError,
    output::{self, json, table},
    signals::Interrupts,
};

/// Between two looks at a node that drains.
const LOOK: Duration = Duration::from_millis(300);

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

/// Place nothing new on a node and take back what waits there; what runs there ends by itself
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// Name or id
    node: String,
    /// Wait until nothing is left there
    #[arg(long)]
    wait: bool,
}

pub async fn drain(context: &Context, args: &DrainArgs) -> Result<u8, CliError> {
    let node = args.node.clone();
    let changed = one(context, |mut nodes| {
        let request = v1::DrainRequest { node: node.clone() };
        async move { nodes.drain(request).await }
    })
    .await?;
    let drained = if args.wait { empty(context, changed).await? } else { changed };
    show(context, &drained)
}

/// Waits until nothing of the mesh is left on a node, with a word for each change.
async fn empty(context: &Context, mut node: v1::NodeInfo) -> Result<v1::NodeInfo, CliError> {
    let client = context.client()?;
    let mut interrupts = Interrupts::new().map_err(|error| CliError::io("signals", error))?;
    let mut patience = Patience::endless(&client);
    let mut told = None;
    while node.running + node.queued > 0 {
        if !node.draining {
            let name = escape(&node.name);
            return Err(Code::Conflict.status(format!("{name} is not draining any more")).into());
        }
        let left = (node.running, node.queued);
        if told != Some(left) {
            output::note(&format!(
                "{}: {} running, {} waiting to be taken back",
                escape(&node.name),
                left.0,
                left.1
            ));
            told = Some(left);
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = interrupts.next() => {
                return Err(CliError::Interrupted("; the node goes on draining".to_owned()));
            }
        }
        let request = v1::GetNodeRequest { node: node.id.clone() };
        match client.nodes().get_node(request).await {
            Ok(answer) => {
                patience.succeeded();
                node = answer.into_inner();
            }
            Err(status) => patience.failed(status).await?,
        }
    }
    Ok(node)
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
