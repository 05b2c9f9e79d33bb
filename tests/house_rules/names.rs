//! A test's name is one statement that fits into a line of a report, and a type's name stands for one thing.
//! Never judges what a name says. Invariant: whoever adds one that is too long or taken sees it here first.

use std::collections::{BTreeMap, BTreeSet};

use super::circles::room_of;
use super::source::{Source, Tree, words};

/// Longest name of a test, in characters.
const TEST_NAME_MAX: usize = 70;

/// What defines a type.
const DEFINITIONS: [&str; 4] = ["struct", "enum", "trait", "union"];

/// Types of one name in two rooms.
pub(super) fn of_types(tree: &Tree) -> Vec<String> {
    let mut defined: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
    for source in tree.rust().filter(|source| source.path.contains("src/")) {
        let mut words = source.words().peekable();
        while let Some((_, word)) = words.next() {
            if let Some((at, name)) = words.peek().filter(|_| DEFINITIONS.contains(&word)) {
                let place = format!("{}:{}", source.path, source.line_at(*at));
                defined
                    .entry(name)
                    .or_default()
                    .insert(room_of(&source.path), place);
            }
        }
    }
    defined.retain(|_, rooms| rooms.len() > 1);
    let in_words = |(name, rooms): (&str, BTreeMap<&str, String>)| {
        let places: BTreeSet<String> = rooms.into_values().collect();
        let places: Vec<String> = places.into_iter().collect();
        format!(
            "`{name}` stands for {} things: {}",
            places.len(),
            places.join(", ")
        )
    };
    defined.into_iter().map(in_words).collect()
}

/// Tests with longer names.
pub(super) fn of_tests(tree: &Tree) -> Vec<String> {
    tree.rust().flat_map(long_names).collect()
}

fn long_names(source: &Source) -> Vec<String> {
    let mut violations = Vec::new();
    let mut is_test = false;
    for (number, line) in (1..).zip(source.text.lines()) {
        let line = line.trim_start();
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if is_test && !line.starts_with("#[") {
            is_test = false;
            let mut names = words(line).skip_while(|(_, word)| *word != "fn");
            let name = names.nth(1).map_or("", |(_, name)| name);
            if name.chars().count() > TEST_NAME_MAX {
                violations.push(format!(
                    "{}:{number}: `{name}` has more than {TEST_NAME_MAX} characters",
                    source.path
                ));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_name_of_two_rooms_is_caught() {
        let found = |files: [(&str, &str); 2]| {
            let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
            of_types(&Tree::of(files.to_vec()))
        };
        let (one, other) = (
            ("src/pg/a.rs", "struct A;"),
            ("protocol/src/b.rs", "pub enum A {}"),
        );
        assert_eq!(
            found([one, other]),
            ["`A` stands for 2 things: protocol/src/b.rs:1, src/pg/a.rs:1"]
        );
        assert!(found([one, ("src/pg/b.rs", "struct A;")]).is_empty());
        assert!(found([one, ("src/wal/b.rs", "impl A { fn b() {} }")]).is_empty());
        assert!(
            found([
                one,
                ("src/wal/b.rs", "#[cfg(test)]\nmod tests { struct A; }")
            ])
            .is_empty()
        );
    }

    #[test]
    fn a_long_name_of_a_test_is_caught_and_that_of_a_helper_is_not() {
        let long = "n".repeat(TEST_NAME_MAX + 1);
        let found = |text: String| of_tests(&Tree::of(vec![("tests/a.rs".to_owned(), text)]));
        assert_eq!(found(format!("#[test]\nfn {long}() {{}}\n")).len(), 1);
        let asynchronous = format!("#[tokio::test]\n#[should_panic]\nasync fn {long}() {{}}\n");
        assert_eq!(found(asynchronous).len(), 1);
        assert!(found(format!("fn {long}() {{}}\n")).is_empty());
        let short = &long[1..];
        assert!(found(format!("#[test]\nfn {short}() {{}}\nfn {long}() {{}}\n")).is_empty());
    }
}
