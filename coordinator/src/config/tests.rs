//! What an operator writes, and what holds afterwards or is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser as _;
use mesh_proto::v1::SandboxLevel;

use super::{Cli, Command, Config, ConfigError, Flags, Limits, Placement, Timings};

fn flags(args: &[&str]) -> Flags {
    let args = ["coordinator", "serve"].iter().chain(args);
    let Command::Serve(flags) = Cli::try_parse_from(args).unwrap().command else { panic!("not serve") };
    flags
}

/// The configuration of a file with this text, and of these flags.
fn load(text: &str, args: &[&str]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.toml");
    std::fs::write(&path, text).unwrap();
    let mut flags = flags(args);
    flags.config = Some(path);
    Config::load(flags)
}

fn refused(text: &str) -> String {
    load(text, &[]).expect_err("this is refused").to_string()
}

#[test]
fn with_nothing_configured_the_documented_defaults_hold() {
    let config = Config::load(flags(&[])).unwrap();
    assert_eq!(config.listen.to_string(), "0.0.0.0:7443");
    assert_eq!(config.join_listen.to_string(), "0.0.0.0:7444");
    assert_eq!(config.http_listen.to_string(), "127.0.0.1:7480");
    assert!(!config.advertise.is_empty());
    assert_eq!(config.default_sandbox, SandboxLevel::Strict);
    let timings = &config.timings;
    assert_eq!(timings.heartbeat, Duration::from_secs(5));
    assert_eq!(timings.suspect_after, Duration::from_secs(15));
    assert_eq!(timings.offline_after, Duration::from_secs(30));
    assert_eq!(timings.adoption_grace(), Duration::from_secs(30));
    assert_eq!(timings.certificate_lifetime, Duration::from_hours(24));
    assert_eq!(timings.token_ttl, Duration::from_mins(10));
    assert_eq!(config.limits.max_tasks_per_job, 1_000_000);
    assert_eq!(config.limits.max_message, 4 << 20);
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let text = "listen = \"127.0.0.1:1\"\njoin_listen = \"127.0.0.1:2\"\nadvertise = [\"a\", \"b:9\"]\n\
                default_sandbox = \"none\"\n[timings]\nheartbeat = \"1s\"\n[limits]\nmax_output = \"2GB\"\n";
    let config = load(text, &["--listen", "127.0.0.1:7", "--advertise", "c"]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:7");
    assert_eq!(config.join_listen.to_string(), "127.0.0.1:2");
    assert_eq!(config.http_listen.to_string(), "127.0.0.1:7480");
    assert_eq!(config.advertise, ["c".parse().unwrap()]);
    assert_eq!(config.default_sandbox, SandboxLevel::None);
    assert_eq!(config.timings.heartbeat, Duration::from_secs(1));
    assert_eq!(config.limits.max_output, 2_000_000_000);
    assert_eq!(load(text, &[]).unwrap().advertise.len(), 2);
}

#[test]
fn paths_of_the_file_are_relative_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.toml");
    std::fs::write(&path, "data_dir = \"data\"\n").unwrap();
    let config = Config::load(Flags { config: Some(path), ..Flags::default() }).unwrap();
    assert_eq!(config.data_dir, dir.path().join("data"));
    assert!(Config::load(flags(&["--data-dir", "x"])).unwrap().data_dir.is_absolute());
}

#[test]
fn mistakes_in_the_file_are_told_with_file_and_line() {
    for (text, words) in [
        (
            "listen = \"127.0.0.1:1\"\nlisten_join = 1\n",
            &["mesh.toml", "line 2", "listen_join", "join_listen"][..],
        ),
        ("[timings]\n\nheart = \"5s\"\n", &["line 3", "heart", "heartbeat"]),
        ("[timings]\nheartbeat = \"5\"\n", &["line 2", "`5` is no duration"]),
        ("[timings]\nheartbeat = 5\n", &["line 2", "integer"]),
        ("[limits]\nmax_output = \"1 potato\"\n", &["line 2", "`potato` is no unit of size"]),
        ("[limits]\nmax_connections = -1\n", &["line 2"]),
        ("default_sandbox = \"tight\"\n", &["line 1", "expected strict, basic or none"]),
        ("advertise = [\"https://x\"]\n", &["line 1", "HOST:PORT"]),
        ("listen = \"7443\"\n", &["line 1"]),
        ("listen = \n", &["line 1"]),
    ] {
        let error = refused(text);
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }
}

