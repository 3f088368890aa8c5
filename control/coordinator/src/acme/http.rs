//! HTTP to an authority: a connection a request, over TLS 1.3, bounded in time and size. There are about ten
//! requests a certificate.

use std::error::Error as StdError;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use penstock_connect::{Trust, TrustError};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a request may take, from the name's resolution to the end of the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer: a directory or a chain of certificates has some kilobytes.
const ANSWER_LIMIT: usize = 256 << 10;

/// Speaks to one authority.
#[derive(Clone)]
pub struct Client {
    tls: Arc<ClientConfig>,
}

/// There is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{host}: {error}")]
pub struct NoAnswer {
    host: String,
    error: Box<dyn StdError + Send + Sync>,
}

impl Client {
    /// Trusts the authorities in a PEM file, or else those of the system, to vouch for the server.
    ///
    /// # Errors
    /// The file cannot be read or holds none; the system has none.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, TrustError> {
        Ok(Self { tls: Trust::Authorities(ca_file.map(Path::to_owned)).client_config()? })
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let tls = TlsConnector::from(self.tls.clone());
        Box::pin(async move {
            let host = request.uri().host().unwrap_or_default().to_owned();
            let answer = match timeout(REQUEST_TIMEOUT, exchange(tls, request)).await {
                Ok(answer) => answer,
                Err(_) => Err("no answer in time".into()),
            };
            match answer {
                Ok(response) => Ok(BytesResponse::from(response)),
                Err(error) => Err(Error::Other(Box::new(NoAnswer { host, error }))),
            }
        })
    }
}

async fn exchange(
    tls: TlsConnector,
    mut request: Request<BodyWrapper<Bytes>>,
) -> Result<Response<Full<Bytes>>, Box<dyn StdError + Send + Sync>> {
    let uri = request.uri().clone();
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https")).ok_or("no https:// URL")?;
    // An IPv6 address stands in brackets (RFC 3986, section 3.2.2).
    let host = authority.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(443))).await?;
    let stream = tls.connect(ServerName::try_from(host.to_owned())?, stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with us.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    request.headers_mut().insert(HOST, HeaderValue::from_str(authority.as_str())?);
    *request.uri_mut() = uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await?.to_bytes();
    Ok(Response::from_parts(parts, Full::new(body)))
}
