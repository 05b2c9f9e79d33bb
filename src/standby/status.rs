//! `status` on the standby: what its folders hold and who works on them.
//! Never needs the receiver or the master, and changes nothing. Invariant: how far the standby is behind
//! is never claimed to be known here; the age of what arrived last is an upper bound.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use walmgr_protocol::names::{Lsn, WalFileName};

use crate::config::{self, StandbyConfig};
use crate::daemon;
use crate::error::Result;
use crate::metrics::Samples;
use crate::options::Options;
use crate::pg::data_directory::DataDirectory;
use crate::pg::in_reach;
use crate::pg::layout;
use crate::pg::location;
use crate::standby::ahead;
use crate::standby::archive_cleaners;
use crate::standby::audited;
use crate::standby::boot::begun;
use crate::standby::connected;
use crate::standby::drill;
use crate::standby::frozen::Partials;
use crate::standby::hosted;
use crate::standby::kept;
use crate::standby::own_server;
use crate::standby::replay::ControlFiles;
use crate::standby::restore::taken::TakenSet;
use crate::standby::sets;
use crate::standby::standing;
use crate::standby::verified;
use crate::status::{
    self, Facts, Here, KeepsAll, Lag, MadeFigures, SetFigures, SetsLock, StandbyFacts, StoredWal,
    StreamFacts, Thresholds,
};
use crate::store::reader::ArchiveListing;
use crate::store::sets::Keeping;
use crate::store::survey::survey;
use crate::store::{
    ArchiveFolders, ArchiveReader, ConfigCopies, Disk, PartialWals, RealDisk, StoreError,
};
use crate::wal::obstacle::Demands;

/// Prints how it stands.
pub(crate) fn run(
    config: &StandbyConfig,
    options: &Options,
    thresholds: &Thresholds,
) -> Result<()> {
    let name = hosted::shown_name(config);
    status::finish(&facts(config), &name, thresholds, options)
}

/// What can be found out with this file, for monitoring; nothing if it cannot be read.
pub(crate) fn sampled(path: &Path, overrides: &[(String, String)]) -> Option<Samples> {
    let loaded = config::load(path, overrides).and_then(|config| config.into_standby("status"));
    let config = loaded
        .inspect_err(|error| tracing::debug!("monitoring cannot look: {error}"))
        .ok()?;
    Some(status::samples(&facts(&config), &Thresholds::default()))
}

/// What can be found out here.
pub(crate) fn facts(config: &StandbyConfig) -> Facts {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let full_backup = config.full_backup.as_deref();
    // A running receiver knows what is synced; from outside the records in the file have to do.
    let found = survey(&ArchiveFolders::of(config), full_backup, &disk, None);
    let standby = found.map(|mut overview| {
        let masters = connected::peers(config);
        overview.masters_count = masters.len() as u64;
        overview.masters = masters;
        let copies = config.config_backup.as_deref().map(ConfigCopies::read);
        if let Some(why) = copies.and_then(|copies| copies.damage()) {
            overview.damaged_count += 1;
            overview.damaged = Some(overview.damaged)
                .filter(|told| !told.is_empty())
                .unwrap_or(why);
        }
        overview
    });
    let standby = standby.map_err(|error| format!("the archive cannot be read: {error}"));
    let Facing {
        tablespace,
        unreplayable,
        demands,
    } = ahead(config);
    let arrived = standby.as_ref().ok().filter(|found| found.held.is_some());
    let held = standby.as_ref().ok().and_then(|found| found.held);
    let replay = standing::of_standby(config, held, demands);
    let (wal, keeps_all) = of_wal(config);
    Facts {
        lag: Lag {
            seconds_at_most: arrived.map(|found| status::seconds(found.received_age_ms)),
            ..Lag::default()
        },
        standby,
        here: Here::Standby(StandbyFacts {
            receiver_runs: daemon::is_running(&config.receiver_pidfile()).unwrap_or(false),
            host: hosted::host_facts(config),
            paused: ControlFiles::of(config).is_paused().unwrap_or(false),
            locked: locked(config),
            server_runs: server_runs(config),
            replay,
            stream: stream(config, disk),
            tablespace,
            unreplayable,
            moved_set: moved_set(config),
            changed_by_boot: begun::changed(config),
            unfinished_boot: begun::unfinished(config).map(|data| data.display().to_string()),
            audit: audited::trouble(config),
            archive_cleaners: archive_cleaners::named(config),
            incremental_differs: incremental_differs(config),
            wal,
            keeps_all,
            retention: kept::facts(config),
            sets: set_figures(config),
            verified_s: verified::last_s(config),
            drill: drill::facts(config),
        }),
    }
}

