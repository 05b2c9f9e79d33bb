//! What may stand in a command line, and where: the options that every command takes, and the commands.
//! Never says which code runs. Invariant: an option means the same before the ini file, behind it and behind the
//! command.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::command::{Command, DaemonFlags};
use super::old_spellings::OldSpellings;
use super::set;
use crate::error::{CommandError, Result};
use crate::master::xarchive::XarchiveArgs;
use crate::options::{Options, XrestoreArgs};

/// How a line looks.
pub(super) const USAGE: &str = "walmgr [options] <config.ini> <command> [args]";

/// Ships PostgreSQL's WAL from a master to a standby
#[derive(Parser)]
#[command(name = "walmgr", version, override_usage = USAGE, disable_help_subcommand = true)]
#[command(propagate_version = true, args_override_self = true, term_width = 96)]
#[command(after_help = "A value of --set that has commas goes into quotes: \
    --set 'periodic_command=\"sync-files a,b\",loop_delay=5'\n\
    The manual is in the program: walmgr help lists its pages, walmgr help TOPIC prints one.")]
pub(super) struct Line<Commands: Subcommand = Command> {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    daemon: DaemonFlags,
    #[command(flatten)]
    pub old_spellings: OldSpellings,
    /// Print a commented sample of both ini files and exit
    #[arg(long = "ini")]
    pub sample: bool,
    /// Write manual pages, completions or the reference, for whoever makes a package
    #[arg(long, hide = true, num_args = 2, value_names = ["KIND", "DIR"])]
    pub generate: Vec<OsString>,
    /// The file of settings of this side
    #[arg(value_name = "config.ini")]
    pub ini: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Option<Commands>,
}

/// What PostgreSQL types, once for every segment: the grammar of all commands takes long to build beside the work itself
/// (`benches/README.md`, compare.sh).
#[derive(Subcommand)]
enum OfPostgres {
    Xarchive(XarchiveArgs),
    Xrestore(XrestoreArgs),
}

impl From<OfPostgres> for Command {
    fn from(typed: OfPostgres) -> Command {
        match typed {
            OfPostgres::Xarchive(typed) => Command::Xarchive(typed),
            OfPostgres::Xrestore(typed) => Command::Xrestore(typed),
        }
    }
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
    /// Let these settings win over the file's
    #[arg(long, value_name = "param=val[,param=val]", action = ArgAction::Append)]
    set: Vec<OsString>,
    /// Print for programs, not for people (identity, listbackups, status)
    #[arg(long)]
    json: bool,
}

/// A line that fits, and the word of its command.
pub(super) struct Typed {
    pub line: Line,
    pub word: String,
    behind: Option<Flags>,
}

/// Takes a line apart, the program's own name first.
pub(super) fn read(arguments: &[OsString]) -> std::result::Result<Typed, clap::Error> {
    match read_of_postgres(arguments) {
        Some(typed) => Ok(typed),
        None => read_with::<Command>(arguments),
    }
}

/// A line that PostgreSQL types. `None` if it is another one, or there is a mistake in it: whoever knows all commands
/// says which.
fn read_of_postgres(arguments: &[OsString]) -> Option<Typed> {
    let mut words = arguments.iter().skip(1);
    if !words.any(|word| word == "xarchive" || word == "xrestore") {
        return None;
    }
    let typed = read_with::<OfPostgres>(arguments).ok()?;
    // The word of another command would be taken for the file's name.
    let is_path = |ini: &PathBuf| {
        let name = ini.as_os_str().as_bytes();
        name.contains(&b'.') || name.contains(&b'/')
    };
    typed.line.ini.as_ref().filter(|ini| is_path(ini))?;
    Some(typed)
}

fn read_with<Commands>(arguments: &[OsString]) -> std::result::Result<Typed, clap::Error>
where
    Commands: Subcommand + Into<Command>,
{
    let matches = grammar_of::<Commands>().try_get_matches_from(arguments)?;
    let behind = matches.subcommand().map(|(_, behind)| behind);
    let line = Line::<Commands>::from_arg_matches(&matches)?;
    let line = Line {
        command: line.command.map(Into::into),
        flags: line.flags,
        daemon: line.daemon,
        old_spellings: line.old_spellings,
        sample: line.sample,
        generate: line.generate,
        ini: line.ini,
    };
    Ok(Typed {
        line,
        word: matches.subcommand_name().unwrap_or_default().to_owned(),
        behind: behind.map(Flags::from_arg_matches).transpose()?,
    })
}

/// The commands there are, as they are typed.
pub fn words() -> Vec<String> {
    Line::<Command>::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect()
}

/// The derived grammar with the common options accepted behind each command as well.
pub(super) fn grammar() -> clap::Command {
    grammar_of::<Command>()
}

fn grammar_of<Commands: Subcommand>() -> clap::Command {
    Line::<Commands>::command().mut_subcommands(|command| {
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
        Flags::augment_args(command)
    })
}

