//! `MASTER.held`: up to where the receiver has acknowledged all, for the RPO of a syncdaemon that starts while it is away.
//! Never says more than was acknowledged. Invariant: a note of another cluster, of another receiver, or a torn one says
//! nothing; one that is older than the truth has the RPO too large, never too small.

use std::path::{Path, PathBuf};

use walmgr_protocol::message::ClusterIdentity;
use walmgr_protocol::names::{Lsn, TimelineId};

use crate::config::MasterConfig;
use crate::files;

/// Four words of one line.
const NOTE_BYTES_MAX: u64 = 4 << 10;

/// Where it is, and who is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeldNote {
    path: PathBuf,
    slave: String,
}

impl HeldNote {
    /// The note of these settings.
    pub(super) fn of(config: &MasterConfig) -> HeldNote {
        HeldNote {
            path: path(&config.path),
            slave: config.slave.to_string(),
        }
    }

    /// What it says of this cluster.
    pub(super) fn read(&self, cluster: &ClusterIdentity) -> Option<(TimelineId, Lsn)> {
        let text = files::read_at_most(&self.path, NOTE_BYTES_MAX).ok()?;
        let text = std::str::from_utf8(&text).ok()?;
        let words = text.strip_prefix(&self.beginning(cluster))?;
        let (timeline, held) = words.strip_suffix('\n')?.split_once(' ')?;
        let timeline = TimelineId::new(timeline.parse().ok()?)?;
        Some((timeline, held.parse().ok()?))
    }

    /// Writes it; a failure costs no more than the RPO of a syncdaemon that starts alone.
    pub(super) fn write(&self, cluster: &ClusterIdentity, (timeline, held): (TimelineId, Lsn)) {
        let text = format!("{}{timeline} {held}\n", self.beginning(cluster));
        if let Err(error) = files::put_new(&self.path, text.as_bytes(), 0o600) {
            tracing::debug!("write {}: {error}", self.path.display());
        }
    }

    fn beginning(&self, cluster: &ClusterIdentity) -> String {
        format!("{} {} ", cluster.system_id, self.slave)
    }
}

/// Beside the ini file.
pub(super) fn path(ini: &Path) -> PathBuf {
    ini.with_extension("held")
}

#[cfg(test)]
mod tests {
    use walmgr_protocol::names::{SystemId, WalSegmentSize};

    use super::*;

    #[test]
    fn fault_232_a_note_counts_for_its_cluster_and_receiver_alone() {
        let folder = tempfile::tempdir().unwrap();
        let of = |slave: &str| HeldNote {
            path: path(&folder.path().join("master.ini")),
            slave: slave.to_owned(),
        };
        let cluster = |system_id| ClusterIdentity {
            system_id: SystemId(system_id),
            postgres_major: 15,
            segment_size: WalSegmentSize::DEFAULT,
        };
        let (note, held) = (of("standby:7432"), (TimelineId::FIRST, Lsn(0x1_0200_0000)));
        assert_eq!(note.read(&cluster(7)), None);
        note.write(&cluster(7), held);
        assert_eq!(note.read(&cluster(7)), Some(held));
        assert_eq!(note.read(&cluster(77)), None);
        assert_eq!(note.read(&cluster(8)), None);
        assert_eq!(of("other:7432").read(&cluster(7)), None);
        let text = std::fs::read(&note.path).unwrap();
        for end in 0..text.len() {
            std::fs::write(&note.path, &text[..end]).unwrap();
            assert_eq!(note.read(&cluster(7)), None, "{end}");
        }
    }
}
