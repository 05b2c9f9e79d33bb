//! The messages of a connection on which a server streams WAL, of whose words the driver knows none.
//! Never reads a socket. Invariant: whatever bytes come, a message is whole, within its bound and understood, or
//! refused in words.
//!
//! ```text
//! message      kind 1, length 4 (itself included), body         "Message Formats" of PostgreSQL's manual
//! CopyData     'd'; its body: 'w', start 8, end of WAL 8, time 8, WAL      XLogData
//!                             'k', end of WAL 8, time 8, answer? 1         primary keepalive message
//!                             'r', written 8, flushed 8, applied 8, time 8, answer? 1    standby status update
//! ```

use std::time::{SystemTime, UNIX_EPOCH};

use walmgr_protocol::names::Lsn;

/// Kind and length.
pub(crate) const HEAD_BYTES: usize = 5;

/// Bytes of a message at most: a server sends 16 pages of at most 32 KiB at once (`MAX_SEND_SIZE`, walsender.c).
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Seconds from 1970 to 2000, with which PostgreSQL's time begins.
const EPOCH_S: u64 = 946_684_800;

/// A message that nobody understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server's replication message makes no sense: {0}")]
pub(crate) struct InvalidReplication(String);

/// What a server says while it streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamSaid {
    /// WAL up to here, of which a primary sends what it has flushed.
    Wal {
        /// Where the bytes end.
        end: Lsn,
    },
    /// A sign of life.
    Keepalive {
        /// Up to where it has sent WAL.
        end: Lsn,
        /// Whether it waits for an answer.
        wants_answer: bool,
    },
}

/// The kind of the first message and the length of its body, or `None` while its head is not all there.
pub(crate) fn head(bytes: &[u8]) -> Result<Option<(u8, usize)>, InvalidReplication> {
    let Some(&[kind, ref length @ ..]) = bytes.first_chunk::<HEAD_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length);
    let body = usize::try_from(length)
        .ok()
        .and_then(|it| it.checked_sub(4));
    match body.filter(|body| *body <= MESSAGE_BYTES_MAX) {
        Some(body) => Ok(Some((kind, body))),
        None => Err(InvalidReplication(format!("a length of {length}"))),
    }
}

/// The body of a CopyData message.
pub(crate) fn streamed(body: &[u8]) -> Result<StreamSaid, InvalidReplication> {
    let short = || InvalidReplication(format!("{} bytes are too few", body.len()));
    let number = |at: usize| -> Option<u64> {
        let bytes = body.get(at..)?.first_chunk::<8>()?;
        Some(u64::from_be_bytes(*bytes))
    };
    match body.first() {
        Some(b'w') => {
            const WAL_AT: usize = 25;
            let (start, wal) = number(1).zip(body.get(WAL_AT..)).ok_or_else(short)?;
            let end = start.checked_add(wal.len() as u64);
            let end = end.ok_or_else(|| InvalidReplication(format!("WAL at {}", Lsn(start))))?;
            Ok(StreamSaid::Wal { end: Lsn(end) })
        }
        Some(b'k') => {
            let (end, answer) = number(1).zip(body.get(17)).ok_or_else(short)?;
            Ok(StreamSaid::Keepalive {
                end: Lsn(end),
                wants_answer: *answer != 0,
            })
        }
        Some(kind) => Err(InvalidReplication(format!("kind {kind}"))),
        None => Err(short()),
    }
}

/// Severity, code and text of an ErrorResponse, for a sentence; `None` for one without a text.
pub(crate) fn refusal(body: &[u8]) -> Option<String> {
    let mut text = None;
    let mut severity = None;
    for field in body.split(|byte| *byte == 0) {
        match field.split_first() {
            Some((b'S', rest)) => severity = Some(String::from_utf8_lossy(rest)),
            Some((b'M', rest)) => text = Some(String::from_utf8_lossy(rest)),
            _ => {}
        }
    }
    let text = text?;
    Some(format!("{}: {text}", severity.unwrap_or("ERROR".into())))
}

