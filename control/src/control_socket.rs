//! The gateway's own control socket, `/run/penstock/NAME.sock`, and the lock beside it that keeps a
//! name to one gateway.
//!
//! A connection is one line of JSON each way: a [`Command`] and its [`Answer`].

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::history::{History, Wanted};
use crate::netcheck::Report;
use crate::profile::{Name, Unsaved};
use crate::socket_file::{Service, make_directory};
use crate::status::Status;

/// Where sockets, locks and logs are, unless `PENSTOCK_RUNTIME_DIR` or systemd's `RUNTIME_DIRECTORY`
/// says otherwise.
pub const DIRECTORY: &str = "/run/penstock";
/// Longest command.
const COMMAND_LIMIT: u64 = 64 << 10;
/// Longest answer: the status of the largest gateway.
const ANSWER_LIMIT: u64 = 64 << 20;
/// How long each side may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after a failed connection the next is taken.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// How often the lock is tried again, and how long after.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What the command line asks a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Show yourself.
    Status,
    /// What passed lately?
    History(Wanted),
    /// What do you know of your network?
    Netcheck,
    /// Read your profile again.
    Reload,
    /// What did `wg set` change that the profile does not say?
    Unsaved,
    /// Lift the guard from prefixes that no peer has any more.
    Release(Release),
    /// Stop in order, and keep the guard.
    Stop,
    /// Stop in order, and lift the guard.
    StopAndRelease,
}

/// From which prefixes the guard is lifted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Release {
    /// From all that no peer has.
    All,
    /// From these.
    Prefixes(Vec<IpNet>),
}

/// What became of a [`Command::Release`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// No longer blocked.
    pub released: Vec<IpNet>,
    /// Still led into the tunnel, so they stay guarded.
    pub in_use: Vec<IpNet>,
    /// Not guarded in the first place.
    pub unknown: Vec<IpNet>,
}

/// What became of a [`Command::Reload`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What is in force now, as fields of the profile or as sentences.
    pub changed: Vec<String>,
    /// What is not in force, with the reason.
    pub not_applied: Vec<String>,
}

/// What the gateway answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The answer to [`Command::Status`].
    Status(Box<Status>),
    /// The answer to [`Command::History`].
    History(Box<History>),
    /// The answer to [`Command::Netcheck`].
    Netcheck(Box<Report>),
    /// The answer to [`Command::Reload`].
    Reloaded(Reloaded),
    /// The answer to [`Command::Unsaved`].
    Unsaved(Box<Unsaved>),
    /// The answer to [`Command::Release`].
    Released(Released),
    /// The answer to [`Command::Stop`] and [`Command::StopAndRelease`]: it is on its way out.
    Stopping,
    /// It cannot; a sentence.
    Error(String),
}

/// What the gateway is asked over the socket. A dropped `reply` is answered as an error.
#[derive(Debug)]
pub enum Request {
    /// Show yourself.
    Status {
        /// For the answer.
        reply: oneshot::Sender<Status>,
    },
    /// What passed lately?
    History {
        /// Which part of it.
        wanted: Wanted,
        /// For the answer.
        reply: oneshot::Sender<History>,
    },
    /// What do you know of your network?
    Netcheck {
        /// For the answer, which is given at once.
        reply: oneshot::Sender<Report>,
    },
    /// Read the profile again.
    Reload {
        /// What became of it, or what is wrong with the profile.
        reply: oneshot::Sender<Result<Reloaded, String>>,
    },
    /// What did `wg set` change?
    Unsaved {
        /// For the answer.
        reply: oneshot::Sender<Unsaved>,
    },
    /// Lift the guard.
    Release {
        /// From which prefixes.
        what: Release,
        /// What became of it.
        reply: oneshot::Sender<Released>,
    },
    /// Stop in order.
    Stop {
        /// Whether the guard is lifted.
        release: bool,
        /// To say that it was heard.
        reply: oneshot::Sender<()>,
    },
}

/// The directory of this process's sockets, locks and logs.
#[must_use]
pub fn directory() -> PathBuf {
    let given = std::env::var_os("PENSTOCK_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    if let Some(given) = given {
        return given.into();
    }
    // systemd gives a list with colons; ours is the first.
    let given = std::env::var("RUNTIME_DIRECTORY").unwrap_or_default();
    match given.split(':').next() {
        None | Some("") => DIRECTORY.into(),
        Some(first) => first.into(),
    }
}

/// The right to run under a name. Held by one process; given back when dropped or dead.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// Takes the right to run as `name`, in the usual [`directory`].
///
/// # Errors
/// Another gateway has it, or there is no lock file to be had.
pub fn lock(name: &Name) -> Result<Lock, LockError> {
    Lock::take(&directory(), name)
}

/// Why a name is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another gateway has it.
    #[error("{name} is already running{}", .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Taken {
        /// The name.
        name: Name,
        /// The other's process.
        pid: Option<u32>,
    },
    /// The lock file cannot be had.
    #[error("the lock {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

