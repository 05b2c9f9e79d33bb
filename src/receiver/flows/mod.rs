//! What flows over a connection.

pub mod backup;
