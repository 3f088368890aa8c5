//! What honest parties do: approve, change, move, revoke, renew, hand over.

use penstock_proto::trust::{
    Authority, AuthorityError, DOCUMENT_LIMIT, Document, DocumentRefusal, LeaseLength, Lessor, OwnershipReason,
    PeerReason, Publication, REVOCATIONS_LIMIT, Serial, Tags, UnixTime, Validity,
};

use super::overlay::{Gateway, Overlay, START, grant, key, net, peer, signing_key};

/// Sites 1 and 2, and a gateway of site 1 that was shown everything.
fn pair() -> (Overlay, Gateway) {
    let mut overlay = Overlay::new(LeaseLength::DEFAULT);
    overlay.approve(1, &["10.1.0.0/16"]);
    overlay.approve(2, &["10.2.0.0/16"]);
    let mut gateway = Gateway::new(1, &overlay);
    let learnt = gateway.learn(&overlay.told());
    assert!(learnt.changed && learnt.refused.is_empty(), "{learnt:?}");
    (overlay, gateway)
}

#[test]
fn a_stated_peer_has_what_is_announced_inside_its_subnets() {
    let (_, mut gateway) = pair();
    let admission = gateway.admit([peer(2, &["10.2.7.0/24", "10.3.0.0/16", "10.0.0.0/8"]), peer(3, &["10.2.8.0/24"])]);
    let admitted = &admission.peers[&key(2)];
    assert_eq!(admitted.prefixes, [net("10.2.7.0/24"), net("100.64.0.2/32")]);
    assert_eq!(admitted.name.as_str(), "site-2");
    assert_eq!(admission.refused, [(key(3), PeerReason::Unstated)].into());
    let outside = [net("10.0.0.0/8"), net("10.3.0.0/16")].map(|prefix| (key(2), prefix, OwnershipReason::NotStated));
    assert_eq!(admission.prefixes, outside);
}

#[test]
fn a_name_and_an_address_are_those_of_the_statement() {
    let (_, mut gateway) = pair();
    let (site, mut liar) = peer(2, &["10.2.0.0/16"]);
    (liar.name, liar.virtual_address) = ("site-1".parse().unwrap(), [100, 64, 0, 9].into());
    let admission = gateway.admit([(site, liar)]);
    let admitted = &admission.peers[&site];
    assert_eq!((admitted.name.as_str(), &admitted.prefixes[..]), ("site-2", &[net("10.2.0.0/16")][..]));
    assert_eq!(admission.prefixes, [(site, net("100.64.0.9/32"), OwnershipReason::NotStated)]);
}

#[test]
fn nothing_is_believed_that_is_bent() {
    let (mut overlay, _) = pair();
    for document in overlay.told() {
        let text = document.to_string();
        assert!(text.len() <= DOCUMENT_LIMIT);
        assert_eq!(text.parse().as_ref(), Ok(&document));
        let json = serde_json::to_string(&document).unwrap();
        assert_eq!(serde_json::from_str::<Document>(&json).unwrap(), document);
        for at in 0..text.len() {
            let mut bent = text.clone().into_bytes();
            bent[at] = if bent[at] == b'A' { b'B' } else { b'A' };
            let Ok(bent) = String::from_utf8(bent).unwrap().parse::<Document>() else { continue };
            assert!(!bent.is_signed_by(&overlay.publication().authority()), "{at} of {text}");
            assert!(!bent.is_leased_by(&overlay.lessor.key()), "{at} of {text}");
        }
        for end in 0..text.len() {
            assert!(text[..end].parse::<Document>().is_err());
        }
    }
    assert!("A".repeat(DOCUMENT_LIMIT + 4).parse::<Document>().is_err());
}

/// The signed bytes are a contract with existing documents: one of each kind.
#[test]
fn the_form_of_documents_does_not_change() {
    let mut authority = Authority::found(signing_key(1));
    let mut site = grant(2, &["10.2.0.0/16", "fd02::/48"]);
    site.validity = Validity::new(None, Some(UnixTime(START.0 + 1))).unwrap();
    site.tags = Tags::new(["hub".parse().unwrap()]).unwrap();
    let mut documents = authority.approve(START, site).unwrap();
    let name = "frankfurt".parse().unwrap();
    documents.extend(authority.approve_relay(START, key(9), name, Validity::default()).unwrap());
    documents.extend(authority.revoke(START, [key(2)]).unwrap());
    let mut lessor = Lessor::new(signing_key(2), LeaseLength::DEFAULT, Serial(0));
    documents.extend(authority.certify(START, lessor.key(), LeaseLength::Never).unwrap());
    documents.push(lessor.lease(START, key(2)));
    documents.push(authority.spare(signing_key(5).authority()));
    let kept: Vec<Document> = include_str!("documents.txt").lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(documents, kept, "{}", documents.iter().map(|document| format!("\n{document}")).collect::<String>());
}

