//! Every implementation that this CPU has, against ring.

use penstock_aead::{Cipher, Implementation};

/// Every implementation, with and without ring's share, and a line for each that can't run here.
fn ciphers() -> Vec<Cipher> {
    let mut ciphers = vec![];
    for implementation in Implementation::ALL {
        match Cipher::new(implementation) {
            Ok(cipher) => ciphers.extend([cipher, cipher.without_ring()]),
            Err(_) => println!("not run: this CPU has no {implementation}"),
        }
    }
    ciphers
}

#[test]
fn self_tests_pass() {
    for cipher in ciphers() {
        assert_eq!(cipher.self_test(), Ok(()));
    }
}
