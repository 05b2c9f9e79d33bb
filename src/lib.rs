//! walmgr ships PostgreSQL's WAL from a master to a standby host: this map says where what lives.
//! Never runs by itself; `main.rs` parses, runs and exits. Tests, benches
//! and fuzz targets reach what they need of the rooms through `test_support`; the rooms are closed, so that the
//! compiler sees what nobody uses.
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
//! A recovering PostgreSQL on the standby's host gets it back by `restore_command`:
//! [`standby::xrestore`] reads it through [`store::reader`], past the receiver's lock, checks every
//! record once more, and tells a recovery that it is absent only where nothing is missing. What leads
//! where, and what nobody follows, [`store::lineage`] decides for all who ask.
//!
//! The master gets it back, and whole backup sets, the way they came: [`receiver::flows::fetch`] reads them on
//! a thread of its own, [`master::fetch`] hands them to [`master::xrestore`] or [`master::restore`].
//!
//! Only [`store::durable`] can make a [`store::Durable`], and the acknowledgement is built from one.
//!
//! # The rooms, in reading order
//!
//! | room | holds |
//! |---|---|
//! | `walmgr_protocol` | the language: frames, messages, sessions; no IO |
//! | [`wal`] | WAL bytes: headers, records, the scanner, whole segments; no IO |
//! | [`store`] | what is kept on the standby; the on-disk format and its crash arguments |
//! | [`pg`] | a cluster's own files and its SQL |
//! | [`tar`] | the streams that backup sets travel in; no IO |
//! | [`transport`] | keys, TLS, connecting, frames over sockets |
//! | [`receiver`] | the standby's daemon |
//! | [`master`] | one file a command that runs where PostgreSQL writes |
//! | [`standby`] | one file a command that runs on the standby's host |
//! | [`config`] | the ini dialect and every setting |
//! | [`cli`], [`options`], [`output`], [`daemon`], [`abnormal`], [`memory`] | the program around them |
//! | [`error`], [`files`], [`identity`], [`status`], [`shell`] | read by all: failures and exit codes, small durable files, the commands both sides have, an administrator's own commands |
//!
//! Imports run one way: `main → cli → master | standby | receiver → transport, store, pg → wal →
//! protocol`. `tests/house_rules.rs` holds them to it.

#![warn(unreachable_pub)]

pub mod abnormal;
pub mod cli;
pub(crate) mod config;
pub(crate) mod daemon;
pub mod error;
pub(crate) mod files;
pub(crate) mod identity;
pub(crate) mod master;
pub mod memory;
pub(crate) mod options;
pub mod output;
pub(crate) mod pg;
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
