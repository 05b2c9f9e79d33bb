//! `xrestore NAME PATH [%r]`: PostgreSQL's `restore_command`.
//! Never says 1 unless the archive is proven to hold neither the file nor anything behind it, and
//! never changes what the archive holds. Invariant: PATH gets either the whole file, whose records were all
//! checked when it was stored or are now, or nothing, wherever the process is killed.
//!
//! | exit | PostgreSQL then | said when |
//! |---|---|---|
//! | 0 | replays the file | it is in place |
//! | 1 | ends recovery, or as a standby asks again | there is no such file, nor a later one; to a standby that waits also at a gap |
//! | 254 | ends with an error, the database stays closed | everything else |
//!
//! The copy is not synced: PostgreSQL does so itself before it keeps a restored file
//! (`KeepFileRestoredFromArchive`), and the archive has it anyway.

mod for_drill;
mod laid_ready;
pub(crate) mod tablespaces;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use walmgr_protocol::names::{Lsn, SegmentName, WalFileName};

use self::laid_ready::LaidReady;
use crate::abnormal;
use crate::config::{OnCorrupt, StandbyConfig};
use crate::error::{CommandError, ExitTable, IoContext, Kind, Result};
use crate::files::{self, HandedOver};
use crate::laid_ready::LaidSegment;
use crate::options::Options;
use crate::output;
use crate::pg::conf::ServerSettings;
use crate::pg::layout;
use crate::pg::{crossing, location};
use crate::standby::absent_notes::AbsentNotes;
use crate::standby::frozen::{Partials, Serving};
use crate::standby::replay::{Asker, ControlFiles, StopFile, Watch};
use crate::store::lineage::HistoryAnswer;
use crate::store::{Absence, ArchiveReader, RealDisk, SegmentBefore, StoreError, Stored};
use crate::wal::obstacle::Obstacles;
use crate::wal::obstacle_walk::ObstacleWalk;
use crate::wal::scan::Scanner;

/// How often the alarm about a standby that is held up is repeated.
const ALARM_INTERVAL: Duration = Duration::from_secs(60);

/// How often a file that was found damaged is looked at again without any sign of a change.
const SECOND_LOOK: Duration = Duration::from_secs(2);

/// How soon at the earliest, as each look reads a segment and the receiver changes the directory
/// all the time.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// What stands for a timeline that is taken and that nobody follows: it leaves timeline 1 before any
/// record, so PostgreSQL counts it and finds that it is none of its own.
const PLACEHOLDER: &[u8] = b"1\t0/1\twalmgr: set apart, nothing leads to this timeline\n";

/// Hands over one file.
pub fn run(
    config: &StandbyConfig,
    options: &Options,
    name: WalFileName,
    path: &Path,
) -> Result<()> {
    let restore = RestoreCall::new(config, name, path, false)?;
    if options.not_really {
        return restore.rehearse();
    }
    restore.run()?;
    // Whoever lays segments knows the settings of the file alone.
    if options.overrides.is_empty() {
        restore.lay_behind();
    }
    Ok(())
}

/// Hands over one file to the server of a drill.
pub(crate) fn run_for_drill(config: &StandbyConfig, name: WalFileName, path: &Path) -> Result<()> {
    RestoreCall::new(config, name, path, true)?.run_for_drill()
}

/// Lays the segments behind one ready for the server that has asked for it.
///
/// Never fails: nobody waits for it, and a server that is the first process of its container hears of each child's end.
pub(crate) fn lay_behind(config: &StandbyConfig, name: WalFileName, path: &Path) {
    let heeded = abnormal::log_signals(ExitTable::Unawaited);
    let archive = heeded.and_then(|()| {
        let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk));
        archive.map_err(|error| failed("open the archive", &error))
    });
    let laid = archive.and_then(|archive| match LaidReady::beside(config, &archive, path) {
        Some(laid) => name.segment().map_or(Ok(()), |segment| laid.lay(segment)),
        None => Ok(()),
    });
    if let Err(error) = laid {
        tracing::debug!("no segment behind {name} is laid ready: {error}");
    }
}

