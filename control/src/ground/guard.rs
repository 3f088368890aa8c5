//! The set of guarded prefixes, which survives process, map and kernel, in a file of the state directory.
//!
//! ```text
//!   penstock guard v1
//!   placement {"Profile":"/etc/penstock/profiles/Universe.profile","Table":47100,…}
//!   10.102.0.0/24 profile
//!   10.103.0.0/16 profile overlay
//!   mac 8c2f…
//! ```
//! The [`Placement`] is what else is needed to put the guard up. Each further line has a prefix with its origins, and the
//! last one a MAC of everything before it, with a key derived from the gateway's private key. A prefix is added from the
//! profile, the coordinator's map or `wg set`; it is removed when an administrator releases it, or when it came only from
//! the profile and is no longer there.
//!
//! The file is read leniently: from a damaged one everything that can be read is used, together with what the kernel
//! still guards. At worst too much is guarded, which an administrator can release.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use blake2::digest::Mac;
use ipnet::IpNet;

use super::Placement;
use super::prefixes::is_default;
use crate::key::PrivateKey;
use crate::netlink::network;
use crate::problem::Problems;
use crate::profile::{ALLOWED_IP_LIMIT, Name};

/// The most prefixes that are guarded because of a coordinator, `wg set` and the kernel's state together. Those of the
/// profile have a limit of their own ([`ALLOWED_IP_LIMIT`]), so that nobody else can use it up.
pub const GUARD_LIMIT: usize = 1 << 16;
/// Longest file: a prefix has at most 43 bytes and its origins 38, and a placement some thousand subnets.
const FILE_LIMIT: usize = 128 * (GUARD_LIMIT + ALLOWED_IP_LIMIT);
const FILE_SUFFIX: &str = ".guard";
/// The most files that are searched for the one of a profile.
const FILES_LIMIT: usize = 1000;
const HEADER: &str = "penstock guard v1";
const LABEL: &[u8] = b"penstock guard v1 key";
const MAC_FIELD: &str = "mac ";
const PLACEMENT_FIELD: &str = "placement ";

/// What an administrator of one site may consider private: RFC 1918, RFC 6598, RFC 4193, and link-local networks.
const PRIVATE: [&str; 7] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10"];

/// Why a prefix is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A peer of the profile has it.
    Profile,
    /// A peer of the coordinator's map has it, and the profile does not mention it.
    Overlay,
    /// A peer of the coordinator's map has it, and the profile explicitly accepts it.
    Accepted,
    /// An administrator gave it to a peer of the running gateway (`wg set`).
    Runtime,
    /// The kernel guarded it when the gateway started, and no file said why.
    Found,
}

/// Why a prefix is not guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The coordinator offers a default route or a public prefix.
    #[error("only the profile can let a default route or a public prefix in")]
    Public,
    /// There are too many.
    #[error("{GUARD_LIMIT} prefixes that are not in the profile are guarded already")]
    TooMany,
}

/// The guarded prefixes.
#[derive(Debug)]
pub struct Guard {
    path: PathBuf,
    /// `None`: the file cannot be authenticated, and is not written.
    key: Option<PrivateKey>,
    name: Name,
    placement: Option<Placement>,
    prefixes: BTreeMap<IpNet, BTreeSet<Origin>>,
    /// Whether the file is out of date.
    unsaved: bool,
}

impl Guard {
    /// The file of the gateway of this name in the state directory.
    #[must_use]
    pub fn path(directory: &Path, name: &Name) -> PathBuf {
        directory.join(format!("{name}{FILE_SUFFIX}"))
    }

    /// The gateway that has this profile, and where its guard is to stand, according to the files in the state directory.
    #[must_use]
    pub fn of_profile(directory: &Path, profile: &Path) -> Option<(Name, Placement)> {
        let files = std::fs::read_dir(directory).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let names = files.filter_map(|file| Name::try_from(file.strip_suffix(FILE_SUFFIX)?.to_owned()).ok());
        names.take(FILES_LIMIT).find_map(|name| {
            let bytes = crate::sealed::read(&Self::path(directory, &name), FILE_LIMIT).ok()??;
            let text = String::from_utf8_lossy(&bytes);
            let placement = text.lines().find_map(|line| line.strip_prefix(PLACEMENT_FIELD))?;
            let placement: Placement = serde_json::from_str(placement).ok()?;
            (placement.profile == profile).then_some((name, placement))
        })
    }

