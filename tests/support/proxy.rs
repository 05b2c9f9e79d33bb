//! A TCP proxy in this process that breaks connections at chosen bytes.
//! Never changes a byte it was not told to. Invariant: with no faults both ends see exactly what
//! the other sent, and each connection's bytes are recorded as their sender sent them.
//!
//! A fault "at byte N" happens when byte N (counted from 0, per connection and direction) arrives
//! and before it is passed on: N bytes have gone through by then.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::peer::read_arrived;

/// Who receives the bytes that are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the client sent.
    ToServer,
    /// What the server answered.
    ToClient,
}

/// What happens to one direction of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Both ends see an orderly end of the connection.
    Cut { at_byte: u64 },
    /// Both ends see a reset.
    Reset { at_byte: u64 },
    /// One bit, 0 to 7, of this byte is turned over.
    FlipBit { at_byte: u64, bit: u8 },
    /// This byte and those behind it come later.
    Delay { at_byte: u64, by: Duration },
    /// Nothing more is passed on, not even the end; the connection stays open.
    Blackhole { at_byte: u64 },
    /// These bytes come twice in a row.
    Duplicate { bytes: Range<u64> },
}

impl Fault {
    /// The server did all its work, but its last `count` bytes never arrive: a lost
    /// acknowledgement. `clean` is the recording of the same session without faults.
    pub fn lose_last_bytes(clean: &Recording, count: u64) -> (Direction, Fault) {
        let length = u64::try_from(clean.to_client.len()).unwrap();
        let at_byte = length
            .checked_sub(count)
            .expect("a session longer than that");
        (Direction::ToClient, Fault::Cut { at_byte })
    }

    fn at_byte(&self) -> u64 {
        match self {
            Fault::Cut { at_byte }
            | Fault::Reset { at_byte }
            | Fault::FlipBit { at_byte, .. }
            | Fault::Delay { at_byte, .. }
            | Fault::Blackhole { at_byte } => *at_byte,
            // The last byte is the moment from which the range can be repeated.
            Fault::Duplicate { bytes } => bytes.end - 1,
        }
    }
}

/// What went over one connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recording {
    /// What the client sent.
    pub to_server: Vec<u8>,
    /// What the server answered.
    pub to_client: Vec<u8>,
}

impl Recording {
    /// Sends the client's half again to `server`, ends it, and returns what is answered until
    /// the server closes, resets, or stays silent for `patience`.
    pub fn replay(&self, server: SocketAddr, patience: Duration) -> io::Result<Vec<u8>> {
        let mut socket = TcpStream::connect(server)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        // A server that refuses early makes the rest of the writing fail; its answer still counts.
        let _ = socket.write_all(&self.to_server);
        let _ = socket.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        Ok(answer)
    }
}

/// Listens on a port of its own and passes everything on to one server.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    server: SocketAddr,
    stopping: AtomicBool,
    stalled: AtomicBool,
    latency_ms: AtomicU64,
    faults: Mutex<Vec<(Direction, Fault)>>,
    connections: Mutex<Vec<Arc<Connection>>>,
}

/// The sockets are weak, so that both pumps ending closes them and a reset goes out at once.
struct Connection {
    sockets: [Weak<TcpStream>; 2],
    recording: Mutex<Recording>,
}

