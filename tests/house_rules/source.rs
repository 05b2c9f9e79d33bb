//! Source text as the rules read it: code without comments, literals and what only tests compile.
//! Never parses Rust: it knows where comments and literals end, and counts braces. Invariant: line
//! breaks stay where they are, so a place in the code is a place in the file.

use std::collections::BTreeSet;
use std::path::Path;

/// One file of the tree.
pub struct Source {
    /// Relative to the root of the tree, with `/`.
    pub path: String,
    /// As it is on disk.
    pub text: String,
    /// Without comments, literals and `#[cfg(test)]` items; empty for a file that only tests use.
    pub code: String,
}

/// Every text file of a tree, sorted by path.
pub struct Tree(pub Vec<Source>);

impl Tree {
    /// Reads what is under `root`, except build results and version control.
    pub fn read(root: &Path) -> Tree {
        let mut files = Vec::new();
        collect(root, root, &mut files);
        Tree::of(files)
    }

    /// A tree made up of these paths and texts.
    pub fn of(mut files: Vec<(String, String)>) -> Tree {
        files.sort();
        let bare: Vec<String> = files
            .iter()
            .map(|(path, text)| {
                if is_rust(path) {
                    bare(text)
                } else {
                    String::new()
                }
            })
            .collect();
        let test_modules: BTreeSet<String> = files
            .iter()
            .zip(&bare)
            .flat_map(|((path, _), code)| {
                test_modules(code)
                    .into_iter()
                    .map(|name| format!("{}/{name}", children_of(path)))
            })
            .collect();
        let sources = files.into_iter().zip(bare).map(|((path, text), code)| {
            let code = match only_for_tests(&path, &test_modules) {
                true => String::new(),
                false => without_test_items(&code),
            };
            Source { path, text, code }
        });
        Tree(sources.collect())
    }

    /// The files of Rust code.
    pub fn rust(&self) -> impl Iterator<Item = &Source> {
        self.0.iter().filter(|source| is_rust(&source.path))
    }
}

impl Source {
    /// The line of this byte of `code`, counted from 1.
    pub fn line_at(&self, position: usize) -> usize {
        self.code[..position].matches('\n').count() + 1
    }

    /// Every identifier of the code and where it begins.
    pub fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        words(&self.code)
    }
}

/// Every identifier in `code` and where it begins.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut position = 0;
    std::iter::from_fn(move || {
        let rest = &code[position..];
        let begin = position + rest.find(is_word)?;
        let length = code[begin..]
            .find(|c| !is_word(c))
            .unwrap_or(code.len() - begin);
        position = begin + length;
        Some((begin, &code[begin..position]))
    })
}

pub fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        let skipped = ["target", ".git", "corpus", "artifacts", "node_modules"];
        if skipped.iter().any(|skipped| name == *skipped) {
            continue;
        }
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            collect(root, &entry.path(), files);
        } else if kind.is_file()
            && let Ok(text) = std::fs::read_to_string(entry.path())
        {
            let path = entry
                .path()
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            files.push((path, text));
        }
    }
}

/// The folder in which a file's child modules are looked for.
fn children_of(path: &str) -> String {
    let stem = path.trim_end_matches(".rs");
    match stem.rsplit_once('/') {
        Some((folder, "mod" | "lib" | "main")) => folder.to_owned(),
        _ => stem.to_owned(),
    }
}

/// The names that `#[cfg(test)] mod NAME;` declares.
fn test_modules(code: &str) -> Vec<String> {
    code.split("#[cfg(test)]")
        .skip(1)
        .filter_map(|behind| {
            let item = &behind[..behind.find(['{', ';'])?];
            let declared = behind[item.len()..].starts_with(';');
            let name = words(item)
                .map(|(_, word)| word)
                .skip_while(|word| *word != "mod")
                .nth(1)?;
            declared.then(|| name.to_owned())
        })
        .collect()
}

fn only_for_tests(path: &str, test_modules: &BTreeSet<String>) -> bool {
    let in_test_folder = path.starts_with("tests/") || path.contains("/tests/");
    in_test_folder
        || path.starts_with("benches/")
        || test_modules.iter().any(|module| {
            path.strip_prefix(module.as_str())
                .is_some_and(|behind| behind == ".rs" || behind.starts_with('/'))
        })
}

/// Blanks every item behind `#[cfg(test)]`.
fn without_test_items(code: &str) -> String {
    let mut rest = code;
    let mut kept = String::with_capacity(code.len());
    while let Some(begin) = rest.find("#[cfg(test)]") {
        kept.push_str(&rest[..begin]);
        let length = item_length(&rest[begin..]);
        kept.extend(rest[begin..begin + length].chars().map(blank));
        rest = &rest[begin + length..];
    }
    kept + rest
}