    /// Reads the file. `held` is what the kernel guards for this gateway (see [`Ground::held`](super::Ground::held));
    /// it is believed as well. An error in the file is a problem. Without a key, nothing is authenticated or written.
    pub fn load(
        path: &Path,
        key: Option<&PrivateKey>,
        name: &Name,
        held: &BTreeSet<IpNet>,
        now: Instant,
        problems: &mut Problems,
    ) -> Self {
        Self::of_file(path, key, name, crate::sealed::read(path, FILE_LIMIT), held, now, problems)
    }

    /// The guard in a file's contents, if they could be read.
    pub(super) fn of_file(
        path: &Path,
        key: Option<&PrivateKey>,
        name: &Name,
        file: io::Result<Option<Vec<u8>>>,
        held: &BTreeSet<IpNet>,
        now: Instant,
        problems: &mut Problems,
    ) -> Self {
        let mut guard = Self {
            path: path.to_owned(),
            key: key.cloned(),
            name: name.clone(),
            placement: None,
            prefixes: BTreeMap::new(),
            unsaved: false,
        };
        let wrong = match file {
            Ok(Some(bytes)) => guard.decode(&bytes).err().map(str::to_owned),
            Ok(None) => (!held.is_empty()).then(|| "it is missing".to_owned()),
            Err(e) => Some(format!("it cannot be read: {e}")),
        };
        let room = GUARD_LIMIT.saturating_sub(guard.outside_profile());
        let unknown: Vec<IpNet> =
            held.iter().filter(|prefix| !guard.prefixes.contains_key(*prefix)).take(room).copied().collect();
        guard.unsaved |= !unknown.is_empty() || wrong.is_some();
        guard.prefixes.extend(unknown.into_iter().map(|prefix| (prefix, BTreeSet::from([Origin::Found]))));
        if let Some(wrong) = wrong {
            let sentence = format!(
                "the file of guarded prefixes: {wrong}; {} prefixes that it or the kernel still knows stay blocked",
                guard.prefixes.len()
            );
            problems.note(
                now,
                &guard.subject(),
                &sentence,
                "see `penstock status`, and release what need not be blocked",
            );
        }
        guard
    }

    /// Sets the gateway's private key, with which the file is authenticated.
    pub fn set_key(&mut self, key: &PrivateKey) {
        self.unsaved |= self.key.as_ref() != Some(key);
        self.key = Some(key.clone());
    }

    /// Sets where the guard is to stand.
    pub fn place(&mut self, placement: Placement) {
        self.unsaved |= self.placement.as_ref() != Some(&placement);
        self.placement = Some(placement);
    }

    /// How many prefixes are guarded that the profile does not have.
    fn outside_profile(&self) -> usize {
        self.prefixes.values().filter(|origins| !origins.contains(&Origin::Profile)).count()
    }

    fn subject(&self) -> String {
        self.path.display().to_string()
    }

    /// All guarded prefixes.
    #[must_use]
    pub fn prefixes(&self) -> BTreeSet<IpNet> {
        self.prefixes.keys().copied().collect()
    }

    /// Whether this prefix is guarded.
    #[must_use]
    pub fn contains(&self, prefix: &IpNet) -> bool {
        self.prefixes.contains_key(prefix)
    }

    /// All guarded prefixes with their origins, for `penstock status`.
    pub fn origins(&self) -> impl Iterator<Item = (&IpNet, &BTreeSet<Origin>)> {
        self.prefixes.iter()
    }

    /// Guards prefixes; returns those that were refused, and why. One that is already guarded gets another origin.
    pub fn cover(&mut self, prefixes: impl IntoIterator<Item = IpNet>, origin: Origin) -> Vec<(IpNet, Refusal)> {
        let mut refused = Vec::new();
        let mut room = match origin {
            Origin::Profile => usize::MAX,
            _ => GUARD_LIMIT.saturating_sub(self.outside_profile()),
        };
        for prefix in prefixes {
            let prefix = prefix.trunc();
            if origin == Origin::Overlay && !is_private(&prefix) {
                refused.push((prefix, Refusal::Public));
                continue;
            }
            if !self.prefixes.contains_key(&prefix) {
                if room == 0 {
                    refused.push((prefix, Refusal::TooMany));
                    continue;
                }
                room -= 1;
            }
            let origins = self.prefixes.entry(prefix).or_default();
            self.unsaved |= origins.remove(&Origin::Found) | origins.insert(origin);
        }
        refused
    }

    /// Releases prefixes for an administrator; returns those that were not guarded.
    pub fn release(&mut self, prefixes: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
        let mut unknown = Vec::new();
        for prefix in prefixes {
            match self.prefixes.remove(&prefix.trunc()) {
                Some(_) => self.unsaved = true,
                None => unknown.push(prefix),
            }
        }
        unknown
    }

