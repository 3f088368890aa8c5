//! A state directory that can be full or read-only: a file system of its own, of a few pages.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{PATIENCE, holds_within};

/// The file system is gone when this is dropped, and must be so before the directory it stands in.
pub struct StateDirectory {
    path: PathBuf,
}

impl StateDirectory {
    /// Makes one in `scratch`. Processes that are to see it have to be started afterwards.
    pub fn new(scratch: &Path) -> Self {
        let path = scratch.join("state");
        std::fs::create_dir(&path).expect("a directory");
        let directory = Self { path };
        assert!(directory.mount(&["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs"]), "a tmpfs cannot be mounted");
        directory
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a process in it is to find in its environment.
    pub fn variable(&self) -> (&'static str, String) {
        ("PENSTOCK_STATE_DIR", self.path.to_str().expect("UTF-8").to_owned())
    }

    /// Leaves no room for a byte more.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("a file");
        let error = loop {
            if let Err(error) = filler.write_all(&[0; 1024]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.filler()).expect("it was filled");
    }

    pub fn set_read_only(&self, read_only: bool) {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        // While a file is being written it cannot be.
        assert!(holds_within(PATIENCE, || self.mount(&["-o", options])), "{options} is refused");
    }

    /// Removes every file.
    pub fn empty(&self) {
        for entry in std::fs::read_dir(&self.path).expect("a directory").flatten() {
            // One that was being written may have its name by now.
            let _ = std::fs::remove_file(entry.path());
        }
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    fn mount(&self, arguments: &[&str]) -> bool {
        let status = Command::new("mount").args(arguments).arg(&self.path).stderr(std::process::Stdio::null()).status();
        status.expect("mount starts").success()
    }
}

impl Drop for StateDirectory {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
