//! The stored certificate of an authority, key and chain, with any contents.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_coordinator::acme::stored;

fuzz_target!(|input: &[u8]| match stored::parse(input) {
    Ok(certificate) => {
        assert!(!certificate.describe().is_empty());
        let _ = (certificate.renewal(), certificate.has_ended(), certificate.is_for(&["example.net".into()]));
    }
    Err(sentence) => assert!(!sentence.is_empty()),
});
