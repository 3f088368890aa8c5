//! The relay's private key: made at the first start and kept in the state directory. Whoever has it can pass for the
//! relay, but cannot read traffic.

use std::path::Path;

use penstock_proto::{StaticSecret, clamped_private_key, generate_private_key};

use crate::secret::{self, Secret, SecretError};

const FILE: &str = "relay.key";

/// Reads the key in the state directory, or makes one.
///
/// # Errors
/// The file cannot be used.
pub fn load(directory: &Path) -> Result<StaticSecret, SecretError> {
    let path = directory.join(FILE);
    if let Some(secret) = secret::read(&path)? {
        return Ok(clamped_private_key(*secret));
    }
    let private = generate_private_key(&mut rand::rng());
    secret::write(&path, &Secret::new(private.to_bytes()))?;
    Ok(private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = load(directory.path()).unwrap();
        assert_eq!(load(directory.path()).unwrap().to_bytes(), first.to_bytes());
        assert!(directory.path().join(FILE).exists());
    }
}
