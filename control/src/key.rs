//! Keys in their written forms: base64 in files and profiles, hex on WireGuard's socket.
//!
//! Secret keys are zeroed when dropped and never printed by `Debug`.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::prelude::{BASE64_STANDARD, Engine};
use rand::TryRngCore;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Longest key file: a key in base64 with plenty of white space.
pub const KEY_FILE_LIMIT: u64 = 256;

/// The private key of a gateway, clamped (RFC 7748, section 5).
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_BYTES]);

/// The public key of a gateway or peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_BYTES]);

/// A key that two peers share in addition to their key pairs. Never all zeros, which means no key on the wire.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_BYTES]);

/// Why text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes in base64.
    #[error("a key is 44 characters of base64, as `penstock genkey` and `penstock pubkey` print them")]
    NotBase64,
    /// Not 32 bytes in hexadecimal.
    #[error("a key is 64 hexadecimal digits here")]
    NotHex,
    /// All bytes are zero, which no peer can have.
    #[error("an all-zero key is not valid")]
    Zero,
}

/// Why a key file gives no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] std::io::Error),
    /// It is a directory, a device or the like.
    #[error("not a regular file")]
    NotAFile,
    /// Group or others may read or write it.
    #[error("its mode {mode:04o} lets users other than its owner use it; `chmod 600` it")]
    Exposed {
        /// The permission bits.
        mode: u32,
    },
    /// It belongs to neither root nor us.
    #[error("it belongs to user {owner}, who is neither root nor the user this runs as")]
    Foreign {
        /// The owner.
        owner: u32,
    },
    /// It is too long for a key file.
    #[error("longer than {KEY_FILE_LIMIT} bytes, so it is not a key file")]
    TooLong,
    /// Its text is not a key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Reads the text of a key file, which must belong to root or to us and be closed to everybody else.
///
/// # Errors
/// It cannot be read, is open to others, or is too long to be a key.
pub fn read_key_file(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    // Non-blocking, because a FIFO in the file's place must not stop us.
    let file =
        std::fs::File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotAFile);
    }
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(KeyFileError::Foreign { owner });
    }
    let mode = metadata.mode() & 0o7777;
    if is_exposed(mode, is_credential(path)) {
        return Err(KeyFileError::Exposed { mode });
    }
    let limit = KEY_FILE_LIMIT as usize;
    // Allocated in advance: a growing buffer would leave copies of the secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    file.take(KEY_FILE_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(KeyFileError::TooLong);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| KeyError::NotBase64)?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The same, but where there is no file, the text of a new key that nobody has. It is for commands that work without the
/// secret, because a key may be known only to the service ([`is_credential`]).
///
/// # Errors
/// There is a file, but [`read_key_file`] does not accept it; or there is no randomness.
pub fn read_key_file_or_stand_in(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    match read_key_file(path) {
        Err(KeyFileError::Unreadable(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(PrivateKey::generate()?.to_base64())
        }
        outcome => outcome,
    }
}

/// Whether a key file with this mode exposes the key to others than its owner. A credential's group is the service's
/// own.
pub(crate) fn is_exposed(mode: u32, credential: bool) -> bool {
    let group_may_read = if credential { 0o040 } else { 0 };
    mode & 0o077 & !group_may_read != 0
}

/// Whether systemd made the file for this service alone (`LoadCredential=`): its access list for the service's user
/// shows as group permissions, and nobody else gets into the directory.
pub(crate) fn is_credential(path: &Path) -> bool {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    directory.is_some_and(|directory| directory.is_absolute() && path.parent() == Some(&directory))
}

impl PrivateKey {
    /// A new private key from the system's randomness.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> std::io::Result<Self> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        rand::rngs::OsRng.try_fill_bytes(&mut *bytes).map_err(std::io::Error::other)?;
        Ok(Self::from_bytes(*bytes))
    }

    /// The private key with these bytes, clamped.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; KEY_BYTES]) -> Self {
        bytes[0] &= 0b1111_1000;
        bytes[31] &= 0b0111_1111;
        bytes[31] |= 0b0100_0000;
        let key = Self(bytes);
        bytes.zeroize();
        key
    }

    /// Parses 64 hexadecimal digits; all zeros, which on WireGuard's socket mean no key, are
    /// [`KeyError::Zero`].
    ///
    /// # Errors
    /// It is not a valid key.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let bytes = from_hex(text)?;
        if *bytes == [0; KEY_BYTES] {
            return Err(KeyError::Zero);
        }
        Ok(Self::from_bytes(*bytes))
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        x25519_dalek::PublicKey::from(&self.to_secret()).into()
    }

    /// The key in the form that the handshake takes.
    #[must_use]
    pub fn to_secret(&self) -> x25519_dalek::StaticSecret {
        x25519_dalek::StaticSecret::from(self.0)
    }

    /// The secret bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The key in base64, for its file.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64_STANDARD.encode(self.0))
    }

    /// The key in hexadecimal, for WireGuard's socket.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(to_hex(&self.0))
    }
}

