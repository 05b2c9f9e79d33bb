//! Who is on the other end, and how the two ends know it: keys, lists of known keys, TLS.
//! Never speaks walmgr's own protocol. Invariant: past this module a peer has proven that it
//! holds the key its fingerprint names, or the connection is loopback by configuration.

pub(crate) mod authorized_keys;
pub(crate) mod authorized_names;
pub(crate) mod connect;
pub(crate) mod fuzzing;
pub(crate) mod identity;
pub(crate) mod stream;
pub(crate) mod tls;
pub(crate) mod wire;
