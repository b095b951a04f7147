//! The documents say what the code does: every invariant is listed with tests that exist, and the
//! states change as they are drawn.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use mesh_sim::{BROKEN, INVARIANTS, run};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// The names of all tests below a folder.
fn tests(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with(".git") {
                tests(&path, found);
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut marked = false;
            for line in text.lines().map(str::trim) {
                if let Some(after) = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn ")) {
                    if std::mem::take(&mut marked) {
                        found.extend(after.split('(').next().map(str::to_owned));
                    }
                } else {
                    marked |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                }
            }
        }
    }
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_invariant_is_listed_and_every_test_that_is_named_exists() {
    let list = document("invariants.md");
    let rows: Vec<&str> = list.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    let named: BTreeSet<&str> = rows.iter().flat_map(|row| quoted(row)).collect();
    for invariant in INVARIANTS {
        let name = format!("{invariant:?}");
        assert!(named.contains(name.as_str()), "docs/invariants.md does not list {name}");
    }
    let mut known = BTreeSet::new();
    tests(&root(), &mut known);
    assert!(known.len() > 500, "only {} tests were found", known.len());
    for row in rows {
        let guards: Vec<&str> = row.rsplit('|').take(2).flat_map(quoted).collect();
        assert!(!guards.is_empty(), "no test guards this promise: {row}");
        for name in guards {
            let invariant = INVARIANTS.iter().any(|invariant| format!("{invariant:?}") == name);
            assert!(invariant || known.contains(name), "docs/invariants.md names {name}, which is no test");
        }
    }
}

/// Each rule that is broken on purpose, with the test that sees it caught.
fn bites() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("sim/tests/bites.rs")).unwrap();
    let mut name = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(after) = line.strip_prefix("fn ") {
            after.split('(').next().unwrap_or_default().clone_into(&mut name);
        } else if let Some(rule) = line.strip_prefix("caught(Broken::") {
            found.push((rule.trim_end_matches(");").to_owned(), name.clone()));
        }
    }
    found
}

/// An invariant that nothing breaks may be one that checks nothing.
#[test]
fn every_invariant_is_broken_on_purpose_and_its_row_names_the_test() {
    let list = document("invariants.md");
    let bites = bites();
    for (broken, invariant) in BROKEN {
        let rule = format!("{broken:?}");
        let bite = bites.iter().find(|(of, _)| *of == rule);
        let (_, test) = bite.unwrap_or_else(|| panic!("sim/tests/bites.rs does not break {rule}"));
        let (invariant, test) = (format!("`{invariant:?}`"), format!("`{test}`"));
        let named = list.lines().any(|row| row.contains(&invariant) && row.contains(&test));
        assert!(named, "docs/invariants.md names {test} in no row of {invariant}");
    }
    for invariant in INVARIANTS {
        let broken = BROKEN.iter().any(|(_, breaks)| breaks == invariant);
        assert!(broken, "no rule is broken on purpose that {invariant:?} would catch");
    }
}

/// The changes that a section draws: `FROM --> TO: why`.
fn drawn(document: &str, section: &str) -> BTreeSet<(String, String)> {
    let begin = document.find(section).unwrap_or_else(|| panic!("there is no {section}"));
    let text = &document[begin + section.len()..];
    let text = text.split("\n## ").next().unwrap_or_default();
    let arrows = text.lines().filter_map(|line| line.trim().split_once(" --> "));
    arrows
        .map(|(from, to)| (from.to_owned(), to.split(':').next().unwrap_or_default().to_owned()))
        .filter(|(from, _)| from != "[*]")
        .collect()
}

/// Seeds with changes that are rare: `mesh-sim --changes` tells of each change the first seed that
/// shows it.
const RARE: [u64; 3] = [93, 651, 2738];

#[test]
fn tasks_and_jobs_change_as_they_are_drawn() {
    let document = document("state-machines.md");
    let mut seen = BTreeSet::new();
    for seed in (0..40).chain(RARE) {
        seen.extend(run(seed, None, false).changes);
    }
    for (kind, section) in [("task", "## A task"), ("job", "## A job")] {
        let mut drawn = drawn(&document, section);
        // What has no row yet changes its state without a write.
        drawn.retain(|(from, to)| from != "BLOCKED" && to != "BLOCKED");
        drawn.remove(&("QUEUED".to_owned(), "CANCELLED".to_owned()));
        let mut seen: BTreeSet<(String, String)> = seen
            .iter()
            .filter(|(of, _, _)| *of == kind)
            .map(|(_, from, to)| (from.to_uppercase(), to.to_uppercase()))
            .collect();
        seen.remove(&("QUEUED".to_owned(), "CANCELLED".to_owned()));
        let undrawn: Vec<_> = seen.difference(&drawn).collect();
        let unseen: Vec<_> = drawn.difference(&seen).collect();
        assert!(undrawn.is_empty(), "a {kind} changes like this, and it is not drawn: {undrawn:?}");
        assert!(unseen.is_empty(), "a {kind} never changes like this, and it is drawn: {unseen:?}");
    }
}
