//! Who gets the server's finished segments, who says so and where, and what its archiver is at.
//! Never changes anything. Invariant: a sentence about the server is true of what it answered, and names
//! the file and line if anybody knows them.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use walmgr_protocol::names::{SegmentName, WalFileName};

use crate::config::MasterConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::archive_command::{self, Destination, Ours};
use crate::pg::conf;
use crate::pg::sql::{ArchiverStatistics, Limits, Session};
use crate::pg::sql_settings::{COMMAND_LINE, InForce};
use crate::status::Archiving;

/// What decides where segments go. 13 and 14 have no libraries.
const PARAMETERS: [&str; 3] = ["archive_command", "archive_library", "archive_mode"];

/// What PostgreSQL shows for `archive_command` while `archive_mode` is off.
pub(super) const DISABLED: &str = "(disabled)";

/// How often a wait is told.
pub(super) const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// A server's settings of archiving.
pub(crate) struct Archives {
    /// Where segments go now.
    pub archiving: Archiving,
    /// The command that is called, or would be if the mode were on.
    pub command: String,
    /// What a reload or a restart changes for the worse.
    pub pending: Option<String>,
    settings: Vec<InForce>,
    ours: (PathBuf, PathBuf),
}

impl Archives {
    /// Asks the server, and its files for what it does not tell.
    pub(crate) async fn ask(config: &MasterConfig, session: &Session) -> Result<Archives> {
        let mut settings = session.in_force(&PARAMETERS).await?;
        for setting in &mut settings {
            // Only some roles are told; a file that says the same is the one.
            if setting.line.is_none()
                && setting.source == "configuration file"
                && let Some(setter) = last_setter(config, &setting.name)
                && setter.value == setting.value
            {
                let line = i32::try_from(setter.line).unwrap_or(i32::MAX);
                setting.line = Some((setter.file, line));
            }
        }
        let mut archives = Archives {
            archiving: Archiving::On,
            command: String::new(),
            pending: None,
            settings,
            ours: (config.path.clone(), config.master_data.clone()),
        };
        archives.command = match archives.value("archive_command") {
            // The server does not tell what it would run if the mode were on; its files do.
            DISABLED => last_setter(config, "archive_command").map_or(String::new(), |it| it.value),
            command => command.to_owned(),
        };
        archives.archiving = archives.judge();
        archives.pending = archives.pending(config);
        Ok(archives)
    }

    fn setting(&self, name: &str) -> Option<&InForce> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    fn value(&self, name: &str) -> &str {
        self.setting(name).map_or("", |it| it.value.as_str())
    }

    fn place(&self, name: &str) -> String {
        self.setting(name).map_or(String::new(), InForce::place)
    }

    fn destination(&self, command: &str) -> Destination {
        let (ini, data) = &self.ours;
        archive_command::destination(command, &Ours { ini, data })
    }

    fn judge(&self) -> Archiving {
        let library = self.value("archive_library");
        if !library.is_empty() {
            return Archiving::Foreign(format!(
                "archive_library is `{library}` (set in {}), so archive_command is not called",
                self.place("archive_library")
            ));
        }
        let off = self.value("archive_mode") == "off";
        let place = self.place("archive_command");
        match self.destination(&self.command) {
            Destination::Unheard => Archiving::Unheard(format!(
                "archive_command is `{}` (set in {place}), which exits with 0 even if walmgr \
                fails, so PostgreSQL removes segments that did not arrive",
                self.command
            )),
            Destination::Other => Archiving::Foreign(format!(
                "archive_command is `{}` (set in {place})",
                self.command
            )),
            _ if off => {
                let restart = match self.setting("archive_mode") {
                    Some(mode) if mode.pending_restart => {
                        "; a file has another value: restart PostgreSQL"
                    }
                    _ => "",
                };
                let place = self.place("archive_mode");
                Archiving::Off(format!("archive_mode is off (set in {place}){restart}"))
            }
            Destination::Nobody => Archiving::Off(format!(
                "archive_command is `{}` (set in {place}), so finished segments are discarded",
                self.command
            )),
            Destination::Kept => Archiving::Kept(format!(
                "archive_command is empty (set in {place}), so finished segments pile up in pg_wal"
            )),
            Destination::Here => Archiving::On,
        }
    }

    /// A file that the server has not read yet, or reads only when it starts.
    fn pending(&self, config: &MasterConfig) -> Option<String> {
        if self.archiving != Archiving::On {
            return None;
        }
        PARAMETERS.iter().find_map(|name| {
            let setting = self.setting(name)?;
            let setter = last_setter(config, name)?;
            let worse = match *name {
                "archive_mode" => matches!(setter.value.as_str(), "off" | "false" | "no" | "0"),
                "archive_library" => !setter.value.is_empty(),
                _ => self.destination(&setter.value) != Destination::Here,
            };
            let from_file = setting.place() != COMMAND_LINE && setter.value != setting.value;
            let when = if *name == "archive_mode" {
                "restart"
            } else {
                "reload"
            };
            (worse && from_file).then(|| {
                format!(
                    "{name} becomes `{}` with the next {when}: {}, line {}, says so",
                    setter.value,
                    setter.file.display(),
                    setter.line
                )
            })
        })
    }

