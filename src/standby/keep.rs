//! `keep SET`: pins a backup set, which then stays whatever the settings say.
//! Never copies or moves the set. Invariant: when it ends with 0 no expiry, rotation or later backup removes the set.

use clap::Args;
use rustix::process::geteuid;

use crate::audit::{AuditEvent, AuditOutcome};
use crate::config::StandbyConfig;
use crate::error::{CommandError, Result};
use crate::files;
use crate::options::Options;
use crate::output;
use crate::standby::{audited, sets};
use crate::store::sets::{NOTE_CHARS_MAX, PinnedWal, SetPin};

/// What stood behind `keep`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct KeepArgs {
    /// The set, as `listbackups` prints it
    #[arg(id = "backup_set", value_name = "SET")]
    pub set: String,
    /// Note why; `listbackups` and `status` show it
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub note: String,
    /// Keep all WAL from the set on, not only what makes it consistent
    #[arg(long = "all-wal")]
    pub all_wal: bool,
}

/// Pins it.
pub(crate) fn run(config: &StandbyConfig, options: &Options, typed: &KeepArgs) -> Result<()> {
    let note = typed.note.trim();
    if note.chars().count() > NOTE_CHARS_MAX || note.chars().any(char::is_control) {
        return Err(CommandError::usage(format!(
            "--note: expected one line of at most {NOTE_CHARS_MAX} letters, found {} letters",
            note.chars().count()
        )));
    }
    let sets = sets::open(config)?;
    let name = sets::named(&sets, &typed.set)?;
    let (wal, stays) = match typed.all_wal {
        true => (PinnedWal::All, "all WAL from it on"),
        false => (PinnedWal::ToItsEnd, "the WAL that makes it consistent"),
    };
    if options.not_really {
        // Fails as the real run would.
        sets.pin_named(&name)
            .map_err(|error| sets::failed("keep a backup set", &error))?;
        return output::not_really(&format!("keep {name}, with {stays}, until `unkeep {name}`"));
    }
    let uid = geteuid().as_raw();
    let pin = SetPin {
        by: files::user_name(uid).unwrap_or_else(|| format!("user {uid}")),
        since_ms: jiff::Timestamp::now().as_millisecond(),
        note: note.to_owned(),
        wal,
    };
    let noted = sets.pin(&name, &pin);
    noted.map_err(|error| sets::failed("keep a backup set", &error))?;
    let event = AuditEvent::SetPinned {
        set: &name.to_string(),
        note,
    };
    audited::tell(config, AuditOutcome::Done, &event);
    tracing::info!("{name} stays, with {stays}, until `unkeep`, whatever its name is by then");
    Ok(())
}
