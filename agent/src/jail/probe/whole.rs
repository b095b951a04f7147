//! All of level strict together, tried by a shell: each way in which a task may be kept here.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::io::Errno;

use super::{
    super::{
        held::Held,
        keeper::{self, Stdio, Word},
        keepers::{Seat, Standing},
        plan::{self, Facts, Ground, Places, Plan, Step, System},
        protocol::{Bounds, Level, Limits, Mount, StartRequest},
        slot,
        standing::News,
        sys,
    },
    request,
};

/// What a shell must find inside: itself, room to work, no way to what is outside, no power.
const INSIDE: &str = r#"
set -e
: > file
: > /tmp/file
[ $$ -lt 9 ] || exit 10
[ ! -e "$1" ] || exit 11
if (: > /usr/mesh-probe) 2>/dev/null; then exit 12; fi
if (: > /mesh-probe) 2>/dev/null; then exit 13; fi
while read -r key value rest; do
    case $key in
        Uid:) [ "$value" != 0 ] || exit 14 ;;
        CapPrm: | CapEff: | CapBnd: | CapAmb:) [ "$value" = 0000000000000000 ] || exit 15 ;;
        NoNewPrivs:) [ "$value" = 1 ] || exit 16 ;;
        Seccomp:) [ "$value" = 2 ] || exit 17 ;;
    esac
done < /proc/self/status
"#;

/// What it ends with when the agent's own directory is there.
const SEEN: i32 = 11;

/// Runs a shell at level strict. The error is for people.
pub(super) fn everything(dir: &Path, facts: &Facts, system: &System, tree: &Path) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let (attempt_dir, work_dir) = (dir.join("probe"), dir.join("probe-work"));
    for dir in [&attempt_dir, &work_dir] {
        fs::create_dir_all(dir).map_err(text)?;
    }
    let mut request =
        request(&["/bin/sh", "-c", INSIDE, "sh", &dir.to_string_lossy()], &work_dir, &attempt_dir, facts);
    std::os::unix::fs::chown(&work_dir, request.uid, request.gid).map_err(text)?;
    let facts = Facts { strongest: Level::Strict, limits: Limits::Rlimit, ..*facts };
    let mut result = shell(&request, &facts, system, tree);
    if result.is_ok() && facts.uid == 0 {
        // With a mount, a task has a keeper of its own.
        let source = work_dir.clone();
        request.mounts.push(Mount { source, to: "/mnt".into(), read_only: true, owner: None });
        result = shell(&request, &facts, system, tree);
    }
    for dir in [attempt_dir, work_dir] {
        fs::remove_dir_all(dir).map_err(text)?;
    }
    result
}

fn shell(request: &StartRequest, facts: &Facts, system: &System, tree: &Path) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let hidden: Vec<PathBuf> = Vec::new();
    let places =
        Places { work_dir: request.work_dir.clone(), attempt_dir: request.attempt_dir.clone(), hidden };
    let plan = plan::plan(request, &places, facts).map_err(|error| error.to_string())?;
    let ground = Ground::of(request, facts).ok_or("no ground")?;
    if ground.stands {
        return standing(request, &plan, ground, facts, system, tree);
    }
    let null = File::options().read(true).write(true).open("/dev/null").map_err(text)?;
    let said = File::create(request.attempt_dir.join("said")).map_err(text)?;
    let (ours, theirs) = keeper::control().map_err(|error| text(error.into()))?;
    let mut slot = slot::make(facts, system, tree, &ground, Held::by(None), null.as_fd())?;
    let stdio =
        Stdio { stdin: null.as_fd(), stdout: said.as_fd(), stderr: said.as_fd(), control: theirs.as_fd() };
    let started = slot.start(&plan, &Bounds::default(), &stdio);
    let result = started.and_then(|keeper| {
        let buried = rustix::process::waitid(
            rustix::process::WaitId::PidFd(keeper.pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
        buried.map_err(|error| text(error.into()))?;
        let words = std::iter::from_fn(|| keeper::hear(ours.as_fd()));
        let died = Err("its keeper died".to_owned());
        words.filter_map(|word| verdict(word, request, &plan)).last().unwrap_or(died)
    });
    slot.end();
    result
}

/// What a keeper's word says of such a shell, if it is a last one.
fn verdict(word: Word, request: &StartRequest, plan: &Plan) -> Option<Result<(), String>> {
    let failed = |what: &str, errno: Errno| Err(format!("{what}: {}", io::Error::from(errno)));
    Some(match word {
        Word::Process(_) | Word::Runs => return None,
        Word::Ended(0) => Ok(()),
        Word::Ended(status) => {
            if sys::code_of(status) == SEEN {
                return Some(Err("the agent's own directory is seen there".to_owned()));
            }
            let said = fs::read_to_string(request.attempt_dir.join("said")).unwrap_or_default();
            Err(format!("status {}, saying {:?}", sys::code_of(status), said.trim()))
        }
        Word::StepFailed { step, errno } => {
            failed(plan.steps.get(step).map_or("setting it up", Step::describe), errno)
        }
        Word::NoExec(errno) => failed("/bin/sh", errno),
        Word::TooMuch { .. } => Err("its directory is full".to_owned()),
        Word::TooMuchWaits => Err("its sockets are full".to_owned()),
    })
}

/// The same, two of them one after the other, under a keeper that stands.
fn standing(
    request: &StartRequest,
    plan: &Plan,
    ground: Ground,
    facts: &Facts,
    system: &System,
    tree: &Path,
) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let null = File::open("/dev/null").map_err(text)?;
    let steps: Rc<[Step]> =
        plan::ground(&ground, system, tree, &[], facts).map_err(|error| error.to_string())?.into();
    let made = Standing::make(Seat::Slot(ground), facts, steps, Held::by(None), null.as_fd());
    let mut standing = made.map_err(|error| text(error.into()))?;
    let result = (0..2).try_for_each(|_| serve(&mut standing, request, plan));
    standing.end();
    result
}

/// One of them.
fn serve(standing: &mut Standing, request: &StartRequest, plan: &Plan) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let said = File::create(request.attempt_dir.join("said")).map_err(text)?;
    standing.start(plan, &Bounds::default(), said.as_fd(), said.as_fd())?;
    while !standing.is_free() {
        standing.wait().map_err(|error| text(error.into()))?;
        let told = standing.hear();
        if told.is_empty() {
            return Err("its keeper died".to_owned());
        }
        for news in told {
            match news {
                News::Runs { .. } | News::Over(_) => {}
                News::Said(word) => verdict(word, request, plan).unwrap_or(Ok(()))?,
                News::Unready { step, errno } => {
                    return Err(format!("{}: {}", standing.describe(step), io::Error::from(errno)));
                }
            }
        }
    }
    Ok(())
}
