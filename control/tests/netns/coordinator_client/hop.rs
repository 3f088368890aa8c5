//! A small HTTP proxy that supports CONNECT, and misbehaves in several ways.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How a proxy behaves.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// Connects as asked.
    Forward,
    /// Connects, and answers one byte at a time.
    Dribble,
    /// Sends this answer, and closes.
    Say(&'static str),
    /// Sends a response head that never ends.
    Endless,
    /// Connects, and sends something before the server does.
    Babble,
    /// Accepts connections and sends nothing.
    Silent,
}

/// A proxy on loopback, with the request heads received so far.
pub struct Hop {
    pub address: SocketAddr,
    pub heads: Arc<Mutex<Vec<String>>>,
}

impl Hop {
    /// Its threads end with the test's process.
    pub fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hop = Self { address: listener.local_addr().unwrap(), heads: Arc::default() };
        let heads = hop.heads.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let heads = heads.clone();
                std::thread::spawn(move || serve(stream, manner, &heads));
            }
        });
        hop
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn serve(mut client: TcpStream, manner: Manner, heads: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let destination = head.split(' ').nth(1).unwrap_or_default().to_owned();
    heads.lock().unwrap().push(head);
    let established = "HTTP/1.1 200 Connection established\r\nVia: 1.1 hop\r\n\r\n";
    match manner {
        Manner::Forward => client.write_all(established.as_bytes())?,
        Manner::Dribble => {
            for byte in established.as_bytes() {
                client.write_all(&[*byte])?;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Manner::Say(text) => return client.write_all(text.as_bytes()),
        Manner::Endless => {
            client.write_all(b"HTTP/1.1 200 OK\r\n")?;
            loop {
                client.write_all(b"X-Filler: 0123456789012345678901234567890123456789\r\n")?;
            }
        }
        Manner::Babble => client.write_all(format!("{established}hello").as_bytes())?,
        Manner::Silent => {
            std::thread::sleep(Duration::from_secs(60));
            return Ok(());
        }
    }
    let server = TcpStream::connect(destination)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client);
    let _ = io::copy(&mut from_server, &mut to_client);
    to_client.shutdown(Shutdown::Both)
}
