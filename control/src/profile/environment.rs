//! Environment variables that override fields of the profile: `Wan.Mode` is `PENSTOCK_WAN_MODE`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use penstock_connect::Proxy;
use penstock_messages::{closest, syntax};
use serde_json::Value;

use super::position::FieldPath;

/// The common prefix of all our variables.
pub const PREFIX: &str = "PENSTOCK_";

/// A field of the profile outside `Peers`.
#[derive(Debug)]
pub struct Field {
    /// Its keys from the top.
    pub path: &'static [&'static str],
    /// Its form in a variable or on the command line.
    pub shape: Shape,
}

/// How a field's value is written as plain text. Empty text always means null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As it stands.
    Text,
    /// A decimal number.
    Number,
    /// `true` or `false`.
    Bool,
    /// Texts separated by commas.
    List,
    /// JSON.
    Json,
}

/// All fields outside `Peers`, and `Peers` as a whole.
pub const FIELDS: &[Field] = &[
    Field { path: &["Name"], shape: Shape::Text },
    Field { path: &["LocalPort"], shape: Shape::Number },
    Field { path: &["VirtualAddress"], shape: Shape::List },
    Field { path: &["PrivateKeyFile"], shape: Shape::Text },
    Field { path: &["Wan", "Interface"], shape: Shape::Text },
    Field { path: &["Wan", "Mode"], shape: Shape::Text },
    Field { path: &["Lan", "Interfaces"], shape: Shape::List },
    Field { path: &["Lan", "Mode"], shape: Shape::Text },
    Field { path: &["Lan", "Subnets"], shape: Shape::List },
    Field { path: &["Workers"], shape: Shape::Number },
    Field { path: &["BusyPoll"], shape: Shape::Bool },
    Field { path: &["Mtu"], shape: Shape::Number },
    Field { path: &["CopyDscp"], shape: Shape::Bool },
    Field { path: &["WanRate"], shape: Shape::Text },
    Field { path: &["UdpSegmentation"], shape: Shape::Bool },
    Field { path: &["BirthdayProbing"], shape: Shape::Bool },
    Field { path: &["PortMapping"], shape: Shape::Bool },
    Field { path: &["Firewall", "In"], shape: Shape::Text },
    Field { path: &["Firewall", "Out"], shape: Shape::Text },
    Field { path: &["Firewall", "Rules"], shape: Shape::Json },
    Field { path: &["Transit"], shape: Shape::Bool },
    Field { path: &["Table"], shape: Shape::Number },
    Field { path: &["FwMark"], shape: Shape::Number },
    Field { path: &["Cipher", "Implementation"], shape: Shape::Text },
    Field { path: &["Coordinator", "Url"], shape: Shape::Text },
    Field { path: &["Coordinator", "Fingerprint"], shape: Shape::Text },
    Field { path: &["Coordinator", "CaFile"], shape: Shape::Text },
    Field { path: &["Coordinator", "Authority"], shape: Shape::Text },
    Field { path: &["Accept"], shape: Shape::List },
    Field { path: &["Peers"], shape: Shape::Json },
    Field { path: &["Metrics"], shape: Shape::Text },
];

/// Variables that do not override the profile, but matter to every gateway.
const OTHERS: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"];
/// Longest environment file, in bytes.
const FILE_LIMIT: u64 = 64 << 10;

/// The variables that can override a profile, and those that name a proxy.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| is_ours(name))
            .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
            .collect()
    }

    /// The same, with those of a file for systemd's `EnvironmentFile=` that are not set here. Without the file there
    /// are none, as for systemd.
    #[must_use]
    pub fn or_of_file(mut self, path: &Path) -> Self {
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(FILE_LIMIT).read_to_end(&mut text));
        if read.is_ok() {
            for (name, value) in assignments(&String::from_utf8_lossy(&text)).filter(|(name, _)| is_ours(name)) {
                self.0.entry(name).or_insert(value);
            }
        }
        self
    }

    /// The proxy that the variables ask for.
    #[must_use]
    pub fn proxy(&self) -> Proxy {
        Proxy::of_variables(|name| self.0.get(name).cloned())
    }

    /// Whether any field is overridden.
    #[must_use]
    pub fn overrides_any(&self) -> bool {
        FIELDS.iter().any(|field| self.of(field).is_some())
    }

    /// For each variable that was probably meant to override a field, but does not: the variable that does. Not an error,
    /// since others may have variables with our prefix, as a service called `penstock` in Kubernetes does.
    #[must_use]
    pub fn misspelt(&self) -> Vec<(&str, String)> {
        let variables: Vec<String> = FIELDS.iter().map(Field::variable).collect();
        let known: Vec<&str> = variables.iter().filter_map(|variable| variable.strip_prefix(PREFIX)).collect();
        let strange = self.0.keys().filter(|name| !variables.contains(name));
        let meant = |name: &str| closest(name.strip_prefix(PREFIX)?, &known).map(|meant| format!("{PREFIX}{meant}"));
        strange.filter_map(|name| Some((name.as_str(), meant(name)?))).collect()
    }

    /// The variable that overrides a field, if it is set.
    pub(super) fn of<'a>(&'a self, field: &Field) -> Option<(String, &'a str)> {
        let variable = field.variable();
        let text = self.0.get(&variable)?;
        Some((variable, text))
    }
}

