//! What the integration tests share: throw-away servers, folders, file systems, faulty networks.
//! Never used by walmgr itself. Invariant: every helper cleans up in `Drop`, by process id or by
//! path, and says why it cannot work here instead of pretending.
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each helper serves some tests, and a part of the tests can be built alone"
)]

/// Ends the running test with a `SKIP: test: reason` line that shows even without `--nocapture`.
///
/// `skip!("no loop devices")` returns at once; `skip_unless!(Cluster::available(13))` takes a
/// `Result<_, String>` and hands out its value, or skips with its error as the reason.
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::support::report_skip(&format!($($reason)+));
        return;
    }};
}

macro_rules! skip_unless {
    ($possible:expr) => {
        match $possible {
            Ok(value) => value,
            Err(reason) => skip!("{reason}"),
        }
    };
}

pub mod backup_set;
pub mod cluster;
pub mod dice;
pub mod documents;
pub mod host;
pub mod hostile;
pub mod hostile_receiver;
pub mod imitation;
pub mod libpq;
pub mod loopfs;
pub mod old_data;
pub mod oracle;
pub mod outcome;
pub mod pages;
pub mod peer;
pub mod place;
pub mod power;
pub mod proxy;
pub mod receiver;
pub mod site;
pub mod stored;
pub mod strace;
pub mod versions;

use std::io::Write;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use cluster::{Cluster, StopMode};
pub use host::Host;
pub use outcome::Output;
pub use place::{TempDir, walmgr, walmgr_binary};
pub use site::Site;
pub use versions::{ENDS, ENDS_AND_USUAL, USUAL, USUAL_AND_17};

/// Prints the line that [`skip!`] promises.
pub fn report_skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // Not eprintln!: the test harness would swallow it, because a skipped test passes.
    let line = format!("SKIP: {test}: {reason}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    // cargo-nextest keeps what a passed test says to itself: `./test.sh` shows this file.
    if let Some(path) = std::env::var_os("WALMGR_SKIPS") {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Whether the long tests run with their full counts (`./test.sh --soak`).
pub fn soak() -> bool {
    std::env::var_os("WALMGR_SOAK").is_some()
}

/// How often a randomised test does what it does: `WALMGR_ROUNDS` asks for a part of a long run, or for more of it.
pub fn rounds(usual: u64, soaked: u64) -> u64 {
    let asked = std::env::var("WALMGR_ROUNDS").ok();
    let asked = asked.map(|text| text.parse().expect("WALMGR_ROUNDS is a number"));
    asked.unwrap_or(if soak() { soaked } else { usual })
}

/// A test that interrupts something at many points promises a hundred in its full count. What ended before it was
/// interrupted is none.
#[track_caller]
pub fn assert_hits(hits: u32, usual: u32) {
    let promised = if soak() { 100 } else { usual };
    assert!(hits >= promised, "{hits} of {promised} points were hit");
}

/// A free TCP port below the range the kernel gives to clients; no other test has it while this process runs.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static HELD: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    // Test processes that run side by side start at different places.
    let first = std::process::id().wrapping_mul(97);
    for _ in 0..12_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + u16::try_from(first.wrapping_add(step) % 12_000).unwrap();
        // A server binds its port long after it was chosen, and stops and starts: a name that ends with this
        // process keeps it till then.
        let name = SocketAddr::from_abstract_name(format!("walmgr-test-port-{port}")).unwrap();
        let Ok(name) = UnixListener::bind_addr(&name) else {
            continue;
        };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            HELD.lock().unwrap().push(name);
            return port;
        }
    }
    panic!("no port from 20000 to 31999 is free");
}

/// Asks again every 20 ms until the answer is `Some`, or panics after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command to its end and returns its output, or what it said when it failed.
pub fn run(command: &mut Command) -> Result<String, String> {
    let std::process::Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(format!(
        "{command:?}: {status}: {}{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr)
    ))
}

/// Whether a program of this name is on the PATH or in the administrator's folders.
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}
