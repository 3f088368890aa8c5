//! The gateway's own control socket, `/run/penstock/NAME.sock`, and the lock beside it that allows only one gateway per
//! name.
//!
//! A connection is one line of JSON each way: a [`Command`] and its [`Answer`].

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
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
/// Longest command, in bytes.
const COMMAND_LIMIT: u64 = 64 << 10;
/// Longest answer: the status of the largest gateway.
const ANSWER_LIMIT: u64 = 64 << 20;
/// How long each side may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// How often taking the lock is retried, and the pause in between: a second in all. A gateway that was killed holds it
/// until the kernel has taken down its AF_XDP sockets, and so does a child that it was just starting.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Longest lock file: a process and the path of a profile.
const LOCK_LIMIT: u64 = 64 << 10;

/// What the command line asks a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The state of the gateway.
    Status,
    /// The recent traffic.
    History(Wanted),
    /// What the gateway knows of its network.
    Netcheck,
    /// Read the profile again.
    Reload,
    /// What `wg set` has changed and the profile does not have.
    Unsaved,
    /// Lift the guard from prefixes that no peer has any more.
    Release(Release),
    /// Stop in an orderly way, and keep the guard.
    Stop,
    /// Stop in an orderly way, and lift the guard.
    StopAndRelease,
}

/// The prefixes from which the guard is lifted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Release {
    /// All that no peer has.
    All,
    /// These.
    Prefixes(Vec<IpNet>),
}

/// The result of a [`Command::Release`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// No longer blocked.
    pub released: Vec<IpNet>,
    /// To be released, but the kernel still blocks them. It is tried again.
    #[serde(default)]
    pub still_blocked: Vec<IpNet>,
    /// Still routed into the tunnel, so they stay guarded.
    pub in_use: Vec<IpNet>,
    /// Not guarded in the first place.
    pub unknown: Vec<IpNet>,
}

impl Released {
    /// The same after a look at what the kernel still blocks.
    #[must_use]
    pub fn checked(mut self, held: &BTreeSet<IpNet>) -> Self {
        let blocked = |prefix: &IpNet| held.contains(prefix);
        (self.still_blocked, self.released) = self.released.into_iter().partition(blocked);
        self
    }
}

/// The result of a [`Command::Reload`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What is in force now, as names of profile fields or as sentences.
    pub changed: Vec<String>,
    /// What is not in force, with the reason.
    pub not_applied: Vec<String>,
}

/// A gateway's answer.
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
    /// The answer to [`Command::Stop`] and [`Command::StopAndRelease`]: it is stopping.
    Stopping,
    /// It could not be done; the reason in a sentence.
    Error(String),
}

