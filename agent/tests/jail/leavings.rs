//! What a strict task leaves where its outputs are looked for: links out of its directory, FIFOs, devices,
//! files of others, names that are traps, a million files, holes. The agent's collector refuses or bounds
//! each of them; a naive one (`naive.py`), run as the agent's user, falls for it: what no collector falls
//! for shows nothing.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agent::{
    beneath::Root,
    collect::{Bounds, collect},
    jail::{ExitCause, StartRequest, Wall},
    progress,
};

use super::{
    strict::strict,
    support::{Node, as_everybody, as_everybody_given, root, until},
};

/// As much as an agent collects unless its operator says otherwise, and less patience.
const USUAL: Bounds = Bounds { files: 10_000, bytes: 100 << 30, uid: None, patience: Duration::from_secs(5) };
/// How long a naive collector may go on before it counts as held up.
const HELD_UP: Duration = Duration::from_secs(3);
const SECRET: &str = "the agent's private key";

/// Lets a strict task leave what it likes; its request.
async fn leave(node: &mut Node, script: &str) -> StartRequest {
    let request = strict(node.shell(&format!("mkdir out && {{ {script}\n}}")));
    node.start(&request).await;
    node.ended(&request).await.expect(&ExitCause::Exited(0));
    request
}

/// What the agent collects of `outputs`: the files with their sizes, or why it takes none.
fn collected(request: &StartRequest, outputs: &[&str]) -> Result<Vec<(String, u64)>, String> {
    let began = Instant::now();
    let work = Root::open(&request.work_dir, None).unwrap();
    let outputs: Vec<String> = outputs.iter().map(ToString::to_string).collect();
    let found = collect(&work, &outputs, Bounds { uid: request.uid, ..USUAL });
    assert!(began.elapsed() < Duration::from_secs(20), "{outputs:?} took {:?}", began.elapsed());
    let found = found.map_err(|error| error.to_string())?;
    Ok(found.into_iter().map(|entry| (entry.path, entry.size)).collect())
}

#[track_caller]
fn refused(request: &StartRequest, output: &str, why: &str) {
    let error = collected(request, &[output]).unwrap_err();
    assert!(error.contains(why) && !error.contains(SECRET), "{output}: {error}");
    assert!(!error.contains(char::is_control), "{error:?}");
}