    /// Refuses what `setup` cannot change: a library, the server's command line, and files that are read
    /// behind `master_config` once that has the text that is to be written.
    pub(crate) fn refuse_overridden(
        &self,
        config: &MasterConfig,
        changes: &[(&str, String)],
        resets: &[&str],
    ) -> Result<()> {
        let library = self.value("archive_library");
        if !library.is_empty() {
            return Err(CommandError::config(format!(
                "archive_library is `{library}`, so PostgreSQL does not call archive_command"
            ))
            .hint(format!(
                "it is set in {}: to archive with walmgr, remove it there and type setup again",
                self.place("archive_library")
            )));
        }
        for (name, value) in changes {
            let on_line = self.setting(name).filter(|it| it.place() == COMMAND_LINE);
            if let Some(setting) = on_line.filter(|it| it.value != *value) {
                return Err(CommandError::config(format!(
                    "{name} is {} in the running server, not {value}",
                    setting.value
                ))
                .hint(format!(
                    "it is set on {COMMAND_LINE}: start the server without it and type setup again"
                )));
            }
        }
        let text = files::read(&config.master_config).at(
            Kind::Config,
            "read master_config,",
            &config.master_config,
        )?;
        let pairs: Vec<_> = changes
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let (edited, _) = conf::edit(&text, &pairs)?;
        for (name, value) in pairs.iter().filter(|(name, _)| !resets.contains(name)) {
            let (file, data) = (&config.master_config, &config.master_data);
            let Ok(Some(setter)) = conf::last_setter_after(file, &edited, data, name) else {
                continue;
            };
            if setter.value == *value {
                continue;
            }
            let is_now = self
                .setting(name)
                .is_some_and(|it| it.value == setter.value);
            let when = match is_now {
                true => "is",
                false => "will be",
            };
            return Err(CommandError::config(format!(
                "{name} {when} {} in the running server, not {value}",
                setter.value
            ))
            .hint(format!(
                "{}, line {}, has the last value: remove it there and type setup again; nothing \
                was changed",
                setter.file.display(),
                setter.line
            )));
        }
        Ok(())
    }

    /// Refuses a backup that would wait in vain for its WAL. `arrives` is asked whether the archive has
    /// the segment that PostgreSQL archived last with these settings: then a program that we do not know calls ours.
    pub(crate) async fn refuse_elsewhere(
        &self,
        session: &Session,
        arrives: impl AsyncFnOnce(SegmentName) -> bool,
    ) -> Result<()> {
        let what = match &self.archiving {
            Archiving::On => return Ok(()),
            // What walmgr stored arrives all the same.
            Archiving::Unheard(what) => {
                tracing::warn!("{what}; `setup` corrects this");
                return Ok(());
            }
            Archiving::Foreign(what) if self.value("archive_library").is_empty() => {
                let statistics = session.archiver_statistics().await?;
                // What went before the settings were read was another command's.
                if let Some(WalFileName::Segment(segment)) = statistics.last_archived
                    && statistics.last_archived_ms > Some(session.settings_read_ms().await?)
                    && arrives(segment).await
                {
                    return Ok(());
                }
                what
            }
            Archiving::Foreign(what) | Archiving::Off(what) | Archiving::Kept(what) => what,
        };
        Err(CommandError::config(format!(
            "finished segments do not reach this archive, so no backup can be completed: {what}"
        ))
        .hint(
            "remove it, run `setup`, and start the backup again; if that program calls walmgr, \
            wait until the next segment has arrived",
        ))
    }
}

fn last_setter(config: &MasterConfig, name: &str) -> Option<conf::Setter> {
    let found = conf::last_setter(&config.master_config, &config.master_data, name);
    found.ok().flatten()
}

/// Says every now and then what keeps a segment from arriving, for as long as it is polled.
pub(super) async fn tell_while_waiting(config: &MasterConfig, wanted: SegmentName) -> Infallible {
    let mut before = None;
    loop {
        tokio::time::sleep(TELL_INTERVAL).await;
        let looked = async {
            let session = Session::connect(&config.master_db, Limits::default()).await?;
            let now = session.archiver_statistics().await?;
            let archives = Archives::ask(config, &session).await?;
            session.close().await;
            Ok::<_, CommandError>((now, archives.archiving))
        };
        match looked.await {
            Ok((now, archiving)) => {
                let since = since(before.get_or_insert_with(|| now.clone()), &now, wanted);
                match archiving {
                    Archiving::On => tracing::info!("still waiting for {wanted}: {since}"),
                    Archiving::Off(what)
                    | Archiving::Kept(what)
                    | Archiving::Unheard(what)
                    | Archiving::Foreign(what) => {
                        tracing::warn!("still waiting for {wanted}: {since}; {what}");
                    }
                }
            }
            Err(error) => tracing::warn!("still waiting for {wanted}: {error}"),
        }
    }
}

/// Whether PostgreSQL counts this segment as archived.
pub(super) fn has_passed(now: &ArchiverStatistics, wanted: SegmentName) -> bool {
    matches!(now.last_archived, Some(WalFileName::Segment(at)) if at >= wanted)
}

/// What PostgreSQL's archiver has done since `before`, for one who waits for a segment.
pub(super) fn since(
    before: &ArchiverStatistics,
    now: &ArchiverStatistics,
    wanted: SegmentName,
) -> String {
    let failures = now.failed_count - before.failed_count;
    let name = |file: &Option<WalFileName>| match file {
        Some(file) => file.to_string(),
        None => "nothing".to_owned(),
    };
    let last = name(&now.last_archived);
    match (failures, now.archived_count - before.archived_count) {
        (1.., _) => format!(
            "PostgreSQL has counted {failures} failed attempts since, the last with {}",
            name(&now.last_failed)
        ),
        _ if has_passed(now, wanted) => {
            format!("PostgreSQL reports {last} as archived, but it did not reach this archive")
        }
        (_, 1..) => format!(
            "PostgreSQL has archived up to {last} and archives the next segments \
            in order"
        ),
        _ => format!(
            "PostgreSQL has neither archived a segment nor failed since ({last} was the last): \
            its archiver does not run, or archive_command does not end"
        ),
    }
}
