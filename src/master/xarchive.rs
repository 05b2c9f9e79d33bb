//! `xarchive PATH NAME`: PostgreSQL's `archive_command`.
//! Never says 0 before the receiver said that the file is durable, never hangs longer than
//! `push_timeout`. Invariant: every failure is one of the codes of `ExitTable::Xarchive`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustix::fs::{Mode, OFlags};
use walmgr_protocol::limits::SMALL_FILE_BYTES_MAX;
use walmgr_protocol::message::{Offer, WireVerify};
use walmgr_protocol::names::WalFileName;
use walmgr_protocol::session::push::Outcome;

use crate::config::{MasterConfig, VerifyWal};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::FileId;
use crate::master::ask::Asking;
use crate::master::cluster::ClusterFacts;
use crate::master::histories;
use crate::master::periodic;
use crate::master::push::{self, Blocks};
use crate::options::Options;
use crate::output;
use crate::pg::{control, layout};
use crate::transport::connect::{ReceiverTarget, refused};
use crate::wal::page::LONG_HEADER_BYTES;
use crate::wal::segment::{SegmentCheck, SegmentFault};

mod timeline_end;

const OPEN_HINT: &str = "archive_command must end in `xarchive %p %f`, and runs in the data \
                         directory as the server's user";

/// What stood behind `xarchive`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct XarchiveArgs {
    /// %p
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// %f
    #[arg(value_name = "NAME")]
    pub name: WalFileName,
}

/// Archives one file.
pub(crate) fn run(
    config: &MasterConfig,
    options: &Options,
    XarchiveArgs { path, name }: &XarchiveArgs,
) -> Result<()> {
    refuse_another_server(config, path)?;
    let source = ArchivedFile::open(config, path, *name)?;
    let name = source.name;
    let runtime = crate::master::runtime()?;
    if options.not_really {
        runtime.block_on(source.greet(config))?;
        let doing = format!("send {} as {name} to {}", path.display(), config.slave);
        return output::not_really(&doing);
    }
    periodic::start(config);
    let deadline = config.push_timeout;
    let outcome = runtime.block_on(async {
        tokio::time::timeout(deadline, source.push(config))
            .await
            .unwrap_or_else(|_| {
                Err(CommandError::retry(format!(
                    "{name} was not acknowledged by {} within push_timeout = {deadline:?}",
                    config.slave
                ))
                .hint("PostgreSQL keeps the file and will try again"))
            })
    });
    // A reader that is stuck in a dead disk must not hold the exit back.
    runtime.shutdown_background();
    verdict(config, name, outcome?)
}

/// A copy of the master brings the master's `archive_command` along: promoted beside it, it would archive a timeline
/// of its own in the master's name. PostgreSQL runs commands in its data directory.
fn refuse_another_server(config: &MasterConfig, path: &Path) -> Result<()> {
    let Ok(here) = std::env::current_dir() else {
        return Ok(());
    };
    let cluster = |data: &Path| control::read(data).ok().map(|control| control.system_id);
    let [own, found] = [&config.master_data, &here].map(|path| FileId::at(path));
    let is_theirs = path.is_relative() || path.starts_with(&here);
    // A server of another cluster hears of that below.
    if own == found
        || !is_theirs
        || cluster(&here).is_none_or(|there| Some(there) != cluster(&config.master_data))
    {
        return Ok(());
    }
    let (here, ini, own) = (
        here.display(),
        config.path.display(),
        config.master_data.display(),
    );
    Err(CommandError::config(format!(
        "the server in {here} archives by {ini}, which is for the server in {own}: nothing was sent"
    ))
    .hint("set archive_mode = off there, or give it an ini file of its own; correct master_data if this server moved"))
}

/// The file to be archived, opened and looked at.
struct ArchivedFile {
    file: Arc<File>,
    name: WalFileName,
    size: u64,
    facts: ClusterFacts,
}

impl ArchivedFile {
    fn open(config: &MasterConfig, path: &Path, name: WalFileName) -> Result<ArchivedFile> {
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
        let metadata = file.metadata().at(Kind::Retry, "look at", path)?;
        if !metadata.is_file() {
            return Err(not_a_file(path, "a directory, a pipe or a device"));
        }
        let facts = ClusterFacts::read(config)?;
        let mut source = ArchivedFile {
            file: Arc::new(file),
            name,
            size: metadata.len(),
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
        if self.size != whole {
            return Err(CommandError::retry(format!(
                "{} has {} bytes where a segment of this cluster has {whole}",
                path.display(),
                self.size
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
        if self.size <= SMALL_FILE_BYTES_MAX {
            return Ok(());
        }
        Err(CommandError::retry(format!(
            "{} has {} bytes where a {} has at most {SMALL_FILE_BYTES_MAX}",
            path.display(),
            self.size,
            self.name
        ))
        .hint("nothing was sent; look at the file: PostgreSQL writes only a few lines into it"))
    }

    /// Sees that the receiver lets us in.
    async fn greet(&self, config: &MasterConfig) -> Result<()> {
        let asking = Asking::connect(config, &self.facts).await?;
        asking.close().await;
        Ok(())
    }

    async fn push(self, config: &MasterConfig) -> Result<Outcome> {
        // The checksum is taken while the other side is being greeted.
        let crc32 = push::start_digest(&self.file, self.size);
        let mut connection = ReceiverTarget::from_config(config)?
            .connect(self.facts.cluster, self.facts.timeline)
            .await?;
        let crc32 = crc32.await?;
        if let WalFileName::Segment(_) | WalFileName::Partial(_) = self.name {
            let (wire, most) = (&mut connection.wire, connection.welcome.block_bytes_max);
            histories::push_once(config, wire, self.name.timeline(), most).await;
        }
        let block_bytes = config.block_size.min(connection.welcome.block_bytes_max);
        let blocks = Blocks {
            block_bytes,
            compression: config.compression,
        };
        let offer = Offer {
            name: self.name,
            size: self.size,
            crc32,
            verify: verify(config),
        };
        push::push(&mut connection.wire, self.file, offer, blocks).await
    }
}

/// The outcome in PostgreSQL's terms.
fn verdict(config: &MasterConfig, name: WalFileName, outcome: Outcome) -> Result<()> {
    let receiver = &config.slave;
    match outcome {
        Outcome::Stored => {
            tracing::debug!("{name} is durable on {receiver}");
            Ok(())
        }
        Outcome::Conflict(stored) => Err(CommandError::new(
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
        Outcome::SourceChanged => Err(CommandError::retry(format!(
            "{name} changed while it was read; nothing was stored"
        ))
        .hint(
            "PostgreSQL recycles a segment only after it was archived: did somebody run this by \
            hand?",
        )),
        Outcome::Refused(error) => Err(refused(receiver, &format!("did not store {name}"), error)),
    }
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
