//! A TCP proxy under the test's control: the cable between any two programs, such as an agent and
//! its coordinator, or the coordinator and Postgres. It can break connections, hold their bytes
//! back, lose them in one direction while everything looks open, and be slow.
//!
//! What is said to the [`Proxy`] holds for every connection and for those to come; what is said to
//! a [`Connection`] holds for it alone, until the proxy is told something else. Processes can be
//! spared: their connections pass, whatever happens to the others.
//!
//! ```text
//! client ── reader ─(bounded queue)─ writer ─▶ target      Way::Up
//! client ◀─ writer ─(bounded queue)─ reader ── target      Way::Down
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Pieces of up to [`PIECE`] bytes that one way of one connection holds, before its sender waits.
const PIECES: usize = 64;
const PIECE: usize = 64 * 1024;

/// A direction through the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From who connected to the target.
    Up,
    /// From the target to who connected.
    Down,
}

/// What happens to the bytes of one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Passage {
    #[default]
    Passes,
    /// They wait for the healing, in order and complete.
    Held,
    /// They vanish, and so does the end of the connection.
    Swallowed,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rules {
    up: Passage,
    down: Passage,
    delay: Duration,
}

impl Rules {
    fn of(&self, way: Way) -> Passage {
        match way {
            Way::Up => self.up,
            Way::Down => self.down,
        }
    }

    fn set(&mut self, way: Way, passage: Passage) {
        match way {
            Way::Up => self.up = passage,
            Way::Down => self.down = passage,
        }
    }
}

/// Forwards connections from its own port to a target.
pub struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

/// One living connection through a [`Proxy`].
#[derive(Clone)]
pub struct Connection {
    number: u64,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    target: Option<String>,
    /// New connections are closed at once.
    refuses: bool,
    stopped: bool,
    /// For connections to come.
    rules: Rules,
    links: BTreeMap<u64, Link>,
    taken: u64,
    /// Processes whose connections pass.
    spared: BTreeSet<u32>,
}

impl State {
    /// The connections that what is said to the proxy holds for.
    fn bound(&mut self) -> impl Iterator<Item = &mut Link> {
        self.links.values_mut().filter(|link| !link.spared)
    }
}

struct Link {
    rules: Rules,
    /// Bytes of it are missing: it cannot go on once the cable is whole.
    lossy: bool,
    /// Nothing that is said to the proxy holds for it.
    spared: bool,
    /// Ways that have not come to their end.
    open: u8,
    streams: [TcpStream; 2],
}

impl Link {
    fn close(&self) {
        for stream in &self.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Proxy {
    /// Listens on a free port of the loopback; connections are closed until there is a target.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind the proxy");
        let address = listener.local_addr().expect("the proxy's address").to_string();
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &own));
        Self { address, shared }
    }

    /// A cable to `target` (host:port).
    pub fn to(target: &str) -> Self {
        let proxy = Self::start();
        proxy.set_target(target);
        proxy
    }

    /// host:port to connect to.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where connections lead that are made from now on.
    pub fn set_target(&self, target: &str) {
        self.shared.lock().target = Some(target.to_owned());
    }

    /// Breaks every connection and refuses new ones, until it is healed.
    pub fn cut(&self) {
        self.shared.lock().refuses = true;
        self.flap();
    }

    /// Breaks every connection once; new ones pass.
    pub fn flap(&self) {
        self.shared.change(|state| state.bound().for_each(|link| link.close()));
    }

    /// Keeps the bytes of one way back until it is healed; then they go on, none missing.
    pub fn hold(&self, way: Way) {
        self.set(way, Passage::Held);
    }

    /// Loses what goes this way, the ends of connections too, while all of them stay open: half of
    /// a partition. At the healing those that lost something are broken.
    pub fn swallow(&self, way: Way) {
        self.set(way, Passage::Swallowed);
    }

    /// Loses everything, both ways, while all connections stay open: a partition.
    pub fn partition(&self) {
        self.swallow(Way::Up);
        self.swallow(Way::Down);
    }

    fn set(&self, way: Way, passage: Passage) {
        self.shared.change(|state| {
            state.rules.set(way, passage);
            state.bound().for_each(|link| link.rules.set(way, passage));
        });
    }

    /// Lets every byte arrive so much later, both ways. Zero: at once.
    pub fn delay(&self, by: Duration) {
        self.shared.change(|state| {
            state.rules.delay = by;
            state.bound().for_each(|link| link.rules.delay = by);
        });
    }

    /// Makes the cable whole again. A delay stays.
    pub fn heal(&self) {
        self.shared.change(|state| {
            state.refuses = false;
            let whole = Rules { delay: state.rules.delay, ..Rules::default() };
            state.rules = whole;
            state.bound().for_each(|link| link.heal(whole));
        });
    }

    /// Lets what this process has and will have through the cable pass from now on.
    pub fn spare(&self, pid: u32) {
        self.shared.change(|state| {
            state.spared.insert(pid);
            for link in state.links.values_mut() {
                link.spared |= owns(pid, &link.streams[0]);
            }
        });
    }

    /// The living connections, the oldest first.
    pub fn connections(&self) -> Vec<Connection> {
        let numbers: Vec<u64> = self.shared.lock().links.keys().copied().collect();
        let connection = |number| Connection { number, shared: Arc::clone(&self.shared) };
        numbers.into_iter().map(connection).collect()
    }

    /// How many connections were made through it so far; refused ones count.
    pub fn taken(&self) -> u64 {
        self.shared.lock().taken
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.cut();
        // Wakes the accept loop so that it sees the stop.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Connection {
    /// Breaks it.
    pub fn cut(&self) {
        self.change(|link| link.close());
    }

    /// As [`Proxy::hold`], for it alone.
    pub fn hold(&self, way: Way) {
        self.change(|link| link.rules.set(way, Passage::Held));
    }

    /// As [`Proxy::swallow`], for it alone.
    pub fn swallow(&self, way: Way) {
        self.change(|link| link.rules.set(way, Passage::Swallowed));
    }

    /// As [`Proxy::heal`], for it alone.
    pub fn heal(&self) {
        self.change(|link| link.heal(Rules { delay: link.rules.delay, ..Rules::default() }));
    }

    fn change(&self, change: impl FnOnce(&mut Link)) {
        self.shared.change(|state| {
            if let Some(link) = state.links.get_mut(&self.number) {
                change(link);
            }
        });
    }
}

