//! `global/pg_control` of PostgreSQL 13 to 18: which cluster this is and how far it got.
//! Never writes it. Invariant: no field is handed out unless the file's CRC-32C is right.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use walmgr_protocol::names::{Lsn, SystemId, TimelineId, WalSegmentSize};

use super::layout;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;

/// The file is padded with zeros to this size (`PG_CONTROL_FILE_SIZE`).
const FILE_BYTES: u64 = 8192;

/// A read beside a running server can see half of a write; the next read sees all of it.
const READ_ATTEMPTS: u32 = 10;
const READ_PAUSE: Duration = Duration::from_millis(10);

/// `ControlFileData` (`src/include/catalog/pg_control.h`), as far as walmgr needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// Which cluster this is.
    pub system_id: SystemId,
    /// `pg_control_version`: 1300 for 13 to 16, 1700, 1800.
    pub control_version: u32,
    /// `catalog_version_no`, one for every major version.
    pub catalog_version: u32,
    /// What the server was doing when it last wrote the file.
    pub state: State,
    /// When it last wrote the file, in seconds since 1970.
    pub modified_s: i64,
    /// Where the latest checkpoint record begins.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: TimelineId,
    /// The timeline before it; the same unless the checkpoint began a new one.
    pub previous_timeline: TimelineId,
    /// Whether full pages were written at that checkpoint.
    pub full_page_writes: bool,
    /// When that checkpoint was made, in seconds since 1970.
    pub checkpoint_time_s: i64,
    /// How far a standby must replay before it is consistent; 0/0 on a primary.
    pub min_recovery_point: Lsn,
    /// The timeline of that point.
    pub min_recovery_timeline: Option<TimelineId>,
    /// Where the base backup began that is being recovered; 0/0 otherwise.
    pub backup_start: Lsn,
    /// Where a backup of a standby ended; 0/0 otherwise.
    pub backup_end: Lsn,
    /// Whether recovery must meet the end-of-backup record.
    pub backup_end_required: bool,
    /// `wal_level` in force.
    pub wal_level: WalLevel,
    /// `max_connections`; with the next four, a hot standby must not have less than its primary.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// Bytes in a page of a table (`BLCKSZ`).
    pub block_bytes: u32,
    /// Pages in a file of a relation before the next file begins (`RELSEG_SIZE`).
    pub segment_blocks: u32,
    /// Bytes in a page of WAL (`XLOG_BLCKSZ`).
    pub wal_block_bytes: u32,
    /// `wal_segment_size`.
    pub segment_size: WalSegmentSize,
    /// Whether pages of tables carry checksums.
    pub data_checksums: bool,
}

impl ControlFile {
    /// The major version of PostgreSQL that made the cluster, or `None` for a development version.
    pub fn postgres_major(&self) -> Option<u8> {
        let known = |(catalog, _): &&(u32, u8)| *catalog == self.catalog_version;
        CATALOG_VERSIONS.iter().find(known).map(|(_, major)| *major)
    }
}

/// `CATALOG_VERSION_NO` of each release (`src/include/catalog/catversion.h`).
const CATALOG_VERSIONS: [(u32, u8); 6] = [
    (202_007_201, 13),
    (202_107_181, 14),
    (202_209_061, 15),
    (202_307_071, 16),
    (202_406_281, 17),
    (202_506_291, 18),
];

/// `DBState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Starting up.
    Startup,
    /// Shut down in good order as a primary.
    ShutDown,
    /// Shut down in good order while replaying.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// Replaying: a standby, or a recovery from a backup.
    InArchiveRecovery,
    /// Running as a primary, or killed while it was.
    InProduction,
}

impl fmt::Display for State {
    /// In the words of `pg_controldata`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            State::Startup => "starting up",
            State::ShutDown => "shut down",
            State::ShutDownInRecovery => "shut down in recovery",
            State::ShuttingDown => "shutting down",
            State::InCrashRecovery => "in crash recovery",
            State::InArchiveRecovery => "in archive recovery",
            State::InProduction => "in production",
        })
    }
}

/// `WalLevel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Not enough to archive.
    Minimal,
    /// Enough for a standby.
    Replica,
    /// With what logical decoding needs.
    Logical,
}

impl fmt::Display for WalLevel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            WalLevel::Minimal => "minimal",
            WalLevel::Replica => "replica",
            WalLevel::Logical => "logical",
        })
    }
}

