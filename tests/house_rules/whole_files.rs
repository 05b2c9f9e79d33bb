//! The rule on reading and writing whole files by their paths.
//! Never looks at what only tests compile. Invariant: whatever has the name of a file, no command waits for it, reads it
//! without end, or writes through it.

use super::source::Tree;

/// Calls that wait for whoever writes into a FIFO, read a device to its end, and write through a link.
const CALLS: [&str; 3] = ["fs::read(", "fs::read_to_string(", "fs::write("];

/// `files.rs` does none of that. The others read what the kernel says of processes, or write pages for a package.
const CALLERS: [&str; 8] = [
    "src/files.rs",
    "src/abnormal.rs",
    "src/cli/generate.rs",
    "src/master/backup/origin.rs",
    "src/standby/absent_notes.rs",
    "src/standby/backup/standstill.rs",
    "src/standby/connected.rs",
    "src/store/partial/acknowledged.rs",
];

/// Whole files are read and written in `files.rs`.
pub fn in_one_place(tree: &Tree) -> Vec<String> {
    let sources = tree.rust().filter(|source| {
        let path = source.path.as_str();
        path.starts_with("src/") && !path.ends_with("_tests.rs") && !CALLERS.contains(&path)
    });
    sources
        .flat_map(|source| {
            let calls = CALLS.iter();
            let found = calls.flat_map(|call| source.code.match_indices(call));
            found.map(|(position, call)| {
                let line = source.line_at(position);
                format!("{}:{line}: `{call}` belongs into src/files.rs", source.path)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::planted::{assert_allowed, assert_caught};
    use super::*;

    #[test]
    fn reading_a_whole_file_elsewhere_is_caught() {
        let text = "fn f(path: &Path) { std::fs::read(path).ok(); }";
        assert_caught(in_one_place, "src/standby/boot.rs", text);
        let written = "fn f(path: &Path) { fs::write(path, b\"\").ok(); }";
        assert_caught(in_one_place, "src/pg/needs.rs", written);
        assert_allowed(in_one_place, "src/files.rs", text);
        let ours = "fn f(path: &Path) { files::read(path).ok(); }";
        assert_allowed(in_one_place, "src/standby/boot.rs", ours);
    }
}
