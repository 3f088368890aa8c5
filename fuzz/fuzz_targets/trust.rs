//! Signed documents, the publication and the state that are kept in files, and how a gateway processes them.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use penstock_proto::coordination::SiteKey;
use penstock_proto::trust::{AuthorityKey, Document, Now, Publication, State, UnixTime, Verifier};

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let documents: Vec<Document> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for (document, line) in documents.iter().zip(text.lines().filter(|line| line.parse::<Document>().is_ok())) {
        // Each has exactly one encoding.
        assert_eq!(document.to_string(), line);
    }
    // Nobody's key: no input has a valid signature by chance.
    let own = SiteKey::from([2; 32]);
    let now = Now { instant: Instant::now(), wall: UnixTime(1_800_000_000) };
    let mut verifier = Verifier::new(now.instant, own, State::new(AuthorityKey::from([1; 32])));
    assert!(!verifier.learn(now, &documents).changed);
    for document in &documents {
        assert!(Publication::new(AuthorityKey::from([1; 32])).add(document.clone()).is_err());
    }

    if let Ok(publication) = serde_json::from_str::<Publication>(text) {
        let again = serde_json::to_string(&publication).expect("a publication has a form");
        assert_eq!(serde_json::from_str::<Publication>(&again).ok().as_ref(), Some(&publication));
    }
    // A state is authenticated by whoever stores it: its contents must do no harm.
    if let Ok(state) = serde_json::from_str::<State>(text) {
        let again = serde_json::to_string(&state).expect("a state has a form");
        assert_eq!(serde_json::from_str::<State>(&again).ok().as_ref(), Some(&state));
        let mut verifier = Verifier::new(now.instant, own, state);
        verifier.learn(now, &documents);
        let _ = verifier.admit(now, &Default::default());
        let _ = verifier.next_change(now);
    }
});
