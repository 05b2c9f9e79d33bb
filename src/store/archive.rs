//! The archive: open it, ask what it holds, let a file in, list it.
//! Never overwrites and never removes a finished file. Invariant: one process has it open at a
//! time, and what it says it holds was read from the disk, not from memory.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use walmgr_protocol::limits::{RESERVED_SEGMENTS, UNFOLLOWED_BYTES_PER_KEY_MAX};
use walmgr_protocol::names::{Lsn, SegmentName, WalFileName, WalSegmentSize};

use super::binding::{Binding, Marker, MarkerRole};
use super::checksums::Checksums;
use super::disk::Disk;
use super::durable::{Durable, Existing, ExistingContent, Temporary};
use super::error::StoreError;
use super::health::{Health, Monitor};
use super::incoming::Incoming;
use super::index_keeper::{IndexKeeper, KeptIndex};
use super::joints::Carried;
use super::name_lock::{NameGuard, NameLocks};
use super::partial::known_ends::KnownEnds;
use super::proof::{Prover, WalProof};
use super::reader::ArchiveListing;
use super::recovery;
use super::recovery_report::RecoveryReport;
use super::shared::{
    Archive, ArchiveFolders, Shared, StoredCheck, StoredUnderName, is_damage, set_aside,
};
use crate::config::StoreCompression;
use crate::metrics::StoreMeter;
use crate::wal::segment::Verify;

/// Unless the settings say otherwise (`archive_ahead_max`).
const AHEAD_MAX: u64 = 1024;

/// A finished file in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredFile {
    /// The file.
    pub name: WalFileName,
    /// Its length in bytes.
    pub len: u64,
}

impl Archive {
    /// Makes the two directories and their markers, durably. What exists already stays, so an
    /// interrupted set-up is finished by the next one; one damaged marker is written anew from the other.
    pub fn create(places: &ArchiveFolders, disk: Arc<dyn Disk>) -> Result<(), StoreError> {
        for path in [&places.completed_wals, &places.partial_wals] {
            make_directory(path, disk.as_ref())?;
        }
        let monitor = Arc::new(Monitor::new());
        let folders = recovery::open_folders(places, &disk, &monitor)?;
        if let Err(StoreError::DamagedMarker { .. }) = folders.read_markers() {
            let _lock = recovery::lock(&folders.completed)?;
            folders.mend_marker()?;
        }
        let found = folders.read_markers()?;
        if found.iter().any(Option::is_none) {
            let _lock = recovery::lock(&folders.completed)?;
            let marker = match folders.read_markers()? {
                [Some(marker), _] | [None, Some(marker)] => marker,
                [None, None] => Marker::fresh(&folders.completed)?,
            };
            for (folder, role) in folders.each() {
                if Marker::read(folder, role)?.is_none() {
                    marker.write(folder, role)?;
                }
            }
        }
        folders.check_markers()?;
        // An interrupted set-up may have left names that are not durable.
        folders.completed.sync()?;
        folders.partial.sync()
    }

    /// Whether the directories are set up and of a format known here; changes nothing.
    pub fn check(places: &ArchiveFolders, disk: Arc<dyn Disk>) -> Result<(), StoreError> {
        let monitor = Arc::new(Monitor::new());
        recovery::open_folders(places, &disk, &monitor)?.check_markers()?;
        Ok(())
    }

    /// Locks the archive and recovers it from whatever stopped the last process.
    pub fn open(places: &ArchiveFolders, disk: Arc<dyn Disk>) -> Result<Archive, StoreError> {
        let monitor = Arc::new(Monitor::new());
        let folders = recovery::open_folders(places, &disk, &monitor)?;
        // Before the lock, so that no lock file lands in a directory that is not the archive's.
        folders.check_markers()?;
        let lock = recovery::lock(&folders.completed)?;
        let marker = folders.check_markers()?;
        let checksums = Checksums::open_or_create(&folders.completed);
        let recovery = recovery::recover(&folders, &marker, &checksums)?;
        let archive = Archive {
            shared: Arc::new(Shared {
                completed: folders.completed,
                partial: folders.partial,
                monitor,
                names: NameLocks::default(),
                partials: Arc::default(),
                ends: KnownEnds::default(),
                checksums,
                carried: Carried::default(),
                order: RwLock::default(),
                has_notes: AtomicBool::new(true),
                newest_timeline: AtomicU32::new(0),
                ahead_max: AtomicU64::new(AHEAD_MAX),
                compression: RwLock::new(StoreCompression::None),
                unfollowed_bytes_max: AtomicU64::new(UNFOLLOWED_BYTES_PER_KEY_MAX),
                marker: RwLock::new(marker),
                binding_turn: Mutex::default(),
                recovery,
                _lock: lock,
            }),
        };
        archive.shared.recover_notes()?;
        Ok(archive)
    }

