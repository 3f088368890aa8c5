//! The file of the peers' last endpoints.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock::endpoints;
use penstock::key::PrivateKey;
use penstock::profile::Name;

fuzz_target!(|input: &[u8]| {
    let name = Name::try_from("amsterdam".to_owned()).expect("a name");
    endpoints::round_trip(input, &PrivateKey::from_bytes([1; 32]), &name).expect("read as written");
});
