//! Profiles from anybody.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use penstock::profile::{Environment, Profile};

fuzz_target!(|text: &[u8]| {
    let path = Path::new("/profiles/fuzz.profile");
    let parsed = Profile::parse(text, path, &Environment::default(), &mut |_| {
        Ok("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=".to_owned().into())
    });
    if let Err(error) = parsed {
        assert!(!error.to_string().is_empty());
    }
});
