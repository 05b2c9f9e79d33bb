//! The records that replay may not get past: those that end it for everybody, those that it passes
//! only with certain settings, and those that act outside the data directory. Never looks at where it
//! would be replayed. Invariant: what an obstacle says comes from the record's own bytes.
//!
//! | record | PostgreSQL then |
//! |---|---|
//! | `XLOG_PARAMETER_CHANGE` with `wal_level = minimal` | ends with an error: what was written since is not in the WAL (13 without `hot_standby` warns and goes on with data missing) |
//! | the first checkpoint of `pg_resetwal` | finds no way to it: it goes on from no record (`xl_prev` is 0) |
//! | `XLOG_PARAMETER_CHANGE` otherwise | with `hot_standby = on` pauses, or ends, where one of five settings is lower (`CheckRequiredParameterValues`) |
//! | `XLOG_TBLSPC_CREATE` | makes the tablespace at the location that the master gave it, whatever is there, and puts its own link for the one in `pg_tblspc` |
//! | of a resource manager from 128 on (15 and later) | ends with an error if no library in `shared_preload_libraries` brings it |
//!
//! No obstacles are `XLOG_FPW_CHANGE` (a backup of a primary has full pages whatever it says),
//! `track_commit_timestamp` (replay follows it), `XLOG_TBLSPC_DROP`, and the creation and removal of a
//! database: those reach other directories only through the links in `pg_tblspc`, which whoever serves WAL
//! looks at. `pg_checksums` writes no WAL.
//!
//! Layouts, little-endian, behind the record's header of its main data:
//!
//! ```text
//! xl_parameter_change (13 to 18)   i32 max_connections, max_worker_processes, max_wal_senders,
//!                                  max_prepared_transactions, max_locks_per_transaction, wal_level
//! xl_tblspc_create_rec             u32 OID, the location with a NUL behind it; empty: in place (15)
//! ```

use walmgr_protocol::names::Lsn;

use super::commit::main_data;
use super::record::{
    RECORD_HEADER_BYTES, RM_XLOG, RecordHeader, RecordInfo, XLOG_CHECKPOINT_SHUTDOWN,
};

/// This many bytes of a record are enough to tell what obstacle it is: headers, an OID and
/// `MAXPGPATH`.
pub(crate) const OBSTACLE_BYTES_MAX: usize = RECORD_HEADER_BYTES + 3 + 5 + 5 + 4 + 1024;

/// How many are remembered of a stretch of WAL: more than anybody makes in a segment, and less than
/// 2 MiB of memory.
pub(crate) const OBSTACLES_MAX: usize = 1_000;

pub(super) const RM_TBLSPC: u8 = 5;
/// `RM_MIN_CUSTOM_ID`.
const RM_CUSTOM_MIN: u8 = 128;
pub(super) const INFO_MASK: u8 = 0xF0;
const XLOG_PARAMETER_CHANGE: u8 = 0x60;
pub(super) const XLOG_TBLSPC_CREATE: u8 = 0x00;
const WAL_LEVEL_MINIMAL: i32 = 0;

