//! What belongs to a backup: the files of the data directory, in the order they are sent, and the
//! configuration files beside it; and the manifest that lists what arrived.
//! Never reads a file of the data directory. Invariant: the control file is the last to be sent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use walmgr_protocol::limits::{CONFIG_FILE_BYTES_MAX, CONFIG_FILES_MAX};
use walmgr_protocol::names::RelativePath;

use crate::config::MasterConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::master::backup::work_queue::{BadBlock, Content, Item, WorkQueue};
use crate::master::cluster::ClusterFacts;
use crate::pg::backup_label::BackupLabel;
use crate::pg::conf::foreign::is_outside_postgresql;
use crate::pg::conf::{self, PieceKind, brought};
use crate::pg::data_directory::DataDirectory;
use crate::pg::group_access;
use crate::pg::layout;
use crate::pg::left_out::{self, PassedOver};
use crate::pg::manifest::{self, Checksum, FileEntry, WalRange};
use crate::pg::roots::Roots;
use crate::pg::sql::Session;
use crate::pg::sql_backup::FinishedBackup;
use crate::pg::walk;

/// From this size on files are sent largest first, so that no stream is left with a large one at
/// the end. Smaller ones keep their order, in which a directory's files follow one another.
const LARGE_FILE_BYTES: u64 = 1 << 20;

/// A configuration file beside the data directory: its name, where it is, and what is in it.
pub(crate) type BroughtConfig = (RelativePath, PathBuf, Bytes);

