//! A file that PostgreSQL wants archived: opened, looked at, and pushed over a connection.
//! Never decides who pushes it: `xarchive` itself, or the syncdaemon that it asks. Invariant: whoever does, a failure is
//! the same sentence and the same code.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use walmgr_protocol::hello::Welcome;
use walmgr_protocol::limits::{BLOCK_BYTES_DEFAULT, SMALL_FILE_BYTES_MAX, STORE_LEVEL_MAX};
use walmgr_protocol::message::{Offer, WireVerify};
use walmgr_protocol::names::WalFileName;
use walmgr_protocol::session::push::PushOutcome;

use crate::config::{MasterConfig, VerifyWal};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::{ChangeStamp, file_clock};
use crate::master::ask::Asking;
use crate::master::cluster::ClusterFacts;
use crate::master::histories;
use crate::master::push::{self, Blocks, Pushed, PushedFile};
use crate::pg::layout;
use crate::transport::connect::{Connection, ReceiverTarget, refused};
use crate::wal::page::LONG_HEADER_BYTES;
use crate::wal::segment::{SegmentCheck, SegmentFault};

mod timeline_end;

const OPEN_HINT: &str = "archive_command must end in `xarchive %p %f`, and runs in the data \
                         directory as the server's user";

/// The file to be archived, opened and looked at.
pub(super) struct ArchivedFile {
    file: Arc<File>,
    /// The name that it gets in the archive.
    pub name: WalFileName,
    /// The file as it was opened.
    pub stamp: ChangeStamp,
    /// Whether every change since then shows in the stamp.
    is_settled: bool,
    /// Whose it is.
    pub facts: ClusterFacts,
}

impl ArchivedFile {
    /// Opens it, and refuses here what can be seen from here.
    pub(super) fn open(
        config: &MasterConfig,
        path: &Path,
        name: WalFileName,
    ) -> Result<ArchivedFile> {
        // NONBLOCK so that a FIFO cannot hang us, NOFOLLOW because PostgreSQL never links WAL.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::LOOP) => return Err(not_a_file(path, "a symbolic link")),
            Err(error) => {
                return Err(error)
                    .at(Kind::Retry, "open the file to be archived,", path)
                    .map_err(|error| error.hint(OPEN_HINT));
            }
        };
        // Before the stamp is taken: what is written from here on has this time or a later one.
        let now = file_clock();
        let metadata = file.metadata().at(Kind::Retry, "look at", path)?;
        if !metadata.is_file() {
            return Err(not_a_file(path, "a directory, a pipe or a device"));
        }
        let facts = ClusterFacts::read(config)?;
        let stamp = ChangeStamp::of(&metadata);
        let mut source = ArchivedFile {
            file: Arc::new(file),
            name,
            stamp,
            is_settled: !stamp.is_fresh(now),
            facts,
        };
        source.check(path)?;
        if let WalFileName::Segment(segment) = name {
            let pg_wal = config.master_data.join(layout::PG_WAL);
            if timeline_end::is_in(&source.file, segment, &source.facts, &pg_wal)? {
                source.name = WalFileName::Partial(segment);
                tracing::info!(
                    "{name} goes as {}: its timeline ends within it",
                    source.name
                );
            }
        }
        Ok(source)
    }

    /// What can be seen from here is refused here, without troubling the standby.
    fn check(&self, path: &Path) -> Result<()> {
        match self.name {
            WalFileName::Segment(_) | WalFileName::Partial(_) => self.check_segment(path),
            WalFileName::History(_) | WalFileName::BackupHistory(..) => self.check_small(path),
        }
    }

    fn check_segment(&self, path: &Path) -> Result<()> {
        let whole = self.facts.cluster.segment_size.bytes();
        if self.stamp.size != whole {
            return Err(CommandError::retry(format!(
                "{} has {} bytes where a segment of this cluster has {whole}",
                path.display(),
                self.stamp.size
            ))
            .hint("if this repeats, the file is damaged: check the disk of pg_wal"));
        }
        let mut first = [0; LONG_HEADER_BYTES];
        self.file
            .read_exact_at(&mut first, 0)
            .at(Kind::Retry, "read", path)?;
        let expected = timeline_end::expected(&self.facts);
        let off = crate::wal::segment::Verify::Off;
        SegmentCheck::new(self.name, &expected, off)
            .update(&first)
            .map_err(|fault| {
                let foreign = matches!(fault, SegmentFault::Foreign { .. });
                let kind = if foreign {
                    Kind::ForeignCluster
                } else {
                    Kind::Retry
                };
                CommandError::new(kind, format!("archive {}", path.display())).because(fault).hint(
                "nothing was sent; check master_data in the ini file, and that the file's content \
                matches its name",
            )
            })
    }

    fn check_small(&self, path: &Path) -> Result<()> {
        if self.stamp.size <= SMALL_FILE_BYTES_MAX {
            return Ok(());
        }
        Err(CommandError::retry(format!(
            "{} has {} bytes where a {} has at most {SMALL_FILE_BYTES_MAX}",
            path.display(),
            self.stamp.size,
            self.name
        ))
        .hint("nothing was sent; look at the file: PostgreSQL writes only a few lines into it"))
    }

    /// Sees that the receiver lets us in.
    pub(super) async fn greet(&self, config: &MasterConfig) -> Result<()> {
        let asking = Asking::connect(config, &self.facts).await?;
        asking.close().await;
        Ok(())
    }

    /// The file as it is now.
    pub(super) fn stamp_now(&self) -> Option<ChangeStamp> {
        (self.file.metadata().ok().as_ref()).map(ChangeStamp::of)
    }

    /// Starts to take its checksum, if the stamp alone cannot tell of a change.
    ///
    /// A file is not to be stored if it changed since it was opened and looked at. Whatever is written to it after that
    /// moves its stamp, except within the tick of its last change before: so the stamp of a file that was last changed
    /// longer ago is compared when all was read, and that of another one is not enough. That one is read twice, and has
    /// to have the same checksum both times. One that is read once is read from the disk while the receiver is greeted.
    pub(super) fn start_digest(&self) -> impl Future<Output = Result<Option<u32>>> + use<> {
        let digest = (!self.is_settled).then(|| push::start_digest(&self.file, self.stamp.size));
        if digest.is_none() {
            push::start_reading(&self.file, self.stamp.size);
        }
        async {
            match digest {
                Some(digest) => digest.await.map(Some),
                None => Ok(None),
            }
        }
    }

    /// Connects to the receiver and pushes it.
    pub(super) async fn push(self, config: &MasterConfig) -> Result<PushOutcome> {
        // The checksum is taken while the other side is being greeted.
        let crc32 = self.start_digest();
        let mut connection = self.connect(config).await?;
        let crc32 = crc32.await?;
        let pushed = self.push_over(config, &mut connection, crc32).await?;
        Ok(pushed.outcome)
    }

    /// A connection of its cluster.
    pub(super) async fn connect(&self, config: &MasterConfig) -> Result<Connection> {
        let target = ReceiverTarget::from_config(config)?;
        let facts = &self.facts;
        target.connect(facts.cluster, facts.timeline).await
    }

    /// Pushes it over a connection of its cluster.
    pub(super) async fn push_over(
        &self,
        config: &MasterConfig,
        connection: &mut Connection,
        crc32: Option<u32>,
    ) -> Result<Pushed> {
        let most = connection.welcome.block_bytes_max;
        if let WalFileName::Segment(_) | WalFileName::Partial(_) = self.name {
            let wire = &mut connection.wire;
            histories::push_once(config, wire, self.name.timeline(), most).await;
        }
        let blocks = self.blocks(config, &connection.welcome);
        let offer = Offer {
            name: self.name,
            size: self.stamp.size,
            crc32,
            verify: verify(config),
        };
        let source = PushedFile {
            file: Arc::clone(&self.file),
            is_unchanged: &|| self.stamp_now() == Some(self.stamp),
        };
        push::push_watched(&mut connection.wire, source, offer, blocks).await
    }

    /// How the file travels. What the standby stores packed costs both hosts the least if it is packed here: the
    /// network gets, and both sides encrypt, a tenth of it, and the standby has nothing left to pack.
    fn blocks(&self, config: &MasterConfig, welcome: &Welcome) -> Blocks {
        let block_bytes = config.block_size.min(welcome.block_bytes_max);
        // Blocks of another length are cut and packed anew over there.
        let is_stored_so =
            matches!(self.name, WalFileName::Segment(_)) && block_bytes == BLOCK_BYTES_DEFAULT;
        let as_stored = match is_stored_so {
            true => welcome.store_level.min(STORE_LEVEL_MAX),
            false => 0,
        };
        Blocks {
            block_bytes,
            compression: config.compression.unwrap_or(as_stored),
        }
    }
}

