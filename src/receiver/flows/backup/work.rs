//! The worker behind one connection of a backup.
//! Never talks to the socket, and holds no more than the blocks that wait for it. Invariant: when it
//! fails or panics the whole backup is over, and its client is told in words.

use std::sync::{Arc, PoisonError};

use tokio::sync::mpsc;
use walmgr_protocol::compress::Unpacker;
use walmgr_protocol::limits::{BACKUP_PATHS_MAX, BLOCKS_IN_FLIGHT};
use walmgr_protocol::message::backup::{FileDone, Finish, Part};
use walmgr_protocol::message::parent::{FileLen, FileNeed, ParentAnswer, ParentRequest};
use walmgr_protocol::message::{Data, Error, ErrorCode};
use walmgr_protocol::names::RelativePath;
use walmgr_protocol::session::backup::BackupRequest;

use super::incremental;
use super::received::Received;
use super::seal;
use crate::receiver::cluster::ServedCluster;
use crate::receiver::cluster::backups::Resumed;
use crate::receiver::cluster::running::{
    Attachment, BackupPart, BackupReport, PartNumber, Running,
};
use crate::receiver::peer::{AuditedPeer, PeerKey};
use crate::receiver::refusal;
use crate::receiver::shares::Share;
use crate::receiver::worker::{self, AwaitedWork, FromWorker, Say, Worker};
use crate::store::sets::{ParentOfSet, SealedFile};

/// What the connection asks of its worker.
pub(crate) enum BackupJob {
    /// Say what is held of these.
    LookUp(Vec<RelativePath>),
    /// Choose the set that this one is built on.
    ChooseParent(ParentRequest),
    /// Say what is needed of these beside what that holds.
    Compare(Vec<FileLen>),
    /// Unpack this block and take it into the set.
    Write(Data),
    /// See that the stream's tar came to its end too.
    EndStream,
    /// A part begins.
    BeginPart(Part),
    /// Append this block to it.
    WritePart(Data),
    /// Seal the set.
    Finish(Finish),
}

/// The connection's end of a worker.
pub(crate) type BackupWorker = Worker<BackupJob, BackupReport>;

/// Decides about the request and then does what comes. Dropping the value ends it; what it had taken
/// of a file stays, for a stream that comes back.
pub(crate) fn start(
    served: ServedCluster,
    (place, by): (Share, AuditedPeer),
    request: BackupRequest,
    say: impl Fn(FromWorker<BackupReport>) -> bool + Send + Sync + 'static,
) -> BackupWorker {
    let workforce = served.store.workforce.clone();
    Worker::start(
        &workforce,
        AwaitedWork::Backup,
        BLOCKS_IN_FLIGHT,
        say,
        move |inbox, say| {
            let request = said_by(place.key(), request);
            work(&served, (request, &by), inbox, say).inspect_err(|error| {
                tracing::warn!("a connection of a backup ends: {}", error.message);
                served.store.check_health();
            })
        },
    )
}

/// An origin counts for the peer that names it: whoever learned another's may not end its backup.
fn said_by(key: &PeerKey, mut request: BackupRequest) -> BackupRequest {
    if let BackupRequest::Begin(begin) = &mut request {
        begin.origin = format!("{key:?} {}", begin.origin);
    }
    request
}

type Jobs = mpsc::Receiver<BackupJob>;

fn work(
    served: &ServedCluster,
    (request, by): (BackupRequest, &AuditedPeer),
    jobs: Jobs,
    say: &Say<BackupReport>,
) -> Result<(), Error> {
    let running = match request {
        BackupRequest::Begin(begin) => {
            let running = served.store.backups.begin(&begin)?;
            tracing::info!("a backup begins: {}", running.holder());
            running
        }
        BackupRequest::Resume(token) => match served.store.backups.resume(token)? {
            Resumed::Running(running) => {
                tracing::info!("the backup of {} goes on", running.holder());
                running
            }
            Resumed::Sealed(set, facts) => {
                say(BackupReport::Sealed(set, facts));
                return Ok(());
            }
        },
        BackupRequest::Rehearse(asked) => return rehearse(served, &asked, jobs, say),
        BackupRequest::Join(join) => {
            let running = served.store.backups.find(join.token)?;
            running.let_drain(join.stream);
            let part = BackupPart::Stream(join.stream);
            return take_part(&running, part, say, |attachment| {
                stream(&running, join.stream, attachment, jobs, say)
            });
        }
    };
    take_part(&running, BackupPart::Control, say, |attachment| {
        control((served, by), &running, attachment, jobs, say)
    })
}

