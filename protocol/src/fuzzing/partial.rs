//! Samples of the partial stream, for golden bytes and corpora.
//! Never decodes anything. Invariant: each optional field is once present and once absent.

use bytes::Bytes;

use crate::message::Message;
use crate::message::partial::{Append, At, Begun, DurableTo, Open, Partial, PartialBegin};
use crate::names::{Lsn, TimelineId};

fn nothing_yet() -> Begun {
    Begun {
        newest_finished: None,
        oldest_partial: None,
        newest_partial: None,
    }
}

/// One message of every kind, with every optional field once present and once absent.
pub(super) fn sample_messages() -> Vec<Message> {
    let segment = "00000001000000020000009A".parse().ok();
    let mut messages = vec![
        Partial::Begun(Begun {
            newest_finished: segment,
            oldest_partial: segment,
            newest_partial: segment,
        }),
        Partial::Begun(nothing_yet()),
        Partial::At(At {
            held_bytes: 24_576,
            common_bytes: 8192,
            common_crc32: 0xCAFE_F00D,
        }),
        Partial::Rewrite,
        Partial::Append(Append {
            offset: 8192,
            end: Lsn(0x0000_0002_9A00_2018),
            raw_bytes: 3,
            zstd: false,
            bytes: Bytes::from_static(b"wal"),
        }),
        Partial::Append(Append {
            offset: 8195,
            end: Lsn(0x0000_0002_9A00_4018),
            raw_bytes: 8192,
            zstd: true,
            bytes: Bytes::from_static(b"packed"),
        }),
        Partial::Durable(DurableTo(Lsn(0x0000_0002_9A00_2018))),
    ];
    messages.extend(TimelineId::new(1).map(|timeline| Partial::Begin(PartialBegin { timeline })));
    messages.extend(segment.map(|segment| {
        Partial::Open(Open {
            segment,
            bytes: 8192,
            crc32: 0xCAFE_F00D,
        })
    }));
    messages.into_iter().map(Message::Partial).collect()
}
