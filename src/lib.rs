//! walmgr ships PostgreSQL's WAL and base backups from a master to a standby.
pub mod config;
pub mod error;
pub mod files;
pub mod store;
pub mod transport;
pub mod wal;
