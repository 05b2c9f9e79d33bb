//! walmgr ships PostgreSQL's WAL and base backups from a master to a standby.
pub mod abnormal;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod error;
pub mod files;
pub mod identity;
pub mod master;
pub mod memory;
pub mod options;
pub mod output;
pub mod pg;
pub mod receiver;
pub mod standby;
pub mod store;
pub mod transport;
pub mod wal;
