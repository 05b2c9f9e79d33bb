//! Where the standby's server stands: what it has replayed of what is held, and what holds it up.
//! Never changes anything. Invariant: a hold is named only if the server, its control file or the archive
//! shows it; where the server cannot be asked its position is a lower bound and called so.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use walmgr_protocol::names::{Lsn, SegmentName, TimelineId, WalFileName, WalSegmentSize};

use crate::config::StandbyConfig;
use crate::error::Result;
use crate::files;
use crate::pg::conf::ServerSettings;
use crate::pg::control::{ControlFile, State};
use crate::pg::data_directory::{DataDirectory, Postmaster};
use crate::pg::layout;
use crate::pg::sql_replay::{Holder, Replaying};
use crate::standby::hold;
use crate::standby::own_server;
use crate::standby::sets;
use crate::standby::too_low::Demanded;
use crate::status::{Hold, Replay};
use crate::store::{ArchiveReader, RealDisk, SegmentBefore, Stored};
use crate::wal::commit::{TIME_BYTES_MAX, commit_time_us, is_commit};
use crate::wal::obstacle::Demands;
use crate::wal::record::read_record;
use crate::wal::scan::{ScanStep, Scanner};

/// How long the archive is read for a reason or a commit: monitoring gives up on a check.
const PATIENCE: Duration = Duration::from_secs(2);
const PIECE_BYTES: usize = 256 << 10;

/// A standby follows few timelines; none has a segment of this number on more of them.
const TIMELINES_MAX: u32 = 64;

/// What a look at a server found.
#[derive(Debug)]
pub(super) struct Looked {
    /// What it says itself; the error says why it says nothing.
    pub said: Result<Replaying, String>,
    /// What holds its replay up, as far as server and settings show it.
    pub holds: Vec<Hold>,
    /// The sessions that do.
    pub sessions: Vec<Holder>,
}

/// Where replay certainly stands by the control file; it may be further.
pub(super) fn replayed(control: &ControlFile) -> (TimelineId, Lsn) {
    match control.min_recovery_timeline {
        Some(timeline) if control.min_recovery_point > control.redo => {
            (timeline, control.min_recovery_point)
        }
        _ => (control.timeline, control.redo),
    }
}

/// Looks at a server that replays, or that ended while it did.
pub(super) fn look(
    data: &DataDirectory,
    server: Option<&Postmaster>,
    demanded: Demanded,
    files: &ServerSettings,
) -> Looked {
    let Some(server) = server else {
        let low = demanded.too_low_in_files(files);
        let is_recovery = data.path().join(layout::RECOVERY_SIGNAL).exists();
        let has_target = is_recovery && own_server::has_target(data, None, files);
        let holds = [
            (!low.is_empty()).then_some(Hold::TooLow(low)),
            has_target.then_some(Hold::DownWithTarget),
        ];
        return Looked {
            said: Err("it does not run".to_owned()),
            holds: holds.into_iter().flatten().collect(),
            sessions: Vec::new(),
        };
    };
    let is_standby = data.path().join(layout::STANDBY_SIGNAL).exists();
    let asked = own_server::ask(data, server, async |session| {
        let Some(said) = session.replaying().await? else {
            return Ok(None);
        };
        let at_target = !is_standby && session.has_target().await?;
        let mut holds = Vec::new();
        let low = demanded.too_low_in(session).await?;
        if !low.is_empty() {
            holds.push(Hold::TooLow(low));
        } else if said.is_paused && at_target {
            holds.push(Hold::AtTarget);
        } else if said.is_paused {
            holds.push(Hold::Paused);
        }
        if said.is_delayed {
            let setting = session.in_force(&["recovery_min_apply_delay"]).await?;
            let place = setting.first().map(|it| it.place()).unwrap_or_default();
            holds.push(Hold::Delay(said.apply_delay.clone(), place));
        }
        let mut sessions = Vec::new();
        if said.is_in_conflict {
            sessions = session.holders_of_replay().await?;
            let who = sessions.iter().map(|holder| holder.who.clone()).collect();
            holds.push(Hold::Sessions(who, said.conflict_limit.clone()));
        }
        Ok(Some((said, holds, sessions)))
    });
    match asked {
        Ok(Some((said, holds, sessions))) => Looked {
            said: Ok(said),
            holds,
            sessions,
        },
        Ok(None) => Looked {
            said: Err("it is open".to_owned()),
            holds: Vec::new(),
            sessions: Vec::new(),
        },
        Err(error) => Looked {
            holds: delay_in(files).into_iter().collect(),
            said: Err(error.to_string()),
            sessions: Vec::new(),
        },
    }
}

