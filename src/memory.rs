//! What happens when the memory is exhausted: one line, and an exit code that PostgreSQL counts.
//! Never allocates on that path. Invariant: a failed allocation in Rust code ends the process with the
//! chosen code; without this file it would abort (134), and that kills PostgreSQL's archiver process.
//!
//! Unsafe because an allocator is. The standard library has no stable hook for failed allocations,
//! and the crates that offer limits or hooks abort as well, so an allocator of our own is the only way;
//! nor does a safe crate offer handlers for the signals of a crash.
//! Code that asks with `try_reserve` ends here too; walmgr bounds sizes before it allocates instead.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

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
    let handler = end_for_crash as extern "C" fn(c_int);
    for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL] {
        // SAFETY: all zeros is a valid `sigaction`: no flags, nothing blocked. The handler makes two
        // system calls and touches atomics, which POSIX and Rust allow in a signal handler; it
        // runs on the stack that Rust gives every thread for this, as the thread's own may be full.
        #[allow(unsafe_code)]
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_ONSTACK;
            // The only error is a signal that cannot be handled, and these can.
            let _ = libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

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

/// Whether this process has said why it ends.
static SAID: AtomicBool = AtomicBool::new(false);

/// For whoever has just printed the line with which this process ends: memory that runs out
/// on the way to the exit adds none.
pub fn reason_is_said() {
    SAID.store(true, Ordering::Relaxed);
}

/// Whether this process has said why it ends.
pub fn is_reason_said() -> bool {
    SAID.load(Ordering::Relaxed)
}

/// Two threads can get here at once; the first one has the word.
fn end_saying(line: &[u8]) -> ! {
    if !SAID.swap(true, Ordering::Relaxed) {
        // A failed write changes nothing: the exit code still tells.
        let _ = rustix::io::write(rustix::stdio::stderr(), line);
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