/// A request to the gateway from the socket. A dropped `reply` is answered as an error.
#[derive(Debug)]
pub enum Request {
    /// The state of the gateway.
    Status {
        /// Takes the answer.
        reply: oneshot::Sender<Status>,
    },
    /// The recent traffic.
    History {
        /// Which part of it.
        wanted: Wanted,
        /// Takes the answer.
        reply: oneshot::Sender<History>,
    },
    /// What the gateway knows of its network.
    Netcheck {
        /// Takes the answer, which comes at once.
        reply: oneshot::Sender<Report>,
    },
    /// Read the profile again.
    Reload {
        /// Takes the result, or what is wrong with the profile.
        reply: oneshot::Sender<Result<Reloaded, String>>,
    },
    /// What `wg set` has changed.
    Unsaved {
        /// Takes the answer.
        reply: oneshot::Sender<Unsaved>,
    },
    /// Lift the guard.
    Release {
        /// The prefixes.
        what: Release,
        /// Takes the result.
        reply: oneshot::Sender<Released>,
    },
    /// Stop in an orderly way.
    Stop {
        /// Whether the guard is lifted.
        release: bool,
        /// Confirms that the request was received.
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
    // systemd gives a list separated by colons; ours is the first.
    let given = std::env::var("RUNTIME_DIRECTORY").unwrap_or_default();
    match given.split(':').next() {
        None | Some("") => DIRECTORY.into(),
        Some(first) => first.into(),
    }
}

/// The right to run under a name. One process holds it; it is released when dropped, or when the process dies.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// Takes the right to run as `name`, in the usual [`directory`].
///
/// # Errors
/// Another gateway has the name, or the lock file cannot be created.
pub fn lock(name: &Name) -> Result<Lock, LockError> {
    Lock::take(&directory(), name)
}

/// Why a name cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another gateway has it.
    #[error("{name} is already running{}", .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Taken {
        /// The name.
        name: Name,
        /// The other gateway's process.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("the lock {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

impl Lock {
    /// Takes the right to run as `name`.
    ///
    /// # Errors
    /// Another gateway has the name, or the lock file cannot be created.
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
                // Perhaps its owner was just killed, or somebody is only checking: see is_taken.
                Err(TryLockError::WouldBlock) if tries < LOCK_TRIES => {
                    tries += 1;
                    std::thread::sleep(LOCK_PAUSE);
                    continue;
                }
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    let _ = file.take(LOCK_LIMIT).read_to_string(&mut text);
                    let pid = text.lines().next().and_then(|line| line.parse().ok());
                    return Err(LockError::Taken { name: name.clone(), pid });
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            // The last owner removed its file between our open and our lock, so nobody else can see it.
            let named = std::fs::metadata(&path).ok().map(|metadata| metadata.ino());
            if named != Some(file.metadata().map_err(failed)?.ino()) {
                continue;
            }
            file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
            return Ok(Self { file, path });
        }
    }

    /// Says which profile the gateway runs with.
    ///
    /// # Errors
    /// The lock file cannot be written.
    pub fn set_profile(&mut self, profile: &Path) -> io::Result<()> {
        let profile = profile.canonicalize()?;
        self.file.write_all(profile.as_os_str().as_bytes())
    }

    /// The gateway that runs with this profile, if there is exactly one.
    #[must_use]
    pub fn running_with(directory: &Path, profile: &Path) -> Option<Name> {
        let profile = profile.canonicalize().ok()?;
        let mut names = std::fs::read_dir(directory).ok()?.filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = Name::try_from(path.file_name()?.to_str()?.strip_suffix(".lock")?.to_owned()).ok()?;
            let mut text = Vec::new();
            File::open(&path).ok()?.take(LOCK_LIMIT).read_to_end(&mut text).ok()?;
            let (_, of) = text.split_at(text.iter().position(|byte| *byte == b'\n')? + 1);
            (of == profile.as_os_str().as_bytes() && Self::is_taken(directory, &name)).then_some(name)
        });
        names.next().filter(|_| names.next().is_none())
    }

    /// Whether a gateway of this name runs.
    #[must_use]
    pub fn is_taken(directory: &Path, name: &Name) -> bool {
        let path = directory.join(format!("{name}.lock"));
        // A shared lock, so that those who check do not get in each other's way.
        File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While still locked, so that whoever opened the file meanwhile notices that it has lost its name.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

/// Serves the control socket of `name`, whose [`Lock`] should be held. Must be called within a tokio
/// runtime.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if somebody else is serving it; other errors of the file system.
pub fn serve(name: &Name) -> io::Result<Service<Request>> {
    serve_in(&directory(), name)
}

/// As [`serve`], in another directory.
///
/// # Errors
/// As [`serve`].
pub fn serve_in(directory: &Path, name: &Name) -> io::Result<Service<Request>> {
    Service::start(directory, &format!("{name}.sock"), accept)
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<Request>) {
    loop {
        // One after the other, since the clients are administrators.
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
            // When the request is refused its reply is dropped, which shows below.
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
    let answer = answer.unwrap_or_else(|| Answer::Error("the gateway is stopping".into()));
    stream.write_all(&encode(&answer)?).await
}

/// An answer as a line. It may hold secrets, and a growing buffer would leave copies behind.
fn encode(answer: &Answer) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut length = Length(1);
    serde_json::to_writer(&mut length, answer)?;
    let mut text = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *text, answer)?;
    text.push(b'\n');
    Ok(text)
}

/// Counts the bytes written to it.
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
    /// The gateway is not running.
    #[error("it is not running")]
    NotRunning,
    /// The connection ended without an answer: the gateway is stopping, or has crashed.
    #[error("it closed the connection without an answer")]
    Gone,
    /// Something is wrong with the socket or the answer.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Sends a command to the gateway of this name.
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
