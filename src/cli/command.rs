//! The commands: what is typed, which code runs for it on which side, how it ends and how it speaks.
//! Never does the work itself. Arguments stand with their help in the command's own file, or in `options` where both
//! sides have the command. Invariant: the compiler asks for a new command here, in `owner` and in `audited`.

use std::fs::DirBuilder;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use clap::{Args, Subcommand};

use crate::cleanup::CleanupArgs;
use crate::config::Config;
use crate::daemon::Readiness;
use crate::error::{CommandError, ExitTable, IoContext, Kind, Result};
use crate::options::init::InitSide;
use crate::options::{BackupArgs, InitArgs, Options, Restoring, XrestoreArgs};
use crate::output::Speaker;
use crate::status::Thresholds;
use crate::{abnormal, identity, master, receiver, standby};

/// The commands, each with its own arguments.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Write a first ini file, create the identity, say what to type next
    Init(InitArgs),
    /// Create the key and certificate if absent; print the fingerprint
    Identity,
    /// Standby: let the owner of a fingerprint in
    Authorize(standby::authorize::AuthorizeArgs),
    /// Standby: let a peer in no longer
    Revoke(standby::revoke::RevokeArgs),
    /// Master: configure archiving. Standby: make the folders
    Setup(master::setup::SetupArgs),
    /// Master: take the archiving settings out again
    Stop,
    /// Master: archive one WAL file (the archive_command)
    Xarchive(master::xarchive::XarchiveArgs),
    /// Master: run periodic_command if command_interval has passed
    Periodic,
    /// Make a base backup: of the master, or of the standby that replays
    Backup(BackupArgs),
    /// Master: measure the link to the receiver; say which settings to use
    Bench(master::bench::BenchArgs),
    /// Master: ship the records that the standby lacks, those of the segment in progress too
    Sync,
    /// Master: ship those records every loop_delay, as a daemon
    Syncdaemon(DaemonFlags),
    /// Master: have commits wait for standbys that stream, or for none
    #[command(name = "synch-standby")]
    SynchStandby(master::synch_standby::SynchStandbyArgs),
    /// Standby: receive WAL and backups, as a daemon
    Receiver(DaemonFlags),
    /// Hand one WAL file to PostgreSQL (the restore_command)
    Xrestore(XrestoreArgs),
    /// List the backup sets
    #[command(name = "listbackups")]
    ListBackups(ListBackupsArgs),
    /// Say how far the standby is behind, what it holds, and what is wrong: exit 0 fine, 1 warning, 2 critical
    Status(Thresholds),
    /// Bring a backup set back and have it replay
    Restore(Box<Restoring>),
    /// Standby: prove the archive and its backup sets; say what is damaged or missing, and to which times one can restore
    Verify(standby::verify::VerifyArgs),
    /// Standby: append records of a segment in progress from standard input
    Xpartialsync(standby::xpartialsync::XpartialsyncArgs),
    /// Remove what init, setup and the daemons made; never an archive, a set or a data directory
    Cleanup(CleanupArgs),
    /// Standby: make the standby anew from the running master (pg_basebackup)
    #[command(name = "createslave")]
    CreateSlave(standby::createslave::CreateSlaveArgs),
    /// Standby: pin a backup set: no rule removes it
    Keep(standby::keep::KeepArgs),
    /// Standby: end the pin of keep
    Unkeep(standby::unkeep::UnkeepArgs),
    /// Standby: remove the sets and WAL that the settings no longer keep; -n says which, and why
    Expire,
    /// Standby: remove the WAL that no backup set and no replay needs
    Xpurgewals,
    /// Standby: pack the archived segments that lie there as they came
    Compress,
    /// Standby: lock the backup sets while a script copies them
    Xlock,
    /// Standby: end the lock of xlock
    Xrelease(standby::xrelease::XreleaseArgs),
    /// Standby: rename each backup set to the next number
    Xrotate,
    /// Standby: show what is kept of a WAL file besides what readers follow, or put it in its place
    Choose(standby::choose::ChooseArgs),
    /// Standby: hold replay once the segment under way is restored
    Pause,
    /// Standby: let replay go on
    Continue,
    /// Standby: prove that a backup set restores, in a directory of its own
    Drill(standby::drill::DrillArgs),
    /// Standby: replay everything there is, then open the database
    Boot(standby::boot::BootArgs),
}

/// What stood behind `listbackups`.
#[derive(Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct ListBackupsArgs {
    /// Print a line for each cluster of a host's file, or of its folder
    #[arg(long)]
    pub all: bool,
}

/// What is asked of a daemon; it may stand before the command, too.
#[derive(Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct DaemonFlags {
    /// Go into the background once ready (receiver, syncdaemon)
    #[arg(short, long)]
    pub daemon: bool,
    /// Send SIGHUP to the running daemon: it reads its settings and keys again
    #[arg(short, long)]
    pub reload: bool,
    /// Send SIGINT to the running daemon, and wait: it finishes what is under way and ends
    #[arg(short, long)]
    pub stop: bool,
    /// Send SIGTERM to the running daemon, and wait: it ends without finishing
    #[arg(short, long)]
    pub kill: bool,
}

