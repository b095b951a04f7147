//! The cable of the tests: what it does to a connection is what a test then blames a network for.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use mesh_e2e::{
    Proxy, Way,
    wait::{self, secs},
};

/// A server that sends everything back, and a cable to it.
fn echo() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::to(&listener.local_addr().unwrap().to_string());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    proxy
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(secs(10))).unwrap();
    stream
}

#[track_caller]
fn echoes(stream: &mut TcpStream, word: &str) {
    stream.write_all(word.as_bytes()).unwrap();
    hears(stream, word);
}

#[track_caller]
fn hears(stream: &mut TcpStream, word: &str) {
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, word.as_bytes());
}

/// Nothing comes, and the connection is there all the same.
#[track_caller]
fn is_silent(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let read = stream.read(&mut [0]).map_err(|error| error.kind());
    assert!(matches!(read, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{read:?}");
    stream.set_read_timeout(Some(secs(10))).unwrap();
}

#[track_caller]
fn is_broken(stream: &mut TcpStream) {
    let read = stream.read(&mut [0]);
    assert!(
        matches!(&read, Ok(0)) || read.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset),
        "{read:?}"
    );
}

#[test]
fn a_cut_breaks_what_is_there_and_refuses_what_comes_until_it_is_healed() {
    let proxy = echo();
    let mut stream = connect(&proxy);
    echoes(&mut stream, "one");
    proxy.cut();
    is_broken(&mut stream);
    is_broken(&mut connect(&proxy));
    proxy.heal();
    echoes(&mut connect(&proxy), "two");
    wait::until(secs(5), "its links are forgotten", || proxy.connections().is_empty().then_some(()));
    assert_eq!(proxy.taken(), 3);
}

#[test]
fn what_one_way_swallows_is_lost_while_all_looks_open() {
    for way in [Way::Up, Way::Down] {
        let proxy = echo();
        let mut stream = connect(&proxy);
        echoes(&mut stream, "one");
        proxy.swallow(way);
        stream.write_all(b"lost").unwrap();
        is_silent(&mut stream);
        let mut new = connect(&proxy);
        new.write_all(b"lost too").unwrap();
        is_silent(&mut new);
        proxy.heal();
        is_broken(&mut stream);
        is_broken(&mut new);
        echoes(&mut connect(&proxy), "two");
    }
}

#[test]
fn what_is_held_goes_on_complete_after_the_healing() {
    let proxy = echo();
    let mut stream = connect(&proxy);
    echoes(&mut stream, "one");
    proxy.hold(Way::Down);
    stream.write_all(b"held").unwrap();
    is_silent(&mut stream);
    proxy.heal();
    hears(&mut stream, "held");
    echoes(&mut stream, "two");
}

#[test]
fn nobody_hears_through_a_partition_that_the_other_side_is_gone() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::to(&listener.local_addr().unwrap().to_string());
    let stream = connect(&proxy);
    let (mut far, _) = listener.accept().unwrap();
    proxy.partition();
    drop(stream);
    is_silent(&mut far);
    proxy.heal();
    is_broken(&mut far);
}

#[test]
fn one_connection_can_be_cut_or_held_alone() {
    let proxy = echo();
    let (mut first, mut second) = (connect(&proxy), connect(&proxy));
    echoes(&mut first, "one");
    echoes(&mut second, "one");
    let [one, two] = &proxy.connections()[..] else { panic!("two connections") };
    one.cut();
    is_broken(&mut first);
    two.hold(Way::Up);
    second.write_all(b"two").unwrap();
    is_silent(&mut second);
    echoes(&mut connect(&proxy), "three");
    two.heal();
    hears(&mut second, "two");
}

#[test]
fn a_delay_makes_every_byte_late_and_none_slow() {
    let proxy = echo();
    let mut stream = connect(&proxy);
    let delay = Duration::from_millis(100);
    proxy.delay(delay);
    let begun = Instant::now();
    for _ in 0..20 {
        stream.write_all(b"words ").unwrap();
    }
    let mut back = [0; 120];
    stream.read_exact(&mut back).unwrap();
    assert!(begun.elapsed() >= delay * 2, "{:?}", begun.elapsed());
    assert!(begun.elapsed() < secs(2), "each word waited for the one before: {:?}", begun.elapsed());
}

#[test]
fn what_a_spared_process_sends_passes() {
    let proxy = echo();
    let mut before = connect(&proxy);
    echoes(&mut before, "one");
    proxy.spare(std::process::id());
    proxy.cut();
    proxy.partition();
    echoes(&mut before, "two");
    echoes(&mut connect(&proxy), "three");
}
