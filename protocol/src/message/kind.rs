//! The numbers of the messages: one table, with a range of numbers for each flow.
//! Never says what a payload holds. Invariant: a number is in the range of its flow, and no number of a
//! released version is ever used again for another message.
//!
//! A range begins at sixteen times the number of its flow and has sixteen numbers; that of a backup goes on to 255. 48 to
//! 63 and 112 to 127 are free for flows to come.

/// Which conversation a message is part of; the numbers of its kinds begin at sixteen times this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Flow {
    /// Any of them, or the connection itself.
    Any = 0,
    /// Questions about the archive, on channel 0.
    Control = 1,
    /// A finished file on its way into the archive.
    Push = 2,
    /// Something that is kept on its way back.
    Fetch = 4,
    /// The records of the segment in progress.
    Partial = 5,
    /// Blocks that are measured and dropped.
    Trial = 6,
    /// A base backup on its way into the archive. It has the most kinds, so its range goes on to the last number.
    Backup = 8,
}

macro_rules! kinds {
    ($($flow:ident { $($name:ident = $number:literal, $words:literal;)* })*) => {
        /// The number that a frame carries to say which message its payload is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum MessageKind {
            $($(#[doc = $words] $name = $number,)*)*
        }

        impl MessageKind {
            /// Every kind there is.
            pub const ALL: &'static [MessageKind] = &[$($(MessageKind::$name,)*)*];

            /// The kind with this number.
            pub const fn from_number(number: u8) -> Option<MessageKind> {
                match number {
                    $($($number => Some(MessageKind::$name),)*)*
                    _ => None,
                }
            }

            /// What a message of this kind is called.
            pub const fn words(self) -> &'static str {
                match self {
                    $($(MessageKind::$name => $words,)*)*
                }
            }

            /// The conversation it is part of.
            pub const fn flow(self) -> Flow {
                match self {
                    $($(MessageKind::$name => Flow::$flow,)*)*
                }
            }
        }
    };
}

kinds! {
    Any {
        Error = 1, "an error";
        Ping = 2, "a ping";
        Pong = 3, "a pong";
        Goodbye = 4, "a goodbye";
        Data = 5, "a data block";
    }
    Control {
        Setup = 16, "a setup request";
        SetupDone = 17, "the answer to a setup request";
        ListRequest = 18, "a list request";
        List = 19, "a list";
        OverviewRequest = 20, "an overview request";
        Overview = 21, "an overview";
    }
    Push {
        Offer = 32, "an offer";
        Have = 33, "the answer to an offer";
        Commit = 34, "a commit";
        Stored = 35, "an acknowledgement";
        Conflict = 36, "a conflict";
        Announcement = 37, "an offer without a checksum";
        ChecksumRequest = 38, "a question for a checksum";
    }
    Fetch {
        FetchListBackups = 64, "a request for the list of backups";
        FetchBackups = 65, "a list of backups";
        FetchDescribeSet = 66, "a question about a backup set";
        FetchSet = 67, "the description of a backup set";
        FetchGetFile = 68, "a request for a file";
        FetchGetSet = 69, "a request for a backup set";
        FetchEnd = 70, "the end of what was fetched";
        FetchNotFound = 71, "the answer that there is no such thing";
        FetchGetOutline = 72, "a request for the outline of a backup set";
        FetchGetPages = 73, "a request for pages of a backup set";
    }
    Partial {
        PartialBegin = 80, "the beginning of a partial stream";
        PartialBegun = 81, "the answer to the beginning of a partial stream";
        PartialOpen = 82, "the opening of a partial segment";
        PartialAt = 83, "the answer to the opening of a partial segment";
        PartialRewrite = 84, "a rewrite of a partial segment";
        PartialAppend = 85, "an append";
        PartialDurable = 86, "the acknowledgement of an append";
    }
    Trial {
        TrialBegin = 96, "the beginning of a trial";
        TrialBegun = 97, "the answer to the beginning of a trial";
        TrialEnd = 98, "the end of a trial";
        TrialMeasured = 99, "what a trial measured";
    }
    Backup {
        BackupBegin = 128, "a request for a backup";
        BackupGranted = 129, "the grant of a backup";
        BackupResume = 130, "a request to resume a backup";
        BackupJoin = 131, "a stream's request to join a backup";
        BackupHeldRequest = 132, "a question for what is held";
        BackupHeld = 133, "the list of what is held";
        BackupFilesDone = 134, "a confirmation of files";
        BackupStreamEnd = 135, "the end of a stream";
        BackupStreamTaken = 136, "the confirmation of a stream";
        BackupPart = 137, "a part of a backup set";
        BackupFinish = 138, "a request to seal a backup set";
        BackupSealed = 139, "the confirmation of a backup set";
        BackupParentRequest = 140, "a question for a backup's parent";
        BackupParent = 141, "the parent of a backup";
        BackupNeededRequest = 142, "a question for the needed parts of files";
        BackupNeeded = 143, "the needed parts of files";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_in_the_range_of_its_flow_and_has_words_of_its_own() {
        let mut words = std::collections::BTreeSet::new();
        for kind in MessageKind::ALL {
            let (range, flow) = (*kind as u8 / 16, kind.flow());
            let is_in_range = match flow {
                Flow::Backup => range >= flow as u8,
                _ => range == flow as u8,
            };
            assert!(is_in_range, "{kind:?}");
            assert_eq!(MessageKind::from_number(*kind as u8), Some(*kind));
            assert!(words.insert(kind.words()), "{kind:?}");
        }
        let known = (0..=u8::MAX).filter_map(MessageKind::from_number).count();
        assert_eq!(known, MessageKind::ALL.len());
    }
}
