//! The integration tests: one binary, a file a flow, against real servers and real processes.
//! Never passes a test whose tool the machine lacks: that prints a SKIP line instead.
//! Invariant: whatever a test starts or mounts is gone when the test ends, however it ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what went wrong by panicking, and tells its reader what it measured"
)]

#[macro_use]
mod support;

mod admin;
mod agent;
mod archive;
mod audit;
mod backup;
mod bench;
mod changed_pages;
mod chaos;
mod cli;
mod clusters;
mod compress;
mod crash_points;
mod createslave;
mod daemon;
mod disk;
mod drill;
mod exit_codes;
mod fetch;
mod field;
mod flips;
mod generate;
mod host_commands;
mod host_daemon;
mod hostile_receiver;
mod house_rules;
mod identity;
mod kills;
mod limits;
mod load;
mod manual;
mod metrics;
mod monitoring;
mod moving;
mod network;
mod old_spellings;
mod on_demand;
mod partial;
mod patroni;
mod pg;
mod pg_backup;
mod power_cut;
mod promoted;
mod readme;
pub mod replay;
mod restore;
mod runbooks;
mod setup;
mod skew;
mod standby_backup;
mod status;
mod stolen_key;
mod stored_inputs;
mod synch_standby;
mod synchronous;
mod task_pages;
mod ten_minutes;
mod units;
mod verify;
mod versions;
mod wal;
mod walkthrough;
mod xrestore;
