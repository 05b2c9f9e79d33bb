//! The arguments of `backup`, which both sides have.
//! Never looks at a data directory. Invariant: without them a set that lacks something fails the command.

use clap::Args;

/// What stood behind `backup`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct BackupArgs {
    /// End with 0 although something in the data directory cannot be taken
    #[arg(long)]
    pub allow_left_out: bool,

    /// Take everything anew, although an older backup holds most of it
    #[arg(long)]
    pub full: bool,
}
