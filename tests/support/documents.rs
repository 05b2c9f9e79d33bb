//! The documents: README.md, CONTRIBUTING.md, and each page below docs/, as they are checked in.
//! Never edits one. Invariant: a test about what a document says reads it here, so no page escapes it.

use std::fs;
use std::path::{Path, PathBuf};

/// A document.
#[derive(Clone, Debug)]
pub struct Document {
    /// From the project's directory.
    pub path: PathBuf,
    pub text: String,
}

/// A stretch of a document that is indented by four columns or fenced: what is typed, or printed.
#[derive(Clone, Debug)]
pub struct Block {
    /// Of its first line, from 1.
    pub line_number: usize,
    /// Without the indentation.
    pub text: String,
}

/// A call of walmgr that a page tells to type, or to put into a file.
#[derive(Clone, Debug)]
pub struct WalmgrLine {
    /// The program first.
    pub words: Vec<String>,
}

pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and the pages of docs/: what a user reads.
pub fn manual() -> Vec<Document> {
    let mut paths = vec![PathBuf::from("README.md")];
    pages_below(Path::new("docs"), &mut paths);
    paths.sort();
    assert!(paths.len() > 20, "{paths:?}");
    paths.into_iter().map(document).collect()
}

/// One page of the manual.
pub fn page(path: &str) -> Document {
    document(PathBuf::from(path))
}

/// Everything that the manual says, for a test that does not care where.
pub fn whole_manual() -> String {
    manual().into_iter().map(|page| page.text).collect()
}

fn document(path: PathBuf) -> Document {
    let text = fs::read_to_string(project().join(&path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Document { path, text }
}

fn pages_below(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(project().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = folder.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            pages_below(&path, paths);
        } else if path.extension().is_some_and(|end| end == "md") {
            paths.push(path);
        }
    }
}

impl Document {
    /// What is typed or printed.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let (mut is_open, mut is_fenced) = (false, false);
        for (index, line) in self.text.lines().enumerate() {
            if line.starts_with("```") {
                (is_fenced, is_open) = (!is_fenced, false);
                continue;
            }
            let inside = match is_fenced {
                true => Some(line),
                false => line.strip_prefix("    "),
            };
            match inside {
                Some(text) if is_open => {
                    let block = blocks.last_mut().unwrap();
                    block.text.push_str(text);
                    block.text.push('\n');
                }
                Some(text) => {
                    is_open = true;
                    blocks.push(Block {
                        line_number: index + 1,
                        text: format!("{text}\n"),
                    });
                }
                None => is_open = false,
            }
        }
        blocks
    }

    /// Each call of walmgr, of blocks and within sentences; a call names an ini file.
    pub fn walmgr_lines(&self) -> Vec<WalmgrLine> {
        let mut texts = self.block_texts();
        let prose = self.prose();
        let spans = prose.split('`').skip(1).step_by(2);
        texts.extend(spans.map(|span| span.replace('\n', " ")));
        texts.iter().filter_map(|text| walmgr_line(text)).collect()
    }

    /// Those of blocks alone: what somebody who follows the page types, in its order.
    pub fn typed_lines(&self) -> Vec<WalmgrLine> {
        let texts = self.block_texts();
        texts.iter().filter_map(|text| walmgr_line(text)).collect()
    }

    fn block_texts(&self) -> Vec<String> {
        let joined = |block: Block| block.text.replace("\\\n", " ");
        let blocks = self.blocks().into_iter().map(joined);
        blocks
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    /// The text without what is typed or printed.
    pub fn prose(&self) -> String {
        let mut is_fenced = false;
        let lines = self.text.lines().filter(|line| {
            let is_fence = line.starts_with("```");
            is_fenced ^= is_fence;
            !is_fence && !is_fenced && !line.starts_with("    ")
        });
        lines.map(|line| format!("{line}\n")).collect()
    }

    /// The anchors that a forge gives its headings.
    pub fn anchors(&self) -> Vec<String> {
        let prose = self.prose();
        let headings = prose.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| anchor(line.trim_start_matches('#').trim()))
            .collect()
    }

    /// The target of each link, as written.
    pub fn links(&self) -> Vec<String> {
        let prose = self.prose();
        let mut links = Vec::new();
        for (at, _) in prose.match_indices("](") {
            let rest = &prose[at + 2..];
            let end = rest.find(')').expect("a link ends");
            links.push(rest[..end].to_owned());
        }
        links
    }
}

fn walmgr_line(text: &str) -> Option<WalmgrLine> {
    let at = text.match_indices("walmgr ").map(|(at, _)| at);
    let at = at.last().filter(|at| {
        let before = text[..*at].chars().next_back();
        before.is_none_or(|letter| " /'\"".contains(letter))
    })?;
    let mut rest = &text[at..];
    // The value of a parameter ends where its quote does.
    let program = text[..at]
        .rfind(char::is_whitespace)
        .map_or(0, |space| space + 1);
    if text[program..].starts_with('\'') {
        rest = rest.split('\'').next()?;
    }
    for end in [" #", "   --", " | ", " && ", " ;", "; ", " > "] {
        rest = rest.split(end).next()?;
    }
    let words = shell_words(rest);
    let is_call = words.iter().any(|word| word.ends_with(".ini"));
    is_call.then_some(WalmgrLine { words })
}

/// The words as a shell takes them apart, without the dots that stand for more of them.
fn shell_words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut quote, mut is_open) = (None, false);
    for letter in text.chars() {
        match (letter, quote) {
            (letter, Some(open)) if letter == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(letter);
                if !is_open {
                    words.push(String::new());
                    is_open = true;
                }
            }
            (letter, None) if letter.is_whitespace() => is_open = false,
            (letter, _) => {
                if !is_open {
                    words.push(String::new());
                    is_open = true;
                }
                words.last_mut().unwrap().push(letter);
            }
        }
    }
    words.retain(|word| word != "…" && word != "...");
    words
}

fn anchor(heading: &str) -> String {
    let heading = heading.to_lowercase();
    let kept = heading.chars().filter_map(|letter| match letter {
        ' ' => Some('-'),
        '-' | '_' => Some(letter),
        letter if letter.is_alphanumeric() => Some(letter),
        _ => None,
    });
    kept.collect()
}
