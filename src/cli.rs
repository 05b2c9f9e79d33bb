//! The command line: `walmgr [options] <config.ini> <command> [args]`, and which code runs for it.
//! Never reads a file while parsing. Invariant: whatever is typed, `parse` answers with a run, a page
//! for stdout, or one line and exit code 2; it never exits and never prints by itself.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use walmgr_protocol::names::WalFileName;

use crate::abnormal::RESTORED_TO;
use crate::config::sample;
use crate::error::{CommandError, ExitTable, Result};
pub use crate::options::Options;
use crate::options::{Restoring, Thresholds};
use crate::output;
use crate::standby::choose::ChosenFile;

mod owner;
mod restore;
mod run;
mod set;
mod status;

pub use run::run;

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// Run this command.
    Run(Invocation),
    /// Print this page on stdout and be done: help or version.
    Print(String),
    /// Print the commented sample of both ini files (`--ini`).
    Sample,
    /// Say this on stderr and exit with this table's code.
    Usage(CommandError, ExitTable),
}

/// One command with everything that was typed for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Invocation {
    /// The file of settings; `init` creates it, every other command reads it.
    pub ini: PathBuf,
    /// The command and its own arguments.
    pub command: Command,
    /// The options of every command.
    pub options: Options,
}

/// The commands, each with its own arguments.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Write a first ini file and create the identity.
    Init(Init),
    /// Create the key and the certificate if they are absent; print the fingerprint.
    Identity,
    /// Let the owner of this fingerprint in.
    Authorize {
        /// `SHA256:…`, as the other side's `identity` prints it.
        fingerprint: String,
        /// What the log calls this peer.
        name: String,
        /// Some of `push`, `backup`, `read`; empty when `--rights` was not given.
        rights: Vec<String>,
    },
    /// Let a peer in no longer.
    Revoke {
        /// The name that `authorize` gave it.
        name: String,
    },
    /// Configure archiving on the master, or make the folders on the standby.
    Setup {
        /// Whether a segment has to arrive before `setup` calls itself done.
        check: bool,
    },
    /// Take the archiving settings out again.
    Stop,
    /// Archive one WAL file: PostgreSQL's `archive_command`.
    Xarchive {
        /// `%p`.
        path: PathBuf,
        /// `%f`.
        name: WalFileName,
    },
    /// Run `periodic_command` if its interval has passed.
    Periodic,
    /// Make a base backup.
    Backup {
        /// `--allow-left-out`: whether it may lack what cannot be taken.
        allow_left_out: bool,
    },
    /// Ship every whole record once.
    Sync,
    /// Ship them again and again.
    Syncdaemon,
    /// Receive on the standby.
    Receiver,
    /// Hand one WAL file to a recovering PostgreSQL: its `restore_command`.
    Xrestore {
        /// `%f`.
        name: WalFileName,
        /// `%p`.
        path: PathBuf,
    },
    /// List the backup sets.
    ListBackups,
    /// Say how it all stands, for people and for monitoring.
    Status(Thresholds),
    /// Bring a backup set back.
    Restore(Restoring),
    /// Remove WAL that no backup set needs.
    Xpurgewals,
    /// Show what is kept of a name besides what readers follow, and take it.
    Choose {
        /// The name.
        name: ChosenFile,
        /// Whether it is taken.
        take: bool,
    },
    /// Hold replay.
    Pause,
    /// Let replay go on.
    Continue,
    /// Replay what there is and open the database.
    Boot {
        /// Whether to wait until the database is open.
        wait: bool,
        /// Whether to open it although WAL is missing or damaged.
        force: bool,
    },
}

/// Which ini file `init` writes.
#[derive(Debug, PartialEq, Eq)]
pub enum Init {
    /// The master's.
    Master {
        /// The data directory; looked for when absent.
        pgdata: Option<PathBuf>,
        /// `HOST[:PORT]` of the receiver.
        slave: Option<String>,
        /// The fingerprint of the receiver's key.
        slave_fingerprint: Option<String>,
    },
    /// The standby's.
    Standby,
}

