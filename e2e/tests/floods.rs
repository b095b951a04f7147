//! HTTP/2 as nobody should speak it, against both ports of a real coordinator: its memory stays
//! bounded, it lives, and who means well is answered as before.
//!
//! On the port for joining the attacker is a stranger, on the other one a member gone bad. Frames are
//! written by hand: no library would send these.

use std::{
    fs,
    io::{self, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mesh_certs::{ChannelOptions, ClientTls, Credential};
use mesh_e2e::Mesh;
use mesh_proto::v1::{
    GetStatusRequest, SubmitJobRequest, jobs_client::JobsClient, nodes_client::NodesClient,
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tonic::transport::Channel;

/// Connections that attack at the same time.
const ATTACKERS: usize = 4;
/// How long each attack goes on.
const ATTACK: Duration = Duration::from_secs(3);
/// What all of an attack may cost the coordinator in memory: the windows of its connections, and
/// what the allocator keeps.
const MEMORY: u64 = 96 * 1024 * 1024;
/// What is always borne: attackers, coordinator and database share this machine's processors.
const BORNE: Duration = Duration::from_millis(250);
/// A call that takes so long never ends.
const STUCK: Duration = Duration::from_secs(30);
/// The least that counts as an attack.
const BYTES: u64 = 1024 * 1024;

/// An attacker checks nobody.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn tls(member: Option<&Credential>) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match member {
        None => builder.with_no_client_auth(),
        Some(credential) => {
            let cert = CertificateDer::from_pem_slice(credential.cert.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(credential.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

// The frames of HTTP/2 that are needed here (RFC 9113).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

fn frame(into: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    into.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    into.extend_from_slice(&[kind, flags]);
    into.extend_from_slice(&stream.to_be_bytes());
    into.extend_from_slice(payload);
}

/// A literal header that is not indexed, its name in full (HPACK).
fn literal(into: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    into.push(0);
    into.push(name.len() as u8);
    into.extend_from_slice(name);
    length(into, 7, 0, value.len());
    into.extend_from_slice(value);
}

/// A number with a prefix of so many bits.
fn length(into: &mut Vec<u8>, bits: u32, first: u8, mut value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        into.push(first | value as u8);
        return;
    }
    into.push(first | most as u8);
    value -= most;
    while value >= 128 {
        into.push(0x80 | (value % 128) as u8);
        value /= 128;
    }
    into.push(value as u8);
}

/// The head of a call as gRPC makes it.
fn request(path: &str) -> Vec<u8> {
    // POST and https, from the static table.
    let mut block = vec![0x83, 0x87];
    literal(&mut block, b":path", path.as_bytes());
    literal(&mut block, b":authority", b"mesh");
    literal(&mut block, b"content-type", b"application/grpc");
    literal(&mut block, b"te", b"trailers");
    block
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// Calls that are taken back as soon as they are made.
    RapidReset,
    /// A head that never ends.
    Continuation,
    /// Frames that carry nothing, on a call that stays open.
    EmptyData,
    /// One large header, referred to again and again.
    HeaderBomb,
    /// Questions that have to be answered, by one who reads no answer.
    Pings,
    /// The same with settings.
    Settings,
    /// As many calls as there may be, each but its last byte.
    HalfRequests,
}

impl Attack {
    const ALL: [Self; 7] = [
        Self::RapidReset,
        Self::Continuation,
        Self::EmptyData,
        Self::HeaderBomb,
        Self::Pings,
        Self::Settings,
        Self::HalfRequests,
    ];

    /// The next piece of it; streams are numbered on.
    fn piece(self, path: &str, streams: &mut u32, first: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut stream = || {
            *streams += 2;
            *streams - 1
        };
        match self {
            Self::RapidReset => {
                for _ in 0..64 {
                    let id = stream();
                    frame(&mut bytes, HEADERS, END_HEADERS, id, &request(path));
                    frame(&mut bytes, RST_STREAM, 0, id, &8_u32.to_be_bytes());
                }
            }
            Self::Continuation => {
                let mut block = Vec::new();
                literal(&mut block, b"x-more", &[b'a'; 8 * 1024]);
                if first {
                    frame(&mut bytes, HEADERS, 0, stream(), &request(path));
                }
                frame(&mut bytes, CONTINUATION, 0, 1, &block);
            }
            Self::EmptyData => {
                if first {
                    frame(&mut bytes, HEADERS, END_HEADERS, stream(), &request(path));
                }
                (0..512).for_each(|_| frame(&mut bytes, DATA, 0, 1, &[]));
            }
            Self::HeaderBomb => {
                let mut block = request(path);
                // Into the dynamic table, where it is number 62 (0x3e); then ten thousand times that number.
                block.extend_from_slice(&[0x40, 6]);
                block.extend_from_slice(b"x-bomb");
                length(&mut block, 7, 0, 3_000);
                block.extend_from_slice(&[b'b'; 3_000]);
                block.resize(block.len() + 10_000, 0x80 | 0x3e);
                frame(&mut bytes, HEADERS, END_HEADERS, stream(), &block);
            }
            Self::Pings => (0..512).for_each(|_| frame(&mut bytes, PING, 0, 0, &[7; 8])),
            Self::Settings => {
                // The largest frame, 16384, again and again.
                (0..512).for_each(|_| frame(&mut bytes, SETTINGS, 0, 0, &[0, 5, 0, 0, 0x40, 0]));
            }
            Self::HalfRequests => {
                let id = stream();
                frame(&mut bytes, HEADERS, END_HEADERS, id, &request(path));
                let mut message = vec![0; 5 + 16_000 - 5];
                message[3..5].copy_from_slice(&16_000_u16.to_be_bytes());
                frame(&mut bytes, DATA, 0, id, &message);
            }
        }
        bytes
    }
}

/// What was really sent, over all connections.
#[derive(Default)]
struct Sent {
    bytes: AtomicU64,
    connections: AtomicU64,
}

/// One connection that attacks until it is closed, or until everything is over.
fn attack(
    attack: Attack,
    address: &str,
    path: &str,
    tls: &Arc<ClientConfig>,
    stop: &AtomicBool,
    sent: &Sent,
) -> io::Result<()> {
    let tcp = TcpStream::connect(address)?;
    tcp.set_write_timeout(Some(Duration::from_millis(100)))?;
    // Only the handshake reads.
    tcp.set_read_timeout(Some(Duration::from_secs(5)))?;
    let name = ServerName::try_from("mesh").unwrap();
    let mut to =
        StreamOwned::new(ClientConnection::new(Arc::clone(tls), name).map_err(io::Error::other)?, tcp);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    let mut streams = 0;
    let mut first = true;
    sent.connections.fetch_add(1, Ordering::Relaxed);
    while !stop.load(Ordering::Relaxed) {
        if bytes.is_empty() {
            bytes = attack.piece(path, &mut streams, first);
            first = false;
        }
        match to.write(&bytes) {
            Ok(written) => {
                sent.bytes.fetch_add(written as u64, Ordering::Relaxed);
                bytes.drain(..written);
            }
            // The server takes no more for now.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn memory(pid: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap() * 1024
}

/// The middle time of calls that somebody makes who means well.
async fn latency(client: &mut NodesClient<Channel>, until: impl Fn() -> bool) -> Duration {
    let mut times = Vec::new();
    while times.len() < 50 || !until() {
        let began = Instant::now();
        let call = tokio::time::timeout(STUCK, client.get_status(GetStatusRequest {})).await;
        call.expect("a call got no answer").expect("a call among the attack");
        times.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times.sort();
    times[times.len() / 2]
}

#[test]
fn floods_of_http2_cost_neither_memory_nor_patience() {
    mesh_certs::install_provider();
    let mesh = Mesh::start();
    let credential = Credential::load(&mesh.credential()).unwrap();
    let endpoints = vec![mesh.address("grpc").to_owned()];
    let pid = mesh.coordinator_pid();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let member = ClientTls::of(&credential).unwrap();
    let mut client = NodesClient::new(mesh_certs::channel(endpoints, member, ChannelOptions::default()).0);

    let ports = [
        ("join", "/mesh.v1.Enrollment/Join", tls(None)),
        ("grpc", "/mesh.v1.Jobs/SubmitJob", tls(Some(&credential))),
    ];
    for (port, path, tls) in ports {
        for kind in Attack::ALL {
            let quiet = runtime.block_on(latency(&mut client, || true));
            let before = memory(pid, "VmRSS:");
            fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
            let (stop, sent) = (AtomicBool::new(false), Sent::default());
            let busy = thread::scope(|scope| {
                for _ in 0..ATTACKERS {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            // Closed by the coordinator, as it should be: once more.
                            let _closed = attack(kind, mesh.address(port), path, &tls, &stop, &sent);
                        }
                    });
                }
                let end = Instant::now() + ATTACK;
                let busy = runtime.block_on(latency(&mut client, || Instant::now() >= end));
                stop.store(true, Ordering::Relaxed);
                busy
            });
            let most = memory(pid, "VmHWM:").saturating_sub(before);
            let (bytes, connections) = (sent.bytes.into_inner(), sent.connections.into_inner());
            println!(
                "{port} {kind:?}: {} KiB in {connections} connections; memory +{} KiB; calls {quiet:?}, then {busy:?}",
                bytes / 1024,
                most / 1024
            );
            assert!(bytes > BYTES, "{kind:?} on {port} was no attack: {bytes} bytes");
            assert!(most < MEMORY, "{kind:?} on {port} cost {most} bytes of memory");
            assert!(
                busy < (quiet * 2).max(BORNE),
                "{kind:?} on {port}: calls take {busy:?} instead of {quiet:?}"
            );
        }
    }
    let state = mesh.submit("{name: after, command: [\"true\"]}").state();
    assert_eq!(state, "QUEUED", "jobs are taken as before");
}

#[test]
fn a_message_that_is_too_large_is_refused_and_not_kept() {
    mesh_certs::install_provider();
    let mesh = Mesh::start();
    let credential = Credential::load(&mesh.credential()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let member = ClientTls::of(&credential).unwrap();
    let endpoints = vec![mesh.address("grpc").to_owned()];
    let channel = mesh_certs::channel(endpoints, member, ChannelOptions::default()).0;
    let mut jobs = JobsClient::new(channel.clone());
    let pid = mesh.coordinator_pid();
    let before = memory(pid, "VmRSS:");
    for _ in 0..20 {
        let request =
            SubmitJobRequest { idempotency_key: "x".repeat(32 << 20), ..SubmitJobRequest::default() };
        let status = runtime.block_on(jobs.submit_job(request)).unwrap_err();
        assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    }
    let cost = memory(pid, "VmHWM:").saturating_sub(before);
    println!("memory +{} KiB", cost / 1024);
    assert!(cost < MEMORY, "it cost {cost} bytes");
    runtime.block_on(NodesClient::new(channel).get_status(GetStatusRequest {})).unwrap();
}
