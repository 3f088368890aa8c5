//! A DNS server in a namespace, over UDP and TCP, whose zone and behaviour a test can change while it runs.

use super::Namespace;
use hickory_resolver::proto::op::{Message, Query, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it checks whether it should end.
const TICK: Duration = Duration::from_millis(20);

/// What a name server does with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    Answers,
    /// Says over UDP that the answer is too long for it.
    Truncates,
    /// Receives the question and sends nothing.
    IsSilent,
    Fails,
}

/// A question that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub at: Instant,
    /// With the final dot, in lower case.
    pub name: String,
    pub kind: RecordType,
    pub tcp: bool,
    pub edns: bool,
}

pub struct NameServer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    zone: Mutex<HashMap<String, (Vec<IpAddr>, u32)>>,
    conduct: Mutex<Conduct>,
    asked: Mutex<Vec<Asked>>,
    ended: AtomicBool,
}

impl NameServer {
    /// Starts one on port 53 of an address of the namespace; it knows no names yet.
    pub fn start(namespace: &Namespace, address: IpAddr) -> Self {
        let shared = Arc::new(Shared {
            zone: Mutex::default(),
            conduct: Mutex::new(Conduct::Answers),
            asked: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let at = SocketAddr::new(address, 53);
        let (udp, tcp) = namespace
            .enter(|| (UdpSocket::bind(at).expect("a UDP socket"), TcpListener::bind(at).expect("a TCP socket")));
        udp.set_read_timeout(Some(TICK)).expect("a timeout");
        tcp.set_nonblocking(true).expect("not blocking");
        let (by_udp, by_tcp) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || by_udp.serve_udp(&udp)),
            std::thread::spawn(move || by_tcp.serve_tcp(&tcp)),
        ];
        Self { shared, threads }
    }

    /// What a name resolves to from now on, with its time to live in seconds. The name ends with a dot.
    pub fn set(&self, name: &str, addresses: &[&str], ttl: u32) {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        self.shared.zone.lock().expect("unpoisoned").insert(name.to_owned(), (addresses, ttl));
    }

    pub fn behave(&self, conduct: Conduct) {
        *self.shared.conduct.lock().expect("unpoisoned") = conduct;
    }

    /// All questions so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().expect("unpoisoned").clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve_udp(&self, socket: &UdpSocket) {
        let mut datagram = [0; 1500];
        while !self.ended.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
            if let Some(answer) = self.answer(&datagram[..length], false) {
                let _ = socket.send_to(&answer, from);
            }
        }
    }

    fn serve_tcp(&self, listener: &TcpListener) {
        while !self.ended.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => drop(self.serve_stream(stream)),
                Err(_) => std::thread::sleep(TICK),
            }
        }
    }

    fn serve_stream(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question)?;
            if let Some(answer) = self.answer(&question, true) {
                stream.write_all(&(answer.len() as u16).to_be_bytes())?;
                stream.write_all(&answer)?;
            }
        }
    }

    fn answer(&self, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).ok()?;
        let query: Query = question.queries.first()?.clone();
        let name = query.name().to_string().to_lowercase();
        let kind = query.query_type();
        let edns = question.edns.is_some();
        let asked = Asked { at: Instant::now(), name: name.clone(), kind, tcp, edns };
        self.asked.lock().expect("unpoisoned").push(asked);
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_query(query.clone());
        match *self.conduct.lock().expect("unpoisoned") {
            Conduct::IsSilent => return None,
            Conduct::Fails => answer.metadata.response_code = ResponseCode::ServFail,
            Conduct::Truncates if !tcp => answer.metadata.truncation = true,
            Conduct::Truncates | Conduct::Answers => match self.zone.lock().expect("unpoisoned").get(&name) {
                None => answer.metadata.response_code = ResponseCode::NXDomain,
                Some((addresses, ttl)) => {
                    let data = addresses.iter().map(|address| RData::from(*address));
                    for data in data.filter(|data| data.record_type() == kind) {
                        answer.add_answer(Record::from_rdata(query.name().clone(), *ttl, data));
                    }
                }
            },
        }
        answer.to_vec().ok()
    }
}