impl Command {
    /// The word that is typed for it.
    pub const fn word(&self) -> &'static str {
        match self {
            Command::Init(_) => "init",
            Command::Identity => "identity",
            Command::Authorize { .. } => "authorize",
            Command::Revoke { .. } => "revoke",
            Command::Setup { .. } => "setup",
            Command::Stop => "stop",
            Command::Xarchive { .. } => "xarchive",
            Command::Periodic => "periodic",
            Command::Backup { .. } => "backup",
            Command::Sync => "sync",
            Command::Syncdaemon => "syncdaemon",
            Command::Receiver => "receiver",
            Command::Xrestore { .. } => "xrestore",
            Command::ListBackups => "listbackups",
            Command::Status(_) => "status",
            Command::Restore(_) => "restore",
            Command::Xpurgewals => "xpurgewals",
            Command::Choose { .. } => "choose",
            Command::Pause => "pause",
            Command::Continue => "continue",
            Command::Boot { .. } => "boot",
        }
    }

    /// Which table its exit code comes from.
    pub const fn exit_table(&self) -> ExitTable {
        match self {
            Command::Xarchive { .. } => ExitTable::Xarchive,
            Command::Xrestore { .. } => ExitTable::Xrestore,
            _ => ExitTable::Ordinary,
        }
    }
}

/// Reads a command line, the program's own name first.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Parsed {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let table = table_of(&arguments);
    match parse_line(&arguments) {
        Ok(parsed) => parsed,
        Err(error) => Parsed::Usage(error, table),
    }
}

/// Prints the sample of `--ini`.
pub fn print_sample() -> Result<()> {
    output::print(&sample::all_samples())
}

/// Commands of the manual which this version does not have.
const ABSENT: [&str; 9] = [
    "synch-standby",
    "bench",
    "cleanup",
    "verify",
    "createslave",
    "xlock",
    "xrelease",
    "xrotate",
    "xpartialsync",
];

/// Commands that `-d`, `-r`, `-s` and `-k` are for.
const DAEMONS: [&str; 2] = ["receiver", "syncdaemon"];

const USAGE: &str = "walmgr [options] <config.ini> <command> [args]";

/// Ships PostgreSQL's WAL from a master to a standby
#[derive(Parser)]
#[command(name = "walmgr", version, override_usage = USAGE, disable_help_subcommand = true)]
#[command(propagate_version = true, args_override_self = true, term_width = 96)]
#[command(after_help = "A value of --set that has commas goes into quotes: \
    --set 'periodic_command=\"sync-files a,b\",loop_delay=5'")]
struct Line {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    daemon: DaemonFlags,
    /// Print a commented sample of both ini files and exit
    #[arg(long = "ini")]
    sample: bool,
    /// File of settings of this side
    #[arg(value_name = "config.ini")]
    ini: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Typed>,
}

// The options that may stand anywhere (a doc comment would become help text). Not clap's `global`: that lets the later of
// `-v master.ini setup -v` win, where both should count.
#[derive(Args, Default)]
struct Flags {
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Say more; xarchive and xrestore need it twice to say what they did
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Print what would be done, change nothing
    #[arg(short, long)]
    not_really: bool,
    /// Settings that win over the file's
    #[arg(long, value_name = "param=val[,param=val]", action = ArgAction::Append)]
    set: Vec<OsString>,
    /// Print for programs, not for people (identity, listbackups, status)
    #[arg(long)]
    json: bool,
}

#[derive(Args, Default)]
struct DaemonFlags {
    /// Go into the background once ready (receiver, syncdaemon)
    #[arg(short, long)]
    daemon: bool,
    /// Send SIGHUP to the running daemon: it reads its settings and keys again
    #[arg(short, long)]
    reload: bool,
    /// Send SIGINT to the running daemon, and wait: it finishes what is under way and ends
    #[arg(short, long)]
    stop: bool,
    /// The same with SIGTERM
    #[arg(short, long)]
    kill: bool,
}

