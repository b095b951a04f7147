//! `token create`, `token list`, `token revoke`.

use std::time::Duration;

use mesh_proto::{duration::parse_duration, limits, v1};
use serde_json::json;

use super::Context;
use crate::{
    error::CliError,
    output::{self, json as show, table, time},
};

/// Make, list and revoke join tokens
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a token with which a machine joins the mesh
    Create(CreateArgs),
    /// List tokens, newest first
    List,
    /// Make a token useless
    Revoke(RevokeArgs),
}

#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Only for the node of this name
    #[arg(long, value_name = "NAME", default_value = "")]
    node: String,
    /// How often it can be used
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// How long it can be used
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    ttl: Duration,
}

#[derive(Debug, clap::Args)]
pub struct RevokeArgs {
    /// The token's id, as `token list` shows it
    id: String,
}

pub async fn run(context: &Context, command: Command) -> Result<u8, CliError> {
    match command {
        Command::Create(args) => create(context, &args).await,
        Command::List => list(context).await,
        Command::Revoke(args) => revoke(context, &args).await,
    }
}

async fn create(context: &Context, args: &CreateArgs) -> Result<u8, CliError> {
    let client = context.client()?;
    let ttl_ms = args.ttl.as_millis() as u64;
    if ttl_ms == 0 {
        return Err(CliError::Usage("--ttl 0: expected more, such as 10m".to_owned()));
    }
    let token = client
        .call(|| {
            let mut access = client.access();
            let request = v1::CreateTokenRequest { node: args.node.clone(), uses: args.uses, ttl_ms };
            async move { access.create_token(request).await }
        })
        .await?;
    context.out.show(|| show::token_created(&token), || token.token.clone())?;
    if !context.out.is_json() {
        let name = if args.node.is_empty() { String::new() } else { format!(" --name {}", args.node) };
        output::aside(&format!(
            "valid until {}, {} {}; on the machine that joins:\n  agent run --join {}{name}",
            time::short(token.expires_at_ms),
            token.uses,
            if token.uses == 1 { "use" } else { "uses" },
            mesh_proto::names::escape(&token.token),
        ));
    }
    Ok(0)
}

async fn list(context: &Context) -> Result<u8, CliError> {
    let client = context.client()?;
    let mut tokens = Vec::new();
    let mut after = String::new();
    loop {
        let page = v1::Page { limit: limits::MAX_PAGE, after: after.clone() };
        let response = client
            .call(|| {
                let (mut access, page) = (client.access(), page.clone());
                async move { access.list_tokens(v1::ListTokensRequest { page: Some(page) }).await }
            })
            .await?;
        let empty = response.tokens.is_empty();
        tokens.extend(response.tokens);
        after = response.next;
        if after.is_empty() || empty {
            break;
        }
    }
    let now = chrono::Utc::now().timestamp_millis();
    context
        .out
        .show(|| tokens.iter().map(show::token).collect(), || table::tokens(context.out, &tokens, now))?;
    Ok(0)
}

async fn revoke(context: &Context, args: &RevokeArgs) -> Result<u8, CliError> {
    let client = context.client()?;
    client
        .call(|| {
            let mut access = client.access();
            let request = v1::RevokeTokenRequest { id: args.id.clone() };
            async move { access.revoke_token(request).await }
        })
        .await?;
    context.out.show(|| json!({"id": args.id, "revoked": true}), || format!("{} revoked", args.id))?;
    Ok(0)
}
