//! The jail's event loop: one thread, one epoll. A turn takes each ready descriptor once, so a
//! task that never stops writing costs the others one piece each; then what is due, then what
//! is to be sent. Holds every attempt until the daemon forgets it.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    time::Duration,
};

use mesh_proto::ids::AttemptKey;
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    io::Errno,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec},
};

use super::{
    clock,
    conn::{Conn, ConnError},
    keepers::Keepers,
    line::Line,
    log,
    plan::Facts,
    protocol::{Call, Event, ExitCause, ExitRecord, Killer, Message, Op, Probe},
    rooms::Rooms,
    running::{Post, Running, Source},
    slot::Slots,
    spool::Buffer,
    sweep,
    sys::{self, Signals},
};

mod calls;
mod turn;

use calls::unstarted;

/// How long a jail with nothing to do waits for a daemon.
const IDLE: Duration = Duration::from_mins(1);
/// How long an ending jail waits for a daemon to take what it was told.
const FAREWELL: Duration = Duration::from_secs(5);
/// As long as so many stand in line behind an attempt, its end is in no hurry.
const CALM: usize = 3;
/// How long what is in no hurry may wait to be sent along with something else.
const LINGER: Duration = Duration::from_millis(2);
/// How soon it looks again for what a killed keeper left.
const SWEEP: Duration = Duration::from_millis(5);
/// Connections that have not greeted yet.
const STRANGERS: usize = 8;
/// Events taken in one turn.
const TURN: usize = 128;

const LISTENER: u64 = u64::MAX;
const SIGNALS: u64 = u64::MAX - 1;
const TIMER: u64 = u64::MAX - 2;
/// Marks the number of a connection.
const CONN: u64 = 1 << 63;
/// Marks the process number of a standing keeper; the others are attempts, two bits for the source.
const KEEPER: u64 = 1 << 62;

/// What the loop is given.
pub struct Options {
    /// The jail's own directory: hidden from every task.
    pub dir: PathBuf,
    pub facts: Facts,
    pub probe: Probe,
    pub orphan_timeout: Duration,
    pub slots: Slots,
}

/// Everything that the jail knows.
pub struct Server {
    options: Options,
    listener: UnixListener,
    epoll: OwnedFd,
    signals: OwnedFd,
    timer: OwnedFd,
    armed: Option<Duration>,
    null: OwnedFd,
    running: HashMap<u64, Running>,
    /// Dead keepers' attempts whose processes may live on.
    limbo: Vec<Running>,
    sweep_at: Option<Duration>,
    known: HashMap<AttemptKey, Known>,
    line: Line,
    /// Before the connections: who sees them close finds nothing left of a jail that has ended.
    rooms: Rooms,
    keepers: Keepers,
    conns: HashMap<u64, Conn>,
    daemon: Option<u64>,
    /// Since when no daemon is connected.
    alone_since: Option<Duration>,
    idle_since: Duration,
    ending: bool,
    /// Until when what lives on a lease may live, as far as a daemon said.
    lease: Duration,
    next: u64,
    buffer: Buffer,
    /// Something is to be sent at once.
    hurry: bool,
    /// When what is in no hurry is to be sent.
    linger: Option<Duration>,
}

/// What is known of an attempt.
enum Known {
    Running(u64),
    Ended(ExitRecord),
}

impl Server {
    /// Ready to run; signals must be blocked already, as `entry` does.
    pub fn new(options: Options, listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let signals = Signals::of(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT]).descriptor()?;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        epoll::add(&epoll, &signals, EventData::new_u64(SIGNALS), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        let now = clock::boot();
        let keepers = Keepers::new(options.facts);
        let rooms = Rooms::new(options.facts.nofile);
        Ok(Self {
            options,
            listener,
            epoll,
            signals,
            timer,
            armed: None,
            null: std::fs::File::open("/dev/null")?.into(),
            running: HashMap::new(),
            limbo: Vec::new(),
            sweep_at: None,
            known: HashMap::new(),
            line: Line::default(),
            conns: HashMap::new(),
            daemon: None,
            alone_since: Some(now),
            idle_since: now,
            ending: false,
            lease: Duration::ZERO,
            next: 0,
            buffer: Buffer::new(),
            hurry: false,
            linger: None,
            rooms,
            keepers,
        })
    }