/// All that a backup of a data directory sends, in order, with what it leaves out; the roots hold its directories
/// open.
pub(crate) struct Contents {
    /// Where files are opened.
    pub roots: Roots,
    /// Directories, then files.
    pub items: Vec<Item>,
    /// The control file.
    pub last: Item,
    /// Configuration files that lie elsewhere.
    pub configs: Vec<BroughtConfig>,
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
    /// Lists everything.
    pub(crate) async fn list(config: &MasterConfig, session: &Session) -> Result<Contents> {
        let data = DataDirectory::open(&config.master_data)?;
        let mut listing = tokio::task::spawn_blocking(move || walk::walk(&data))
            .await
            .map_err(|error| CommandError::retry("list the data directory").because(error))??;
        // What a restore by hand has left is made anew.
        let is_brought = |path: &RelativePath| {
            let below = path.as_bytes().strip_prefix(brought::FOLDER.as_bytes());
            below.is_some_and(|below| below.is_empty() || below.starts_with(b"/"))
        };
        listing.files.retain(|file| !is_brought(&file.path));
        listing.directories.retain(|path| !is_brought(path));
        let (left_out, harmless): (Vec<PassedOver>, Vec<_>) =
            (listing.passed_over.into_iter()).partition(|passed_over| passed_over.why.is_loss());
        let harmless = harmless.iter();
        let mut notes: Vec<String> = harmless
            .map(|passed_over| format!("not in the backup: {passed_over}"))
            .collect();
        let configs = configs(config, session, &mut notes).await?;
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
        items.extend(brought_items(&configs));
        items.extend(large.into_iter().chain(small).map(item));
        Ok(Contents {
            last: item(listing.control.clone()),
            roots: listing.roots,
            items,
            configs,
            total_bytes,
            notes,
            left_out,
            group_note: listing.private.as_deref().and_then(note_of_group_access),
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

/// The configuration files that the server reads and that are not in its data directory. What cannot be
/// taken along is named.
async fn configs(
    config: &MasterConfig,
    session: &Session,
    notes: &mut Vec<String>,
) -> Result<Vec<BroughtConfig>> {
    let data = std::fs::canonicalize(&config.master_data);
    let data = data.at(Kind::Config, "look at", &config.master_data)?;
    let is_inside = |path: &Path| std::fs::canonicalize(path).is_ok_and(|it| it.starts_with(&data));
    let mut configs: Vec<BroughtConfig> = Vec::new();
    let mut main = None;
    for setting in ["config_file", "hba_file", "ident_file"] {
        // Whoever may not see the setting is told what is missing.
        let path = match session.show(setting).await {
            Ok(path) => PathBuf::from(path),
            Err(error) => {
                notes.push(format!("{setting} is not backed up: {error}"));
                continue;
            }
        };
        if !is_inside(&path) {
            let name = PathBuf::from(path.file_name().unwrap_or_default());
            take(&mut configs, &path, &name, setting, notes);
        }
        if setting == "config_file" {
            main = Some(path);
        }
    }
    let Some(main) = main else {
        return Ok(configs);
    };
    for piece in conf::pieces(&main, &config.master_data)? {
        let is_known = configs.iter().any(|(_, path, _)| *path == piece.path);
        if is_known || is_inside(&piece.path) || !piece.path.exists() {
            continue;
        }
        let home = main.parent().unwrap_or(&data);
        match (piece.kind, piece.path.strip_prefix(home)) {
            // A folder such as `conf.d`, and no deeper: the standby makes no others.
            (PieceKind::Settings | PieceKind::Access, Ok(name))
                if name.components().count() <= 2 =>
            {
                take(&mut configs, &piece.path, name, &piece.setting, notes);
            }
            (PieceKind::Key, _) => notes.push(format!(
                "not in the backup: {piece}: keys are never backed up; copy it by hand to the \
                restored server"
            )),
            _ => notes.push(format!(
                "not in the backup: {piece}: copy it by hand to the restored server"
            )),
        }
    }
    Ok(configs)
}

/// Takes a file along under this name, or notes why not.
fn take(
    configs: &mut Vec<BroughtConfig>,
    path: &Path,
    name: &Path,
    setting: &str,
    notes: &mut Vec<String>,
) {
    let file_name = name.file_name().unwrap_or_default().to_string_lossy();
    let shown = path.display();
    if is_outside_postgresql(&file_name) {
        let why = format!("{setting} is not backed up: {shown} is not named *.conf");
        notes.push(why);
    } else if configs.len() >= CONFIG_FILES_MAX {
        notes.push(format!(
            "{setting} is not backed up: {shown} comes after the first {CONFIG_FILES_MAX} files"
        ));
    } else {
        match read_config(path, name) {
            Ok(found) => configs.push(found),
            Err(error) => notes.push(format!("{setting} is not backed up: {error}")),
        }
    }
}

fn read_config(path: &Path, name: &Path) -> Result<BroughtConfig> {
    use std::os::unix::ffi::OsStrExt;
    let name = RelativePath::new(name.as_os_str().as_bytes())
        .map_err(|error| CommandError::config("name a configuration file").because(error))?;
    let metadata = std::fs::metadata(path).at(Kind::Config, "look at", path)?;
    if metadata.len() > CONFIG_FILE_BYTES_MAX {
        let (path, most) = (path.display(), CONFIG_FILE_BYTES_MAX);
        return Err(CommandError::config(format!(
            "{path} has more than {most} bytes"
        )));
    }
    let content = std::fs::read(path).at(Kind::Config, "read", path)?;
    Ok((name, path.to_path_buf(), content.into()))
}

/// The note that marks a set with damaged pages; `None` when there are none.
pub(crate) fn note_of_pages(bad_blocks: &[BadBlock]) -> Option<Item> {
    let line = |bad: &BadBlock| format!("{} block {}\n", bad.path, bad.block);
    let text: String = bad_blocks.iter().map(line).collect();
    note(left_out::DAMAGED_PAGES, text)
}

/// The note that marks a set which lacks something; `None` when it lacks nothing.
pub(crate) fn note_of_left_out(left_out: &[PassedOver], is_allowed: bool) -> Option<Item> {
    let line = |left_out: &PassedOver| format!("{left_out}\n");
    let name = match is_allowed {
        true => left_out::LEFT_OUT_ALLOWED,
        false => left_out::LEFT_OUT,
    };
    note(name, left_out.iter().map(line).collect())
}

fn note_of_group_access(private: &[RelativePath]) -> Option<Item> {
    Some(Item {
        target: RelativePath::new(group_access::NOTE.as_bytes()).ok()?,
        content: Content::Note(group_access::note(private)?.into()),
    })
}

fn note(name: &str, text: String) -> Option<Item> {
    let target = RelativePath::new(name.as_bytes()).ok();
    target.filter(|_| !text.is_empty()).map(|target| Item {
        target,
        content: Content::Note(text.into()),
    })
}

/// The manifest of what arrived, and of the files that only the seal writes.
pub(crate) fn manifest(
    facts: ClusterFacts,
    load: &WorkQueue,
    finished: &FinishedBackup,
    label: &BackupLabel,
) -> Result<Bytes> {
    let own = [
        (layout::BACKUP_LABEL, Some(&finished.backup_label)),
        (layout::TABLESPACE_MAP, finished.tablespace_map.as_ref()),
    ];
    let own = own.into_iter().filter_map(|(name, content)| {
        let content = content?;
        Some(FileEntry {
            path: RelativePath::new(name.as_bytes()).ok()?,
            size: content.len() as u64,
            last_modified: jiff::Timestamp::now().as_second(),
            checksum: Some(Checksum::Crc32c(crc32c::crc32c(content))),
        })
    });
    let arrived = load.arrived().into_iter().map(|arrived| FileEntry {
        path: arrived.path,
        size: arrived.digest.len,
        last_modified: arrived.modified_s,
        checksum: Some(Checksum::Crc32c(arrived.digest.crc32c)),
    });
    let write = || -> std::io::Result<Vec<u8>> {
        let major = u8::try_from(facts.cluster.postgres_major).unwrap_or(u8::MAX);
        let mut writer = manifest::ManifestWriter::new(Vec::new(), major, facts.cluster.system_id)?;
        for file in arrived.chain(own) {
            writer.add(&file)?;
        }
        writer.finish(&[WalRange {
            timeline: label.first_segment.timeline(),
            start: label.start,
            end: finished.stop_lsn,
        }])
    };
    let written = write();
    let written =
        written.map_err(|error| CommandError::retry("write the backup_manifest").because(error))?;
    Ok(written.into())
}
