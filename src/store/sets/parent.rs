//! The set that an incremental backup begins with: found, held, and read file by file.
//! Never changes a set. Invariant: what is taken of it was compared with its own manifest, so that a set in which somebody
//! started a server, or which the disk changed, passes nothing on.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use walmgr_protocol::limits::MANIFEST_BYTES_MAX;
use walmgr_protocol::message::backup::FileDigest;
use walmgr_protocol::message::parent::ParentRequest;
use walmgr_protocol::names::{BackupName, Lsn, RelativePath, TimelineId};
use walmgr_protocol::patch::PAGE_BYTES;

use super::BackupSets;
use super::ahead::ReadingAhead;
use super::condition::Condition;
use super::error::SetError;
use super::list::{HeldSet, SetEntry};
use crate::pg::backup_note::{self, BackupNote};
use crate::pg::listed::stored_path;
use crate::pg::{control, layout, manifest};
use crate::store::StoreError;
use crate::store::lineage::TimelineLine;
use crate::store::reach::off_line;

/// The note in `completed_wals` that an incremental backup would not have been what a full one is.
const DIFFERS_NAME: &str = ".incremental.differs";

/// How long that note can be.
const DIFFERS_BYTES_MAX: usize = 8 << 10;

/// A set that another one is built on.
pub(crate) struct ParentOfSet {
    held: HeldSet,
    root: OwnedFd,
    files: HashMap<RelativePath, FileDigest>,
    since_full: u32,
    compares_pages: bool,
    ahead: OnceLock<Arc<ReadingAhead>>,
}

impl BackupSets {
    /// The newest set that a backup like this one, on a server that came along `line`, can be built on, and otherwise
    /// why there is none. Every `full_every`-th backup is built on none.
    pub(crate) fn parent(
        &self,
        asked: &ParentRequest,
        line: &TimelineLine,
        full_every: u32,
    ) -> Result<Result<ParentOfSet, String>, SetError> {
        if let Some(difference) = self.noted_difference()? {
            return Ok(Err(difference));
        }
        if u64::from(asked.block_bytes) != PAGE_BYTES {
            let why = format!("pages of {} bytes are not compared", asked.block_bytes);
            return Ok(Err(why));
        }
        let mut why = None;
        for set in self.list()? {
            let name = set.name.to_string();
            // Who builds on an older one would not read the damaged pages, and the alarm about them would end.
            if matches!(set.condition, Condition::DamagedPages) {
                return Ok(Err(format!(
                    "{name} has damaged pages, as the master had: each page is read again"
                )));
            }
            match self.parent_in(set, asked, line) {
                Ok(parent) if full_every > 0 && parent.since_full >= full_every => {
                    return Ok(Err(format!(
                        "full_every = {full_every} makes this one full"
                    )));
                }
                Ok(parent) => return Ok(Ok(parent)),
                Err(unfit) => drop(why.get_or_insert(format!("{name} is no parent: {unfit}"))),
            }
        }
        Ok(Err(
            why.unwrap_or_else(|| "there is no older set".to_owned())
        ))
    }

    fn parent_in(
        &self,
        set: SetEntry,
        asked: &ParentRequest,
        line: &TimelineLine,
    ) -> Result<ParentOfSet, String> {
        let end = set.end_in_manifest();
        let label = set.label?;
        if let Some(why) = set.condition.refusal() {
            return Err(why.to_owned());
        }
        if !set.condition.is_good() {
            let remark = set.condition.remark().unwrap_or("it is not whole");
            return Err(remark.to_owned());
        }
        if !matches!(label.from.as_deref(), Some("primary" | "master")) {
            return Err("it was not made on the master".to_owned());
        }
        if label.start >= asked.start {
            return Err(format!(
                "it begins at {}, not before {}",
                label.start, asked.start
            ));
        }
        let timeline = label.first_segment.timeline();
        if !line.passes((timeline, label.start)) {
            return Err(format!(
                "nothing in the archive says that timeline {} comes from timeline {timeline} behind {}",
                asked.timeline, label.start
            ));
        }
        // What the other timeline changed behind that is in its pages, and no WAL of this line tells of it.
        match end {
            Some(end) if line.passes(end) => {}
            None if timeline == asked.timeline => {}
            Some(end) => return Err(off_line(end, line)),
            None => return Err("nothing says where its backup ended".to_owned()),
        }
        let said = |error: SetError| error.to_string();
        let held = self.hold(&set.name).map_err(said)?;
        let root = held.directory().try_clone_to_owned();
        let root = root.map_err(|error| error.to_string())?;
        let small = |name: &str| self.read_small(root.as_fd(), &set.name.to_string(), name);
        let control = small(layout::PG_CONTROL).map_err(|error| error.to_string())?;
        let control = control::parse(&control).map_err(|error| error.to_string())?;
        let of_pages = (
            control.data_checksums,
            control.block_bytes,
            control.segment_blocks,
        );
        if of_pages
            != (
                asked.data_checksums,
                asked.block_bytes,
                asked.segment_blocks,
            )
        {
            return Err("its pages have other checksums, or its files other sizes".to_owned());
        }
        let files = self.listed_files(&root, &set.name)?;
        let note = RelativePath::new(backup_note::NAME.as_bytes()).ok();
        let since_full = match note.filter(|note| files.contains_key(note)) {
            None => 0,
            Some(_) => {
                let text = small(backup_note::NAME).map_err(|error| error.to_string())?;
                let note = BackupNote::parse(&text);
                note.ok_or("nobody can tell how old its pages are")?
                    .since_full
            }
        };
        Ok(ParentOfSet {
            held,
            root,
            files,
            since_full: since_full.saturating_add(1),
            // Replay makes no copies that are the same byte for byte, and behind a failover the master's own pages
            // are such.
            compares_pages: asked.data_checksums && timeline == asked.timeline,
            ahead: OnceLock::new(),
        })
    }