/// Why bytes are not a control file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ControlFault {
    /// Fewer bytes than the fields need.
    #[error("it is {found} bytes long, expected at least {expected}")]
    TooShort {
        /// Bytes needed.
        expected: usize,
        /// Bytes there.
        found: usize,
    },
    /// A version that walmgr does not know.
    #[error(
        "its version is {found}, expected 1300, 1700 or 1800: walmgr supports PostgreSQL 13 to 18"
    )]
    Version {
        /// `pg_control_version`.
        found: u32,
    },
    /// Written on a machine that stores numbers the other way round.
    #[error("it was written on a machine of the other byte order")]
    ByteOrder,
    /// The content changed after PostgreSQL computed the checksum, or the read was torn.
    #[error("its CRC-32C is {found:08X}, expected {expected:08X}")]
    Checksum {
        /// What the file says.
        expected: u32,
        /// What its bytes give.
        found: u32,
    },
    /// A value that PostgreSQL never writes, under a right checksum.
    #[error("its {field} is {found}, which PostgreSQL never writes")]
    Value {
        /// PostgreSQL's name of the field.
        field: &'static str,
        /// The value.
        found: u64,
    },
}

/// Reads the control file of a data directory, again for a moment if a running server writes it.
pub(crate) fn read(data: &Path) -> Result<ControlFile> {
    read_file(&data.join(layout::PG_CONTROL))
}

/// Reads a control file that has, for the time being, another name.
pub(crate) fn read_file(path: &Path) -> Result<ControlFile> {
    let read = || files::read_at_most(path, FILE_BYTES).at(Kind::Config, "read", path);
    read_until_whole(path, read).map(|(_, control)| control)
}

/// The bytes of a control file, and what they say; `read` reads them, again for a moment if a running server
/// writes them.
pub(crate) fn read_until_whole(
    path: &Path,
    read: impl Fn() -> Result<Vec<u8>>,
) -> Result<(Vec<u8>, ControlFile)> {
    let mut attempt = 1;
    loop {
        let bytes = read()?;
        let fault = match parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(fault) => fault,
        };
        // A torn read can only show as a wrong checksum or, before the file has grown, as too short.
        let torn = matches!(
            fault,
            ControlFault::Checksum { .. } | ControlFault::TooShort { .. }
        );
        if !torn || attempt == READ_ATTEMPTS {
            let doing = format!("read {}", path.display());
            let kind = if torn { Kind::Retry } else { Kind::Config };
            return Err(CommandError::new(kind, doing).because(fault));
        }
        attempt += 1;
        std::thread::sleep(READ_PAUSE);
    }
}

// Offsets in the file, the same in all supported versions up to the checksum version. 17 put
// wal_level of the checkpoint where padding was, 18 put default_char_signedness before the nonce.
//
//      0 system_identifier u64     8 pg_control_version u32   12 catalog_version_no u32
//     16 state u32, padding       24 time i64                 32 checkPoint u64
//     40 checkPointCopy, 88 bytes: +0 redo u64, +8 ThisTimeLineID u32, +12 PrevTimeLineID u32,
//                                  +16 fullPageWrites bool, ..., +64 time i64, ...
//    128 unloggedLSN u64         136 minRecoveryPoint u64    144 minRecoveryPointTLI u32, padding
//    152 backupStartPoint u64    160 backupEndPoint u64      168 backupEndRequired bool, padding
//    172 wal_level u32           176 wal_log_hints bool, padding
//    180 MaxConnections i32, max_worker_processes, max_wal_senders, max_prepared_xacts,
//        max_locks_per_xact
//    200 track_commit_timestamp bool, padding                204 maxAlign u32   208 floatFormat f64
//    216 blcksz u32, relseg_size, xlog_blcksz, xlog_seg_size, nameDataLen, indexMaxKeys,
//        toast_max_chunk_size, loblksize
//    248 float8ByVal bool, padding
//    252 data_checksum_version u32
//    256 mock_authentication_nonce, 32 bytes; 288 crc u32
//    256 default_char_signedness bool, 257 nonce, padding; 292 crc u32 (18)
const CHECKPOINT_COPY: usize = 40;
const RECOVERY: usize = CHECKPOINT_COPY + 88 + 8;
const SETTINGS: usize = RECOVERY + 36;
const SIZES: usize = SETTINGS + 44;
const CHECKSUM_VERSION: usize = SIZES + 36;
const NONCE: usize = CHECKSUM_VERSION + 4;
const CRC_TO_17: usize = NONCE + 32;
const CRC_FROM_18: usize = CRC_TO_17 + 4;

