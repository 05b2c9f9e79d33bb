//! The names in `completed_wals`, segments as runs, and the one small file that keeps them: `.names/index`.
//! Never truth: the folder is. Invariant: an index that is believed says what a listing would have said.
//!
//! # Format
//!
//! ```text
//! walmgr names 1
//! folder 2050 131073 1764250000123456789 1764250000123456789
//!                                     device and inode of `completed_wals`; when its content and it changed last,
//!                                     in nanoseconds since 1970
//! boot 7c8e…                          `boot_id` of the kernel that it was written under
//! size 16777216                       `wal_segment_size`
//! plain 000000010000000000000001 0000000100000000000000FF
//! packed 000000010000000000000100 000000010000000000000142
//!                                     the first and the last segment of a run that is stored so
//! other 00000002.history              every other name
//! check 01234567                      CRC-32 of the lines above
//! ```
//!
//! # Why it is believed
//!
//! A receiver writes it ([`super::index_keeper`]): the kernel tells it every name that comes and goes, and it writes only when
//! nothing has come for longer than a file system's clock stands still. So every change behind it, by whomever, gives the folder
//! another time than the one in the index. Whoever reads compares these times, which folder it is, and the boot: what a power
//! cut left of an index that nobody synced is of an earlier boot. One that does not fit, is torn or absent
//! says nothing, and the folder is listed.

use std::collections::BTreeSet;

use walmgr_protocol::names::{SegmentName, WalSegmentSize};

use super::beside::name_of_packed;
use super::error::StoreError;
use super::folder::Folder;
use super::segment_runs::SegmentRuns;
use crate::files::{self, FileId};

/// The folder of the index in `completed_wals`.
pub(crate) const NAMES_NAME: &str = ".names";

/// The index in it.
pub(super) const INDEX_NAME: &str = "index";

/// A longer index is not read. Listing the folder is as fast where hardly two segments follow each other.
pub(super) const INDEX_BYTES_MAX: usize = 16 << 20;

const HEAD: &str = "walmgr names 1";

/// Which folder it was, and when it changed last, when the index was right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FolderMoment {
    identity: FileId,
    modified_ns: i64,
    /// Nanoseconds since 1970.
    pub(super) changed_ns: i64,
    boot: String,
}

/// The names in a folder of finished files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeldNames {
    size: WalSegmentSize,
    plain: SegmentRuns,
    packed: SegmentRuns,
    others: BTreeSet<String>,
}

impl HeldNames {
    /// None yet, of an archive whose segments have this size.
    pub(super) const fn new(size: WalSegmentSize) -> HeldNames {
        HeldNames {
            size,
            plain: SegmentRuns::new(size),
            packed: SegmentRuns::new(size),
            others: BTreeSet::new(),
        }
    }

    /// Those that a listing of the folder shows.
    pub(super) fn list(folder: &Folder, size: WalSegmentSize) -> Result<HeldNames, StoreError> {
        let mut names = HeldNames::new(size);
        (folder
            .disk
            .each_name(folder.handle(), &mut |name| names.add(name)))
        .map_err(|error| folder.failure("list directory", "", error))?;
        Ok(names)
    }

    /// Whether segments have this size.
    pub(super) fn is_of(&self, size: WalSegmentSize) -> bool {
        self.size == size
    }

    /// A name has come.
    pub(super) fn add(&mut self, name: &str) {
        let is_in_runs = match segment_of(name) {
            Some((segment, true)) => self.packed.insert(segment) || self.packed.contains(segment),
            Some((segment, false)) => self.plain.insert(segment) || self.plain.contains(segment),
            None => false,
        };
        if !is_in_runs {
            self.others.insert(name.to_owned());
        }
    }

    /// A name has gone.
    pub(super) fn remove(&mut self, name: &str) {
        let was_in_runs = match segment_of(name) {
            Some((segment, true)) => self.packed.remove(segment),
            Some((segment, false)) => self.plain.remove(segment),
            None => false,
        };
        if !was_in_runs {
            self.others.remove(name);
        }
    }

    /// The finished segments, whichever form they have.
    pub(super) fn segments(&self) -> SegmentRuns {
        let mut segments = self.plain.clone();
        segments.add_runs(&self.packed);
        segments
    }

    /// The other names; of a file that is packed the name that it has unpacked, once.
    pub(super) fn others(&self) -> BTreeSet<String> {
        let others = self.others.iter();
        others
            .map(|name| name_of_packed(name).unwrap_or(name).to_owned())
            .collect()
    }

