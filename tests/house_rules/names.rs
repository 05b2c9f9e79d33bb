//! A test's name is one statement that fits into a line of a report, and a type's name stands for one thing.
//! Never judges what a name says. Invariant: whoever adds one that is too long or taken sees it here first.

use std::collections::BTreeMap;

use super::source::{Source, Tree, words};

/// Longest name of a test, in characters.
const TEST_NAME_MAX: usize = 70;

/// What defines a type.
const DEFINITIONS: [&str; 4] = ["struct", "enum", "trait", "union"];

/// Types of one name in two places, of one room or of two.
pub(super) fn of_types(tree: &Tree) -> Vec<String> {
    let mut defined: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for source in tree.rust().filter(|source| source.path.contains("src/")) {
        let mut words = source.words().peekable();
        while let Some((_, word)) = words.next() {
            if let Some((at, name)) = words.peek().filter(|_| DEFINITIONS.contains(&word)) {
                let place = format!("{}:{}", source.path, source.line_at(*at));
                defined.entry(name).or_default().push(place);
            }
        }
    }
    defined.retain(|_, places| places.len() > 1);
    let in_words = |(name, places): (&str, Vec<String>)| {
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
    fn a_type_name_of_two_places_is_caught() {
        let beside = |path: &str, text: &str| {
            let files = [("src/pg/a.rs", "struct A;"), (path, text)];
            let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
            of_types(&Tree::of(files.to_vec()))
        };
        for (path, text, places) in [
            (
                "protocol/src/b.rs",
                "pub enum A {}",
                "2 things: protocol/src/b.rs:1, src/pg/a.rs:1",
            ),
            (
                "src/pg/b.rs",
                "pub enum A {}",
                "2 things: src/pg/a.rs:1, src/pg/b.rs:1",
            ),
            (
                "src/pg/b.rs",
                "mod c {\nstruct A;\n}\ntrait A {}",
                "3 things: src/pg/a.rs:1, src/pg/b.rs:2, src/pg/b.rs:4",
            ),
        ] {
            assert_eq!(beside(path, text), [format!("`A` stands for {places}")]);
        }
        for text in [
            "impl A { fn b() {} }",
            "#[cfg(test)]\nmod tests { struct A; }",
        ] {
            assert!(beside("src/pg/b.rs", text).is_empty(), "{text}");
        }
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