    /// Releases all prefixes for an administrator.
    pub fn release_all(&mut self) {
        self.unsaved |= !self.prefixes.is_empty();
        self.prefixes.clear();
    }

    /// Sets the profile's prefixes: they are guarded, and those that only an earlier profile had are released.
    pub fn profile_changed(&mut self, prefixes: &BTreeSet<IpNet>) -> Vec<(IpNet, Refusal)> {
        for (prefix, origins) in &mut self.prefixes {
            if !prefixes.contains(prefix) {
                self.unsaved |= origins.remove(&Origin::Profile);
            }
        }
        self.prefixes.retain(|_, origins| !origins.is_empty());
        self.cover(prefixes.iter().copied(), Origin::Profile)
    }

    /// Checks whether somebody has removed the file; if so, it will be written again.
    pub fn confirm(&mut self) {
        self.unsaved |= !self.prefixes.is_empty() && !self.path.exists();
    }

    /// Writes the file, if it is out of date, or removes it if nothing is guarded. To be called before newly covered
    /// prefixes get routes, and after released ones have lost their blackholes. A file that cannot be written is a
    /// problem; the kernel's state holds meanwhile.
    pub fn save(&mut self, now: Instant, problems: &mut Problems) {
        let subject = self.subject();
        if !self.unsaved || self.key.is_none() || !problems.may_try(now, &subject) {
            return;
        }
        let written = if self.prefixes.is_empty() {
            crate::sealed::remove(&self.path)
        } else {
            crate::sealed::replace(&self.path, self.encode().as_bytes())
        };
        match written {
            Ok(()) => {
                self.unsaved = false;
                problems.solved(&subject);
            }
            Err(e) => problems.failed(
                now,
                &subject,
                &format!("the file of guarded prefixes cannot be written: {e}; after a reboot some may not be blocked"),
                "make the state directory writable",
            ),
        }
    }

    pub(super) fn encode(&self) -> String {
        let mut text = format!("{HEADER}\n");
        let placement = self.placement.as_ref().and_then(|placement| serde_json::to_string(placement).ok());
        if let Some(placement) = placement {
            text += &format!("{PLACEMENT_FIELD}{placement}\n");
        }
        for (prefix, origins) in &self.prefixes {
            text.push_str(&prefix.to_string());
            for origin in origins {
                text.push(' ');
                text.push_str(&origin.to_string());
            }
            text.push('\n');
        }
        if let Some(key) = &self.key {
            let mac = self.mac(key, text.as_bytes()).finalize().into_bytes();
            let hex: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            text += &format!("{MAC_FIELD}{hex}\n");
        }
        text
    }

    /// Takes what can be read of a file; the error is about the file as a whole.
    fn decode(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let text = String::from_utf8_lossy(bytes);
        let mut sound = text.lines().next() == Some(HEADER);
        for line in text.lines().skip(1).filter(|line| !line.starts_with(MAC_FIELD)) {
            if let Some(placement) = line.strip_prefix(PLACEMENT_FIELD) {
                self.placement = serde_json::from_str(placement).ok();
                sound &= self.placement.is_some();
                continue;
            }
            match parse(line) {
                Some((prefix, origins)) if self.prefixes.len() < GUARD_LIMIT + ALLOWED_IP_LIMIT => {
                    self.prefixes.insert(prefix, origins);
                }
                _ => sound = false,
            }
        }
        let end = bytes.iter().rposition(|byte| *byte == b'\n').filter(|at| at + 1 == bytes.len());
        let last = end.and_then(|end| bytes[..end].iter().rposition(|byte| *byte == b'\n')).map(|at| at + 1);
        let (body, mac) = bytes.split_at(last.unwrap_or(bytes.len()));
        let mac = std::str::from_utf8(mac).ok().and_then(|line| line.strip_prefix(MAC_FIELD)).and_then(unhex);
        let authentic = match &self.key {
            Some(key) => mac.is_some_and(|mac| self.mac(key, body).verify_slice(&mac).is_ok()),
            None => mac.is_some(),
        };
        match (authentic, sound) {
            (true, true) => Ok(()),
            (true, false) => Err("another version of Penstock wrote it"),
            (false, _) => Err("it is damaged, or another gateway made it"),
        }
    }

