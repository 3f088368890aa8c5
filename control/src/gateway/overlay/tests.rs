use ipnet::IpNet;

use super::*;
use crate::gateway::peers::tests::peers;

use penstock_proto::coordination::{Peer as MapPeer, Reachability};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn site(name: &str, number: u8, subnets: &[&str]) -> Site {
    let address = IpNet::from(IpAddr::from([100, 64, 0, number]));
    let prefixes = subnets.iter().map(|subnet| subnet.parse().unwrap()).chain([address]).collect();
    Site { name: name.parse().unwrap(), tags: Vec::new(), allow: None, prefixes, vouched: None }
}

fn sites<const N: usize>(sites: [(u8, Site); N]) -> BTreeMap<SiteKey, Site> {
    sites.into_iter().map(|(key, site)| (SiteKey::from([key; 32]), site)).collect()
}

fn prefixes_of(peers: &Peers, name: &str) -> Vec<String> {
    let peer = peers.iter().find(|peer| peer.name == name).unwrap();
    peer.allowed_ips().iter().map(ToString::to_string).collect()
}

#[test]
fn peers_follow_the_map() {
    let (mut proto, mut peers) = peers(&[]);
    let now = Instant::now();
    let both = sites([(7, site("berlin", 7, &["10.7.0.0/16"])), (8, site("cadiz", 8, &["10.8.0.0/16"]))]);
    let changes = follow_map(&both, &mut proto, &mut peers, now, &Surroundings::default(), None);
    assert_eq!((changes.added.len(), changes.removed.len(), changes.prefixes.len()), (2, 0, 4));
    assert_eq!(prefixes_of(&peers, "berlin"), ["10.7.0.0/16", "100.64.0.7/32"]);
    assert!(peers.iter().all(|peer| !peer.roams() && peer.endpoint.is_none()));

    let changes = follow_map(&both, &mut proto, &mut peers, now, &Surroundings::default(), None);
    assert!(!changes.any(), "{changes:?}");

    // Its tags and what it may reach are taken up, and nothing else.
    let mut other = both.clone();
    let cadiz = other.get_mut(&SiteKey::from([8; 32])).unwrap();
    (cadiz.tags, cadiz.allow) = (vec!["a".parse().unwrap()], Some(vec!["tcp/443".parse().unwrap()]));
    let changes = follow_map(&other, &mut proto, &mut peers, now, &Surroundings::default(), None);
    assert!(changes.any() && changes.prefixes.is_empty() && changes.added.is_empty(), "{changes:?}");
    let cadiz = peers.iter().find(|peer| peer.name == "cadiz").unwrap();
    assert_eq!((cadiz.tags.len(), cadiz.allow.as_ref().map(Vec::len)), (1, Some(1)));
    assert!(!follow_map(&other, &mut proto, &mut peers, now, &Surroundings::default(), None).any());

    // Cadiz is gone, and Berlin takes over its subnet.
    let one = sites([(7, site("berlin", 7, &["10.8.0.0/16"]))]);
    let changes = follow_map(&one, &mut proto, &mut peers, now, &Surroundings::default(), None);
    let prefixes: Vec<String> = changes.prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(
        (changes.removed.len(), prefixes),
        (1, ["10.7.0.0/16", "10.8.0.0/16", "100.64.0.8/32"].map(str::to_owned).into())
    );
    assert_eq!(prefixes_of(&peers, "berlin"), ["10.8.0.0/16", "100.64.0.7/32"]);
    assert_eq!(peers.remote().len(), 2);
    assert!(proto.peer_of(&PublicKey::from_bytes([8; 32]).into()).is_none(), "its sessions are over");
}

#[test]
fn who_only_moves_is_told_from_everything_else() {
    let peer = |number: u8| {
        let peer = MapPeer {
            name: format!("site-{number}").parse().unwrap(),
            virtual_address: [100, 64, 0, number].into(),
            subnets: vec!["10.1.0.0/16".parse().unwrap()],
            tags: Vec::new(),
            allow: None,
            reachability: None,
        };
        (SiteKey::from([number; 32]), peer)
    };
    let before = Map { peers: [peer(1), peer(2)].into(), ..Map::default() };
    let after = |change: &dyn Fn(&mut Map)| {
        let mut after = before.clone();
        after.version.number += 1;
        change(&mut after);
        Difference::between(&before, &after)
    };
    let two = SiteKey::from([2; 32]);
    let of_two = |map: &mut Map, change: &dyn Fn(&mut MapPeer)| change(map.peers.get_mut(&two).unwrap());
    assert_eq!(after(&|_| {}), Difference { moved: vec![], sites: false });
    let moves = after(&|map| of_two(map, &|peer| peer.reachability = Some(Reachability::default())));
    assert_eq!(moves, Difference { moved: vec![two], sites: false });
    let others: [&dyn Fn(&mut Map); 9] = [
        &|map| of_two(map, &|peer| peer.name = "x".parse().unwrap()),
        &|map| of_two(map, &|peer| peer.virtual_address = [100, 64, 0, 9].into()),
        &|map| of_two(map, &|peer| peer.subnets.clear()),
        &|map| of_two(map, &|peer| peer.tags.push("a".parse().unwrap())),
        &|map| of_two(map, &|peer| peer.allow = Some(Vec::new())),
        &|map| drop(map.peers.remove(&two)),
        &|map| map.peers.extend([peer(3)]),
        &|map| {
            map.peers.remove(&two);
            map.peers.extend([peer(3)]);
        },
        &|map| map.stun_servers.push("192.0.2.1:3478".parse().unwrap()),
    ];
    let joins = after(&|map| map.peers.extend([peer(3)]));
    assert_eq!(joins.moved, [SiteKey::from([3; 32])], "who is new is to be looked for");
    for (number, change) in others.into_iter().enumerate() {
        assert!(after(change).sites, "{number}");
    }
}

