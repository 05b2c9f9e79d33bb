//! The tar streams that backup sets travel in: read by whoever takes one apart, written by whoever
//! sends one.
//! Never touches a file. Invariant: what [`writer`] writes, [`reader`] reads, and any other tar too.

pub(crate) mod reader;
pub(crate) mod writer;

pub use reader::BLOCK_BYTES;
pub(crate) use reader::{EntryKind, TarEntry, TarFault, TarReader, TarStep};