    /// For the fuzzer: whether what is used of a damaged file is the same when it is written and read again.
    #[doc(hidden)]
    #[must_use]
    pub fn round_trip(input: &[u8], key: &PrivateKey, name: &Name) -> bool {
        let read = |bytes: &[u8]| {
            let mut problems = Problems::default();
            let (file, held) = (Ok(Some(bytes.to_vec())), BTreeSet::new());
            let guard = Self::of_file(Path::new("fuzz"), Some(key), name, file, &held, Instant::now(), &mut problems);
            (guard, problems.is_empty())
        };
        let (first, authentic) = read(input);
        let (second, sound) = read(first.encode().as_bytes());
        !authentic && sound && (first.placement, first.prefixes) == (second.placement, second.prefixes)
    }

    fn mac(&self, key: &PrivateKey, body: &[u8]) -> crate::sealed::Mac {
        crate::sealed::mac_of(key.as_bytes(), LABEL, self.name.as_str().as_bytes()).chain_update(body)
    }
}

/// Parses a line of the file: a prefix and its origins.
fn parse(line: &str) -> Option<(IpNet, BTreeSet<Origin>)> {
    let mut words = line.split(' ');
    let prefix: IpNet = words.next()?.parse().ok()?;
    let origins: BTreeSet<Origin> = words.map(Origin::from_word).collect::<Option<_>>()?;
    let bare = network(prefix.addr(), prefix.prefix_len()) == prefix;
    (bare && !origins.is_empty()).then_some((prefix, origins))
}

fn unhex(line: &str) -> Option<Vec<u8>> {
    let line = line.strip_suffix('\n')?;
    let pair = |at| u8::from_str_radix(line.get(at..at + 2)?, 16).ok();
    (0..line.len()).step_by(2).map(pair).collect()
}

fn is_private(prefix: &IpNet) -> bool {
    let private = PRIVATE.iter().filter_map(|text| text.parse::<IpNet>().ok());
    !is_default(prefix) && private.into_iter().any(|private| private.contains(prefix))
}