#[test]
fn another_overlays_documents_are_worth_nothing() {
    let (overlay, mut gateway) = pair();
    let mut other = Authority::found(signing_key(7));
    let mut lessor = Lessor::new(signing_key(8), LeaseLength::Never, Serial(0));
    other.approve(START, grant(3, &["10.3.0.0/16"])).unwrap();
    other.revoke(START, [key(2)]).unwrap();
    other.certify(START, lessor.key(), LeaseLength::Never).unwrap();
    let mut forged: Vec<Document> = other.publication().documents().cloned().collect();
    forged.push(lessor.lease(UnixTime(START.0 + 9), key(2)));
    let learnt = gateway.learn(&forged);
    assert_eq!((learnt.changed, learnt.refused), (false, vec![DocumentRefusal::Signature; 4]));
    // The authority issues no leases, and the lease key states nothing.
    let mut usurper = Authority::found(signing_key(2));
    assert!(gateway.learn(&usurper.approve(START, grant(3, &[])).unwrap()).refused == [DocumentRefusal::Signature]);
    let mut lessor = Lessor::new(signing_key(1), LeaseLength::Never, overlay.lessor.last());
    assert!(gateway.learn(&[lessor.lease(START, key(2))]).refused == [DocumentRefusal::Signature]);
    assert!(gateway.prefixes(2, &["10.2.0.0/16"]).is_some());
    assert!(!gateway.learn(&overlay.publication().documents().cloned().collect::<Vec<_>>()).changed);
}

#[test]
fn what_is_revoked_stays_so_and_the_old_statement_does_not_come_back() {
    let (mut overlay, mut gateway) = pair();
    let before = overlay.told();
    assert!(gateway.learn(&overlay.revoke(2)).changed);
    gateway.restart(std::time::Duration::ZERO);
    let replayed = gateway.learn(&before);
    assert!(replayed.refused.contains(&DocumentRefusal::Revoked(key(2))), "{replayed:?}");
    assert_eq!(gateway.admit([peer(2, &[])]).refused, [(key(2), PeerReason::Unstated)].into());
    // The administrator may change their mind.
    overlay.approve(2, &["10.2.0.0/16"]);
    assert!(gateway.learn(&overlay.told()).refused.is_empty());
    assert!(gateway.prefixes(2, &["10.2.0.0/16"]).is_some());
}

#[test]
fn a_wider_statement_replaces_and_a_narrower_one_revokes() {
    let (mut overlay, mut gateway) = pair();
    let wide = overlay.approve(2, &["10.2.0.0/16", "10.3.0.0/16"]);
    assert_eq!(wide.len(), 1);
    gateway.learn(&wide);
    assert_eq!(gateway.prefixes(2, &["10.3.0.0/16"]), Some(vec![net("10.3.0.0/16")]));
    let narrow = overlay.approve(2, &["10.2.0.0/17"]);
    assert_eq!(narrow.len(), 2, "a list of revocations, and the statement");
    // The statement counts for nothing without the list.
    gateway.learn(&narrow[1..]);
    assert!(matches!(gateway.admit([peer(2, &[])]).refused[&key(2)], PeerReason::Revocations { .. }));
    gateway.learn(&narrow[..1]);
    assert_eq!(gateway.prefixes(2, &["10.2.0.0/17", "10.3.0.0/16"]), Some(vec![net("10.2.0.0/17")]));
    assert_eq!(gateway.learn(&wide).refused, [DocumentRefusal::Revoked(key(2))]);
}

