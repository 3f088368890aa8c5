//! A gateway's name, which is also its tun device's and its sockets'.

use std::fmt;

/// 1 to 15 letters, digits, `_`, `.` and `-`: valid for a network device and for a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(try_from = "String")]
pub struct Name(String);

/// Longest name: IFNAMSIZ of linux/if.h without its zero.
pub const LIMIT: usize = 15;

/// Words that `wg` or the kernel's sysctl tree would not take for a device.
const RESERVED: [&str; 5] = [".", "..", "all", "default", "interfaces"];

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if text.is_empty() || text.len() > LIMIT || !text.chars().all(sound) || text.starts_with('-') {
            return Err(format!(
                "{text:?} is not a valid name: a network device gets it too, so it must be 1 to {LIMIT} characters of A-Z a-z 0-9 _ . - and not begin with -"
            ));
        }
        if RESERVED.contains(&text.as_str()) {
            return Err(format!("{text:?} is reserved by the system and cannot be a name"));
        }
        Ok(Self(text))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks the name of an existing network device, by the kernel's rule.
pub(super) fn check_interface(name: &str) -> Result<(), String> {
    let sound = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
    if name.is_empty() || name.len() > LIMIT || !name.chars().all(sound) || name == "." || name == ".." {
        return Err(format!("{name:?} cannot be a network interface"));
    }
    Ok(())
}
