//! `completed_wals/BOOT`: what a boot set out to do, so that a later one can tell how it ended.
//! Never decides anything about a server. Invariant: a sound one names the data directory it is about, and
//! speaks of no other.
//!
//! ```json
//! {
//!   "acknowledged": "0/5000148",    up to where it was acknowledged, at least
//!   "at_target": false,             whether the recovery ends where its administrator wants
//!   "changed": ["name", "1h", "0"], only while a setting in postgresql.auto.conf has not its own value, or null
//!   "crc32": 2309737967,            of the compact form of the rest
//!   "directory": 131085,            the inode of the data directory: what a restore puts there is another
//!   "finished": true,               whether a verdict was given and the new history archived
//!   "server": "41 1700",            as STOP names it
//!   "timeline": 1
//! }
//! ```
//!
//! It is written before STOP, durably, and finished behind the last step. A crash leaves an older one, or one
//! of a boot that has not begun: `boot` typed again writes it anew, and a restore takes it away.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use walmgr_protocol::names::{Lsn, TimelineId};

use super::changed::Changed;
use crate::config::StandbyConfig;
use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::pg::control::State;
use crate::pg::data_directory::DataDirectory;
use crate::pg::layout;
use crate::standby::own_server;
use crate::standby::verdict::AcknowledgedEnd;

/// Its name beside STOP.
const NAME: &str = "BOOT";

/// More than it ever has.
const BYTES_MAX: u64 = 4096;

/// The signs of a directory that is about to recover, whatever its control file says of the time before.
const RECOVERY_SIGNS: [&str; 3] = [
    layout::STANDBY_SIGNAL,
    layout::RECOVERY_SIGNAL,
    layout::BACKUP_LABEL,
];

/// A boot that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BegunBoot {
    /// With what the server has to open.
    pub acknowledged: AcknowledgedEnd,
    /// Whether its recovery ends at a target.
    pub at_target: bool,
    /// The server it promotes.
    pub server: String,
    /// Whether nothing of it is left to do.
    pub is_finished: bool,
    /// What it set for as long as it goes on.
    pub changed: Option<Changed>,
    directory: u64,
}

impl BegunBoot {
    /// One of the server on this directory.
    pub(crate) fn of(
        data: &DataDirectory,
        server: String,
        acknowledged: AcknowledgedEnd,
        at_target: bool,
    ) -> Result<BegunBoot> {
        Ok(BegunBoot {
            acknowledged,
            at_target,
            server,
            is_finished: false,
            changed: None,
            directory: inode(data.path())?,
        })
    }

    /// The last one, if it is of this directory. One that says nothing is told and passed over.
    pub(crate) fn read(config: &StandbyConfig, data: &DataDirectory) -> Result<Option<BegunBoot>> {
        let path = path(config);
        let text = match files::read_at_most(&path, BYTES_MAX) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.at(Kind::Retry, "read", &path)?,
        };
        let Some(begun) = BegunBoot::parse(&text) else {
            tracing::warn!("{} is damaged, or boot did not write it", path.display());
            return Ok(None);
        };
        let directory = inode(data.path())?;
        Ok(Some(begun).filter(|begun| begun.directory == directory))
    }

    /// Writes it durably.
    pub(crate) fn write(&self, config: &StandbyConfig) -> Result<()> {
        let path = path(config);
        files::replace_own(&path, self.text().as_bytes()).at(Kind::Retry, "write", &path)
    }

    /// Says durably what is about to be set until the boot is over, or that nothing is.
    pub(crate) fn with(&self, changed: Option<Changed>, config: &StandbyConfig) -> Result<()> {
        BegunBoot {
            changed,
            ..self.clone()
        }
        .write(config)
    }

    /// Puts back what a boot set that was killed. No other boot may be going on.
    pub(super) fn put_back(&mut self, config: &StandbyConfig, data: &DataDirectory) -> Result<()> {
        let Some(changed) = self.changed.take() else {
            return Ok(());
        };
        let path = own_server::settings(config, data).automatic();
        if changed.put_back(&path)? {
            tracing::warn!(
                "an unfinished boot had set {} = {} in {}; the old value is restored",
                changed.name,
                changed.during,
                path.display()
            );
            let server = data.running()?.and_then(|server| Pid::from_raw(server.pid));
            // One that is gone reads its files when it starts.
            let _ = server.map(|pid| kill_process(pid, Signal::HUP));
        }
        self.write(config)
    }

    /// Says that nothing is left to do.
    pub(crate) fn finish(&self, config: &StandbyConfig) -> Result<()> {
        let is_finished = true;
        BegunBoot {
            is_finished,
            ..self.clone()
        }
        .write(config)
    }

    fn text(&self) -> String {
        let mut value = json!({
            "server": self.server,
            "directory": self.directory,
            "timeline": self.acknowledged.timeline.number(),
            "acknowledged": self.acknowledged.end.to_string(),
            "at_target": self.at_target,
            "finished": self.is_finished,
        });
        if let Some(changed) = &self.changed {
            value["changed"] = json!([changed.name, changed.before, changed.during]);
        }
        let crc32 = crc32fast::hash(value.to_string().as_bytes());
        value["crc32"] = json!(crc32);
        format!("{value:#}\n")
    }

    /// Sound only if every byte of it is what would be written.
    fn parse(text: &[u8]) -> Option<BegunBoot> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let timeline = u32::try_from(value.get("timeline")?.as_u64()?).ok()?;
        let begun = BegunBoot {
            acknowledged: AcknowledgedEnd {
                timeline: TimelineId::new(timeline)?,
                end: value.get("acknowledged")?.as_str()?.parse::<Lsn>().ok()?,
            },
            at_target: value.get("at_target")?.as_bool()?,
            server: value.get("server")?.as_str()?.to_owned(),
            is_finished: value.get("finished")?.as_bool()?,
            changed: value.get("changed").and_then(parse_changed),
            directory: value.get("directory")?.as_u64()?,
        };
        (begun.text().as_bytes() == text).then_some(begun)
    }
}

