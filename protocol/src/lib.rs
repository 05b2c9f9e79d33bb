//! The wire protocol between walmgr's master and standby, as bytes and decisions.
//! Never opens a socket or a file, never asks for the time. Invariant: each length from a peer
//! is compared with a bound in [`limits`] before use, and the checksum of a payload is compared
//! before its bytes are read.
//!
//! # The wire
//!
//! A client opens TCP to the receiver (port 7432), speaks TLS 1.3 over it with ALPN `walmgr/1`,
//! and sends a [`Hello`](hello::Hello). The receiver answers [`Welcome`](hello::Welcome) or
//! [`Refusal`](hello::Refusal). All numbers are little-endian; strings are UTF-8 behind a `u16`
//! length in bytes; names are strings of at most [`limits::NAME_BYTES_MAX`].
//!
//! ```text
//! hello, client to receiver            answer, receiver to client
//!  0  8  "walmgr\r\n"                   0  8  "walmgr\n\r"
//!  8  2  lowest version spoken          8  2  1 welcome, 2 refused
//! 10  2  highest version spoken        10  2  version chosen (0 when refused)
//! 12  4  n, length of the body         12  4  n, length of the body
//! 16  n  body                          16  n  body
//!  +  4  CRC-32 of all before           +  4  CRC-32 of all before
//! ```
//!
//! These layouts and the body of a refusal never change, so that
//! any two versions can at least refuse each other with a message. Bodies grow only at their end, and
//! a reader skips unknown bytes there.
//!
//! After the welcome both sides send frames:
//!
//! ```text
//!  0  4  n, length of the payload
//!  4  1  kind            message::MessageKind
//!  5  1  flags           bit 0: the data block is one zstd frame
//!  6  2  channel         0 for the connection itself, 1.. for uploads
//!  8  4  sequence        see below
//! 12  4  CRC-32 of the payload as sent
//! 16  4  CRC-32 of bytes 0 to 15
//! 20  n  payload
//! ```
//!
//! The header has its own checksum, so that a damaged length is never trusted. CRC-32 is
//! that of zlib and Ethernet (polynomial 0xEDB88320). The sequence of the first frame in each
//! direction is [`frame::first_sequence`], made from the random nonces of both hellos; each later frame
//! adds 1. So a frame that arrives twice, out of order, or from another connection
//! is refused before it is interpreted.
//!
//! # Upload of a file
//!
//! ```text
//! master                                        receiver
//!   Offer  {name, size, crc, verify}      ->      looks in the archive
//!                                         <-      Stored {size, crc}      the same is durable: done
//!                                         <-      Conflict {size, crc}    another is stored: done
//!                                         <-      Have {prefix}           bytes it already holds
//!   Data   {offset, raw length, bytes} …  ->      checks and writes
//!   Commit {size, crc}                    ->      checks, syncs, renames, syncs the folder
//!                                         <-      Stored {size, crc}
//! ```
//!
//! The welcome says at which level the receiver packs segments. A sender that packs the blocks so spares it
//! that: they are stored as they came.
//!
//! Up to [`limits::CHANNELS_MAX`] files may be in transfer on one connection, each on its own
//! channel; answers arrive in any order. Any answer may be a [`message::Error`] instead. An
//! error of scope `channel` ends that upload only; an error of scope `connection` is the last frame.
//!
//! A base backup runs on several connections; [`session::backup`] has the diagram.
//!
//! # Fetching files and backup sets
//!
//! A client with the right to read asks for archived files and backup sets ([`session::fetch`]):
//!
//! ```text
//! master                                        receiver
//!   GetFile {name}  or  GetSet {label, offset} ->  looks for it
//!                                         <-      NotFound {what that proves}    done
//!                                         <-      Data {offset, raw length, bytes} …
//!                                         <-      End {size, crc}                all of it, and good
//! ```
//!
//! Whoever has an old data directory asks for the outline of a set, and for the pages that differ, in its place.
//!
//! # Use
//!
//! Read bytes into a buffer, take frames out with [`codec::Decoder`], hand each to the
//! [`session`] of its channel, and do what the returned actions say. Nothing here blocks; time is
//! an argument where it matters ([`session::keepalive`]).

#![warn(unreachable_pub)]

pub mod codec;
pub mod compress;
pub mod error;
mod error_code;
mod fields;
pub mod frame;
pub mod fuzzing;
pub mod limits;
pub mod message;
pub mod names;
pub mod patch;
pub mod session;
pub mod version;

pub use session::hello;