/// Who has the backup sets locked by hand.
fn locked(config: &StandbyConfig) -> Option<SetsLock> {
    let note = sets::open(config).ok()?.locked_by_hand().ok()??;
    let now_ms = jiff::Timestamp::now().as_millisecond();
    Some(SetsLock {
        age_s: status::seconds(now_ms - note.since_ms),
        holder: note.holder(),
    })
}

/// Why no backup is built on an older one.
fn incremental_differs(config: &StandbyConfig) -> Option<String> {
    sets::open(config).ok()?.noted_difference().ok()?
}

/// The sizes and durations of the sets, the newest first; none if they cannot be listed.
fn set_figures(config: &StandbyConfig) -> Vec<SetFigures> {
    let listed = sets::open(config).ok().and_then(|sets| sets.list().ok());
    let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk)).ok();
    let listed = listed.unwrap_or_default().into_iter();
    let figures = listed.map(|entry| {
        let details = entry.details(archive.as_ref());
        SetFigures {
            name: entry.name.to_string(),
            size_bytes: details.size_bytes,
            own_bytes: details.own_bytes,
            duration_s: details.duration_s,
            made: entry.made.map(|made| MadeFigures {
                is_incremental: made.since_full > 0,
                read_bytes: made.read_bytes,
                sent_bytes: made.sent_bytes,
            }),
        }
    });
    figures.collect()
}

/// Of how many segments the size is read, of more a part of them: somebody may ask every second.
const SIZES_READ_MAX: u64 = 1000;

/// What the finished segments take, and what is in the archive where nothing is ever removed from it.
fn of_wal(config: &StandbyConfig) -> (Option<StoredWal>, Option<KeepsAll>) {
    let found = || {
        let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk)).ok()?;
        let listing = archive.listing().ok()?;
        let wal = stored_wal(&archive, &listing)?;
        Some((wal, keeps_all(config, (&archive, &listing), wal)))
    };
    found().map_or((None, None), |(wal, keeps_all)| (Some(wal), keeps_all))
}

fn stored_wal(archive: &ArchiveReader, listing: &ArchiveListing) -> Option<StoredWal> {
    let segments = listing.segments.len();
    let (sample, _) = listing.segments.sample(SIZES_READ_MAX);
    let stat = |name| archive.stat(WalFileName::Segment(name)).ok()?;
    let lens = sample.into_iter().filter_map(stat).map(|it| it.len);
    Some(StoredWal {
        segments,
        size_bytes: segments * archive.binding().segment_size.bytes(),
        stored_bytes: of_sample(&lens.collect::<Vec<u64>>(), segments)?,
    })
}

/// The bytes that `count` files take, estimated from the mean of a sample of them.
fn of_sample(sample_bytes: &[u64], count: u64) -> Option<u64> {
    if count == 0 {
        return Some(0);
    }
    let bytes = sample_bytes.iter().map(|bytes| u128::from(*bytes));
    let bytes = bytes.sum::<u128>() * u128::from(count);
    u64::try_from(bytes.checked_div(sample_bytes.len() as u128)?).ok()
}

