//! Environment variables that override fields of the profile: `Wan.Mode` is `PENSTOCK_WAN_MODE`.

use std::collections::BTreeMap;

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

/// The variables that can override a profile.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
            .collect()
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