    /// What the start-up recovery did.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.shared.recovery
    }

    /// The cluster whose WAL is kept here, once one has been seen.
    pub fn binding(&self) -> Option<Binding> {
        self.shared.binding().ok()
    }

    /// Binds the archive to a cluster for good; `Foreign` when it is bound to another one.
    pub fn bind(&self, binding: &Binding) -> Result<(), StoreError> {
        let shared = &self.shared;
        let _turn = (shared.binding_turn.lock()).unwrap_or_else(PoisonError::into_inner);
        let marker = shared.marker().clone();
        match &marker.binding {
            Some(bound) if bound == binding => return Ok(()),
            Some(bound) => {
                return Err(StoreError::Foreign {
                    subject: "the cluster".to_owned(),
                    why: format!("the archive is for {bound}, found {binding}"),
                });
            }
            None => {}
        }
        let bound = Marker {
            archive_id: marker.archive_id,
            binding: Some(*binding),
        };
        shared.monitor.check()?;
        let written = (shared.completed.ensure_in_place())
            .and_then(|()| shared.partial.ensure_in_place())
            // In this order: recovery completes the second from the first.
            .and_then(|()| bound.write(&shared.completed, MarkerRole::Completed))
            .and_then(|()| bound.write(&shared.partial, MarkerRole::Partial));
        shared.monitor.outcome(written)?;
        // Only now: whoever asks for the binding must not wait for the disk.
        *(shared.marker.write()).unwrap_or_else(PoisonError::into_inner) = bound;
        Ok(())
    }

    /// Compares what is stored under a name with what a client offers.
    ///
    /// A stored file that is the offered one is synced again before it counts. A stored file that differs is set
    /// aside as `NAME.damaged` in two cases: if it is no valid WAL, looked at as closely as `verify` says, or if the
    /// offered file is what was acknowledged and the stored file is not.
    pub fn lookup(
        &self,
        name: &WalFileName,
        len: u64,
        crc32: u32,
        verify: Verify,
    ) -> Result<StoredUnderName, StoreError> {
        self.shared.monitor.check()?;
        let guard = self.shared.names.lock(*name);
        let held = self.shared.held(&guard, len, crc32, verify);
        self.shared.monitor.watch(held)
    }

    /// Whether something is stored under a name, whatever it is.
    pub fn is_held(&self, name: &WalFileName) -> Result<bool, StoreError> {
        self.shared.monitor.check()?;
        let guard = self.shared.names.lock(*name);
        let found = Existing::open(&self.shared.completed, guard.name());
        Ok(self.shared.monitor.watch(found)?.is_some())
    }

    /// Stores the segments that come from here on in this form.
    pub fn set_compression(&self, form: StoreCompression) {
        let compression = self.shared.compression.write();
        *compression.unwrap_or_else(PoisonError::into_inner) = form;
    }

    /// Starts a file of this length.
    pub fn begin(
        &self,
        name: WalFileName,
        len: u64,
        verify: Verify,
    ) -> Result<Incoming, StoreError> {
        Incoming::begin(Arc::clone(&self.shared), name, len, verify)
    }

    /// The finished files behind `after`, in the order of [`WalFileName`], at most `limit`.
    ///
    /// Everything else in the directory (control files, temporaries, damaged files) is left out.
    pub fn list(
        &self,
        after: Option<WalFileName>,
        limit: usize,
    ) -> Result<Vec<StoredFile>, StoreError> {
        let listing = self.shared.listing()?;
        let (mut entries, mut after) = (Vec::new(), after);
        // One that has gone since leaves its place to the next.
        while entries.len() < limit {
            let found = listing.behind(after, limit - entries.len());
            let Some(last) = found.last() else {
                break;
            };
            after = Some(*last);
            for name in found {
                if let Some(len) = self.shared.len_of(&name.to_string())? {
                    entries.push(StoredFile { name, len });
                }
            }
        }
        Ok(entries)
    }

    /// The highest finished segment that no note keeps readers from.
    pub(crate) fn newest_segment(&self) -> Result<Option<SegmentName>, StoreError> {
        let (listing, noted) = (self.shared.listing()?, self.noted()?);
        let mut newest_first = listing.segments.iter().rev();
        Ok(newest_first.find(|segment| !noted.contains(&WalFileName::Segment(*segment))))
    }

    /// Has an index of its names kept as long as that lives; none before it is bound to a cluster.
    pub(crate) fn keep_index(&self, keeper: &IndexKeeper) -> Option<KeptIndex> {
        let size = self.binding()?.segment_size;
        // A failure to look is nobody else's.
        let folder = self.shared.completed.again(Arc::new(Monitor::new()));
        keeper.keep(Arc::new(folder.ok()?), size)
    }

    /// Proves that the segments from `first` to the one that holds the last byte before `stop` are
    /// here, whole and durable, and that each goes on with the one before. Says which one is missing if
    /// they are not.
    pub fn prove_wal(
        &self,
        first: SegmentName,
        stop: Lsn,
        verify: Verify,
    ) -> Result<WalProof, StoreError> {
        let prover = self.shared.prover()?;
        prover.prove(first, stop, verify, &mut |name, before| {
            self.shared.monitor.check()?;
            let _guard = self.shared.names.lock(WalFileName::Segment(name));
            let confirmed = prover.confirm(name, verify, before);
            self.shared.monitor.watch(confirmed)
        })
    }

    /// Bytes that can still be written to the file system of finished files.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let folder = &self.shared.completed;
        (folder.disk.free_bytes(folder.handle()))
            .map_err(|error| folder.failure("ask for the free space of", "", error))
    }

    /// Whether the disk can be trusted; after a failed sync it never is again.
    pub fn health(&self) -> Health {
        self.shared.monitor.health()
    }

    /// Where the disk was full when it was tried last: whether it would take a segment again. Then the archive is well,
    /// without a file having to come first.
    pub(crate) fn look_for_room(&self) {
        let shared = &self.shared;
        if !matches!(self.health(), Health::Impaired { is_full: true, .. }) {
            return;
        }
        let Ok(binding) = shared.binding() else {
            return;
        };
        let size = binding.segment_size.bytes();
        // The rest of the name says what it is for if a kill leaves it to the next start, which removes it.
        let has_room = [&shared.completed, &shared.partial].iter().all(|folder| {
            let room = folder.keep_free("room", size, RESERVED_SEGMENTS * size);
            room.and_then(|()| Temporary::create(folder, "room", size))
                .is_ok()
        });
        if has_room {
            shared.monitor.has_room();
        }
    }

    /// Counts there from here on.
    pub(crate) fn count_in(&self, meter: Arc<StoreMeter>) {
        self.shared.monitor.count_in(meter);
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Archive")
            .field("completed_wals", &self.shared.completed.path())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Everything that is there, as far as WAL files go.
    pub(super) fn listing(&self) -> Result<ArchiveListing, StoreError> {
        // One without a cluster holds none.
        let size = (self.binding()).map_or(WalSegmentSize::DEFAULT, |bound| bound.segment_size);
        ArchiveListing::read(&self.completed, size)
    }

    fn prover(&self) -> Result<Prover<'_>, StoreError> {
        Ok(Prover {
            completed: &self.completed,
            checksums: &self.checksums,
            binding: self.binding()?,
        })
    }

    /// How long the file of this name is, whichever form it is stored in.
    fn len_of(&self, text: &str) -> Result<Option<u64>, StoreError> {
        let folder = &self.completed;
        let Some(stat) = folder.stat_at(text)?.filter(|stat| stat.is_file) else {
            return Ok(None);
        };
        // A finished segment is nowhere shorter or longer than the server makes them.
        match folder.is_packed(text)? {
            true => Ok(Some(self.binding()?.segment_size.bytes())),
            false => Ok(Some(stat.len)),
        }
    }

    /// What is stored under the locked name.
    pub(super) fn held(
        &self,
        name: &NameGuard<'_>,
        len: u64,
        crc32: u32,
        verify: Verify,
    ) -> Result<StoredUnderName, StoreError> {
        let name = name.name();
        let expected = self.binding()?.expected();
        let Some(existing) = Existing::open(&self.completed, name)? else {
            return Ok(StoredUnderName::Absent);
        };
        // Length and first page are enough where the bytes are the ones offered: the records
        // were checked when they came in, or the administrator asked for no such check.
        let mut check = StoredCheck::new(name, &expected, Verify::Off);
        let content = existing.read(|bytes| check.update(bytes))?;
        let mut fault = check.finish_of(&content);
        let identical = (content.len, content.crc32) == (len, crc32);
        let kept = self.checksums.read(name);
        if let Some(kept) = &kept
            && let Some(why) = kept.contradicts(content.len, content.crc32)
        {
            // The one that was acknowledged takes its place again, and no other.
            if kept.contradicts(len, crc32).is_none() {
                set_aside(&self.completed, name, &why)?;
                return Ok(StoredUnderName::Absent);
            }
            let why = format!("{why}; what is offered is not that file either");
            return Err(StoreError::Damaged { name, why });
        }
        if identical && !fault.as_ref().is_some_and(is_damage) {
            return match kept {
                Some(_) => Ok(StoredUnderName::Identical(content.confirm()?)),
                None => Ok(StoredUnderName::Identical(
                    self.confirm_unkept(name, content, verify)?,
                )),
            };
        }
        let (len, crc32) = (content.len, content.crc32);
        if fault.is_none() {
            let mut check = StoredCheck::new(name, &expected, verify);
            let content = content.read_again(|bytes| check.update(bytes))?;
            fault = check.finish_of(&content);
        }
        match fault.filter(is_damage) {
            None => Ok(StoredUnderName::Different { len, crc32 }),
            Some(fault) => {
                set_aside(&self.completed, name, &fault)?;
                Ok(StoredUnderName::Absent)
            }
        }
    }

    /// Acknowledges a stored file of which nothing is kept: its neighbours count again, and it is
    /// kept from here on.
    fn confirm_unkept(
        &self,
        name: WalFileName,
        content: ExistingContent,
        verify: Verify,
    ) -> Result<Durable, StoreError> {
        let mut check = StoredCheck::new(name, &self.binding()?.expected(), verify);
        let content = content.read_again(|bytes| check.update(bytes))?;
        let joined = match check.finish_at_end_of(&content) {
            Ok(scanner) => self.join(name, verify, scanner, |each| content.read_pages(each))?,
            // It may have been let in with another `verify_wal`.
            Err(_) => self.join(name, Verify::Off, None, |_| Ok(()))?,
        };
        self.note_joined(name, &joined)?;
        let durable = content.confirm()?;
        self.keep(&durable, joined, "");
        Ok(durable)
    }
}

/// A name that cannot be made although nothing is found there is a link to nothing.
fn ensure_it_leads_somewhere(path: &Path, disk: &dyn Disk) -> io::Result<()> {
    match disk.identity_at(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(io::Error::other(
            "it is a symbolic link to what does not exist; make that directory first",
        )),
        other => other.map(drop),
    }
}

/// Makes a directory and whatever is missing above it. The directory above is synced even when
/// nothing was missing: an earlier run may have been cut between the two.
fn make_directory(path: &Path, disk: &dyn Disk) -> Result<(), StoreError> {
    let failed = |op: &'static str| {
        move |source: io::Error| StoreError::Disk {
            op,
            path: path.to_path_buf(),
            source,
        }
    };
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    let made = match disk.identity_at(path) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_directory(parent, disk)?;
            match disk.create_directory(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    ensure_it_leads_somewhere(path, disk).map_err(failed("follow"))?;
                }
                other => other.map_err(failed("create directory"))?,
            }
            true
        }
        Err(error) => return Err(failed("find directory")(error)),
    };
    match super::durable::sync_path(parent, disk) {
        Err(error) if !made && error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(failed("sync the directory above")),
    }
}
