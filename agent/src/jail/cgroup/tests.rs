use super::*;

fn dirs(cgroup: &str, mountinfo: &str) -> Vec<(String, String)> {
    let found = hierarchies(cgroup, mountinfo);
    found.into_iter().map(|h| (h.controllers.join(","), h.dir.display().to_string())).collect()
}

#[test]
fn two_directories_of_one_path_have_groups_of_their_own() {
    let above = tempfile::tempdir().unwrap();
    let (jail, aside) = (above.path().join("jail"), above.path().join("aside"));
    fs::create_dir(&jail).unwrap();
    let first = name(&jail).unwrap();
    assert_eq!(name(&jail).unwrap(), first);
    // Another container's directory of this path.
    fs::rename(&jail, aside).unwrap();
    fs::create_dir(&jail).unwrap();
    assert_ne!(name(&jail).unwrap(), first);
}

#[test]
fn what_a_living_jail_holds_is_not_swept_away_however_empty_it_is() {
    let own = tempfile::tempdir().unwrap();
    let group = |mark: &str| own.path().join(format!("mesh-{mark}"));
    let (living, dead) = (group("0123456789abcdef"), group("fedcba9876543210"));
    let others = own.path().join("mesh-of-another-kind");
    let held = hold(&living).unwrap();
    for dir in [living.join("slot-1"), dead.join("slot-1"), others.clone()] {
        fs::create_dir_all(dir).unwrap();
    }
    sweep(own.path());
    assert!(living.join("slot-1").exists() && others.exists());
    assert!(!dead.exists(), "what a dead jail left stays");
    drop(held);
    sweep(own.path());
    assert!(!living.exists());
    // Its next jail makes it anew, also when it is swept away while that one waits for it.
    hold(&living).unwrap();
    assert!(living.exists());
}