/// One call of the command.
struct RestoreCall<'a> {
    config: &'a StandbyConfig,
    archive: ArchiveReader,
    control: ControlFiles,
    asker: Asker,
    name: WalFileName,
    path: &'a Path,
    /// Of the server that replays what is put there, if there is one.
    data: Option<PathBuf>,
    /// Whether that is the server of a drill.
    is_for_drill: bool,
}

/// What one look at the archive led to.
enum ArchiveLook {
    /// The file is in place.
    Served,
    /// There is neither this file nor a later one.
    Absent,
    /// A later file is there, this one is not; it may be on its way.
    Gap(CommandError),
    /// The file cannot be handed over as it is.
    Unfit(CommandError),
    /// PAUSE appeared.
    Held,
}

/// How long a call goes on.
struct CallLimit {
    watch: Watch,
    deadline: Instant,
    alarmed: Option<Instant>,
    paused: bool,
}

impl<'a> RestoreCall<'a> {
    fn new(
        config: &'a StandbyConfig,
        name: WalFileName,
        path: &'a Path,
        is_for_drill: bool,
    ) -> Result<RestoreCall<'a>> {
        let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk))
            .map_err(|error| failed("open the archive", &error))?;
        Ok(RestoreCall {
            config,
            archive,
            control: ControlFiles::of(config),
            asker: Asker::of_this_process(),
            name,
            path,
            data: location::data_directory_of(path),
            is_for_drill,
        })
    }
}

