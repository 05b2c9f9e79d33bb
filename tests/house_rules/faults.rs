//! Every row of `tests/FAULTS.md` has a test that carries its number.
//! Never says that the test is a good one; only that nobody forgot it.

use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_row_of_the_fault_table_has_a_test_and_every_test_a_row() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("tests/FAULTS.md")).unwrap();
    let rows = numbers_of_rows(&table);
    assert!(rows.len() > 50, "the table is read wrongly: {rows:?}");
    let mut tested = BTreeSet::new();
    for folder in ["src", "protocol", "tests"] {
        collect(&root.join(folder), &mut tested);
    }
    let untested: Vec<_> = rows.difference(&tested).collect();
    assert!(untested.is_empty(), "rows without a test: {untested:?}");
    let unknown: Vec<_> = tested.difference(&rows).collect();
    assert!(
        unknown.is_empty(),
        "tests that name no row of the table: {unknown:?}"
    );
}

/// The first column: numbers, and runs such as `12–16`, separated by commas.
fn numbers_of_rows(table: &str) -> BTreeSet<u32> {
    let mut rows = BTreeSet::new();
    for line in table.lines() {
        let Some(first) = line
            .strip_prefix('|')
            .and_then(|line| line.split('|').next())
        else {
            continue;
        };
        for part in first.split(',') {
            let ends: Vec<u32> = part
                .split('–')
                .filter_map(|number| number.trim().parse().ok())
                .collect();
            match ends[..] {
                [one] => rows.extend([one]),
                [from, to] => rows.extend(from..=to),
                _ => {}
            }
        }
    }
    rows
}

/// `fn fault_31_…` names row 31, `fn fault_31_32_…` rows 31 and 32.
fn collect(folder: &Path, tested: &mut BTreeSet<u32>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, tested);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for after in text.split("fn fault_").skip(1) {
                let numbers = after.split('_').map_while(|word| word.parse::<u32>().ok());
                tested.extend(numbers);
            }
        }
    }
}

#[test]
fn runs_and_lists_in_the_first_column_are_understood() {
    let table = "| # | x |\n|---|---|\n| 1 | a 7 |\n| 3–5 | b |\n| 8, 10 | c |\n";
    assert_eq!(numbers_of_rows(table), BTreeSet::from([1, 3, 4, 5, 8, 10]));
}
