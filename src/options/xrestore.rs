//! The arguments of `xrestore`, which PostgreSQL gives as its `restore_command`.
//! Never reads what they name. Invariant: the name is one that WAL, a history or a backup's label has.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use walmgr_protocol::names::WalFileName;

/// What stood behind `xrestore`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct XrestoreArgs {
    /// %f
    #[arg(value_name = "NAME")]
    pub name: WalFileName,
    /// %p
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    // All zeros before the first restartpoint, so it is no WalFileName.
    /// %r, which is accepted and not used: nothing is purged
    #[arg(value_name = "OLDEST")]
    _oldest_needed: Option<OsString>,
    /// For the server of a drill, whose `restore_command` has it
    #[arg(long = "drill", hide = true)]
    pub is_for_drill: bool,
    /// For the process that lays the segments behind NAME ready, which `xrestore` begins itself
    #[arg(long = "lay-behind", hide = true)]
    pub lays_behind: bool,
}