fn parse_changed(value: &Value) -> Option<Changed> {
    let text = |index: usize| Some(value.get(index)?.as_str()?.to_owned());
    Some(Changed {
        name: text(0)?,
        before: text(1),
        during: text(2)?,
    })
}

/// Takes it away: the server it speaks of did not open, or is no longer there.
pub(crate) fn forget(config: &StandbyConfig) -> Result<()> {
    let path = path(config);
    files::remove(&path).at(Kind::Retry, "remove", &path)?;
    Ok(())
}

/// The server that a boot opened without finishing, for `status`.
pub(crate) fn unfinished(config: &StandbyConfig) -> Option<PathBuf> {
    let data = DataDirectory::open(config.slave_data.as_deref()?).ok()?;
    let begun = BegunBoot::read(config, &data).ok()??;
    let is_left = !begun.is_finished && has_opened(&data).ok()?;
    is_left.then(|| data.path().to_path_buf())
}

/// What the file of a server has only because of a boot that goes on, or was killed, for `status`.
pub(crate) fn changed(config: &StandbyConfig) -> Option<String> {
    let data = DataDirectory::open(config.slave_data.as_deref()?).ok()?;
    let changed = BegunBoot::read(config, &data).ok()??.changed?;
    Some(changed.text(&own_server::settings(config, &data).automatic()))
}

/// Whether the server on this directory has ended its recovery; it may have ended since.
pub(crate) fn has_opened(data: &DataDirectory) -> Result<bool> {
    let is_primary = match data.control()?.state {
        State::ShutDown | State::ShuttingDown | State::InCrashRecovery | State::InProduction => {
            true
        }
        State::Startup | State::ShutDownInRecovery | State::InArchiveRecovery => false,
    };
    let recovers = (RECOVERY_SIGNS.iter()).any(|name| data.path().join(name).exists());
    Ok(is_primary && !recovers)
}

fn path(config: &StandbyConfig) -> PathBuf {
    config.completed_wals.join(NAME)
}

fn inode(data: &Path) -> Result<u64> {
    let found = std::fs::metadata(data).at(Kind::Retry, "look at", data);
    found.map(|found| found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn begun() -> BegunBoot {
        BegunBoot {
            acknowledged: AcknowledgedEnd {
                timeline: TimelineId::FIRST,
                end: Lsn(0x500_0148),
            },
            at_target: false,
            server: "41 1700".to_owned(),
            is_finished: true,
            changed: None,
            directory: 131_085,
        }
    }

    fn changed(before: Option<&str>) -> BegunBoot {
        let changed = Changed {
            name: "recovery_min_apply_delay".to_owned(),
            before: before.map(str::to_owned),
            during: "0".to_owned(),
        };
        BegunBoot {
            changed: Some(changed),
            ..begun()
        }
    }

    #[test]
    fn fault_105_note_reads_back_and_says_nothing_with_a_flipped_bit() {
        for begun in [begun(), changed(None), changed(Some("1h"))] {
            reads_only_as_written(&begun);
        }
    }

    fn reads_only_as_written(begun: &BegunBoot) {
        let text = begun.text().into_bytes();
        assert_eq!(BegunBoot::parse(&text).as_ref(), Some(begun));
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BegunBoot::parse(&flipped), None, "bit {bit}");
        }
        for len in 0..text.len() {
            assert_eq!(BegunBoot::parse(&text[..len]), None);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = BegunBoot::parse(&text);
        }
    }
}
