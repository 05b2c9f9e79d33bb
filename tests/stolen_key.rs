//! A stolen key: what its holder can do to a live archive, right by right.
//! Never asks the receiver whether all is well. Invariant tested: what was acknowledged before stays.

mod table;
