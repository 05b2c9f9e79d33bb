//! What a role that is no superuser has to be granted for each command, by version.
//! Never grants anything. Invariant: whatever is missing is named at once, with the line to type.

use super::sql::{Session, column};
use super::sql_standbys::SYNCHRONOUS_NAMES;
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
    /// `synch-standby`, and `stop` where it clears what that set.
    SynchStandby,
}

/// Functions that are kept from everybody by default (`src/backend/catalog/system_functions.sql`).
const RELOAD: &str = "pg_reload_conf()";
const PROVE: [&str; 2] = ["pg_create_restore_point(text)", "pg_switch_wal()"];
const BACKUP: [&str; 2] = ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"];
const BACKUP_BEFORE_15: [&str; 2] = [
    "pg_start_backup(text, boolean, boolean)",
    "pg_stop_backup(boolean, boolean)",
];

/// The role that may see how far standbys are.
const SEES_SENDERS: &str = "pg_read_all_stats";

/// The role that may see where the server's files are.
const SEES_SETTINGS: &str = "pg_read_all_settings";

impl Task {
    /// The word that is typed.
    fn name(self) -> &'static str {
        match self {
            Task::Setup | Task::SetupWithReset => "setup",
            Task::Stop => "stop",
            Task::Backup => "backup",
            Task::SynchStandby => "setting synchronous_standby_names",
        }
    }

    /// The functions it calls on a server of this version.
    pub fn functions(self, major: u32) -> Vec<&'static str> {
        match self {
            Task::Setup | Task::SetupWithReset => [&[RELOAD][..], &PROVE].concat(),
            Task::Stop | Task::SynchStandby => vec![RELOAD],
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
        if let Some(parameter) = self.alters()
            && !session.is_superuser().await?
        {
            missing.extend(self.missing_for_alter(session, parameter, major).await?);
        }
        let role = match self {
            Task::Backup => Some(SEES_SETTINGS),
            Task::SynchStandby => Some(SEES_SENDERS),
            Task::Setup | Task::SetupWithReset | Task::Stop => None,
        };
        if let Some(role) = role {
            let sql = "SELECT format('GRANT %I TO %I', $1::text, current_user) \
                 WHERE NOT pg_has_role($1::text, 'USAGE')";
            for row in &session.query(sql, &[&role]).await? {
                missing.push(column(row, 0)?);
            }
        }
        Ok(missing)
    }

    /// The parameter that it gives to `ALTER SYSTEM`.
    fn alters(self) -> Option<&'static str> {
        match self {
            Task::SetupWithReset => Some("archive_mode"),
            Task::SynchStandby => Some(SYNCHRONOUS_NAMES),
            Task::Setup | Task::Stop | Task::Backup => None,
        }
    }

    /// Before 15 only a superuser may: a reset can be done for the role, anything else takes another role.
    async fn missing_for_alter(
        self,
        session: &Session,
        parameter: &str,
        major: u32,
    ) -> Result<Vec<String>> {
        let sql = match (major >= 15, self) {
            (true, _) => {
                "SELECT format('GRANT ALTER SYSTEM ON PARAMETER %s TO %I', $1::text, current_user) \
                 WHERE NOT has_parameter_privilege($1::text, 'ALTER SYSTEM')"
            }
            (false, Task::SetupWithReset) => "SELECT format('ALTER SYSTEM RESET %s', $1::text)",
            (false, _) => {
                "SELECT format('ALTER ROLE %I SUPERUSER', current_user) WHERE $1::text <> ''"
            }
        };
        let rows = session.query(sql, &[&parameter]).await?;
        rows.iter().map(|row| column(row, 0)).collect()
    }
}
