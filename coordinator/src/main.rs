//! The coordinator's command line.

#![forbid(unsafe_code)]

use std::{io::IsTerminal as _, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use coordinator::{
    config::{Cli, Command, Config, ConfigError, DataDir},
    postgres, server,
};
use tracing_subscriber::EnvFilter;

/// The exit status when only an operator can mend it: starting again will not (`EX_CONFIG` of sysexits).
const CONFIG: u8 = 78;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logs();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coordinator: {error:#}");
            if error.is::<ConfigError>() { CONFIG.into() } else { ExitCode::FAILURE }
        }
    }
}

#[tokio::main]
async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(flags) => Ok(server::serve(Config::load(flags)?).await?),
        Command::AdminCredential(admin) => {
            let config = Config::load(admin.flags)?;
            let path = server::make_admin_credential(&config, &admin.user, admin.out)?;
            println!("{}", path.display());
            Ok(())
        }
        Command::Config(flags) => {
            print!("{}", Config::load(flags)?.to_toml());
            Ok(())
        }
        Command::Database(flags) => {
            let config = Config::load(flags)?;
            let data_dir = DataDir::open(&config.data_dir)?;
            let options =
                postgres::Options { data_dir: data_dir.path().to_owned(), bin_dir: config.pg_bin_dir };
            postgres::run_alone(options, |cluster| println!("{}", cluster.url()))
                .await
                .context("cannot run the private Postgres")
        }
    }
}

/// Logs go to stderr: for people on a terminal, JSON otherwise. `RUST_LOG` filters.
fn start_logs() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        logs.init();
    } else {
        logs.json().flatten_event(true).init();
    }
}
