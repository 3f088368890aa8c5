//! HTTP to an authority: one connection per request, over TLS 1.3, limited in time and size. A certificate takes about
//! ten requests.

use std::error::Error as StdError;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes};
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

/// How long a request may take, from resolving the name to the end of the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer, in bytes: a directory or a certificate chain has a few kilobytes.
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
    /// Trusts the certificate authorities in a PEM file, or else the system's, to vouch for the server.
    ///
    /// # Errors
    /// The file cannot be read or holds no certificate; the system has none.
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

/// Asks an HTTPS server. The caller sets a time limit.
pub(crate) async fn exchange<B>(
    tls: TlsConnector,
    mut request: Request<B>,
) -> Result<Response<Full<Bytes>>, Box<dyn StdError + Send + Sync>>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let uri = request.uri().clone();
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https")).ok_or("no https:// URL")?;
    // An IPv6 address is in brackets (RFC 3986, section 3.2.2).
    let host = authority.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(443))).await?;
    let stream = tls.connect(ServerName::try_from(host.to_owned())?, stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Aborted when this function ends.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    request.headers_mut().insert(HOST, HeaderValue::from_str(authority.as_str())?);
    *request.uri_mut() = uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await?.to_bytes();
    Ok(Response::from_parts(parts, Full::new(body)))
}
