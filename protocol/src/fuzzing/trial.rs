//! Samples of a trial, for golden bytes and corpora.
//! Never decodes anything. Invariant: each flag is once set and once not.

use crate::message::trial::{Measured, Trial, TrialBegin};
use crate::message::{Digest, Message};

/// One message of every kind.
pub(super) fn sample_messages() -> Vec<Message> {
    let digest = Digest {
        size: 256 << 20,
        crc32: 0xCAFE_F00D,
    };
    let begin = |synced| {
        Trial::Begin(TrialBegin {
            size: digest.size,
            synced,
        })
    };
    let measured = Trial::Measured(Measured {
        digest,
        worked_us: 500_000,
        synced_us: 12_000,
    });
    let messages = [
        begin(true),
        begin(false),
        Trial::Begun,
        Trial::End(digest),
        measured,
    ];
    messages.into_iter().map(Message::Trial).collect()
}
