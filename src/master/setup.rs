//! `setup` on the master: binds the archive to this cluster, turns archiving on, and proves it by
//! a segment that arrives. Never edits a file before the receiver has agreed. Invariant: the
//! archive_command it writes works from any working directory and through any shell.

use std::time::{Duration, Instant};

use clap::{ArgAction, Args};
use walmgr_protocol::message::overview::Overview;
use walmgr_protocol::names::{SegmentName, TimelineId, WalSegmentSize};

use crate::config::{MasterConfig, packaged};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::master::archiver;
use crate::master::archiving::{self, Activation, ArchivingFound};
use crate::master::ask::Asking;
use crate::master::cluster::ClusterFacts;
use crate::master::histories;
use crate::master::init;
use crate::master::next_step;
use crate::master::setup_by_root;
use crate::options::Options;
use crate::output;
use crate::pg::archive_command::{Ours, is_worth_keeping};
use crate::pg::command::walmgr_command;
use crate::pg::conf::ServerSettings;
use crate::pg::data_directory::DataDirectory;
use crate::pg::grants::Task;
use crate::pg::programs::Programs;
use crate::pg::server_unit;
use crate::pg::sql::{Session, Switched};
use crate::status::Archiving;

/// Pause between two looks whether the test segment has arrived.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How often a wait is told.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// What stood behind `setup`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct SetupArgs {
    /// Do not wait until a segment has arrived
    #[arg(long = "no-check", action = ArgAction::SetFalse)]
    pub check: bool,
    /// Restart PostgreSQL if archive_mode or wal_level has to change: with master_restart_cmd, else as init would set it
    #[arg(long)]
    pub restart: bool,
    /// For the process that root starts as the server's user: root restarts the server
    #[arg(long, hide = true, conflicts_with = "restart")]
    pub root_restarts: bool,
}

/// Configures archiving.
pub(crate) fn run(config: &MasterConfig, options: &Options, arguments: &SetupArgs) -> Result<()> {
    let mut own = config.clone();
    // Restarted behind systemd's back, the server would be taken for ended.
    let unit = server_unit::unit_of(&own.master_data);
    if arguments.restart && own.master_restart_cmd.is_none() && unit.is_none() {
        own.master_restart_cmd = Some(init::restart_command(&own.master_data));
    }
    let config = &own;
    let facts = ClusterFacts::read(config)?;
    tell_of_programs(config);
    let changes = changes(config)?;
    let runtime = crate::master::runtime()?;
    if options.not_really {
        return runtime.block_on(rehearse(config, &facts, &changes));
    }
    runtime.block_on(async {
        let held = bind(config, &facts, &changes).await?;
        let newest = held.as_ref().and_then(|held| held.newest_segment);
        let found = archiving::found(config).await?;
        // Before WAL of its timeline: it was begun while archiving was off.
        if facts.timeline != TimelineId::FIRST || found.timeline != Some(TimelineId::FIRST) {
            histories::push_newest(config, &facts).await?;
        }
        let resets = resets(config, &changes)?;
        (found.archives).refuse_overridden(config, &changes, resets)?;
        archiving::edit(config, &changes, false)?;
        archiving::reset_automatic(config, &changes, false).await?;
        warn_of_what_is_lost(&found, newest, facts.cluster.segment_size);
        let wanted: Vec<(&str, &str)> = changes
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        match archiving::activate(config, &wanted, Task::Setup).await? {
            Activation::Done(session) => {
                if arguments.check {
                    prove(config, &facts, &session).await?;
                }
                next_step::after_setup(config, held.as_ref())
            }
            Activation::RestartNeeded if arguments.root_restarts => {
                setup_by_root::ask_for_restart()
            }
            Activation::RestartNeeded => {
                let ini = config.path.display();
                match unit {
                    Some(unit) => output::print(&format!(
                        "{unit} of systemd runs the server, so root restarts it. Type here:\n\n    \
                         sudo walmgr {ini} setup --restart"
                    )),
                    None => output::print(&format!(
                        "Type here, to have it restarted and checked:\n\n    {}walmgr {ini} setup --restart",
                        packaged::typed_by_root_before(&config.path)
                    )),
                }
            }
        }
    })
}

