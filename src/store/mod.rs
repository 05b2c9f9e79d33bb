//! What is kept on the standby: finished WAL files, each proven durable before it is acknowledged.
//! Never talks to a network and never reads a clock to decide anything. Invariant: a final name
//! in `completed_wals` leads to one complete, verified file or to nothing.

pub mod archive;
pub mod binding;
pub mod disk;
pub mod durable;
pub mod error;
mod folder;
pub mod health;
pub mod incoming;
mod name_lock;
pub mod recovery;

#[cfg(test)]
mod archive_tests;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
pub(crate) mod testing;

pub use archive::{Archive, Entry, Held, Places};
pub use binding::Binding;
pub use disk::Disk;
pub use durable::{Durable, RealDisk};
pub use error::StoreError;
pub use health::Health;
pub use incoming::{Incoming, Sealed};
pub use recovery::RecoveryReport;