impl Proxy {
    /// A proxy to this server, without faults.
    pub fn start(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server,
            stopping: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            latency_ms: AtomicU64::new(0),
            faults: Mutex::default(),
            connections: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        Proxy {
            shared,
            address,
            listener: Some(std::thread::spawn(move || accept(&listener, &accepting))),
        }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the faults of all connections that begin from here on.
    pub fn set_faults(&self, faults: impl IntoIterator<Item = (Direction, Fault)>) {
        *lock(&self.shared.faults) = faults.into_iter().collect();
    }

    /// Whatever arrives is passed on so much later, in both directions: a long link.
    pub fn set_latency(&self, latency: Duration) {
        let latency_ms = u64::try_from(latency.as_millis()).unwrap();
        self.shared.latency_ms.store(latency_ms, Ordering::SeqCst);
    }

    /// Stops passing anything on in all connections, present and future, without closing them.
    pub fn stall(&self) {
        self.shared.stalled.store(true, Ordering::SeqCst);
    }

    /// Ends [`Proxy::stall`]; what has piled up goes through.
    pub fn resume(&self) {
        self.shared.stalled.store(false, Ordering::SeqCst);
    }

    /// Ends all open connections in an orderly way.
    pub fn cut_all(&self) {
        for connection in lock(&self.shared.connections).iter() {
            connection.close(Shutdown::Both);
        }
    }

    /// The connections so far, oldest first, each as far as it went.
    pub fn recordings(&self) -> Vec<Recording> {
        lock(&self.shared.connections)
            .iter()
            .map(|connection| lock(&connection.recording).clone())
            .collect()
    }

    /// Whether no connection is open.
    pub fn is_idle(&self) -> bool {
        lock(&self.shared.connections).iter().all(|connection| {
            connection
                .sockets
                .iter()
                .all(|socket| socket.strong_count() == 0)
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.cut_all();
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        self.cut_all();
    }
}

impl Connection {
    fn close(&self, how: Shutdown) {
        for socket in self.sockets.iter().filter_map(Weak::upgrade) {
            let _ = socket.shutdown(how);
        }
    }

    /// The next close of the sockets resets the connections. Reading is shut down only to wake
    /// the other pump: that sends nothing.
    fn reset(&self) {
        for socket in self.sockets.iter().filter_map(Weak::upgrade) {
            let _ = rustix::net::sockopt::set_socket_linger(&*socket, Some(Duration::ZERO));
        }
        self.close(Shutdown::Read);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        // A server that refuses makes the proxy hang up.
        let Ok(server) = TcpStream::connect(shared.server) else {
            continue;
        };
        for socket in [&client, &server] {
            let _ = socket.set_nodelay(true);
        }
        let (client, server) = (Arc::new(client), Arc::new(server));
        let connection = Arc::new(Connection {
            sockets: [Arc::downgrade(&client), Arc::downgrade(&server)],
            recording: Mutex::default(),
        });
        lock(&shared.connections).push(Arc::clone(&connection));
        let faults = lock(&shared.faults).clone();
        for direction in [Direction::ToServer, Direction::ToClient] {
            let (from, to) = match direction {
                Direction::ToServer => (&client, &server),
                Direction::ToClient => (&server, &client),
            };
            let mut faults: Vec<Fault> = faults
                .iter()
                .filter(|(of, _)| *of == direction)
                .map(|(_, fault)| fault.clone())
                .collect();
            faults.sort_by_key(|fault| std::cmp::Reverse(fault.at_byte()));
            let pump = Pump {
                from: Arc::clone(from),
                to: Arc::clone(to),
                direction,
                faults,
                offset: 0,
                shared: Arc::clone(shared),
                connection: Arc::clone(&connection),
            };
            std::thread::spawn(move || pump.run());
        }
    }
}

/// One direction of one connection.
struct Pump {
    from: Arc<TcpStream>,
    to: Arc<TcpStream>,
    direction: Direction,
    /// Latest first, so that the next one is at the end.
    faults: Vec<Fault>,
    offset: u64,
    shared: Arc<Shared>,
    connection: Arc<Connection>,
}

/// What a fault leaves of the connection.
enum After {
    GoOn,
    Over,
}

impl Pump {
    fn run(mut self) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = read_arrived(&mut &*self.from, &mut buffer).unwrap_or(0);
            let latency_ms = self.shared.latency_ms.load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(latency_ms));
            self.wait_while_stalled();
            if count == 0 {
                let _ = self.to.shutdown(Shutdown::Write);
                return;
            }
            self.record(&buffer[..count]);
            if matches!(self.pass_on(&mut buffer[..count]), After::Over) {
                return;
            }
        }
    }