/// Lets the connection in, and does its work. One that is refused has no part in the backup, and does not end it:
/// its set may be about to be sealed.
fn take_part(
    running: &Arc<Running>,
    part: BackupPart,
    say: &Say<BackupReport>,
    work: impl FnOnce(Attachment) -> Result<(), Error>,
) -> Result<(), Error> {
    let attachment = running.attach(part, say)?;
    let number = attachment.number();
    over_on_failure(running, number, || work(attachment))
}

/// A failure of one connection's work, a panic included, is the end of the backup; but not if another connection has
/// taken its part meanwhile, and goes on.
fn over_on_failure(
    running: &Running,
    part: PartNumber,
    work: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    struct OverOnPanic<'a>(&'a Running);
    impl Drop for OverOnPanic<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.end(&worker::failed_on("backup"));
            }
        }
    }
    let _guard = OverOnPanic(running);
    work().inspect_err(|error| {
        if !running.is_replaced(part) {
            running.end(error);
        }
    })
}

fn stream(
    running: &Arc<Running>,
    number: u16,
    attachment: Attachment,
    mut jobs: Jobs,
    say: &Say<BackupReport>,
) -> Result<(), Error> {
    // The thread of the connection before keeps what it has of a file when it ends.
    let at_work = running.stream_at_work(number);
    let _at_work = at_work.lock().unwrap_or_else(PoisonError::into_inner);
    let mut writer = running.open_stream()?;
    say(BackupReport::Admitted(attachment));
    let mut unpacker = Unpacker::default();
    while let Some(job) = jobs.blocking_recv() {
        match job {
            BackupJob::LookUp(paths) => {
                say(BackupReport::LookedUp(running.held(&paths)?));
            }
            BackupJob::Write(data) => {
                let raw = unpack(&mut unpacker, &data)?;
                running.note_progress(raw.len());
                let files = writer.write(raw).map_err(|error| refusal::of_set(&error))?;
                for files in files.chunks(usize::from(BACKUP_PATHS_MAX)) {
                    let done = files.iter().map(done).collect();
                    say(BackupReport::FilesDone(done));
                }
            }
            BackupJob::EndStream => {
                writer.finish().map_err(|error| refusal::of_set(&error))?;
                say(BackupReport::StreamTaken);
                return Ok(());
            }
            BackupJob::ChooseParent(_)
            | BackupJob::Compare(_)
            | BackupJob::BeginPart(_)
            | BackupJob::WritePart(_)
            | BackupJob::Finish(_) => {
                return Err(out_of_place());
            }
        }
    }
    Ok(())
}

fn control(
    (served, by): (&ServedCluster, &AuditedPeer),
    running: &Arc<Running>,
    attachment: Attachment,
    mut jobs: Jobs,
    say: &Say<BackupReport>,
) -> Result<(), Error> {
    let part_number = attachment.number();
    say(BackupReport::Admitted(attachment));
    let mut parts = Received::default();
    let mut unpacker = Unpacker::default();
    while let Some(job) = jobs.blocking_recv() {
        match job {
            BackupJob::ChooseParent(asked) => {
                let answer = match running.incremental() {
                    Some(chosen) => chosen.answer(),
                    None => choose(served, running, &asked)?,
                };
                say(BackupReport::ParentChosen(answer));
            }
            BackupJob::Compare(files) => {
                let needs = match running.incremental() {
                    Some(chosen) => chosen.needs(&files),
                    None => vec![FileNeed::Whole; files.len()],
                };
                say(BackupReport::Compared(needs));
            }
            BackupJob::BeginPart(part) => parts.begin(part, running)?,
            BackupJob::WritePart(data) => {
                let raw = unpack(&mut unpacker, &data)?;
                running.note_progress(raw.len());
                if !parts.append(raw) {
                    return Err(out_of_place());
                }
            }
            BackupJob::Finish(asked) => {
                let (set, facts) = seal::seal((served, by), running, part_number, &parts, &asked)?;
                say(BackupReport::Sealed(set, facts));
                return Ok(());
            }
            BackupJob::LookUp(_) | BackupJob::Write(_) | BackupJob::EndStream => {
                return Err(out_of_place());
            }
        }
    }
    Ok(())
}

/// Chooses what the backup is built on. Much of its time is to read that set: it begins before the WAL is there.
fn choose(
    served: &ServedCluster,
    running: &Running,
    asked: &ParentRequest,
) -> Result<ParentAnswer, Error> {
    let is_over = || running.is_over();
    match incremental::choose(served, asked, &is_over, ParentOfSet::read_ahead)? {
        Ok(chosen) => Ok(running.build_on(chosen)?.answer()),
        Err(why) => Ok(ParentAnswer::Full(why)),
    }
}

