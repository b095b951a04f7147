//! The `agent` binary: the jail when asked for it, before any thread exists; else the daemon and
//! the commands around it.

use std::io::Write as _;
use std::process::ExitCode;

use agent::config::{Cli, Command, ConfigError};
use agent::identity::IdentityError;
use agent::jail::ClientError;
use agent::{daemon, logging};
use clap::Parser as _;

/// The exit status when only an operator can mend it: starting again will not (`EX_CONFIG` of sysexits).
const CONFIG: u8 = 78;

fn main() -> ExitCode {
    // The jail forks: it must be alone in its process.
    if std::env::args_os().nth(1).is_some_and(|word| word == "jail") {
        return agent::jail::main(std::env::args_os().skip(2));
    }
    let cli = Cli::parse();
    mesh_certs::install_provider();
    logging::start();
    // One thread for all that waits: a short task would otherwise pay for waking a thread at each step.
    // What blocks (files, digests) has threads of its own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let done = runtime.block_on(command(cli.command));
    // What still blocks (a file being copied) is cut off: the next start deals with it.
    runtime.shutdown_background();
    match done {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let _unheard = writeln!(std::io::stderr(), "agent: {error:#}");
    let for_operators = error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || matches!(cause.downcast_ref(), Some(ClientError::Version { .. }))
            || matches!(
                cause.downcast_ref(),
                Some(
                    IdentityError::NotEnrolled
                        | IdentityError::Damaged { .. }
                        | IdentityError::Keyless { .. }
                )
            )
    });
    if for_operators { CONFIG.into() } else { ExitCode::FAILURE }
}

async fn command(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Join { token, flags } => daemon::join(&flags, &token).await?,
        Command::Run { join, flags } => daemon::run(&flags, join).await?,
        Command::Stop { kill, flags } => daemon::stop(&flags, kill).await?,
        Command::Check { flags } => {
            if !daemon::check(&flags).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
