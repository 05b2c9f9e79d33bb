//! The rule on who opens a finished file of WAL.
//! Never looks at what only tests compile. Invariant: whatever form a segment is stored in, everybody reads it through
//! `src/store/finished.rs`.

use super::source::Tree;

/// The file that knows the forms.
const READER: &str = "src/store/finished.rs";

/// What opens a file of `completed_wals` by its name.
const CALLS: [&str; 4] = [
    "completed.open_file(",
    "completed).open_file(",
    "completed_wals.join(name.to_string(",
    "completed_wals.join(segment.to_string(",
];

/// Nobody opens a segment beside the reader.
pub fn have_one_reader(tree: &Tree) -> Vec<String> {
    let sources = tree.rust().filter(|source| {
        let path = source.path.as_str();
        path.starts_with("src/") && !path.ends_with("_tests.rs") && path != READER
    });
    sources
        .flat_map(|source| {
            let (squeezed, places) = squeeze(&source.code);
            let found = CALLS.iter().flat_map(|call| {
                let found = squeezed.match_indices(*call);
                found.map(|(at, _)| (places[at], *call, at + call.len()))
            });
            let found: Vec<_> = found
                // The note of who makes a backup is no WAL.
                .filter(|(.., behind)| !squeezed[*behind..].starts_with("LEASE_NAME"))
                .map(|(position, call, _)| {
                    let line = source.line_at(position);
                    format!("{}:{line}: `{call}` belongs into {READER}", source.path)
                })
                .collect();
            found
        })
        .collect()
}

/// The code without white space, and where each byte of it stood.
fn squeeze(code: &str) -> (String, Vec<usize>) {
    let (mut squeezed, mut places) = (String::new(), Vec::new());
    for (at, char) in code.char_indices().filter(|(_, it)| !it.is_whitespace()) {
        squeezed.push(char);
        places.resize(squeezed.len(), at);
    }
    (squeezed, places)
}

#[cfg(test)]
mod tests {
    use super::super::planted::{assert_allowed, assert_caught};
    use super::*;

    #[test]
    fn opening_a_segment_beside_the_reader_is_caught() {
        let text = "fn f(&self) { (self.completed)\n    .open_file(&name)?; }";
        assert_caught(have_one_reader, "src/store/joints.rs", text);
        assert_allowed(have_one_reader, READER, text);
        let joined = "fn f() { File::open(config.completed_wals.join(segment.to_string())); }";
        assert_caught(have_one_reader, "src/standby/status.rs", joined);
        let note = "fn f(&self) { self.completed.open_file(LEASE_NAME)?; }";
        assert_allowed(have_one_reader, "src/store/sets/by_hand.rs", note);
    }
}
