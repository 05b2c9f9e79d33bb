//! `synch-standby NAMES`: has commits wait for standbys that stream, or for none.
//! Never sets names of which the server could not see enough standbys a moment before, and never leaves a value
//! behind that the server did not take. Invariant: no session of ours waits for a standby.
//!
//! ```text
//! the standbys of NAMES stream?        otherwise nothing is changed
//! note NAMES in the data directory     `stop` clears what is noted
//! ALTER SYSTEM, reload, look           taken back where another place wins or a file is wrong
//! look at the standbys again           commits wait for them from here on
//! ```

mod taken_out;

pub(crate) use taken_out::{put_back, take_out};

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use super::init::find_pgdata;
use super::synch_note::{SynchNote, set_by_alter_system};
use crate::config::MasterConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::master::cluster::ClusterFacts;
use crate::options::Options;
use crate::output;
use crate::pg::conf::{ServerSettings, last_setter_beneath};
use crate::pg::conninfo::quoted_value;
use crate::pg::data_directory::DataDirectory;
use crate::pg::grants::Task;
use crate::pg::layout;
use crate::pg::sql::{Limits, Session};
use crate::pg::sql_settings::InForce;
use crate::pg::sql_standbys::{SYNCHRONOUS_NAMES, WalSender};
use crate::pg::synchronous_names::{SynchronousNames, is_taken_by};

/// How long a reload may take, and how long the server may need to see that its standbys are synchronous.
const TAKES_EFFECT: Duration = Duration::from_secs(5);

/// How long another call is waited for: twice what it takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Connections that a message names: whoever looks for one has enough of that many.
const SHOWN_MAX: usize = 20;

/// What stood behind `synch-standby`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct SynchStandbyArgs {
    /// The standbys, as synchronous_standby_names has them: 'a, b', 'ANY 1 (a, b)'; '' for none
    pub names: String,
    /// Of the old spelling, which has no ini file.
    #[arg(skip)]
    pub pgdata: Option<PathBuf>,
}

/// A server whose commits are to wait.
struct SynchServer {
    conninfo: String,
    data: PathBuf,
    /// Its main file by walmgr's settings.
    configured: Option<PathBuf>,
    limits: Limits,
    /// How the command that turns this off is typed.
    off: String,
}

/// Sets the names, for the server of an ini file.
pub(crate) fn run(
    config: &MasterConfig,
    options: &Options,
    typed: &SynchStandbyArgs,
) -> Result<()> {
    set(&server_of(config), options, &typed.names)
}

/// Sets the names for the server of a data directory: `walmgr --synch-standby NAMES`, as Skytools 3 spells it.
pub(crate) fn run_without_file(options: &Options, typed: &SynchStandbyArgs) -> Result<()> {
    set(
        &found_server(typed.pgdata.as_deref())?,
        options,
        &typed.names,
    )
}

/// The data directory that the old spelling is about.
pub(crate) fn data_without_file(pgdata: Option<&Path>) -> Result<PathBuf> {
    match pgdata {
        Some(path) => std::path::absolute(path).at(Kind::Config, "find", path),
        None => find_pgdata(),
    }
}

fn server_of(config: &MasterConfig) -> SynchServer {
    SynchServer {
        conninfo: config.master_db.clone(),
        data: config.master_data.clone(),
        configured: Some(config.master_config.clone()),
        limits: Limits {
            connect: config.connect_timeout,
            ..Limits::default()
        },
        off: "`walmgr MASTER.ini synch-standby ''`".to_owned(),
    }
}

fn found_server(pgdata: Option<&Path>) -> Result<SynchServer> {
    let data = data_without_file(pgdata)?;
    let running = DataDirectory::open(&data)?.running()?.ok_or_else(|| {
        CommandError::retry(format!("no server runs in {}", data.display()))
            .hint("start it, or name another data directory: --pgdata DIR")
    })?;
    let host = running
        .socket_directory
        .or(running.listen_address.map(PathBuf::from));
    let host = host.map(|host| format!("host={} ", quoted_value(&host.display().to_string())));
    let port = running.port.map(|port| format!("port={port} "));
    let [host, port] = [host, port].map(Option::unwrap_or_default);
    Ok(SynchServer {
        conninfo: format!("{host}{port}dbname=postgres"),
        off: format!("`walmgr --pgdata {} --synch-standby ''`", data.display()),
        configured: None,
        limits: Limits::default(),
        data,
    })
}

