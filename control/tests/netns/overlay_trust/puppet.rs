//! A coordinator that shows each gateway whatever a test wants, true or not. It speaks the real protocol and has a
//! lease key and every document that was ever signed, but not the authority's key.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use penstock_proto::coordination::limits::DOCUMENTS_LIMIT;
use penstock_proto::coordination::{
    Challenger, CoordinatorMessage, Documents, GatewayMessage, Map, Registration, SUBPROTOCOL, SiteKey,
};
use penstock_proto::trust::Document;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;

use crate::coordinator_client::relay::Certificate;
use crate::support::{Namespace, PATIENCE, eventually};

/// What a gateway is shown, at once and whenever it reconnects.
#[derive(Clone)]
pub struct Shown {
    pub registration: Registration,
    pub documents: Vec<Document>,
    pub map: Map,
}

type Script = Arc<Mutex<BTreeMap<SiteKey, Shown>>>;

/// The coordinator. Its connections end when it is dropped or stopped.
pub struct Puppet {
    address: SocketAddr,
    certificate: Certificate,
    script: Script,
    changed: watch::Sender<()>,
    runtime: Option<tokio::runtime::Runtime>,
    namespace: Namespace,
}

impl Puppet {
    /// Starts it at an address of a namespace.
    pub fn start(namespace: &Namespace, address: IpAddr) -> Self {
        let mut puppet = Self {
            address: SocketAddr::new(address, 443),
            certificate: Certificate::new(),
            script: Script::default(),
            changed: watch::channel(()).0,
            runtime: None,
            namespace: namespace.clone(),
        };
        puppet.run();
        puppet
    }

    /// Starts it, again with the same certificate.
    pub fn run(&mut self) {
        let address = self.address;
        let mut listener = None;
        // The runtime that was shut down drops its listener a moment later.
        eventually(PATIENCE, "the port is free", || {
            listener = self.namespace.enter(|| TcpListener::bind(address)).ok();
            listener.is_some()
        });
        let listener = listener.expect("a port");
        listener.set_nonblocking(true).expect("nonblocking");
        let tls = TlsAcceptor::from(self.certificate.config.clone());
        let (script, changed) = (self.script.clone(), self.changed.subscribe());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, tls.clone(), script.clone(), changed.clone()));
            }
        });
        self.runtime = Some(runtime);
    }

    /// Ends it and all its connections.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// A profile's fields for it.
    pub fn in_profile(&self, authority: Option<String>) -> Value {
        let url = format!("https://{}", self.address.ip());
        json!({ "Url": url, "Fingerprint": self.certificate.pin(), "Authority": authority })
    }

    /// Shows this to a gateway from now on.
    pub fn show(&self, to: SiteKey, shown: Shown) {
        self.script.lock().expect("nobody panics with it").insert(to, shown);
        self.changed.send_replace(());
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, script: Script, mut changed: watch::Receiver<()>) -> Option<()> {
    let stream = tls.accept(stream).await.ok()?;
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, agree).await.ok()?;
    let challenge = Challenger::new(&mut rand::rng()).challenge().clone();
    socket.send(Message::text(CoordinatorMessage::Challenge(challenge).encode())).await.ok()?;
    let hello = socket.next().await?.ok()?.into_text().ok()?;
    let Ok(GatewayMessage::Hello(hello)) = GatewayMessage::decode(&hello) else { return None };
    loop {
        changed.mark_unchanged();
        let shown = script.lock().expect("nobody panics with it").get(&hello.public_key).cloned();
        for message in shown.into_iter().flat_map(messages) {
            socket.send(Message::text(message.encode())).await.ok()?;
        }
        loop {
            tokio::select! {
                heard = socket.next() => drop(heard?.ok()?),
                outcome = changed.changed() => {
                    outcome.ok()?;
                    break;
                }
            }
        }
    }
}

fn messages(Shown { registration, documents, map }: Shown) -> Vec<CoordinatorMessage> {
    let documents = documents.chunks(DOCUMENTS_LIMIT).map(<[Document]>::to_vec);
    let documents = documents.map(|documents| CoordinatorMessage::Documents(Documents { documents }));
    let mut messages = vec![CoordinatorMessage::Registration(registration)];
    messages.extend(documents);
    messages.push(CoordinatorMessage::Map(map));
    messages
}

#[expect(clippy::result_large_err)]
fn agree(_: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
    Ok(response)
}