#[test]
fn one_thing_has_one_site() {
    let (mut overlay, _) = pair();
    let mut site = grant(3, &["10.2.0.0/16"]);
    let approve = |overlay: &mut Overlay, site| overlay.authority.approve(START, site);
    assert!(matches!(approve(&mut overlay, site.clone()), Err(AuthorityError::SubnetTaken(..))));
    site = grant(3, &["10.2.7.0/24"]);
    site.name = "site-2".parse().unwrap();
    assert!(matches!(approve(&mut overlay, site.clone()), Err(AuthorityError::NameTaken(_))));
    site = grant(3, &["10.2.7.0/24"]);
    site.virtual_address = [100, 64, 0, 2].into();
    assert!(matches!(approve(&mut overlay, site), Err(AuthorityError::AddressTaken(..))));
    // This also holds for an authority that was restarted, and only until the first site has lost it.
    let authority = |publication: &Publication| Authority::resume(signing_key(1), publication.clone()).unwrap();
    let mut again = authority(overlay.publication());
    let taken = grant(3, &["10.2.0.0/16"]);
    assert!(matches!(again.approve(START, taken.clone()), Err(AuthorityError::SubnetTaken(..))));
    again.approve(START, grant(2, &["10.9.0.0/16"])).unwrap();
    again.approve(START, taken).unwrap();
    let back = again.approve(START, grant(2, &["10.2.0.0/16"]));
    assert!(matches!(back, Err(AuthorityError::SubnetTaken(..))), "{back:?}");
    // An administrator may put a subnet inside a subnet.
    let mut gateway = Gateway::new(1, &overlay);
    overlay.approve(3, &["10.2.7.0/24"]);
    gateway.learn(&overlay.told());
    let admission = gateway.admit([peer(2, &["10.2.0.0/16", "10.2.7.128/25"]), peer(3, &["10.2.7.0/24"])]);
    assert_eq!(admission.peers[&key(2)].prefixes, [net("10.2.0.0/16"), net("100.64.0.2/32")]);
    assert_eq!(admission.peers[&key(3)].prefixes, [net("10.2.7.0/24"), net("100.64.0.3/32")]);
    let owned = OwnershipReason::Owned(net("10.2.7.0/24"), key(3));
    assert_eq!(admission.prefixes, [(key(2), net("10.2.7.128/25"), owned)]);
}

#[test]
fn relays_are_stated_too() {
    let (mut overlay, mut gateway) = pair();
    let now = gateway.now();
    assert_eq!(gateway.verifier.admit_relay(now, &key(9)), Err(PeerReason::Unstated));
    let relay = |overlay: &mut Overlay, until: Option<u64>| {
        let validity = Validity::new(None, until.map(UnixTime)).unwrap();
        overlay.authority.approve_relay(START, key(9), "frankfurt".parse().unwrap(), validity).unwrap()
    };
    let open = relay(&mut overlay, None);
    gateway.learn(&open);
    assert_eq!(gateway.verifier.admit_relay(now, &key(9)).map(|name| name.to_string()), Ok("frankfurt".to_owned()));
    assert_eq!(gateway.verifier.admit_relay(now, &key(2)), Err(PeerReason::OtherKind), "a site is not a relay");
    assert_eq!(gateway.admit([peer(9, &[])]).refused, [(key(9), PeerReason::OtherKind)].into(), "nor a relay a site");
    gateway.learn(&relay(&mut overlay, Some(START.0 - 1)));
    assert_eq!(gateway.verifier.admit_relay(now, &key(9)), Err(PeerReason::Ended));
    assert_eq!(gateway.learn(&open).refused, [DocumentRefusal::Revoked(key(9))]);
}

#[test]
fn the_authority_remembers_by_its_publication() {
    let (mut overlay, mut gateway) = pair();
    overlay.revoke(2);
    let text = serde_json::to_string(overlay.publication()).unwrap();
    let stored: Publication = serde_json::from_str(&text).unwrap();
    assert_eq!(&stored, overlay.publication());
    assert!(matches!(Authority::resume(signing_key(3), stored.clone()), Err(AuthorityError::WrongKey(_))));
    // The clock is years off.
    let mut authority = Authority::resume(signing_key(1), stored).unwrap();
    let documents = authority.approve(UnixTime(5), grant(2, &["10.2.0.0/16"])).unwrap();
    gateway.learn(&overlay.told());
    assert!(gateway.learn(&documents).refused.is_empty());
    assert_eq!(gateway.admit([peer(2, &[])]).refused, [(key(2), PeerReason::Unleased)].into());
    // A publication that somebody has tampered with is refused.
    let other = Authority::found(signing_key(7)).approve(START, grant(3, &[])).unwrap().remove(0);
    let bent = text.replacen("\"Documents\":[", &format!("\"Documents\":[\"{other}\","), 1);
    assert!(bent != text && serde_json::from_str::<Publication>(&bent).is_err());
}

