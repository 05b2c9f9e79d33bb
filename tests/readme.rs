//! What the README promises about settings, against the program's own table.
//! Never edits it. Invariant: a setting that exists is described there, and nothing else is.

use std::path::Path;

use walmgr::test_support::config::keys::Side;
use walmgr::test_support::config::sample::{readme_rows, readme_rows_not_yet};

const HEAD: &str = "| setting | value | default | meaning |\n|---|---|---|---|\n";

const NOT_YET: &str = "Checked already, and **not used by this version yet**:";

#[test]
fn the_readme_describes_every_setting() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(path).unwrap();
    for (title, side) in [
        ("Master", Side::Master),
        ("Standby", Side::Standby),
        ("Host", Side::Host),
    ] {
        let (used, not_yet) = (readme_rows(side), readme_rows_not_yet(side));
        let section = format!("### {title}\n\n{HEAD}{used}\n{NOT_YET}\n\n{HEAD}{not_yet}\n");
        assert!(
            text.contains(&section),
            "the README's table of the {title} has to be:\n\n{section}"
        );
    }
}

/// A row's width in letters, beyond which nobody reads a table.
const ROW_LETTERS_MAX: usize = 160;

#[test]
fn a_row_of_the_readme_is_one_that_people_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter(|line| line.starts_with('|'));
    let wide: Vec<&str> = rows
        .filter(|row| row.chars().count() > ROW_LETTERS_MAX)
        .collect();
    assert!(
        wide.is_empty(),
        "say the rest below the table: {}",
        wide.join("\n")
    );
}
