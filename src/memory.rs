//! What ends a process from outside, as exhausted memory and signals do: one line, and an exit code that PostgreSQL counts.
//! Never allocates on that path. Invariant: a failed allocation in Rust code ends the process with the
//! chosen code; without this file it would abort (134), and that kills PostgreSQL's archiver process.
//!
//! Unsafe because an allocator is. The standard library has no stable hook for failed allocations,
//! and the crates that offer limits or hooks abort as well, so an allocator of our own is the only way;
//! nor does a safe crate offer handlers that say something and exit with a code, without a thread.
//! Code that asks with `try_reserve` ends here too; walmgr bounds sizes before it allocates instead.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// The system's allocator, except that it ends the process instead of answering with null.
pub struct EndWhenExhausted;

static EXIT_CODE: AtomicU8 = AtomicU8::new(1);

/// Sets the code to exit with. Until it is called the code is 1.
pub fn exit_with_when_exhausted(code: u8) {
    EXIT_CODE.store(code, Ordering::Relaxed);
}

/// From here on a crash ends with that code as well, after one line: the C library aborts when it
/// finds no memory for a thread's destructors, and the kernel sends SIGSEGV when it finds none for
/// the stack. A signal would kill PostgreSQL's archiver; the price is that the process dumps no core.
pub fn exit_on_crashes() {
    for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL] {
        handle(signal, end_for_crash);
    }
}

/// From here on SIGTERM, SIGINT, SIGHUP and SIGQUIT end the process with that code as well, after one line on standard
/// error, which a logfile does not get. Beyond the file size limit a line of the logfile fails to be written, where
/// SIGXFSZ would end this process and with it PostgreSQL's archiver.
///
/// Takes no thread: to start one and have it end takes long beside the handing out of a segment that lies ready
/// (`benches/README.md`, compare.sh).
pub fn exit_on_signals() {
    for (signal, _) in STOPPED_BY {
        handle(signal, end_for_signal);
    }
    handle(libc::SIGXFSZ, pass_over);
}

/// The signals that ask a process to end, and what is said of each.
const STOPPED_BY: [(c_int, &[u8]); 4] = [
    (
        libc::SIGTERM,
        b"walmgr: stopped by SIGTERM before the work was done\n",
    ),
    (
        libc::SIGINT,
        b"walmgr: stopped by SIGINT before the work was done\n",
    ),
    (
        libc::SIGHUP,
        b"walmgr: stopped by SIGHUP before the work was done\n",
    ),
    (
        libc::SIGQUIT,
        b"walmgr: stopped by SIGQUIT before the work was done\n",
    ),
];

/// `handler` may make system calls and touch atomics, and nothing else.
fn handle(signal: c_int, handler: extern "C" fn(c_int)) {
    // SAFETY: all zeros is a valid `sigaction`: no flags, nothing blocked. What the handlers here do POSIX and Rust
    // allow in a signal handler; they run on the stack that Rust gives every thread for this, as the thread's
    // own may be full.
    #[allow(unsafe_code)]
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        // The only error is a signal that cannot be handled, and these can.
        let _ = libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

/// Whether a thread waits for the signals. The handlers that tell it call those that were there before them.
static IS_WAITED_FOR: AtomicBool = AtomicBool::new(false);

/// From here on a thread that got told of a signal ends the process.
pub fn leave_signals_to_thread() {
    IS_WAITED_FOR.store(true, Ordering::Relaxed);
}

extern "C" fn end_for_signal(signal: c_int) {
    if IS_WAITED_FOR.load(Ordering::Relaxed) {
        return;
    }
    let said = STOPPED_BY.iter().find(|(known, _)| *known == signal);
    let line: &[u8] = match said {
        Some((_, line)) => line,
        None => b"walmgr: stopped by a signal before the work was done\n",
    };
    end_saying(line)
}

extern "C" fn pass_over(_signal: c_int) {}

extern "C" fn end_for_crash(_signal: c_int) {
    end_saying(
        b"walmgr: stopped by a crash before the work was done; raise the memory limit of this \
          process if it has one, and report this if it stays\n",
    )
}

// SAFETY: every call goes to `System` with the caller's own arguments, and a non-null answer is
// handed on untouched, so the contract of `GlobalAlloc` holds because it holds for `System`.
// Nothing unwinds: `end` leaves the process.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for EndWhenExhausted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises about `layout` are passed on.
        present_or_end(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        present_or_end(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above; `block` came from `System` because every block does.
        present_or_end(unsafe { System.realloc(block, layout, size) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

fn present_or_end(block: *mut u8) -> *mut u8 {
    if block.is_null() {
        end();
    }
    block
}

#[cold]
fn end() -> ! {
    end_saying(b"walmgr: out of memory; raise the memory limit of this process or free memory\n")
}

/// Who says why this process ends: several threads can have a reason at once, and one line is enough.
static LAST_WORD: AtomicU8 = AtomicU8::new(FREE);
const FREE: u8 = 0;
const TAKEN: u8 = 1;
const SAID: u8 = 2;

/// How long the end waits for the line of the thread that has the last word: no longer than it takes to write it
/// to a pipe that somebody reads.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(1);

thread_local! {
    /// Whether it is this thread. A constant without a destructor: nothing is allocated for it.
    static HAS_LAST_WORD: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is the one to say why the process ends, which it then does, before it calls
/// [`last_word_is_said`] and ends the process. If not, another one does, and has done so when this returns.
pub fn take_last_word() -> bool {
    let taken = LAST_WORD.compare_exchange(FREE, TAKEN, Ordering::Relaxed, Ordering::Relaxed);
    if taken.is_ok() {
        HAS_LAST_WORD.set(true);
        return true;
    }
    // Memory that ran out on the way to the line: then it is this that has to be said.
    if HAS_LAST_WORD.get() {
        return LAST_WORD.load(Ordering::Relaxed) != SAID;
    }
    let begun = Instant::now();
    while LAST_WORD.load(Ordering::Relaxed) != SAID && begun.elapsed() < LAST_WORD_LIMIT {
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// For whoever has just said why this process ends: nothing that fails on the way to the exit adds a line. Of no
/// effect on a thread that did not take the word.
pub fn last_word_is_said() {
    if HAS_LAST_WORD.get() {
        LAST_WORD.store(SAID, Ordering::Relaxed);
    }
}

fn end_saying(line: &[u8]) -> ! {
    if take_last_word() {
        // A failed write changes nothing: the exit code still tells.
        let _ = rustix::io::write(rustix::stdio::stderr(), line);
        last_word_is_said();
    }
    end_without_cleaning_up(c_int::from(EXIT_CODE.load(Ordering::Relaxed)))
}

#[allow(unsafe_code)]
// SAFETY: `_exit` (POSIX) takes any integer and does not return. `std::process::exit` would run
// handlers that may allocate again, which is how one would get here twice.
unsafe extern "C" {
    #[link_name = "_exit"]
    safe fn end_without_cleaning_up(code: c_int) -> !;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_5_of_many_threads_with_a_reason_one_says_it_and_all_wait() {
        let said = AtomicU8::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    if take_last_word() {
                        // Longer than the others need to get here.
                        std::thread::sleep(Duration::from_millis(50));
                        assert!(take_last_word(), "what fails on the way is said");
                        said.fetch_add(1, Ordering::Relaxed);
                        last_word_is_said();
                        assert!(!take_last_word(), "it is said once");
                    } else {
                        assert_eq!(said.load(Ordering::Relaxed), 1);
                    }
                });
            }
        });
        assert_eq!(said.into_inner(), 1);
    }
}
