//! The syncdaemon's name out of `synchronous_standby_names`, and back in.
//! Never touches names that somebody else has set meanwhile. Invariant: what was in force is noted before the name goes
//! out, and the note goes when the name is back, so a kill in between leaves no name out for good.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{SynchServer, refuse_command_line, server_of};
use crate::config::MasterConfig;
use crate::error::{CommandError, Result};
use crate::master::synch_note::{SynchNote, TakenOut, set_by_alter_system};
use crate::pg::sql::Session;
use crate::pg::sql_standbys::SYNCHRONOUS_NAMES;
use crate::pg::synchronous_names::SynchronousNames;

/// Takes `job_name` out of the names of the server; what is left of them, or nothing where it is not named.
pub(crate) async fn take_out(config: &MasterConfig) -> Result<Option<String>> {
    let (server, name) = (server_of(config), &config.job_name);
    let session = server.connect().await?;
    let found = server.look(&session).await?;
    let names = match found.value.as_str() {
        "" => None,
        text => Some(SynchronousNames::parse(text)?),
    };
    let Some(left) = names.as_ref().and_then(|names| names.without(name)) else {
        session.close().await;
        return match names.filter(|names| names.takes(name)) {
            Some(_) => Err(CommandError::config(format!(
                "{SYNCHRONOUS_NAMES} = '{}' has * for {name}, which cannot be taken out",
                found.value
            ))
            .hint("name the standbys: synch-standby NAMES")),
            None => Ok(None),
        };
    };
    refuse_command_line(&found, &left)?;
    session.check_alter_system().await?;
    let _alone = server.alone()?;
    let mut note = SynchNote::read(&server.data);
    let taken_out = TakenOut {
        name: name.clone(),
        was_set: set_by_alter_system(&server.data)?,
        is_ours: note.has(&found.value),
        was: found.value,
        left,
        at_s: now_s(),
    };
    note.set_taken_out(Some(taken_out.clone()))?;
    let TakenOut { left, was_set, .. } = taken_out;
    if server.has_set(&session, Some(&left), &left).await? {
        if taken_out.is_ours {
            note.add(&left)?;
        }
        session.close().await;
        return Ok(Some(left));
    }
    note.set_taken_out(None)?;
    if set_by_alter_system(&server.data)?.as_deref() != Some(&left) {
        // Somebody has set other names in this moment.
        return Ok(None);
    }
    let faults = session.faults_in_files().await.join("; ");
    session.write_synchronous_names(was_set.as_deref()).await?;
    session.reload_conf().await?;
    Err(CommandError::config(format!(
        "the server did not take {SYNCHRONOUS_NAMES} = '{left}'; it was taken back; {faults}"
    ))
    .hint("PostgreSQL's log has what it says of the reload"))
}

/// Puts back what is noted as taken out. Returns the names that are in force with it, or nothing where there is
/// nothing to put back, or somebody has set other names since.
pub(crate) async fn put_back(config: &MasterConfig) -> Result<Option<String>> {
    let server = server_of(config);
    if SynchNote::read(&server.data).taken_out().is_none() {
        return Ok(None);
    }
    let session = server.connect().await?;
    let found = server.look(&session).await?;
    let _alone = server.alone()?;
    let mut note = SynchNote::read(&server.data);
    let Some(taken_out) = note.taken_out().cloned() else {
        return Ok(None);
    };
    let TakenOut { was, was_set, .. } = &taken_out;
    let back = match found.value == taken_out.left {
        true => server.has_set(&session, was_set.as_deref(), was).await?,
        false => found.value == *was,
    };
    if !back && found.value == taken_out.left {
        let faults = session.faults_in_files().await.join("; ");
        return Err(CommandError::retry(format!(
            "the server does not take {SYNCHRONOUS_NAMES} = '{was}' back; {faults}"
        )));
    }
    note.set_taken_out(None)?;
    note.keep_only(Some(was.as_str()).filter(|_| taken_out.is_ours && back))?;
    session.close().await;
    Ok(back.then(|| was.clone()))
}

impl SynchServer {
    /// Has `ALTER SYSTEM` set this, or nothing; whether the server has `wanted` in force then.
    async fn has_set(&self, session: &Session, value: Option<&str>, wanted: &str) -> Result<bool> {
        session.write_synchronous_names(value).await?;
        session.reload_conf().await?;
        let found = self.wait_until(session, |found| found.value == wanted);
        Ok(found.await?.value == wanted)
    }
}

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}