/// A wrong `master_bin` is no reason not to archive, and nobody looks at it before something is to be started.
fn tell_of_programs(config: &MasterConfig) {
    let data = DataDirectory::open(&config.master_data);
    let major = data.map(|data| data.major()).ok();
    if let Err(error) = Programs::of_master(config).check(major) {
        tracing::warn!("{error}");
    }
}

/// Asks whoever the real run would ask, and changes nothing.
async fn rehearse(
    config: &MasterConfig,
    facts: &ClusterFacts,
    changes: &[(&str, String)],
) -> Result<()> {
    let mut asking = Asking::connect(config, facts).await?;
    check_grants(config, changes).await?;
    let held = asking.overview().await.ok();
    asking.close().await;
    let newest = held.and_then(|held| held.newest_segment);
    let cluster = facts.cluster;
    output::not_really(&format!(
        "bind the archive at {} to {cluster}",
        config.slave
    ))?;
    let found = archiving::found(config).await?;
    let resets = resets(config, changes)?;
    (found.archives).refuse_overridden(config, changes, resets)?;
    archiving::edit(config, changes, true)?;
    archiving::reset_automatic(config, changes, true).await?;
    warn_of_what_is_lost(&found, newest, cluster.segment_size);
    Ok(())
}

/// A role that may not do all of it must not begin, and hears at once what else it will lack.
async fn check_grants(config: &MasterConfig, changes: &[(&str, String)]) -> Result<()> {
    let task = match archiving::resets_automatic(config, changes)? {
        true => Task::SetupWithReset,
        false => Task::Setup,
    };
    let session = archiving::connect_for(config, task).await?;
    let missing = Task::Backup.missing(&session).await?;
    if !missing.is_empty() {
        tracing::warn!(
            "backup will need, typed as a superuser in database {}: {};",
            session.database(),
            missing.join("; ")
        );
    }
    session.close().await;
    Ok(())
}

/// Answers with what the archive holds; a key without the right to read may set up as well, and is told nothing.
async fn bind(
    config: &MasterConfig,
    facts: &ClusterFacts,
    changes: &[(&str, String)],
) -> Result<Option<Overview>> {
    let mut asking = Asking::connect(config, facts).await?;
    check_grants(config, changes).await?;
    let done = asking.set_up().await?;
    let held = asking.overview().await.ok();
    asking.close().await;
    let how = if done.newly_bound {
        "is bound to"
    } else {
        "was bound already to"
    };
    let cluster = facts.cluster;
    tracing::info!(
        "{} on {} {how} {cluster}",
        done.completed_wals,
        config.slave
    );
    Ok(held)
}

/// Says which command goes, and that WAL which nobody sent to this archive is missing in it.
fn warn_of_what_is_lost(found: &ArchivingFound, newest: Option<SegmentName>, size: WalSegmentSize) {
    let before = match &found.archives.archiving {
        Archiving::On | Archiving::Kept(_) => return,
        Archiving::Off(_) => "archiving was off",
        Archiving::Unheard(what) => {
            tracing::warn!("{what}: it is replaced");
            "PostgreSQL removed segments that did not arrive"
        }
        Archiving::Foreign(_) => {
            let command = &found.archives.command;
            tracing::warn!("the archive_command `{command}` is replaced: it gets no more segments");
            "segments went elsewhere"
        }
    };
    let Some(newest) = newest else { return };
    let hole = match (newest.next(size), found.segment) {
        (Some(next), Some(at))
            if matches!(found.archives.archiving, Archiving::Off(_))
                && next.timeline() == at.timeline()
                && next < at =>
        {
            format!("{next} is the first segment that is missing in it")
        }
        _ => "segments that finish before archiving works may be missing in it".to_owned(),
    };
    tracing::warn!(
        "{before}, and the archive ends with {newest}: {hole}; standbys and older base backups \
        cannot replay past such a gap, so make a new base backup once archiving works"
    );
}

