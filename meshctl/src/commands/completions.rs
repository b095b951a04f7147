//! `completions`: what a shell needs to complete this program's command line.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{cli::Cli, error::CliError, output};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: &Args) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "meshctl", &mut script);
    output::print(&script)?;
    Ok(0)
}
