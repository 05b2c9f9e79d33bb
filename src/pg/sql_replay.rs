//! Questions to a server that replays: how far it is, and what holds it up.
//! Never waits for replay. Invariant: what the role may not know is left open, never guessed.

use walmgr_protocol::names::Lsn;

use super::sql::{Session, column};
use crate::error::{CommandError, Result};

/// Sessions named at most: more are no help.
const SESSIONS_MAX: i64 = 3;

/// What a server says of its replay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replaying {
    /// Where the last record ends that was replayed.
    pub replayed: Option<Lsn>,
    /// Where the last record ends that was streamed.
    pub received: Option<Lsn>,
    /// Whether replay is paused, or will be with the next record.
    pub is_paused: bool,
    /// Whether it waits for `recovery_min_apply_delay`.
    pub is_delayed: bool,
    /// Whether it waits for a session.
    pub is_in_conflict: bool,
    /// `recovery_min_apply_delay`; `0` without a delay.
    pub apply_delay: String,
    /// `max_standby_archive_delay`: how long a session may hold replay up.
    pub conflict_limit: String,
    /// Queries that were cancelled because of replay, since the statistics were reset.
    pub cancelled_queries: i64,
}

/// A session that holds replay up, or is likely to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process.
    pub pid: i32,
    /// Who it is, and for how long its transaction lasts, for a sentence.
    pub who: String,
}

impl Session {
    /// How replay stands; `None` if the server replays nothing.
    pub async fn replaying(&self) -> Result<Option<Replaying>> {
        let sql = "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, \
                pg_last_wal_receive_lsn()::text, \
                CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END, \
                coalesce(s.wait_event_type, ''), coalesce(s.wait_event, ''), \
                current_setting('recovery_min_apply_delay'), \
                current_setting('max_standby_archive_delay'), \
                (SELECT coalesce(sum(confl_tablespace + confl_lock + confl_snapshot \
                    + confl_bufferpin + confl_deadlock), 0)::bigint FROM pg_stat_database_conflicts) \
             FROM (SELECT 1) one LEFT JOIN pg_stat_activity s ON s.backend_type = 'startup'";
        let row = self.row(sql, &[]).await?;
        if !column::<bool>(&row, 0)? {
            return Ok(None);
        }
        let lsn = |index| -> Result<Option<Lsn>> {
            let text: Option<String> = column(&row, index)?;
            let parsed = text.map(|text| text.parse::<Lsn>()).transpose();
            parsed.map_err(|error| {
                CommandError::retry("understand PostgreSQL's answer").because(error)
            })
        };
        let (kind, event): (String, String) = (column(&row, 4)?, column(&row, 5)?);
        Ok(Some(Replaying {
            replayed: lsn(1)?,
            received: lsn(2)?,
            is_paused: column(&row, 3)?,
            is_delayed: event == "RecoveryApplyDelay",
            is_in_conflict: is_conflict(&kind, &event),
            apply_delay: column(&row, 6)?,
            conflict_limit: column(&row, 7)?,
            cancelled_queries: column(&row, 8)?,
        }))
    }

    /// The sessions that replay waits for: those that block it, and if none does those with the oldest
    /// transactions, as replay then waits for what they see or for a page that they have pinned.
    pub async fn holders_of_replay(&self) -> Result<Vec<Holder>> {
        let sql = "SELECT a.pid, format('process %s (user %s, database %s, %s, for %s s)', a.pid, \
                a.usename, a.datname, coalesce(nullif(a.application_name, ''), 'no name'), \
                round(extract(epoch FROM clock_timestamp() - a.xact_start))), \
                coalesce(a.pid = ANY (b.pids), false) AS blocks \
             FROM pg_stat_activity a, \
                (SELECT pg_blocking_pids(pid) AS pids FROM pg_stat_activity \
                    WHERE backend_type = 'startup') b \
             WHERE a.pid <> pg_backend_pid() AND a.backend_type = 'client backend' \
                AND (a.xact_start IS NOT NULL OR a.pid = ANY (b.pids)) \
             ORDER BY blocks DESC, a.xact_start LIMIT $1";
        let rows = self.query(sql, &[&SESSIONS_MAX]).await?;
        let mut found = Vec::new();
        for row in &rows {
            let (pid, who) = (column(row, 0)?, column::<Option<String>>(row, 1)?);
            let who = who.unwrap_or_else(|| format!("process {pid}"));
            found.push((Holder { pid, who }, column::<bool>(row, 2)?));
        }
        if found.iter().any(|(_, blocks)| *blocks) {
            found.retain(|(_, blocks)| *blocks);
        }
        Ok(found.into_iter().map(|(holder, _)| holder).collect())
    }

    /// Lets a replay go on that `pg_wal_replay_pause()` holds.
    pub async fn resume_replay(&self) -> Result<()> {
        (self.query("SELECT pg_wal_replay_resume()", &[]).await).map(drop)
    }

    /// Ends a session.
    pub async fn terminate(&self, holder: &Holder) -> Result<()> {
        (self
            .query("SELECT pg_terminate_backend($1)", &[&holder.pid])
            .await)
            .map(drop)
    }
}

/// `wait_event_type` and `wait_event` of the startup process, of 13 to 18.
fn is_conflict(kind: &str, event: &str) -> bool {
    kind == "Lock"
        || event.starts_with("RecoveryConflict")
        || matches!(event, "BufferPin" | "BufferCleanup")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_session_can_end_is_a_conflict() {
        for (kind, event, conflict) in [
            ("IPC", "RecoveryConflictSnapshot", true),
            ("IPC", "RecoveryConflictTablespace", true),
            ("Lock", "relation", true),
            ("BufferPin", "BufferPin", true),
            ("Timeout", "RecoveryApplyDelay", false),
            ("IPC", "RecoveryPause", false),
            ("Activity", "RecoveryWalStream", false),
            ("IPC", "RestoreCommand", false),
            ("", "", false),
        ] {
            assert_eq!(is_conflict(kind, event), conflict, "{kind} {event}");
        }
    }
}