    fn pass_on(&mut self, mut chunk: &mut [u8]) -> After {
        while !chunk.is_empty() {
            let length = u64::try_from(chunk.len()).unwrap();
            let next = self.faults.last().map_or(u64::MAX, Fault::at_byte);
            let clear = next.saturating_sub(self.offset).min(length);
            let (before, rest) = chunk.split_at_mut(usize::try_from(clear).unwrap());
            if !self.write(before) {
                return After::Over;
            }
            chunk = rest;
            if next == self.offset
                && !chunk.is_empty()
                && let Some(fault) = self.faults.pop()
                && matches!(self.inflict(fault, &mut chunk), After::Over)
            {
                return After::Over;
            }
        }
        After::GoOn
    }

    fn inflict(&mut self, fault: Fault, chunk: &mut &mut [u8]) -> After {
        match fault {
            Fault::Cut { .. } => {
                self.connection.close(Shutdown::Both);
                return After::Over;
            }
            Fault::Reset { .. } => {
                self.connection.reset();
                return After::Over;
            }
            Fault::Blackhole { .. } => {
                self.wait_while_open();
                return After::Over;
            }
            Fault::Delay { by, .. } => std::thread::sleep(by),
            Fault::FlipBit { bit, .. } => chunk[0] ^= 1 << bit,
            Fault::Duplicate { bytes } => {
                let range =
                    usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap();
                let again = self.recorded()[range].to_vec();
                let (last, rest) = std::mem::take(chunk).split_at_mut(1);
                *chunk = rest;
                let first_time = self.write(last);
                if !first_time || (&*self.to).write_all(&again).is_err() {
                    return After::Over;
                }
            }
        }
        After::GoOn
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        self.offset += u64::try_from(bytes.len()).unwrap();
        let written = (&*self.to).write_all(bytes).is_ok();
        if !written {
            // The receiver is gone, so its peer must not wait for it.
            let _ = self.from.shutdown(Shutdown::Both);
        }
        written
    }

    fn record(&self, bytes: &[u8]) {
        let mut recording = lock(&self.connection.recording);
        match self.direction {
            Direction::ToServer => recording.to_server.extend_from_slice(bytes),
            Direction::ToClient => recording.to_client.extend_from_slice(bytes),
        }
    }

    fn recorded(&self) -> Vec<u8> {
        let recording = lock(&self.connection.recording);
        match self.direction {
            Direction::ToServer => recording.to_server.clone(),
            Direction::ToClient => recording.to_client.clone(),
        }
    }

