//! Many at once: sockets that say nothing, sockets that say nonsense, more sockets than slots,
//! more sockets than descriptors.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use walmgr::test_support::receiver::UPLOADS_PER_PEER_MAX;
use walmgr::test_support::receiver::refusal_log::{REFUSAL_LOG_INTERVAL, REFUSAL_LOG_LINES_MAX};
use walmgr_protocol::limits::CHANNELS_MAX;
use walmgr_protocol::message::{ErrorCode, Message};

use super::{peer_of, still_serves};
use crate::support::peer::{Peer, dial, dial_from, hello, hello_bytes, rest_of};
use crate::support::place::as_server;
use crate::support::{Site, have, soak, wait_for};

/// CPU time a process has used, in clock ticks of 10 ms.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
    let field = |index: usize| fields[index].parse::<u64>().unwrap();
    field(12) + field(13)
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

/// Archives one segment as PostgreSQL would: again until it succeeds. Returns how long that took.
fn archive_patiently(site: &Site, number: u64, limit: Duration) -> Duration {
    let name = site.segment_name(number);
    site.write_segment(number);
    let begin = Instant::now();
    wait_for("a master to get through", limit, || {
        let output = site.archive(&name);
        assert!(matches!(output.code, Some(0 | 1)), "{}", output.stderr);
        (output.code == Some(0)).then_some(())
    });
    assert_eq!(site.archived(&name), site.segment(number, "walmgr"));
    begin.elapsed()
}

#[test]
fn fault_93_slow_and_silent_sockets_are_dropped_and_a_master_served() {
    let site = Site::start();
    let count = if soak() { 1_000 } else { 200 };
    let begin = Instant::now();
    let mut sockets: Vec<TcpStream> = (0..count)
        .map(|index| {
            let host = u8::try_from(index % 7 + 1).unwrap();
            let socket = dial_from(host, site.address()).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        })
        .collect();
    // A byte of a TLS handshake every second from every second socket.
    let drips = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3, 0];
    std::thread::scope(|scope| {
        let dripping = scope.spawn(|| {
            for byte in drips {
                for socket in sockets.iter_mut().step_by(2) {
                    let _ = socket.write_all(&[byte]);
                }
                std::thread::sleep(Duration::from_millis(600));
            }
            sockets
        });
        let took = archive_patiently(&site, 1, Duration::from_secs(10));
        println!("{count} slow sockets; a master got through after {took:?}");
        let sockets = dripping.join().unwrap();
        for mut socket in sockets {
            let end = socket.read(&mut [0; 64]);
            let open = matches!(&end, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!open, "still open after {:?}", begin.elapsed());
        }
    });
    assert!(site.receiver.log().contains("no introduction within 5s"));
    let lines = site.receiver.log().lines().count();
    assert!(lines < 60, "{lines} lines in the log");
}

#[test]
fn fault_93_strangers_that_come_again_and_again_do_not_lock_a_master_out() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let site = Site::start();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for host in 1..=6 {
            let (over, address) = (&over, site.address());
            scope.spawn(move || {
                let mut sockets = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    // A refused one is replaced at once.
                    sockets.retain_mut(|socket: &mut TcpStream| {
                        let end = socket.read(&mut [0; 64]);
                        matches!(end, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
                    });
                    while sockets.len() < 40 {
                        let Ok(socket) = dial_from(host, address) else {
                            break;
                        };
                        socket.set_nonblocking(true).unwrap();
                        sockets.push(socket);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for number in 1..4 {
                let took = archive_patiently(&site, number, Duration::from_secs(10));
                println!("a master got through after {took:?}");
            }
        }));
        over.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}

/// Starts the site's receiver again with no more than these descriptors.
fn restart_with_descriptors(site: &mut Site, most: usize) {
    site.receiver.stop();
    let plain = site.receiver_walmgr();
    let mut limited = Command::new("prlimit");
    limited
        .args([&format!("--nofile={most}"), "--"])
        .arg(plain.get_program())
        .args(plain.get_args())
        .env_clear()
        .current_dir("/tmp");
    for (name, value) in plain.get_envs() {
        limited.env(name, value.unwrap_or_default());
    }
    as_server(&mut limited);
    site.receiver.start(&mut limited).unwrap();
}

fn silent_sockets(site: &Site, count: u8) -> Vec<TcpStream> {
    let dial = |index| dial_from(index % 8 + 1, site.address()).unwrap();
    (0..count).map(dial).collect()
}

#[test]
fn fault_94_out_of_descriptors_the_receiver_waits_and_recovers() {
    if !have("prlimit") {
        skip!("prlimit is not installed");
    }
    let mut site = Site::start();
    let idle = descriptors(site.receiver.pid());
    restart_with_descriptors(&mut site, idle + 5);
    let pid = site.receiver.pid();
    let before = descriptors(pid);
    let sockets = silent_sockets(&site, 120);
    site.receiver.wait_for_log("Too many open files");
    std::thread::sleep(Duration::from_secs(1));
    let begin = (Instant::now(), cpu_ticks(pid));
    std::thread::sleep(Duration::from_secs(2));
    let ticks = cpu_ticks(pid) - begin.1;
    println!(
        "{ticks} ticks of CPU in {:?} without descriptors",
        begin.0.elapsed()
    );
    assert!(ticks < 40, "a busy loop: {ticks} ticks in 2 s");
    drop(sockets);
    wait_for("descriptors to come back", Duration::from_secs(12), || {
        (descriptors(pid) <= before + 2).then_some(())
    });
    let took = archive_patiently(&site, 1, Duration::from_secs(30));
    println!("a master got through after {took:?}");
    assert!(site.receiver.log().lines().count() < 60);
}

#[test]
fn fault_118_few_descriptors_are_kept_from_silent_sockets() {
    if !have("prlimit") {
        skip!("prlimit is not installed");
    }
    let mut site = Site::start();
    restart_with_descriptors(&mut site, 64);
    let sockets = silent_sockets(&site, 120);
    still_serves(&site, 1);
    drop(sockets);
    still_serves(&site, 2);
}

#[test]
fn fault_94_one_connection_too_many_is_refused_in_words() {
    let builder = Site::builder().standby_set("max_connections", "2");
    let site = builder.plain().build();
    let held = [peer_of(&site), peer_of(&site)];
    let name = site.segment_name(1);
    site.write_segment(1);
    let output = site.archive(&name);
    let line = output.fail(1);
    assert!(line.contains("all 2 connections are in use"), "{line}");
    assert!(line.contains("raise max_connections"), "{line}");
    let mut third = peer_of(&site);
    assert_eq!(third.last_words().code, ErrorCode::Busy);
    drop(held);
    archive_patiently(&site, 1, Duration::from_secs(5));
    site.receiver.wait_for_log("all 2 connections are in use");
}

#[test]
fn fault_94_upload_over_the_bound_is_refused_in_words() {
    let channels = usize::from(CHANNELS_MAX);
    let connections = UPLOADS_PER_PEER_MAX / channels;
    let builder = Site::builder().standby_set("max_connections", "100");
    let site = builder.plain().build();
    let offer = |peer: &mut Peer, channel: u16, number: usize| {
        let name = format!("{:08X}.history", number + 2).parse().unwrap();
        peer.offer(channel, name, b"1\t0/3000000\tx\n");
        peer.answer(channel)
    };
    let mut peers: Vec<Peer> = (0..connections).map(|_| peer_of(&site)).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        for channel in 1..=CHANNELS_MAX {
            let number = number * channels + usize::from(channel);
            let answer = offer(peer, channel, number);
            assert!(matches!(answer, Message::Have(_)), "{answer:?}");
        }
    }
    let mut late = peer_of(&site);
    let answer = offer(&mut late, 1, 0);
    let Message::Error(error) = &answer else {
        panic!("{answer:?}");
    };
    assert_eq!(error.code, ErrorCode::Busy);
    // The late one and the one that asks.
    let open = u32::try_from(connections + 2).unwrap();
    assert_eq!(site.overview().connections, open);
    peers.pop();
    wait_for("a place", Duration::from_secs(5), || {
        matches!(offer(&mut late, 1, 0), Message::Have(_)).then_some(())
    });
}