#[test]
fn values_that_cannot_work_are_refused_by_key() {
    for (text, words) in [
        ("[timings]\nheartbeat = \"0s\"", &["timings.heartbeat = 0s", "50ms to 1h"][..]),
        (
            "[timings]\nsuspect_after = \"5s\"",
            &["timings.suspect_after = 5s", "more than heartbeat, which is 5s"],
        ),
        ("[timings]\nadoption_grace = \"20s\"", &["timings.adoption_grace", "expected 30s to"]),
        ("[timings]\noffline_after = \"15s\"", &["timings.offline_after", "more than suspect_after"]),
        ("[timings]\nleader_takeover = \"1s\"", &["timings.leader_takeover", "2s to 1h"]),
        ("[timings]\ncertificate_lifetime = \"0s\"", &["timings.certificate_lifetime", "1s to 825d"]),
        ("[limits]\nmax_message = \"1KiB\"", &["limits.max_message = 1KiB", "1MiB to 64MiB"]),
        ("[placement]\nalpha = -1.0", &["placement.alpha = -1", "0 to 1000"]),
        ("[placement]\ndelta = nan", &["placement.delta = NaN", "0 to 1000"]),
        ("[placement]\nfeed_below = \"2h\"", &["placement.feed_below = 2h", "0s to 1h"]),
        ("[limits]\nmax_connections = 0", &["limits.max_connections = 0", "1 to 1000000"]),
        ("[limits]\nhandshake_timeout = \"2m\"", &["limits.handshake_timeout = 2m", "100ms to 1m"]),
    ] {
        let error = refused(text);
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    let flags = Flags { config: Some("/nowhere/mesh.toml".into()), ..Flags::default() };
    let error = Config::load(flags).unwrap_err().to_string();
    assert!(error.contains("/nowhere/mesh.toml"), "{error}");
}

#[test]
fn what_holds_reads_back_as_a_file_and_keeps_its_secret() {
    let url = "postgres://mesh:hunter2@db/mesh";
    let config = load("[timings]\nadoption_grace = \"1m30s\"\n", &["--database-url", url]).unwrap();
    assert_eq!(config.database_url.as_ref().unwrap().expose(), url);
    let text = config.to_toml();
    assert!(!text.contains("hunter2") && !format!("{config:?}").contains("hunter2"));
    let again = load(&text, &[]).unwrap();
    assert_eq!(again.timings, config.timings);
    assert_eq!(again.limits, config.limits);
    assert_eq!(again.listen, config.listen);
    assert_eq!(again.advertise, config.advertise);
}

#[test]
fn an_empty_database_url_means_the_private_cluster() {
    assert!(Config::load(flags(&["--database-url", ""])).unwrap().database_url.is_none());
}

#[test]
fn the_admin_credential_has_a_user_and_may_have_a_place() {
    let parse = |args: &[&str]| match Cli::try_parse_from(args).map(|cli| cli.command) {
        Ok(Command::AdminCredential(command)) => Ok((command.user, command.out)),
        Ok(Command::Serve(_) | Command::Config(_) | Command::Database(_)) => panic!("another command"),
        Err(error) => Err(error.to_string()),
    };
    assert_eq!(parse(&["coordinator", "admin-credential"]), Ok(("admin".to_owned(), None)));
    assert_eq!(
        parse(&["coordinator", "admin-credential", "--user", "eva", "--out", "x.json"]),
        Ok(("eva".to_owned(), Some(PathBuf::from("x.json"))))
    );
    assert!(parse(&["coordinator", "admin-credential", "--user", "../eva"]).is_err());
}

/// Operators look the keys up there.
#[test]
fn every_key_and_its_default_are_in_the_operators_guide() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let timings = toml::Table::try_from(Timings::default()).unwrap();
    let limits = toml::Table::try_from(Limits::default()).unwrap();
    let placement = toml::Table::try_from(Placement::default()).unwrap();
    for (key, value) in timings.into_iter().chain(limits).chain(placement) {
        let shown = match value {
            toml::Value::String(text) => format!("\"{text}\""),
            other => other.to_string(),
        };
        let row = format!("| `{key}` | `{shown}` |");
        assert!(guide.contains(&row), "docs/operations.md lacks {row}");
    }
}