impl Command {
    /// Which table its exit code comes from.
    pub(crate) const fn exit_table(&self) -> ExitTable {
        match self {
            Command::Xarchive(typed) if typed.look_ahead => ExitTable::Unawaited,
            Command::Xrestore(typed) if typed.lays_behind => ExitTable::Unawaited,
            Command::Xarchive(_) => ExitTable::Xarchive,
            Command::Xrestore(_) => ExitTable::Xrestore,
            _ => ExitTable::Ordinary,
        }
    }

    /// Whose words the log has.
    pub(super) const fn speaker(&self) -> Speaker {
        match self {
            Command::Xarchive(_) | Command::Xrestore(_) => Speaker::Archiver,
            Command::Receiver(_) | Command::Syncdaemon(_) => Speaker::Daemon,
            _ => Speaker::Person,
        }
    }

    /// What is asked of the daemon that it is.
    pub(super) const fn daemon_flags(&self) -> Option<&DaemonFlags> {
        match self {
            Command::Receiver(flags) | Command::Syncdaemon(flags) => Some(flags),
            _ => None,
        }
    }

    /// Whether it is for all clusters of a host.
    pub(super) const fn is_of_all(&self) -> bool {
        matches!(
            self,
            Command::ListBackups(ListBackupsArgs { all: true })
                | Command::Status(Thresholds { all: true, .. })
        )
    }

    /// Whether it takes the folder of a host's clusters, too.
    pub(super) const fn takes_folder(&self) -> bool {
        self.is_of_all() || matches!(self, Command::Verify(_))
    }

    /// Whether it prints for programs.
    pub(super) const fn has_json(&self) -> bool {
        matches!(
            self,
            Command::Drill(_)
                | Command::Identity
                | Command::ListBackups(_)
                | Command::Status(_)
                | Command::Verify(_)
        )
    }

