//! Where in the text a field is.

use std::fmt;

use jsonc_parser::ast;
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

/// The path to a field, such as `Peers[2].AllowedIPs[0]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldPath(pub(super) Vec<Step>);

/// A step of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl FieldPath {
    pub(super) fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|&key| Step::Key(key.to_owned())).collect())
    }

    pub(super) fn key(mut self, key: &str) -> Self {
        self.0.push(Step::Key(key.to_owned()));
        self
    }

    pub(super) fn index(mut self, index: usize) -> Self {
        self.0.push(Step::Index(index));
        self
    }
}

impl From<&serde_path_to_error::Path> for FieldPath {
    fn from(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment;
        Self(
            path.iter()
                .filter_map(|segment| match segment {
                    Segment::Seq { index } => Some(Step::Index(*index)),
                    Segment::Map { key } => Some(Step::Key(key.clone())),
                    Segment::Enum { .. } | Segment::Unknown => None,
                })
                .collect(),
        )
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if at == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Only what RFC 8259 allows: the crate accepts JSONC and more by default.
pub(super) const STRICT: ParseOptions = ParseOptions {
    allow_comments: false,
    allow_loose_object_property_names: false,
    allow_trailing_commas: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// A text that is known to be JSON, and the positions of its fields.
pub(super) struct Map<'a> {
    text: &'a str,
    root: Option<ast::Value<'a>>,
}

impl<'a> Map<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let root = parse_to_ast(text, &CollectOptions::default(), &STRICT);
        Self { text, root: root.ok().and_then(|result| result.value) }
    }

    /// Line and column, from 1, of a field's value, or of the last existing element of its path.
    pub(super) fn value(&self, path: &FieldPath) -> (usize, usize) {
        self.walk(path, false)
    }

    /// Line and column, from 1, of a field's name.
    pub(super) fn key(&self, path: &FieldPath) -> (usize, usize) {
        self.walk(path, true)
    }

    /// A key that some object has twice, with the position of the second.
    pub(super) fn duplicate(&self) -> Option<(FieldPath, (usize, usize))> {
        let (path, offset) = duplicate_in(self.root.as_ref()?, FieldPath::default())?;
        Some((path, self.line_and_column(offset)))
    }

    fn walk(&self, path: &FieldPath, to_key: bool) -> (usize, usize) {
        let Some(mut value) = self.root.as_ref() else {
            return (1, 1);
        };
        let mut key_start = value.start();
        for step in &path.0 {
            let next = match (step, value) {
                (Step::Key(key), ast::Value::Object(object)) => object
                    .properties
                    .iter()
                    .find(|property| property.name.as_str() == key)
                    .map(|property| (property.range.start, &property.value)),
                (Step::Index(index), ast::Value::Array(array)) => {
                    array.elements.get(*index).map(|element| (element.start(), element))
                }
                _ => None,
            };
            let Some((start, next)) = next else { break };
            (key_start, value) = (start, next);
        }
        self.line_and_column(if to_key { key_start } else { value.start() })
    }

    fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        (line, before[line_start..].chars().count() + 1)
    }
}

fn duplicate_in(value: &ast::Value<'_>, path: FieldPath) -> Option<(FieldPath, usize)> {
    match value {
        ast::Value::Object(object) => {
            let mut seen = std::collections::HashSet::new();
            object.properties.iter().find_map(|property| {
                let path = path.clone().key(property.name.as_str());
                if !seen.insert(property.name.as_str()) {
                    return Some((path, property.range.start));
                }
                duplicate_in(&property.value, path)
            })
        }
        ast::Value::Array(array) => array
            .elements
            .iter()
            .enumerate()
            .find_map(|(index, element)| duplicate_in(element, path.clone().index(index))),
        _ => None,
    }
}