/// Whether it is a variable that matters to a gateway.
fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) || OTHERS.contains(&name)
}

/// The assignments of an environment file, in systemd's syntax (systemd.exec(5)); of several to one variable the last
/// counts. What is not an assignment is skipped, as systemd does.
fn assignments(text: &str) -> impl Iterator<Item = (String, String)> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let is_comment = rest.trim_start().starts_with(['#', ';']);
        let name_ends = rest.find(['=', '\n']).filter(|&at| !is_comment && rest[at..].starts_with('='));
        let Some(at) = name_ends else {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
            continue;
        };
        let name = rest[..at].trim().to_owned();
        let (value, behind) = value(&rest[at + 1..]);
        found.insert(name, value);
        rest = behind;
    }
    found.into_iter()
}

/// A value up to the end of its line, without quotes and escapes, and what follows the line.
fn value(text: &str) -> (String, &str) {
    let mut value = String::new();
    // Without the blanks at its end, unless they are quoted.
    let mut length = 0;
    let mut quote = None;
    // Within the unquoted part of a value, quotes stand for themselves.
    let mut unquoted = false;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, '\n') => {
                value.truncate(length);
                return (value, &text[at + 1..]);
            }
            (None, '\'' | '"') if !unquoted => quote = Some(c),
            (None, ' ' | '\t' | '\r') if !unquoted => {}
            (None, ' ' | '\t' | '\r') => {
                value.push(c);
                continue;
            }
            (Some(open), _) if c == open => (quote, unquoted) = (None, false),
            (None | Some('"'), '\\') => {
                unquoted = quote.is_none();
                match chars.next() {
                    // It goes on in the next line.
                    Some((_, '\n')) | None => {}
                    Some((_, c)) if unquoted || matches!(c, '"' | '\\' | '`' | '$') => value.push(c),
                    Some((_, c)) => value.extend(['\\', c]),
                }
            }
            _ => {
                unquoted = quote.is_none();
                value.push(c);
            }
        }
        length = value.len();
    }
    value.truncate(length);
    (value, "")
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

impl Field {
    /// The variable's name: `LocalPort` gives `PENSTOCK_LOCAL_PORT`.
    #[must_use]
    pub fn variable(&self) -> String {
        let mut name = PREFIX.to_owned();
        for (depth, key) in self.path.iter().enumerate() {
            for (at, letter) in key.char_indices() {
                if letter.is_ascii_uppercase() && (at > 0 || depth > 0) {
                    name.push('_');
                }
                name.push(letter.to_ascii_uppercase());
            }
        }
        name
    }

    pub(super) fn field_path(&self) -> FieldPath {
        FieldPath::of(self.path)
    }
}

impl Shape {
    /// The JSON value that plain text stands for.
    ///
    /// # Errors
    /// A sentence, if the text has another shape.
    pub fn value(self, text: &str) -> Result<Value, String> {
        if text.is_empty() {
            return Ok(Value::Null);
        }
        match self {
            Self::Text => Ok(text.into()),
            Self::Number => match text.parse::<u64>() {
                Ok(number) => Ok(number.into()),
                Err(_) => Err(format!("{text:?} is not a whole number")),
            },
            Self::Bool => match text {
                "true" => Ok(true.into()),
                "false" => Ok(false.into()),
                _ => Err(format!("{text:?} is neither true nor false")),
            },
            Self::List => Ok(text.split(',').map(|item| item.trim().to_owned()).collect()),
            Self::Json => serde_json::from_str(text).map_err(|error| format!("this is not JSON: {}", syntax(&error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_files_are_read_as_systemd_reads_them() {
        let text = "# A=1\n ; B=2\nno assignment\nC = three four  \nD=\"five # \\\"six\\\" \\n \"\nE='a \\ b' \n\
                    F=one\\\n two\nG=a\\ b\\#\nC=again\nH=\nI=\"over\ntwo lines\" \"and\"\nJ=last's \t";
        let expected = [
            ("C", "again"),
            ("D", "five # \"six\" \\n "),
            ("E", "a \\ b"),
            ("F", "one two"),
            ("G", "a b#"),
            ("H", ""),
            ("I", "over\ntwo linesand"),
            ("J", "last's"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(assignments(text).collect::<Vec<_>>(), expected);
        for cut in 0..text.len() {
            assignments(&text[..cut]).for_each(drop);
        }
    }

    #[test]
    fn variables_that_are_set_here_come_before_those_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "PENSTOCK_MTU=1300\nPENSTOCK_TABLE=5\nHTTPS_PROXY=http://192.0.2.1:3128\nPATH=/\n";
        std::fs::write(file.path(), text).unwrap();
        let here = Environment::from_iter([("PENSTOCK_MTU".to_owned(), "1400".to_owned())]);
        let all = here.clone().or_of_file(file.path());
        assert_eq!((all.0["PENSTOCK_MTU"].as_str(), all.0["PENSTOCK_TABLE"].as_str()), ("1400", "5"));
        let url = "https://c.example.net".parse().unwrap();
        assert_eq!(all.proxy().towards(&url).as_deref(), Some("192.0.2.1:3128"));
        assert!(!all.0.contains_key("PATH"));
        assert_eq!(here.clone().or_of_file("/nowhere".as_ref()).0, here.0);
    }
}
