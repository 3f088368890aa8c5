//! What gateways and the coordinator say to each other, and enrolment keys.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_proto::coordination::{CoordinatorMessage, EnrolmentKey, GatewayMessage, Map};

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(message) = GatewayMessage::decode(text) {
        assert_eq!(GatewayMessage::decode(&message.encode()), Ok(message));
    }
    if let Ok(message) = CoordinatorMessage::decode(text) {
        assert_eq!(CoordinatorMessage::decode(&message.encode()).as_ref(), Ok(&message));
        match message {
            CoordinatorMessage::Map(map) => {
                let _ = map.known();
            }
            CoordinatorMessage::Update(update) => {
                let mut map = Map { version: update.from, ..Map::default() };
                let (to, peers) = (update.to, update.upsert.len());
                assert_eq!(map.apply(update), Ok(()));
                assert_eq!((map.version, map.peers.len()), (to, peers));
            }
            _ => {}
        }
    }
    if let Ok(key) = text.parse::<EnrolmentKey>() {
        assert_eq!(key.to_text().parse::<EnrolmentKey>().map(|again| again.hash()), Ok(key.hash()));
    }
});