#[test]
fn a_machine_of_version_one_is_read() {
    let cgroup = "4:memory:/a/b\n2:cpu,cpuacct:/\n0::/\n";
    let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                  35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:5 - cgroup2 cgroup2 rw\n";
    let expected = [
        ("memory", "/sys/fs/cgroup/memory/a/b"),
        ("cpu,cpuacct", "/sys/fs/cgroup/cpu/"),
        ("", "/sys/fs/cgroup/unified/"),
    ];
    assert_eq!(dirs(cgroup, mounts), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
}

#[test]
fn a_machine_of_version_two_and_a_container_on_it_are_read() {
    let cgroup = "0::/system.slice/mesh-agent.service\n";
    let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    let service = "/sys/fs/cgroup/system.slice/mesh-agent.service";
    assert_eq!(dirs(cgroup, mounts), [(String::new(), service.to_owned())]);
    let inside = "30 23 0:26 /system.slice /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
    assert_eq!(dirs(cgroup, inside), [(String::new(), "/sys/fs/cgroup/mesh-agent.service".to_owned())]);
}

/// A directory that looks like a part of version 2: plain files, which keep what is written to them one
/// after another for as long as they are held open.
struct Fake(tempfile::TempDir);

const CONTROLLERS: &str = "cpuset cpu io memory hugetlb pids rdma\n";
const NAME: &str = "mesh-0123456789abcdef";

impl Fake {
    fn new(controllers: &str) -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        fake.write("cgroup.controllers", controllers);
        fake.write("cgroup.type", "domain\n");
        fake.write("cgroup.procs", "");
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn exists(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    fn hierarchy(&self) -> Hierarchy {
        Hierarchy { controllers: Vec::new(), dir: self.0.path().to_owned() }
    }

    fn groups(&self) -> io::Result<Groups> {
        Groups::among(&[self.hierarchy()], NAME)
    }

    /// The files that the kernel would put into the first slot's group.
    fn slot(&self, groups: &mut Groups) -> Group {
        for (file, text) in [
            ("memory.max", ""),
            ("memory.swap.max", ""),
            ("memory.current", "1000000\n"),
            ("memory.events", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n"),
            ("pids.max", ""),
            ("cpu.max", ""),
            ("cgroup.procs", ""),
        ] {
            self.write(&format!("{NAME}/slot-1/{file}"), text);
        }
        groups.slot().unwrap()
    }

    fn of_slot(&self, file: &str) -> String {
        self.read(&format!("{NAME}/slot-1/{file}"))
    }
}

/// Sees which files of some directories are written, in which order.
struct Witness {
    fd: OwnedFd,
    dirs: Vec<(i32, String)>,
}

impl Witness {
    fn of(fake: &Fake, dirs: &[&str]) -> Self {
        use rustix::fs::inotify;
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        let watch = |dir: &&str| {
            fs::create_dir_all(fake.path(dir)).unwrap();
            let written = inotify::WatchFlags::MODIFY;
            (inotify::add_watch(&fd, fake.path(dir), written).unwrap(), (*dir).to_owned())
        };
        let dirs = dirs.iter().map(watch).collect();
        Self { fd, dirs }
    }

    /// Each file once, in the order of the first words written to it.
    fn seen(&self) -> Vec<String> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = rustix::fs::inotify::Reader::new(&self.fd, &mut buffer);
        let mut seen: Vec<String> = Vec::new();
        while let Ok(event) = reader.next() {
            let (_, dir) = self.dirs.iter().find(|(watch, _)| *watch == event.wd()).unwrap();
            let name = event.file_name().unwrap().to_str().unwrap();
            let name = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
            if !seen.contains(&name) {
                seen.push(name);
            }
        }
        seen
    }
}

#[test]
fn a_delegated_group_is_divided_once_nobody_is_in_it() {
    let fake = Fake::new(CONTROLLERS);
    fake.write("cgroup.procs", "77\n78\n");
    let witness = Witness::of(&fake, &["", "mesh-agent"]);
    let groups = fake.groups().unwrap();
    let seen = witness.seen();
    // Who is in a group that hands controllers down has to go first: the kernel refuses it otherwise.
    assert_eq!(seen, ["mesh-agent/cgroup.procs", "cgroup.subtree_control"]);
    assert_eq!(fake.read("mesh-agent/cgroup.procs"), "78", "the last one to be moved");
    for own in ["cgroup.subtree_control", &format!("{NAME}/cgroup.subtree_control")] {
        assert_eq!(fake.read(own), "+memory +pids +cpu");
    }
    assert!(matches!(groups.version, Version::Two(_)));
    // A jail that is started by one that was moved there divides the same group.
    let beside = Hierarchy { controllers: Vec::new(), dir: fake.path("mesh-agent") };
    drop(groups);
    fake.write("cgroup.subtree_control", "");
    Groups::among(&[beside], NAME).unwrap();
    assert_eq!(fake.read("cgroup.subtree_control"), "+memory +pids +cpu");
    assert!(!fake.exists("mesh-agent/mesh-agent"));
}

#[test]
fn the_machines_own_first_group_keeps_its_processes() {
    let fake = Fake::new(CONTROLLERS);
    fs::remove_file(fake.path("cgroup.type")).unwrap();
    fake.write("cgroup.procs", "1\n2\n");
    fake.groups().unwrap();
    assert!(!fake.exists("mesh-agent"), "every process of the machine was to be moved");
    assert_eq!(fake.read("cgroup.subtree_control"), "+memory +pids +cpu");
}

#[test]
fn a_group_that_lacks_a_controller_is_left_alone() {
    for lacking in ["", "cpu memory\n", "cpu pids\n", "memory pids\n", "cpuset memory_recursiveprot pids\n"] {
        let fake = Fake::new(lacking);
        fake.write("cgroup.procs", "77\n");
        let error = fake.groups().err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{lacking:?}");
        let made = ["mesh-agent", NAME, "cgroup.subtree_control"].map(|name| fake.exists(name));
        assert_eq!(made, [false; 3], "{lacking:?}");
    }
}

#[test]
fn a_group_that_was_not_delegated_is_said_to_be_so() {
    // No version 2 at all, or one without the list of its controllers.
    assert_eq!(Groups::among(&[], NAME).err().unwrap().kind(), io::ErrorKind::NotFound);
    let fake = Fake::new(CONTROLLERS);
    fs::remove_file(fake.path("cgroup.controllers")).unwrap();
    assert_eq!(fake.groups().err().unwrap().kind(), io::ErrorKind::NotFound);
    // Somebody else's: what hands the controllers down cannot be written.
    let fake = Fake::new(CONTROLLERS);
    fs::create_dir(fake.path("cgroup.subtree_control")).unwrap();
    assert!(fake.groups().is_err());
    // Divided, but the group of a slot has not what it should.
    let fake = Fake::new(CONTROLLERS);
    let mut groups = fake.groups().unwrap();
    fake.write(&format!("{NAME}/slot-1/memory.events"), "oom_kill 0\n");
    fake.write(&format!("{NAME}/slot-1/memory.max"), "");
    assert_eq!(groups.slot().err().unwrap().kind(), io::ErrorKind::NotFound, "a bound would not hold");
}

#[test]
fn version_one_is_taken_where_it_has_all_and_version_two_otherwise() {
    let (two, one) = (Fake::new(CONTROLLERS), tempfile::tempdir().unwrap());
    let of_one = |name: &str| {
        let dir = one.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        Hierarchy { controllers: vec![name.to_owned()], dir }
    };
    let some = [of_one("memory"), of_one("pids"), two.hierarchy()];
    assert!(matches!(Groups::among(&some, NAME).unwrap().version, Version::Two(_)));
    let all = [of_one("memory"), two.hierarchy(), of_one("pids"), of_one("cpu")];
    assert!(matches!(Groups::among(&all, NAME).unwrap().version, Version::One { .. }));
}

fn bounds(memory: Option<u64>, processes: Option<u64>, cpu_millis: Option<u64>) -> Bounds {
    Bounds { memory, processes, cpu_millis, ..Bounds::default() }
}

#[test]
fn bounds_are_written_in_the_words_of_version_two() {
    let fake = Fake::new(CONTROLLERS);
    let mut groups = fake.groups().unwrap();
    let mut group = fake.slot(&mut groups);
    let witness = Witness::of(&fake, &[&format!("{NAME}/slot-1")]);
    group.bound(&bounds(Some(1 << 20), Some(30), Some(1500))).unwrap();
    let seen = witness.seen();
    let names: Vec<&str> = seen.iter().filter_map(|path| path.rsplit('/').next()).collect();
    // Without swap before there is less memory: nothing is swapped out to make it fit.
    assert_eq!(names, ["memory.swap.max", "memory.max", "pids.max", "cpu.max"]);
    let written = |file: &str| fake.of_slot(file);
    assert_eq!(["memory.swap.max", "memory.max"].map(written), ["0", "1048576"]);
    // Helper and keeper are counted by the kernel and are not the task's.
    assert_eq!(["pids.max", "cpu.max"].map(written), ["32", "150000 100000"]);
    // The same again is not written again; what changes is, to its end.
    group.bound(&bounds(Some(1 << 20), Some(30), Some(1))).unwrap();
    assert_eq!(["memory.max", "pids.max"].map(written), ["1048576", "32"]);
    assert_eq!(written("cpu.max"), "150000 1000001000 100000", "a hundredth of the period at the least");
    group.bound(&Bounds::default()).unwrap();
    assert_eq!(["memory.max", "pids.max"].map(written), ["1048576max", "32max"]);
    assert!(written("cpu.max").ends_with("max 100000"));
    // Where swap is not counted there is nothing to write.
    let fake = Fake::new(CONTROLLERS);
    let mut groups = fake.groups().unwrap();
    drop(fake.slot(&mut groups));
    fs::remove_file(fake.path(&format!("{NAME}/slot-1/memory.swap.max"))).unwrap();
    let dirs = vec![fake.path(&format!("{NAME}/slot-1"))];
    Group::open(dirs, true).unwrap().bound(&bounds(Some(5 << 20), None, None)).unwrap();
    assert_eq!(fake.of_slot("memory.max"), "5242880");
}

#[test]
fn only_a_kill_is_told_as_exhausted_memory() {
    let fake = Fake::new(CONTROLLERS);
    let mut groups = fake.groups().unwrap();
    let mut group = fake.slot(&mut groups);
    let readable = |group: &Group| {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(group.event(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    };
    assert_eq!((group.kills(), readable(&group)), (0, false));
    // The bound was reached, and something was let go.
    let events = format!("{NAME}/slot-1/memory.events");
    fake.write(&events, "low 0\nhigh 0\nmax 12\noom 1\noom_kill 0\noom_group_kill 0\n");
    assert!(readable(&group));
    assert!(!group.take_event(0), "nobody was killed");
    assert!(!readable(&group), "the event was taken");
    fake.write(&events, "low 0\nhigh 0\nmax 40\noom 3\noom_kill 2\noom_group_kill 9\n");
    assert!(readable(&group) && group.take_event(0));
    assert_eq!(group.kills(), 2);
    // Those of a task before this one are not this one's.
    fake.write(&events, "low 0\nhigh 0\nmax 41\noom 3\noom_kill 2\noom_group_kill 9\n");
    assert!(!group.take_event(2));
    // A kernel that does not count says nothing.
    fake.write(&events, "");
    assert_eq!(group.kills(), 0);
}

#[test]
fn what_is_left_in_a_group_of_version_two_is_seen() {
    let fake = Fake::new(CONTROLLERS);
    let mut groups = fake.groups().unwrap();
    let mut group = fake.slot(&mut groups);
    let procs = fake.path(&format!("{NAME}/slot-1/cgroup.procs"));
    assert_eq!(group.lists(), [procs], "one list to join, whatever bounds there are");
    for (inside, clean) in
        [("", true), ("500\n", true), ("500\n501\n", false), ("501\n", false), ("0\n", false)]
    {
        fake.write(&format!("{NAME}/slot-1/cgroup.procs"), inside);
        assert_eq!(group.is_clean(500), clean, "{inside:?}");
    }
    // Files in memory that stay counted: a bound above them fits, one below does not.
    for (most, fits) in [(None, true), (Some(2_000_000), true), (Some(1_000_000), false), (Some(999), false)]
    {
        assert_eq!(group.fits(&bounds(most, None, None)), fits, "{most:?}");
    }
    // A bound that is not lowered was borne already.
    group.bound(&bounds(Some(999_000), None, None)).unwrap();
    assert!(group.fits(&bounds(Some(999_000), None, None)));
    fs::remove_file(fake.path(&format!("{NAME}/slot-1/memory.current"))).unwrap();
    assert!(!group.fits(&bounds(Some(998_000), None, None)), "who cannot look does not say yes");
}
