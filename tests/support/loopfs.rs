//! Small file systems of a test's own: ext4 or XFS on a loop device, and tmpfs.
//! Never formats anything but an image it created. Invariant: in the end nothing is mounted or
//! attached. `power_cut` loses everything that was not synced, as pulling the plug would.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::place::{TempDir, give_to_server};
use super::{have, run, wait_for};

/// The kinds of file system that power cuts are made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// With data=ordered, Debian's default.
    Ext4,
    /// It goes on after an error: without a journal there is none that could be aborted.
    Ext4WithoutJournal,
    /// At least 300 MiB; the image is sparse.
    Xfs,
}

/// Takes what is left of a disk, down to its last block, without writing it.
pub fn take_all(disk: &Path) {
    for size_kb in [
        1 << 20,
        1 << 18,
        1 << 16,
        1 << 14,
        1 << 12,
        1 << 10,
        256,
        64,
        16,
        4,
    ] {
        for part in 0..4 {
            let path = disk.join(format!("filler.{size_kb}.{part}"));
            let mut command = Command::new("fallocate");
            let _ = run(command.arg("-l").arg(format!("{size_kb}K")).arg(path));
        }
    }
}

/// Gives back what [`take_all`] took.
pub fn give_back(disk: &Path) {
    for entry in std::fs::read_dir(disk).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("filler") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// A mounted image.
pub struct LoopFs {
    device: Option<String>,
    mounted: bool,
    /// The kernel writes no inode tables of its own accord, which would take what room there is below.
    mount_options: &'static [&'static str],
    mount_point: PathBuf,
    _home: TempDir,
}

impl LoopFs {
    /// A new file system of about this size whose root belongs to the server's user, or why this
    /// machine cannot have one.
    pub fn create(kind: FileSystem, size_mb: u64) -> Result<LoopFs, String> {
        let home = TempDir::new();
        let image = home.join("image");
        Self::create_on(kind, size_mb, &image, home, false)
    }

    /// The same with its image in `folder`: on a full tmpfs, writes succeed and fsync fails.
    pub fn create_in(kind: FileSystem, size_mb: u64, folder: &Path) -> Result<LoopFs, String> {
        Self::create_on(kind, size_mb, &folder.join("image"), TempDir::new(), true)
    }

    fn create_on(
        kind: FileSystem,
        size_mb: u64,
        image: &Path,
        home: TempDir,
        thin: bool,
    ) -> Result<LoopFs, String> {
        let (size_mb, mkfs, options): (u64, &str, &[&str]) = match kind {
            FileSystem::Ext4 => (size_mb, "mkfs.ext4", &["-q", "-E", "root_owner"]),
            FileSystem::Ext4WithoutJournal => {
                let options = &["-q", "-E", "root_owner", "-O", "^has_journal"];
                (size_mb, "mkfs.ext4", options)
            }
            FileSystem::Xfs => (size_mb.max(300), "mkfs.xfs", &["-q"]),
        };
        needs_root_and(&["losetup", "mount", "umount", "perl", mkfs])?;
        let file = std::fs::File::create_new(image).map_err(|error| error.to_string())?;
        file.set_len(size_mb << 20)
            .map_err(|error| error.to_string())?;
        let device = run(Command::new("losetup").args(["-f", "--show"]).arg(image))
            .map_err(|error| format!("no loop device: {error}"))?;
        let mut disk = LoopFs {
            device: Some(device.trim().to_owned()),
            mounted: false,
            mount_options: match kind {
                FileSystem::Ext4 | FileSystem::Ext4WithoutJournal => &["-o", "noinit_itable"],
                FileSystem::Xfs => &[],
            },
            mount_point: home.create_dir("mnt"),
            _home: home,
        };
        if thin {
            disk.make_requests_small()?;
        }
        run(Command::new(mkfs).args(options).arg(disk.device()))
            .map_err(|e| format!("no {mkfs}: {e}"))?;
        disk.mount(&[])?;
        give_to_server(disk.path());
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Shuts the file system down without flushing its log: every operation on it fails from
    /// here on. `remount` then shows what a machine would find after the power came back.
    pub fn power_cut(&self) {
        // FS_IOC_SHUTDOWN with FSOP_GOING_FLAGS_NOLOGFLUSH, include/uapi/linux/fs.h. Perl is part
        // of every Debian, xfs_io is not.
        let shutdown = "sysopen(my $dir, $ARGV[0], 0) or die qq(open: $!); \
             my $how = pack('L', 2); \
             defined(ioctl($dir, 0x8004587d, $how)) or die qq(ioctl: $!)";
        run(Command::new("perl").args(["-e", shutdown]).arg(self.path())).unwrap();
    }

    /// Unmounts, waiting a moment for processes that still have files open, and mounts again,
    /// which replays the log. Whoever is in another mount namespace may have the file system that was shut down a
    /// moment longer, and whoever mounts meanwhile gets that again.
    pub fn remount(&mut self) {
        for _ in 0..600 {
            self.unmount();
            self.mount(&[]).unwrap();
            let listed = std::fs::read_dir(self.path()).map(|names| names.flatten().count());
            let probe = self.path().join(".remounted");
            let written = std::fs::write(&probe, "").and_then(|()| std::fs::remove_file(&probe));
            if listed.is_ok() && written.is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{} is still what it was before", self.path().display());
    }

    /// Makes it read-only, or writable again, for everybody who has it open.
    pub fn set_read_only(&self, read_only: bool) {
        let options = if read_only {
            "remount,ro"
        } else {
            "remount,rw"
        };
        // Busy as long as somebody writes a file, which behind an answer may take a moment more.
        wait_for("nobody writes any more", Duration::from_secs(60), || {
            let mut mount = Command::new("mount");
            match run(mount.args(["-o", options]).arg(self.path())) {
                Ok(_) => Some(()),
                Err(text) if text.contains("is busy") => None,
                Err(text) => panic!("{text}"),
            }
        });
    }

    /// Makes ext4 do what it does after an error it cannot repair: it goes read-only for good.
    pub fn abort(&self) {
        let mut mount = Command::new("mount");
        run(mount.args(["-o", "remount,abort"]).arg(self.path())).unwrap();
    }

    /// Takes it away from below processes that use it: their open directories live on, the path
    /// leads to the empty mount point. Call `unmount` when they are gone.
    pub fn detach(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.path())).unwrap();
        self.mounted = false;
    }

