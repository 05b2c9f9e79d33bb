//! Authentication of the other side: keys, lists of known keys, TLS.
//! Never speaks walmgr's own protocol. Invariant: behind this module a peer has proven that it
//! holds the key of its fingerprint, or the configuration permits a connection without TLS.

pub(crate) mod authorized_keys;
pub(crate) mod authorized_names;
pub(crate) mod connect;
pub(crate) mod frames;
pub(crate) mod fuzzing;
pub(crate) mod identity;
pub(crate) mod stream;
pub(crate) mod tls;
pub(crate) mod wire;
