//! What the master's data directory says about its cluster, without asking the server.
//! Never needs PostgreSQL to run: segments are archived during its shutdown too.

use std::path::Path;

use walmgr_protocol::message::ClusterIdentity;
use walmgr_protocol::names::TimelineId;

use crate::config::MasterConfig;
use crate::error::Result;
use crate::pg::data_directory::DataDirectory;

/// Who this master is.
#[derive(Debug, Clone, Copy)]
pub struct ClusterFacts {
    /// Its identity, as the hello says it.
    pub cluster: ClusterIdentity,
    /// The timeline of its last checkpoint.
    pub timeline: TimelineId,
}

impl ClusterFacts {
    /// Reads `PG_VERSION` and `global/pg_control`.
    pub fn read(config: &MasterConfig) -> Result<ClusterFacts> {
        ClusterFacts::of(&config.master_data)
    }

    /// Reads `PG_VERSION` and `global/pg_control` of any data directory.
    pub fn of(data: &Path) -> Result<ClusterFacts> {
        let data = DataDirectory::open(data)?;
        let control = data.control()?;
        Ok(ClusterFacts {
            cluster: ClusterIdentity {
                system_id: control.system_id,
                postgres_major: u16::from(data.major()),
                segment_size: control.segment_size,
            },
            timeline: control.timeline,
        })
    }
}
