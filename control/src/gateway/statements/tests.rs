use std::path::Path;

use penstock_proto::coordination::MapVersion;
use penstock_proto::trust::{Authority, LeaseLength, Lessor, Serial, SigningKey, SiteGrant, Subnets, Validity};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// The authority of an overlay with its coordinator, and a gateway of it.
struct Lab {
    directory: tempfile::TempDir,
    authority: Authority,
    lessor: Lessor,
    own: PrivateKey,
    now: Instant,
}

impl Lab {
    fn new() -> Self {
        let mut authority = Authority::found(signing_key(1));
        let lessor = Lessor::new(signing_key(2), LeaseLength::DEFAULT, Serial(0));
        authority.certify(wall(), lessor.key(), LeaseLength::DEFAULT).unwrap();
        let own = PrivateKey::from_bytes([1; 32]);
        let mut lab = Self { directory: tempfile::tempdir().unwrap(), authority, lessor, own, now: Instant::now() };
        let own = SiteKey::from(*lab.own.public_key().as_bytes());
        lab.approve(own, 1, &["10.1.0.0/16"]);
        lab
    }

    fn approve(&mut self, key: SiteKey, number: u8, subnets: &[&str]) {
        let grant = SiteGrant {
            public_key: key,
            name: format!("site-{number}").parse().unwrap(),
            virtual_address: [100, 64, 0, number].into(),
            tags: Default::default(),
            subnets: Subnets::new(subnets.iter().map(|text| text.parse().unwrap())).unwrap(),
            validity: Validity::default(),
        };
        self.authority.approve(wall(), grant).unwrap();
    }

    /// All that an honest coordinator shows.
    fn documents(&mut self) -> Vec<Document> {
        let publication = self.authority.publication();
        let mut documents: Vec<Document> = publication.documents().cloned().collect();
        let sites: Vec<SiteKey> = publication.sites().map(|site| site.grant.public_key).collect();
        documents.extend(sites.into_iter().map(|site| self.lessor.lease(wall(), site)));
        documents
    }

    fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("a.seen")
    }

    fn open_with(&self, authority: Option<AuthorityKey>) -> Statements {
        let config = Config {
            url: "https://coordinator.test".parse().unwrap(),
            trust: penstock_connect::Trust::Authorities(None),
            private_key: self.own.clone(),
            subnets: Vec::new(),
            authority,
            cache: self.directory.path().join("a.map"),
            seen: self.file(),
            mark: 0,
        };
        Statements::open(self.now, &config)
    }

    fn open(&self) -> Statements {
        self.open_with(Some(self.authority.publication().root()))
    }
}

fn signing_key(seed: u64) -> SigningKey {
    SigningKey::generate(&mut StdRng::seed_from_u64(seed))
}

fn wall() -> UnixTime {
    SystemTime::now().into()
}

fn key(number: u8) -> SiteKey {
    [number; 32].into()
}

fn map(sites: &[(u8, &[&str])]) -> Map {
    let peer = |(number, subnets): &(u8, &[&str])| {
        let peer = coordination::Peer {
            name: format!("site-{number}").parse().unwrap(),
            virtual_address: [100, 64, 0, *number].into(),
            subnets: subnets.iter().map(|text| text.parse().unwrap()).collect(),
            tags: Vec::new(),
            allow: None,
            reachability: None,
        };
        (key(*number), peer)
    };
    Map { version: MapVersion::default(), peers: sites.iter().map(peer).collect(), ..Map::default() }
}

fn names(believed: &Believed) -> Vec<&str> {
    believed.sites.values().map(|site| site.name.as_str()).collect()
}

fn subjects(statements: &Statements, now: Instant) -> Vec<String> {
    statements.problems(now).into_iter().map(|problem| problem.subject).collect()
}

#[test]
fn only_what_is_signed_is_taken_and_a_restart_remembers() {
    let mut lab = Lab::new();
    lab.approve(key(2), 2, &["10.2.0.0/16"]);
    let mut statements = lab.open();
    let sites = map(&[(2, &["10.2.0.0/16", "10.9.0.0/16"]), (3, &["10.3.0.0/16"])]);
    // A coordinator that shows nothing has no sites.
    let believed = statements.judge(lab.now, &sites);
    assert_eq!((names(&believed), believed.refused.len()), (vec![], 2));
    assert!(believed.refused[0].reason.contains("no valid statement of this gateway itself"), "{believed:?}");

    let documents = lab.documents();
    statements.learn(lab.now, &documents);
    assert_eq!(statements.poll_timeout(), Some(lab.now + SETTLE), "nothing else may follow");
    assert!(statements.handle_timeout(lab.now + SETTLE));
    let believed = statements.judge(lab.now, &sites);
    assert_eq!(names(&believed), ["site-2"]);
    let prefixes: Vec<String> = believed.sites[&key(2)].prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.2.0.0/16", "100.64.0.2/32"]);
    let refused: Vec<(&str, Option<String>)> =
        believed.refused.iter().map(|r| (r.name.as_str(), r.prefix.map(|prefix| prefix.to_string()))).collect();
    assert_eq!(refused, [("site-3", None), ("site-2", Some("10.9.0.0/16".to_owned()))]);

    // Killed, and started again without the coordinator.
    drop(statements);
    assert_eq!(names(&lab.open().judge(lab.now, &sites)), ["site-2"]);
}

