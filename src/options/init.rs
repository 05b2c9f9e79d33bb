//! The arguments of `init`, and which side they are for.
//! Never looks at the file that is to be written. Invariant: what belongs to the master's file is never taken for
//! the standby's.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::error::{CommandError, Result};

/// What stood behind `init`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct InitArgs {
    /// The side that this is; otherwise --slave or --pgdata mean the master, else the file's name tells
    #[arg(value_enum)]
    side: Option<InitSide>,
    /// Write the file of a host whose receiver serves many clusters
    #[arg(long, conflicts_with_all = ["side", "pgdata", "slave", "slave_fingerprint"])]
    host: bool,
    /// Take the server in this data directory
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Ship to the receiver at this address
    #[arg(long, value_name = "HOST[:PORT]")]
    pub slave: Option<String>,
    /// Trust the receiver with this fingerprint, which `identity` prints on the standby
    #[arg(long, value_name = "FPR")]
    pub slave_fingerprint: Option<String>,
    /// Standby: listen at this address, such as 0.0.0.0:7432, so that the master can reach it
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with_all = ["slave", "slave_fingerprint", "host", "remove_password"])]
    pub listen: Option<String>,
    /// Standby: make the folders too, and start the receiver: its unit where systemd runs, otherwise in the background
    #[arg(long, conflicts_with_all = ["slave", "slave_fingerprint", "host", "remove_password"])]
    pub start: bool,
    /// For the process that root starts as the owner of the settings: the unit is started by root
    #[arg(long, hide = true, requires = "start")]
    pub unit_follows: bool,
    /// Standby: have its server stream from there
    #[arg(long, value_name = "STRING")]
    pub primary_conninfo: Option<String>,
    /// Standby: put the password in this file into .pgpass, for the server of primary_conninfo
    #[arg(long, value_name = "FILE")]
    pub add_password: Option<PathBuf>,
    /// Standby: take that line out of .pgpass, and do nothing else
    #[arg(long, conflicts_with_all = ["add_password", "pgdata", "slave", "slave_fingerprint", "host"])]
    pub remove_password: bool,
    /// What was typed for it
    #[arg(skip)]
    pub old: Option<OldInit>,
}

/// An option of Skytools that was typed, and the line that stands for it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OldInit {
    /// The option.
    pub option: &'static str,
    /// The line.
    pub line: String,
}

/// Whose ini file `init` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InitSide {
    Master,
    Standby,
    /// A host whose receiver serves many clusters, as with --host
    Host,
}

impl InitArgs {
    /// What `--init-master` was typed with.
    pub(crate) fn of_master(pgdata: Option<PathBuf>, slave: Option<String>) -> InitArgs {
        InitArgs {
            side: Some(InitSide::Master),
            pgdata,
            slave,
            ..InitArgs::default()
        }
    }

    /// What `--init-slave` was typed with.
    pub(crate) fn of_standby(
        pgdata: Option<PathBuf>,
        primary_conninfo: Option<String>,
        add_password: Option<PathBuf>,
    ) -> InitArgs {
        InitArgs {
            side: Some(InitSide::Standby),
            pgdata,
            primary_conninfo,
            add_password,
            ..InitArgs::default()
        }
    }

    /// What `--remove-password` was typed with.
    pub(crate) fn of_password(primary_conninfo: Option<String>) -> InitArgs {
        InitArgs {
            side: Some(InitSide::Standby),
            primary_conninfo,
            remove_password: true,
            ..InitArgs::default()
        }
    }

    /// These arguments, noting which option of Skytools was typed for them.
    pub(crate) fn typed_as(mut self, old: OldInit) -> InitArgs {
        self.old = Some(old);
        self
    }

    /// The words behind the ini file, `init` first.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words = vec!["init".to_owned()];
        words.extend(self.side.map(|side| match side {
            InitSide::Master => "master".to_owned(),
            InitSide::Standby => "standby".to_owned(),
            InitSide::Host => "host".to_owned(),
        }));
        let path = |path: &PathBuf| path.display().to_string();
        for (name, value) in [
            ("--pgdata", self.pgdata.as_ref().map(path)),
            ("--slave", self.slave.clone()),
            ("--slave-fingerprint", self.slave_fingerprint.clone()),
            ("--listen", self.listen.clone()),
            (
                "--primary-conninfo",
                self.primary_conninfo.as_ref().map(|_| "...".to_owned()),
            ),
            ("--add-password", self.add_password.as_ref().map(path)),
        ] {
            words.extend(value.into_iter().flat_map(|value| [name.to_owned(), value]));
        }
        for (name, is_given) in [
            ("--start", self.start),
            ("--remove-password", self.remove_password),
        ] {
            words.extend(is_given.then(|| name.to_owned()));
        }
        words
    }

    /// There is no file yet that could tell the side, so the line has to.
    pub(crate) fn side(&self, ini: &Path) -> Result<InitSide> {
        let master_only = self.slave.is_some() || self.slave_fingerprint.is_some();
        let standby_only = self.primary_conninfo.is_some()
            || self.add_password.is_some()
            || self.remove_password
            || self.listen.is_some()
            || self.start;
        let side = self
            .side
            .or(self.host.then_some(InitSide::Host))
            .or((master_only).then_some(InitSide::Master))
            .or(standby_only.then_some(InitSide::Standby))
            .or(self.pgdata.is_some().then_some(InitSide::Master))
            .or_else(|| side_named_by(ini));
        match side {
            Some(InitSide::Standby | InitSide::Host) if master_only => Err(CommandError::usage(
                "--slave and --slave-fingerprint belong to the master's ini file, not to the standby's",
            )),
            Some(InitSide::Master | InitSide::Host) if standby_only => Err(CommandError::usage(
                "--listen, --start, --primary-conninfo, --add-password and --remove-password belong to the standby's ini file",
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