/// What waits at a recovery target in `slave_data`, in a sentence: nothing that holds or releases the files of the
/// archive moves it.
pub(super) fn at_target(config: &StandbyConfig) -> Option<String> {
    let data = DataDirectory::open(config.slave_data.as_deref()?).ok()?;
    let control = data.control().ok()?;
    let state = control.state;
    let replays = matches!(state, State::InArchiveRecovery | State::ShutDownInRecovery);
    let server = data.running().ok()?;
    let files = own_server::settings(config, &data);
    let looked = look(&data, server.as_ref(), Demanded::by(&control), &files);
    let at_target = |hold: &&Hold| matches!(hold, Hold::AtTarget | Hold::DownWithTarget);
    let hold = looked.holds.iter().find(at_target).filter(|_| replays)?;
    Some(format!(
        "the server in {}: {}",
        data.path().display(),
        hold.text()
    ))
}

/// The delay that a server is set to which does not answer.
fn delay_in(files: &ServerSettings) -> Option<Hold> {
    let set = files.get("recovery_min_apply_delay")?;
    let value = set.value.trim();
    let is_none = value.is_empty() || value.trim_end_matches(char::is_alphabetic).trim() == "0";
    (!is_none).then(|| Hold::Delay(value.to_owned(), set.place))
}

/// Where the server in `slave_data` stands, and whether it will get past what the WAL ahead demands of its
/// settings; `None` where none replays.
pub(super) fn of_standby(
    config: &StandbyConfig,
    held: Option<(TimelineId, Lsn)>,
    ahead: Option<Demands>,
) -> Option<Replay> {
    let data = DataDirectory::open(config.slave_data.as_deref()?).ok()?;
    let control = data.control().ok()?;
    let replays = matches!(
        control.state,
        State::InArchiveRecovery | State::ShutDownInRecovery
    );
    if !replays {
        return None;
    }
    let server = data.running().ok()?;
    let (demanded, files) = (Demanded::by(&control), own_server::settings(config, &data));
    let looked = look(&data, server.as_ref(), demanded, &files);
    let too_low = |looked: Looked| {
        let lists = looked.holds.into_iter().filter_map(|hold| match hold {
            Hold::TooLow(list) => Some(list),
            _ => None,
        });
        lists.flatten().collect::<Vec<_>>()
    };
    let stands_already = looked
        .holds
        .iter()
        .any(|hold| matches!(hold, Hold::TooLow(_)));
    let too_low_ahead = ahead.filter(|_| !stands_already).map(|ahead| {
        too_low(look(
            &data,
            server.as_ref(),
            demanded.and(Some(ahead)),
            &files,
        ))
    });
    let (timeline, known) = replayed(&control);
    let said = looked.said.as_ref().ok();
    let replayed = (said.and_then(|said| said.replayed)).map_or(known, |lsn| lsn.max(known));
    let received = said.and_then(|said| said.received).unwrap_or_default();
    let end = held.map(|(_, end)| end.max(received));
    let mut replay = Replay {
        timeline,
        replayed,
        unasked: looked.said.as_ref().err().cloned(),
        lag_bytes: end.map(|end| end.0.saturating_sub(replayed.0)),
        lag_seconds: None,
        holds: looked.holds,
        too_low_ahead: too_low_ahead.unwrap_or_default(),
        cancelled_queries: said.map(|said| said.cancelled_queries),
    };
    replay.holds.extend(backup_hold(config));
    if let Some((newest, end)) = held
        && let Ok(archive) = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk))
    {
        let ahead = Ahead {
            config,
            archive,
            newest: newest.max(timeline),
            size: control.segment_size,
        };
        replay.lag_seconds = ahead.oldest_commit_s(replayed, end);
        let is_down = server.is_none();
        if replay.lag_bytes > Some(0) && replay.holds.is_empty() {
            replay.holds.extend(ahead.hold(replayed, end, is_down));
        }
    }
    Some(replay)
}

/// The backup that holds replay, if one does.
fn backup_hold(config: &StandbyConfig) -> Option<Hold> {
    let is_held = hold::is_held(&config.completed_wals);
    if !is_held.is_ok_and(|is_held| is_held) {
        return None;
    }
    let holder = sets::open(config).and_then(|sets| {
        let holder = sets.lease_holder();
        holder.map_err(|error| sets::failed("look who makes a backup", &error))
    });
    let holder = holder.ok().flatten();
    Some(Hold::Backup(
        holder.unwrap_or_else(|| "a backup on this host".to_owned()),
    ))
}

/// The WAL that a server has still to replay.
struct Ahead<'a> {
    config: &'a StandbyConfig,
    archive: ArchiveReader,
    newest: TimelineId,
    size: WalSegmentSize,
}

