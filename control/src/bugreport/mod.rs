//! Everything about a gateway and its machine that is needed to find a fault, in one archive: `penstock bugreport`.
//!
//! Gathering asks the gateway, reads files and runs commands that change nothing. None of the sources has the profile's
//! keys; should one get into a log all the same, it is removed before anything is written.

mod anonymise;
mod sources;

use std::io::{self, Write};
use std::time::SystemTime;

use base64::prelude::{BASE64_STANDARD, Engine};
use flate2::Compression;
use flate2::write::GzEncoder;
use penstock_proto::trust::UnixTime;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::profile::Profile;

pub use anonymise::Anonymiser;
pub use sources::gather;

/// What replaces a key.
const TAKEN_OUT: &str = "[a key, taken out]";

/// A file of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the archive.
    pub name: &'static str,
    /// What it is, in half a sentence.
    pub what: &'static str,
    /// Its contents.
    pub text: String,
}

/// Texts that must not leave the machine.
#[derive(Default)]
pub struct Secrets(Vec<Zeroizing<String>>);

impl Secrets {
    /// The keys of a profile, in the spellings of files and of WireGuard's socket.
    #[must_use]
    pub fn of(profile: &Profile) -> Self {
        let preshared = profile.peers.iter().filter_map(|peer| peer.preshared_key.as_ref());
        let keys = [profile.private_key.as_bytes()].into_iter().chain(preshared.map(|key| key.as_bytes()));
        let texts = keys.flat_map(|key| {
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            [Zeroizing::new(BASE64_STANDARD.encode(key)), Zeroizing::new(hex)]
        });
        Self(texts.collect())
    }

    /// The text without the keys.
    #[must_use]
    pub fn take_out(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| match text.contains(secret.as_str()) {
            true => text.replace(secret.as_str(), TAKEN_OUT),
            false => text,
        })
    }
}

/// The table of contents, which is the first file of the archive.
#[must_use]
pub fn contents(entries: &[Entry], is_anonymous: bool) -> Entry {
    let names = match is_anonymous {
        true => {
            "Addresses, names, host names, public keys and fingerprints were replaced, each by the same everywhere."
        }
        false => "Addresses, names and public keys are in it as they are; --anonymise replaces them.",
    };
    let now = OffsetDateTime::now_utc();
    let made = format!("{} {:02}:{:02} UTC", now.date(), now.hour(), now.minute());
    let mut text = format!(
        "A report of penstock {}, made on {made}.\nIt holds no private or preshared key of the \
         profile. {names}\n\n",
        env!("CARGO_PKG_VERSION")
    );
    for entry in entries {
        text += &format!("{:<18} {}\n", entry.name, entry.what);
    }
    Entry { name: "README", what: "This list.", text }
}

/// Writes a compressed archive of these files, all in one directory.
///
/// # Errors
/// `out`'s error.
pub fn write(out: impl Write, directory: &str, entries: &[Entry]) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    let now = UnixTime::from(SystemTime::now()).0;
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(entry.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{directory}/{}", entry.name), entry.text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_out_of_any_text() {
        let secrets = Secrets(vec![Zeroizing::new("c2VjcmV0".to_owned()), Zeroizing::new("736563726574".to_owned())]);
        assert_eq!(
            secrets.take_out("log: c2VjcmV0; private_key=736563726574\nc2VjcmV0"),
            format!("log: {TAKEN_OUT}; private_key={TAKEN_OUT}\n{TAKEN_OUT}")
        );
        assert_eq!(secrets.take_out("nothing"), "nothing");
    }

    #[test]
    fn what_is_written_can_be_read_and_is_listed() {
        let entries = [Entry { name: "status.json", what: "What it says.", text: "{}\n".into() }];
        let listed = contents(&entries, true);
        assert!(listed.text.contains("status.json        What it says.") && listed.text.contains("replaced"));
        let mut archive = Vec::new();
        write(&mut archive, "report", &entries).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive.as_slice()));
        let mut read = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            io::Read::read_to_string(&mut entry, &mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        });
        assert_eq!(read.next(), Some(("report/status.json".to_owned(), "{}\n".to_owned())));
        assert_eq!(read.next(), None);
    }
}
