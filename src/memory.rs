//! What happens when the memory is exhausted: one line, and an exit code that PostgreSQL counts.
//! Never allocates on that path. Invariant: a failed allocation in Rust code ends the process with the
//! chosen code; without this file it would abort (134), and that kills PostgreSQL's archiver process.
//!
//! Unsafe because an allocator is. The standard library has no stable hook for failed allocations,
//! and the crates that offer limits or hooks abort as well, so an allocator of our own is the only way.
//! Code that asks with `try_reserve` ends here too; walmgr bounds sizes before it allocates instead.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::c_int;
use std::sync::atomic::{AtomicU8, Ordering};

/// The system's allocator, except that it ends the process instead of answering with null.
pub struct EndWhenExhausted;

static EXIT_CODE: AtomicU8 = AtomicU8::new(1);

/// Sets the code to exit with. Until it is called the code is 1.
pub fn exit_with_when_exhausted(code: u8) {
    EXIT_CODE.store(code, Ordering::Relaxed);
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
    // A failed write changes nothing: the exit code still tells.
    let _ = rustix::io::write(
        rustix::stdio::stderr(),
        b"walmgr: out of memory; raise the memory limit of this process or free memory\n",
    );
    end_without_cleaning_up(c_int::from(EXIT_CODE.load(Ordering::Relaxed)))
}

#[allow(unsafe_code)]
// SAFETY: `_exit` (POSIX) takes any integer and does not return. `std::process::exit` would run
// handlers that may allocate again, which is how one would get here twice.
unsafe extern "C" {
    #[link_name = "_exit"]
    safe fn end_without_cleaning_up(code: c_int) -> !;
}
