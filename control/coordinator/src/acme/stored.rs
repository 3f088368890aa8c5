//! The certificate on disk: one PEM file with key and chain, so that either all of it is there or nothing.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::verify_server_name;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use yasna::tags::TAG_UTCTIME;
use yasna::{ASN1Result, BERReader, Tag};
use zeroize::Zeroizing;

use super::order::Issued;
use crate::owner;
use crate::time::{now, rough};

/// The start of the line in front of the PEM blocks, which says which authority issued it (RFC 7468, section 2, allows
/// text there).
const DIRECTORY: &str = "Obtained from ";

/// A certificate that can be served.
pub struct Stored {
    /// Chain and key.
    pub key: Arc<CertifiedKey>,
    /// The directory of the authority that issued it.
    pub directory: String,
    // Seconds since 1970.
    not_before: u64,
    not_after: u64,
    // From 0 to 1.
    jitter: f64,
}

/// The contents of the file.
#[must_use]
pub fn text(directory: &str, issued: &Issued) -> Zeroizing<String> {
    let Issued { chain, key } = issued;
    Zeroizing::new(format!("{DIRECTORY}{directory}\n{}\n{}\n", key.trim(), chain.trim()))
}

/// Reads the file; `None` if it does not exist.
///
/// # Errors
/// A sentence with the file's name.
pub fn load(path: &Path) -> Result<Option<Stored>, String> {
    let text = match std::fs::read(path) {
        Ok(text) => {
            let text = Zeroizing::new(text);
            let metadata = path.metadata().map_err(|error| format!("{}: {error}", path.display()))?;
            owner::check(path, &metadata).map_err(|error| error.to_string())?;
            text
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    parse(&text).map(Some).map_err(|error| format!("{}: {error}", path.display()))
}

/// Parses the contents of the file.
///
/// # Errors
/// Chain or key is missing or invalid, or they do not belong together.
pub fn parse(text: &[u8]) -> Result<Stored, String> {
    let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(text).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let first = chain.first().ok_or("there is no certificate in it")?;
    let [not_before, not_after] = validity(first).ok_or("its certificate does not say how long it is valid")?;
    let private = PrivateKeyDer::from_pem_slice(text).map_err(|error| error.to_string())?;
    let key = CertifiedKey::from_der(chain, private, &default_provider()).map_err(|error| error.to_string())?;
    let mut lines = text.split(|byte| *byte == b'\n').map(String::from_utf8_lossy);
    let directory = lines.find_map(|line| line.strip_prefix(DIRECTORY).map(|directory| directory.trim().to_owned()));
    let directory = directory.unwrap_or_default();
    Ok(Stored { key: Arc::new(key), directory, not_before, not_after, jitter: rand::random() })
}

impl Stored {
    /// When it ends, in seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// When a new one is to be ordered: after two thirds of its lifetime, and up to a 24th of it later, so that
    /// coordinators do not all come at once.
    #[must_use]
    pub fn renewal(&self) -> SystemTime {
        let lifetime = Duration::from_secs(self.not_after.saturating_sub(self.not_before));
        UNIX_EPOCH + Duration::from_secs(self.not_before) + lifetime * 2 / 3 + (lifetime / 24).mul_f64(self.jitter)
    }

    /// Whether it is for all these names.
    #[must_use]
    pub fn is_for(&self, names: &[String]) -> bool {
        let Some(parsed) = self.key.cert.first().and_then(|first| ParsedCertificate::try_from(first).ok()) else {
            return false;
        };
        names.iter().all(|name| {
            ServerName::try_from(name.as_str()).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
        })
    }

    /// Whether it has expired.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.not_after <= now()
    }

    /// How long it is still valid, as the end of a sentence.
    #[must_use]
    pub fn describe(&self) -> String {
        let now = now();
        match self.not_after.checked_sub(now) {
            Some(left) => format!("is valid for another {}", rough(left)),
            None => format!("expired {} ago, so gateways refuse it", rough(now - self.not_after)),
        }
    }
}

/// When a certificate's validity begins and ends, in seconds since 1970 (RFC 5280, section 4.1).
fn validity(certificate: &[u8]) -> Option<[u64; 2]> {
    let dates = yasna::parse_der(certificate, |reader| {
        reader.read_sequence(|reader| {
            let dates = reader.next().read_sequence(|reader| {
                reader.read_optional(|version| version.read_tagged(Tag::context(0), |number| number.read_u8()))?;
                let _serial = reader.next().read_der()?;
                let _signature = reader.next().read_der()?;
                let _issuer = reader.next().read_der()?;
                let dates = reader.next().read_sequence(|dates| Ok([date(dates.next())?, date(dates.next())?]))?;
                let (_subject, _key) = (reader.next().read_der()?, reader.next().read_der()?);
                while reader.read_optional(|rest| rest.read_der())?.is_some() {}
                Ok(dates)
            })?;
            let (_algorithm, _signature) = (reader.next().read_der()?, reader.next().read_der()?);
            Ok(dates)
        })
    });
    let [not_before, not_after] = dates.ok()?;
    Some([u64::try_from(not_before).ok()?, u64::try_from(not_after).ok()?])
}

fn date(reader: BERReader<'_, '_>) -> ASN1Result<i64> {
    Ok(match reader.lookahead_tag()? {
        TAG_UTCTIME => reader.read_utctime()?.datetime().unix_timestamp(),
        _ => reader.read_generalized_time()?.datetime().unix_timestamp(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::seconds;

    const NAME: &str = "coordinator.example.net";

    fn issued(year: i32) -> Issued {
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new([NAME.to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(year, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(year, 1, 31);
        let chain = parameters.self_signed(&pair).unwrap().pem();
        Issued { chain, key: Zeroizing::new(pair.serialize_pem()) }
    }

    fn stored(year: i32) -> Stored {
        parse(text("https://a.example.net/dir", &issued(year)).as_bytes()).unwrap()
    }

    #[test]
    fn it_is_renewed_after_two_thirds_of_its_time() {
        // 1 January 2026, and of 2060, which X.509 encodes differently.
        for (year, start) in [(2026, 1_767_225_600), (2060, 2_840_140_800)] {
            let certificate = stored(year);
            assert_eq!(certificate.not_before, start);
            assert_eq!(certificate.not_after(), start + 30 * 86_400);
            assert_eq!(certificate.directory, "https://a.example.net/dir");
            let (renewal, early) = (seconds(certificate.renewal()), start + 20 * 86_400);
            assert!((early..=early + 30 * 3600).contains(&renewal), "{renewal}");
        }
        assert!(stored(2020).has_ended() && !stored(2060).has_ended());
    }

    #[test]
    fn it_is_for_its_names_only() {
        let certificate = stored(2060);
        assert!(certificate.is_for(&[NAME.into()]));
        assert!(!certificate.is_for(&[NAME.into(), "other.example.net".into()]));
    }

    #[test]
    fn what_is_unsound_is_not_taken() {
        let (one, other) = (issued(2060), issued(2060));
        let mixed = Issued { chain: one.chain.clone(), key: other.key };
        for content in [
            text("a", &mixed).to_string(),
            one.chain.clone(),
            one.key.to_string(),
            String::new(),
            text("a", &one)[..600].to_owned(),
        ] {
            assert!(parse(content.as_bytes()).is_err(), "{content}");
        }
        assert!(load(Path::new("/nonexistent")).unwrap().is_none());
        assert!(load(Path::new("/")).is_err_and(|error| error.starts_with("/: ")));
    }
}
