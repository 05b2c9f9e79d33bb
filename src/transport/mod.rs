//! Who is on the other end, and how the two ends know it: keys, lists of known keys, TLS.
//! Never speaks walmgr's own protocol. Invariant: past this module a peer has proven that it
//! holds the key its fingerprint names, or the connection is loopback by configuration.

pub mod authorized_keys;
pub mod authorized_names;
pub mod connect;
pub mod fuzzing;
pub mod identity;
pub mod stream;
pub mod tls;
pub mod wire;
