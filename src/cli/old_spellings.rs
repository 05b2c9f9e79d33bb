//! Options of Skytools 3 that do what a command does, without an ini file.
//! Never runs anything. Invariant: what such an option becomes is the command of its name, so both do the same.

use std::path::{Path, PathBuf};

use clap::Args;

use super::command::Command;
use crate::error::{CommandError, Result};
use crate::master::synch_standby::SynchStandbyArgs;

/// They are for whoever knows them, and in no help text.
#[derive(Debug, Default, Args)]
pub(super) struct OldSpellings {
    #[arg(long = "synch-standby", value_name = "NAMES", hide = true)]
    synch_standby: Option<String>,
    #[arg(long = "pgdata", value_name = "DIR", hide = true)]
    pgdata: Option<PathBuf>,
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
    /// The command that they stand for, if there is one.
    pub(super) fn command(
        self,
        ini: Option<&Path>,
        command: Option<&Command>,
    ) -> Result<Option<OldSpelled>> {
        let Some(names) = self.synch_standby else {
            return match self.pgdata {
                Some(_) => Err(CommandError::usage("--pgdata belongs to --synch-standby")
                    .hint("or behind `init`: walmgr master.ini init --pgdata DIR --slave HOST")),
                None => Ok(None),
            };
        };
        if command.is_some() {
            return Err(
                CommandError::usage("--synch-standby is a command by itself")
                    .hint("leave the other one out"),
            );
        }
        if let (Some(ini), Some(_)) = (ini, &self.pgdata) {
            return Err(CommandError::usage(format!(
                "--pgdata is for a line without an ini file, and {} names the data directory",
                ini.display()
            ))
            .hint("leave out either"));
        }
        let pgdata = self.pgdata;
        Ok(Some(OldSpelled {
            ini: ini.map(Path::to_path_buf).unwrap_or_default(),
            word: "synch-standby",
            command: Command::SynchStandby(SynchStandbyArgs { names, pgdata }),
        }))
    }
}