impl Typed {
    /// The options of every command, from wherever they stood.
    pub(super) fn options(&self, command: &Command) -> Result<Options> {
        let mut options = Options::default();
        for typed in [Some(&self.line.flags), self.behind.as_ref()]
            .into_iter()
            .flatten()
        {
            options.quiet |= typed.quiet;
            options.verbosity = options.verbosity.saturating_add(typed.verbose);
            options.not_really |= typed.not_really;
            options.json |= typed.json;
            for text in &typed.set {
                options.overrides.extend(set::parse(text)?);
            }
        }
        let behind = command.daemon_flags();
        for typed in [Some(&self.line.daemon), behind].into_iter().flatten() {
            options.daemon |= typed.daemon;
            options.reload |= typed.reload;
            options.stop |= typed.stop;
            options.kill |= typed.kill;
        }
        Ok(options)
    }

    /// The rules between options that the grammar cannot say.
    pub(super) fn check_together(&self, command: &Command, options: &Options) -> Result<()> {
        let word = &self.word;
        let refused = |what: String| Err(CommandError::usage(what));
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
            [one] if command.daemon_flags().is_none() => {
                return refused(format!("`{word}` is no daemon, it has no {one}"));
            }
            [first, second, ..] => {
                return refused(format!("{first} and {second} exclude each other"));
            }
            _ => {}
        }
        if options.json && !command.has_json() {
            return refused(format!("`{word}` has no --json"));
        }
        if options.quiet && options.verbosity > 0 {
            return refused("--quiet and --verbose exclude each other".to_owned());
        }
        match command {
            Command::Restore(restoring) => restoring.target.check(),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What came of a line: what is run, or that it is refused.
    fn outcome(typed: std::result::Result<Typed, clap::Error>) -> Option<String> {
        let typed = typed.ok()?;
        let command = typed.line.command.as_ref();
        let options = command.map(|command| {
            let options = typed.options(command).map_err(|error| error.to_string());
            options.and_then(|options| {
                let checked = typed.check_together(command, &options);
                checked.map_err(|error| error.to_string())?;
                Ok(options)
            })
        });
        let (ini, word) = (&typed.line.ini, &typed.word);
        Some(format!("{ini:?} {word} {command:?} {options:?}"))
    }

    fn agrees(words: &[&str]) -> bool {
        let line = ["walmgr"].iter().chain(words).map(OsString::from);
        let line: Vec<OsString> = line.collect();
        let whole = outcome(read_with::<Command>(&line));
        let is_same = outcome(read(&line)) == whole;
        assert!(is_same, "{words:?}: {whole:?}");
        read_of_postgres(&line).is_some()
    }

    #[test]
    fn what_postgresql_types_needs_no_grammar_of_the_other_commands() {
        let segment = "000000010000000000000005";
        for line in [
            &["/etc/m.ini", "xarchive", "pg_wal/x", segment][..],
            &["-q", "m.ini", "xrestore", segment, "pg_wal/y", segment],
            &["m.ini", "-v", "xrestore", "-v", segment, "pg_wal/y"],
            &["m.ini", "xarchive", "--set", "a=1,b=2", "pg_wal/x", segment],
        ] {
            assert!(agrees(line), "{line:?}");
        }
        for line in [
            &["status", "xarchive", "pg_wal/x", segment][..],
            &["m.ini", "status", "xarchive"],
            &["m.ini", "xrestore", "setup", "setup"],
            &["m.ini", "xarchive", "--help"],
            &["--help", "m.ini", "xarchive"],
            &["xarchive", "m.ini"],
        ] {
            assert!(!agrees(line), "{line:?}");
        }
    }

    /// What may stand in a line.
    const WORDS: [&str; 24] = [
        "m.ini",
        "/etc/s.ini",
        "name",
        "xarchive",
        "xrestore",
        "status",
        "setup",
        "restore",
        "-q",
        "-v",
        "-n",
        "-d",
        "--set",
        "a=b",
        "--json",
        "--",
        "pg_wal/RECOVERYXLOG",
        "000000010000000000000005",
        "-s",
        "--all",
        "--ini",
        "-k",
        "00000002.history",
        "--version",
    ];

    fn words(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<&'static str>> {
        proptest::collection::vec(proptest::sample::select(WORDS.to_vec()), count)
    }

    /// A line such as PostgreSQL types, with words that do not belong there wherever something may stand.
    fn nearly_of_postgresql() -> impl Strategy<Value = Vec<&'static str>> {
        let command = proptest::sample::select(vec!["xarchive", "xrestore"]);
        let parts = (
            words(0..2),
            words(0..2),
            command,
            words(0..2),
            any::<bool>(),
        );
        parts.prop_map(|(first, second, command, third, is_turned)| {
            let mut files = ["pg_wal/RECOVERYXLOG", "000000010000000000000005"];
            if is_turned {
                files.reverse();
            }
            [&first[..], &["m.ini"], &second, &[command], &third, &files].concat()
        })
    }

    proptest! {
        #[test]
        fn a_line_means_the_same_to_both_grammars(
            words in prop_oneof![words(0..8), nearly_of_postgresql()]
        ) {
            agrees(&words);
        }
    }
}
