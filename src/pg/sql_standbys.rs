//! Questions about the standbys that stream from a server, and the setting by which commits wait for them.
//! Never decides what is to be set. Invariant: only what `ALTER SYSTEM` wrote is changed here, and a text goes into
//! SQL as one literal, whatever is in it.

use super::sql::{Session, column};
use crate::error::{CommandError, Result};

/// The setting.
pub(crate) const SYNCHRONOUS_NAMES: &str = "synchronous_standby_names";

/// A connection by which WAL is streamed (`pg_stat_replication`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalSender {
    /// What the standby calls itself.
    pub application_name: String,
    /// `streaming` where it has caught up.
    pub state: String,
    /// Where it is.
    pub client: String,
    /// Whether it says what its disk holds; `pg_receivewal` does so only with `--synchronous`.
    pub tells_flushed: bool,
    /// `sync` or `quorum` for one that commits wait for.
    pub sync_state: String,
}

/// Somebody whose commits wait for no standby.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwaiting {
    /// The role, database or server, for a sentence.
    pub who: String,
    /// Its `synchronous_commit`.
    pub value: String,
}

impl Session {
    /// All of them, in the order of their names.
    pub async fn wal_senders(&self) -> Result<Vec<WalSender>> {
        let sql = "SELECT coalesce(application_name, ''), coalesce(state, ''), \
                coalesce(host(client_addr), 'this host'), flush_lsn IS NOT NULL, \
                coalesce(sync_state, '') \
             FROM pg_stat_replication ORDER BY application_name, pid";
        let rows = self.query(sql, &[]).await?;
        let senders = rows.iter().map(|row| {
            Ok(WalSender {
                application_name: column(row, 0)?,
                state: column(row, 1)?,
                client: column(row, 2)?,
                tells_flushed: column(row, 3)?,
                sync_state: column(row, 4)?,
            })
        });
        senders.collect()
    }

    /// Who is set to `synchronous_commit = off` or `local`: the server, roles, databases. What this session sets
    /// for itself does not count.
    pub async fn unwaiting(&self) -> Result<Vec<Unwaiting>> {
        let sql = "SELECT 'the server', reset_val FROM pg_settings \
                WHERE name = 'synchronous_commit' AND reset_val IN ('off', 'local') \
                    AND NOT EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) AS own \
                        WHERE own LIKE 'synchronous\\_commit=%' \
                            AND setrole IN (0, (SELECT oid FROM pg_roles \
                                WHERE rolname = current_user)) \
                            AND setdatabase IN (0, (SELECT oid FROM pg_database \
                                WHERE datname = current_database()))) \
             UNION ALL \
             SELECT concat_ws(' in ', 'role ' || r.rolname, 'database ' || d.datname), \
                split_part(own, '=', 2) \
             FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS own \
                LEFT JOIN pg_roles r ON r.oid = s.setrole \
                LEFT JOIN pg_database d ON d.oid = s.setdatabase \
             WHERE own IN ('synchronous_commit=off', 'synchronous_commit=local')";
        let rows = self.query(sql, &[]).await?;
        let found = rows.iter().map(|row| {
            Ok(Unwaiting {
                who: column(row, 0)?,
                value: column(row, 1)?,
            })
        });
        found.collect()
    }

    /// Has `ALTER SYSTEM` write this value, or none.
    pub async fn write_synchronous_names(&self, value: Option<&str>) -> Result<()> {
        let sql = match value {
            Some(value) => {
                format!("ALTER SYSTEM SET {SYNCHRONOUS_NAMES} TO {}", literal(value))
            }
            None => format!("ALTER SYSTEM RESET {SYNCHRONOUS_NAMES}"),
        };
        self.query(&sql, &[]).await.map(drop)
    }

    /// What is wrong in the server's configuration files, as it says itself; nothing where the role may not ask.
    pub async fn faults_in_files(&self) -> Vec<String> {
        let sql = "SELECT format('%s, line %s: %s', sourcefile, sourceline, \
                coalesce(name || ': ', '') || error) FROM pg_file_settings \
             WHERE error IS NOT NULL AND error NOT LIKE '%could not be applied%' ORDER BY seqno";
        let rows = self.query(sql, &[]).await.unwrap_or_default();
        let texts = rows.iter().map(|row| column::<String>(row, 0));
        texts.filter_map(Result::ok).collect()
    }

    /// An error where the server takes no `ALTER SYSTEM` (`allow_alter_system` of 17 and later).
    pub async fn check_alter_system(&self) -> Result<()> {
        match self.show_if_known("allow_alter_system").await?.as_deref() {
            Some("off") => Err(CommandError::config(
                "the server refuses ALTER SYSTEM: allow_alter_system is off",
            )
            .hint(format!(
                "set {SYNCHRONOUS_NAMES} where this server's settings are kept, or set allow_alter_system = on"
            ))),
            _ => Ok(()),
        }
    }
}

/// A text as one literal under every `standard_conforming_strings`.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::literal;

    #[test]
    fn a_literal_cannot_be_left() {
        assert_eq!(literal("a, \"b\""), "E'a, \"b\"'");
        assert_eq!(literal("\\'; DROP--"), "E'\\\\''; DROP--'");
    }
}
