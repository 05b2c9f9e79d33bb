//! Re-exports for tests, benches and fuzz targets; nothing else uses them.
//! Never used by the program. Invariant: it only hands on; whatever is not named here or in `main.rs` and is used by
//! nobody is dead code, and the compiler says so.

pub mod config {
    pub use crate::config::{ClusterFiles, Config, HostConfig, MasterConfig, StandbyConfig, load};
    pub mod fuzzing {
        pub use crate::config::fuzzing::ini_file;
    }
    pub mod keys {
        pub use crate::config::keys::Side;
    }
}

pub mod daemon {
    pub use crate::daemon::{
        DaemonControl, ForkSide, Notice, Notices, PidFile, Readiness, into_background,
        signal_running, tell_alive, tell_ready, tell_reloading, tell_stopping, watchdog_interval,
    };
}

pub mod master {
    pub use crate::master::runtime;
    pub mod fuzzing {
        pub use crate::master::agent::read_any as agent_words;
    }
    pub mod ask {
        pub use crate::master::ask::Asking;
    }
    pub mod cluster {
        pub use crate::master::cluster::ClusterFacts;
    }
    pub mod push {
        pub use crate::master::push::{Blocks, digest, push};
    }
}

pub mod metrics {
    pub use crate::metrics::table::reference_tables;
    pub mod fuzzing {
        pub use crate::metrics::request::read_any as http_request;
    }
}

pub mod options {
    pub use crate::options::Options;
}

pub mod pg {
    pub use crate::pg::tablespace_map;
    pub mod backup_label {
        pub use crate::pg::backup_label::BackupLabel;
    }
    pub mod conf {
        pub use crate::pg::conf::{Setter, apply, last_setter, old_copy_of, value};
    }
    pub mod conninfo {
        pub use crate::pg::conninfo::{Environment, parse};
        pub mod options {
            pub use crate::pg::conninfo::options::{OPTIONS, Treatment, find};
        }
    }
    pub mod control {
        pub use crate::pg::control::{State, WalLevel};
    }
    pub mod data_directory {
        pub use crate::pg::data_directory::{DataDirectory, SUPPORTED_MAJORS};
    }
    pub mod fuzzing {
        pub use crate::pg::fuzzing::{
            backup_label, conf_edit, conf_pieces, connection_string, control_file,
            foreign_settings, manifest, postmaster_pid, replication_messages, server_certificate,
            synchronous_names, tablespace_map,
        };
    }
    pub mod grants {
        pub use crate::pg::grants::Task;
    }
    pub mod manifest {
        pub use crate::pg::manifest::{Checksum, FileEntry, ManifestWriter, Reader, WalRange};
    }
    pub mod page {
        pub use crate::pg::page::{PAGE_BYTES, PageState, Pages};
    }
    pub mod relation {
        pub use crate::pg::relation::fork_at;
    }
    pub mod sql {
        pub use crate::pg::sql::{Limits, Session};
    }
    pub mod synchronous_names {
        pub use crate::pg::synchronous_names::SynchronousNames;
    }
    pub mod sql_backup {
        pub use crate::pg::sql_backup::FinishedBackup;
    }
    pub mod walk {
        pub use crate::pg::walk::{File, Listing, walk};
    }
}

pub mod receiver {
    pub use crate::receiver::{
        BACKUP_IDLE_MAX, BLOCK_DEADLINE, DRAIN_DEADLINE, IDLE_DEADLINE, UPLOADS_MAX,
        UPLOADS_PER_PEER_MAX,
    };
    /// What the answer to a panic calls each kind of work that a client waits for.
    pub fn awaited_work() -> impl Iterator<Item = &'static str> {
        (crate::receiver::worker::AwaitedWork::ALL.iter()).map(|work| work.words())
    }
    pub mod refusal_log {
        pub use crate::receiver::refusal_log::{REFUSAL_LOG_INTERVAL, REFUSAL_LOG_LINES_MAX};
    }
}

pub mod standby {
    pub mod xrestore {
        pub use crate::standby::xrestore::run;
    }
}

pub mod status {
    pub use crate::status::Code;
}

pub mod store {
    pub use crate::store::{
        Archive, ArchiveFolders, ArchiveReader, Binding, ConfigCopies, Disk, Freeze, LIST_NAME,
        PartialEnd, PartialWals, RealDisk,
    };
    pub mod maps {
        pub use crate::store::maps::{MapStretch, NoChanges, changes_between};
    }
    pub mod fuzzing {
        pub use crate::store::fuzzing::{
            acknowledged_end, held_names, kept_checksum, packed_segment, verified_note,
        };
    }
    pub mod sets {
        pub use crate::store::sets::{BackupSets, Copying, DeltaSource};
        pub mod fuzzing {
            pub use crate::store::sets::fuzzing::{hand_note, tar_stream};
        }
    }
    pub mod survey {
        pub use crate::store::survey::survey;
    }
}

pub mod tar {
    pub use crate::tar::BLOCK_BYTES;
    pub mod writer {
        pub use crate::tar::writer::{END, padding, put_directory, put_file};
    }
}

pub mod transport {
    pub mod connect {
        pub use crate::transport::connect::{Connection, ReceiverTarget};
    }
    pub mod fuzzing {
        pub use crate::transport::fuzzing::{authorized_keys, authorized_names, certificate};
    }
    pub mod identity {
        pub use crate::transport::identity::{Fingerprint, Identity};
    }
    pub mod tls {
        pub use crate::transport::tls::{PeerTrust, client_config, client_verifier, server_config};
    }
}

pub mod wal {
    pub mod changes {
        pub use crate::wal::changes::{Changes, Fork, ForkChange, Needed, RelationFork};
    }
    pub mod fuzzing {
        pub use crate::wal::fuzzing::{
            behind, commit_record, history, joint, record_references, scanner, segment,
            segment_map, written_wal,
        };
    }
    pub mod history {
        pub use crate::wal::history::History;
    }
    pub mod record {
        pub use crate::wal::record::{
            RM_XLOG, RecordInfo, XLOG_CHECKPOINT_SHUTDOWN, XLOG_NOOP, XLOG_OVERWRITE_CONTRECORD,
        };
    }
    pub mod scan {
        pub use crate::wal::scan::{ScanStep, Scanner, Why};
    }
    pub mod segment {
        pub use crate::wal::segment::{ExpectedSegment, SegmentCheck, Verify};
    }
    pub mod writer {
        pub use crate::wal::writer::WalWriter;
    }
}