    /// Commits the journal by syncing an unrelated file, which exposes a rename whose data was
    /// never synced.
    pub fn sync_unrelated_file(&self) {
        let path = self.path().join(".unrelated");
        let file = std::fs::File::create(path).unwrap();
        file.sync_all().unwrap();
    }

    /// Unmounts it; files below [`LoopFs::path`] are then those of the empty mount point.
    pub fn unmount(&mut self) {
        if self.mounted {
            unmount(&self.mount_point).unwrap();
            self.mounted = false;
        }
    }

    fn mount(&mut self, options: &[&str]) -> Result<(), String> {
        let mut mount = Command::new("mount");
        run(mount
            .args(self.mount_options)
            .args(options)
            .arg(self.device())
            .arg(&self.mount_point))?;
        self.mounted = true;
        Ok(())
    }

    /// Linux's loop driver calls a request done of which only a part found room below, so that fsync
    /// succeeds on lost data. A request of one page either fits or fails.
    fn make_requests_small(&self) -> Result<(), String> {
        let name = self.device().trim_start_matches("/dev/");
        let setting = format!("/sys/block/{name}/queue/max_sectors_kb");
        std::fs::write(&setting, "4").map_err(|error| format!("{setting}: {error}"))
    }

    fn device(&self) -> &str {
        self.device.as_deref().expect("attached until dropped")
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if self.mounted {
            unmount_somehow(&self.mount_point);
        }
        if let Some(device) = self.device.take() {
            let _ = run(Command::new("losetup").args(["-d", &device]));
        }
    }
}

/// A file system in memory with bounds on its bytes and inodes.
pub struct TmpFs {
    mount_point: PathBuf,
    _home: TempDir,
}

impl TmpFs {
    /// Mounts one of this size that holds at most `inodes` files, 0 meaning any number.
    pub fn create(size_kb: u64, inodes: u64) -> Result<TmpFs, String> {
        needs_root_and(&["mount", "umount"])?;
        let home = TempDir::new();
        let mount_point = home.create_dir("mnt");
        let options = format!("size={size_kb}k,nr_inodes={inodes},mode=755");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&mount_point))?;
        give_to_server(&mount_point);
        Ok(TmpFs {
            mount_point,
            _home: home,
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }
}

impl Drop for TmpFs {
    fn drop(&mut self) {
        unmount_somehow(&self.mount_point);
    }
}

fn needs_root_and(programs: &[&str]) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("mounting needs root".to_owned());
    }
    match programs.iter().find(|program| !have(program)) {
        Some(missing) => Err(format!("{missing} is not installed")),
        None => Ok(()),
    }
}

fn unmount(path: &Path) -> Result<(), String> {
    let mut result = Ok(());
    for _ in 0..100 {
        result = run(Command::new("umount").arg(path)).map(|_| ());
        if result.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    result
}

/// Lets go of the name at least, when somebody still has a file open.
fn unmount_somehow(path: &Path) {
    if unmount(path).is_err() {
        let _ = run(Command::new("umount").arg("-l").arg(path));
    }
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_loses_what_was_not() {
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        let mut disk = match LoopFs::create(kind, 32) {
            Ok(disk) => disk,
            Err(reason) => {
                super::report_skip(&reason);
                continue;
            }
        };
        let synced = disk.path().join("synced");
        std::fs::write(&synced, "kept").unwrap();
        std::fs::File::open(&synced).unwrap().sync_all().unwrap();
        std::fs::File::open(disk.path())
            .unwrap()
            .sync_all()
            .unwrap();
        std::fs::write(disk.path().join("unsynced"), "lost").unwrap();
        disk.power_cut();
        assert!(std::fs::write(disk.path().join("late"), "x").is_err());
        disk.remount();
        assert_eq!(std::fs::read(&synced).unwrap(), b"kept");
        assert!(!disk.path().join("unsynced").exists());
        disk.set_read_only(true);
        assert!(std::fs::write(disk.path().join("read-only"), "x").is_err());
        disk.set_read_only(false);
        disk.sync_unrelated_file();
        let device = disk.device().to_owned();
        let mount_point = disk.path().to_path_buf();
        drop(disk);
        assert!(!mount_point.exists());
        assert!(
            run(Command::new("losetup").arg(&device)).is_err(),
            "{device} is still attached"
        );
    }
}

#[test]
fn a_small_tmpfs_is_soon_full_of_bytes_or_of_files() {
    let few_bytes = skip_unless!(TmpFs::create(64, 0));
    let error = std::fs::write(few_bytes.path().join("a"), vec![1; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let few_files = skip_unless!(TmpFs::create(64, 3));
    let written =
        (0..9).filter(|n| std::fs::write(few_files.path().join(n.to_string()), "").is_ok());
    assert_eq!(written.count(), 2);
}
