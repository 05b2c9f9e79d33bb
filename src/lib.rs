//! walmgr ships PostgreSQL's WAL and base backups from a master to a standby.
pub mod error;
pub mod files;
pub mod pg;
