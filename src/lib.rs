//! walmgr ships PostgreSQL's WAL from a master to a standby host. This page is the map of its modules.
//! Never runs by itself; `main.rs` parses, runs and exits. The modules are `pub(crate)`, so that the
//! compiler finds unused code. Tests, benches and fuzz targets use `test_support`.
//!
//! # The way of a segment
//!
//! PostgreSQL finishes a segment and calls `archive_command`:
//!
//! ```text
//! master's host                                  standby's host
//!
//! cli → master::xarchive                         receiver::server      accepts
//!         │ looks at the file (pg, wal)          receiver::admission   who may stay
//!         │                                      receiver::introduction  TLS, hello
//!         │                                      receiver::clusters    which archive
//!         ▼                                               │
//!       master::push ── transport ═══ TLS ═══ transport ── receiver::connection
//!         blocks, CRC, zstd    walmgr_protocol            │
//!                                                         ▼
//!                                                receiver::flows::push a thread a file
//!                                                         │ unpacked blocks
//!                                                         ▼
//!                                                store::Incoming       CRC, wal::segment
//!                                                         ▼
//!                                                store::durable        fsync, rename, fsync
//!         ◀──────────────── Stored ◀──────────────────  Durable, the proof
//! ```
//!
//! PostgreSQL on the standby's host fetches the segment by `restore_command`: [`standby::xrestore`] reads it
//! through [`store::reader`], without the receiver's lock, and compares it with what it was when every record of it was checked; where
//! that is not known it checks every record again. It reports a segment as
//! absent only where nothing is missing. [`store::lineage`] decides which timelines and files readers follow.
//!
//! The master fetches segments and whole backup sets over the network: [`receiver::flows::fetch`] reads them on
//! a thread of its own, and [`master::fetch`] hands them to [`master::xrestore`] or [`master::restore`].
//!
//! Only [`store::durable`] can make a [`store::Durable`], and the acknowledgement is built from one.
//!
//! # The modules, in reading order
//!
//! | module | contains |
//! |---|---|
//! | `walmgr_protocol` | the wire protocol: frames, messages, sessions; no IO |
//! | [`wal`] | WAL bytes: headers, records, the scanner, whole segments; no IO |
//! | [`store`] | the archive on the standby; the on-disk format and its crash arguments |
//! | [`pg`] | files and SQL of a PostgreSQL cluster |
//! | [`tar`] | tar streams of backup sets; no IO |
//! | [`transport`] | keys, TLS, connecting, frames over sockets |
//! | [`receiver`] | the standby's daemon, of one cluster or of many |
//! | [`master`] | the commands on the master, one file each |
//! | [`standby`] | the commands on the standby's host, one file each |
//! | [`config`] | the ini dialect and every setting |
//! | [`audit`] | who did what to an archive or its rules: `audit_log` |
//! | [`metrics`] | counters, and the page that monitoring reads |
//! | [`cli`], [`options`], [`output`], [`daemon`], [`abnormal`], [`memory`] | the program around the commands |
//! | [`laid_ready`] | segments that `xrestore` of either side lays ready in `pg_wal` |
//! | [`error`], [`files`], [`patience`], [`rate_limit`], [`identity`], [`cleanup`], [`status`], [`shell`] | used by all: errors and exit codes, small durable files, disks that hang, bytes a second, commands of both sides, the administrator's shell commands |
//!
//! Imports run one way: `main → cli → master | standby | receiver → transport, store, pg → wal →
//! protocol`. `tests/house_rules.rs` checks this.

#![warn(unreachable_pub)]

pub mod abnormal;
pub(crate) mod audit;
pub(crate) mod cleanup;
pub mod cli;
pub(crate) mod config;
pub(crate) mod daemon;
pub mod error;
pub(crate) mod files;
pub(crate) mod identity;
pub(crate) mod laid_ready;
pub(crate) mod master;
pub mod memory;
pub(crate) mod metrics;
pub(crate) mod options;
pub mod output;
pub(crate) mod patience;
pub(crate) mod pg;
pub(crate) mod rate_limit;
pub(crate) mod receiver;
pub(crate) mod shell;
pub(crate) mod standby;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod tar;
pub(crate) mod transport;
pub(crate) mod wal;

#[doc(hidden)]
pub mod test_support;
