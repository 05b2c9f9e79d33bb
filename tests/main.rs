//! The one integration binary: a module a flow, against the real binary and real processes.
//! Never builds more than one program to link. Invariant: a test leaves no process behind.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod cli;
mod daemon;
mod house_rules;
