//! What README.md and the pages of docs/ promise, against the program and the files beside them.
//! Never edits one. Invariant: what exists is described, what is described exists, and no link leads nowhere.

use std::path::{Component, Path, PathBuf};

use walmgr::test_support::config::keys::Side;
use walmgr::test_support::config::sample::{readme_rows, readme_rows_not_yet};

use crate::support::documents::{Document, manual, page, project};

const HEAD: &str = "| setting | value | default | meaning |\n|---|---|---|---|\n";

const NOT_YET: &str = "Checked already, and **not used by this version yet**:";

#[test]
fn the_readme_describes_every_setting() {
    let text = page("docs/reference/settings.md").text;
    for (title, side) in [
        ("Master", Side::Master),
        ("Standby", Side::Standby),
        ("Host", Side::Host),
    ] {
        let (used, not_yet) = (readme_rows(side), readme_rows_not_yet(side));
        let mut section = format!("## {title}\n\n{HEAD}{used}");
        if !not_yet.is_empty() {
            section.push_str(&format!("\n{NOT_YET}\n\n{HEAD}{not_yet}"));
        }
        assert!(
            text.contains(&section),
            "docs/reference/settings.md: the table of the {title} has to be:\n\n{section}"
        );
    }
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
    documents.push(page("CONTRIBUTING.md"));
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
            if file.contains("://") {
                continue;
            }
            let target = resolved(&reached[next], file);
            // A forge lists a folder.
            let below = |page: &&Document| page.path.parent() == Some(&target);
            reached.extend(pages.iter().filter(below).map(|page| page.path.clone()));
            if !reached.contains(&target) {
                reached.push(target);
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
