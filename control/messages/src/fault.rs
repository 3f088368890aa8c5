//! Which field of a JSON file is wrong, and how.

use crate::plain;

/// The most fields that are listed in a sentence.
const FEW: usize = 8;

/// What serde found wrong with a document, in an administrator's words.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault<'a> {
    /// The name of a field that does not exist, if that is what is wrong.
    pub unknown: Option<&'a str>,
    /// What is wrong.
    pub sentence: String,
}

impl<'a> Fault<'a> {
    /// The fault of serde's error `text`, without a place. `page` is where all fields are listed.
    #[must_use]
    pub fn of(text: &'a str, page: &str) -> Self {
        let words: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
        let (first, known) = words.split_first().map_or(("", &[][..]), |(first, rest)| (*first, rest));
        let sentence = if text.starts_with("unknown field ") {
            match closest(first, known) {
                Some(name) => format!("there is no such field; did you mean {name}?"),
                None if known.len() > FEW => format!("there is no such field; {page} lists them all"),
                None => format!("there is no such field; the fields here are {}", known.join(", ")),
            }
        } else if text.starts_with("missing field ") {
            format!("{} is missing", if words.is_empty() { "a field" } else { first })
        } else if text.starts_with("unknown variant ") {
            format!("{first:?} is not one of {}", known.join(", "))
        } else {
            plain(text)
        };
        Self { unknown: text.starts_with("unknown field ").then_some(first), sentence }
    }
}

/// Fields with another name in WireGuard's files, and their names here.
const OF_WIREGUARD: [(&str, &str); 2] = [("ListenPort", "LocalPort"), ("Address", "VirtualAddress")];

/// The known name that the unknown one was probably meant to be.
#[must_use]
pub fn closest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    const LIKENESS: f64 = 0.6;
    let of_wireguard = OF_WIREGUARD.iter().find(|(theirs, _)| theirs.eq_ignore_ascii_case(unknown));
    if let Some(ours) = of_wireguard.and_then(|(_, ours)| known.iter().find(|name| *name == ours)) {
        return Some(ours);
    }
    let unknown = unknown.to_ascii_lowercase();
    known
        .iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(&unknown, &name.to_ascii_lowercase()), *name))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_does_not_exist_is_corrected_or_its_like_are_listed() {
        let many = "unknown field `Port`, expected one of `A1`, `A2`, `A3`, `A4`, `A5`, `A6`, `A7`, `A8`, `A9`";
        for (text, unknown, sentence) in [
            ("unknown field `nmes`, expected `Names` or `State`", "nmes", "did you mean Names?"),
            ("unknown field `Port`, expected `Url` or `Oidc`", "Port", "the fields here are Url, Oidc"),
            (many, "Port", "x.md lists them all"),
        ] {
            let sentence = format!("there is no such field; {sentence}");
            assert_eq!(Fault::of(text, "x.md"), Fault { unknown: Some(unknown), sentence });
        }
        for (text, sentence) in [
            ("missing field `Name`", "Name is missing"),
            ("unknown variant `fast`, expected `auto` or `xdp`", "\"fast\" is not one of auto, xdp"),
            ("invalid type: map, expected a sequence", "expected a list, not an object"),
        ] {
            assert_eq!(Fault::of(text, "x.md"), Fault { unknown: None, sentence: sentence.into() });
        }
    }
}
