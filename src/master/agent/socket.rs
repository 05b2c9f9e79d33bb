//! The socket beside an agent's pidfile: who may listen there, and who may ask.
//! Never removes what is not a socket of this user's own. Invariant: nobody is asked or answered who is neither this
//! user nor root.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Access;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::geteuid;

use crate::config::MasterConfig;
use crate::files::{self, FileId};

/// Those that wait to be accepted: an archiver asks for one file at a time.
const BACKLOG: i32 = 16;

/// How soon it is looked again whether somebody listens.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The pidfiles of those who may be asked with these settings, the syncdaemon's first.
pub(in crate::master) fn pidfiles(config: &MasterConfig) -> [PathBuf; 2] {
    [config.syncdaemon_pidfile(), on_demand_pidfile(config)]
}

/// The pidfile of an agent that is no syncdaemon.
pub(in crate::master) fn on_demand_pidfile(config: &MasterConfig) -> PathBuf {
    let mut name = config.syncdaemon_pidfile().into_os_string();
    name.push(".ahead");
    name.into()
}

/// Where the agent with this pidfile listens.
pub(in crate::master) fn beside(pidfile: &Path) -> PathBuf {
    let mut name = pidfile.as_os_str().to_owned();
    name.push(".agent");
    name.into()
}

/// Whether the agent with this pidfile could listen: its folder takes files of this user's, the path is short enough, and
/// nothing of somebody else's lies there.
pub(in crate::master) fn can_listen(pidfile: &Path) -> bool {
    let (folder, socket) = (files::directory_of(pidfile), beside(pidfile));
    let may_write = rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    may_write && SocketAddrUnix::new(&socket).is_ok() && own_socket(&socket).is_ok()
}

/// Waits until somebody listens there, or for so long.
pub(in crate::master) fn wait_until_heard(pidfile: &Path, patience: Duration) {
    let (socket, until) = (beside(pidfile), Instant::now() + patience);
    while connect(&socket).is_err() && Instant::now() < until {
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// The socket's name, removed when this is dropped.
#[derive(Debug)]
pub(super) struct BoundSocket {
    path: PathBuf,
    id: Option<FileId>,
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // Whatever else has come to lie there is not ours.
        if own_socket(&self.path).is_ok_and(|found| found.is_some() && found == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens there. The caller holds the lock on the pidfile, so a socket that lies there is that of a daemon that was
/// killed.
pub(super) fn listen(path: &Path) -> io::Result<(OwnedFd, BoundSocket)> {
    if own_socket(path)?.is_some() {
        std::fs::remove_file(path)?;
    }
    let address = SocketAddrUnix::new(path)?;
    let socket = new_socket()?;
    rustix::net::bind(&socket, &address)?;
    let bound = BoundSocket {
        path: path.to_path_buf(),
        id: own_socket(path)?,
    };
    // Until it listens nobody can connect.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket, bound))
}

/// Connects to whoever listens there, without waiting for anybody.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = new_socket()?;
    // A listener that accepts nobody has this fail once its queue is full, where it would otherwise block.
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Refuses an other end that is another user's. Of a listener the kernel says who it was when it began to listen.
pub(super) fn check_peer(socket: impl AsFd) -> io::Result<()> {
    let peer = socket_peercred(socket)?.uid;
    match peer.is_root() || peer == geteuid() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {} is at the other end", peer.as_raw()),
        )),
    }
}

/// What lies there if it is a socket of this user's; an error if it is anything else.
fn own_socket(path: &Path) -> io::Result<Option<FileId>> {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::other("something that is no socket lies there"));
    }
    if found.uid() != geteuid().as_raw() {
        let whose = format!("user {} has a socket there", found.uid());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, whose));
    }
    Ok(Some(FileId::of_metadata(&found)))
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_252_a_stale_socket_is_replaced_and_a_foreign_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.pid.agent");
        let (listening, bound) = listen(&path).unwrap();
        let mode = path.metadata().unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        connect(&path).unwrap();
        check_peer(connect(&path).unwrap()).unwrap();
        // A daemon that was killed leaves its socket.
        drop(listening);
        std::mem::forget(bound);
        let refused = connect(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let (_listening, bound) = listen(&path).unwrap();
        connect(&path).unwrap();
        // What came to lie there since stays.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"mine").unwrap();
        drop(bound);
        assert!(listen(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
        assert!(listen(&path).is_err());
    }

    #[test]
    fn fault_310_nobody_is_begun_where_he_could_not_listen() {
        let folder = tempfile::tempdir().unwrap();
        let pidfile = folder.path().join("master.pid.ahead");
        let socket = beside(&pidfile);
        assert!(can_listen(&pidfile));
        // What one that was killed left is replaced.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(can_listen(&pidfile));
        std::fs::remove_file(&socket).unwrap();
        std::fs::write(&socket, b"mine").unwrap();
        assert!(!can_listen(&pidfile));
        assert!(!can_listen(&folder.path().join("n".repeat(200))));
        assert!(!can_listen(&folder.path().join("absent/master.pid.ahead")));
    }

    #[test]
    fn a_listener_that_accepts_nobody_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.pid.agent");
        let (_listening, _bound) = listen(&path).unwrap();
        let connected: Vec<_> = (0..64).map_while(|_| connect(&path).ok()).collect();
        assert!((1..64).contains(&connected.len()));
        let refused = connect(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }
}
