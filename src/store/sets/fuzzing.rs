//! The fuzz bodies for tar streams, of which nothing leaves the reader that could leave a set, and for `BACKUPLOCK`.
//! Never touches the disk. Invariant: the same stream gives the same entries however it is cut.

use walmgr_protocol::limits::{PATH_BYTES_MAX, PATH_DEPTH_MAX};

use super::hand_note::HandNote;
use crate::tar::{EntryKind, TarReader, TarStep};

/// `BACKUPLOCK`: what is a lock by hand can be written and read again, and is none if anything is cut off.
pub fn hand_note(input: &[u8]) {
    let Some(note) = HandNote::parse(input) else {
        return;
    };
    let text = note.text();
    let read = HandNote::parse(text.as_bytes());
    assert_eq!(
        read.map(|read| (read.uid, read.since_ms)),
        Some((note.uid, note.since_ms))
    );
    assert_eq!(HandNote::parse(text.trim_end().as_bytes()), None);
    assert!(!note.holder().contains(char::is_control));
}

/// What a reader said about a stream, with data put together.
#[derive(Debug, PartialEq, Eq)]
enum StreamRead {
    Step(String),
    Data(Vec<u8>),
}

/// Tar streams: the first byte says into which pieces the rest is cut.
pub fn tar_stream(input: &[u8]) {
    let Some((&first, stream)) = input.split_first() else {
        return;
    };
    let whole = read(stream, stream.len().max(1));
    let pieces = read(stream, usize::from(first).max(1));
    assert_eq!(whole, pieces);
}

fn read(stream: &[u8], piece_bytes: usize) -> Vec<StreamRead> {
    let mut reader = TarReader::default();
    let mut told = Vec::new();
    // Bytes of the current file that are missing; no file is open while it is `None`.
    let mut missing: Option<u64> = None;
    for mut bytes in stream.chunks(piece_bytes) {
        loop {
            let step = match reader.next(&mut bytes) {
                Ok(step) => step,
                Err(fault) => {
                    assert!(fault.offset <= stream.len() as u64);
                    told.push(StreamRead::Step(fault.to_string()));
                    return told;
                }
            };
            match &step {
                TarStep::NeedMore => {
                    assert!(bytes.is_empty());
                    break;
                }
                TarStep::Entry(entry) => {
                    assert_eq!(missing, None);
                    let path = entry.path.as_bytes();
                    assert!(!path.starts_with(b"/") && path.len() <= PATH_BYTES_MAX);
                    assert!(entry.path.components().count() <= PATH_DEPTH_MAX);
                    for component in entry.path.components() {
                        assert!(!component.is_empty() && component != b"." && component != b"..");
                        assert!(!component.contains(&0));
                    }
                    if let EntryKind::Patch { size, .. } = entry.kind {
                        missing = Some(size);
                    }
                    if let EntryKind::File { size, offset } = entry.kind {
                        assert!(offset.checked_add(size).is_some());
                        missing = Some(size);
                    }
                    told.push(StreamRead::Step(format!("{entry:?}")));
                }
                TarStep::Data(data) => {
                    let left = missing.and_then(|missing| missing.checked_sub(data.len() as u64));
                    assert!(left.is_some() && !data.is_empty());
                    missing = left;
                    match told.last_mut() {
                        Some(StreamRead::Data(before)) => before.extend_from_slice(data),
                        _ => told.push(StreamRead::Data(data.to_vec())),
                    }
                }
                TarStep::FileEnd => {
                    assert_eq!(missing.take(), Some(0));
                    told.push(StreamRead::Step("end".to_owned()));
                }
            }
        }
    }
    told.push(StreamRead::Step(format!("{:?}", reader.finish())));
    told
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tar, octal, sample_stream};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn honest_and_truncated_streams_satisfy_the_fuzz_body() {
        let stream = sample_stream(1);
        for end in (0..=stream.len()).step_by(97) {
            tar_stream(&[&[7], &stream[..end]].concat());
        }
        let long = Tar::default()
            .typed(b'L', b"L", b"base/x\0")
            .file(b"y", b"z");
        tar_stream(&[&[1], &long.header(b"a", octal(9), b'0').end()[..]].concat());
    }

    proptest! {
        #[test]
        fn damaged_streams_satisfy_the_fuzz_body(
            changes in proptest::collection::vec((0..9_000_usize, any::<u8>()), 1..4), piece: u8
        ) {
            let mut stream = sample_stream(1);
            for (at, byte) in changes {
                let at = at % stream.len();
                stream[at] = byte;
            }
            tar_stream(&[&[piece], &stream[..]].concat());
        }
    }
}
