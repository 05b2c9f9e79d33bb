//! The old data directory whose files a restore takes over, from the look at it to the last rename.
//! Never touches one in which a server runs. Invariant: until [`OldDirectory::touch`] was called it is as it was; from then
//! on no server starts from it before the new one is whole.

use std::cell::Cell;
use std::fs::File;
use std::path::Path;

use crate::error::{CommandError, Kind, Result};
use crate::files;
use crate::pg::data_directory::DataDirectory;
use crate::pg::layout;
use crate::pg::set_place::taking::{self, DeltaWay};
use crate::pg::set_place::{self, Occupant, SetOrigin, SetPlace};

/// A directory that holds something, of which files are to be taken over.
pub(super) struct OldDirectory {
    pub place: SetPlace,
    pub way: DeltaWay,
    /// The lock that keeps other restores away, once it is held.
    alone: Option<File>,
    is_touched: Cell<bool>,
}

impl OldDirectory {
    /// Looks at a directory; `None` if there is nothing in it and nothing on its way there.
    pub(super) fn find(data: &Path, way: DeltaWay) -> Result<Option<OldDirectory>> {
        let place = SetPlace::examine(data, true)?;
        let staging = set_place::origin_of_staging(&place.staging())?;
        if !taking::is_source(&place) && place.occupant != MOVED && staging.is_none() {
            return Ok(None);
        }
        let moved = [
            (&place.data, place.occupant == MOVED),
            (&place.staging(), staging == Some(SetOrigin::Moved)),
        ];
        if let Some((path, _)) = moved.iter().find(|(_, is_moved)| *is_moved) {
            return Err(CommandError::config(format!(
                "{} holds the set of a standby\'s restore that was interrupted, which is nowhere else",
                path.display()
            ))
            .hint("type `restore` on that standby to finish it"));
        }
        let old = OldDirectory {
            place,
            way,
            alone: None,
            is_touched: Cell::new(false),
        };
        old.refuse_running()?;
        Ok(Some(old))
    }

    /// Keeps other restores away, and clears what an interrupted one left: what is there then may be taken over.
    pub(super) fn begin(&mut self) -> Result<()> {
        let above = self.place.above();
        let alone = files::try_lock(Kind::Retry, above)?.ok_or_else(|| {
            CommandError::retry(format!("another restore is running in {}", above.display()))
        })?;
        self.alone = Some(alone);
        self.refuse_running()?;
        // Somebody else may have come first.
        self.place = SetPlace::examine(&self.place.data, true)?;
        match self.way {
            DeltaWay::Beside => self.place.clear_copies()?,
            DeltaWay::InPlace => taking::gather(&self.place, true)?,
        }
        self.place = SetPlace::examine(&self.place.data, true)?;
        Ok(())
    }

    fn refuse_running(&self) -> Result<()> {
        let data = &self.place.data;
        if !set_place::exists(&data.join(layout::PG_VERSION))? {
            return Ok(());
        }
        match DataDirectory::open(data)?.running()? {
            None => Ok(()),
            Some(server) => Err(CommandError::retry(format!(
                "a server (process {}) runs in {}; nothing was changed",
                server.pid,
                data.display()
            ))
            .hint(format!("stop it: pg_ctl -D {} stop", data.display()))),
        }
    }

    /// From here on no server starts from it. It has to be typed again if anything goes wrong.
    pub(super) fn touch(&self) -> Result<()> {
        self.refuse_running()?;
        self.is_touched.set(true);
        taking::hide_old_control(&self.place.data)
    }

    /// Has what was prepared take its place.
    pub(super) fn give_way(&self) -> Result<()> {
        if !self.is_touched.get() {
            self.refuse_running()?;
            self.is_touched.set(true);
        }
        let _ = self.place.make_way(true)?;
        self.place.move_in()?;
        set_place::show_control(&self.place.data)
    }

    /// Removes what a restore that failed has prepared, as long as the old directory is whole; the error, with what there
    /// is now.
    pub(super) fn give_up(&self, error: CommandError) -> CommandError {
        let (staging, data) = (self.place.staging(), self.place.data.display());
        if self.is_touched.get() {
            let starts = match self.place.data.join(layout::PG_CONTROL).exists() {
                true => "",
                false => "no server starts from it before that: ",
            };
            return error.and_hint(&format!(
                "{starts}type the same line again; the new {data} is prepared in {}",
                staging.display()
            ));
        }
        if let Err(error) = set_place::remove_copy(&staging, &self.place.data) {
            tracing::warn!("{error}; the next restore to the same place removes it");
        }
        error.and_hint(&format!("{data} is as it was"))
    }
}

/// A set that exists nowhere else.
const MOVED: Occupant = Occupant::Unfinished(SetOrigin::Moved);
