//! The engine decides; it does not act. This test reads its sources and fails when a file
//! names I/O, a clock, randomness, an unordered map, or a crate that is not on the short list.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Crates that the engine may name, and where paths inside the crate may lead.
const CRATES: [&str; 4] = ["std", "bytes", "rangemap", "mesh_proto"];
/// What its tests may name beside them.
const TEST_CRATES: [&str; 1] = ["proptest"];
/// The parts of `mesh_proto` that are plain values.
const PROTO: [&str; 4] = ["ids", "size", "state", "v1"];
/// Parts of `std` that reach outside, keep time, or differ from run to run.
const STD: [&str; 12] = [
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time",
    "std::sync::mpsc",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::atomic",
];
/// Words that have no place there, wherever they come from.
const WORDS: [&str; 15] = [
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "RandomState",
    "generate",
    "now_v7",
    "new_v4",
    "println",
    "eprintln",
    "print",
    "dbg",
    "async",
    "await",
    "unsafe",
];

/// What is wrong with a source text. `crates` are those that the coordinator depends on.
fn faults(source: &str, test: bool, crates: &[String]) -> Vec<String> {
    let code = without_comments_and_strings(source);
    let mut faults = Vec::new();
    for (number, line) in code.lines().enumerate() {
        for word in words(line).filter(|word| WORDS.contains(word)) {
            faults.push(format!("{}: names `{word}`", number + 1));
        }
    }
    let modules: Vec<&str> = code
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("pub ").strip_prefix("mod "))
        .map(|rest| rest.trim_end_matches([';', '{', ' ']))
        .collect();
    let (used, code) = split_uses(&code);
    for path in &used {
        let root = path.split("::").next().unwrap_or_default();
        let inside = ["self", "super", "crate"].contains(&root) || modules.contains(&root);
        if !inside && !allowed(root, test) {
            faults.push(format!("imports `{path}`"));
        }
    }
    for path in used.into_iter().chain(inline_paths(&code)) {
        let root = path.split("::").next().unwrap_or_default();
        let part = path.strip_prefix("mesh_proto::").and_then(|rest| rest.split("::").next());
        if crates.iter().any(|name| name == root) && !allowed(root, test)
            || root == "crate" && !path.starts_with("crate::engine")
            || part.is_some_and(|part| !PROTO.contains(&part))
            || STD.iter().any(|part| path == *part || path.starts_with(&format!("{part}::")))
        {
            faults.push(format!("leaves the engine by `{path}`"));
        }
    }
    faults
}

fn allowed(root: &str, test: bool) -> bool {
    CRATES.contains(&root) || test && TEST_CRATES.contains(&root)
}

/// The crates that the coordinator's manifest names.
fn dependencies() -> Vec<String> {
    include_str!("../Cargo.toml")
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim().split('.').next().unwrap_or_default().replace('-', "_"))
        .collect()
}

/// The imported paths, with their groups spelled out, and the code without the imports.
fn split_uses(code: &str) -> (Vec<String>, String) {
    let (mut paths, mut other) = (Vec::new(), String::new());
    let mut rest = code;
    while let Some(at) = find_use(rest) {
        other.push_str(&rest[..at]);
        let statement = &rest[at + "use ".len()..];
        let end = statement.find(';').unwrap_or(statement.len());
        spell_out("", &statement[..end], &mut paths);
        rest = &statement[end..];
    }
    other.push_str(rest);
    (paths, other)
}

/// Paths in expressions and types.
fn inline_paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("::") {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let start = code[..at].rfind(|c| !is_word(c)).map_or(0, |before| before + 1);
        let length = code[at..].find(|c| !is_word(c)).unwrap_or(code.len() - at);
        paths.push(code[start..at + length].trim_matches(':').to_owned());
    }
    paths.sort();
    paths.dedup();
    paths
}