/// The outcome in PostgreSQL's terms.
pub(super) fn verdict(
    config: &MasterConfig,
    name: WalFileName,
    outcome: PushOutcome,
) -> Result<()> {
    let receiver = &config.slave;
    match outcome {
        PushOutcome::Stored => {
            tracing::debug!("{name} is durable on {receiver}");
            Ok(())
        }
        PushOutcome::Conflict(stored) => Err(CommandError::new(
            Kind::Conflict,
            format!(
                "{receiver} already holds a different file as {name} ({} bytes, CRC-32 {:08X}); \
                that file stays and this one was not stored",
                stored.size, stored.crc32
            ),
        )
        .hint(
            "two masters archive to one archive, or this one was restored: give each an archive of its own",
        )),
        PushOutcome::SourceChanged => Err(CommandError::retry(format!(
            "{name} changed while it was read; nothing was stored"
        ))
        .hint(
            "PostgreSQL recycles a segment only after it was archived: did somebody run this by \
            hand?",
        )),
        PushOutcome::Refused(error) => Err(refused(receiver, &format!("did not store {name}"), error)),
    }
}

/// The receiver did not acknowledge the file in time.
pub(super) fn not_in_time(config: &MasterConfig, name: WalFileName) -> CommandError {
    let (slave, deadline) = (&config.slave, config.push_timeout);
    CommandError::retry(format!(
        "{name} was not acknowledged by {slave} within push_timeout = {deadline:?}"
    ))
    .hint("PostgreSQL keeps the file and will try again")
}

fn verify(config: &MasterConfig) -> WireVerify {
    match config.verify_wal {
        VerifyWal::Records => WireVerify::Records,
        VerifyWal::Headers => WireVerify::Headers,
        VerifyWal::Off => WireVerify::Off,
    }
}

fn not_a_file(path: &Path, found: &str) -> CommandError {
    CommandError::usage(format!(
        "{} is {found} where a WAL file was expected",
        path.display()
    ))
    .hint("archive_command must end in `xarchive %p %f`")
}
