//! A test's name is one statement that fits into a line of a report.
//! Never judges what it states. Invariant: whoever adds a longer one sees it here first.

use super::source::{Source, Tree, words};

/// Longest name of a test, in characters.
const TEST_NAME_MAX: usize = 70;

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
    fn a_long_name_of_a_test_is_caught_and_that_of_a_helper_is_not() {
        let long = "n".repeat(TEST_NAME_MAX + 1);
        let found = |text: String| of_tests(&Tree::of(vec![("tests/a.rs".to_owned(), text)]));
        assert_eq!(found(format!("#[test]\nfn {long}() {{}}\n")).len(), 1);
        let asynchronous = format!("#[tokio::test]\n#[ignore]\nasync fn {long}() {{}}\n");
        assert_eq!(found(asynchronous).len(), 1);
        assert!(found(format!("fn {long}() {{}}\n")).is_empty());
        let short = &long[1..];
        assert!(found(format!("#[test]\nfn {short}() {{}}\nfn {long}() {{}}\n")).is_empty());
    }
}
