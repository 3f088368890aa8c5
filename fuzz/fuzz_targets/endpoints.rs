//! The files of the guard and of the peers' last endpoints.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock::endpoints;
use penstock::ground::Guard;
use penstock::key::PrivateKey;
use penstock::profile::Name;

fuzz_target!(|input: &[u8]| {
    let name = Name::try_from("amsterdam".to_owned()).expect("a name");
    let key = PrivateKey::from_bytes([1; 32]);
    endpoints::round_trip(input, &key, &name).expect("read as written");
    assert!(Guard::round_trip(input, &key, &name), "the guard is not read as written");
});
