//! The archive on the standby: finished WAL files, each durable before it is acknowledged.
//! Never talks to a network, and never decides anything by a clock. Invariant: a final name
//! in `completed_wals` names one complete, verified file or nothing.
//!
//! # On disk, format 1
//!
//! ```text
//! completed_wals/                  mode 0700, files 0600
//!   .walmgr-archive                the marker, JSON (see `binding`)
//!   .walmgr-lock                   flock of the process that has the archive open; its text, a
//!                                  process id, is for people
//!   .checksums/NAME                length and CRC-32 of the file when it was acknowledged (see
//!                                  `checksums`)
//!   .obstacles/NAME                records in the segment NAME that replay cannot pass (see `obstacle_notes`)
//!   .names/index                   all names in this folder, so that nobody lists a million (see `held_names`)
//!   .maps/NAME                     what the records of the segment NAME change (see `map_notes`)
//!   .servers/                      the data directories whose servers read from here (see `servers`)
//!   .verified/                     files that `verify` found good or damaged (see `verify::note`)
//!   .rounds                        files found damaged while the whole archive was read (see `rounds`)
//!   .in.NAME.RANDOM                a file being received; worthless once its process has ended
//!   000000010000000000000001.zst   a finished segment, packed (see `packed` for the format)
//!   000000010000000000000001       or as it is, exactly wal_segment_size bytes
//!   00000002.history               and the other names PostgreSQL archives, as WalFileName lists
//!   0000...0001.00000028.backup    them, byte for byte what the master offered
//!   0000...0001.partial
//!   NAME.damaged, NAME.damaged.1   (with .zst behind it where NAME was packed) a file stored as NAME that was not valid WAL
//!   NAME.differs                   another valid file that was offered as NAME (see `differs`)
//!   NAME.displaced, .displaced.1   stored as NAME and acknowledged, until another file got the name (see
//!                                  `displaced`)
//!   .apart/                        notes about files that no reader follows (see `apart_notes`), and who sent
//!                                  a NAME.differs or NAME.displaced
//!   BACKUPLOCK                     who makes a backup, while that lasts (see `sets::lock`)
//! partial_wals/
//!   .walmgr-archive                the same archive id, role partial_wals
//!   000000010000000000000002       a segment in progress: records from its beginning, then zeros
//!   .in.NAME.anew, .in.NAME.RANDOM what is to take its place (see `partial`), or a copy on its way
//!   NAME.acknowledged              up to where NAME was acknowledged (see `partial::acknowledged`)
//!   NAME.damaged, NAME.differs     NAME as it was before its master sent it again, or other WAL
//!   FROZEN                         the standby was booted (see `partial::freeze`)
//!   NAME.frozen                    what is replayed of NAME while it is
//! ```
//!
//! Base backups are in `full_backup`; [`sets`] has their format.
//!
//! Both forms of a segment may be mixed; `finished` reads them for everybody, and only `folder` and `durable` know that
//! a name may have two. A segment is packed on its way to the disk and unpacked again before it is acknowledged.
//!
//! There is no journal: the directory listing is the content of the archive, and the index of its names stands for a listing
//! only while it says the same. A checksum shows whether a file has changed since its acknowledgement; a file without a checksum is believed. An
//! administrator may copy finished files out with `cp` at any time.
//!
//! The marker holds `format` (1), `archive_id` (32 hexadecimal digits, the same in both
//! directories), `role`, and once bound `system_identifier` (decimal, as a string),
//! `wal_segment_size` (bytes) and `postgres_major`; then `checksum`, the CRC-32 of the other fields as JSON
//! without white space. If the checksum is wrong, no field is believed. The marker
//! distinguishes an archive from an empty mount point, so a receiver never fills
//! the wrong file system. A marker with a higher format is refused and not changed.
//!
//! # What a crash leaves
//!
//! [`durable`] argues each step of the write sequence and what a crash after it leaves. The start
//! ([`recovery`]) does this: take the lock, compare the markers, remove temporaries, sync both
//! directories (a rename may be visible and not yet durable), read the newest segments and every history
//! and backup history file, set a torn segment aside and report files that have changed since their acknowledgement, write
//! missing checksums, and only then accept connections. A second run changes nothing.

mod advance;
mod apart;
mod apart_notes;
pub(crate) mod archive;
mod below;
pub(crate) mod beside;
pub(crate) mod binding;
pub(crate) mod checksums;
pub(crate) mod compress;
mod config_copies;
pub(crate) mod damage;
pub(crate) mod differs;
pub(crate) mod disk;
pub(crate) mod displaced;
pub(crate) mod durable;
pub(crate) mod error;
mod failover;
mod finished;
mod folder;
pub(crate) mod fuzzing;
pub(crate) mod health;
mod held_names;
pub(crate) mod incoming;
mod index_keeper;
mod joined;
mod joints;
pub(crate) mod lineage;
mod map_notes;
pub(crate) mod maps;
mod name_lock;
mod obstacle_notes;
pub(crate) mod obstacles;
mod other_set;
mod packed;
pub(crate) mod partial;
mod proof;
mod reach;
pub(crate) mod reader;
mod reading;
mod real_disk;
pub(crate) mod recovery;
mod recovery_report;
pub(crate) mod rounds;
mod route;
pub(crate) mod segment_runs;
mod servers;
pub(crate) mod sets;
mod shared;
pub(crate) mod survey;
mod taken_over;
pub(crate) mod tree;
mod trial;
mod unfollowed;
pub(crate) mod verify;

#[cfg(test)]
mod archive_tests;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod index_tests;
#[cfg(test)]
mod joint_tests;
#[cfg(test)]
mod packed_tests;
#[cfg(test)]
mod reader_tests;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use apart_notes::ApartNote;
pub use binding::Binding;
pub use config_copies::{ConfigCopies, LIST_NAME};
pub(crate) use damage::Damage;
pub use disk::Disk;
pub(crate) use durable::{Durable, DurableRecords, DurableWal};
pub(crate) use error::StoreError;
pub(crate) use finished::StoredPiece;
pub(crate) use health::Health;
pub(crate) use incoming::{FileSealed, Incoming};
pub(crate) use index_keeper::{IndexKeeper, KeptIndex};
pub(crate) use other_set::WantedSet;
pub use partial::{Freeze, PartialEnd, PartialWals};
pub(crate) use partial::{FrozenSegment, NotTaken, OwnSegment, PartialStream};
pub(crate) use proof::WalProof;
pub(crate) use reach::{RecoveryReach, check_backup_end};
pub use reader::ArchiveReader;
pub(crate) use reader::{Absence, SegmentBefore, Stored};
pub use real_disk::RealDisk;
pub(crate) use route::Route;
pub(crate) use shared::StoredUnderName;
pub use shared::{Archive, ArchiveFolders};
pub(crate) use verify::note::VERIFIED_NAME;
