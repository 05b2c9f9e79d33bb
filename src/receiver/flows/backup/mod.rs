//! The backup flow on the standby.

pub mod after;
pub mod configs;
pub mod fits;
pub mod received;
pub mod seal;
pub mod work;
