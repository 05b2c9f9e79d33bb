//! What README.md and the pages of docs/ promise, against the program and the files beside them.
//! Never edits one. Invariant: what exists is described, what is described exists, and no link leads nowhere.

use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use walmgr::cli::{Parsed, parse};

use crate::support::documents::{Document, manual, page, project};

#[test]
fn fault_183_the_reference_is_what_the_program_generates() {
    let folder = tempfile::tempdir().unwrap();
    let mut walmgr = Command::new(env!("CARGO_BIN_EXE_walmgr"));
    walmgr.args(["--generate", "reference"]).arg(folder.path());
    assert!(walmgr.output().unwrap().status.success());
    let generated = fs::read_dir(folder.path()).unwrap();
    let mut pages = 0;
    for file in generated.map(|file| file.unwrap()) {
        let name = file.file_name().into_string().unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        let checked_in = page(&format!("docs/reference/{name}")).text;
        assert!(
            text == checked_in,
            "docs/reference/{name} has drifted; type: cargo run -- --generate reference docs/reference"
        );
        pages += 1;
    }
    assert!(pages >= 3, "{pages}");
}

/// A row's width in letters, beyond which nobody reads a table. The addresses of links do not count.
const ROW_LETTERS_MAX: usize = 160;

#[test]
fn a_row_of_a_table_is_one_that_people_read() {
    for page in manual() {
        let rows = page.text.lines().filter(|line| line.starts_with('|'));
        let wide: Vec<&str> = rows
            .filter(|row| without_addresses(row).chars().count() > ROW_LETTERS_MAX)
            .collect();
        assert!(
            wide.is_empty(),
            "{}: say the rest below the table: {}",
            page.path.display(),
            wide.join("\n")
        );
    }
}

fn without_addresses(row: &str) -> String {
    let mut pieces = row.split("](");
    let mut text = pieces.next().unwrap().to_owned();
    for piece in pieces {
        text.push(']');
        text.push_str(piece.split_once(')').map_or("", |(_, rest)| rest));
    }
    text
}

const README_LINES_MAX: usize = 150;

#[test]
fn the_readme_is_read_in_one_go() {
    let lines = page("README.md").text.lines().count();
    assert!(
        lines <= README_LINES_MAX,
        "{lines} lines: more belongs into docs/"
    );
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut documents = manual();
    documents.extend(["CONTRIBUTING.md", "monitoring/README.md"].map(page));
    let mut broken = Vec::new();
    let mut found_count = 0;
    for document in &documents {
        for link in document.links() {
            if link.contains("://") {
                continue;
            }
            found_count += 1;
            if !leads_somewhere(document, &link) {
                broken.push(format!("{}: {link}", document.path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(found_count > 50, "{found_count}");
}

#[test]
fn every_page_is_reached_from_the_readme() {
    let pages = manual();
    let mut reached = vec![PathBuf::from("README.md")];
    let mut next = 0;
    while next < reached.len() {
        let here = pages.iter().find(|page| page.path == reached[next]);
        for link in here.map_or_else(Vec::new, Document::links) {
            let (file, _) = link.split_once('#').unwrap_or((&link, ""));
            if file.contains("://") || file.is_empty() {
                continue;
            }
            let target = resolved(&reached[next], file);
            // A forge lists a folder.
            let is_there = |path: &Path| path == target || path.parent() == Some(&target);
            for page in &pages {
                if is_there(&page.path) && !reached.contains(&page.path) {
                    reached.push(page.path.clone());
                }
            }
        }
        next += 1;
    }
    let lost: Vec<&Path> = pages
        .iter()
        .map(|page| page.path.as_path())
        .filter(|path| !reached.iter().any(|reached| reached == path))
        .collect();
    assert!(lost.is_empty(), "no page links to {lost:?}");
}

fn leads_somewhere(document: &Document, link: &str) -> bool {
    let (file, anchor) = match link.split_once('#') {
        Some((file, anchor)) => (file, Some(anchor)),
        None => (link, None),
    };
    let target = match file {
        "" => document.path.clone(),
        file => resolved(&document.path, file),
    };
    if !project().join(&target).exists() {
        return false;
    }
    anchor.is_none_or(|anchor| {
        page(target.to_str().unwrap())
            .anchors()
            .iter()
            .any(|known| known == anchor)
    })
}

/// The file that a link of a document names, from the project's directory.
fn resolved(document: &Path, file: &str) -> PathBuf {
    let mut path = document.parent().unwrap().to_path_buf();
    for component in Path::new(file).components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            component => path.push(component),
        }
    }
    path
}

#[test]
fn every_command_of_the_manual_is_one_that_can_be_typed() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in manual() {
        for line in page.walmgr_lines() {
            count += 1;
            let words = line.words.iter().map(|word| OsString::from(example(word)));
            if let Parsed::Usage(error, _) = parse(words) {
                wrong.push(format!(
                    "{}: {}: {error}",
                    page.path.display(),
                    line.words.join(" ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 200, "{count}");
}

/// What somebody types for a word that stands for it.
fn example(word: &str) -> &str {
    match word {
        "NAME" | "%f" => "000000010000000000000007",
        "OFFSET" => "0",
        "BYTES" => "24",
        word => word,
    }
}

/// Of PostgreSQL's configuration, where a page has it in a block.
const PARAMETERS: [&str; 5] = [
    "archive_command",
    "archive_mode",
    "hot_standby",
    "restore_command",
    "wal_retrieve_retry_interval",
];

#[test]
fn every_setting_that_a_page_tells_to_set_exists() {
    let reference = page("docs/reference/settings.md").text;
    let is_known = |name: &str| {
        let name = name.replacen("standby_", "slave_", 1);
        reference.contains(&format!("| `{name}` |")) || PARAMETERS.contains(&name.as_str())
    };
    let mut count = 0;
    for page in manual() {
        // They show other tools' settings, too.
        if page.path.starts_with("docs/moving") {
            continue;
        }
        for block in page.blocks() {
            for line in block.text.lines() {
                let Some((name, _)) = line.trim_start_matches('#').split_once(" = ") else {
                    continue;
                };
                let name = name.trim();
                if name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                {
                    count += 1;
                    assert!(is_known(name), "{}: {line}", page.path.display());
                }
            }
        }
    }
    assert!(count > 10, "{count}");
}
