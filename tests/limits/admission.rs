//! Strangers in floods beside genuine clients: who gets through, and who has to give way.
//! Never sends a packet beyond the loopback network, and every flood has its end. Invariant: a genuine
//! client gets through at its first try, whatever others do.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use walmgr::test_support::receiver::refusal_log::{REFUSAL_LOG_INTERVAL, REFUSAL_LOG_LINES_MAX};
use walmgr_protocol::message::Message;
use walmgr_protocol::message::backup::{Backup, Join};

use super::still_serves;
use crate::support::hostile::{ForgedSet, Key, ask, hello_of};
use crate::support::{Site, soak};

/// Bare connects a second.
const RATE: u32 = 2_000;

/// Connects at once: those of 50 ms.
const BURST_MAX: usize = RATE as usize / 20;

/// Sockets that the flood keeps open: more than the receiver lets be silent.
const HELD_MAX: usize = 6_000;

/// A flood may not outlast its test, whatever becomes of that.
const FLOOD_MAX: Duration = Duration::from_secs(120);

/// A socket that says nothing, and vanishes without a trace when it is dropped.
fn bare(address: SocketAddr, number: usize, hosts: usize) -> io::Result<TcpStream> {
    let stream = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    if hosts > 1 {
        let [high, low] = u16::try_from(number % hosts).unwrap().to_be_bytes();
        bind(&stream, &SocketAddr::from(([127, 3, high, low], 0)))?;
    }
    connect(&stream, &address)?;
    Ok(stream.into())
}

/// Connects at [`RATE`] from so many addresses until it is over; returns how many came about. What a busy
/// machine kept it from is not made up for: that would be thousands at once, and another attack.
fn flood(address: SocketAddr, hosts: usize, over: &AtomicBool) -> usize {
    let begin = Instant::now();
    let mut held = VecDeque::new();
    let (mut made, mut given_up) = (0, 0);
    while !over.load(Ordering::Relaxed) && begin.elapsed() < FLOOD_MAX {
        let due = usize::try_from((begin.elapsed() * RATE).as_secs()).unwrap() - given_up;
        if made >= due {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        given_up += (due - made).saturating_sub(BURST_MAX);
        if let Ok(stream) = bare(address, made, hosts) {
            held.push_back(stream);
        }
        made += 1;
        if held.len() > HELD_MAX {
            held.pop_front();
        }
    }
    made
}

/// Genuine clients beside a flood.
const CLIENTS: u64 = 5;

/// Lets genuine clients archive beside a flood; how many of how many got through at first.
fn beside_a_flood(hosts: usize) -> (usize, usize) {
    let begin = Instant::now();
    let site = Site::builder().proxied().build();
    site.proxy().set_latency(Duration::from_millis(100));
    let tries = if soak() { 100 } else { 20 };
    let names: Vec<String> = (2..tries + 2)
        .map(|number| format!("{number:08X}.history"))
        .collect();
    for name in &names {
        site.write_wal(name, "1\t0/3000000\tx\n");
    }
    let (over, next, through) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let flooding = scope.spawn(|| flood(site.address(), hosts, &over));
        // Until the tables are as full as they get.
        std::thread::sleep(Duration::from_secs(3));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let ended = site.archive(name);
                        match ended.code {
                            Some(0) => drop(through.fetch_add(1, Ordering::Relaxed)),
                            _ => println!("{name}: {}", ended.stderr),
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        over.store(true, Ordering::Relaxed);
        let made = flooding.join().unwrap();
        let rate = made as f64 / begin.elapsed().as_secs_f64();
        println!("{made} bare connects from {hosts} addresses, {rate:.0} a second");
        assert!(ended.iter().all(Result::is_ok));
    });
    let log = site.receiver.log();
    let (refusals, others): (Vec<_>, Vec<_>) =
        log.lines().partition(|line| line.contains("refused "));
    // However long a busy machine takes for all of it.
    let intervals = 1 + begin.elapsed().as_secs() / REFUSAL_LOG_INTERVAL.as_secs();
    let refusals_max = REFUSAL_LOG_LINES_MAX * usize::try_from(intervals).unwrap();
    let count = refusals.len();
    assert!(count <= refusals_max, "{count} refusals of {refusals_max}");
    // One for each stored file, and some of the start.
    assert!(others.len() < 50 + 5 * names.len(), "{others:#?}");
    let peak = site.receiver.memory_peak_kib();
    println!("the receiver had {peak} KiB at most");
    // What docs/explain/receiver.md says for so many connections that are let in; the flood adds nothing.
    assert!(peak < (32 + 4 * CLIENTS) << 10, "{peak} KiB");
    (through.into_inner(), names.len())
}

#[test]
fn fault_118_a_client_gets_through_a_flood_from_its_own_address() {
    let (through, tries) = beside_a_flood(1);
    println!("{through} of {tries} got through at first");
    assert!((tries - through) * 100 <= tries, "{through} of {tries}");
}

#[test]
fn fault_118_a_client_gets_through_a_flood_from_1000_addresses() {
    let (through, tries) = beside_a_flood(1_000);
    println!("{through} of {tries} got through at first");
    assert!((tries - through) * 100 <= tries, "{through} of {tries}");
}

#[test]
fn fault_118_a_hundred_honest_clients_at_once_are_all_served() {
    let site = Site::builder()
        .standby_set("max_connections", "200")
        .build();
    let key = Key::stolen(&site);
    let together = Barrier::new(100);
    let (key, site_here, together) = (&key, &site, &together);
    let served = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(move || {
                    together.wait();
                    let mut peer = key
                        .introduce(site_here.address(), &hello_of(site_here))
                        .map_err(|error| error.to_string())?
                        .map_err(|refusal| refusal.to_string())?;
                    // All of them are there before the first goes.
                    together.wait();
                    let answer = ask(&mut peer, 0, &Message::OverviewRequest);
                    answer.map(drop).map_err(|refused| refused.words())
                })
            })
            .collect();
        let ended = clients.into_iter().map(|client| client.join().unwrap());
        ended.collect::<Result<Vec<()>, String>>()
    });
    assert_eq!(served.map(|served| served.len()), Ok(100));
}

#[test]
fn fault_118_a_backup_of_64_streams_evicts_neither_itself_nor_archiving() {
    let site = Site::start();
    still_serves(&site, 1);
    let key = Key::stolen(&site);
    let set = ForgedSet::at(&site, site.segment_name(1).parse().unwrap(), Vec::new());
    let mut control = key.connect(&site);
    let token = set.begin(&mut control).unwrap();
    let together = Barrier::new(64);
    let (key, site_here, together) = (&key, &site, &together);
    let streams: Vec<_> = std::thread::scope(|scope| {
        let joining: Vec<_> = (0..64)
            .map(|stream| {
                scope.spawn(move || {
                    together.wait();
                    let mut peer = key.connect(site_here);
                    let join = Message::Backup(Backup::Join(Join { token, stream }));
                    let granted = ask(&mut peer, 1, &join).map_err(|refused| refused.words());
                    assert!(
                        matches!(granted, Ok(Message::Backup(Backup::Granted(_)))),
                        "{granted:?}"
                    );
                    peer
                })
            })
            .collect();
        joining.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(streams.len(), 64);
    // Beside it the default of 64 connections is as good as empty.
    let others: Vec<_> = (0..60).map(|_| key.connect(&site)).collect();
    still_serves(&site, 2);
    drop((others, streams, control));
}