fn keeps_all(
    config: &StandbyConfig,
    (archive, listing): (&ArchiveReader, &ArchiveListing),
    wal: StoredWal,
) -> Option<KeepsAll> {
    if !Keeping::of(config).keeps_all() {
        return None;
    }
    // In the order of their names, a first one of each timeline: archives have few.
    let oldest = WalFileName::Segment(listing.segments.iter().next()?);
    let stored_ns = archive.stat(oldest).ok()??.modified_ns;
    let stored_ns = u64::try_from(stored_ns).ok()?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let age = since_1970.saturating_sub(Duration::from_nanos(stored_ns));
    Some(KeepsAll {
        is_set: config.keep_backups_is_set,
        segments: wal.segments,
        bytes: wal.stored_bytes,
        oldest_age: age.as_secs_f64(),
    })
}

/// The set that became the server in `slave_data` and is the newest that was made.
fn moved_set(config: &StandbyConfig) -> Option<String> {
    let listed = sets::open(config).ok()?.list().ok()?;
    TakenSet::newest_of(config, &listed)
}

/// What lies ahead of the server in `slave_data`.
#[derive(Default)]
struct Facing {
    /// What it is not to replay.
    tablespace: Option<String>,
    /// What it cannot.
    unreplayable: Option<String>,
    /// What its settings have to be.
    demands: Option<Demands>,
}

fn ahead(config: &StandbyConfig) -> Facing {
    let found = || -> Option<_> {
        let data = DataDirectory::open(config.slave_data.as_deref()?).ok()?;
        let signals = layout::SIGNALS;
        if !signals.iter().any(|name| data.path().join(name).exists()) {
            return None;
        }
        let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk)).ok()?;
        let at = (
            data.control().ok()?.timeline,
            location::recovery_begin(data.path())?,
        );
        let partials = Partials::open(config).ok()?;
        Some((partials.ahead(&archive, at).ok()?, data))
    };
    let Some((met, data)) = found() else {
        return Facing::default();
    };
    let loads = own_server::settings(config, &data).may_load_libraries();
    let end = in_reach::end_of(&met, loads);
    let before = met
        .iter()
        .filter(|met| end.is_none_or(|end| met.lsn < end.lsn));
    let held = location::refusal(data.path(), data.major(), before);
    let held = held.or_else(|| location::shared(data.path()));
    let ended = (end.as_ref()).map(|end| ahead::end_of_recovery(end).to_string());
    Facing {
        tablespace: held.map(|error| error.to_string()),
        unreplayable: ended,
        demands: ahead::demands(&met, end.map_or(Lsn(u64::MAX), |end| end.lsn)),
    }
}

/// Whether a boot froze the master's stream.
fn stream(config: &StandbyConfig, disk: Arc<dyn Disk>) -> StreamFacts {
    let frozen = PartialWals::open(&config.partial_wals, disk).and_then(|wals| wals.frozen());
    match frozen {
        Ok(Some(freeze)) => StreamFacts::Frozen(freeze.timeline),
        // Such an archive is a finding by itself.
        Ok(None) | Err(StoreError::NotSetUp { .. } | StoreError::NotBound) => StreamFacts::Open,
        Err(error) => StreamFacts::Unknown(error.to_string()),
    }
}

/// Whether the server runs that is to replay; `None` when there is none.
fn server_runs(config: &StandbyConfig) -> Option<bool> {
    let data = DataDirectory::open(config.slave_data.as_deref()?).ok()?;
    let replays = data.path().join(layout::STANDBY_SIGNAL).exists();
    let runs = data.running().ok()?.is_some();
    (replays || runs).then_some(runs)
}

#[cfg(test)]
mod tests {
    use super::of_sample;

    #[test]
    fn what_many_segments_take_is_told_by_those_that_were_looked_at() {
        assert_eq!(of_sample(&[], 0), Some(0));
        assert_eq!(of_sample(&[3, 4, 5], 3), Some(12));
        assert_eq!(of_sample(&[3, 4, 5], 3_000), Some(12_000));
        // All of them went meanwhile.
        assert_eq!(of_sample(&[], 7), None);
    }
}