impl PublicKey {
    /// The key with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Parses 64 hexadecimal digits.
    ///
    /// # Errors
    /// It is not a valid key.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        from_hex(text).map(|bytes| Self(*bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The key in hexadecimal, for WireGuard's socket.
    #[must_use]
    pub fn to_hex(&self) -> String {
        to_hex(&self.0)
    }
}

impl PresharedKey {
    /// The key with these bytes; `None` for all zeros, which mean no key.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; KEY_BYTES]) -> Option<Self> {
        if bytes == [0; KEY_BYTES] {
            return None;
        }
        let key = Self(bytes);
        bytes.zeroize();
        Some(key)
    }

    /// Parses 64 hexadecimal digits; all zeros, which on WireGuard's socket mean no key, are
    /// [`KeyError::Zero`].
    ///
    /// # Errors
    /// It is not a valid key.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(*from_hex(text)?).ok_or(KeyError::Zero)
    }

    /// The secret bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The key in base64, for its file.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64_STANDARD.encode(self.0))
    }

    /// The key in hexadecimal, for WireGuard's socket.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(to_hex(&self.0))
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        from_base64(text).map(|bytes| Self::from_bytes(*bytes))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        from_base64(text).map(|bytes| Self(*bytes))
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(*from_base64(text)?).ok_or(KeyError::Zero)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(…)")
    }
}

impl serde::Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl From<x25519_dalek::PublicKey> for PublicKey {
    fn from(key: x25519_dalek::PublicKey) -> Self {
        Self(key.to_bytes())
    }
}

impl From<PublicKey> for x25519_dalek::PublicKey {
    fn from(key: PublicKey) -> Self {
        key.0.into()
    }
}

fn from_base64(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
    // The decoder asks for space by its own estimate, which is a byte more than the key.
    let mut decoded = Zeroizing::new([0; KEY_BYTES + 1]);
    // Editors on Windows put a byte order mark in front.
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    match BASE64_STANDARD.decode_slice(text, &mut *decoded) {
        Ok(KEY_BYTES) => {
            let mut bytes = Zeroizing::new([0; KEY_BYTES]);
            bytes.copy_from_slice(&decoded[..KEY_BYTES]);
            Ok(bytes)
        }
        _ => Err(KeyError::NotBase64),
    }
}