const _: () = assert!(RECOVERY == 136 && SETTINGS == 172 && SIZES == 216 && NONCE == 256);

/// Reads the content of a control file; what follows the checksum does not matter.
pub(crate) fn parse(bytes: &[u8]) -> Result<ControlFile, ControlFault> {
    let fields = NativeFields(bytes);
    let control_version = fields.u32(8)?;
    let crc_at = match control_version {
        1300 | 1700 => CRC_TO_17,
        1800 => CRC_FROM_18,
        // The number fits 16 bits, so its bytes lie at the other end when they are swapped.
        version if version != 0 && version.is_multiple_of(1 << 16) => {
            return Err(ControlFault::ByteOrder);
        }
        found => return Err(ControlFault::Version { found }),
    };
    let expected = fields.u32(crc_at)?;
    let found = crc32c::crc32c(&bytes[..crc_at]);
    if found != expected && !cfg!(fuzzing) {
        return Err(ControlFault::Checksum { expected, found });
    }
    let segment_bytes = fields.u32(SIZES + 12)?;
    Ok(ControlFile {
        system_id: SystemId(fields.u64(0)?),
        control_version,
        catalog_version: fields.u32(12)?,
        state: state(fields.u32(16)?)?,
        modified_s: fields.i64(24)?,
        checkpoint: Lsn(fields.u64(32)?),
        redo: Lsn(fields.u64(CHECKPOINT_COPY)?),
        timeline: timeline("ThisTimeLineID", fields.u32(CHECKPOINT_COPY + 8)?)?,
        previous_timeline: timeline("PrevTimeLineID", fields.u32(CHECKPOINT_COPY + 12)?)?,
        full_page_writes: fields.bool(CHECKPOINT_COPY + 16)?,
        checkpoint_time_s: fields.i64(CHECKPOINT_COPY + 64)?,
        min_recovery_point: Lsn(fields.u64(RECOVERY)?),
        min_recovery_timeline: TimelineId::new(fields.u32(RECOVERY + 8)?),
        backup_start: Lsn(fields.u64(RECOVERY + 16)?),
        backup_end: Lsn(fields.u64(RECOVERY + 24)?),
        backup_end_required: fields.bool(RECOVERY + 32)?,
        wal_level: wal_level(fields.u32(SETTINGS)?)?,
        max_connections: fields.i32(SETTINGS + 8)?,
        max_worker_processes: fields.i32(SETTINGS + 12)?,
        max_wal_senders: fields.i32(SETTINGS + 16)?,
        max_prepared_transactions: fields.i32(SETTINGS + 20)?,
        max_locks_per_transaction: fields.i32(SETTINGS + 24)?,
        block_bytes: fields.u32(SIZES)?,
        segment_blocks: fields.u32(SIZES + 4)?,
        wal_block_bytes: fields.u32(SIZES + 8)?,
        segment_size: WalSegmentSize::new(segment_bytes)
            .ok_or_else(|| value("xlog_seg_size", segment_bytes))?,
        data_checksums: fields.u32(CHECKSUM_VERSION)? != 0,
    })
}

fn state(number: u32) -> Result<State, ControlFault> {
    Ok(match number {
        0 => State::Startup,
        1 => State::ShutDown,
        2 => State::ShutDownInRecovery,
        3 => State::ShuttingDown,
        4 => State::InCrashRecovery,
        5 => State::InArchiveRecovery,
        6 => State::InProduction,
        _ => return Err(value("state", number)),
    })
}

fn wal_level(number: u32) -> Result<WalLevel, ControlFault> {
    Ok(match number {
        0 => WalLevel::Minimal,
        1 => WalLevel::Replica,
        2 => WalLevel::Logical,
        _ => return Err(value("wal_level", number)),
    })
}

fn timeline(field: &'static str, number: u32) -> Result<TimelineId, ControlFault> {
    TimelineId::new(number).ok_or_else(|| value(field, number))
}

fn value(field: &'static str, found: u32) -> ControlFault {
    ControlFault::Value {
        field,
        found: u64::from(found),
    }
}

/// Numbers in the byte order of this machine: PostgreSQL writes the struct as it lies in memory.
struct NativeFields<'a>(&'a [u8]);