#[test]
fn what_was_revoked_stays_so_after_a_restart() {
    let mut lab = Lab::new();
    lab.approve(key(2), 2, &["10.2.0.0/16"]);
    let before = lab.documents();
    let sites = map(&[(2, &["10.2.0.0/16"])]);
    let mut statements = lab.open();
    statements.learn(lab.now, &before);
    assert_eq!(names(&statements.judge(lab.now, &sites)), ["site-2"]);
    let list = lab.authority.revoke(wall(), [key(2)]).unwrap();
    statements.learn(lab.now, &list);
    assert_eq!(names(&statements.judge(lab.now, &sites)), [""; 0]);
    drop(statements);
    let mut statements = lab.open();
    statements.learn(lab.now, &before);
    assert_eq!(names(&statements.judge(lab.now, &sites)), [""; 0], "an old backup brings it back");
    assert_eq!(subjects(&statements, lab.now), [DOCUMENTS], "and nobody is told");
    statements.connected();
    assert_eq!(subjects(&statements, lab.now), [""; 0]);
}

#[test]
fn a_damaged_file_ends_all_belief_until_it_is_removed() {
    let mut lab = Lab::new();
    lab.approve(key(2), 2, &[]);
    let sites = map(&[(2, &[])]);
    let documents = lab.documents();
    let mut statements = lab.open();
    statements.learn(lab.now, &documents);
    statements.judge(lab.now, &sites);
    let good = std::fs::read(lab.file()).unwrap();
    for bytes in [&good[..good.len() - 1], b"", b"something else"] {
        std::fs::write(lab.file(), bytes).unwrap();
        let mut statements = lab.open();
        statements.learn(lab.now, &documents);
        let believed = statements.judge(lab.now, &sites);
        assert_eq!((names(&believed), believed.refused.len()), (vec![], 1));
        assert_eq!(subjects(&statements, lab.now), [lab.file().display().to_string()]);
        statements.stop(lab.now);
        assert_eq!(std::fs::read(lab.file()).unwrap(), bytes, "it is left for whoever looks into it");
    }
    std::fs::remove_file(lab.file()).unwrap();
    let mut statements = lab.open();
    statements.learn(lab.now, &documents);
    assert_eq!(names(&statements.judge(lab.now, &sites)), ["site-2"]);
}

#[test]
fn a_lease_warns_at_half_ends_and_a_restart_does_not_renew_it() {
    let mut lab = Lab::new();
    lab.approve(key(2), 2, &["10.2.0.0/16"]);
    let sites = map(&[(2, &["10.2.0.0/16"])]);
    let documents = lab.documents();
    let mut statements = lab.open();
    statements.learn(lab.now, &documents);
    let seconds = |believed: &Believed, now| believed.sites[&key(2)].vouched.unwrap().status(now).lease_seconds;
    let believed = statements.judge(lab.now, &sites);
    assert_eq!(seconds(&believed, lab.now + WEEK / 4), Some(WEEK.as_secs() * 3 / 4));

    // It looks again by itself, at half and at the end.
    let mut now = lab.now;
    while now < lab.now + WEEK * 3 / 4 {
        now = statements.poll_timeout().unwrap();
        if statements.handle_timeout(now) {
            statements.judge(now, &sites);
        }
        assert_eq!(
            subjects(&statements, now).contains(&LEASES.to_owned()),
            now >= lab.now + WEEK / 2,
            "{:?}",
            now - lab.now
        );
    }
    let problem = statements.problems(now).remove(0);
    assert!(problem.sentence.contains("the lease of site-2; in 42 h the first"), "{}", problem.sentence);

    // A restart, by a process that has its own clock.
    statements.stop(now);
    let lab = Lab { now: Instant::now() + 100 * WEEK, ..lab };
    let mut statements = lab.open();
    let believed = statements.judge(lab.now, &sites);
    let left = seconds(&believed, lab.now).unwrap();
    assert!(left.abs_diff(WEEK.as_secs() / 4) <= 3_600, "{left}");
    let after = lab.now + Duration::from_secs(left + 1);
    assert!(statements.handle_timeout(after));
    let believed = statements.judge(after, &sites);
    assert_eq!(names(&believed), [""; 0]);
    assert!(believed.refused[0].reason.ends_with("has not renewed its lease in time"), "{believed:?}");
    assert_eq!(subjects(&statements, after), [""; 0], "the refusal says it now");
}