/// Up to the `;` or the closing brace of the item that `code` begins with.
fn item_length(code: &str) -> usize {
    let mut depth = 0_usize;
    for (position, character) in code.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth <= 1 => return position + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return position + 1,
            _ => {}
        }
    }
    code.len()
}

fn blank(character: char) -> char {
    if character == '\n' { '\n' } else { ' ' }
}

/// `text` with comments and the insides of literals blanked.
fn bare(text: &str) -> String {
    let mut rest = text;
    let mut code = String::with_capacity(text.len());
    let mut in_word = false;
    while let Some(character) = rest.chars().next() {
        let skipped = if in_word { 0 } else { raw_string(rest) };
        let skipped = if skipped > 0 {
            skipped
        } else {
            comment_or_literal(rest)
        };
        let length = if skipped > 0 {
            skipped
        } else {
            character.len_utf8()
        };
        let (piece, behind) = rest.split_at(length);
        match skipped {
            0 => code.push_str(piece),
            _ => code.extend(piece.chars().map(blank)),
        }
        in_word = is_word(character) && skipped == 0;
        rest = behind;
    }
    code
}

/// The length of the comment, string or character that `text` begins with, or 0.
fn comment_or_literal(text: &str) -> usize {
    if text.starts_with("//") {
        text.find('\n').unwrap_or(text.len())
    } else if text.starts_with("/*") {
        block_comment(text)
    } else if text.starts_with('"') {
        quoted(text, '"')
    } else if let Some(behind) = text.strip_prefix('\'') {
        // A lifetime has no quote behind its first character.
        let mut behind = behind.chars();
        match (behind.next(), behind.next()) {
            (Some('\\'), _) | (Some(_), Some('\'')) => quoted(text, '\''),
            _ => 0,
        }
    } else {
        0
    }
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut position = 0;
    while position < text.len() {
        if text[position..].starts_with("/*") {
            depth += 1;
            position += 2;
        } else if text[position..].starts_with("*/") {
            depth -= 1;
            position += 2;
            if depth == 0 {
                return position;
            }
        } else {
            position += text[position..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (position, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return position + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_string(text: &str) -> usize {
    let prefix = ["br", "cr", "r"]
        .into_iter()
        .find(|prefix| text.starts_with(prefix));
    let Some(behind) = prefix.map(|prefix| &text[prefix.len()..]) else {
        return 0;
    };
    let hashes = behind.len() - behind.trim_start_matches('#').len();
    if !behind[hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let inside = &behind[hashes + 1..];
    let length = inside
        .find(&end)
        .map_or(inside.len(), |position| position + end.len());
    text.len() - inside.len() + length
}

#[test]
fn comments_literals_and_test_items_are_blanked_and_the_rest_is_kept() {
    let text = r###"//! fsync
use a; // fsync
/* fsync /* fsync */ fsync */ fn keep<'a>(x: &'a str) -> char { '"' }
const A: &str = "fsync \" fsync"; const B: char = '\''; const C: &str = r#"fsync " fsync"#;
#[cfg(test)]
mod tests { fn fsync() { if x { } } }
fn also() {}
"###;
    let tree = Tree::of(vec![("src/a.rs".to_owned(), text.to_owned())]);
    let source = &tree.0[0];
    assert_eq!(source.code.len(), text.len());
    let found: Vec<&str> = source.words().map(|(_, word)| word).collect();
    assert!(!found.contains(&"fsync"), "{found:?}");
    for word in ["keep", "char", "A", "B", "C", "also"] {
        assert!(found.contains(&word), "{word}: {found:?}");
    }
    assert_eq!(source.line_at(source.code.find("also").unwrap()), 7);
}

#[test]
fn a_module_that_only_tests_compile_has_no_code() {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let tree = Tree::of(vec![
        file(
            "src/store/mod.rs",
            "#[cfg(test)]\npub(crate) mod testing;\nmod real;",
        ),
        file("src/store/testing/disk.rs", "fn a() {}"),
        file("src/store/real.rs", "#[cfg(test)]\nmod tests;\nfn b() {}"),
        file("src/store/real/tests.rs", "fn c() {}"),
        file("src/store/realistic.rs", "fn d() {}"),
        file("protocol/tests/e.rs", "fn e() {}"),
    ]);
    let with_code: Vec<&str> = tree
        .0
        .iter()
        .filter(|source| !source.code.trim().is_empty())
        .map(|source| source.path.as_str())
        .collect();
    assert_eq!(
        with_code,
        [
            "src/store/mod.rs",
            "src/store/real.rs",
            "src/store/realistic.rs"
        ]
    );
}