fn set(server: &SynchServer, options: &Options, text: &str) -> Result<()> {
    let names = match text {
        "" => None,
        text => Some(SynchronousNames::parse(text)?),
    };
    let runtime = crate::master::runtime()?;
    runtime.block_on(async {
        let session = server.connect().await?;
        let found = server.look(&session).await?;
        match names {
            Some(names) => {
                server.check_standbys(&session, &names).await?;
                server
                    .set_names(&session, options, &found, text, &names)
                    .await?;
            }
            None => server.clear(&session, options, &found).await?,
        }
        session.close().await;
        Ok(())
    })
}

/// Clears what this command set, for `stop`; what somebody else set stays.
pub(crate) async fn clear_own(config: &MasterConfig, not_really: bool) -> Result<()> {
    let server = server_of(config);
    let (mut note, set) = (
        SynchNote::read(&server.data),
        set_by_alter_system(&server.data)?,
    );
    if !not_really {
        note.set_taken_out(None)?;
    }
    let Some(own) = set.filter(|set| !set.is_empty() && note.has(set)) else {
        return Ok(());
    };
    let doing = format!("clear {SYNCHRONOUS_NAMES} = '{own}', which synch-standby set");
    if not_really {
        return output::not_really(&doing);
    }
    let session = server.connect().await?;
    session.check_alter_system().await?;
    let _alone = server.alone()?;
    session.write_synchronous_names(None).await?;
    session.reload_conf().await?;
    let left = server
        .wait_until(&session, |found| found.value != own)
        .await?;
    SynchNote::read(&server.data).keep_only(None)?;
    match left.value.as_str() {
        "" => tracing::info!("{doing}: done"),
        left_over => tracing::warn!(
            "{doing}: done; commits now wait for '{left_over}', set in {}",
            left.place()
        ),
    }
    session.close().await;
    Ok(())
}

/// Whether [`clear_own`] has something to do.
pub(crate) fn clears_own(config: &MasterConfig) -> Result<bool> {
    let set = set_by_alter_system(&config.master_data)?;
    let note = SynchNote::read(&config.master_data);
    Ok(set.is_some_and(|set| !set.is_empty() && note.has(&set)))
}

impl SynchServer {
    async fn connect(&self) -> Result<Session> {
        Session::connect_for(&self.conninfo, self.limits, Task::SynchStandby).await
    }

    /// Two calls at once would strike out each other's notes.
    fn alone(&self) -> Result<File> {
        files::lock_folder_of(&self.data.join(layout::AUTO_CONF), PATIENCE)
    }

    /// What is in force; refuses a server that this command is not for.
    async fn look(&self, session: &Session) -> Result<InForce> {
        let (own, asked) = (
            ClusterFacts::of(&self.data)?,
            session.system_identifier().await?,
        );
        if own.cluster.system_id != asked {
            return Err(CommandError::config(format!(
                "the server that answers is of another cluster (system identifier {asked}) than {} ({})",
                self.data.display(),
                own.cluster.system_id
            ))
            .hint("check master_db and master_data"));
        }
        if session.is_in_recovery().await? {
            return Err(CommandError::config(
                "the server is a standby, whose commits wait for nobody",
            )
            .hint("run synch-standby on the master"));
        }
        self.in_force(session).await
    }

    async fn in_force(&self, session: &Session) -> Result<InForce> {
        let found = session.in_force(&[SYNCHRONOUS_NAMES]).await?.pop();
        found.ok_or_else(|| CommandError::retry(format!("the server has no {SYNCHRONOUS_NAMES}")))
    }