impl Origin {
    const ALL: [Self; 5] = [Self::Profile, Self::Overlay, Self::Accepted, Self::Runtime, Self::Found];

    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|origin| origin.to_string() == word)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Profile => "profile",
            Self::Overlay => "overlay",
            Self::Accepted => "accepted",
            Self::Runtime => "runtime",
            Self::Found => "found",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn nets(list: &[&str]) -> BTreeSet<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn load(path: &Path, held: &[&str], problems: &mut Problems) -> Guard {
        let name = Name::try_from("amsterdam".to_owned()).unwrap();
        Guard::load(path, Some(&PrivateKey::from_bytes([1; 32])), &name, &nets(held), Instant::now(), problems)
    }

    fn placement() -> Placement {
        Placement {
            profile: "/etc/penstock/profiles/Amsterdam.profile".into(),
            table: 47_100,
            mark: 47_100,
            wan: "wan0".into(),
            lan: ["lan0".into()].into(),
            local: nets(&["10.101.0.0/24"]),
            transit: false,
        }
    }

    /// A guard with three prefixes, saved.
    fn saved(path: &Path) -> Guard {
        let mut problems = Problems::default();
        let mut guard = load(path, &[], &mut problems);
        guard.cover(nets(&["10.1.0.0/16", "fd00:1::/48"]), Origin::Profile);
        guard.place(placement());
        assert_eq!(guard.cover(nets(&["10.1.0.0/16", "10.2.0.0/16"]), Origin::Overlay), []);
        guard.save(Instant::now(), &mut problems);
        assert!(problems.is_empty());
        guard
    }

    #[test]
    fn the_set_outlives_the_process_until_it_is_released() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/amsterdam.guard");
        let guard = saved(&path);
        let mut problems = Problems::default();
        let mut after = load(&path, &[], &mut problems);
        assert!(problems.is_empty());
        assert_eq!(after.prefixes, guard.prefixes);
        // The coordinator still has the first, and only the profile had the second.
        assert_eq!(after.profile_changed(&nets(&["10.3.0.0/16"])), []);
        assert_eq!(after.prefixes(), nets(&["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"]));
        assert_eq!(after.release(nets(&["10.1.0.0/16", "10.9.0.0/16"])), ["10.9.0.0/16".parse().unwrap()]);
        after.save(Instant::now(), &mut problems);
        let mut last = load(&path, &[], &mut problems);
        assert_eq!(last.prefixes(), nets(&["10.2.0.0/16", "10.3.0.0/16"]));
        last.release_all();
        last.save(Instant::now(), &mut problems);
        assert_eq!(load(&path, &[], &mut problems).prefixes(), nets(&[]));
        assert!(problems.is_empty());
    }

    #[test]
    fn a_file_is_found_by_its_profile_and_written_again_when_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("amsterdam.guard");
        let mut guard = saved(&path);
        std::fs::write(directory.path().join("berlin.guard"), "placement {\n").unwrap();
        let (name, found) = Guard::of_profile(directory.path(), &placement().profile).unwrap();
        assert_eq!((name.as_str(), found), ("amsterdam", placement()));
        assert_eq!(Guard::of_profile(directory.path(), Path::new("/etc/penstock/profiles/Berlin.profile")), None);
        std::fs::remove_file(&path).unwrap();
        let mut problems = Problems::default();
        guard.confirm();
        guard.save(Instant::now(), &mut problems);
        assert_eq!(load(&path, &[], &mut problems).prefixes, guard.prefixes);
        assert!(problems.is_empty());
    }

    #[test]
    fn of_a_damaged_file_the_rest_is_taken_and_what_the_kernel_holds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("amsterdam.guard");
        let good = saved(&path).encode();
        let held = ["10.1.0.0/16", "10.2.0.0/16", "fd00:1::/48"];
        for at in 0..good.len() {
            for damaged in
                [&good.as_bytes()[..at], &[&good.as_bytes()[..at], b"\xff", &good.as_bytes()[at + 1..]].concat()[..]]
            {
                std::fs::write(&path, damaged).unwrap();
                let mut problems = Problems::default();
                let guard = load(&path, &held, &mut problems);
                assert!(guard.prefixes().is_superset(&nets(&held)), "{at}");
                assert_eq!(problems.list(Instant::now()).len(), 1, "{at}: {:?}", String::from_utf8_lossy(damaged));
            }
        }
        // Intact lines are used even without the kernel.
        std::fs::write(&path, good.replace("10.1.0.0/16 ", "10.1.0.0/33 ")).unwrap();
        assert_eq!(load(&path, &[], &mut Problems::default()).prefixes(), nets(&["10.2.0.0/16", "fd00:1::/48"]));
        std::fs::remove_file(&path).unwrap();
        let mut problems = Problems::default();
        assert_eq!(load(&path, &held, &mut problems).prefixes(), nets(&held));
        assert!(!problems.is_empty(), "a lost file is told");
        assert!(load(&path, &[], &mut Problems::default()).prefixes().is_empty());
    }

    #[test]
    fn another_gateways_file_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("amsterdam.guard");
        saved(&path);
        let mut problems = Problems::default();
        let name = Name::try_from("berlin".to_owned()).unwrap();
        let key = PrivateKey::from_bytes([1; 32]);
        Guard::load(&path, Some(&key), &name, &BTreeSet::new(), Instant::now(), &mut problems);
        assert!(!problems.is_empty());
    }

    #[test]
    fn a_map_cannot_block_the_internet_and_not_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut guard = load(&directory.path().join("a.guard"), &[], &mut Problems::default());
        let public = nets(&["0.0.0.0/0", "8.0.0.0/7", "198.51.100.0/24", "::/0", "2000::/3", "fc00::/6"]);
        assert_eq!(guard.cover(public.clone(), Origin::Overlay).len(), public.len());
        assert!(guard.prefixes().is_empty());
        assert_eq!(guard.cover(public.clone(), Origin::Accepted), []);
        guard.release_all();
        let many = (0..=GUARD_LIMIT as u32).map(|n| IpNet::from(IpAddr::from((0x0a00_0000 + n).to_be_bytes())));
        let refused = guard.cover(many, Origin::Overlay);
        assert_eq!(refused, [("10.1.0.0/32".parse().unwrap(), Refusal::TooMany)]);
        assert_eq!(
            guard.profile_changed(&nets(&["10.1.0.0/32", "10.2.0.0/16"])),
            [],
            "it leaves room for the profile's"
        );
        assert!(guard.encode().len() < FILE_LIMIT);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_a_problem_that_ends() {
        let directory = tempfile::tempdir().unwrap();
        let (path, now) = (directory.path().join("state/a.guard"), Instant::now());
        std::fs::write(directory.path().join("state"), "in the way").unwrap();
        let mut problems = Problems::default();
        let mut guard = load(&path, &[], &mut Problems::default());
        guard.cover(nets(&["10.1.0.0/16"]), Origin::Runtime);
        guard.save(now, &mut problems);
        assert!(!problems.is_empty());
        std::fs::remove_file(directory.path().join("state")).unwrap();
        guard.save(problems.poll_timeout().unwrap(), &mut problems);
        assert!(problems.is_empty() && path.exists());
    }
}