impl NativeFields<'_> {
    fn take<const N: usize>(&self, at: usize) -> Result<[u8; N], ControlFault> {
        let field = self
            .0
            .get(at..at + N)
            .and_then(|field| field.try_into().ok());
        field.ok_or(ControlFault::TooShort {
            expected: at + N,
            found: self.0.len(),
        })
    }

    fn u32(&self, at: usize) -> Result<u32, ControlFault> {
        self.take(at).map(u32::from_ne_bytes)
    }

    fn i32(&self, at: usize) -> Result<i32, ControlFault> {
        self.take(at).map(i32::from_ne_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, ControlFault> {
        self.take(at).map(u64::from_ne_bytes)
    }

    fn i64(&self, at: usize) -> Result<i64, ControlFault> {
        self.take(at).map(i64::from_ne_bytes)
    }

    fn bool(&self, at: usize) -> Result<bool, ControlFault> {
        self.take(at).map(|[byte]| byte != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{CONTROL_FILES, control_file};
    use super::*;

    #[test]
    fn the_files_of_all_supported_versions_are_read() {
        for (major, _) in CONTROL_FILES {
            let control = parse(&control_file(major)).unwrap();
            assert_eq!(control.postgres_major(), Some(major));
            assert_eq!(control.segment_size.bytes(), 1 << 20);
            assert_eq!(control.state, State::ShutDown);
            assert_eq!(control.timeline.number(), 1);
            assert_eq!(control.wal_level, WalLevel::Replica);
            assert_eq!((control.block_bytes, control.wal_block_bytes), (8192, 8192));
            assert_eq!(control.segment_blocks, 1 << 17);
            assert_eq!(control.max_wal_senders, 10);
            assert!(control.data_checksums);
            assert!(control.redo.0 > 0x80_0000 && control.checkpoint >= control.redo);
        }
    }

    #[test]
    fn every_flipped_bit_before_the_checksum_is_noticed() {
        for (major, _) in CONTROL_FILES {
            let whole = control_file(major);
            for at in 0..CRC_TO_17 {
                let mut broken = whole.clone();
                broken[at] ^= 1 << (at % 8);
                assert!(parse(&broken).is_err(), "byte {at} of version {major}");
            }
        }
    }

    #[test]
    fn every_shortened_file_is_refused() {
        for (major, _) in CONTROL_FILES {
            let whole = control_file(major);
            let crc_end = if major == 18 { CRC_FROM_18 } else { CRC_TO_17 } + 4;
            for length in 0..crc_end {
                assert!(matches!(
                    parse(&whole[..length]),
                    Err(ControlFault::TooShort { .. })
                ));
            }
            assert!(parse(&whole[..crc_end]).is_ok());
        }
    }

    #[test]
    fn foreign_versions_and_byte_orders_are_named() {
        let mut file = control_file(15);
        file[8..12].copy_from_slice(&1201_u32.to_ne_bytes());
        assert_eq!(parse(&file), Err(ControlFault::Version { found: 1201 }));
        file[8..12].copy_from_slice(&1300_u32.swap_bytes().to_ne_bytes());
        assert_eq!(parse(&file), Err(ControlFault::ByteOrder));
        file[8..12].copy_from_slice(&0_u32.to_ne_bytes());
        assert_eq!(parse(&file), Err(ControlFault::Version { found: 0 }));
    }

    #[test]
    fn a_torn_read_is_repeated_and_a_damaged_file_is_named() {
        let data = tempfile::tempdir().unwrap();
        std::fs::create_dir(data.path().join("global")).unwrap();
        let path = data.path().join(layout::PG_CONTROL);
        let missing = read(data.path()).unwrap_err();
        assert_eq!(missing.kind(), Kind::Config);
        let mut torn = control_file(18);
        torn[100] ^= 1;
        std::fs::write(&path, &torn).unwrap();
        let damaged = read(data.path()).unwrap_err();
        assert_eq!(damaged.kind(), Kind::Retry);
        assert!(damaged.to_string().contains("CRC-32C"), "{damaged}");
        // On a busy machine the file may become whole when all attempts are over: that run says nothing.
        let in_time = (0..100).any(|_| {
            std::fs::write(&path, &torn).unwrap();
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| read(data.path()));
                std::thread::sleep(READ_PAUSE * 3);
                std::fs::write(&path, control_file(18)).unwrap();
                let control = reader.join().unwrap();
                control.is_ok_and(|control| control.postgres_major() == Some(18))
            })
        });
        assert!(in_time);
    }
}