#[test]
fn only_endpoints_in_use_stand_against_a_prefix() {
    let (mut proto, mut peers) = peers(&[9]);
    let now = Instant::now();
    let both = sites([(7, site("berlin", 7, &[])), (8, site("cadiz", 8, &[]))]);
    follow_map(&both, &mut proto, &mut peers, now, &Surroundings::default(), None);
    for (peer, address) in peers.iter_mut().zip(["192.0.2.9", "10.7.0.1", "127.0.0.1"]) {
        peer.endpoint = Some((address.parse::<IpAddr>().unwrap(), 47100).into());
    }
    let in_use = |sites: &BTreeMap<SiteKey, Site>| {
        endpoints_in_use(&peers, sites).map(|address| address.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(in_use(&both), ["192.0.2.9", "10.7.0.1"]);
    // Berlin is revoked: its last address means nothing to the others.
    assert_eq!(in_use(&sites([(8, site("cadiz", 8, &[]))])), ["192.0.2.9"]);
}

#[test]
fn the_profile_comes_first() {
    let (mut proto, mut peers) = peers(&[7]);
    let now = Instant::now();
    let profiled = peers.iter().next().unwrap().id;
    peers.allow("10.7.0.0/16".parse().unwrap(), profiled);
    let greedy =
        sites([(7, site("berlin", 7, &["10.9.0.0/16"])), (8, site("cadiz", 8, &["10.7.0.0/16", "10.7.1.0/24"]))]);
    follow_map(&greedy, &mut proto, &mut peers, now, &Surroundings::default(), None);
    assert_eq!(peers.of(profiled).unwrap().allowed_ips(), &["10.7.0.0/16".parse().unwrap()].into());
    assert!(peers.of(profiled).unwrap().roams());
    assert_eq!(prefixes_of(&peers, "cadiz"), ["10.7.1.0/24", "100.64.0.8/32"]);
    follow_map(&BTreeMap::new(), &mut proto, &mut peers, now, &Surroundings::default(), None);
    assert_eq!(peers.iter().map(|peer| peer.id).collect::<Vec<_>>(), [profiled]);
}

/// Prefixes in force are judged only by what is new in the surroundings; the result must equal that of judging
/// everything.
#[test]
fn prefixes_in_force_are_judged_as_all_others() {
    let some = |rng: &mut StdRng, pool: &[&str], share: f64| -> Vec<String> {
        pool.iter().filter(|_| rng.random_bool(share)).map(|text| (*text).to_owned()).collect()
    };
    let parsed = |texts: Vec<String>| texts.into_iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
    let mut rng = StdRng::seed_from_u64(10);
    let (mut given, mut taken) = (0, 0);
    for _ in 0..300 {
        let ((mut proto, mut quick), (mut other, mut whole)) = (peers(&[9]), peers(&[9]));
        let mut before: Option<Surroundings> = None;
        for _ in 0..8 {
            let own = parsed(some(&mut rng, &["10.3.0.0/16"], 0.2));
            let accept = rng.random_bool(0.2).then(|| parsed(vec!["10.0.0.0/8".into(), "8.0.0.0/8".into()]));
            let servers = some(&mut rng, &["10.1.2.9", "10.2.0.1", "192.0.2.1"], 0.4);
            let servers = servers.into_iter().map(|address| (address.parse().unwrap(), Server::Endpoint));
            let surroundings = Surroundings::new(own, accept, servers);
            let mut map = BTreeMap::new();
            for number in 7..12 {
                if rng.random_bool(0.2) {
                    continue;
                }
                let pool = ["0.0.0.0/0", "8.8.8.0/24", "10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "10.3.0.0/24"];
                let subnets = some(&mut rng, &pool, 0.4);
                let subnets: Vec<&str> = subnets.iter().map(String::as_str).collect();
                map.insert(SiteKey::from([number; 32]), site(&format!("site-{number}"), number, &subnets));
            }
            let now = Instant::now();
            let left = follow_map(&map, &mut proto, &mut quick, now, &surroundings, before.as_ref());
            let right = follow_map(&map, &mut other, &mut whole, now, &surroundings, None);
            let shown = |peers: &Peers| -> BTreeMap<String, Vec<IpNet>> {
                peers.iter().map(|peer| (peer.name.clone(), peer.allowed_ips().iter().copied().collect())).collect()
            };
            assert_eq!(shown(&quick), shown(&whole), "{before:?}, {surroundings:?}");
            assert_eq!((&left.prefixes, &left.refused), (&right.prefixes, &right.refused), "{surroundings:?}");
            let had = |prefix: &&IpNet| quick.owner(prefix).is_some();
            given += left.prefixes.iter().filter(had).count();
            taken += left.prefixes.len() - left.prefixes.iter().filter(had).count();
            before = Some(surroundings);
        }
    }
    assert!(given > 500 && taken > 500, "{given} given, {taken} taken");
}
