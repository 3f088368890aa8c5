//! Where state is kept that outlives the process: the cached map, the guarded prefixes, the peers' last endpoints.

use std::path::PathBuf;

/// The directory, unless `PENSTOCK_STATE_DIR` or systemd's `STATE_DIRECTORY` says otherwise.
pub const DIRECTORY: &str = "/var/lib/penstock";

/// The directory of this process's state.
#[must_use]
pub fn directory() -> PathBuf {
    let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(given) = given("PENSTOCK_STATE_DIR") {
        return given.into();
    }
    // systemd gives a list with colons; ours is the first.
    let given = given("STATE_DIRECTORY").unwrap_or_default();
    match given.split(':').next() {
        None | Some("") => DIRECTORY.into(),
        Some(first) => first.into(),
    }
}
