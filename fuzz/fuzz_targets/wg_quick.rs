//! Files of wg-quick from anybody: what is read becomes a profile that a gateway accepts.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use penstock::profile::{Environment, Name, Profile};
use penstock::wg_quick::import::{Site, import};
use penstock::wg_quick::parse;

fuzz_target!(|text: &[u8]| {
    let file = match parse(text) {
        Ok(file) => file,
        Err(error) => {
            assert!(error.line >= 1 && !error.sentence.chars().any(char::is_control));
            return;
        }
    };
    let name = Name::try_from("wg0".to_owned()).expect("a name");
    let site = Site { name, wan: "eth0".to_owned(), lan: Vec::new(), subnets: Vec::new() };
    let Ok(imported) = import(file, &site) else { return };
    let json = imported.profile;
    let key = imported.private_key.1.to_base64();
    let mut read = |_: &Path| Ok(key.clone());
    if let Err(error) = Profile::parse(json.as_bytes(), Path::new("/p"), &Environment::default(), &mut read) {
        // The profile's own rules report a prefix or address that no gateway can have.
        assert!(!error.to_string().contains("JSON"), "{error}\n{json}");
    }
});