#[test]
fn a_restored_backup_brings_nobody_back() {
    let (mut overlay, mut gateway) = pair();
    let backup = overlay.publication().clone();
    overlay.now.0 += 60;
    gateway.learn(&overlay.revoke(2));
    overlay.authority = Authority::resume(signing_key(1), backup).unwrap();
    overlay.now.0 += 60;
    overlay.approve(3, &["10.3.0.0/16"]);
    overlay.revoke(3);
    assert!(gateway.learn(&overlay.told()).refused.contains(&DocumentRefusal::Revoked(key(2))));
    assert_eq!(gateway.admit([peer(2, &[])]).refused, [(key(2), PeerReason::Unstated)].into());
}

#[test]
fn a_full_list_of_revocations_becomes_a_floor() {
    let (mut overlay, mut gateway) = pair();
    overlay.approve(3, &[]);
    let old = overlay.told();
    gateway.learn(&old);
    let many = (0..REVOCATIONS_LIMIT as u32).map(|number| {
        let mut bytes = [0xee; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes.into()
    });
    let full = overlay.authority.revoke(START, many).unwrap();
    let [list] = &full[..] else { panic!("one list") };
    assert_eq!(list.to_string().parse().as_ref(), Ok(list), "a full list is read");
    let renewed = overlay.revoke(3);
    assert_eq!(renewed.len(), 3, "a list, and the statements of the sites that stay");
    assert_eq!(overlay.publication().revocations().unwrap().subjects().len(), 0);
    gateway.learn(&renewed);
    assert!(gateway.prefixes(2, &["10.2.0.0/16"]).is_none(), "its lease went with the statement");
    gateway.learn(&overlay.told());
    assert!(gateway.prefixes(2, &["10.2.0.0/16"]).is_some());
    assert!(gateway.prefixes(3, &[]).is_none());
    assert!(gateway.learn(&old).refused.contains(&DocumentRefusal::Revoked(key(3))));
}

#[test]
fn the_authority_hands_over() {
    let (mut overlay, mut gateway) = pair();
    let before = overlay.told();
    let Overlay { authority, lessor, now } = overlay;
    let (authority, documents) = authority.roll_over(now, signing_key(5)).unwrap();
    overlay = Overlay { authority, lessor, now };
    let learnt = gateway.learn(&documents);
    assert!(learnt.changed && learnt.refused.is_empty(), "{learnt:?}");
    gateway.learn(&overlay.told());
    assert_eq!(gateway.verifier.state(gateway.instant).authority(), signing_key(5).authority());
    assert!(gateway.prefixes(2, &["10.2.0.0/16"]).is_some());
    gateway.restart(std::time::Duration::ZERO);
    // A gateway that still pins the first key follows the rollover.
    let mut new = Gateway::new(1, &overlay);
    assert!(new.learn(&overlay.told()).refused.is_empty());
    assert!(new.prefixes(2, &["10.2.0.0/16"]).is_some());
    // What the old key has signed, or signs now, is void.
    let replayed = gateway.learn(&before);
    assert!(!replayed.changed && !replayed.refused.is_empty(), "{replayed:?}");
    let mut thief = Authority::found(signing_key(1));
    assert_eq!(gateway.learn(&thief.approve(now, grant(3, &[])).unwrap()).refused, [DocumentRefusal::Signature]);
    let fork = thief.spare(signing_key(6).authority());
    gateway.learn(&[fork]);
    assert_eq!(gateway.verifier.state(gateway.instant).authority(), signing_key(5).authority());
    assert!(gateway.prefixes(2, &["10.2.0.0/16"]).is_some());
    // A key that was given up cannot come back.
    let back = overlay.authority.spare(signing_key(1).authority());
    assert_eq!(gateway.learn(&[back]).refused, [DocumentRefusal::Old]);
    assert!(overlay.authority.roll_over(now, signing_key(1)).is_err());
}

#[test]
fn a_lost_authority_is_replaced_by_its_spare() {
    let (overlay, mut gateway) = pair();
    let spare = overlay.authority.spare(signing_key(5).authority());
    // The coordinator still has what was published; the authority's key and memory are gone.
    let published = overlay.publication().clone();
    let Overlay { lessor, now, .. } = overlay;
    assert!(Authority::take_over(now, signing_key(6), published.clone(), spare.clone()).is_err(), "not that key");
    let (authority, _) = Authority::take_over(now, signing_key(5), published, spare).unwrap();
    let mut overlay = Overlay { authority, lessor, now };
    overlay.approve(3, &["10.3.0.0/16"]);
    gateway.learn(&overlay.told());
    assert!(gateway.prefixes(2, &["10.2.0.0/16"]).is_some());
    assert!(gateway.prefixes(3, &["10.3.0.0/16"]).is_some());
}
