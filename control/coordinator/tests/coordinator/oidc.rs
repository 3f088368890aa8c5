//! Login at the page by a provider: a small one here, which speaks real discovery, authorization, tokens and keys over
//! TLS, and checks what it is sent as a provider has to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use penstock_coordinator::config::Document;
use penstock_coordinator::page::config::PageDocument;
use penstock_coordinator::page::oidc::config::{Allow, OidcDocument};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::page::Browser;
use crate::running::{Running, directory, document};

const SECRET: &str = "s3cret with spaces";

/// A provider at which somebody is logged in already.
struct Provider {
    issuer: String,
    certificate: String,
    shared: Arc<Shared>,
}

struct Shared {
    issuer: String,
    key: EcdsaKeyPair,
    /// What authorization was asked for, by code.
    codes: Mutex<HashMap<String, HashMap<String, String>>>,
    /// What its tokens say besides what they have to, or instead of it.
    claims: Mutex<Value>,
}

fn fields(text: &str) -> HashMap<String, String> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

impl Provider {
    async fn start() -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&pair).unwrap();
        let key = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let tls = tls.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().with_no_client_auth();
        let tls = TlsAcceptor::from(Arc::new(tls.with_single_cert(vec![certificate.der().clone()], key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let (codes, claims) = (Mutex::default(), Mutex::new(json!({})));
        let shared = Arc::new(Shared { issuer: issuer.clone(), key, codes, claims });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(describe))
            .route("/authorize", get(authorize))
            .route("/token", post(token))
            .route("/keys", get(keys))
            .with_state(shared.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, service) = (tls.clone(), TowerToHyperService::new(router.clone()));
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { issuer, certificate: certificate.pem(), shared }
    }

    fn says(&self, claims: Value) {
        *self.shared.claims.lock().unwrap() = claims;
    }

    /// What a browser gets when it is sent there: the URL to which it is sent back.
    fn authorize(&self, url: &str) -> String {
        let query = url.strip_prefix(&format!("{}/authorize?", self.issuer)).unwrap();
        self.shared.authorize(query).unwrap()
    }
}

impl Shared {
    fn authorize(&self, query: &str) -> Option<String> {
        let asked = fields(query);
        let right = [("response_type", "code"), ("client_id", "penstock"), ("code_challenge_method", "S256")];
        let scopes = asked.get("scope")?.split(' ').any(|scope| scope == "openid");
        if !scopes || right.iter().any(|(name, value)| asked.get(*name).map(String::as_str) != Some(*value)) {
            return None;
        }
        let code = format!("code {}", self.codes.lock().unwrap().len());
        let mut back = form_urlencoded::Serializer::new(String::new());
        back.append_pair("code", &code).append_pair("state", asked.get("state")?).append_pair("iss", &self.issuer);
        let url = format!("{}?{}", asked.get("redirect_uri")?, back.finish());
        self.codes.lock().unwrap().insert(code, asked);
        Some(url)
    }

    fn token(&self, authorization: &str, body: &str) -> Option<String> {
        let pair = String::from_utf8(STANDARD.decode(authorization.strip_prefix("Basic ")?).ok()?).ok()?;
        let (client, secret) = pair.split_once(':')?;
        let encoded: String = form_urlencoded::byte_serialize(SECRET.as_bytes()).collect();
        let asked = fields(body);
        let begun = self.codes.lock().unwrap().remove(asked.get("code")?)?;
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, asked.get("code_verifier")?.as_bytes()));
        let right = client == "penstock"
            && secret == encoded
            && asked.get("grant_type")? == "authorization_code"
            && asked.get("redirect_uri") == begun.get("redirect_uri")
            && *begun.get("code_challenge")? == challenge;
        if !right {
            return None;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let mut claims = json!({"iss": self.issuer, "sub": "17", "aud": "penstock", "iat": now, "exp": now + 300,
            "nonce": begun.get("nonce")?, "email": "alice@example.net", "email_verified": true});
        for (name, value) in self.claims.lock().unwrap().as_object().unwrap() {
            claims[name] = value.clone();
        }
        let header = json!({"alg": "ES256", "kid": "one"});
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = format!("{header}.{claims}");
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn as_json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn describe(State(shared): State<Arc<Shared>>) -> Response {
    let at = |path: &str| format!("{}{path}", shared.issuer);
    as_json(&json!({"issuer": shared.issuer, "authorization_endpoint": at("/authorize"),
        "token_endpoint": at("/token"), "jwks_uri": at("/keys"),
        "authorization_response_iss_parameter_supported": true}))
}

async fn authorize(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    match shared.authorize(&query.unwrap_or_default()) {
        Some(url) => Redirect::to(&url).into_response(),
        None => StatusCode::BAD_REQUEST.into_response(),
    }
}

async fn token(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: String) -> Response {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match shared.token(authorization, &body) {
        Some(token) => as_json(&json!({"access_token": "x", "token_type": "Bearer", "id_token": token})),
        None => StatusCode::BAD_REQUEST.into_response(),
    }
}

async fn keys(State(shared): State<Arc<Shared>>) -> Response {
    let point = shared.key.public_key().as_ref();
    let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
    as_json(&json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "one", "use": "sig", "x": x, "y": y}]}))
}

