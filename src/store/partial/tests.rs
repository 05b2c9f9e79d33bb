//! The partial stream against files, restarts and pushes, without a network.
//! Never talks to a server. Invariant tested: what was acknowledged is there and is WAL.