/// What `postgresql.conf` has to say for archiving to work.
pub(super) fn changes(config: &MasterConfig) -> Result<Vec<(&'static str, String)>> {
    files::read(&config.master_config).at(
        Kind::Config,
        "read master_config,",
        &config.master_config,
    )?;
    // What an included file sets stays: a line behind it would undo it.
    let server = ServerSettings::of(&config.master_data, Some(&config.master_config));
    // `always` also archives on a standby that this server may become.
    let mode = match server.value("archive_mode").as_deref() {
        Some("always") => "always",
        _ => "on",
    };
    let mut changes = vec![("archive_mode", mode.to_owned())];
    let level = server.value("wal_level");
    // PostgreSQL reads both old names as `replica`, and `replica` is what it takes when nothing
    // is set; writing it out guards against an included file that says otherwise.
    let enough = matches!(
        level.as_deref(),
        Some("replica" | "logical" | "hot_standby" | "archive")
    );
    if !enough {
        changes.push(("wal_level", "replica".to_owned()));
    }
    let ours = Ours {
        ini: &config.path,
        data: &config.master_data,
    };
    let command = match server.value("archive_command") {
        // What is around our line was put there for a reason.
        Some(found) if is_worth_keeping(&found, &ours) => found,
        _ => walmgr_command("archive_command", &config.path, "xarchive %p %f")?,
    };
    changes.push(("archive_command", command));
    Ok(changes)
}

/// Forces a segment out and waits until the receiver holds it.
async fn prove(config: &MasterConfig, facts: &ClusterFacts, session: &Session) -> Result<()> {
    if session.is_in_recovery().await? {
        tracing::warn!(
            "the server is in recovery, so setup cannot force a segment switch to prove archiving"
        );
        return Ok(());
    }
    let mut segment = force_out(session).await?;
    tracing::info!("waiting for {segment} to arrive");
    let began = Instant::now();
    let before = session.archiver_statistics().await?;
    let mut told = began;
    let mut asking = Asking::connect(config, facts).await?;
    let mut passed_once = false;
    while !asking.holds(segment, facts.cluster.segment_size).await? {
        let now = session.archiver_statistics().await?;
        let passed = !passed_once
            && archiver::has_passed(&now, segment)
            && !asking.holds(segment, facts.cluster.segment_size).await?;
        if passed {
            // Nothing tells when the archiver has read its settings again.
            passed_once = true;
            let next = force_out(session).await?;
            tracing::info!(
                "PostgreSQL reports {segment} as archived, but it did not arrive: the archiver \
                may have run the previous command; waiting for {next}"
            );
            segment = next;
        }
        let since = archiver::since(&before, &now, segment);
        let fails = now.failed_count > before.failed_count;
        if now.failed_count > before.failed_count + 1 || began.elapsed() > config.push_timeout {
            let doing = format!(
                "{segment} did not arrive within {:.0?}; {since}",
                began.elapsed()
            );
            return Err(CommandError::retry(doing).hint(did_not_arrive(fails)));
        }
        if told.elapsed() > TELL_INTERVAL {
            told = Instant::now();
            tracing::info!("still waiting for {segment}: {since}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    asking.close().await;
    tracing::info!(
        "{segment} arrived after {:.1?}: archiving works",
        began.elapsed()
    );
    Ok(())
}

/// Ends the segment in progress.
async fn force_out(session: &Session) -> Result<SegmentName> {
    // Something to finish: a switch right after another one does nothing.
    session.create_restore_point("walmgr setup").await?;
    let Switched { segment, .. } = session.switch_wal().await?;
    Ok(segment)
}

/// What to look at when a segment does not arrive.
fn did_not_arrive(fails: bool) -> &'static str {
    match fails {
        true => {
            "PostgreSQL's log has the reason in the line before `archive command failed`; \
            archive_command runs as the server's user, who must be able to read the ini file and \
            the key"
        }
        false => {
            "`ps` shows what the archiver runs, and PostgreSQL's log shows its messages; when it \
            archives again, type setup again"
        }
    }
}

/// The parameters that `setup` takes out of `postgresql.auto.conf` itself.
fn resets(config: &MasterConfig, changes: &[(&str, String)]) -> Result<&'static [&'static str]> {
    Ok(match archiving::resets_automatic(config, changes)? {
        true => &["archive_mode"],
        false => &[],
    })
}