async fn with_provider(provider: &Provider, allow: Allow) -> Running {
    let directory = directory();
    let (ca_file, secret_file) = (directory.path().join("provider.pem"), directory.path().join("secret"));
    std::fs::write(&ca_file, &provider.certificate).unwrap();
    std::fs::write(&secret_file, format!("{SECRET}\n")).unwrap();
    let oidc = OidcDocument {
        issuer: provider.issuer.clone(),
        client_id: "penstock".into(),
        client_secret_file: Some(secret_file),
        ca_file: Some(ca_file),
        allow,
    };
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let page = PageDocument { listen: Some(listen), oidc: Some(oidc), ..PageDocument::default() };
    let document = Document { page: Some(page), ..document(directory.path()) };
    Running::start_with(directory, document).await
}

fn alice() -> Allow {
    Allow { emails: ["alice@example.net".to_owned()].into(), ..Allow::default() }
}

/// Starts a login; returns the URL to which the provider sends the browser back.
async fn begin(browser: &mut Browser, provider: &Provider) -> String {
    let reply = browser.get("/oidc").await;
    assert_eq!(reply.status, 303, "{}", reply.body);
    assert!(reply.header("set-cookie").contains("; SameSite=Lax; Max-Age=600"), "{}", reply.header("set-cookie"));
    let back = provider.authorize(reply.header("location"));
    back.strip_prefix(&format!("http://{}", browser.address)).unwrap().to_owned()
}

#[tokio::test]
async fn who_is_allowed_logs_in_by_the_provider() {
    let provider = Provider::start().await;
    let running = with_provider(&provider, alice()).await;
    let mut browser = Browser::new(&running);
    assert!(browser.get("/login").await.body.contains("Log in with localhost"));
    let back = begin(&mut browser, &provider).await;
    let reply = browser.get(&back).await;
    assert!(reply.status == 200 && reply.body.contains("url=/"), "{}", reply.body);
    assert!(browser.get("/").await.body.contains("alice@example.net"));
    assert_eq!(running.audit().await.pop().unwrap().who, "page alice@example.net");
    // The answer can be used once.
    let mut second = Browser::new(&running);
    second.cookies = browser.cookies.clone();
    assert_eq!(second.get(&back).await.status, 403);
}

#[tokio::test]
async fn who_is_not_allowed_stays_out() {
    let provider = Provider::start().await;
    for (claims, allowed) in [
        (json!({"email": "mallory@example.net"}), false),
        (json!({"email_verified": false}), false),
        (json!({"email": "mallory@example.net", "groups": ["noc"]}), true),
        (json!({"aud": "another"}), false),
        (json!({"nonce": "another"}), false),
        (json!({"exp": 1}), false),
    ] {
        // Another coordinator each time: from one address, ten login steps in a row are accepted.
        let groups = Allow { groups: ["noc".to_owned()].into(), ..alice() };
        let running = with_provider(&provider, groups).await;
        provider.says(claims.clone());
        let mut browser = Browser::new(&running);
        let back = begin(&mut browser, &provider).await;
        let status = browser.get(&back).await.status;
        assert_eq!(status, if allowed { 200 } else { 403 }, "{claims}");
        assert_eq!(browser.get("/").await.status, if allowed { 200 } else { 303 }, "{claims}");
    }
}

#[tokio::test]
async fn a_login_that_another_browser_began_is_nobodys() {
    let provider = Provider::start().await;
    let running = with_provider(&provider, alice()).await;
    let (mut attacker, mut victim) = (Browser::new(&running), Browser::new(&running));
    let back = begin(&mut attacker, &provider).await;
    assert_eq!(victim.get(&back).await.status, 403);
    let own = begin(&mut victim, &provider).await;
    let code_of = |url: &str| fields(url.split_once('?').unwrap().1)["code"].clone();
    // The attacker's code in the victim's answer: the verifier is another.
    let mixed = own.replace(
        &form_urlencoded::byte_serialize(code_of(&own).as_bytes()).collect::<String>(),
        &form_urlencoded::byte_serialize(code_of(&back).as_bytes()).collect::<String>(),
    );
    assert_ne!(mixed, own);
    assert_eq!(victim.get(&mixed).await.status, 403);
    let foreign = begin(&mut victim, &provider).await.replace("iss=https", "iss=http");
    assert_eq!(victim.get(&foreign).await.status, 403);
    assert_eq!(victim.get("/").await.status, 303);
}
