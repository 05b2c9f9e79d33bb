//! What every target shares: libFuzzer's entry, a listing of the edges that inputs reach, and seeds.
//! Never looks into an input. Invariant: an edge is listed with the address that the program's
//! debug information knows it by; build.rs sees to that.

mod seeds;

use std::path::{Path, PathBuf};

/// With this variable set, a target runs the files and folders it is given once each, and prints
/// every edge that is linked into it: its address, and 1 if an input reached it.
const EDGES: &str = "WALMGR_FUZZ_EDGES";

/// Makes a fuzz body the target that this binary is.
#[macro_export]
macro_rules! target {
    ($body:path) => {
        libfuzzer_sys::fuzz_target!(init: $crate::list_edges_if_asked($body), |bytes: &[u8]| {
            $body(bytes)
        });
    };
}

// The linker defines these around what `-sanitizer-coverage-inline-8bit-counters` and
// `-sanitizer-coverage-pc-table` write.
unsafe extern "C" {
    static mut __start___sancov_cntrs: u8;
    static __stop___sancov_cntrs: u8;
    static __start___sancov_pcs: [usize; 2];
}

/// Called before libFuzzer begins; does not return when it was asked for edges.
pub fn list_edges_if_asked(body: fn(&[u8])) {
    if std::env::var_os(EDGES).is_none() {
        return;
    }
    let mut reached = vec![false; edges().len()];
    for path in std::env::args_os().skip(1) {
        for file in files_in(Path::new(&path)) {
            match std::fs::read(&file) {
                Ok(bytes) => body(&bytes),
                Err(error) => eprintln!("{} was not read: {error}", file.display()),
            }
            // After every input: a counter has eight bits and begins again behind 255.
            for (reached, (_, count)) in reached.iter_mut().zip(edges()) {
                *reached |= count > 0;
            }
            clear_counters();
        }
    }
    let mut listing = String::new();
    for ((address, _), reached) in edges().iter().zip(reached) {
        listing.push_str(&format!("{address:x} {}\n", u8::from(reached)));
    }
    print!("{listing}");
    std::process::exit(0);
}

/// The program `write_seeds`; does not return.
pub fn write_seeds() {
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let Some(folder) = paths.next() else {
        eprintln!("usage: write_seeds FOLDER [COLLECTED]");
        std::process::exit(2);
    };
    let written = seeds::write(&folder, paths.next().as_deref());
    if let Err(error) = &written {
        eprintln!(
            "the seeds were not written into {}: {error}",
            folder.display()
        );
    }
    std::process::exit(i32::from(written.is_err()));
}

/// A file, or the files of a folder.
fn files_in(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return vec![path.to_owned()];
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// Every edge that is linked: its address, and how often it was passed.
fn edges() -> Vec<(usize, u8)> {
    // SAFETY: the linker puts the symbols around whole arrays that live as long as the program;
    // for each counter there is one entry of the table, and this program has one thread.
    unsafe {
        let first = &raw const __start___sancov_cntrs;
        let table = &raw const __start___sancov_pcs;
        // Where the linker dropped a function, the table says 0.
        (0..counters())
            .map(|at| ((*table.add(at))[0], *first.add(at)))
            .filter(|(address, _)| *address != 0)
            .collect()
    }
}

fn clear_counters() {
    // SAFETY: as above; nothing holds a reference to a counter.
    unsafe { (&raw mut __start___sancov_cntrs).write_bytes(0, counters()) }
}

fn counters() -> usize {
    // SAFETY: both symbols belong to one array.
    unsafe {
        let first = &raw const __start___sancov_cntrs;
        (&raw const __stop___sancov_cntrs).offset_from_unsigned(first)
    }
}
