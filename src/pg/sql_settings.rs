//! What a parameter is in a running server, and who says so.
//! Never reads a file: the server has read them all, and its command line. Invariant: where a place is
//! named, the server named it.

use std::path::PathBuf;

use super::recovery::{self, TARGETS};
use super::sql::{Session, column};
use crate::error::Result;

/// Where a parameter comes from that no file changes.
pub(crate) const COMMAND_LINE: &str = "the server's command line, see its postmaster.opts";

/// A parameter as `pg_settings` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// Its name.
    pub name: String,
    /// Its value, as `SHOW` prints it.
    pub value: String,
    /// Where it comes from, in the words of `pg_settings.source`.
    pub source: String,
    /// The file and line, where it comes from one and this role may know.
    pub line: Option<(PathBuf, i32)>,
    /// Whether a file says something else by now, which counts after a restart.
    pub pending_restart: bool,
}

impl InForce {
    /// Where it is set, for a sentence.
    pub fn place(&self) -> String {
        match (&self.line, self.source.as_str()) {
            (Some((file, line)), _) => format!("{}, line {line}", file.display()),
            (None, "command line") => COMMAND_LINE.to_owned(),
            (None, "default") => "nowhere (the default)".to_owned(),
            (None, "configuration file") => {
                "a configuration file that only a superuser may see".to_owned()
            }
            (None, other) => format!("the source `{other}`"),
        }
    }
}

impl Session {
    /// When the server read its settings last, in milliseconds since 1970.
    pub async fn settings_read_ms(&self) -> Result<i64> {
        let sql = "SELECT (extract(epoch FROM pg_conf_load_time()) * 1000)::bigint";
        column(&self.row(sql, &[]).await?, 0)
    }

    /// Whether the server's recovery ends at a target.
    pub async fn has_target(&self) -> Result<bool> {
        let found = self.in_force(&TARGETS).await?;
        let value = |name: &str| Some(found.iter().find(|it| it.name == name)?.value.clone());
        Ok(recovery::has_target(value))
    }

    /// These parameters; one that the server does not know is left out.
    pub async fn in_force(&self, names: &[&str]) -> Result<Vec<InForce>> {
        let sql = "SELECT name, current_setting(name), source, sourcefile, sourceline, \
             pending_restart FROM pg_settings WHERE name = ANY($1) ORDER BY name";
        let rows = self.query(sql, &[&names]).await?;
        let settings = rows.iter().map(|row| {
            let file: Option<String> = column(row, 3)?;
            let line: Option<i32> = column(row, 4)?;
            Ok(InForce {
                name: column(row, 0)?,
                value: column(row, 1)?,
                source: column(row, 2)?,
                line: file.map(PathBuf::from).zip(line),
                pending_restart: column(row, 5)?,
            })
        });
        settings.collect()
    }
}