    /// Looks until this holds, or as long as a reload may take; what is in force then.
    async fn wait_until(
        &self,
        session: &Session,
        holds: impl Fn(&InForce) -> bool,
    ) -> Result<InForce> {
        let until = Instant::now() + TAKES_EFFECT;
        loop {
            let found = self.in_force(session).await?;
            if holds(&found) || Instant::now() > until {
                return Ok(found);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Refuses names that would have commits wait for ever.
    async fn check_standbys(&self, session: &Session, names: &SynchronousNames) -> Result<()> {
        let senders = session.wal_senders().await?;
        let streams = |sender: &&WalSender| sender.state == "streaming" && sender.tells_flushed;
        let streaming: Vec<&WalSender> = senders.iter().filter(streams).collect();
        let missing: Vec<String> = (names.names.iter())
            .filter(|name| {
                !(streaming.iter()).any(|sender| is_taken_by(name, &sender.application_name))
            })
            .map(|name| format!("{name:?}"))
            .collect();
        let enough = (streaming.iter())
            .filter(|sender| names.takes(&sender.application_name))
            .count();
        let wrong = match (missing.is_empty(), enough < names.needed as usize) {
            (false, _) if missing == ["\"*\""] => "no standby is streaming".to_owned(),
            (false, _) => format!("not streaming: {}", missing.join(", ")),
            (true, true) => format!(
                "{} standbys are needed, {enough} are streaming",
                names.needed
            ),
            (true, false) => return Ok(()),
        };
        Err(CommandError::retry(format!("{wrong}; {}; nothing was changed", connected(&senders)))
            .hint(
                "commits would wait for it: set application_name in the standby's primary_conninfo (without one it \
                is the standby's cluster_name, or walreceiver), and wait until it streams",
            ))
    }

    async fn set_names(
        &self,
        session: &Session,
        options: &Options,
        found: &InForce,
        text: &str,
        names: &SynchronousNames,
    ) -> Result<()> {
        warn_of_unwaiting(session).await?;
        if found.value == text {
            tracing::info!(
                "{SYNCHRONOUS_NAMES} is '{text}' already, set in {}",
                found.place()
            );
            return Ok(());
        }
        refuse_command_line(found, text)?;
        session.check_alter_system().await?;
        if !found.value.is_empty() {
            let (old, place) = (&found.value, found.place());
            tracing::warn!("this replaces '{old}', set in {place}");
        }
        if options.not_really {
            return output::not_really(&format!("set {SYNCHRONOUS_NAMES} = '{text}' and reload"));
        }
        self.write(session, Some(text), true).await?;
        let until = Instant::now() + TAKES_EFFECT;
        loop {
            let senders = session.wal_senders().await?;
            let waited_for =
                |sender: &&WalSender| ["sync", "quorum"].contains(&&*sender.sync_state);
            let count = senders.iter().filter(waited_for).count();
            if count >= names.needed as usize {
                tracing::info!(
                    "{SYNCHRONOUS_NAMES} = '{text}': commits wait for {} of {}",
                    names.needed,
                    shown(senders.iter().filter(waited_for))
                );
                return Ok(());
            }
            if Instant::now() > until {
                return Err(CommandError::retry(format!(
                    "{SYNCHRONOUS_NAMES} = '{text}' is in force, but only {count} of {} standbys are there: commits \
                    wait; {}",
                    names.needed,
                    connected(&senders)
                ))
                .hint(format!("reconnect the standby, or let commits go on: {}", self.off)));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Turns it off in effect, whoever set it.
    async fn clear(&self, session: &Session, options: &Options, found: &InForce) -> Result<()> {
        let automatic = set_by_alter_system(&self.data)?;
        if found.value.is_empty() && automatic.as_deref().is_none_or(str::is_empty) {
            tracing::info!("{SYNCHRONOUS_NAMES} is empty already: no commit waits");
            SynchNote::read(&self.data).set_taken_out(None)?;
            return SynchNote::read(&self.data).keep_only(None);
        }
        refuse_command_line(found, "")?;
        session.check_alter_system().await?;
        // Without the line of ALTER SYSTEM that of a file would come in force.
        let settings = ServerSettings::of(&self.data, self.configured.as_deref());
        let beneath = last_setter_beneath(settings.config_file(), &self.data, SYNCHRONOUS_NAMES);
        let is_off_beneath = match &beneath {
            Ok(setter) => setter.as_ref().is_none_or(|setter| setter.value.is_empty()),
            Err(_) => false,
        };
        if options.not_really {
            return output::not_really(&format!("set {SYNCHRONOUS_NAMES} = '' and reload"));
        }
        let value = match is_off_beneath {
            true => None,
            false => Some(""),
        };
        self.write(session, value, false).await?;
        let was = &found.value;
        match beneath {
            Ok(Some(setter)) if !is_off_beneath => tracing::info!(
                "{SYNCHRONOUS_NAMES} was '{was}' and is empty: no commit waits; {}, line {}, sets '{}', which \
                ALTER SYSTEM now overrides",
                setter.file.display(),
                setter.line,
                setter.value
            ),
            _ => tracing::info!("{SYNCHRONOUS_NAMES} was '{was}' and is empty: no commit waits"),
        }
        Ok(())
    }

    /// Has the server take a value, `None` for that of its files, and takes it back where it does not.
    async fn write(&self, session: &Session, value: Option<&str>, is_ours: bool) -> Result<()> {
        let _alone = self.alone()?;
        let before = set_by_alter_system(&self.data)?;
        let mut note = SynchNote::read(&self.data);
        if let Some(value) = value.filter(|_| is_ours) {
            note.add(value)?;
        }
        session.write_synchronous_names(value).await?;
        session.reload_conf().await?;
        let wanted = value.unwrap_or_default();
        let found = self
            .wait_until(session, |found| found.value == wanted)
            .await?;
        if found.value == wanted {
            // Whoever sets names decides who is in them.
            note.set_taken_out(None)?;
            return note.keep_only(value.filter(|_| is_ours));
        }
        let faults = session.faults_in_files().await;
        session.write_synchronous_names(before.as_deref()).await?;
        session.reload_conf().await?;
        let kept = before.filter(|before| note.has(before));
        note.keep_only(kept.as_deref())?;
        let why = match faults.is_empty() {
            true => format!("it is '{}', set in {}", found.value, found.place()),
            false => format!("its files are wrong: {}", faults.join("; ")),
        };
        Err(CommandError::config(format!(
            "the server did not take {SYNCHRONOUS_NAMES} = '{wanted}': {why}; it was taken back"
        ))
        .hint("PostgreSQL's log has what it says of the reload"))
    }
}

/// What the command line says, nobody changes while the server runs.
fn refuse_command_line(found: &InForce, wanted: &str) -> Result<()> {
    match found.source.as_str() {
        "command line" if found.value != wanted => Err(CommandError::config(format!(
            "{SYNCHRONOUS_NAMES} is '{}' on {}, which no file overrides; nothing was changed",
            found.value,
            found.place()
        ))
        .hint("start the server without it")),
        _ => Ok(()),
    }
}

async fn warn_of_unwaiting(session: &Session) -> Result<()> {
    for unwaiting in session.unwaiting().await?.iter().take(SHOWN_MAX) {
        tracing::warn!(
            "synchronous_commit is {} for {}: these commits wait for no standby",
            unwaiting.value,
            unwaiting.who
        );
    }
    Ok(())
}

/// What is connected, for a sentence.
fn connected(senders: &[WalSender]) -> String {
    match senders.is_empty() {
        true => "nothing is connected".to_owned(),
        false => format!("connected: {}", shown(senders.iter())),
    }
}

fn shown<'a>(senders: impl Iterator<Item = &'a WalSender>) -> String {
    let one = |sender: &WalSender| {
        let silent = match sender.tells_flushed {
            true => "",
            false => ", tells nothing of its disk",
        };
        let (name, state, client) = (&sender.application_name, &sender.state, &sender.client);
        format!("{name:?} ({state}{silent}, from {client})")
    };
    senders
        .take(SHOWN_MAX)
        .map(one)
        .collect::<Vec<_>>()
        .join(", ")
}
