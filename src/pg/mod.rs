//! The PostgreSQL cluster: its control file, data directory, settings, and SQL.
//! Never decides what a command does with these facts. Invariant: nothing blocks forever
//! and nothing from a disk or a server can make it panic.

pub(crate) mod archive_command;
pub(crate) mod backup_history;
pub(crate) mod backup_label;
pub(crate) mod backup_note;
pub(crate) mod base_backup;
pub(crate) mod command;
pub(crate) mod conf;
pub(crate) mod conninfo;
pub(crate) mod control;
pub(crate) mod crossing;
pub(crate) mod data_directory;
pub(crate) mod dial;
pub(crate) mod encryption;
pub(crate) mod event_loop;
#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod fuzzing;
pub(crate) mod grants;
pub(crate) mod group_access;
pub(crate) mod hashed_pages;
pub(crate) mod hba;
pub(crate) mod in_reach;
pub(crate) mod later_tablespaces;
pub(crate) mod layout;
pub(crate) mod left_out;
pub(crate) mod leftovers;
pub(crate) mod listed;
pub(crate) mod location;
pub(crate) mod manifest;
pub(crate) mod mounts;
pub(crate) mod needs;
pub(crate) mod old_files;
pub(crate) mod page;
pub(crate) mod programs;
pub(crate) mod recovery;
pub(crate) mod relation;
pub(crate) mod replication_messages;
pub(crate) mod replication_stream;
pub(crate) mod roots;
pub(crate) mod server_unit;
pub(crate) mod set_place;
mod settle;
pub(crate) mod sql;
pub(crate) mod sql_backup;
pub(crate) mod sql_replay;
pub(crate) mod sql_replication;
pub(crate) mod sql_settings;
pub(crate) mod sql_standbys;
pub(crate) mod synchronous_names;
pub mod tablespace_map;
pub(crate) mod walk;
#[cfg(test)]
mod walk_tests;
pub(crate) mod wanted;
