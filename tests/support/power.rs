//! A disk whose power is cut behind a command that was killed, again and again.
//! Never judges what is left. Invariant: what was there before the command is on the disk; every other cut comes right
//! after a sync of an unrelated file, which commits names before their content.

use std::path::Path;
use std::process::Command;

use super::loopfs::LoopFs;
use super::run;

/// The disk, and how often its power was cut.
pub struct PowerCuts {
    disk: LoopFs,
    cuts: u32,
}

impl PowerCuts {
    pub fn on(disk: LoopFs) -> PowerCuts {
        PowerCuts { disk, cuts: 0 }
    }

    /// Where the file system is mounted.
    pub fn disk(&self) -> &Path {
        self.disk.path()
    }

    /// Runs something that ends in the middle of its work, cuts the power, and mounts what is left.
    pub fn cut_behind<T>(&mut self, interrupted: impl FnOnce() -> T) -> T {
        run(Command::new("sync").arg("-f").arg(self.disk.path())).unwrap();
        let said = interrupted();
        if self.cuts % 2 == 1 {
            self.disk.sync_unrelated_file();
        }
        self.disk.power_cut();
        self.disk.remount();
        self.cuts += 1;
        said
    }

    /// How many there were.
    pub fn cuts(&self) -> u32 {
        self.cuts
    }
}
