//! A coordinator that misbehaves. It has the pinned certificate, but nothing else about it is right.

use std::sync::Arc;
use std::sync::Mutex;

use futures_util::{SinkExt, StreamExt};
use penstock::coordinator::{Client, Config, Event};
use penstock::key::PrivateKey;
use penstock_connect::{Outbound, Proxy};
use penstock_proto::coordination::limits::COORDINATOR_MESSAGE_LIMIT;
use penstock_proto::coordination::{
    Challenger, CoordinatorMessage, GatewayMessage, Hello, Map, MapVersion, Registration, RegistrationState,
    SUBPROTOCOL, Update,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;

use super::laboratory::Running;
use super::relay::{Certificate, any_port};

/// What it does with each connection.
#[derive(Clone, Debug)]
enum Attack {
    /// Sends this instead of an upgrade, and closes.
    Http(&'static str),
    /// Upgrades, sends this instead of a challenge, and waits.
    First(Message),
    /// Admits everyone, sends this, and waits.
    Then(Message),
}

struct Hostile {
    running: Running,
    /// The hellos received, in order.
    hellos: Arc<Mutex<Vec<Hello>>>,
    _server: JoinSet<()>,
    _directory: tempfile::TempDir,
}

impl Hostile {
    async fn start(attack: Attack) -> Self {
        let certificate = Certificate::new();
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
        let tls = TlsAcceptor::from(certificate.config.clone());
        let hellos: Arc<Mutex<Vec<Hello>>> = Arc::default();
        let heard = hellos.clone();
        let mut server = JoinSet::new();
        server.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = tls.accept(stream).await else { continue };
                serve(stream, &attack, &heard).await;
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            url,
            trust: certificate.trust(),
            private_key: PrivateKey::generate().unwrap(),
            subnets: Vec::new(),
            authority: None,
            cache: directory.path().join("a.map"),
            seen: directory.path().join("a.seen"),
            mark: 0,
        };
        let running = Running { client: Client::start_through(config, Outbound::new(Proxy::none(), 0)), map: None };
        Self { running, hellos, _server: server, _directory: directory }
    }
}

/// Serves until the client goes.
async fn serve(mut stream: TlsStream<TcpStream>, attack: &Attack, hellos: &Mutex<Vec<Hello>>) {
    if let Attack::Http(answer) = attack {
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
        return;
    }
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, agree).await else { return };
    match attack {
        Attack::First(message) => _ = socket.send(message.clone()).await,
        Attack::Then(message) => {
            let challenge = Challenger::new(&mut rand::rng()).challenge().clone();
            send(&mut socket, &CoordinatorMessage::Challenge(challenge)).await;
            if let Some(Ok(Message::Text(text))) = socket.next().await
                && let Ok(GatewayMessage::Hello(hello)) = GatewayMessage::decode(&text)
            {
                hellos.lock().unwrap().push(hello);
            }
            let registration = Registration {
                name: "a".parse().unwrap(),
                state: RegistrationState::Approved,
                virtual_address: "100.64.0.1".parse().unwrap(),
                subnets: Vec::new(),
                waiting: Vec::new(),
            };
            send(&mut socket, &CoordinatorMessage::Registration(registration)).await;
            send(&mut socket, &CoordinatorMessage::Map(Map::default())).await;
            let _ = socket.send(message.clone()).await;
        }
        Attack::Http(_) => {}
    }
    while let Some(Ok(_)) = socket.next().await {}
}

async fn send(socket: &mut WebSocketStream<TlsStream<TcpStream>>, message: &CoordinatorMessage) {
    let _ = socket.send(Message::text(message.encode())).await;
}

#[expect(clippy::result_large_err)]
fn agree(_: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
    Ok(response)
}

#[tokio::test]
async fn what_is_no_coordinator_is_left_with_a_sentence() {
    let low_order = r#"{"Type":"Challenge","Nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","#;
    let low_order = format!("{low_order}\"Ephemeral\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"}}");
    let too_long = "x".repeat(COORDINATOR_MESSAGE_LIMIT + 1);
    for (attack, expected) in [
        (Attack::Http("HTTP/1.1 404 Not Found\r\n\r\n"), "127.0.0.1 answers 404 Not Found: is it a Penstock"),
        (Attack::Http("HTTP/1.1 421 Misdirected Request\r\n\r\n"), "127.0.0.1 does not serve this name"),
        (Attack::Http("HTTP/1.1 101 Switching Protocols\r\n\r\n"), "127.0.0.1 does not speak our protocol"),
        (Attack::Http("220 mail.example.net ESMTP\r\n\r\n"), "127.0.0.1 does not speak our protocol"),
        (Attack::Http(""), "127.0.0.1"),
        (Attack::First(Message::text("{}")), "the coordinator sent an invalid message"),
        (Attack::First(Message::binary(vec![1])), "bytes instead of text"),
        (Attack::First(Message::text(low_order)), "a challenge of low order"),
        (
            Attack::First(Message::text(CoordinatorMessage::Map(Map::default()).encode())),
            "the first is not a challenge",
        ),
        (Attack::First(Message::Close(None)), "the coordinator closed the connection"),
        (Attack::First(Message::text(too_long)), "the connection to the coordinator broke: Space limit exceeded"),
    ] {
        let shown = format!("{attack:?}").chars().take(80).collect::<String>();
        let why = Hostile::start(attack).await.running.until_lost().await;
        assert!(why.contains(expected), "{shown}: {why}");
        assert!(!why.contains('\n'), "{why}");
    }
}

#[tokio::test]
async fn an_increment_that_does_not_fit_makes_it_ask_for_the_whole() {
    let from = MapVersion { epoch: 7, number: 7 };
    let update = Update { from, to: from, upsert: [].into(), remove: Vec::new() };
    let message = Message::text(CoordinatorMessage::Update(update).encode());
    let mut hostile = Hostile::start(Attack::Then(message)).await;
    let why = hostile.running.until_lost().await;
    assert!(why.contains("an increment that does not fit the map"), "{why}");
    hostile.running.until_lost().await;
    let hellos = hostile.hellos.lock().unwrap();
    assert!(hellos.len() == 2 && hellos.iter().all(|hello| hello.known.is_none()), "{hellos:?}");
}

#[tokio::test]
async fn what_it_says_later_is_checked_too_and_what_is_newer_is_ignored() {
    let newer = Message::text(r#"{"Type":"Weather","Rain":true}"#);
    let mut hostile = Hostile::start(Attack::Then(newer)).await;
    hostile.running.until("a map", |event| matches!(event, Event::Map(_)).then_some(())).await;
    let more = tokio::time::timeout(std::time::Duration::from_millis(500), hostile.running.client.next()).await;
    assert!(more.is_err(), "{more:?}");
    for (message, expected) in [
        (Message::text("[]"), "the coordinator sent an invalid message"),
        (Message::binary(vec![0; 100]), "bytes instead of text"),
        (
            Message::text(
                CoordinatorMessage::Challenge(Challenger::new(&mut rand::rng()).challenge().clone()).encode(),
            ),
            "a second challenge",
        ),
    ] {
        let mut hostile = Hostile::start(Attack::Then(message)).await;
        let why = hostile.running.until_lost().await;
        assert!(why.contains(expected), "{why}");
        // It asks for an increment to its previous map.
        hostile.running.until_lost().await;
        let hellos = hostile.hellos.lock().unwrap();
        assert!(hellos[1].known == Some(Map::default().known()), "{hellos:?}");
    }
}
