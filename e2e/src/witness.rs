//! The witness: a file that every task of a test appends its start and its end to. It tells
//! what really ran, whatever the mesh says about it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

/// A file that tasks of any user can append to.
pub struct Witness {
    path: PathBuf,
}

/// One line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened: the first word.
    pub what: String,
    /// `task.index`
    pub task: String,
    pub attempt: u32,
    pub node: String,
}

impl Witness {
    /// One in a file of the test's own.
    pub fn new(path: PathBuf) -> Self {
        fs::write(&path, "").expect("make the witness file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("open the witness to all");
        Self { path }
    }

    pub fn path(&self) -> &str {
        self.path.to_str().expect("temporary paths are UTF-8")
    }

    /// A shell function `saw WORD` for scripts of tasks: appends one line in one write.
    pub fn shell(&self) -> String {
        format!("saw() {{ echo \"$1 $MESH_TASK.$MESH_INDEX $MESH_ATTEMPT $MESH_NODE\" >> {}; }}", self.path())
    }

    /// All lines so far.
    pub fn events(&self) -> Vec<Event> {
        let text = fs::read_to_string(&self.path).expect("read the witness");
        let parse = |line: &str| {
            let mut words = line.split(' ');
            Some(Event {
                what: words.next()?.to_owned(),
                task: words.next()?.to_owned(),
                attempt: words.next()?.parse().ok()?,
                node: words.next()?.to_owned(),
            })
        };
        text.lines().map(|line| parse(line).unwrap_or_else(|| panic!("the witness says {line:?}"))).collect()
    }

    /// The lines that begin with `what`.
    pub fn all(&self, what: &str) -> Vec<Event> {
        self.events().into_iter().filter(|event| event.what == what).collect()
    }

    pub fn count(&self, what: &str) -> usize {
        self.all(what).len()
    }
}