    /// Turns until there is nothing left to do.
    pub fn run(mut self) -> io::Result<()> {
        let mut ready = [MaybeUninit::uninit(); TURN];
        loop {
            if self.hurry || self.linger.is_some_and(|at| at <= clock::boot()) {
                self.flush();
            }
            if self.finished() {
                return Ok(());
            }
            self.arm()?;
            let events = match epoll::wait(&self.epoll, &mut ready, None) {
                Ok((events, _)) => events,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in events {
                let (data, flags) = (event.data.u64(), event.flags);
                self.take(data, flags);
            }
            self.tick();
        }
    }

    fn take(&mut self, data: u64, flags: EventFlags) {
        match data {
            LISTENER => self.accept(),
            SIGNALS => self.take_signals(),
            TIMER => {
                let _count = rustix::io::read(&self.timer, &mut [0; 8]);
                self.armed = None;
            }
            data if data & CONN != 0 => self.serve(data, flags),
            data if data & KEEPER != 0 => self.hear_keeper((data ^ KEEPER) as i32, flags),
            data => {
                let source = match data & 3 {
                    0 => Source::Control,
                    1 => Source::Stdout,
                    2 => Source::Stderr,
                    _ => Source::Memory,
                };
                self.attend(data >> 2, source, flags);
            }
        }
    }

    /// A descriptor of an attempt is ready.
    fn attend(&mut self, number: u64, source: Source, flags: EventFlags) {
        let Some(running) = self.running.get_mut(&number) else { return };
        match source {
            Source::Control => {
                running.listen();
                if flags.contains(EventFlags::HUP) {
                    // The keeper is dying; it may take long to end what it kept.
                    running.unwatch_control(self.epoll.as_fd());
                }
            }
            Source::Memory => running.out_of_memory(),
            Source::Stdout | Source::Stderr => running.pump(source, &mut self.buffer),
        }
    }

    /// A standing keeper has something to say.
    fn hear_keeper(&mut self, pid: i32, flags: EventFlags) {
        let kept = self.running.iter_mut().find(|(_, running)| running.keeper().pid == pid);
        let Some((&number, running)) = kept else {
            if let Some(odd) = self.keepers.mistrust(pid) {
                let _gone = epoll::delete(&self.epoll, odd.socket());
            }
            return;
        };
        running.listen();
        if flags.contains(EventFlags::HUP) {
            running.unwatch_control(self.epoll.as_fd());
        } else if running.is_over()
            && let Some(running) = self.running.remove(&number)
        {
            self.finish(running);
        }
    }

    fn take_signals(&mut self) {
        let mut info = [0; 128];
        while let Ok(128) = rustix::io::read(&self.signals, &mut info) {
            // The first field is the signal's number.
            let signal = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            if signal != libc::SIGCHLD {
                log("told to end by a signal: ending all tasks");
                self.shut(Killer::Request);
            }
        }
        while let Ok(Some(dead)) = sys::reap() {
            if self.options.slots.buried(dead.pid) || self.keepers.buried(dead.pid) {
                continue;
            }
            for running in self.running.values_mut().filter(|running| running.helper() == Some(dead.pid)) {
                running.lose_helper();
            }
            let number = self.running.iter().find(|(_, running)| running.keeper().pid == dead.pid);
            if let Some((&number, _)) = number
                && let Some(mut running) = self.running.remove(&number)
            {
                if running.buried(&dead) {
                    self.unwatch(&running);
                    self.limbo.push(running);
                    self.sweep_at = Some(Duration::ZERO);
                } else {
                    self.finish(running);
                }
            }
        }
    }

    fn unwatch(&self, running: &Running) {
        for (_, fd) in running.sources() {
            let _gone = epoll::delete(&self.epoll, fd);
        }
    }

    fn finish(&mut self, mut running: Running) {
        // The slot goes on; what is the attempt's alone leaves the event loop when it is closed.
        for (_, fd) in running.sources().filter(|(source, _)| *source == Source::Memory) {
            let _gone = epoll::delete(&self.epoll, fd);
        }
        let attempt = running.attempt;
        // A daemon that has enough in line here need not be woken for each.
        let hurried = self.hurry;
        let calm = self.line.behind(attempt) >= CALM;
        if let Some(started) = running.announce_late() {
            self.tell(&Event::Started(started));
        }
        let (mut record, post) = running.finish(&mut self.buffer);
        record.untouched = self.rooms.is_untouched(attempt);
        self.ended(record);
        if calm {
            self.hurry = hurried;
        }
        self.give_back(post);
        self.go_on(attempt);
    }

    fn give_back(&mut self, post: Post) {
        match post {
            Post::Nobody => {}
            Post::Slot(slot) => self.options.slots.give_back(slot),
            Post::Keeper(standing) => self.keepers.give_back(standing),
        }
    }

    fn ended(&mut self, record: ExitRecord) {
        self.known.insert(record.attempt, Known::Ended(record.clone()));
        self.tell(&Event::Ended(record));
        self.idle_since = clock::boot();
    }

    fn tell(&mut self, event: &Event) {
        if let Some(number) = self.daemon {
            self.send(number, &Message::Event(event.clone()));
        }
    }

    fn send(&mut self, number: u64, message: &Message) {
        self.hurry = true;
        self.linger.get_or_insert_with(|| clock::boot() + LINGER);
        let Some(conn) = self.conns.get_mut(&number) else { return };
        if let Err(error) = conn.send(message) {
            self.close(number, &error);
        }
    }

    fn close(&mut self, number: u64, reason: &ConnError) {
        if let Some(conn) = self.conns.remove(&number) {
            let _gone = epoll::delete(&self.epoll, conn.fd());
            if !matches!(reason, ConnError::Closed) {
                log(&format!("connection closed: {reason}"));
            }
        }
        if self.daemon == Some(number) {
            self.daemon = None;
            // Only who asked for them knows of them.
            self.line.clear();
            let now = clock::boot();
            self.alone_since = Some(now);
            self.idle_since = now;
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let peer = rustix::net::sockopt::socket_peercred(&stream);
            if !peer.is_ok_and(|peer| peer.uid.as_raw() == self.options.facts.uid) {
                log("a stranger's connection was refused");
                continue;
            }
            let Ok(conn) = Conn::new(stream) else { continue };
            let strangers: Vec<u64> =
                self.conns.iter().filter(|(_, conn)| !conn.greeted).map(|(&number, _)| number).collect();
            if strangers.len() >= STRANGERS
                && let Some(&oldest) = strangers.iter().min()
            {
                self.close(oldest, &ConnError::Slow);
            }
            self.next += 1;
            let number = self.next | CONN;
            if epoll::add(&self.epoll, conn.fd(), EventData::new_u64(number), EventFlags::IN).is_ok() {
                self.conns.insert(number, conn);
            }
        }
    }

    fn serve(&mut self, number: u64, flags: EventFlags) {
        self.hurry |= flags.contains(EventFlags::OUT);
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR)
            && let Err(error) = self.hear(number)
        {
            self.close(number, &error);
        }
    }