/// The texts of a DataRow, `None` for NULL.
pub(crate) fn row(body: &[u8]) -> Result<Vec<Option<String>>, InvalidReplication> {
    let cut = || InvalidReplication("a row is cut short".to_owned());
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or_else(cut)?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        rest = behind;
        // -1 is NULL, no other is below zero.
        let Ok(length) = u32::try_from(i32::from_be_bytes(*length)) else {
            columns.push(None);
            continue;
        };
        let length = usize::try_from(length).map_err(|_| cut())?;
        let (text, behind) = rest.split_at_checked(length).ok_or_else(cut)?;
        columns.push(Some(String::from_utf8_lossy(text).into_owned()));
        rest = behind;
    }
    Ok(columns)
}

/// What a client says before it goes.
pub(crate) fn terminate() -> Vec<u8> {
    message(b'X', &[])
}

/// A simple query.
pub(crate) fn query(sql: &str) -> Vec<u8> {
    let mut body = sql.as_bytes().to_vec();
    body.push(0);
    message(b'Q', &body)
}

/// What a standby says of itself: up to where WAL is written there, and up to where its disk has it; nothing is
/// applied. 0 says nothing, and a server waits for no standby that says nothing of its disk.
pub(crate) fn status_update(written: Lsn, flushed: Lsn) -> Vec<u8> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.unwrap_or_default();
    let seconds = since.as_secs().saturating_sub(EPOCH_S);
    let now_us = seconds.saturating_mul(1_000_000) + u64::from(since.subsec_micros());
    let mut body = vec![b'r'];
    for number in [written.0, flushed.0, 0, now_us] {
        body.extend(number.to_be_bytes());
    }
    body.push(0);
    message(b'd', &body)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(kind: u8, numbers: &[u64], rest: &[u8]) -> Vec<u8> {
        let mut body = vec![kind];
        for number in numbers {
            body.extend(number.to_be_bytes());
        }
        body.extend(rest);
        body
    }

    #[test]
    fn wal_ends_behind_its_bytes_and_a_keepalive_says_whether_it_waits() {
        let wal = data(b'w', &[0x1000, 0x9000, 7], &[1, 2, 3]);
        assert_eq!(streamed(&wal), Ok(StreamSaid::Wal { end: Lsn(0x1003) }));
        for (byte, wants_answer) in [(0, false), (1, true)] {
            let found = streamed(&data(b'k', &[0x2000, 7], &[byte])).unwrap();
            let end = Lsn(0x2000);
            assert_eq!(found, StreamSaid::Keepalive { end, wants_answer });
        }
    }

    #[test]
    fn what_is_cut_short_too_long_or_unknown_is_refused() {
        let wal = data(b'w', &[u64::MAX, 0, 0], &[1]);
        assert!(streamed(&wal).is_err(), "an LSN beyond all");
        for bytes in [&b""[..], b"x", b"w123", b"k1234567890123456"] {
            assert!(streamed(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(head(b"d\0\0\0"), Ok(None));
        assert_eq!(head(b"d\0\0\0\x09rest"), Ok(Some((b'd', 5))));
        assert!(head(b"d\0\0\0\x03").is_err());
        assert!(head(b"d\xff\xff\xff\xff").is_err());
        assert!(row(b"\0\x01\0\0\0\x09abc").is_err());
    }

    #[test]
    fn rows_and_refusals_are_read_as_text() {
        let found = row(b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff").unwrap();
        assert_eq!(found, [Some("ab".to_owned()), None]);
        let said = refusal(b"SFATAL\0C42501\0Mno rights\0\0");
        assert_eq!(said.as_deref(), Some("FATAL: no rights"));
        assert_eq!(refusal(b"SFATAL\0\0"), None);
    }

    #[test]
    fn a_status_update_has_the_length_it_says() {
        let update = status_update(Lsn(0x43), Lsn(0x42));
        let (kind, body) = head(&update).unwrap().unwrap();
        assert_eq!((kind, body), (b'd', update.len() - HEAD_BYTES));
        assert_eq!(update[6..14], 0x43_u64.to_be_bytes());
        assert_eq!(update[14..22], 0x42_u64.to_be_bytes());
        assert_eq!(body, 34);
    }

    #[test]
    fn stored_shapes_of_messages_pass_the_fuzz_body() {
        for bytes in [
            &b"d\0\0\0\x16k\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x01"[..],
            b"D\0\0\0\x0c\0\x01\0\0\0\x02ab",
            b"E\0\0\0\x0dSFATAL\0Mx\0\0",
            b"d\0\0\0\x04",
            b"",
        ] {
            crate::pg::fuzzing::replication_messages(bytes);
        }
    }
}
