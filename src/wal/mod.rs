//! WAL bytes, without IO: page and record headers, the streaming scanner, checks of whole files.
//! Never opens a file and never holds a whole record or segment in memory.
//! Invariant: no input, however damaged, makes anything here panic, loop or allocate without bound.
//!
//! WAL is little-endian here, as every platform walmgr runs on writes it, and its pages have the
//! 8 KiB that every packaged PostgreSQL is built with.

pub mod behind;
pub mod commit;
pub mod fault;
pub mod fuzzing;
pub mod history;
pub mod joint;
pub mod obstacle;
pub mod page;
pub mod record;
pub mod scan;
pub mod segment;
pub mod through;
pub mod writer;

#[cfg(test)]
mod scan_tests;
#[cfg(test)]
mod segment_tests;