    fn hear(&mut self, number: u64) -> Result<(), ConnError> {
        let Some(conn) = self.conns.get_mut(&number) else { return Ok(()) };
        conn.fill()?;
        if conn.greet()? {
            self.hurry = true;
            if let Some(older) = self.daemon.replace(number) {
                self.daemon = None;
                self.close(older, &ConnError::Closed);
                self.daemon = Some(number);
            }
            self.alone_since = None;
            self.line.clear();
            self.replay(number);
        }
        while let Some(conn) = self.conns.get_mut(&number) {
            if !conn.greeted {
                break;
            }
            let Some(Call { id, op }) = conn.next_call()? else { break };
            let hurried = self.hurry;
            let calm = matches!(&op, Op::Clear { .. })
                || matches!(&op, Op::Start(request) if request.after.is_some());
            let (answer, events) = self.perform(op);
            self.send(number, &Message::Answer { id, answer });
            if calm {
                self.hurry = hurried;
            }
            for event in events {
                self.send(number, &Message::Event(event));
            }
        }
        Ok(())
    }

    fn replay(&mut self, number: u64) {
        let events: Vec<Event> = self.known.keys().filter_map(|&attempt| self.event_of(attempt)).collect();
        for event in events {
            self.send(number, &Message::Event(event));
        }
    }

