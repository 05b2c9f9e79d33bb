//! Clusters as administrators have them: links, mounts, old settings, odd connection strings.
//! Never a tidy cluster: each file is named for what its clusters look like. Invariant: whatever is
//! found is either served as it lies or named before anything is touched.

mod archive_cleanup;
mod configuration_in_pieces;
mod connection_strings;
pub(crate) mod crossing_records;
mod foreign_archiver;
mod foreign_files;
mod group_access;
mod hot_standby_off;
mod languages_and_limits;
mod linked_archive;
mod linked_directories;
mod mounted_directories;
mod odd_shells;
mod old_ini_files;
mod password_files;
mod pg_rewind;
mod replayed_tablespaces;
mod roles_without_superuser;
mod server_timeouts;
mod servers_that_do_not_start;
mod settings_elsewhere;
mod small_words;
mod standing_replay;
mod targets_on_the_master;
mod template_databases;
mod tls_as_libpq;
mod tls_only;
mod travelling_settings;
mod unreplayable_wal;
mod wrong_user;
