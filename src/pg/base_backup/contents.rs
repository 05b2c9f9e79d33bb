//! What belongs to a backup: the files of the data directory, in the order they are taken, and the
//! configuration files beside it.
//! Never reads a file of the data directory. Invariant: the control file is the last to be taken.

use std::collections::BTreeSet;

use walmgr_protocol::names::RelativePath;

use super::configs::BroughtConfig;
use super::listing::note_of_group_access;
use super::{Content, Item};
use crate::error::Result;
use crate::pg::conf::brought;
use crate::pg::data_directory::DataDirectory;
use crate::pg::layout;
use crate::pg::left_out::PassedOver;
use crate::pg::roots::Roots;
use crate::pg::walk;

/// From this size on files are taken largest first, so that no stream is left with a large one at
/// the end. Smaller ones keep their order, in which a directory's files follow one another.
const LARGE_FILE_BYTES: u64 = 1 << 20;

/// All that a backup of a data directory takes, in order, with what it leaves out; the roots hold its directories
/// open.
pub(crate) struct Contents {
    /// Where files are opened.
    pub roots: Roots,
    /// Directories, then files.
    pub items: Vec<Item>,
    /// The control file.
    pub last: Item,
    /// The OIDs of the tablespaces that are links.
    pub tablespaces: Vec<u32>,
    /// What the files held when they were listed.
    pub total_bytes: u64,
    /// What is left out, and a person should know of.
    pub notes: Vec<String>,
    /// What a server that is restored from the set may lack.
    pub left_out: Vec<PassedOver>,
    /// The note that the group has access, if it has.
    pub group_note: Option<Item>,
}

impl Contents {
    /// Lists everything but the files at the root that are named in `omitted`; `configs` lie beside the directory.
    pub(crate) fn list(
        data: &DataDirectory,
        omitted: &[&str],
        configs: &[BroughtConfig],
    ) -> Result<Contents> {
        let mut listing = walk::walk(data)?;
        // What a restore by hand has left is made anew.
        let is_brought = |path: &RelativePath| {
            let below = path.as_bytes().strip_prefix(brought::FOLDER.as_bytes());
            below.is_some_and(|below| below.is_empty() || below.starts_with(b"/"))
        };
        let is_omitted = |path: &RelativePath| {
            let mut omitted = omitted.iter();
            omitted.any(|name| name.as_bytes() == path.as_bytes())
        };
        (listing.files).retain(|file| !is_brought(&file.path) && !is_omitted(&file.path));
        listing.directories.retain(|path| !is_brought(path));
        let (left_out, harmless): (Vec<PassedOver>, Vec<_>) =
            (listing.passed_over.into_iter()).partition(|passed_over| passed_over.why.is_loss());
        let harmless = harmless.iter();
        let notes: Vec<String> = harmless
            .map(|passed_over| format!("not in the backup: {passed_over}"))
            .collect();
        let total_bytes = listing.files.iter().map(|file| file.size).sum();
        let target = |path: &RelativePath| target(path, &listing.tablespaces);
        let directories = listing.directories.iter().map(|path| Item {
            target: target(path),
            content: Content::Directory,
        });
        let mut items: Vec<Item> = directories.collect();
        let (mut large, small): (Vec<_>, Vec<_>) =
            (listing.files.into_iter()).partition(|file| file.size >= LARGE_FILE_BYTES);
        large.sort_by_key(|file| std::cmp::Reverse(file.size));
        let item = |file: walk::File| Item {
            target: target(&file.path),
            content: Content::File(file),
        };
        items.extend(brought_items(configs));
        items.extend(large.into_iter().chain(small).map(item));
        Ok(Contents {
            last: item(listing.control.clone()),
            roots: listing.roots,
            items,
            total_bytes,
            notes,
            left_out,
            group_note: listing.private.as_deref().and_then(note_of_group_access),
            tablespaces: listing.tablespaces,
        })
    }
}

/// The configuration files as the set itself has them, whole and of its own time.
fn brought_items(configs: &[BroughtConfig]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut folders = BTreeSet::new();
    for (name, _, content) in configs {
        let target = |name: &[u8]| {
            RelativePath::new(&[brought::FOLDER.as_bytes(), b"/", name].concat()).ok()
        };
        let Some(path) = target(name.as_bytes()) else {
            continue;
        };
        let above = name.parent().and_then(|above| target(above.as_bytes()));
        let root = RelativePath::new(brought::FOLDER.as_bytes()).ok();
        for folder in [root, above].into_iter().flatten() {
            if folders.insert(folder.as_bytes().to_vec()) {
                items.push(Item {
                    target: folder,
                    content: Content::Directory,
                });
            }
        }
        items.push(Item {
            target: path,
            content: Content::Note(content.clone()),
        });
    }
    items
}

/// Where a file goes: the content of a tablespace that is a link goes beside the links.
fn target(path: &RelativePath, tablespaces: &[u32]) -> RelativePath {
    let space = layout::tablespace_of(path.as_bytes(), layout::PG_TBLSPC);
    let linked = space.filter(|(oid, _)| tablespaces.contains(oid));
    // It is shorter than the path it comes from.
    let moved = linked.and_then(|_| layout::relocated(path, layout::PG_TBLSPC, layout::TMPSPC));
    moved.unwrap_or_else(|| path.clone())
}
