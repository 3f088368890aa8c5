//! WireGuard's socket, `/var/run/wireguard/NAME.sock`: any number of requests per connection.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{Errno, Operation, Parser, Progress, Request, format_errno, format_get};
use crate::profile::Name;
use crate::socket_file::Service;

/// Where `wg` looks for sockets; compiled into it.
pub const DIRECTORY: &str = "/var/run/wireguard";
/// Connections served at a time.
pub const CONNECTION_LIMIT: usize = 16;
/// How long a client may take to send a request or to read the answer.
pub const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the gateway may take to answer.
pub const GATEWAY_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes read at a time; no line may be longer.
const BUFFER: usize = 4096;

/// Serves the socket where `wg` looks for `name`. Must be called within a tokio runtime.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if somebody else is serving it; other errors of the file system.
pub fn serve(name: &Name) -> io::Result<Service<Request>> {
    serve_in(Path::new(DIRECTORY), name)
}

/// As [`serve`], in another directory than [`DIRECTORY`].
///
/// # Errors
/// As [`serve`].
pub fn serve_in(directory: &Path, name: &Name) -> io::Result<Service<Request>> {
    Service::start(directory, &format!("{name}.sock"), accept)
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<Request>) {
    let places = Arc::new(Semaphore::new(CONNECTION_LIMIT));
    // Dropped with this future, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        // A client is accepted when there is room; otherwise it waits in the kernel's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let requests = requests.clone();
                connections.spawn(async move {
                    if let Err(error) = converse(stream, &requests).await {
                        tracing::debug!("WireGuard socket: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("WireGuard socket: {error}");
                // Most likely the descriptors are used up: trying again at once would not help.
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, requests: &mpsc::Sender<Request>) -> io::Result<()> {
    let mut client = Client { stream, buffer: Zeroizing::new([0; BUFFER]), start: 0, end: 0 };
    loop {
        let Some(request) = timeout(CLIENT_PATIENCE, client.request()).await?? else {
            return Ok(());
        };
        let (answer, last) = match request {
            Ok(operation) => (answer(operation, requests).await, false),
            // The rest of the request was not read, so what follows cannot be told from it.
            Err(errno) => (Zeroizing::new(format_errno(Err(errno))), errno == Errno::TooLarge),
        };
        timeout(CLIENT_PATIENCE, client.stream.write_all(answer.as_bytes())).await??;
        if last {
            return client.stream.shutdown().await;
        }
    }
}

async fn answer(operation: Operation, requests: &mpsc::Sender<Request>) -> Zeroizing<String> {
    let answer = async {
        match operation {
            Operation::Get => {
                let (reply, answer) = oneshot::channel();
                requests.send(Request::Get { reply }).await.map_err(|_| Errno::Io)?;
                answer.await.map_err(|_| Errno::Io)?.map(|device| format_get(&device))
            }
            Operation::Set(change) => {
                let (reply, answer) = oneshot::channel();
                requests.send(Request::Set { change, reply }).await.map_err(|_| Errno::Io)?;
                answer.await.map_err(|_| Errno::Io)?.map(|()| Zeroizing::new(format_errno(Ok(()))))
            }
        }
    };
    let outcome = timeout(GATEWAY_PATIENCE, answer).await.unwrap_or(Err(Errno::Io));
    outcome.unwrap_or_else(|errno| Zeroizing::new(format_errno(Err(errno))))
}

/// A connection, and what was read from it but not parsed yet.
struct Client {
    stream: UnixStream,
    buffer: Zeroizing<[u8; BUFFER]>,
    start: usize,
    end: usize,
}

impl Client {
    /// The next request, or `None` if the client has no more.
    async fn request(&mut self) -> io::Result<Option<Result<Operation, Errno>>> {
        let mut parser = Parser::default();
        loop {
            let unread = &self.buffer[self.start..self.end];
            if let Some(length) = unread.iter().position(|&b| b == b'\n') {
                let progress = parser.line(&unread[..length]);
                self.start += length + 1;
                if let Progress::Done(request) = progress {
                    return Ok(Some(request));
                }
                continue;
            }
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.end == BUFFER {
                return Ok(Some(Err(Errno::TooLarge)));
            }
            let count = self.stream.read(&mut self.buffer[self.end..]).await?;
            if count == 0 {
                // A client that leaves in the middle of a request no longer wants anything.
                return Ok(None);
            }
            self.end += count;
        }
    }
}

#[cfg(test)]
mod tests;