/// Tells what a backup would be built on and send; nothing of it is made.
fn rehearse(
    served: &ServedCluster,
    asked: &ParentRequest,
    mut jobs: Jobs,
    say: &Say<BackupReport>,
) -> Result<(), Error> {
    let chosen = incremental::choose(served, asked, &|| false, |_| ())?;
    say(BackupReport::ParentChosen(match &chosen {
        Ok(chosen) => chosen.answer(),
        Err(why) => ParentAnswer::Full(why.clone()),
    }));
    while let Some(job) = jobs.blocking_recv() {
        match (job, &chosen) {
            (BackupJob::Compare(files), Ok(chosen)) => {
                say(BackupReport::Compared(chosen.needs(&files)));
            }
            (BackupJob::Compare(files), Err(_)) => {
                say(BackupReport::Compared(vec![FileNeed::Whole; files.len()]));
            }
            _ => return Err(out_of_place()),
        }
    }
    Ok(())
}

fn unpack<'a>(unpacker: &'a mut Unpacker, data: &'a Data) -> Result<&'a [u8], Error> {
    unpacker
        .unpack(&data.bytes, data.raw_bytes, data.zstd)
        .map_err(|error| Error::channel(ErrorCode::Malformed, error.to_string(), ""))
}

fn done(file: &SealedFile) -> FileDone {
    FileDone {
        path: file.path.clone(),
        digest: file.digest,
    }
}

/// The session lets none of them through.
fn out_of_place() -> Error {
    Error::channel(
        ErrorCode::Misbehaved,
        "a message out of place in a backup",
        "",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use walmgr_protocol::message::backup::BackupBegin;
    use walmgr_protocol::names::TimelineId;

    use crate::receiver::cluster::backups::testing::{backup, backups_in};
    use crate::store::testing::scratch_folder;

    #[tokio::test]
    async fn fault_58_a_connection_that_is_not_let_in_ends_no_backup() {
        let folder = scratch_folder();
        let running = backups_in(folder.path()).begin(&backup()).unwrap();
        let say: Say<BackupReport> = Arc::new(|_| true);
        let begin = |attachment: Attachment| running.begin_waiting(attachment.number());
        take_part(&running, BackupPart::Control, &say, begin).unwrap();
        for part in [BackupPart::Control, BackupPart::Stream(0)] {
            let refused = take_part(&running, part, &say, |_| Ok(())).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Abandoned, "{part:?}");
            assert!(!running.is_over(), "{part:?}");
        }
        running.begin_sealing().map(drop).unwrap();
    }

    #[tokio::test]
    async fn fault_58_a_failure_of_a_connection_that_was_let_in_ends_its_backup() {
        let folder = scratch_folder();
        let running = backups_in(folder.path()).begin(&backup()).unwrap();
        let say: Say<BackupReport> = Arc::new(|_| true);
        let part = BackupPart::Stream(0);
        take_part(&running, part, &say, |_| Err(out_of_place())).unwrap_err();
        assert!(running.is_over());
    }

    #[tokio::test]
    async fn fault_58_what_a_replaced_connection_still_asks_ends_no_backup() {
        let folder = scratch_folder();
        let running = backups_in(folder.path()).begin(&backup()).unwrap();
        let say: Say<BackupReport> = Arc::new(|_| true);
        let ends = |part| {
            take_part(&running, part, &say, |before| {
                let _successor = running.attach(part, &say)?;
                // What had been read before it was replaced: it is malformed, or asks for the end.
                drop(before);
                Err(out_of_place())
            })
        };
        for part in [BackupPart::Stream(0), BackupPart::Control] {
            assert_eq!(ends(part).unwrap_err().code, ErrorCode::Misbehaved);
            assert!(!running.is_over(), "{part:?}");
        }
        let part = BackupPart::Control;
        take_part(&running, part, &say, |before| {
            let successor = running.attach(part, &say)?;
            let early = running.begin_waiting(before.number()).unwrap_err();
            assert_eq!(early.code, ErrorCode::Abandoned);
            assert!(!running.is_finishing());
            running.begin_waiting(successor.number())?;
            running.begin_waiting(before.number())
        })
        .unwrap_err();
        assert!(running.is_finishing());
        running.begin_sealing().map(drop).unwrap();
    }

    #[test]
    fn fault_116_an_origin_that_another_peer_names_is_another_origin() {
        let named = |key: &str| {
            let begin = BackupBegin {
                who: "db1".to_owned(),
                origin: "the same".to_owned(),
                label: String::new(),
                timeline: TimelineId::FIRST,
            };
            let key = PeerKey::Named(key.to_owned());
            match said_by(&key, BackupRequest::Begin(begin)) {
                BackupRequest::Begin(begin) => begin.origin,
                _ => String::new(),
            }
        };
        assert_eq!(named("db1"), named("db1"));
        assert_ne!(named("db1"), named("stolen"));
    }
}
