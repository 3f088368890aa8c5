//! Unix sockets as files: only for their owner, taking the place of a dead predecessor's, and removed when dropped.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The file of a listening Unix socket, removed when dropped, including on a panic.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    /// Listens at `directory/file_name`, with mode 0600, in a directory that is created with mode 0700 if it does not
    /// exist. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if somebody else is serving it; other errors of the file system. The path is named.
    pub fn bind(directory: &Path, file_name: &str) -> io::Result<(Self, UnixListener)> {
        let path = directory.join(file_name);
        bind(directory, &path).map_err(|error| {
            let reason: &dyn std::fmt::Display = match error.kind() {
                io::ErrorKind::AddrInUse => &"another process answers there",
                _ => &error,
            };
            io::Error::new(error.kind(), format!("{}: {reason}", path.display()))
        })
    }
}

/// A socket being served. Dropping it removes its file and ends its connections.
#[derive(Debug)]
pub struct Service<Request> {
    /// The clients' requests, one at a time: each is answered before the next is taken.
    pub requests: mpsc::Receiver<Request>,
    _file: SocketFile,
    // Aborts the task when dropped.
    _task: JoinSet<()>,
}

impl<Request> Service<Request> {
    /// Serves `directory/file_name`: `accept` takes connections and passes on their requests. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// As [`SocketFile::bind`].
    pub fn start<Accept>(
        directory: &Path,
        file_name: &str,
        accept: impl FnOnce(UnixListener, mpsc::Sender<Request>) -> Accept,
    ) -> io::Result<Self>
    where
        Accept: Future<Output = ()> + Send + 'static,
    {
        let (file, listener) = SocketFile::bind(directory, file_name)?;
        let (sender, requests) = mpsc::channel(1);
        let mut task = JoinSet::new();
        task.spawn(accept(listener, sender));
        Ok(Self { requests, _file: file, _task: task })
    }
}

fn bind(directory: &Path, path: &Path) -> io::Result<(SocketFile, UnixListener)> {
    make_directory(directory)?;
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // Created where nobody else can reach it, then moved: so it never exists with a laxer mode, and it takes a dead
    // predecessor's place in one step.
    let private = tempfile::Builder::new().prefix(".new-").tempdir_in(directory)?;
    let new = private.path().join("s");
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    let inode = std::fs::symlink_metadata(&new)?.ino();
    std::fs::rename(&new, path)?;
    Ok((SocketFile { path: path.to_owned(), inode }, listener))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A successor may have taken its place.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Creates a directory for sockets, with mode 0700, unless it exists.
///
/// # Errors
/// It cannot be created.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_its_owner_may_connect_and_it_goes_when_dropped() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("sockets");
        let (socket, _listener) = SocketFile::bind(&directory, "a.sock").unwrap();
        let path = directory.join("a.sock");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        assert_eq!(SocketFile::bind(&directory, "a.sock").unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_dead_predecessor_is_replaced_and_a_successor_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        // An open listener keeps its inode, whose number the successor might get otherwise.
        let (first, _first_listener) = SocketFile::bind(directory.path(), "a.sock").unwrap();
        std::fs::remove_file(&path).unwrap();
        let (second, _second_listener) = SocketFile::bind(directory.path(), "a.sock").unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_panic_removes_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().to_owned();
        let outcome = std::panic::catch_unwind(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async {
                let _socket = SocketFile::bind(&place, "a.sock").unwrap();
                panic!("on purpose");
            })
        });
        assert!(outcome.is_err());
        assert!(!directory.path().join("a.sock").exists());
    }
}