/// Numbers that look random and are the same every time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn bytes(&mut self) -> Vec<u8> {
        let count = self.next() % 600 + 1;
        (0..count).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

#[test]
fn a_receiver_survives_connections_full_of_noise() {
    for (tls, seed) in [(false, 0x5EED), (true, 0xFEED)] {
        let builder = Site::builder();
        let site = if tls { builder } else { builder.plain() }.build();
        still_serves(&site, 1);
        let before = site.receiver.memory_kib();
        let rounds = if soak() { 5_000 } else { 250 };
        let mut noise = Noise(seed);
        let good = hello_bytes(&hello(Some(site.facts().cluster)), 1, 1);
        for round in 0..rounds {
            let mut stream = dial(site.address());
            let mut bytes = noise.bytes();
            match round % 4 {
                // As it comes; behind a good hello; a good hello with one wrong byte; behind TLS.
                0 => {}
                1 => bytes.splice(0..0, good.iter().copied()).for_each(drop),
                2 => {
                    let at = noise.below(good.len());
                    bytes = good.clone();
                    bytes[at] ^= 1 << (round % 8);
                }
                _ => bytes
                    .splice(0..0, [0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3])
                    .for_each(drop),
            }
            let _ = stream.write_all(&bytes);
            if round % 2 == 0 {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                rest_of(&mut stream);
            }
        }
        println!("{rounds} noisy connections, tls {tls}");
        archive_patiently(&site, 2, Duration::from_secs(10));
        let grown = site.receiver.memory_kib().saturating_sub(before);
        assert!(grown < 8 << 10, "{grown} KiB more");
        assert_eq!(site.archived_names().len(), 2);
        let lines = site.receiver.log().lines().count();
        assert!(lines < 60, "{lines} lines in the log");
    }
}

#[test]
fn fault_86_a_flood_of_refusals_gives_few_lines_in_the_log() {
    let site = Site::start();
    let refuse = |host: [u8; 2]| {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let from = std::net::SocketAddr::from(([127, 9, host[0], host[1]], 0));
        bind(&socket, &from).unwrap();
        connect(&socket, &site.address()).unwrap();
        let mut stream = TcpStream::from(socket);
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        rest_of(&mut stream);
    };
    for _ in 0..100 {
        refuse([0, 1]);
    }
    let lines = || site.receiver.log().lines().count();
    assert!(lines() < 10, "{} lines for one address", lines());
    // Every refusal from another address.
    let hosts = if soak() { 20_000_u16 } else { 3_000 };
    let begun = Instant::now();
    for host in 0..hosts {
        refuse(host.to_be_bytes());
    }
    println!("{} lines for {hosts} hosts", lines());
    // The same bound for an interval that is cut off on either side.
    let intervals = 2 + begun.elapsed().as_secs() / REFUSAL_LOG_INTERVAL.as_secs();
    let most = 10 + REFUSAL_LOG_LINES_MAX * usize::try_from(intervals).unwrap();
    let most = most.min(usize::from(hosts) / 4);
    assert!(lines() < most, "{} lines for {hosts} addresses", lines());
    still_serves(&site, 1);
}
