//! Folders and programs that the unprivileged server of a test can reach.
//! Never places anything below the checkout, which may lie under a private home directory.
//! Invariant: a `TempDir` and everything in it is gone when it is dropped.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::run;

/// All that is below a folder, but the index of an archive's names: the receiver writes that when it has time.
pub fn below_but_index(folder: &Path) -> BTreeMap<PathBuf, Metadata> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("logs.complete/.names") {
                continue;
            }
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, metadata);
        }
    }
    found
}

/// A folder directly below `/tmp`, short enough for Unix sockets, mode 0755.
///
/// It belongs to the user that servers run as, so that they may write in it; a test that runs
/// as root can do so anyway.
pub struct TempDir(tempfile::TempDir);

impl Drop for TempDir {
    /// Tries again where somebody still writes into it: the receiver of a host outlives the folders of its clusters.
    fn drop(&mut self) {
        for _ in 0..20 {
            match std::fs::remove_dir_all(self.0.path()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {}
                _ => return,
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

impl TempDir {
    /// A new, empty folder.
    pub fn new() -> TempDir {
        TempDir::below("/tmp")
    }

    /// The same where syncing costs nothing, if there is such a place.
    pub fn in_memory() -> TempDir {
        let memory = Path::new("/dev/shm");
        TempDir::below(if memory.is_dir() { "/dev/shm" } else { "/tmp" })
    }

    fn below(place: &str) -> TempDir {
        let folder = tempfile::Builder::new()
            .prefix("wm-")
            .tempdir_in(place)
            .expect("create a folder for a test");
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        give_to_server(folder.path());
        TempDir(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of `name` in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file in it that the server can read, and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, content).unwrap();
        give_to_server(&path);
        path
    }

    /// Creates a folder in it that the server can write to, and returns its path.
    pub fn create_dir(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        std::fs::create_dir(&path).unwrap();
        give_to_server(&path);
        path
    }
}

/// User and group that servers run as; `None` when this process is unprivileged already.
pub fn server_user() -> Result<Option<(u32, u32)>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").map_err(|error| error.to_string())?;
    users
        .lines()
        .find_map(|line| {
            let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
            Some(Some((
                fields.next()?.parse().ok()?,
                fields.next()?.parse().ok()?,
            )))
        })
        .ok_or_else(|| "PostgreSQL does not run as root and there is no user postgres".to_owned())
}

/// Makes a command run as the server's user when the tests run as root.
pub fn as_server(command: &mut Command) -> &mut Command {
    if let Ok(Some((user, group))) = server_user() {
        command.uid(user).gid(group);
    }
    command
}

/// Hands a file or a folder with all its content to the server's user.
pub fn give_to_server(path: &Path) {
    if let Ok(Some((user, group))) = server_user() {
        let mut chown = Command::new("chown");
        chown.arg("-hR").arg(format!("{user}:{group}")).arg(path);
        run(&mut chown).unwrap();
    }
}

/// The walmgr of this build, at a path that the server's user can execute.
pub fn walmgr_binary() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| {
        remove_copies_of_dead_processes();
        let folder = PathBuf::from(format!("/tmp/{COPY_PREFIX}{}", std::process::id()));
        std::fs::create_dir(&folder).expect("create a folder for the binary");
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
        let copy = folder.join("walmgr");
        // By another process: a file this one has open for writing can be inherited by a child
        // that another test forks at the moment, and executing it then fails with ETXTBSY.
        let mut install = Command::new("install");
        install
            .args(["-m", "755", env!("CARGO_BIN_EXE_walmgr")])
            .arg(&copy);
        run(&mut install).unwrap();
        copy
    })
}

/// A command that runs walmgr as the server's user in an empty environment but for PATH.
pub fn walmgr() -> Command {
    let mut command = Command::new(walmgr_binary());
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent")
        .env("TZ", "UTC")
        .current_dir("/tmp");
    as_server(&mut command);
    command
}

const COPY_PREFIX: &str = "walmgr-test-binary-";

/// A static is never dropped, so each test process clears away after those before it.
fn remove_copies_of_dead_processes() {
    for entry in std::fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(COPY_PREFIX));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[test]
fn the_binary_is_executable_for_the_server() {
    let _user = skip_unless!(server_user());
    assert!(run(walmgr().arg("--version")).is_ok());
}
