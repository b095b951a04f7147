//! meshctl: the person's hand on the mesh. This file parses the command line, runs the
//! command and turns what went wrong into a message and an exit status; everything else is
//! in [`commands`].

#![forbid(unsafe_code)]

mod cli;
mod client;
mod commands;
mod download;
mod error;
mod jobfile;
mod logs;
mod output;
mod reference;
mod signals;
mod upload;
mod waiting;
mod watch;

use std::{env, process::ExitCode};

use clap::{Parser as _, error::ErrorKind};

use crate::{
    cli::Cli,
    error::CliError,
    output::{Out, error_json},
};

fn main() -> ExitCode {
    mesh_certs::install_provider();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let out = Out::new(cli.output);
    match run(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            out.error(&error);
            ExitCode::from(error.exit())
        }
    }
}

fn run(cli: Cli) -> Result<u8, CliError> {
    // One thread for the connection, so that a slow reader of the output never delays it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CliError::io("starting up", error))?;
    let result = runtime.block_on(commands::run(cli));
    // A thread that still reads a file or standard input is not waited for.
    runtime.shutdown_background();
    result
}

/// Help and versions are results; anything else is a mistake in the command line.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            if wants_json() {
                let text = error.to_string();
                error_json("invalid", text.trim().trim_start_matches("error: "));
            } else {
                let _ = error.print();
            }
            ExitCode::from(2)
        }
    }
}

/// Whether `-o json` stands on a command line that cannot be parsed.
fn wants_json() -> bool {
    let args: Vec<String> = env::args().collect();
    args.iter().enumerate().any(|(at, arg)| {
        matches!(arg.as_str(), "-ojson" | "-o=json" | "--output=json")
            || (matches!(arg.as_str(), "-o" | "--output")
                && args.get(at + 1).is_some_and(|value| value == "json"))
    })
}
