//! A TCP proxy under the test's control: the cable between an agent and its coordinator.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Forwards connections from its own port to a target, until the test cuts it.
pub struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<Option<String>>,
    cut: AtomicBool,
    stop: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Listens on a free port; connections are closed until there is a target.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind the proxy");
        let address = listener.local_addr().expect("the proxy's address").to_string();
        let shared = Arc::new(Shared {
            target: Mutex::new(None),
            cut: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            streams: Mutex::new(Vec::new()),
        });
        let own = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &own));
        Self { address, shared }
    }

    /// host:port to connect to.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn set_target(&self, target: &str) {
        *self.shared.target.lock().expect("no holder panics") = Some(target.to_owned());
    }

    /// Breaks every connection and refuses new ones.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.flap();
    }

    /// Lets connections through again.
    pub fn heal(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }

    /// Breaks every connection once; new ones pass.
    pub fn flap(&self) {
        for stream in self.shared.streams.lock().expect("no holder panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the accept loop so that it sees the stop.
        let _ = TcpStream::connect(&self.address);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if let Err(error) = forward(client, shared) {
            eprintln!("proxy: {error}");
        }
    }
}

fn forward(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let target = shared.target.lock().expect("no holder panics").clone();
    let (Some(target), false) = (target, shared.cut.load(Ordering::SeqCst)) else {
        return client.shutdown(Shutdown::Both);
    };
    let server = TcpStream::connect(target)?;
    let mut streams = shared.streams.lock().expect("no holder panics");
    streams.push(client.try_clone()?);
    streams.push(server.try_clone()?);
    drop(streams);
    let (client_back, server_back) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || pump(client, server));
    thread::spawn(move || pump(server_back, client_back));
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