#[test]
fn relays_are_taken_only_if_they_are_stated() {
    let mut lab = Lab::new();
    let relay =
        |key| Relay { name: "relay".parse().unwrap(), public_key: key, udp: Vec::new(), url: None, fingerprint: None };
    let map = Map { relays: vec![relay(key(99)), relay(key(98))], ..Map::default() };
    lab.authority.approve_relay(wall(), key(99), "relay".parse().unwrap(), Validity::default()).unwrap();
    let mut statements = lab.open();
    statements.learn(lab.now, &lab.documents());
    let believed = statements.judge(lab.now, &map);
    assert_eq!(believed.relays, [relay(key(99))]);
    assert_eq!(believed.refused.iter().map(|refused| refused.key).collect::<Vec<_>>(), [key(98)]);
    assert_eq!(lab.open_with(None).judge(lab.now, &map).relays.len(), 2);
}

#[test]
fn without_a_pin_all_is_as_before_and_said_once_there_are_statements() {
    let mut lab = Lab::new();
    let sites = map(&[(2, &["10.2.0.0/16"])]);
    let mut statements = lab.open_with(None);
    assert_eq!(names(&statements.judge(lab.now, &sites)), ["site-2"]);
    assert_eq!((subjects(&statements, lab.now), statements.poll_timeout()), (vec![], None));
    statements.learn(lab.now, &lab.documents());
    assert_eq!(names(&statements.judge(lab.now, &sites)), ["site-2"]);
    let problem = statements.problems(lab.now).remove(0);
    assert!(problem.what_to_do.contains("set-config Coordinator.Authority="), "{problem:?}");
    statements.stop(lab.now);
    assert!(!lab.file().exists());
}

#[test]
fn another_pin_forgets_what_the_former_authority_signed() {
    let mut lab = Lab::new();
    lab.approve(key(2), 2, &[]);
    let sites = map(&[(2, &[])]);
    let mut statements = lab.open();
    statements.learn(lab.now, &lab.documents());
    assert_eq!(names(&statements.judge(lab.now, &sites)), ["site-2"]);
    let other = signing_key(7).authority();
    let mut statements = lab.open_with(Some(other));
    assert_eq!(statements.authority(), Some(other));
    assert_eq!(names(&statements.judge(lab.now, &sites)), [""; 0]);
}

#[test]
fn a_file_that_cannot_be_written_is_a_problem_and_new_revocations_count_all_the_same() {
    let mut lab = Lab::new();
    lab.approve(key(2), 2, &[]);
    let sites = map(&[(2, &[])]);
    let mut statements = lab.open();
    let in_the_way = |path: &Path| std::fs::create_dir(path).unwrap();
    in_the_way(&lab.file());
    statements.learn(lab.now, &lab.documents());
    assert_eq!(names(&statements.judge(lab.now, &sites)), ["site-2"]);
    assert_eq!(subjects(&statements, lab.now), [lab.file().display().to_string()]);
    statements.learn(lab.now, &lab.authority.revoke(wall(), [key(2)]).unwrap());
    assert_eq!(names(&statements.judge(lab.now, &sites)), [""; 0]);
    std::fs::remove_dir(lab.file()).unwrap();
    let retry = statements.poll_timeout().unwrap();
    statements.handle_timeout(retry);
    assert_eq!(subjects(&statements, retry), [""; 0]);
    assert!(lab.file().exists());
}

/// A coordinator can make any number of leases.
#[test]
fn leases_alone_are_not_written_without_end() {
    let mut lab = Lab::new();
    let mut statements = lab.open();
    statements.learn(lab.now, &lab.documents());
    statements.judge(lab.now, &map(&[]));
    let own = SiteKey::from(*lab.own.public_key().as_bytes());
    let mut writes = 0;
    for _ in 0..1_000 {
        std::fs::remove_file(lab.file()).ok();
        let lease = lab.lessor.lease(wall(), own);
        statements.learn(lab.now, &[lease]);
        statements.judge(lab.now, &map(&[]));
        writes += u32::from(lab.file().exists());
    }
    assert_eq!(writes, LEASES_BURST);
    // The postponed write follows.
    let later = statements.poll_timeout().unwrap();
    assert!(later <= lab.now + LEASES_INTERVAL);
    statements.handle_timeout(later);
    assert!(lab.file().exists());
}