    /// The index; `None` where there is a name that would not fit on a line.
    pub(super) fn text(&self, moment: &FolderMoment) -> Option<String> {
        use std::fmt::Write;
        let mut text = format!(
            "{HEAD}\nfolder {} {} {} {}\nboot {}\nsize {}\n",
            moment.identity.device,
            moment.identity.inode,
            moment.modified_ns,
            moment.changed_ns,
            moment.boot,
            self.size.bytes()
        );
        for (form, runs) in [("plain", &self.plain), ("packed", &self.packed)] {
            for (first, last) in runs.named_runs() {
                writeln!(text, "{form} {first} {last}").ok()?;
            }
        }
        for name in &self.others {
            if name.contains('\n') {
                return None;
            }
            writeln!(text, "other {name}").ok()?;
        }
        let crc32 = crc32fast::hash(text.as_bytes());
        writeln!(text, "check {crc32:08X}").ok()?;
        Some(text)
    }

    /// What an index says, and when it was right; `None` for one that is torn or of another form.
    pub(super) fn parse(bytes: &[u8]) -> Option<(FolderMoment, HeldNames)> {
        let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let (before, check) = text.rsplit_once('\n')?;
        let said = bytes.get(..=before.len())?;
        if check != format!("check {:08X}", crc32fast::hash(said)) {
            return None;
        }
        // Not `lines`, which takes a `\r` at the end of a name away.
        let mut lines = before.split('\n');
        if lines.next() != Some(HEAD) {
            return None;
        }
        let mut folder = lines.next()?.strip_prefix("folder ")?.split(' ');
        let device = folder.next()?.parse().ok()?;
        let inode = folder.next()?.parse().ok()?;
        let moment = FolderMoment {
            identity: FileId { device, inode },
            modified_ns: folder.next()?.parse().ok()?,
            changed_ns: folder.next()?.parse().ok()?,
            boot: lines.next()?.strip_prefix("boot ")?.to_owned(),
        };
        let size = lines.next()?.strip_prefix("size ")?.parse().ok()?;
        let mut names = HeldNames::new(WalSegmentSize::new(size)?);
        for line in lines {
            let (kind, rest) = line.split_once(' ')?;
            let runs = match kind {
                "other" => {
                    names.others.insert(rest.to_owned());
                    continue;
                }
                "plain" => &mut names.plain,
                "packed" => &mut names.packed,
                _ => return None,
            };
            let (first, last) = rest.split_once(' ')?;
            if !runs.insert_run(first.parse().ok()?, last.parse().ok()?) {
                return None;
            }
        }
        Some((moment, names))
    }
}

impl Folder {
    /// The finished segments, which have this size, and all other names; from the index where that is right.
    pub(super) fn held(
        &self,
        size: WalSegmentSize,
    ) -> Result<(SegmentRuns, BTreeSet<String>), StoreError> {
        let names = match self.indexed() {
            Some(names) if names.is_of(size) => names,
            _ => HeldNames::list(self, size)?,
        };
        Ok((names.segments(), names.others()))
    }

    /// All names that are not those of finished segments, as [`Folder::names`] has them.
    pub(super) fn names_beside(&self) -> Result<Vec<String>, StoreError> {
        if let Some(names) = self.indexed() {
            return Ok(names.others().into_iter().collect());
        }
        let mut names = self.names()?;
        names.retain(|name| name.parse::<SegmentName>().is_err());
        Ok(names)
    }

    /// What the index says, if that is right at this moment.
    pub(super) fn indexed(&self) -> Option<HeldNames> {
        let index = self.read_small(&format!("{NAMES_NAME}/{INDEX_NAME}"), INDEX_BYTES_MAX);
        let (indexed, names) = HeldNames::parse(&index.ok()??)?;
        (indexed == self.moment()?).then_some(names)
    }

    /// Which folder this is, and when it changed last.
    pub(super) fn moment(&self) -> Option<FolderMoment> {
        let stat = self.disk.stat(self.handle()).ok()?;
        let boot = files::boot();
        (!boot.is_empty()).then(|| FolderMoment {
            identity: stat.identity,
            modified_ns: stat.modified_ns,
            changed_ns: stat.changed_ns,
            boot: boot.to_owned(),
        })
    }
}

/// The segment of a name, and whether that is its packed form.
fn segment_of(name: &str) -> Option<(SegmentName, bool)> {
    if let Ok(segment) = name.parse() {
        return Some((segment, false));
    }
    let segment = name_of_packed(name)?.parse().ok()?;
    Some((segment, true))
}