    fn wait_while_stalled(&self) {
        while self.shared.stalled.load(Ordering::SeqCst)
            && !self.shared.stopping.load(Ordering::SeqCst)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Holds the sockets open until the proxy goes; the other direction goes on as it is.
    fn wait_while_open(&self) {
        while !self.shared.stopping.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::wait_for;
    use super::*;
    use std::time::Instant;

    /// Answers every byte by its complement until the client is done.
    fn complement_server() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut socket in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = socket.read(&mut buffer) {
                        buffer[..count].iter_mut().for_each(|byte| *byte = !*byte);
                        if socket.write_all(&buffer[..count]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    /// Sends all, and returns what came back and how it ended.
    fn talk(proxy: &Proxy, bytes: &[u8]) -> (Vec<u8>, io::Result<()>) {
        let mut socket = TcpStream::connect(proxy.address()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let _ = socket.write_all(bytes);
        let _ = socket.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let end = socket.read_to_end(&mut answer).map(|_| ());
        (answer, end)
    }

    fn complement(bytes: &[u8]) -> Vec<u8> {
        bytes.iter().map(|byte| !byte).collect()
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count)
            .map(|index| u8::try_from(index % 251).unwrap())
            .collect()
    }

    #[test]
    fn without_faults_both_directions_arrive_and_are_recorded() {
        let proxy = Proxy::start(complement_server());
        let sent = bytes(300_000);
        let (answer, end) = talk(&proxy, &sent);
        end.unwrap();
        assert_eq!(answer, complement(&sent));
        let recording = proxy.recordings().remove(0);
        assert_eq!(recording.to_server, sent);
        assert_eq!(recording.to_client, answer);
        wait_for("idle", Duration::from_secs(5), || {
            proxy.is_idle().then_some(())
        });
        let again = recording
            .replay(proxy.address(), Duration::from_secs(5))
            .unwrap();
        assert_eq!(again, answer);
    }

    #[test]
    fn a_cut_lets_exactly_the_bytes_before_it_through() {
        let proxy = Proxy::start(complement_server());
        let sent = bytes(100);
        for at_byte in [0, 1, 57, 99] {
            proxy.set_faults([(Direction::ToClient, Fault::Cut { at_byte })]);
            let (answer, end) = talk(&proxy, &sent);
            end.unwrap();
            assert_eq!(
                answer,
                complement(&sent)[..usize::try_from(at_byte).unwrap()]
            );
            proxy.set_faults([(Direction::ToServer, Fault::Cut { at_byte })]);
            let (answer, _) = talk(&proxy, &sent);
            assert!(answer.len() <= usize::try_from(at_byte).unwrap());
        }
    }

    #[test]
    fn a_reset_is_seen_as_a_reset() {
        let proxy = Proxy::start(complement_server());
        proxy.set_faults([(Direction::ToClient, Fault::Reset { at_byte: 0 })]);
        let (answer, end) = talk(&proxy, &bytes(10));
        assert_eq!(answer, b"");
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        wait_for("idle", Duration::from_secs(5), || {
            proxy.is_idle().then_some(())
        });
    }

    #[test]
    fn a_flipped_bit_changes_one_byte_and_a_duplicate_repeats_a_range() {
        let proxy = Proxy::start(complement_server());
        let sent = bytes(100);
        let mut expected = sent.clone();
        expected[40] ^= 0x80;
        expected.splice(20..20, sent[10..20].iter().copied());
        proxy.set_faults([
            (
                Direction::ToServer,
                Fault::FlipBit {
                    at_byte: 40,
                    bit: 7,
                },
            ),
            (Direction::ToServer, Fault::Duplicate { bytes: 10..20 }),
        ]);
        let (answer, end) = talk(&proxy, &sent);
        end.unwrap();
        assert_eq!(answer, complement(&expected));
        assert_eq!(proxy.recordings()[0].to_server, sent);
    }

    #[test]
    fn a_delay_comes_late_and_a_blackhole_never() {
        let proxy = Proxy::start(complement_server());
        let by = Duration::from_millis(200);
        proxy.set_faults([(Direction::ToClient, Fault::Delay { at_byte: 5, by })]);
        let begin = Instant::now();
        assert_eq!(talk(&proxy, &bytes(10)).0.len(), 10);
        assert!(begin.elapsed() >= by);
        proxy.set_faults([(Direction::ToClient, Fault::Blackhole { at_byte: 5 })]);
        let (answer, end) = talk(&proxy, &bytes(10));
        assert_eq!(answer.len(), 5);
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_last_bytes_of_an_answer_can_be_lost_after_the_server_has_sent_them() {
        let proxy = Proxy::start(complement_server());
        let sent = bytes(64);
        talk(&proxy, &sent).1.unwrap();
        let clean = proxy.recordings().remove(0);
        proxy.set_faults([Fault::lose_last_bytes(&clean, 4)]);
        assert_eq!(talk(&proxy, &sent).0, complement(&sent)[..60]);
        assert_eq!(proxy.recordings()[1].to_client.len(), 64);
    }

    #[test]
    fn a_stalled_proxy_passes_on_what_piled_up_when_it_resumes() {
        let proxy = Proxy::start(complement_server());
        proxy.stall();
        assert_eq!(talk(&proxy, b"abc").0, b"");
        let mut socket = TcpStream::connect(proxy.address()).unwrap();
        socket.write_all(b"abc").unwrap();
        proxy.resume();
        let mut answer = [0; 3];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [!b'a', !b'b', !b'c']);
        proxy.cut_all();
        assert_eq!(socket.read(&mut answer).unwrap(), 0);
    }
}
