//! WAL bytes, without IO: page and record headers, the streaming scanner, checks of whole files.
//! Never opens a file and never holds a whole record or segment in memory.
//! Invariant: no input, however damaged, makes anything here panic, loop or allocate without bound.
//!
//! WAL is little-endian here, as every platform walmgr runs on writes it, and its pages have the
//! 8 KiB that every packaged PostgreSQL is built with.

pub(crate) mod behind;
pub(crate) mod changes;
pub(crate) mod commit;
pub(crate) mod fault;
pub(crate) mod fuzzing;
pub(crate) mod history;
pub(crate) mod in_place;
pub(crate) mod joint;
pub(crate) mod obstacle;
pub(crate) mod obstacle_walk;
pub(crate) mod page;
mod recent_blocks;
pub(crate) mod record;
pub(crate) mod references;
pub(crate) mod scan;
pub(crate) mod segment;
pub(crate) mod segment_map;
pub(crate) mod through;
pub(crate) mod writer;

#[cfg(test)]
mod references_tests;
#[cfg(test)]
mod scan_tests;
#[cfg(test)]
mod segment_tests;
