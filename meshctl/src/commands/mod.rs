//! One file per noun: from the parsed command line to calls and output. No rule stands here
//! that the coordinator does not also check.

pub mod blob;
pub mod check;
pub mod completions;
pub mod dead;
pub mod fetch;
pub mod jobs;
mod keys;
pub mod logs;
pub mod nodes;
pub mod run;
pub mod status;
pub mod submit;
pub mod tasks;
pub mod token;
pub mod why;

use crate::{
    cli::{Cli, Command},
    client::{Client, ConnectArgs},
    error::CliError,
    output::Out,
};

/// What a command needs beside its arguments. The connection comes about when it is asked for.
pub struct Context {
    pub out: Out,
    pub connect: ConnectArgs,
}

impl Context {
    pub fn client(&self) -> Result<Client, CliError> {
        Client::new(&self.connect)
    }
}

/// Runs the command; the exit status is 0 unless the job it was about says otherwise.
pub async fn run(cli: Cli) -> Result<u8, CliError> {
    let context = Context { out: Out::new(cli.output), connect: cli.connect };
    match cli.command {
        Command::Submit(args) => submit::run(&context, args).await,
        Command::Run(args) => run::run(&context, args).await,
        Command::Check(args) => check::run(&context, &args),
        Command::Jobs(args) => jobs::list(&context, &args).await,
        Command::Job(args) => jobs::get(&context, &args).await,
        Command::Tasks(args) => tasks::run(&context, &args).await,
        Command::Wait(args) => jobs::wait(&context, &args).await,
        Command::Cancel(args) => jobs::cancel(&context, &args).await,
        Command::Logs(args) => logs::run(&context, &args).await,
        Command::Fetch(args) => fetch::run(&context, &args).await,
        Command::Nodes(args) => nodes::list(&context, &args).await,
        Command::Node(args) => nodes::get(&context, &args).await,
        Command::Cordon(args) => nodes::cordon(&context, &args).await,
        Command::Uncordon(args) => nodes::uncordon(&context, &args).await,
        Command::Drain(args) => nodes::drain(&context, &args).await,
        Command::Tag(args) => nodes::tag(&context, &args).await,
        Command::Token(command) => token::run(&context, command).await,
        Command::Blob(command) => blob::run(&context, command).await,
        Command::Dead(args) => dead::list(&context, &args).await,
        Command::Redrive(args) => dead::redrive(&context, &args).await,
        Command::Why(args) => why::run(&context, &args).await,
        Command::Status(args) => status::run(&context, &args).await,
        Command::AcceptDatabase(args) => status::accept_database(&context, &args).await,
        Command::Completions(args) => completions::run(&args),
    }
}