impl Lock {
    /// Takes the right to run as `name`.
    ///
    /// # Errors
    /// Another gateway has it, or there is no lock file to be had.
    pub fn take(directory: &Path, name: &Name) -> Result<Self, LockError> {
        let path = directory.join(format!("{name}.lock"));
        let failed = |error| LockError::File { path: path.clone(), error };
        make_directory(directory).map_err(failed)?;
        let mut tries = 0;
        loop {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                // Perhaps somebody is only looking: see is_taken.
                Err(TryLockError::WouldBlock) if tries < LOCK_TRIES => {
                    tries += 1;
                    std::thread::sleep(LOCK_PAUSE);
                    continue;
                }
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    let _ = file.take(32).read_to_string(&mut text);
                    return Err(LockError::Taken { name: name.clone(), pid: text.trim().parse().ok() });
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            // The last owner removed its file between our open and our lock: nobody else sees it.
            let named = std::fs::metadata(&path).ok().map(|metadata| metadata.ino());
            if named != Some(file.metadata().map_err(failed)?.ino()) {
                continue;
            }
            file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
            return Ok(Self { file, path });
        }
    }

    /// Whether a gateway of this name runs.
    #[must_use]
    pub fn is_taken(directory: &Path, name: &Name) -> bool {
        let path = directory.join(format!("{name}.lock"));
        // Shared, so that those who look are not in each other's way.
        File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While still locked: whoever opened the file meanwhile will see that it lost its name.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

/// Serves the control socket of `name`, whose [`Lock`] should be held. Must be called within a tokio
/// runtime.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if somebody answers there; whatever the file system says.
pub fn serve(name: &Name) -> io::Result<Service<Request>> {
    serve_in(&directory(), name)
}

/// Serves another directory than [`directory`].
///
/// # Errors
/// As [`serve`].
pub fn serve_in(directory: &Path, name: &Name) -> io::Result<Service<Request>> {
    Service::start(directory, &format!("{name}.sock"), accept)
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<Request>) {
    loop {
        // One after the other: the clients are administrators.
        let outcome = match listener.accept().await {
            Ok((stream, _)) => timeout(PATIENCE, converse(stream, &requests)).await.unwrap_or(Ok(())),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::debug!("control socket: {error}");
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
}

async fn converse(stream: UnixStream, requests: &mpsc::Sender<Request>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut stream).take(COMMAND_LIMIT).read_until(b'\n', &mut line).await?;
    let answer = match serde_json::from_slice(&line) {
        Ok(Command::Status) => {
            let (reply, answer) = oneshot::channel();
            // A refused request drops its reply, which shows below.
            let _ = requests.send(Request::Status { reply }).await;
            answer.await.map(|status| Answer::Status(Box::new(status))).ok()
        }
        Ok(Command::History(wanted)) => {
            let (reply, answer) = oneshot::channel();
            let _ = requests.send(Request::History { wanted, reply }).await;
            answer.await.map(|history| Answer::History(Box::new(history))).ok()
        }
        Ok(Command::Netcheck) => {
            let (reply, answer) = oneshot::channel();
            let _ = requests.send(Request::Netcheck { reply }).await;
            answer.await.map(|report| Answer::Netcheck(Box::new(report))).ok()
        }
        Ok(Command::Reload) => {
            let (reply, answer) = oneshot::channel();
            let _ = requests.send(Request::Reload { reply }).await;
            answer.await.map(|outcome| outcome.map_or_else(Answer::Error, Answer::Reloaded)).ok()
        }
        Ok(Command::Unsaved) => {
            let (reply, answer) = oneshot::channel();
            let _ = requests.send(Request::Unsaved { reply }).await;
            answer.await.map(|unsaved| Answer::Unsaved(Box::new(unsaved))).ok()
        }
        Ok(Command::Release(what)) => {
            let (reply, answer) = oneshot::channel();
            let _ = requests.send(Request::Release { what, reply }).await;
            answer.await.map(Answer::Released).ok()
        }
        Ok(command @ (Command::Stop | Command::StopAndRelease)) => {
            let (reply, answer) = oneshot::channel();
            let release = command == Command::StopAndRelease;
            let _ = requests.send(Request::Stop { release, reply }).await;
            answer.await.map(|()| Answer::Stopping).ok()
        }
        Err(_) => Some(Answer::Error("this gateway does not know that command".into())),
    };
    let answer = answer.unwrap_or_else(|| Answer::Error("the gateway is on its way out".into()));
    stream.write_all(&encode(&answer)?).await
}

/// An answer as a line. It may hold secrets: of a buffer that grows, copies would stay behind.
fn encode(answer: &Answer) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut length = Length(1);
    serde_json::to_writer(&mut length, answer)?;
    let mut text = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *text, answer)?;
    text.push(b'\n');
    Ok(text)
}

/// Counts what is written to it.
struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("it is not running")]
    NotRunning,
    /// The connection ended without an answer: it stops, or crashed.
    #[error("it went away without an answer")]
    Gone,
    /// The socket, or what came out of it, is not as it should be.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Asks the gateway of that name.
///
/// # Errors
/// There is no answer.
pub fn ask(directory: &Path, name: &Name, command: Command) -> Result<Answer, AskError> {
    use std::io::ErrorKind;
    let path = directory.join(format!("{name}.sock"));
    let mut stream = std::os::unix::net::UnixStream::connect(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => AskError::NotRunning,
        _ => error.into(),
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    let mut exchange = || {
        let mut line = serde_json::to_vec(&command)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        (&stream).take(ANSWER_LIMIT).read_to_end(&mut text)
    };
    match exchange() {
        Ok(0) => Err(AskError::Gone),
        Ok(_) => Ok(serde_json::from_slice(&text).map_err(io::Error::from)?),
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Err(AskError::Gone),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
