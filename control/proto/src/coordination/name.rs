//! Names of sites and tags.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::limits::NAME_LIMIT;

/// The name of a site or a tag: 1 to 63 ASCII letters, digits, `_`, `.` and `-`, beginning with a letter or digit, so
/// that it is safe in a file name, on a command line and on a terminal. Cheap to clone, as whole maps are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// The text is not a [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name is 1 to {NAME_LIMIT} of A-Z a-z 0-9 _ . - and begins with a letter or digit")]
pub struct NameError;

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether somebody who reads one could take it for the other: they differ only in case, in separators, or in
    /// separators at the end.
    #[must_use]
    pub fn resembles(&self, other: &Self) -> bool {
        fn read(name: &Name) -> impl Iterator<Item = u8> {
            let letters = name.0.trim_end_matches(['_', '.', '-']).bytes();
            letters.map(|byte| if matches!(byte, b'_' | b'.') { b'-' } else { byte.to_ascii_lowercase() })
        }
        read(self).eq(read(other))
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let whole = first && text.len() <= NAME_LIMIT && text.bytes().all(sound);
        if whole { Ok(Self(text.into())) } else { Err(NameError) }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_harmless_text() {
        let longest = "x".repeat(NAME_LIMIT);
        for good in ["a", "amsterdam", "site-1", "a.b_c", "7", &longest] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        let too_long = "x".repeat(NAME_LIMIT + 1);
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "a\n", "ä", "tag:a", "*", &too_long] {
            assert_eq!(bad.parse::<Name>(), Err(NameError), "{bad:?}");
        }
    }

    #[test]
    fn names_that_look_alike_are_known() {
        let resembles = |a: &str, b: &str| a.parse::<Name>().unwrap().resembles(&b.parse().unwrap());
        for alike in ["Site-a", "SITE_A", "site.a", "site-a.", "site-a-_"] {
            assert!(resembles("site-a", alike), "{alike}");
        }
        for other in ["site-b", "sitea", "site-a-1", "site--a"] {
            assert!(!resembles("site-a", other), "{other}");
        }
    }
}