    /// The newest set, of whatever pages.
    #[cfg(test)]
    pub(super) fn newest_as_parent(&self) -> Result<ParentOfSet, SetError> {
        let name = self.newest();
        let held = self.hold(name)?;
        let root = held.directory().try_clone_to_owned().unwrap();
        let files = self.listed_files(&root, name);
        let files = files.map_err(|why| SetError::ParentUnfit {
            set: name.to_string(),
            path: layout::BACKUP_MANIFEST.parse().unwrap(),
            why,
        })?;
        Ok(ParentOfSet {
            held,
            root,
            files,
            since_full: 1,
            compares_pages: false,
            ahead: OnceLock::new(),
        })
    }

    /// The files that a manifest lists with a checksum.
    fn listed_files(
        &self,
        root: &OwnedFd,
        name: &BackupName,
    ) -> Result<HashMap<RelativePath, FileDigest>, String> {
        let parent = &self.parent;
        let shown = format!("{name}/{}", layout::BACKUP_MANIFEST);
        let file = (parent.disk).open_file(root.as_fd(), layout::BACKUP_MANIFEST.as_ref());
        let file = file.map_err(|error| format!("{shown}: {error}"))?;
        let mut bytes = Vec::new();
        let read = parent.read_through(file.as_fd(), &shown, |piece| {
            bytes.extend_from_slice(piece);
            bytes.len() as u64 <= MANIFEST_BYTES_MAX
        });
        read.map_err(|error| error.to_string())?;
        let mut files = HashMap::new();
        for file in manifest::Reader::new(&bytes).map_err(|error| error.to_string())? {
            let file = file.map_err(|error| error.to_string())?;
            if let Some(crc32c) = file.crc32c() {
                let len = file.size;
                files.insert(file.path, FileDigest { len, crc32c });
            }
        }
        Ok(files)
    }

    /// Why no backup is incremental, if one found that it would not have been what a full one is.
    pub(crate) fn noted_difference(&self) -> Result<Option<String>, SetError> {
        let note = (self.completed).read_small(DIFFERS_NAME, DIFFERS_BYTES_MAX)?;
        Ok(note.map(|note| {
            let text = String::from_utf8_lossy(&note);
            let line = text.lines().next().unwrap_or_default();
            let place = self.completed.path().join(DIFFERS_NAME);
            format!(
                "an incremental backup would have been wrong: {}; {} says so until somebody removes it",
                line.escape_debug(),
                place.display()
            )
        }))
    }

    /// Notes that a page is not what WAL says it is.
    pub(super) fn note_difference(&self, what: &str) -> Result<(), StoreError> {
        let line = format!("{what}\n");
        self.completed.write_small(DIFFERS_NAME, line.as_bytes())
    }
}

#[cfg(test)]
impl ParentOfSet {
    /// This set, as if its manifest listed a file with this digest.
    pub(super) fn listing(mut self, path: RelativePath, digest: FileDigest) -> Self {
        self.files.insert(path, digest);
        self
    }
}

impl ParentOfSet {
    /// Its name when it was found.
    pub(crate) const fn name(&self) -> &BackupName {
        self.held.name()
    }

    /// Where its WAL begins.
    pub(crate) const fn start(&self) -> Lsn {
        self.held.label().start
    }

    /// The timeline of that.
    pub(crate) const fn timeline(&self) -> TimelineId {
        self.held.label().first_segment.timeline()
    }

    /// How many backups since the last full one there are with the one that is built on it.
    pub(crate) const fn since_full(&self) -> u32 {
        self.since_full
    }

    /// The length of a file, by its path in the data directory; `None` of one that it does not hold.
    pub(crate) fn file_len(&self, path: &RelativePath) -> Option<u64> {
        self.files.get(path).map(|file| file.len)
    }

    /// Whether pages that no WAL names are the same byte for byte.
    pub(super) const fn compares_pages(&self) -> bool {
        self.compares_pages
    }

    /// Begins to read its longest files, which a backup that is built on it reads whole.
    pub(crate) fn read_ahead(&self) {
        let listed = self.files.iter().map(|(path, file)| (path, file.len));
        let begin = || ReadingAhead::begin(&self.held.sets, &self.root, listed);
        self.ahead.get_or_init(begin);
    }

    /// A file of it is read for good, by its path in a set.
    pub(super) fn leave(&self, path: &RelativePath, len: u64) {
        if let Some(ahead) = self.ahead.get() {
            ahead.leave(path, len);
        }
    }

    /// Opens a file by its path in a set, with what its manifest lists.
    pub(super) fn open(&self, path: &RelativePath) -> Result<(OwnedFd, FileDigest), SetError> {
        let unfit = |why: String| SetError::ParentUnfit {
            set: self.name().to_string(),
            path: path.clone(),
            why,
        };
        let in_cluster = layout::relocated(path, layout::TMPSPC, layout::PG_TBLSPC);
        let listed = self.files.get(in_cluster.as_ref().unwrap_or(path));
        let listed = *listed.ok_or_else(|| unfit("it does not hold this file".to_owned()))?;
        let opened = self
            .held
            .sets
            .open_below(&self.root, &stored_path(path.clone()));
        let (file, stat) = opened.map_err(|error| unfit(error.to_string()))?;
        match stat.is_file && stat.len == listed.len {
            true => Ok((file, listed)),
            false => Err(unfit(format!(
                "its manifest says {} bytes, it has {}",
                listed.len, stat.len
            ))),
        }
    }
}

impl Drop for ParentOfSet {
    fn drop(&mut self) {
        if let Some(ahead) = self.ahead.get() {
            ahead.end();
        }
    }
}