fn find_use(code: &str) -> Option<usize> {
    code.match_indices("use ")
        .map(|(at, _)| at)
        .find(|at| !code[..*at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
}

fn spell_out(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let name = tree.split(" as ").next().unwrap_or_default().trim();
        let path = format!("{prefix}{name}");
        paths.push(path.trim_end_matches("::self").to_owned());
        return;
    };
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let inner = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let mut depth = 0;
    let mut start = 0;
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                spell_out(&prefix, &inner[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        spell_out(&prefix, &inner[start..], paths);
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Blanks what is no code, and keeps the lines.
fn without_comments_and_strings(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => {
                while chars.peek().is_some_and(|c| *c != '\n') {
                    chars.next();
                }
            }
            '"' => {
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => {
                            chars.next();
                        }
                        '\n' => code.push('\n'),
                        '"' => break,
                        _ => {}
                    }
                }
                code.push_str("\"\"");
            }
            // A character, not a lifetime: a quote follows it.
            '\'' => {
                let ahead: Vec<char> = chars.clone().take(3).collect();
                let length = match ahead[..] {
                    ['\\', _, '\''] => 3,
                    [_, '\'', ..] => 2,
                    _ => 0,
                };
                for _ in 0..length {
                    chars.next();
                }
                code.push_str(if length == 0 { "'" } else { "' '" });
            }
            c => code.push(c),
        }
    }
    code
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the engine's folder") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_engine_is_pure() {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine");
    let mut files = Vec::new();
    sources(&engine, &mut files);
    assert!(files.len() > 20, "the engine's sources moved: only {} files", files.len());
    let crates = dependencies();
    assert!(crates.iter().any(|name| name == "tokio_stream"), "the manifest moved: {crates:?}");
    let mut all = Vec::new();
    for file in files {
        let source = fs::read_to_string(&file).expect("a readable source");
        let inside = file.strip_prefix(&engine).expect("a path inside the engine");
        let test = inside.starts_with("tests") || source.contains("#[cfg(test)]");
        all.extend(
            faults(&source, test, &crates).into_iter().map(|fault| format!("{}: {fault}", inside.display())),
        );
    }
    assert!(all.is_empty(), "the engine must stay pure:\n{}", all.join("\n"));
}

/// Leases, terms and the sessions' patience are measured on clocks that nobody sets.
#[test]
fn no_wall_clock_decides_about_leases() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![src.join("grpc/node.rs"), src.join("grpc/node/register.rs")];
    for room in ["commit", "session", "leader"].map(|room| src.join(room)) {
        if room.exists() {
            sources(&room, &mut files);
        }
    }
    assert!(files.len() > 10, "the rooms moved: only {} files", files.len());
    for file in files {
        let code = without_comments_and_strings(&fs::read_to_string(&file).expect("a readable source"));
        for word in words(&code) {
            assert!(
                !["SystemTime", "UNIX_EPOCH", "Utc", "Local"].contains(&word),
                "{}: {word}",
                file.display()
            );
        }
    }
}

#[test]
fn each_kind_of_impurity_is_caught() {
    let bad = [
        "use tokio::sync::mpsc;",
        "use std::{sync::Arc, time::Instant};",
        "use std::time::Duration as Wait;",
        "use std::{collections::{BTreeMap, HashMap}};",
        "fn now() -> u64 { std::time::SystemTime::now() }",
        "let at = chrono::Utc::now();",
        "let id = NodeId::generate();",
        "let id = Uuid::now_v7();",
        "fn read() { std::fs::read(path) }",
        "use std::{env, process};",
        "let roll = rand::random();",
        "println!(\"{}\", 1);",
        "async fn f() {}",
        "use crate::store::Store;",
        "use mesh_proto::limits::MAX_TASKS;",
        "use mesh_proto::{ids::JobId, code::Code};",
        "use serde_json::Value;",
        "let x = serde_json::to_string(&y);",
        "let at: chrono::DateTime<chrono::Utc> = stored;",
        "static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);",
    ];
    for snippet in bad {
        assert!(!faults(snippet, true, &dependencies()).is_empty(), "not caught: {snippet}");
    }
    assert!(!faults("use proptest::prelude::*;", false, &dependencies()).is_empty(), "only tests may");
}

#[test]
fn plain_code_passes() {
    let good = [
        "use std::{collections::{BTreeMap, BTreeSet}, sync::Arc};",
        "use mesh_proto::{ids::{AttemptKey, NodeId}, v1::Cause};",
        "use super::{super::node::Node, types::Time};",
        "// tokio and HashMap in a comment\nlet a = \"println in a string\"; let b = '\"'; let c = 1;",
        "impl<'a> Finish<'a> { fn go(&'a self) -> Option<u32> { Some(u32::MAX) } }",
        "use rangemap::RangeSet; use bytes::Bytes;",
    ];
    for snippet in good {
        assert_eq!(faults(snippet, false, &dependencies()), Vec::<String>::new(), "{snippet}");
    }
}