    /// What the grammar cannot say of its own arguments.
    pub(super) fn check(&self, ini: &Path) -> Result<()> {
        match self {
            Command::Init(arguments) => arguments.side(ini).map(drop),
            Command::Status(thresholds) => thresholds.check(),
            // As a restore_command this would tell PostgreSQL that its archive has ended.
            Command::Restore(restoring) => match &restoring.destination {
                Some(path) if abnormal::is_restored_to(path.as_os_str().as_bytes()) => {
                    Err(CommandError::usage("`restore` is not for restore_command")
                        .hint("use `xrestore %f %p`"))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// Runs `init`, the one command that has no file of settings yet.
pub(super) fn run_init(ini: &Path, options: &Options, arguments: &InitArgs) -> Result<()> {
    if let Some(old) = &arguments.old {
        tracing::info!("{} is now: {}", old.option, old.line);
        make_folder_of(ini, options, arguments)?;
    }
    match arguments.side(ini)? {
        InitSide::Master => master::init::run(ini, options, arguments),
        InitSide::Standby => standby::init::run(ini, options, arguments),
        InitSide::Host => standby::init_host::run(ini, options),
    }
}

/// Skytools made its folder for ini files.
fn make_folder_of(ini: &Path, options: &Options, arguments: &InitArgs) -> Result<()> {
    let Some(folder) = ini.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(());
    };
    if arguments.remove_password || options.not_really || folder.is_dir() {
        return Ok(());
    }
    let mut made = DirBuilder::new();
    let made = made.recursive(true).mode(0o700).create(folder);
    made.at(Kind::Config, "create", folder)
}

/// Runs any other command, on the side that the file of settings is for.
pub(super) fn run_command(
    command: &Command,
    word: &str,
    config: &Config,
    options: &Options,
    readiness: Readiness,
) -> Result<()> {
    use Config::{Host, Master, Standby};
    if let (Standby(own), Command::Receiver(_)) = (config, command) {
        standby::hosted::check_ends_alone(own, options)?;
    }
    match (config, command) {
        (Master(_) | Standby(_), _) if command.is_of_all() => Err(CommandError::usage(format!(
            "{}: --all takes a host's file, or its folder `clusters`",
            config.path().display()
        ))
        .hint(format!(
            "leave --all out: walmgr {} {word}",
            config.path().display()
        ))),

        (Master(own), Command::Identity) => identity::run(&own.tls, &own.job_name, options),
        (Master(own), Command::Setup(typed)) => master::setup::run(own, options, typed),
        (Master(own), Command::Stop) => master::stop::run(own, options),
        (Master(own), Command::Xarchive(typed)) => master::xarchive::run(own, options, typed),
        (Master(own), Command::Periodic) => master::periodic::run(own, options),
        (Master(own), Command::ListBackups(_)) => master::listbackups::run(own, options),
        (Master(own), Command::Status(typed)) => master::status::run(own, options, typed),
        (Master(own), Command::Restore(typed)) => master::restore::run(own, options, typed),
        (Master(own), Command::Xrestore(typed)) if typed.is_for_drill => {
            Err(wrong_side(word, "standby", &own.path))
        }
        (Master(own), Command::Xrestore(typed)) if typed.lays_behind => {
            master::xrestore::lay_behind(own, typed.name, &typed.path);
            Ok(())
        }
        (Master(own), Command::Xrestore(typed)) => {
            master::xrestore::run(own, options, typed.name, &typed.path)
        }
        (Master(own), Command::Backup(typed)) => master::backup::run(own, options, typed),
        (Master(own), Command::Cleanup(typed)) => master::cleanup::run(own, options, *typed),
        (Master(own), Command::Bench(typed)) => master::bench::run(own, options, typed),
        (Master(own), Command::Sync) => master::sync::run(own, options),
        (Master(own), Command::Syncdaemon(_)) => master::syncdaemon::run(own, options, readiness),

        (Master(own), Command::SynchStandby(typed)) => {
            master::synch_standby::run(own, options, typed)
        }

        (Standby(own), Command::Identity) => standby::hosted::print_identity(own, options),
        (Standby(own), Command::Setup(_)) => standby::setup::run(own, options),
        (Standby(own), Command::Authorize(typed)) => standby::authorize::run(own, options, typed),
        (Standby(own), Command::Revoke(typed)) => standby::revoke::run(own, options, typed),
        (Standby(own), Command::Receiver(_)) => {
            receiver::run(own, options, readiness, standby::status::sampled)
        }
        (Standby(own), Command::Xrestore(typed)) if typed.is_for_drill => {
            standby::xrestore::run_for_drill(own, typed.name, &typed.path)
        }
        (Standby(own), Command::Xrestore(typed)) if typed.lays_behind => {
            standby::xrestore::lay_behind(own, typed.name, &typed.path);
            Ok(())
        }
        (Standby(own), Command::Xrestore(typed)) => {
            standby::xrestore::run(own, options, typed.name, &typed.path)
        }
        (Standby(own), Command::Backup(typed)) => standby::backup::run(own, options, typed),
        (Standby(own), Command::ListBackups(_)) => standby::listbackups::run(own, options),
        (Standby(own), Command::Status(typed)) => standby::status::run(own, options, typed),
        (Standby(own), Command::Restore(typed)) => standby::restore::run(own, options, typed),
        (Standby(own), Command::Verify(typed)) => standby::verify::run(own, options, typed),
        (Standby(own), Command::CreateSlave(typed)) => {
            standby::createslave::run(own, options, typed)
        }
        (Standby(own), Command::Keep(typed)) => standby::keep::run(own, options, typed),
        (Standby(own), Command::Unkeep(typed)) => standby::unkeep::run(own, options, typed),
        (Standby(own), Command::Expire) => standby::expire::run(own, options),
        (Standby(own), Command::Xpurgewals) => standby::xpurgewals::run(own, options),
        (Standby(own), Command::Compress) => standby::compress::run(own, options),
        (Standby(own), Command::Xlock) => standby::xlock::run(own, options),
        (Standby(own), Command::Xrelease(typed)) => standby::xrelease::run(own, options, *typed),
        (Standby(own), Command::Xrotate) => standby::xrotate::run(own, options),
        (Standby(own), Command::Xpartialsync(typed)) => {
            standby::xpartialsync::run(own, options, *typed)
        }
        (Standby(own), Command::Cleanup(typed)) => standby::cleanup::run(own, options, *typed),
        (Standby(own), Command::Choose(typed)) => standby::choose::run(own, options, typed),
        (Standby(own), Command::Pause) => standby::pause::run(own, options),
        (Standby(own), Command::Continue) => standby::continue_::run(own, options),
        (Standby(own), Command::Drill(typed)) => standby::drill::run(own, options, typed),
        (Standby(own), Command::Boot(typed)) => standby::boot::run(own, options, *typed),

        (Host(own), Command::ListBackups(_)) => standby::all::listbackups(own, options),
        (Host(own), Command::Status(typed)) => standby::all::status(own, options, typed),
        (Host(own), Command::Verify(typed)) => standby::all::verify(own, options, typed),
        (Host(own), Command::Identity) => identity::run(&own.tls, &own.job_name, options),
        (Host(own), Command::Cleanup(typed)) => standby::cleanup::run_host(own, options, *typed),
        (Host(own), Command::Receiver(_)) => {
            receiver::run_host(own, options, readiness, standby::status::sampled)
        }

        (Master(own), _) => Err(wrong_side(word, "standby", &own.path)),
        (Standby(own), _) => Err(wrong_side(word, "master", &own.path)),
        (Host(own), _) => Err(own.not_for(word)),
    }
}

fn wrong_side(word: &str, side: &str, ini: &Path) -> CommandError {
    CommandError::usage(format!("`{word}` runs on the {side}"))
        .hint(format!("{} is the other side's file", ini.display()))
}