/// What the naive collector reads there; none when it does not come to an end.
async fn naive(how: &str, request: &StartRequest, output: &str) -> Option<String> {
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", include_str!("naive.py"), how, output])
        .current_dir(&request.work_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let over = std::cell::Cell::new(false);
    let watched = std::cell::RefCell::new(&mut child);
    until("it to end or to be held up", || {
        over.set(watched.borrow_mut().try_wait().unwrap().is_some());
        over.get() || began.elapsed() > HELD_UP
    })
    .await;
    if !over.get() {
        child.kill().unwrap();
        child.wait().unwrap();
        return None;
    }
    let (mut said, mut errors) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    Some(said + &errors)
}

#[track_caller]
fn fell_for(said: Option<String>, what: &str) {
    let said = said.unwrap_or_else(|| panic!("it was held up before it could tell {what:?}"));
    assert!(said.contains(what), "the naive collector does not fall for it either: {said}");
}

#[test]
fn a_link_leads_nowhere() {
    as_everybody("leavings::a_link_leads_nowhere", async |mut node: Node| {
        let (dir, key) = (node.dir.path().to_owned(), node.dir.path().join("key.pem"));
        let (dir, key) = (dir.display(), key.display());
        // To the file itself, to a directory above it, in the place of the output, on the way to it.
        let last = leave(&mut node, &format!("ln -s {key} out/x")).await;
        refused(&last, "out/", "`out/x` is a symbolic link");
        refused(&last, "out/x", "`out/x` is a symbolic link");
        refused(&last, "out/*", "`out/x` is a symbolic link");
        fell_for(naive("walk", &last, "out").await, SECRET);
        let above = leave(&mut node, &format!("mkdir out/d; ln -s {dir} out/d/up")).await;
        refused(&above, "out/", "`out/d/up` is a symbolic link");
        refused(&above, "out/d/up/key.pem", "not there");
        refused(&above, "out/d/up/*.pem", "not there");
        fell_for(naive("file", &above, "out/d/up/key.pem").await, SECRET);
        let instead = leave(&mut node, &format!("rmdir out; ln -s {dir} out")).await;
        refused(&instead, "out/", "`out` is a symbolic link");
        refused(&instead, "out/key.pem", "not there");
        fell_for(naive("file", &instead, "out/key.pem").await, SECRET);
        // Up and out again without any link.
        refused(&instead, "out/../../../../key.pem", "no usable path");
        fell_for(naive("file", &instead, "../../../key.pem").await, SECRET);
        let round = leave(&mut node, "echo 1 > out/file; ln -s . out/again").await;
        refused(&round, "out/", "`out/again` is a symbolic link");
        let files = naive("walk", &round, "out").await.unwrap();
        assert!(!files.contains("\n1 files"), "it does not go round: {files}");
    });
}

#[test]
fn nothing_that_waits_is_waited_for() {
    let give = |dir: &Path| {
        fs::create_dir(dir.join("out")).unwrap();
        super::powers::device(&dir.join("out/x"));
    };
    as_everybody_given("leavings::nothing_that_waits_is_waited_for", give, async |mut node: Node, given| {
        let fifo = leave(&mut node, "mkfifo out/x").await;
        refused(&fifo, "out/", "`out/x` is a FIFO, a socket or a device");
        assert_eq!(naive("walk", &fifo, "out").await, None, "a naive collector is not held up by a FIFO");
        let holes = leave(&mut node, "truncate -s 90G out/x").await;
        refused(&holes, "out/", "could not be gone through in 5 s");
        assert_eq!(naive("walk", &holes, "out").await, None, "a naive collector is not held up by holes");
        let socket = "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"out/x\")'";
        let socket = leave(&mut node, socket).await;
        refused(&socket, "out/", "`out/x` is a FIFO, a socket or a device");
        // A device it cannot make, nobody but root can; should it ever come by one:
        let device = leave(&mut node, "mknod out/x c 1 5 && echo made || true").await;
        assert!(!device.work_dir.join("out/x").exists(), "a task made a device");
        let Some(given) = given else {
            super::support::needs_root("only root can make a device");
            return;
        };
        let device = StartRequest { work_dir: given, ..device };
        refused(&device, "out/", "`out/x` is a FIFO, a socket or a device");
        assert_eq!(naive("walk", &device, "out").await, None, "a naive collector comes to an end of zeroes");
    });
}

#[test]
fn no_file_of_others_is_taken_for_the_tasks() {
    as_everybody("leavings::no_file_of_others_is_taken_for_the_tasks", async |mut node: Node| {
        let key = node.dir.path().join("key.pem");
        let script = format!("mkdir out; ln {0} out/x && echo reached || echo denied", key.display());
        let inside = strict(node.shell(&script));
        node.start(&inside).await;
        assert_eq!(node.ended(&inside).await.out(), "denied\n");
        if root() {
            // The kernel lets nobody link to what is not theirs. Should there be such a link all the same:
            let link = leave(&mut node, ":").await;
            fs::hard_link(&key, link.work_dir.join("out/x")).unwrap();
            refused(&link, "out/", "`out/x` belongs to another user");
            fell_for(naive("walk", &link, "out").await, SECRET);
        } else {
            // Of the same user: only the file tree stands before it.
            let bare = strict(node.shell(&script));
            let bare = StartRequest { without: vec![Wall::Tree, Wall::Landlock], ..bare };
            node.start(&bare).await;
            assert_eq!(node.ended(&bare).await.out(), "reached\n");
            fell_for(naive("walk", &bare, "out").await, SECRET);
        }
    });
}

#[test]
fn a_name_is_a_name_whatever_is_in_it() {
    as_everybody("leavings::a_name_is_a_name_whatever_is_in_it", async |mut node: Node| {
        let key = node.dir.path().join("key.pem").display().to_string();
        // A directory that ends in a line's end, and below it the way to the key.
        let trap = format!(
            "d=$(printf 'out/a\\n.'); d=${{d%.}}; mkdir -p \"$d{}\"; echo mine > \"$d{key}\"; echo m > out/-rf",
            Path::new(&key).parent().unwrap().display()
        );
        let trap = leave(&mut node, &trap).await;
        let found = collected(&trap, &["out/"]).unwrap();
        assert_eq!(found, [("out/-rf".to_owned(), 2), (format!("out/a\n{key}"), 5)]);
        fell_for(naive("lines", &trap, "out").await, SECRET);
        // What is said of it is safe to print.
        let coloured = leave(&mut node, "mkfifo \"$(printf 'out/\\033[31mred\\n')\"").await;
        refused(&coloured, "out/", "is a FIFO");
        let strange = leave(&mut node, "touch \"$(printf 'out/\\377')\"").await;
        refused(&strange, "out/", "not valid UTF-8 or too long");
    });
}

#[test]
fn a_million_files_are_not_even_listed() {
    as_everybody("leavings::a_million_files_are_not_even_listed", async |mut node: Node| {
        // As root all of them; the rest is the same for everybody.
        let count = if root() { 1_000_000 } else { 250_000 };
        // Names of few files: the machine's disk is no part of this.
        let make = format!(
            "mkdir out; exec python3 -uc 'import os\nfor i in range({count}):\n  \
             if i % 50000: os.link(file, f\"out/{{i}}\")\n  \
             else: print(f\"at {{i}}.\"); file = f\"out/{{i}}\"; os.mknod(file)'"
        );
        let many = strict(node.shell(&make));
        node.start(&many).await;
        // A busy disk may need longer for all of them than a test waits for one thing.
        for made in (0..count).step_by(50_000) {
            node.says(&many, &format!("at {made}.")).await;
        }
        node.ended(&many).await.expect(&ExitCause::Exited(0));
        let began = Instant::now();
        refused(&many, "out/", "more than 10000 files in the outputs");
        refused(&many, "out/*", "more than 10000 files in the outputs");
        refused(&many, "**/nothing", "more than 10000 files in the outputs");
        println!("{count} files were refused three times in {:?}", began.elapsed());
        fell_for(naive("list", &many, "out").await, &format!("{count} entries"));
    });
}

/// The file that a task tells its progress by is read while the task runs.
#[test]
fn the_file_of_progress_leads_nowhere_either() {
    as_everybody("leavings::the_file_of_progress_leads_nowhere_either", async |mut node: Node| {
        let told = node.dir.path().join("told");
        fs::write(&told, format!("40 {SECRET}\n")).unwrap();
        for (leave, held_up) in [
            (format!("ln -s {} .mesh/progress", told.display()), false),
            ("mkfifo .mesh/progress".to_owned(), true),
        ] {
            let script = format!("mkdir .mesh; {leave}; echo up; until test -e go; do sleep 0.02; done");
            let request = strict(node.shell(&script));
            node.start(&request).await;
            node.says(&request, "up").await;
            assert_eq!(progress::Watcher::new(request.work_dir.clone()).look(), None);
            let read = naive("file", &request, ".mesh/progress").await;
            if held_up {
                assert_eq!(read, None);
            } else {
                fell_for(read, SECRET);
            }
            fs::write(request.work_dir.join("go"), "").unwrap();
            node.ended(&request).await.expect(&ExitCause::Exited(0));
        }
        // An honest one is read.
        let honest = strict(node.shell("mkdir .mesh; echo '40 half' > .mesh/progress"));
        let work = honest.work_dir.clone();
        node.run(honest).await.expect(&ExitCause::Exited(0));
        assert_eq!(progress::Watcher::new(work).look().map(|told| told.percent), Some(40));
    });
}

/// Files come into a work directory before its task runs; the directory may be one that another task had.
#[test]
fn inputs_are_put_beneath_the_work_directory_alone() {
    as_everybody("leavings::inputs_are_put_beneath_the_work_directory_alone", async |mut node: Node| {
        let aim = node.dir.path().join("aim");
        fs::create_dir(&aim).unwrap();
        let left = leave(&mut node, ":").await;
        for (name, to) in [("way", &aim), ("file", &aim.join("new"))] {
            symlink(to, left.work_dir.join(name)).unwrap();
        }
        let work = Root::open(&left.work_dir, None).unwrap();
        for path in ["way/new", "file", "way/deep/new", "../../../aim/new"] {
            assert!(work.create(path, 0o644).is_err(), "{path} was made");
        }
        assert_eq!(fs::read_dir(&aim).unwrap().count(), 0);
        // By its path it is.
        fs::write(left.work_dir.join("way/new"), "").unwrap();
        assert!(aim.join("new").exists());
    });
}