/// What a hot standby must have at least of five settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demands {
    /// `max_connections`
    pub max_connections: i32,
    /// `max_worker_processes`
    pub max_worker_processes: i32,
    /// `max_wal_senders`
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`
    pub max_locks_per_transaction: i32,
}

impl Demands {
    /// What PostgreSQL has where nothing is set.
    pub const DEFAULTS: Demands = Demands::of([100, 8, 10, 0, 64]);

    /// Each setting with the value that is needed, in the order in which PostgreSQL looks at them.
    pub const fn each(&self) -> [(&'static str, i32); 5] {
        [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ]
    }

    /// The higher of each.
    #[must_use]
    pub fn or(self, other: Demands) -> Demands {
        let (one, other) = (self.each(), other.each());
        let [a, b, c, d, e] = std::array::from_fn(|at| one[at].1.max(other[at].1));
        Demands::of([a, b, c, d, e])
    }

    /// In the order of [`Demands::each`].
    pub const fn of([connections, workers, senders, prepared, locks]: [i32; 5]) -> Demands {
        Demands {
            max_connections: connections,
            max_worker_processes: workers,
            max_wal_senders: senders,
            max_prepared_transactions: prepared,
            max_locks_per_transaction: locks,
        }
    }
}

/// What a record asks of whoever replays it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// `wal_level` was set to `minimal`: from here on the WAL does not tell everything.
    Minimal,
    /// `pg_resetwal` began the WAL anew.
    Reset,
    /// A hot standby needs these settings from here on.
    Settings(Demands),
    /// A tablespace is created.
    Tablespace {
        /// Its OID.
        oid: u32,
        /// Where, as the master was told; empty for one in place.
        location: Vec<u8>,
    },
    /// A record of a resource manager that a library has to bring.
    Manager(u8),
}

impl Obstacle {
    /// Whether nobody gets past it, whatever is set.
    pub const fn is_end(&self) -> bool {
        matches!(self, Obstacle::Minimal | Obstacle::Reset)
    }

    /// Whether a server does not get past it that loads libraries, or none.
    pub const fn ends(&self, loads_libraries: bool) -> bool {
        self.is_end() || (!loads_libraries && matches!(self, Obstacle::Manager(_)))
    }
}

/// An obstacle, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// Where its record begins.
    pub lsn: Lsn,
    /// What it is.
    pub obstacle: Obstacle,
}

/// Those of a stretch of WAL, in the order of the WAL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Obstacles {
    met: Vec<Met>,
    is_cut: bool,
}

impl Obstacles {
    /// All that are remembered.
    pub fn all(&self) -> &[Met] {
        &self.met
    }

    /// Those that begin at `from` or behind, and before `end`.
    pub fn between(&self, from: Lsn, end: Lsn) -> impl Iterator<Item = &Met> {
        self.met
            .iter()
            .filter(move |met| met.lsn >= from && met.lsn < end)
    }

    /// Whether there were more than are remembered.
    pub const fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Says that there were more.
    pub const fn cut(&mut self) {
        self.is_cut = true;
    }

    /// Adds one. What says the same as one before it adds nothing, as for each record of a resource
    /// manager.
    pub fn add(&mut self, met: Met) {
        let repeats = |before: &Met| match (&before.obstacle, &met.obstacle) {
            (Obstacle::Manager(one), Obstacle::Manager(other)) => one == other,
            _ => *before == met,
        };
        if self.met.iter().any(repeats) {
            return;
        }
        match self.met.len() < OBSTACLES_MAX {
            true => self.met.push(met),
            false => self.is_cut = true,
        }
    }

    /// Adds those of another stretch that begin before `end`.
    pub fn add_before(&mut self, others: &Obstacles, end: Lsn) {
        for met in others.met.iter().filter(|met| met.lsn < end) {
            self.add(met.clone());
        }
        self.is_cut |= others.is_cut;
    }
}

/// Whether a record may be an obstacle, and so its first bytes are worth keeping.
pub(crate) const fn is_suspect(header: &RecordHeader) -> bool {
    match header.rmid {
        RM_XLOG => match header.info & INFO_MASK {
            XLOG_PARAMETER_CHANGE => true,
            XLOG_CHECKPOINT_SHUTDOWN => header.prev.0 == 0,
            _ => false,
        },
        RM_TBLSPC => header.info & INFO_MASK == XLOG_TBLSPC_CREATE,
        rmid => rmid >= RM_CUSTOM_MIN,
    }
}

/// What obstacle a record is, from its first [`OBSTACLE_BYTES_MAX`] bytes, page headers taken out;
/// `first` is where the first record of a cluster begins, which follows no other either.
pub(crate) fn read(info: &RecordInfo, record: &[u8], first: Lsn) -> Option<Obstacle> {
    match (info.rmid, info.info & INFO_MASK) {
        (RM_XLOG, XLOG_PARAMETER_CHANGE) => settings(main_data(record)?),
        (RM_XLOG, _) => (info.lsn > first).then_some(Obstacle::Reset),
        (RM_TBLSPC, _) => tablespace(main_data(record)?),
        (rmid, _) => (rmid >= RM_CUSTOM_MIN).then_some(Obstacle::Manager(rmid)),
    }
}

fn settings(data: &[u8]) -> Option<Obstacle> {
    let number = |at: usize| Some(i32::from_le_bytes(*data.get(at * 4..)?.first_chunk()?));
    let mut demands = [0; 5];
    for (at, demand) in demands.iter_mut().enumerate() {
        *demand = number(at)?;
    }
    Some(match number(5)? {
        WAL_LEVEL_MINIMAL => Obstacle::Minimal,
        _ => Obstacle::Settings(Demands::of(demands)),
    })
}

fn tablespace(data: &[u8]) -> Option<Obstacle> {
    let (oid, location) = data.split_first_chunk()?;
    let end = location.iter().position(|byte| *byte == 0)?;
    Some(Obstacle::Tablespace {
        oid: u32::from_le_bytes(*oid),
        location: location[..end].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use walmgr_protocol::names::{SystemId, WalSegmentSize};

    use super::*;
    use crate::wal::scan::{ScanStep, Scanner};
    use crate::wal::writer::WalWriter;

    const MIB: WalSegmentSize = WalSegmentSize::new(1 << 20).expect("a size PostgreSQL has");

    fn main(data: &[u8]) -> Vec<u8> {
        match u8::try_from(data.len()) {
            Ok(len) => [&[255, len][..], data].concat(),
            Err(_) => {
                let len = u32::try_from(data.len()).unwrap().to_le_bytes();
                [&[254][..], &len, data].concat()
            }
        }
    }

    fn change(values: [i32; 6]) -> Vec<u8> {
        let values = values.iter().flat_map(|value| value.to_le_bytes());
        main(&values.chain([0, 0]).collect::<Vec<u8>>())
    }

    fn space(oid: u32, location: &str) -> Vec<u8> {
        main(&[&oid.to_le_bytes()[..], location.as_bytes(), &[0]].concat())
    }

    fn writer(number: u64) -> WalWriter {
        let segment = format!("0000000100000000{number:08X}").parse().unwrap();
        WalWriter::new(segment, MIB, SystemId(7), 15)
    }

    /// What a scanner meets that is fed in pieces of this length.
    fn met(writer: &WalWriter, start: Lsn, piece_bytes: usize) -> Vec<Met> {
        let mut scanner = Scanner::new(start, MIB);
        for mut piece in writer.bytes().chunks(piece_bytes) {
            while let ScanStep::Record(_) = scanner.advance(&mut piece) {}
        }
        scanner.obstacles().all().to_vec()
    }

    #[test]
    fn fault_127_records_that_end_or_hold_up_replay_are_met() {
        let mut writer = writer(3);
        let settings = writer.record(
            RM_XLOG,
            XLOG_PARAMETER_CHANGE,
            &change([200, 9, 8, 7, 6, 1]),
        );
        writer.record(10, 0, &[0; 9000]);
        let minimal = writer.record(
            RM_XLOG,
            XLOG_PARAMETER_CHANGE,
            &change([200, 9, 8, 7, 6, 0]),
        );
        let custom = writer.record(130, 0x10, &[1; 40]);
        writer.record(130, 0x20, &[1; 40]);
        let demands = Demands::of([200, 9, 8, 7, 6]);
        let expected = [
            (settings.lsn, Obstacle::Settings(demands)),
            (minimal.lsn, Obstacle::Minimal),
            (custom.lsn, Obstacle::Manager(130)),
        ];
        let expected = expected.map(|(lsn, obstacle)| Met { lsn, obstacle });
        for piece_bytes in [1, 7, 8192, 1 << 20] {
            assert_eq!(met(&writer, Lsn(3 << 20), piece_bytes), expected);
        }
        assert!(!expected[0].obstacle.is_end() && expected[1].obstacle.is_end());
    }

    #[test]
    fn fault_124_a_location_of_any_length_is_met_across_pages_and_segments() {
        for location in ["", "/srv/space", &format!("/{}", "x".repeat(1000))] {
            for before in [0, 8_000, 8_100, (1 << 20) - 200_000] {
                let mut writer = writer(3);
                writer.record(10, 0, &vec![0; before]);
                while before > 9_000 && writer.bytes().len() < (1 << 20) - 128 {
                    let left = (1 << 20) - writer.bytes().len();
                    writer.record(10, 0, &vec![0; if left > 9_000 { 8_000 } else { 40 }]);
                }
                let created = writer.record(RM_TBLSPC, XLOG_TBLSPC_CREATE, &space(99, location));
                writer.record(RM_TBLSPC, 0x10, &main(&99_u32.to_le_bytes()));
                let location = location.as_bytes().to_vec();
                let obstacle = Obstacle::Tablespace { oid: 99, location };
                let lsn = created.lsn;
                assert_eq!(met(&writer, Lsn(3 << 20), 4096), [Met { lsn, obstacle }]);
            }
        }
    }

    #[test]
    fn only_a_reset_begins_with_a_record_that_follows_none() {
        for (number, expected) in [(1, 0), (2, 1), (40, 1)] {
            let mut writer = writer(number).following(Lsn(0));
            writer.record(RM_XLOG, XLOG_CHECKPOINT_SHUTDOWN, &main(&[0; 88]));
            let met = met(&writer, Lsn(number << 20), 8192);
            assert_eq!(met.len(), expected, "{met:?}");
            assert!(met.iter().all(|met| met.obstacle == Obstacle::Reset));
        }
    }

    #[test]
    fn torn_records_are_no_obstacles() {
        let body = space(99, "/srv");
        let record = [&[0; RECORD_HEADER_BYTES][..], &body].concat();
        let info = RecordInfo {
            lsn: Lsn(5 << 20),
            end: Lsn(5 << 20),
            prev: Lsn(0),
            xid: 0,
            tot_len: 0,
            rmid: RM_TBLSPC,
            info: 0,
        };
        for len in 0..record.len() {
            assert_eq!(read(&info, &record[..len], Lsn(0)), None);
        }
        assert!(read(&info, &record, Lsn(0)).is_some());
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let mut many = Obstacles::default();
        for lsn in 0..2_000 {
            let obstacle = Obstacle::Minimal;
            many.add(Met {
                lsn: Lsn(lsn),
                obstacle,
            });
        }
        assert!(many.all().len() == OBSTACLES_MAX && many.is_cut());
    }
}
