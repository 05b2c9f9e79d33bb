//! The cluster beside walmgr: its control file, data directory, settings, and SQL.
//! Never decides what a command does with what it finds here. Invariant: nothing blocks forever
//! and nothing from a disk or a server can make it panic.

pub mod archive_command;
pub mod backup_label;
pub mod command;
pub mod conf;
pub mod conninfo;
pub mod control;
pub mod crossing;
pub mod data_directory;
pub mod dial;
pub mod encryption;
#[cfg(test)]
mod fixtures;
pub mod fuzzing;
pub mod grants;
pub mod group_access;
pub mod hba;
pub mod in_reach;
pub mod later_tablespaces;
pub mod layout;
pub mod left_out;
pub mod leftovers;
pub mod listed;
pub mod location;
pub mod manifest;
pub mod mounts;
pub mod needs;
pub mod page;
pub mod recovery;
pub mod relation;
pub mod roots;
mod settle;
pub mod sql;
pub mod sql_backup;
pub mod sql_replay;
pub mod sql_settings;
pub mod tablespace_map;
pub mod walk;
#[cfg(test)]
mod walk_tests;
pub mod wanted;
