//! `createslave`: makes the standby anew from the running master, by `pg_basebackup` over streaming replication.
//! Never makes a replication slot that stays. Invariant: it ends as `restore` ends, by the same code; until the base
//! backup is whole and durable the server in `slave_data` goes on running.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::restore;
use crate::config::StandbyConfig;
use crate::error::Result;
use crate::options::{Options, Restoring, tablespace_mapping};

/// What stood behind `createslave`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct CreateSlaveArgs {
    /// Put a tablespace elsewhere: OLD is its path on the master
    #[arg(long = "tablespace-mapping", value_name = "OLD=NEW")]
    #[arg(value_parser = OsStringValueParser::new().try_map(|text| tablespace_mapping(&text)))]
    tablespaces: Vec<(PathBuf, PathBuf)>,
    /// Keep settings of the master that run commands, load libraries or write elsewhere
    #[arg(long = "trust-settings")]
    trusts_settings: bool,
}

/// Makes it, or says what would be done.
pub(crate) fn run(
    config: &StandbyConfig,
    options: &Options,
    typed: &CreateSlaveArgs,
) -> Result<()> {
    let restoring = Restoring {
        tablespaces: typed.tablespaces.clone(),
        trusts_settings: typed.trusts_settings,
        ..Restoring::default()
    };
    restore::run_streamed(config, options, &restoring)
}
