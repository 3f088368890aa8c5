//! A state directory that can be full or read-only: a file system of its own, of a few pages.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{PATIENCE, holds_within};

/// `enum fsconfig_command` of the kernel's `mount.h`.
const SET_FLAG: u32 = 0;
const RECONFIGURE: u32 = 7;

/// The file system is unmounted when this is dropped, which must happen before its directory is removed.
pub struct StateDirectory {
    path: PathBuf,
}

impl StateDirectory {
    /// Makes one in `scratch`. Processes that are to see it have to be started afterwards.
    pub fn new(scratch: &Path) -> Self {
        let path = scratch.join("state");
        std::fs::create_dir(&path).expect("a directory");
        let directory = Self { path };
        let mount = ["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs"];
        let status = Command::new("mount").args(mount).arg(&directory.path).status();
        assert!(status.expect("mount starts").success(), "a tmpfs cannot be mounted");
        directory
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The environment variable for processes that use it.
    pub fn variable(&self) -> (&'static str, String) {
        ("PENSTOCK_STATE_DIR", self.path.to_str().expect("UTF-8").to_owned())
    }

    /// Leaves no room for another byte.
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
        // This fails while a file is being written.
        let set = || self.reconfigure(if read_only { c"ro" } else { c"rw" });
        assert!(holds_within(PATIENCE, set), "read-only {read_only}: {}", std::io::Error::last_os_error());
    }

    /// Changes the file system itself: processes have mount namespaces of their own, which would keep their own flags.
    #[expect(unsafe_code, reason = "system calls that no crate here offers")]
    fn reconfigure(&self, flag: &CStr) -> bool {
        let path = CString::new(self.path.to_str().expect("UTF-8")).expect("a path");
        let none = std::ptr::null::<libc::c_void>();
        // SAFETY: the texts end with a zero and outlive the calls, which write none of our memory. The descriptor that
        // is created here is closed by its owner.
        unsafe {
            let picked = libc::syscall(libc::SYS_fspick, libc::AT_FDCWD, path.as_ptr(), 0);
            if picked < 0 {
                return false;
            }
            let picked = OwnedFd::from_raw_fd(picked as i32);
            let config = |command: u32, key: *const libc::c_char| {
                libc::syscall(libc::SYS_fsconfig, picked.as_raw_fd(), command, key, none, 0) == 0
            };
            config(SET_FLAG, flag.as_ptr()) && config(RECONFIGURE, std::ptr::null())
        }
    }

    /// Removes every file.
    pub fn empty(&self) {
        for entry in std::fs::read_dir(&self.path).expect("a directory").flatten() {
            // One that was being written may have been renamed by now.
            let _ = std::fs::remove_file(entry.path());
        }
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for StateDirectory {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
