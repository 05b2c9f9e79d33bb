//! The rule on doc comments: each stands alone, without the one above it or the module's.
//! Never judges what a comment says. Invariant: whoever begins a sentence by leaning on another comment sees it here
//! first.

use super::source::{Source, Tree};

/// How a sentence begins that means nothing without another comment.
const LEANING: [&str; 2] = ["The same", "See the module"];

/// Doc comments of the program with such a sentence.
pub fn in_docs(tree: &Tree) -> Vec<String> {
    let in_program = |source: &&Source| {
        source.path.starts_with("src/") || source.path.starts_with("protocol/src/")
    };
    tree.rust()
        .filter(in_program)
        .flat_map(leaning_docs)
        .collect()
}

fn leaning_docs(source: &Source) -> Vec<String> {
    let leans = |doc: &str| {
        let sentence = LEANING.iter().find(|begin| begins_sentence(doc, begin));
        sentence.copied()
    };
    doc_comments(&source.text)
        .into_iter()
        .filter_map(|(line, doc)| {
            let begin = leans(&doc)?;
            Some(format!(
                "{}:{line}: a doc comment says what its own item is or does, and not `{begin} …`",
                source.path
            ))
        })
        .collect()
}

/// Whether `words`, which begin with a capital, stand in the text as words of their own.
fn begins_sentence(doc: &str, words: &str) -> bool {
    doc.match_indices(words).any(|(at, _)| {
        let is_letter = |char: char| char.is_alphanumeric();
        !doc[..at].ends_with(is_letter) && !doc[at + words.len()..].starts_with(is_letter)
    })
}

/// Each doc comment on one line, and the number of its first line.
fn doc_comments(text: &str) -> Vec<(usize, String)> {
    let mut comments: Vec<(usize, String)> = Vec::new();
    let mut is_going_on = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        let words = line.strip_prefix("///").or(line.strip_prefix("//!"));
        match (words, comments.last_mut().filter(|_| is_going_on)) {
            (Some(words), Some((_, doc))) => {
                doc.push(' ');
                doc.push_str(words.trim());
            }
            (Some(words), None) => comments.push((number, words.trim().to_owned())),
            (None, _) => {}
        }
        is_going_on = words.is_some();
    }
    comments
}

#[cfg(test)]
mod tests {
    use super::super::planted::{assert_allowed, assert_caught};
    use super::*;

    #[test]
    fn a_doc_comment_that_leans_on_another_is_caught() {
        let pushes = "/// Pushes a file.\nfn push() {}\n\n";
        for leaning in [
            "/// The same for a directory.\nfn push_all() {}",
            "    /// Pushes all. The same as [`push`], twice.\n    fn push_all() {}",
            "/// Pushes all. The\n/// same as [`push`], twice.\nfn push_all() {}",
            "/// See the module.\nfn push_all() {}",
            "//! See the module's text.",
        ] {
            let text = format!("{pushes}{leaning}");
            assert_caught(in_docs, "src/master/push.rs", &text);
            assert_caught(in_docs, "protocol/src/session/push.rs", &text);
            assert_allowed(in_docs, "tests/push.rs", &text);
        }
    }

    #[test]
    fn a_doc_comment_that_stands_alone_is_allowed() {
        for alone in [
            "/// Pushes all files at the same time.\nfn push_all() {}",
            "/// Pushes all.\nfn push_all() {\n    // The same order as in the folder.\n}",
            "/// The\nfn push_all() {}\n/// same\nfn push() {}",
            "const A: &str = \"The same\";",
        ] {
            assert_allowed(in_docs, "src/master/push.rs", alone);
        }
    }
}
