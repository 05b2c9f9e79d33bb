//! Options of Skytools 3 that were commands without an ini file: what stands for each today.
//! Never does the work: each becomes the command that a person would type now. Invariant: the options of ssh change
//! nothing, whatever stands beside them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use super::command::Command;
use super::owner::quoted;
use crate::error::{CommandError, Result};
use crate::master::synch_standby::SynchStandbyArgs;
use crate::options::{InitArgs, OldInit};

/// Where Skytools kept the ini files that it wrote.
const CONFIG_DIR: &str = "~/conf";

/// The names that it gave them.
const MASTER_INI: &str = "wal-master.ini";
const STANDBY_INI: &str = "wal-slave.ini";

// Hidden: the page of help names the commands that replace them (a doc comment would become help text).
#[derive(Args, Debug, Default, PartialEq, Eq)]
pub(super) struct OldSpellings {
    #[arg(long, hide = true, value_name = "NAMES")]
    synch_standby: Option<String>,
    #[arg(long, hide = true)]
    init_master: bool,
    #[arg(long, hide = true)]
    init_slave: bool,
    #[arg(long, hide = true, value_name = "HOST[:PORT]")]
    slave: Option<String>,
    #[arg(long, hide = true, value_name = "DIR")]
    pgdata: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "STRING")]
    primary_conninfo: Option<String>,
    #[arg(long, hide = true, value_name = "FILE")]
    add_password: Option<PathBuf>,
    #[arg(long, hide = true)]
    remove_password: bool,
    #[arg(long, hide = true)]
    ssh_keygen: bool,
    #[arg(long, hide = true, value_name = "FILE")]
    ssh_add_key: Option<OsString>,
    #[arg(long, hide = true, value_name = "KEY")]
    ssh_remove_key: Option<OsString>,
}

/// A command that was spelled as an option.
pub(super) struct OldSpelled {
    /// The file that stood beside it; empty where there was none and none is needed.
    pub ini: PathBuf,
    /// The command's word.
    pub word: &'static str,
    pub command: Command,
}

impl OldSpellings {
    /// The command that they stand for, if there is one. `ini` and `word` are what was typed beside them.
    pub(super) fn command(
        self,
        ini: Option<&Path>,
        word: Option<&str>,
    ) -> Result<Option<OldSpelled>> {
        if self == OldSpellings::default() {
            return Ok(None);
        }
        self.refuse_ssh()?;
        let kinds = [
            (self.synch_standby.is_some(), "--synch-standby"),
            (self.init_master, "--init-master"),
            (self.init_slave, "--init-slave"),
            (self.remove_password, "--remove-password"),
        ];
        let given: Vec<&str> = (kinds.into_iter())
            .filter_map(|(is_given, name)| is_given.then_some(name))
            .collect();
        let kind = match given[..] {
            [kind] => kind,
            [first, second, ..] => {
                let says = format!("{first} and {second} exclude each other");
                return Err(CommandError::usage(says));
            }
            [] => return Err(self.stray(ini, word)),
        };
        if let Some(word) = word {
            let says = format!("{kind} is a command by itself, and `{word}` is another");
            return Err(CommandError::usage(says).hint("type them one after the other"));
        }
        self.refuse_of_others(kind)?;
        if let Some(names) = self.synch_standby {
            return synch_standby(names, self.pgdata, ini).map(Some);
        }
        let folder = self.config_dir.unwrap_or_else(|| CONFIG_DIR.into());
        let name = match kind {
            "--init-master" => MASTER_INI,
            _ => STANDBY_INI,
        };
        let at_home = expanded(&folder).join(name);
        let typed = match kind {
            "--init-master" => InitArgs::of_master(self.pgdata, self.slave),
            "--init-slave" => {
                InitArgs::of_standby(self.pgdata, self.primary_conninfo, self.add_password)
            }
            _ => InitArgs::of_password(self.primary_conninfo),
        };
        let ini = ini.map_or(at_home, Path::to_path_buf);
        let old = OldInit {
            option: kind,
            line: shown(&ini, &typed),
        };
        Ok(Some(OldSpelled {
            ini,
            word: "init",
            command: Command::Init(typed.typed_as(old)),
        }))
    }