#[derive(Subcommand)]
enum Typed {
    /// Write a first ini file, create the identity, say what to type next
    Init {
        /// Which side this is; otherwise --pgdata or --slave mean the master, else the file's name tells
        #[arg(value_enum)]
        side: Option<InitSide>,
        /// The master's data directory
        #[arg(long, value_name = "DIR")]
        pgdata: Option<PathBuf>,
        /// Where the receiver listens
        #[arg(long, value_name = "HOST[:PORT]")]
        slave: Option<String>,
        /// What `identity` prints on the standby
        #[arg(long, value_name = "FPR")]
        slave_fingerprint: Option<String>,
    },
    /// Create the key and certificate if absent; print the fingerprint
    Identity,
    /// Standby: let the owner of a fingerprint in
    Authorize {
        /// As the other side's `identity` prints it
        #[arg(value_name = "FPR")]
        fingerprint: String,
        /// What the log calls this peer
        #[arg(value_name = "NAME")]
        name: String,
        /// What it may do: add WAL, add backups, fetch; all three unless given
        #[arg(long, value_delimiter = ',', value_parser = ["push", "backup", "read"])]
        rights: Vec<String>,
    },
    /// Standby: let a peer in no longer
    Revoke {
        /// The name it was authorized under
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Master: configure archiving. Standby: make the folders
    Setup {
        /// Do not wait until a segment has arrived
        #[arg(long)]
        no_check: bool,
    },
    /// Master: take the archiving settings out again
    Stop,
    /// Master: archive one WAL file (the archive_command)
    Xarchive {
        /// %p
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// %f
        #[arg(value_name = "NAME")]
        name: WalFileName,
    },
    /// Master: run periodic_command if command_interval has passed
    Periodic,
    /// Master: make a base backup
    Backup {
        /// End with 0 although something in the data directory cannot be taken
        #[arg(long)]
        allow_left_out: bool,
    },
    /// Master: ship the records that the standby lacks, those of the segment in progress too
    Sync,
    /// Master: the daemon that does so every loop_delay
    Syncdaemon,
    /// Standby: the daemon that receives
    Receiver,
    /// Hand one WAL file to PostgreSQL (the restore_command)
    Xrestore {
        /// %f
        #[arg(value_name = "NAME")]
        name: WalFileName,
        /// %p
        #[arg(value_name = "PATH")]
        path: PathBuf,
        // All zeros before the first restartpoint, so it is no WalFileName.
        /// %r, which is accepted and not used: nothing is purged
        #[arg(value_name = "OLDEST")]
        _oldest_needed: Option<OsString>,
    },
    /// List the backup sets
    #[command(name = "listbackups")]
    ListBackups,
    /// Say how far the standby is behind, what it holds, and what is wrong: exit 0 fine, 1 warning, 2 critical
    Status(status::StatusArgs),
    /// Bring a backup set back and have it replay
    Restore(restore::RestoreArgs),
    /// Standby: remove the WAL that no backup set and no replay needs
    Xpurgewals,
    /// Standby: show what is kept of a WAL file besides what readers follow, or put it in its place
    Choose {
        /// Of which WAL file; or the name of what is kept beside it
        #[arg(value_name = "NAME")]
        name: ChosenFile,
        /// Put it in its place; what was there is kept
        #[arg(long)]
        take: bool,
    },
    /// Standby: hold replay once the segment under way is restored
    Pause,
    /// Standby: let replay go on
    Continue,
    /// Standby: replay everything there is, then open the database
    Boot {
        /// Do not wait until the database is open
        #[arg(long)]
        no_wait: bool,
        /// Open it although WAL is missing or damaged, without what comes after
        #[arg(long)]
        force: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InitSide {
    Master,
    Standby,
}

/// PostgreSQL's own commands are recognised even in a line that makes no sense otherwise, and a
/// `restore_command` even when its word is mistyped: one that exits with 2 opens the database.
fn table_of(arguments: &[OsString]) -> ExitTable {
    let restores = |argument: &OsString| {
        let argument = argument.to_string_lossy();
        RESTORED_TO.iter().any(|end| argument.ends_with(end))
    };
    if arguments.iter().skip(1).any(restores) {
        return ExitTable::Xrestore;
    }
    arguments
        .iter()
        .skip(1)
        .find_map(|argument| match argument.to_str() {
            Some("xarchive") => Some(ExitTable::Xarchive),
            Some("xrestore") => Some(ExitTable::Xrestore),
            _ => None,
        })
        .unwrap_or_default()
}

fn parse_line(arguments: &[OsString]) -> Result<Parsed> {
    let matches = match grammar().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return page_or_complaint(&error, arguments),
    };
    let line = Line::from_arg_matches(&matches).map_err(|error| complaint(&error))?;
    if line.sample {
        return Ok(Parsed::Sample);
    }
    let Some(command) = line.command else {
        return Err(no_command(line.ini.as_deref()));
    };
    let word = matches.subcommand_name().unwrap_or_default();
    let Some(ini) = line.ini else {
        return Err(CommandError::usage("the configuration file is missing")
            .hint(format!("type: walmgr <config.ini> {word}")));
    };
    let behind = matches.subcommand().map(|(_, behind)| behind);
    let flags = [
        Some(line.flags),
        behind.and_then(|behind| Flags::from_arg_matches(behind).ok()),
    ];
    let daemon = [
        Some(line.daemon),
        behind
            .filter(|_| DAEMONS.contains(&word))
            .and_then(|behind| DaemonFlags::from_arg_matches(behind).ok()),
    ];
    let options = options_of(flags.into_iter().flatten(), daemon.into_iter().flatten())?;
    let command = command_of(command, &ini)?;
    check_together(&command, &options)?;
    Ok(Parsed::Run(Invocation {
        ini,
        command,
        options,
    }))
}

/// The derived grammar with the common options accepted behind each command as well.
fn grammar() -> clap::Command {
    Line::command().mut_subcommands(|command| {
        let usage = format!("walmgr [options] <config.ini> {}", command.get_name());
        let positionals: Vec<String> = command
            .get_positionals()
            .map(|argument| match argument.is_required_set() {
                true => format!(" {argument}"),
                false => format!(" {}", argument.to_string().to_lowercase()),
            })
            .collect();
        let command = command
            .args_override_self(true)
            .override_usage(format!("{usage}{}", positionals.concat()));
        let command = match command.get_name() {
            word if DAEMONS.contains(&word) => DaemonFlags::augment_args(command),
            _ => command,
        };
        Flags::augment_args(command)
    })
}

fn options_of(
    flags: impl Iterator<Item = Flags>,
    daemon: impl Iterator<Item = DaemonFlags>,
) -> Result<Options> {
    let mut options = Options::default();
    for typed in flags {
        options.quiet |= typed.quiet;
        options.verbosity = options.verbosity.saturating_add(typed.verbose);
        options.not_really |= typed.not_really;
        options.json |= typed.json;
        for text in &typed.set {
            options.overrides.extend(set::parse(text)?);
        }
    }
    for typed in daemon {
        options.daemon |= typed.daemon;
        options.reload |= typed.reload;
        options.stop |= typed.stop;
        options.kill |= typed.kill;
    }
    Ok(options)
}

fn command_of(typed: Typed, ini: &Path) -> Result<Command> {
    Ok(match typed {
        Typed::Init {
            side,
            pgdata,
            slave,
            slave_fingerprint,
        } => {
            let typed = [slave, slave_fingerprint];
            Command::Init(init_of(side, pgdata, typed, ini)?)
        }
        Typed::Identity => Command::Identity,
        Typed::Authorize {
            fingerprint,
            name,
            rights,
        } => Command::Authorize {
            fingerprint,
            name,
            rights,
        },
        Typed::Revoke { name } => Command::Revoke { name },
        Typed::Setup { no_check } => Command::Setup { check: !no_check },
        Typed::Stop => Command::Stop,
        Typed::Xarchive { path, name } => Command::Xarchive { path, name },
        Typed::Periodic => Command::Periodic,
        Typed::Backup { allow_left_out } => Command::Backup { allow_left_out },
        Typed::Sync => Command::Sync,
        Typed::Syncdaemon => Command::Syncdaemon,
        Typed::Receiver => Command::Receiver,
        Typed::Xrestore { name, path, .. } => Command::Xrestore { name, path },
        Typed::ListBackups => Command::ListBackups,
        Typed::Status(typed) => Command::Status(typed.into_thresholds()?),
        Typed::Restore(typed) => Command::Restore(typed.into_restoring()?),
        Typed::Xpurgewals => Command::Xpurgewals,
        Typed::Choose { name, take } => Command::Choose { name, take },
        Typed::Pause => Command::Pause,
        Typed::Continue => Command::Continue,
        Typed::Boot { no_wait, force } => Command::Boot {
            wait: !no_wait,
            force,
        },
    })
}

/// There is no file yet that could tell the side, so the line has to.
fn init_of(
    side: Option<InitSide>,
    pgdata: Option<PathBuf>,
    [slave, slave_fingerprint]: [Option<String>; 2],
    ini: &Path,
) -> Result<Init> {
    let master_only = pgdata.is_some() || slave.is_some() || slave_fingerprint.is_some();
    let side = side
        .or(master_only.then_some(InitSide::Master))
        .or_else(|| side_named_by(ini));
    match side {
        Some(InitSide::Master) => Ok(Init::Master {
            pgdata,
            slave,
            slave_fingerprint,
        }),
        Some(InitSide::Standby) if master_only => Err(CommandError::usage(
            "--pgdata and --slave belong to the master's ini file, not to the standby's",
        )),
        Some(InitSide::Standby) => Ok(Init::Standby),
        None => Err(CommandError::usage(format!(
            "{} may be for the master or for the standby",
            ini.display()
        ))
        .hint("type `init master` or `init standby`")),
    }
}

fn side_named_by(ini: &Path) -> Option<InitSide> {
    let name = ini.file_name()?.to_string_lossy().to_lowercase();
    match (
        name.contains("master"),
        name.contains("standby") || name.contains("slave"),
    ) {
        (true, false) => Some(InitSide::Master),
        (false, true) => Some(InitSide::Standby),
        _ => None,
    }
}

/// The rules between options that the grammar cannot say.
fn check_together(command: &Command, options: &Options) -> Result<()> {
    let word = command.word();
    let daemon: Vec<&str> = [
        (options.daemon, "--daemon"),
        (options.reload, "--reload"),
        (options.stop, "--stop"),
        (options.kill, "--kill"),
    ]
    .into_iter()
    .filter_map(|(given, name)| given.then_some(name))
    .collect();
    match daemon[..] {
        [] => {}
        [one] if !DAEMONS.contains(&word) => {
            return Err(CommandError::usage(format!(
                "`{word}` is no daemon, it has no {one}"
            )));
        }
        [_] => {}
        [first, second, ..] => {
            return Err(CommandError::usage(format!(
                "{first} and {second} exclude each other"
            )));
        }
    }
    let has_json = matches!(
        command,
        Command::Identity | Command::ListBackups | Command::Status(_)
    );
    if options.json && !has_json {
        return Err(CommandError::usage(format!("`{word}` has no --json")));
    }
    if options.quiet && options.verbosity > 0 {
        return Err(CommandError::usage(
            "--quiet and --verbose exclude each other",
        ));
    }
    Ok(())
}

fn no_command(ini: Option<&Path>) -> CommandError {
    let hint = format!("type: {USAGE}; walmgr --help lists the commands");
    match ini {
        None => {
            CommandError::usage("the configuration file and the command are missing").hint(hint)
        }
        Some(word) => absent_or_late(word.as_os_str()).unwrap_or_else(|| {
            CommandError::usage(format!("the command is missing behind {}", word.display()))
                .hint(hint)
        }),
    }
}

/// For a word that is a command of the manual, but not one that could run where it stands.
fn absent_or_late(word: &OsStr) -> Option<CommandError> {
    let word = word.to_str()?;
    ABSENT.contains(&word).then(|| {
        CommandError::usage(format!(
            "this version does not have `{word}` yet; it has: {}",
            words().join(", ")
        ))
    })
}

/// The commands there are, as they are typed.
pub fn words() -> Vec<String> {
    Line::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect()
}

fn page_or_complaint(error: &clap::Error, arguments: &[OsString]) -> Result<Parsed> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Ok(Parsed::Print(error.render().to_string()))
        }
        _ => Err(misplaced_word(error, arguments).unwrap_or_else(|| complaint(error))),
    }
}