impl Link {
    fn heal(&mut self, rules: Rules) {
        self.rules = rules;
        if self.lossy {
            self.close();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until a piece that came at `at` may go on, or not; `false` when it is lost.
    fn admits(&self, number: u64, way: Way, at: Instant) -> bool {
        let mut state = self.lock();
        loop {
            let stopped = state.stopped;
            let Some(link) = state.links.get_mut(&number).filter(|_| !stopped) else { return false };
            let left = (at + link.rules.delay).saturating_duration_since(Instant::now());
            match link.rules.of(way) {
                Passage::Swallowed => {
                    link.lossy = true;
                    return false;
                }
                Passage::Passes if left.is_zero() => return true,
                Passage::Passes => {
                    state = self.changed.wait_timeout(state, left).expect("no holder panics").0;
                }
                Passage::Held => state = self.changed.wait(state).expect("no holder panics"),
            }
        }
    }

    /// A way came to its end by itself. Nobody hears of that through a broken cable.
    fn ended(&self, number: u64, way: Way, at: Instant, to: &TcpStream) {
        while !self.admits(number, way, at) {
            let mut state = self.lock();
            while state.links.get(&number).is_some_and(|link| link.rules.of(way) == Passage::Swallowed)
                && !state.stopped
            {
                state = self.changed.wait(state).expect("no holder panics");
            }
            if state.stopped || !state.links.contains_key(&number) {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
        let mut state = self.lock();
        if let Some(link) = state.links.get_mut(&number) {
            link.open -= 1;
            if link.open == 0 {
                state.links.remove(&number);
            }
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.lock().stopped {
            return;
        }
        let Ok(client) = client else { continue };
        if let Err(error) = forward(client, shared) {
            eprintln!("proxy: {error}");
        }
    }
}

fn forward(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let (number, target, passes) = {
        let mut state = shared.lock();
        state.taken += 1;
        let passes = state.spared.iter().any(|pid| owns(*pid, &client));
        (state.taken, state.target.clone().filter(|_| passes || !state.refuses), passes)
    };
    let Some(target) = target else { return client.shutdown(Shutdown::Both) };
    let server = TcpStream::connect(target)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let link = |rules| -> io::Result<Link> {
        let streams = [client.try_clone()?, server.try_clone()?];
        Ok(Link { rules, lossy: false, spared: passes, open: 2, streams })
    };
    {
        let mut state = shared.lock();
        let link = link(if passes { Rules::default() } else { state.rules })?;
        if state.refuses && !passes {
            link.close();
        }
        state.links.insert(number, link);
    }
    let (client_back, server_back) = (client.try_clone()?, server.try_clone()?);
    pump(shared, number, Way::Up, client, server);
    pump(shared, number, Way::Down, server_back, client_back);
    Ok(())
}

/// A piece and when it came; none is the end.
type Piece = (Instant, Option<Vec<u8>>);

fn pump(shared: &Arc<Shared>, number: u64, way: Way, from: TcpStream, to: TcpStream) {
    let (send, receive) = sync_channel(PIECES);
    let shared = Arc::clone(shared);
    let small = || thread::Builder::new().stack_size(256 * 1024);
    small().spawn(move || read(from, &send)).expect("start a thread");
    small().spawn(move || write(&shared, number, way, to, &receive)).expect("start a thread");
}

fn read(mut from: TcpStream, send: &SyncSender<Piece>) {
    let mut buffer = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if send.send((Instant::now(), Some(buffer[..length].to_vec()))).is_err() {
            return;
        }
    }
    let _ = send.send((Instant::now(), None));
}

fn write(shared: &Shared, number: u64, way: Way, mut to: TcpStream, pieces: &Receiver<Piece>) {
    for (at, piece) in pieces {
        let Some(piece) = piece else { return shared.ended(number, way, at, &to) };
        if shared.admits(number, way, at) && to.write_all(&piece).is_err() {
            // Whoever still sends this way is told that nobody listens.
            shared.change(|state| state.links.get(&number).into_iter().for_each(Link::close));
        }
    }
}

/// Whether the far end of a loopback connection belongs to a process.
fn owns(pid: u32, stream: &TcpStream) -> bool {
    let (Ok(near), Ok(far)) = (stream.local_addr(), stream.peer_addr()) else { return false };
    let (from, to) = (format!(":{:04X}", far.port()), format!(":{:04X}", near.port()));
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let inode = table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, remote) = (fields.nth(1)?, fields.next()?);
        // State, queues, timer, retransmissions, user, timeout, inode.
        (local.ends_with(&from) && remote.ends_with(&to)).then(|| fields.nth(6))?
    });
    let Some(socket) = inode.map(|inode| format!("socket:[{inode}]")) else { return false };
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path.as_os_str() == socket.as_str()))
}
