//! The command line: global flags and one variant for each command.

use clap::{Parser, Subcommand};

use crate::{
    client::ConnectArgs,
    commands::{
        blob, check, completions, dead, fetch, jobs, logs, nodes, run, status, submit, tasks, token, why,
    },
    output::Format,
};

/// Submit jobs to the mesh, watch them, fetch what they made; look after its nodes.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, max_term_width = 100, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 done, 1 the job did not complete, 2 usage or invalid file, 3 not found, \
                        4 refused, 5 coordinator unreachable, 6 conflict, 130 interrupted."
)]
pub struct Cli {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// How results are printed
    #[arg(
        short,
        long,
        global = true,
        display_order = 1000,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
pub enum Command {
    Submit(submit::Args),
    Run(run::Args),
    Check(check::Args),
    Jobs(jobs::ListArgs),
    Job(jobs::GetArgs),
    Tasks(tasks::Args),
    Wait(jobs::WaitArgs),
    Cancel(jobs::CancelArgs),
    Logs(logs::Args),
    Fetch(fetch::Args),
    Why(why::Args),
    Dead(dead::ListArgs),
    Redrive(dead::RedriveArgs),
    Nodes(nodes::ListArgs),
    Node(nodes::GetArgs),
    Cordon(nodes::CordonArgs),
    Uncordon(nodes::UncordonArgs),
    Drain(nodes::DrainArgs),
    Tag(nodes::TagArgs),
    #[command(subcommand)]
    Token(token::Command),
    #[command(subcommand)]
    Blob(blob::Command),
    Status(status::Args),
    AcceptDatabase(status::AcceptDatabaseArgs),
    Completions(completions::Args),
}

/// `KEY=VALUE`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