impl RestoreCall<'_> {
    /// A purge has to know who reads from here, whatever the settings say.
    fn note_server(&self) {
        let (Some(_), Ok(data)) = (self.asker.server(), std::env::current_dir()) else {
            return;
        };
        if let Err(error) = self.archive.note_server(&data) {
            tracing::warn!(
                "cannot note which WAL the server in {} needs, so a purge may remove it: {error}",
                data.display()
            );
        }
    }

    fn run(&self) -> Result<()> {
        let mut patience = CallLimit {
            // Before the first look, so that no change falls between the two.
            watch: Watch::on(&self.config.completed_wals),
            deadline: Instant::now() + self.config.restore_wait,
            alarmed: None,
            paused: false,
        };
        self.note(AbsentNotes::asked);
        self.note_server();
        loop {
            let stop = self.control.stop_for(self.asker.server())?;
            let look = match self.is_held(stop)? {
                true => ArchiveLook::Held,
                false => self.look(stop)?,
            };
            // Before STOP is looked for again: a boot writes it and then has the server promoted, so whoever
            // sees the promotion of a boot sees its STOP.
            let waits = self.is_waiting_standby(stop);
            match look {
                ArchiveLook::Served => {
                    self.note(|answers, _| answers.served());
                    return Ok(());
                }
                ArchiveLook::Held => self.wait_out_pause(&mut patience)?,
                ArchiveLook::Absent | ArchiveLook::Gap(_)
                    if waits && self.may_still_come(&patience) =>
                {
                    let left = patience.deadline.duration_since(Instant::now());
                    self.wait(&patience, left)?;
                }
                ArchiveLook::Absent if self.is_overtaken(stop)? => {}
                ArchiveLook::Absent => {
                    self.laid_ready().iter().for_each(LaidReady::clear);
                    return Err(absent(self.name));
                }
                // It asks again, and opens for nobody but a boot, which looks for gaps itself.
                ArchiveLook::Gap(_) if waits && self.is_overtaken(stop)? => {}
                ArchiveLook::Gap(error) if waits => {
                    tracing::warn!("the standby waits: {error}");
                    return Err(absent(self.name));
                }
                ArchiveLook::Gap(_) | ArchiveLook::Unfit(_) if self.a_boot_began(stop)? => {}
                ArchiveLook::Gap(error) | ArchiveLook::Unfit(error) => {
                    self.unfit(stop, waits, error, &mut patience)?;
                }
            }
        }
    }

    /// Has the next segments laid ready, or removes what lies there: PostgreSQL asks for a history before it begins to
    /// replay a timeline and when it ends.
    fn lay_behind(&self) {
        let Some(laid) = self.laid_ready() else {
            return;
        };
        match self.name {
            WalFileName::Segment(segment) => laid.lay_behind(segment, self.path),
            _ => laid.clear(),
        }
    }

    /// Where segments lie ready for the server that asks; nothing for a person and for a drill.
    fn laid_ready(&self) -> Option<LaidReady<'_>> {
        self.asker.server()?;
        let is_wanted = !self.is_for_drill && self.data.is_some();
        let laid = is_wanted.then(|| LaidReady::beside(self.config, &self.archive, self.path));
        laid.flatten()
    }

    /// History files are served and missed at once: PostgreSQL asks for many that do not exist.
    fn is_history(&self) -> bool {
        matches!(self.name, WalFileName::History(_))
    }

    /// Tells a boot what our PostgreSQL was told about a segment.
    fn note(&self, note: impl FnOnce(&AbsentNotes, SegmentName)) {
        if let (WalFileName::Segment(segment), Some(server)) = (self.name, self.asker.server()) {
            // PostgreSQL's working directory, and so ours, is its data directory.
            note(&AbsentNotes::of(Path::new("."), server), segment);
        }
    }

    /// Whether a boot began since STOP was read: then its words about what is missing or damaged count.
    fn a_boot_began(&self, stop: Option<StopFile>) -> Result<bool> {
        Ok(stop.is_none() && self.control.stop_for(self.asker.server())?.is_some())
    }

    /// Whether a boot began since we looked, so that what is absent may be there now; notes before that what
    /// the server is told otherwise.
    fn is_overtaken(&self, stop: Option<StopFile>) -> Result<bool> {
        if stop.is_some() {
            return Ok(false);
        }
        self.note(AbsentNotes::absent);
        let overtaken = self.a_boot_began(stop)?;
        if overtaken {
            self.note(AbsentNotes::asked);
        }
        Ok(overtaken)
    }

    fn is_held(&self, stop: Option<StopFile>) -> Result<bool> {
        if self.is_history() || stop.is_some() {
            return Ok(false);
        }
        Ok(self.control.is_paused()? || self.control.is_held_by_backup()?)
    }

    fn look(&self, stop: Option<StopFile>) -> Result<ArchiveLook> {
        if let Some(look) = self.look_at_frozen(stop)? {
            return Ok(look);
        }
        if let Some(look) = self.look_at_history(stop)? {
            return Ok(look);
        }
        if self.is_passed_over()? {
            return Ok(ArchiveLook::Absent);
        }
        let stored = match self.archive.find(self.name) {
            Ok(Some(stored)) => stored,
            Ok(None) => return self.look_at_absence(),
            Err(error) => return Ok(ArchiveLook::Unfit(self.unreadable(&error))),
        };
        // In this order, so that `pause` sees either our PROGRESS or us its PAUSE.
        let _progress = self.control.progress(self.name);
        if self.is_held(stop)? {
            return Ok(ArchiveLook::Held);
        }
        self.serve(&stored)
    }

    /// While its server is booted, what was frozen of a segment comes before a finished one of the
    /// same name: the old master may still archive, and PostgreSQL asks twice.
    fn look_at_frozen(&self, stop: Option<StopFile>) -> Result<Option<ArchiveLook>> {
        let (Some(stop), Some(server)) = (stop, self.asker.server()) else {
            return Ok(None);
        };
        if !matches!(self.name, WalFileName::Segment(_)) {
            return Ok(None);
        }
        let found = Partials::open(self.config).and_then(|partials| {
            Ok(partials
                .serving(self.name, server)?
                .map(|it| (partials, it)))
        });
        let (partials, serving) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(error) if stop.force => {
                tracing::error!("{error}; boot --force continues without it");
                return Ok(None);
            }
            Err(error) => return Ok(Some(ArchiveLook::Unfit(error))),
        };
        Ok(Some(match serving {
            Serving::Copy(copy) => self.hand_over(|each| {
                let before = partials.scanner_before(copy.segment, &self.archive)?;
                let size = self.archive.binding().segment_size;
                let start = copy.segment.start(size).unwrap_or_default();
                let before = before.unwrap_or_else(|| Scanner::new(start, size));
                let mut walk = ObstacleWalk::from(before.up_to_timeline(copy.segment.timeline()));
                partials.read(&copy, |bytes| {
                    walk.update(bytes);
                    each(bytes)
                })?;
                Ok(walk.obstacles().clone())
            })?,
            Serving::Own => {
                tracing::info!("the server has more of {} than was shipped", self.name);
                ArchiveLook::Absent
            }
            Serving::Other(error) => ArchiveLook::Unfit(error),
        }))
    }

    /// A history that does not count is none for PostgreSQL, which would follow it, or not start.
    /// `None`: the file is served if it is there.
    fn look_at_history(&self, stop: Option<StopFile>) -> Result<Option<ArchiveLook>> {
        let WalFileName::History(timeline) = self.name else {
            return Ok(None);
        };
        let asked = self.archive.asked(timeline, stop.is_some());
        match asked.map_err(|error| failed("read the histories", &error))? {
            HistoryAnswer::File => Ok(None),
            HistoryAnswer::Placeholder => {
                let served = self.hand_over(|each| {
                    each(PLACEHOLDER);
                    Ok(Obstacles::default())
                });
                served.map(Some)
            }
            HistoryAnswer::Nothing => {
                self.remove_placeholder();
                Ok(Some(ArchiveLook::Absent))
            }
        }
    }

    /// PostgreSQL keeps a history that it has read, and takes it where we have none.
    fn remove_placeholder(&self) {
        let kept = Path::new(layout::PG_WAL).join(self.name.to_string());
        if files::read(&kept).is_ok_and(|text| text == PLACEHOLDER) {
            // What stays is asked for again.
            let _ = files::remove(&kept);
        }
    }

    /// What an old master wrote behind the end of its timeline is nothing for a standby that
    /// follows the newest one.
    fn is_passed_over(&self) -> Result<bool> {
        let WalFileName::Segment(segment) = self.name else {
            return Ok(false);
        };
        let follows = Path::new(layout::STANDBY_SIGNAL).exists() && !self.names_its_timeline();
        let behind = follows && {
            let looked = self.archive.is_passed_over(segment);
            looked.map_err(|error| failed(&format!("look for {segment}"), &error))?
        };
        Ok(behind)
    }

    fn look_at_absence(&self) -> Result<ArchiveLook> {
        let name = self.name;
        let absence = (self.archive.absence(name))
            .map_err(|error| failed(&format!("look for {name}"), &error))?;
        Ok(match absence {
            Absence::Proven => ArchiveLook::Absent,
            // The next look finds it.
            Absence::Appeared => self.look(None)?,
            Absence::OnlyDamaged(copy) => ArchiveLook::Unfit(
                CommandError::retry(format!(
                    "{name} was found damaged and set aside as {copy}; replay without it would \
                    lose data"
                ))
                .hint("archive it again from the master, or type boot --force to open without it"),
            ),
            Absence::Gap(later) => ArchiveLook::Gap(
                CommandError::retry(format!(
                    "{name} is missing although {later} is there: the archive has a gap"
                ))
                .hint(format!(
                    "put {name} into {}, or type boot --force to open without the WAL after it",
                    self.config.completed_wals.display()
                )),
            ),
        })
    }

    fn serve(&self, stored: &Stored) -> Result<ArchiveLook> {
        let before = match self.begins_here() {
            true => SegmentBefore::NotRead,
            false => SegmentBefore::Read,
        };
        if let Some(laid) = self.laid_ready().and_then(|laid| laid.copy_of(stored)) {
            match stored.obstacles_unread(before) {
                Ok(Some(obstacles)) => return self.hand_over_laid(laid, obstacles, stored, before),
                Ok(None) => {}
                Err(error) => return Ok(ArchiveLook::Unfit(self.unreadable(&error))),
            }
        }
        self.hand_over(|each| stored.read_verified(before, each))
    }

    /// Hands over a copy that lies ready; where it cannot be had, the stored one.
    fn hand_over_laid(
        &self,
        laid: LaidSegment,
        mut obstacles: Obstacles,
        stored: &Stored,
        before: SegmentBefore<'_>,
    ) -> Result<ArchiveLook> {
        let mut read = Ok(());
        if let Some((mut walk, boundary)) = self.crossing() {
            read = laid.read(|bytes| walk.cross(boundary, bytes));
            obstacles.add_before(walk.obstacles(), boundary);
        }
        if let Some(error) = self.held_back(&obstacles) {
            return Ok(ArchiveLook::Unfit(error));
        }
        if let Err(error) = read.and_then(|()| laid.put_in_place(self.path)) {
            tracing::debug!("{} lies ready and is read all the same: {error}", self.name);
            return self.hand_over(|each| stored.read_verified(before, each));
        }
        tracing::info!("{} lay ready for {}", self.name, self.path.display());
        Ok(ArchiveLook::Served)
    }

    /// Whether our PostgreSQL's recovery begins within this segment, so that it reads none before.
    fn begins_here(&self) -> bool {
        let WalFileName::Segment(segment) = self.name else {
            return false;
        };
        let size = self.archive.binding().segment_size;
        let begin = self.data.as_deref().and_then(location::recovery_begin);
        begin.is_some_and(|begin| segment.number(size) == Some(begin.0 / size.bytes()))
    }

    /// PostgreSQL would act outside its data directory, where somebody else has files, or end.
    fn held_back(&self, obstacles: &Obstacles) -> Option<CommandError> {
        if !matches!(self.name, WalFileName::Segment(_)) {
            return None;
        }
        if self.is_for_drill {
            return self.held_back_from_drill(obstacles);
        }
        let major = self.archive.binding().postgres_major;
        let held = location::held_back(self.data.as_deref()?, major, obstacles)?;
        Some(CommandError::retry(format!("{} is held back", self.name)).because(held))
    }

    /// From within the record that the server has begun in the segment before: that may have been streamed
    /// and never archived. With where this segment begins.
    fn crossing(&self) -> Option<(ObstacleWalk, Lsn)> {
        let WalFileName::Segment(segment) = self.name else {
            return None;
        };
        let size = self.archive.binding().segment_size;
        let walk = crossing::before(self.data.as_deref()?, segment, size)?;
        Some((walk, segment.start(size)?))
    }

    fn hand_over(
        &self,
        read: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> std::result::Result<Obstacles, StoreError>,
    ) -> Result<ArchiveLook> {
        abnormal::log_signals(ExitTable::Xrestore)?;
        let writing = |result: io::Result<()>| result.at(Kind::Retry, "write", self.path);
        let begun = HandedOver::begin(self.path);
        let mut copy = begun.at(Kind::Retry, "create a file beside", self.path)?;
        let mut written = Ok(());
        let mut crossing = self.crossing();
        let mut crosses = crossing.is_some();
        let verified = read(&mut |bytes| {
            if let Some((walk, boundary)) = crossing.as_mut().filter(|_| crosses) {
                crosses = walk.cross(*boundary, bytes);
            }
            written = copy.append(bytes);
            written.is_ok()
        });
        writing(written)?;
        let mut obstacles = match verified {
            Ok(obstacles) => obstacles,
            Err(error) => return Ok(ArchiveLook::Unfit(self.unreadable(&error))),
        };
        if let Some((walk, boundary)) = crossing {
            obstacles.add_before(walk.obstacles(), boundary);
        }
        if let Some(error) = self.held_back(&obstacles) {
            return Ok(ArchiveLook::Unfit(error));
        }
        if self.is_for_drill {
            self.keep_tablespaces_inside(copy.file(), &obstacles)?;
        }
        writing(copy.put_in_place())?;
        tracing::info!("{} restored to {}", self.name, self.path.display());
        Ok(ArchiveLook::Served)
    }

    fn unreadable(&self, error: &StoreError) -> CommandError {
        failed(&format!("restore {}", self.name), error).hint(format!(
            "put a good copy into {} (the master's pg_wal may have one)",
            self.config.completed_wals.display()
        ))
    }

    /// Whether a standby that is not booted waits for a file that is not there.
    fn may_still_come(&self, patience: &CallLimit) -> bool {
        matches!(self.name, WalFileName::Segment(_)) && Instant::now() < patience.deadline
    }

    /// PostgreSQL's working directory, and so ours, is its data directory.
    fn is_waiting_standby(&self, stop: Option<StopFile>) -> bool {
        let there = |name: &str| Path::new(name).exists();
        stop.is_none() && there(layout::STANDBY_SIGNAL) && !is_being_promoted()
    }

    /// Decides about a file that PostgreSQL must not see; returns to look once more.
    fn unfit(
        &self,
        stop: Option<StopFile>,
        waits: bool,
        error: CommandError,
        patience: &mut CallLimit,
    ) -> Result<()> {
        if stop.is_some_and(|stop| stop.force) {
            tracing::error!("{error}; boot --force takes this for the end of WAL");
            return Err(absent(self.name));
        }
        if !(waits && self.config.on_corrupt == OnCorrupt::Stall) {
            return Err(error);
        }
        if patience
            .alarmed
            .is_none_or(|at| at.elapsed() >= ALARM_INTERVAL)
        {
            tracing::error!("ALARM: replay waits (on_corrupt = stall): {error}");
            patience.alarmed = Some(Instant::now());
        }
        let begun = Instant::now();
        let mut changed = false;
        while begun.elapsed() < SECOND_LOOK && !(changed && begun.elapsed() > LOOK_PAUSE) {
            // The first PROGRESS of an archive is a change too, but of the time before.
            changed |= self.wait(patience, SECOND_LOOK)? && begun.elapsed() > LOOK_PAUSE;
            if !self.is_waiting_standby(self.control.stop_for(self.asker.server())?) {
                break;
            }
        }
        Ok(())
    }

    fn wait_out_pause(&self, patience: &mut CallLimit) -> Result<()> {
        if !patience.paused {
            tracing::info!("{} waits: replay is paused", self.name);
            patience.paused = true;
        }
        if is_being_promoted() {
            tracing::warn!("the promotion waits too: replay is paused; `continue` resumes it");
        }
        while self.is_held(self.control.stop_for(self.asker.server())?)? {
            self.wait(patience, Duration::MAX)?;
        }
        patience.deadline = Instant::now() + self.config.restore_wait;
        Ok(())
    }

    /// Waits a moment; whether something changed. Fails when nobody waits for us any more.
    fn wait(&self, patience: &CallLimit, limit: Duration) -> Result<bool> {
        abnormal::log_signals(ExitTable::Xrestore)?;
        let changed = patience.watch.wait(limit);
        if self.asker.is_gone() {
            let doing = format!("restore {}: the server that asked has ended", self.name);
            return Err(CommandError::retry(doing));
        }
        Ok(changed)
    }

    /// Whether the server's settings name another timeline to follow than the newest. It runs in its data
    /// directory, and so does what it calls.
    fn names_its_timeline(&self) -> bool {
        let folder = self.config.slave_config_dir.as_ref();
        let main = folder.map(|folder| folder.join(layout::MAIN_CONF));
        let settings = ServerSettings::of(Path::new("."), main.as_deref());
        let named = settings.value("recovery_target_timeline");
        named.is_some_and(|named| !matches!(named.as_str(), "" | "latest"))
    }

    /// `-n`: everything but the copy, and without waiting.
    fn rehearse(&self) -> Result<()> {
        abnormal::log_signals(ExitTable::Xrestore)?;
        let name = self.name;
        match self.archive.find(name) {
            Ok(Some(stored)) => {
                let read = stored.read_verified(SegmentBefore::Read, |_| true);
                let obstacles = read.map_err(|error| self.unreadable(&error))?;
                if let Some(error) = self.held_back(&obstacles) {
                    return Err(error);
                }
            }
            Ok(None) => {
                return Err(match self.look_at_absence()? {
                    ArchiveLook::Gap(error) | ArchiveLook::Unfit(error) => error,
                    ArchiveLook::Absent | ArchiveLook::Served | ArchiveLook::Held => absent(name),
                });
            }
            Err(error) => return Err(self.unreadable(&error)),
        }
        output::not_really(&format!("put {name} in place as {}", self.path.display()))
    }
}

/// Whether somebody has asked our PostgreSQL to open (`PROMOTE_SIGNAL_FILE`,
/// `src/include/access/xlog.h`).
fn is_being_promoted() -> bool {
    Path::new("promote").exists()
}

fn absent(name: WalFileName) -> CommandError {
    CommandError::new(Kind::Absent, format!("{name} is not in the archive"))
}

fn failed(doing: &str, error: &StoreError) -> CommandError {
    CommandError::new(error.kind(), doing).because(error)
}
