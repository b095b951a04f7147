//! `check`: everything about a job file that can be known without the mesh.

use super::Context;
use crate::{
    cli::key_value,
    error::CliError,
    jobfile::{self, Overrides},
    output::{json, table},
};

/// Check a job file without submitting it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Job file; - is standard input
    file: String,
    /// Override a parameter of the file
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

pub fn run(context: &Context, args: &Args) -> Result<u8, CliError> {
    let overrides = Overrides { name: None, set: args.set.clone() };
    let summary = jobfile::load(&args.file, &overrides)?.summary();
    context.out.show(|| json::check(&summary), || table::check(&summary))?;
    Ok(0)
}
