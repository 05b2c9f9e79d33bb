//! The arguments of `init`, and which side they are for.
//! Never looks at the file that is to be written. Invariant: what belongs to the master's file is never taken for
//! the standby's.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::error::{CommandError, Result};

/// What stood behind `init`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct InitArgs {
    /// Which side this is; otherwise --pgdata or --slave mean the master, else the file's name tells
    #[arg(value_enum)]
    side: Option<InitSide>,
    /// The file of a host whose receiver serves many clusters
    #[arg(long, conflicts_with_all = ["side", "pgdata", "slave", "slave_fingerprint"])]
    host: bool,
    /// The master's data directory
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Where the receiver listens
    #[arg(long, value_name = "HOST[:PORT]")]
    pub slave: Option<String>,
    /// What `identity` prints on the standby
    #[arg(long, value_name = "FPR")]
    pub slave_fingerprint: Option<String>,
}

/// Whose ini file `init` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InitSide {
    Master,
    Standby,
    /// The same as --host
    Host,
}

impl InitArgs {
    /// There is no file yet that could tell the side, so the line has to.
    pub(crate) fn side(&self, ini: &Path) -> Result<InitSide> {
        let master_only =
            self.pgdata.is_some() || self.slave.is_some() || self.slave_fingerprint.is_some();
        let side = self
            .side
            .or(self.host.then_some(InitSide::Host))
            .or(master_only.then_some(InitSide::Master))
            .or_else(|| side_named_by(ini));
        match side {
            Some(InitSide::Standby | InitSide::Host) if master_only => Err(CommandError::usage(
                "--pgdata and --slave belong to the master's ini file, not to the standby's",
            )),
            Some(side) => Ok(side),
            None => Err(CommandError::usage(format!(
                "{} may be for the master or for the standby",
                ini.display()
            ))
            .hint("type `init master` or `init standby`, or `init --host` where one receiver serves many clusters")),
        }
    }
}

fn side_named_by(ini: &Path) -> Option<InitSide> {
    // The folder that `init --host` makes: whatever lies there is a cluster's.
    if ini
        .parent()
        .is_some_and(|folder| folder.ends_with("clusters.d"))
    {
        return Some(InitSide::Standby);
    }
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