    /// What there is to tell of an attempt.
    fn event_of(&self, attempt: AttemptKey) -> Option<Event> {
        match self.known.get(&attempt)? {
            Known::Ended(record) => Some(Event::Ended(record.clone())),
            Known::Running(number) => self.live(*number)?.started().map(Event::Started),
        }
    }

    fn live(&self, number: u64) -> Option<&Running> {
        self.running.get(&number)
    }

    fn shut(&mut self, killer: Killer) {
        self.ending = true;
        self.idle_since = clock::boot();
        for attempt in self.line.clear() {
            self.ended(unstarted(attempt, ExitCause::Killed, killer));
        }
        for running in self.running.values_mut() {
            running.shut(killer);
        }
    }

    /// What is due by the clock.
    fn tick(&mut self) {
        let now = clock::boot();
        let mut started = Vec::new();
        for running in self.running.values_mut() {
            running.tick(now);
            started.extend(running.announce(now));
        }
        for started in started {
            self.tell(&Event::Started(started));
        }
        while let Some(attempt) = self.line.overdue(now) {
            self.send_back(attempt);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            let running = self.running.values();
            let kept = running.flat_map(|running| [Some(running.keeper().pid), running.helper()]).flatten();
            let keepers: Vec<i32> =
                kept.chain(self.options.slots.helpers()).chain(self.keepers.pids()).collect();
            if sweep::kill_orphans(std::process::id() as i32, &keepers) {
                self.sweep_at = Some(now + SWEEP);
            } else {
                self.sweep_at = None;
                for running in std::mem::take(&mut self.limbo) {
                    self.finish(running);
                }
            }
        }
        if let Some(since) = self.alone_since
            && !self.ending
            && !self.running.is_empty()
            && now.saturating_sub(since) >= self.options.orphan_timeout
        {
            log("no daemon came for too long: ending all tasks");
            self.shut(Killer::Orphaned);
        }
    }

    fn at_rest(&self) -> bool {
        self.running.is_empty() && self.limbo.is_empty()
    }

    /// Whether the jail has nothing left to do.
    fn finished(&self) -> bool {
        if !self.at_rest() {
            return false;
        }
        let rested = clock::boot().saturating_sub(self.idle_since);
        if self.ending {
            // What was told is to be taken, by a daemon that takes it.
            return rested >= FAREWELL || !self.conns.values().any(Conn::waits);
        }
        self.daemon.is_none() && rested >= IDLE
    }

    /// Sets the timer to the next thing that is due.
    fn arm(&mut self) -> io::Result<()> {
        let attempts = self.running.values().flat_map(Running::due);
        let alone = match (self.at_rest(), self.ending, self.alone_since) {
            (true, true, _) => Some(self.idle_since + FAREWELL),
            (true, false, Some(_)) => Some(self.idle_since + IDLE),
            (false, false, Some(since)) => Some(since.saturating_add(self.options.orphan_timeout)),
            (true | false, false, None) | (false, true, _) => None,
        };
        let next = attempts.chain(self.line.due()).chain(self.linger).chain(self.sweep_at).chain(alone).min();
        // One that is too early costs a turn at most; setting it anew costs as much for each task.
        if next == self.armed || self.armed.is_some_and(|armed| next.is_none_or(|next| armed <= next)) {
            return Ok(());
        }
        // Zero would disarm it.
        let at = next.map(|at| at.max(Duration::from_nanos(1))).unwrap_or_default();
        let at = Timespec {
            tv_sec: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: at.subsec_nanos().into(),
        };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)?;
        self.armed = next;
        Ok(())
    }

    /// Sends what waits; asks to be woken for what the other side does not take now.
    fn flush(&mut self) {
        (self.hurry, self.linger) = (false, None);
        let mut closed = Vec::new();
        for (&number, conn) in &mut self.conns {
            let result = conn.flush().and_then(|left| {
                if std::mem::replace(&mut conn.watched, left) == left {
                    return Ok(());
                }
                let flags = if left { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
                epoll::modify(&self.epoll, conn.fd(), EventData::new_u64(number), flags)
                    .map_err(|error| ConnError::Io(error.into()))
            });
            if let Err(error) = result {
                closed.push((number, error));
            }
        }
        for (number, error) in closed {
            self.close(number, &error);
        }
    }
}