/// For a word where a command was expected. clap calls it an unknown command or an unexpected
/// argument, depending on whether a command of a similar name exists.
fn misplaced_word(error: &clap::Error, arguments: &[OsString]) -> Option<CommandError> {
    let word = text_of(error, ContextKind::InvalidSubcommand)
        .or_else(|| text_of(error, ContextKind::InvalidArg))
        .filter(|word| !word.starts_with('-'))?;
    let is_command =
        |word: &str| ABSENT.contains(&word) || words().iter().any(|known| known == word);
    let mut before = arguments
        .iter()
        .skip(1)
        .filter_map(|argument| argument.to_str())
        .take_while(|argument| *argument != word)
        .filter(|argument| !argument.starts_with('-'));
    let first = before.next();
    if let Some(first) = first.filter(|first| is_command(first)) {
        return Some(
            CommandError::usage("the configuration file comes before the command")
                .hint(format!("type: walmgr {word} {first}")),
        );
    }
    if before.any(is_command) {
        return None;
    }
    absent_or_late(OsStr::new(&word)).or_else(|| {
        let message = format!("there is no command `{word}`");
        let hint = format!("the commands are: {}", words().join(", "));
        let unknown = CommandError::usage(message).hint(hint);
        Some(match text_of(error, ContextKind::SuggestedSubcommand) {
            Some(near) => unknown.with_tip(format!("did you mean `{near}`?")),
            None => unknown,
        })
    })
}

fn text_of(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        // The nearest comes last.
        ContextValue::Strings(texts) => texts.last().cloned(),
        _ => None,
    }
}

/// clap's complaint, which takes many lines, as one.
fn complaint(error: &clap::Error) -> CommandError {
    let text = error.render().to_string();
    let mut parts: Vec<&str> = Vec::new();
    let mut tip = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        match line.strip_prefix("tip: ") {
            // To put `--` in front of a mistyped option helps nobody.
            Some(text) if !text.starts_with("to pass") => tip = Some(text.to_owned()),
            Some(_) => {}
            None => parts.push(line.trim_start_matches("error: ")),
        }
    }
    let complaint = CommandError::usage(parts.join(" ")).hint("see walmgr --help");
    match tip {
        Some(tip) => complaint.with_tip(tip),
        None => complaint,
    }
}

#[cfg(test)]
mod tests;