impl Ahead<'_> {
    /// The names that the segment with this byte may have, the newest timeline first.
    fn names(&self, lsn: Lsn) -> impl Iterator<Item = SegmentName> + use<'_> {
        let newest = self.newest.number();
        let timelines = (1..=newest).rev().take(TIMELINES_MAX as usize);
        let timelines = timelines.filter_map(TimelineId::new);
        timelines.map(move |timeline| SegmentName::containing(timeline, lsn, self.size))
    }

    /// Why the archive does not lead on from here, as far as it is known. A server that is down has
    /// replayed more than its control file says, so what stopped it may lie some segments ahead.
    fn hold(&self, replayed: Lsn, end: Lsn, is_down: bool) -> Option<Hold> {
        let begun = Instant::now();
        let mut lsn = replayed;
        while lsn < end && begun.elapsed() < PATIENCE {
            for name in self.names(lsn) {
                let stored = match self.archive.find(WalFileName::Segment(name)) {
                    Ok(Some(stored)) => stored,
                    Ok(None) => continue,
                    Err(error) => return Some(Hold::Damaged(format!("{name}: {error}"))),
                };
                if let Err(error) = stored.read_verified(SegmentBefore::Read, |_| true) {
                    return Some(Hold::Damaged(format!("{name}: {error}")));
                }
                if !is_down {
                    return None;
                }
                lsn = Lsn((lsn.0 / self.size.bytes() + 1) * self.size.bytes());
                break;
            }
            let stands = self.names(lsn).next()?;
            if self.finished(lsn).ok()?.is_none() {
                let partial = self.config.partial_wals.join(stands.to_string());
                return Some(match partial.exists() {
                    true => Hold::InProgress(stands),
                    false => Hold::Missing(stands),
                });
            }
        }
        None
    }

    /// The age of the first commit between the two; `None` where it is not found in time.
    fn oldest_commit_s(&self, replayed: Lsn, end: Lsn) -> Option<f64> {
        if replayed >= end {
            return Some(0.0);
        }
        let begun = Instant::now();
        let mut scanner = Scanner::new(replayed, self.size);
        let mut piece = vec![0; PIECE_BYTES];
        while scanner.position() < end && begun.elapsed() < PATIENCE {
            let read_bytes = self.read_at(scanner.position(), &mut piece).ok()?;
            if read_bytes == 0 {
                return None;
            }
            let mut input = &piece[..read_bytes];
            loop {
                match scanner.advance(&mut input) {
                    ScanStep::NeedMore => break,
                    ScanStep::Record(record) if record.lsn >= end => return Some(0.0),
                    ScanStep::Record(record) if is_commit(&record) => {
                        return self.age_s(record.lsn);
                    }
                    ScanStep::Record(record) if record.is_switch() => {
                        scanner = Scanner::new(record.end, self.size).following(record.lsn);
                        break;
                    }
                    ScanStep::Record(_) => {}
                    ScanStep::EndOfWal(_) | ScanStep::Invalid { .. } => return None,
                }
            }
        }
        (scanner.position() >= end).then_some(0.0)
    }

    fn age_s(&self, commit: Lsn) -> Option<f64> {
        let mut record = [0; TIME_BYTES_MAX];
        let read_at = |lsn: Lsn, piece: &mut [u8]| self.read_at(lsn, piece);
        let read_bytes = read_record(commit, self.size, &mut record, read_at).ok()?;
        commit_time_us(&record[..read_bytes]).map(seconds_since)
    }

    /// Reads within one segment; 0 where there is none.
    fn read_at(&self, lsn: Lsn, buffer: &mut [u8]) -> io::Result<usize> {
        let offset_bytes = lsn.0 % self.size.bytes();
        let left = usize::try_from(self.size.bytes() - offset_bytes).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        if let Some(stored) = self.finished(lsn)? {
            return stored.read_at(&mut buffer[..wanted], offset_bytes);
        }
        match self.in_progress(lsn)? {
            Some(file) => file.read_at(&mut buffer[..wanted], offset_bytes),
            None => Ok(0),
        }
    }

    /// The finished segment with this byte.
    fn finished(&self, lsn: Lsn) -> io::Result<Option<Stored>> {
        for name in self.names(lsn) {
            let stored = self.archive.find(WalFileName::Segment(name));
            if let Some(stored) = stored.map_err(io::Error::other)? {
                return Ok(Some(stored));
            }
        }
        Ok(None)
    }

    /// The segment in progress with this byte.
    fn in_progress(&self, lsn: Lsn) -> io::Result<Option<File>> {
        for name in self.names(lsn) {
            match files::open_at_once(self.config.partial_wals.join(name.to_string())) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other.map(Some),
            }
        }
        Ok(None)
    }
}

#[expect(clippy::cast_precision_loss, reason = "an age has no 53 bits")]
fn seconds_since(time_us: i64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_us = now.map_or(0, |now| i64::try_from(now.as_micros()).unwrap_or(i64::MAX));
    now_us.saturating_sub(time_us) as f64 / 1e6
}