fn from_hex(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
    let digits = text.as_bytes();
    if digits.len() != 2 * KEY_BYTES {
        return Err(KeyError::NotHex);
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Ok(bytes)
}

fn hex_digit(digit: u8) -> Result<u8, KeyError> {
    char::from(digit).to_digit(16).map(|value| value as u8).ok_or(KeyError::NotHex)
}

fn to_hex(bytes: &[u8; KEY_BYTES]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * KEY_BYTES);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    // RFC 7748, section 6.1: Alice's keys.
    const PRIVATE_HEX: &str = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
    const PUBLIC_HEX: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";

    fn scratch_file(text: &[u8], mode: u32) -> tempfile::TempPath {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file.into_temp_path()
    }

    #[test]
    fn public_key_is_that_of_the_rfc() {
        // The RFC's scalar is not clamped; that changes nothing about the public key.
        let private = PrivateKey::from_hex(PRIVATE_HEX).unwrap();
        assert_eq!(private.public_key().to_hex(), PUBLIC_HEX);
        assert_eq!(private.as_bytes()[0] & 7, 0);
        assert_eq!(private.as_bytes()[31] & 0xc0, 0x40);
    }

    #[test]
    fn text_forms_round_trip() {
        let public = PublicKey::from_hex(PUBLIC_HEX).unwrap();
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!(PublicKey::from(x25519_dalek::PublicKey::from(public)), public);
        let private = PrivateKey::generate().unwrap();
        assert!(private.to_base64().parse::<PrivateKey>().unwrap() == private);
        assert!(PrivateKey::from_hex(&private.to_hex()).unwrap() == private);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "AAAA", &"A".repeat(44), &format!("{}=", "A".repeat(44)), "gibberish!"] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::NotBase64), "{text}");
        }
        for text in ["", &PUBLIC_HEX[1..], &PUBLIC_HEX.replace('8', "g"), &"é".repeat(32)] {
            assert_eq!(PublicKey::from_hex(text), Err(KeyError::NotHex), "{text}");
        }
        let zeros = "0".repeat(64);
        assert_eq!(PresharedKey::from_hex(&zeros).err(), Some(KeyError::Zero));
        assert_eq!(PrivateKey::from_hex(&zeros).err(), Some(KeyError::Zero));
    }

    #[test]
    fn debug_shows_no_secret() {
        let private = PrivateKey::from_hex(PRIVATE_HEX).unwrap();
        let preshared = PresharedKey::from_bytes([7; 32]).unwrap();
        assert_eq!(format!("{private:?} {preshared:?}"), "PrivateKey(…) PresharedKey(…)");
    }

    #[test]
    fn key_files_open_to_others_are_refused() {
        let key = PrivateKey::generate().unwrap();
        let text = format!("\u{feff} {}\r\n", *key.to_base64());
        for mode in [0o640, 0o604, 0o620, 0o601] {
            let file = scratch_file(text.as_bytes(), mode);
            let error = read_key_file(&file).unwrap_err();
            assert!(matches!(error, KeyFileError::Exposed { .. }), "{mode:o}: {error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        for mode in [0o600, 0o400] {
            let file = scratch_file(text.as_bytes(), mode);
            assert!(read_key_file(&file).unwrap().parse::<PrivateKey>().unwrap() == key);
        }
    }

    /// Runs itself again as a process of its own, since the environment variable belongs to the process.
    #[test]
    fn a_credential_may_show_bits_of_the_group_and_no_others() {
        const SELF: &str = "key::tests::a_credential_may_show_bits_of_the_group_and_no_others";
        const VARIABLE: &str = "CREDENTIALS_DIRECTORY";
        let Some(directory) = std::env::var_os(VARIABLE) else {
            let directory = tempfile::tempdir().unwrap();
            let program = std::env::current_exe().unwrap();
            let mut again = std::process::Command::new(program);
            let status = again.args(["--exact", SELF]).env(VARIABLE, directory.path()).status().unwrap();
            assert!(status.success());
            return;
        };
        let text = PrivateKey::generate().unwrap().to_base64();
        let beside = scratch_file(text.as_bytes(), 0o440);
        assert!(matches!(read_key_file(&beside), Err(KeyFileError::Exposed { .. })));
        let file = Path::new(&directory).join("private-key");
        std::fs::write(&file, &*text).unwrap();
        for (mode, sound) in [(0o400, true), (0o440, true), (0o460, false), (0o444, false), (0o450, false)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_key_file(&file).is_ok(), sound, "{mode:o}");
        }
    }

    #[test]
    fn what_is_no_key_file_is_refused() {
        let long = scratch_file(&[b'A'; KEY_FILE_LIMIT as usize + 1], 0o600);
        assert!(matches!(read_key_file(&long), Err(KeyFileError::TooLong)));
        let binary = scratch_file(&[0xff; 32], 0o600);
        assert!(matches!(read_key_file(&binary), Err(KeyFileError::Key(_))));
        assert!(matches!(read_key_file(Path::new("/dev/null")), Err(KeyFileError::NotAFile)));
        assert!(matches!(read_key_file(Path::new("/nonexistent")), Err(KeyFileError::Unreadable(_))));
    }
}