    fn refuse_ssh(&self) -> Result<()> {
        let (option, hint) = if self.ssh_keygen {
            let by = "`walmgr INI identity` makes this side's key, and `init` does so by itself";
            ("--ssh-keygen", format!("leave it out: {by}"))
        } else if self.ssh_add_key.is_some() {
            let line = "walmgr STANDBY.ini authorize SHA256:... NAME";
            let why = "with the fingerprint that `walmgr MASTER.ini identity` prints on the master";
            ("--ssh-add-key", format!("type: {line}, {why}"))
        } else if self.ssh_remove_key.is_some() {
            let line = "walmgr STANDBY.ini revoke NAME";
            (
                "--ssh-remove-key",
                format!("type: {line}, with the name that authorized_keys has"),
            )
        } else {
            return Ok(());
        };
        let says = format!("{option}: walmgr does not use ssh; nothing was changed");
        Err(CommandError::usage(says).hint(hint))
    }

    /// Options that one of the three does not have.
    fn refuse_of_others(&self, kind: &str) -> Result<()> {
        let master = ["--init-master"].as_slice();
        let standby = ["--init-slave"].as_slice();
        let connecting = ["--init-slave", "--remove-password"].as_slice();
        let both = ["--init-master", "--init-slave"].as_slice();
        let of_server = ["--init-master", "--init-slave", "--synch-standby"].as_slice();
        for (is_given, name, of) in [
            (self.slave.is_some(), "--slave", master),
            (self.pgdata.is_some(), "--pgdata", of_server),
            (
                self.config_dir.is_some() && !self.remove_password,
                "--config-dir",
                both,
            ),
            (self.add_password.is_some(), "--add-password", standby),
            (
                self.primary_conninfo.is_some(),
                "--primary-conninfo",
                connecting,
            ),
        ] {
            if is_given && !of.contains(&kind) {
                let says = format!("{name} goes with {}, not with {kind}", of.join(" or "));
                return Err(CommandError::usage(says).hint(format!("leave {name} out")));
            }
        }
        Ok(())
    }

    /// One that only goes with another.
    fn stray(&self, ini: Option<&Path>, word: Option<&str>) -> CommandError {
        let (name, with) = if self.slave.is_some() {
            ("--slave", "--init-master")
        } else if self.pgdata.is_some() {
            ("--pgdata", "--init-master or --synch-standby")
        } else if self.config_dir.is_some() {
            ("--config-dir", "--init-master or --init-slave")
        } else {
            (
                match self.add_password {
                    Some(_) => "--add-password",
                    None => "--primary-conninfo",
                },
                "--init-slave",
            )
        };
        let hint = match (ini, word) {
            (Some(ini), Some("init")) => format!(
                "behind the command it is an option of `init`: walmgr {} init {name} ...",
                quoted(&ini.to_string_lossy())
            ),
            _ => format!("add {with}, or leave {name} out"),
        };
        CommandError::usage(format!("{name} goes with {with}")).hint(hint)
    }
}

fn synch_standby(names: String, pgdata: Option<PathBuf>, ini: Option<&Path>) -> Result<OldSpelled> {
    if let (Some(ini), Some(_)) = (ini, &pgdata) {
        return Err(CommandError::usage(format!(
            "--pgdata is for a line without an ini file, and {} names the data directory",
            ini.display()
        ))
        .hint("leave out either"));
    }
    Ok(OldSpelled {
        ini: ini.map(Path::to_path_buf).unwrap_or_default(),
        word: "synch-standby",
        command: Command::SynchStandby(SynchStandbyArgs { names, pgdata }),
    })
}

/// A shell leaves the tilde of `--config-dir=~/conf` as it is.
fn expanded(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) if home.is_absolute() => home.join(rest),
        _ => path.to_path_buf(),
    }
}

/// The line as it is typed today.
fn shown(ini: &Path, typed: &InitArgs) -> String {
    let mut words = vec!["walmgr".to_owned(), quoted(&ini.to_string_lossy())];
    words.extend(typed.words().iter().map(|word| quoted(word)));
    words.join(" ")
}
