use clap::Parser as _;

use super::*;

fn parse(args: &[&str]) -> Result<Config, ConfigError> {
    let cli = Cli::try_parse_from([&["agent", "check", "--data-dir", "/d"], args].concat()).unwrap();
    let Command::Check { flags } = cli.command else { panic!("not check") };
    Config::load(&flags)
}

#[test]
fn flags_win_over_the_file_and_add_to_its_lists() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    let text = "name = 'from-file'\nslots = 3\nmemory = '2GiB'\ncapabilities = ['ffmpeg']\n\
                reconnect_max = '30s'\n[tags]\nzone = 'a'\nrack = '1'\n";
    std::fs::write(&path, text).unwrap();
    let config = parse(&[
        "--config",
        path.to_str().unwrap(),
        "--slots",
        "5",
        "--tag",
        "zone=b",
        "--capability",
        "blender",
        "--resource",
        "licence=2",
    ])
    .unwrap();
    assert_eq!(config.name, "from-file");
    assert_eq!(config.slots, Some(5));
    assert_eq!(config.memory_bytes, Some(2 << 30));
    assert_eq!(config.tags["zone"], "b");
    assert_eq!(config.tags["rack"], "1");
    assert_eq!(config.capabilities, ["blender", "ffmpeg"]);
    assert_eq!(config.resources["licence"], 2);
    assert_eq!(config.timings.reconnect_max, Duration::from_secs(30));
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_place() {
    let message = |args: &[&str]| parse(args).unwrap_err().to_string();
    assert!(message(&["--name", "Node A"]).contains("node name `Node A` contains 'N'"));
    assert!(message(&["--slots", "0"]).contains("slots `0`"));
    assert!(message(&["--memory", "lots"]).contains("lots"));
    assert!(message(&["--tag", "zone"]).contains("lacks its `=`"));
    assert!(message(&["--resource", "gpu=many"]).contains("gpu=many"));
    assert!(message(&["--allow-mount", "data=srv"]).contains("no absolute path"));
    assert!(message(&["--allow-mount", "data=/srv:rw"]).contains("an option other than"));
    assert!(message(&["--allow-mount", "Data=/srv"]).contains("mount `Data`"));
}

#[test]
fn mounts_are_read_with_their_options() {
    let config = parse(&["--allow-mount", "data=/srv/data:ro,home=/home/x:owner=1000.100"]).unwrap();
    let mount = |path: &str, read_only, owner| AllowedMount { path: path.into(), read_only, owner };
    assert_eq!(config.mounts["data"], mount("/srv/data", true, None));
    assert_eq!(config.mounts["home"], mount("/home/x", false, Some((1000, 100))));
}

#[test]
fn an_unknown_key_in_the_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, "slots = 2\nslotz = 3\n").unwrap();
    let message = parse(&["--config", path.to_str().unwrap()]).unwrap_err().to_string();
    assert!(message.contains("slotz") && message.contains("agent.toml"), "{message}");
}

#[test]
fn agents_on_one_machine_have_users_of_their_own() {
    let bases: Vec<u32> =
        ["/d/attic", "/d/office", "/d/lab"].map(|dir| default_uids(Path::new(dir))).to_vec();
    for (place, base) in bases.iter().enumerate() {
        assert!((300_000..=1_348_576 - MAX_RUNNING).contains(base), "{base}");
        assert!(bases[..place].iter().all(|other| other.abs_diff(*base) >= MAX_RUNNING), "{bases:?}");
    }
}

#[test]
fn any_host_name_becomes_a_valid_node_name() {
    for (host, name) in [
        ("Desk.Example.org", "desk.example.org"),
        ("MY PC", "my-pc"),
        ("-.", "node"),
        ("", "node"),
        ("übung", "bung"),
    ] {
        assert_eq!(valid_name(host), name);
        assert_eq!(check_name(&valid_name(host)), Ok(()));
    }
    assert_eq!(check_name(&valid_name(&"x".repeat(300))), Ok(()));
}
