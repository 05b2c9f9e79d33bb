//! What a role that is no superuser has to be granted for each command, by version.
//! Never grants anything. Invariant: whatever is missing is named at once, with the line to type.

use super::sql::{Session, column};
use crate::error::{CommandError, Result};

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// `setup`.
    Setup,
    /// `setup` where `postgresql.auto.conf` has `archive_mode` off, which only `ALTER SYSTEM` takes out.
    SetupWithReset,
    /// `stop`.
    Stop,
    /// `backup`.
    Backup,
}

/// Functions that are kept from everybody by default (`src/backend/catalog/system_functions.sql`).
const RELOAD: &str = "pg_reload_conf()";
const PROVE: [&str; 2] = ["pg_create_restore_point(text)", "pg_switch_wal()"];
const BACKUP: [&str; 2] = ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"];
const BACKUP_BEFORE_15: [&str; 2] = [
    "pg_start_backup(text, boolean, boolean)",
    "pg_stop_backup(boolean, boolean)",
];

/// The role that may see where the server's files are.
const SEES_SETTINGS: &str = "pg_read_all_settings";

impl Task {
    /// The word that is typed.
    fn name(self) -> &'static str {
        match self {
            Task::Setup | Task::SetupWithReset => "setup",
            Task::Stop => "stop",
            Task::Backup => "backup",
        }
    }

    /// The functions it calls on a server of this version.
    pub fn functions(self, major: u32) -> Vec<&'static str> {
        match self {
            Task::Setup | Task::SetupWithReset => [&[RELOAD][..], &PROVE].concat(),
            Task::Stop => vec![RELOAD],
            Task::Backup if major >= 15 => BACKUP.to_vec(),
            Task::Backup => BACKUP_BEFORE_15.to_vec(),
        }
    }

    /// What is missing, all of it, as one error.
    pub async fn check(self, session: &Session) -> Result<Option<CommandError>> {
        let missing = self.missing(session).await?;
        // Without the role alone the files that it would see are named and left out.
        let sees = format!("GRANT {SEES_SETTINGS} TO ");
        if missing.iter().all(|grant| grant.starts_with(&sees)) {
            return Ok(None);
        }
        let row = session.row("SELECT current_user::text", &[]).await?;
        let role: String = column(&row, 0)?;
        let (database, name) = (session.database(), self.name());
        let doing =
            format!("the role {role} lacks grants that {name} needs in database {database}");
        Ok(Some(CommandError::config(doing).hint(format!(
            "type as a superuser in database {database}: {};",
            missing.join("; ")
        ))))
    }

    /// The `GRANT`s that the session's role lacks.
    pub async fn missing(self, session: &Session) -> Result<Vec<String>> {
        let major = session.server_version().await?.major();
        let functions: Vec<String> = (self.functions(major).iter())
            .map(|function| format!("pg_catalog.{function}"))
            .collect();
        let sql = "SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I', function, current_user) \
             FROM unnest($1::text[]) AS function \
             WHERE NOT has_function_privilege(function, 'EXECUTE')";
        let rows = session.query(sql, &[&functions]).await?;
        let mut missing: Vec<String> = Vec::new();
        for row in &rows {
            missing.push(column(row, 0)?);
        }
        if self == Task::SetupWithReset && !session.is_superuser().await? {
            // Before 15 nobody else can, and then it is done for the role.
            let sql = match major >= 15 {
                true => {
                    "SELECT format('GRANT ALTER SYSTEM ON PARAMETER archive_mode TO %I', \
                         current_user) \
                     WHERE NOT has_parameter_privilege('archive_mode', 'ALTER SYSTEM')"
                }
                false => "SELECT 'ALTER SYSTEM RESET archive_mode'::text",
            };
            for row in &session.query(sql, &[]).await? {
                missing.push(column(row, 0)?);
            }
        }
        if self == Task::Backup {
            let sql = "SELECT format('GRANT %I TO %I', $1::text, current_user) \
                 WHERE NOT pg_has_role($1::text, 'USAGE')";
            for row in &session.query(sql, &[&SEES_SETTINGS]).await? {
                missing.push(column(row, 0)?);
            }
        }
        Ok(missing)
    }
}
