//! Edits of the profile's text that leave everything else as written.

use jsonc_parser::cst::{CstInputValue, CstObject, CstRootNode};
use penstock_messages::closest;
use serde_json::Value;

use super::environment::{FIELDS, Shape};
use super::position::STRICT;

/// Fields of one of `Peers` that can be edited, by `Peers.NAME.FIELD`.
const PEER_FIELDS: &[([&str; 1], Shape)] = &[
    (["Name"], Shape::Text),
    (["PublicKey"], Shape::Text),
    (["PresharedKeyFile"], Shape::Text),
    (["Endpoint"], Shape::Text),
    (["AllowedIPs"], Shape::List),
    (["Tags"], Shape::List),
    (["PersistentKeepalive"], Shape::Number),
    (["Suite"], Shape::Text),
];

/// Why an edit is impossible.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The text is not a JSON object.
    #[error("the profile is not a JSON object; fix it by hand first")]
    NotAnObject,
    /// Not `KEY=VALUE`.
    #[error("{0:?} is not KEY=VALUE, such as LocalPort=47100 or Wan.Mode=udp")]
    NotAnAssignment(String),
    /// No such field.
    #[error("there is no field {field}; {hint}")]
    UnknownField {
        /// What was given.
        field: String,
        /// What to do.
        hint: String,
    },
    /// No such peer.
    #[error("there is no peer named {0}")]
    UnknownPeer(String),
    /// The value has the wrong shape.
    #[error("field {field}: {sentence}")]
    Value {
        /// The field.
        field: String,
        /// What is wrong.
        sentence: String,
    },
}

impl EditError {
    fn unknown_field(field: &str, meant: Option<&str>) -> Self {
        let hint = match meant {
            Some(meant) => format!("did you mean {meant}?"),
            None => "`penstock list-config` shows those that have a value, `man penstock.profile` all".to_owned(),
        };
        Self::UnknownField { field: field.to_owned(), hint }
    }
}

/// Applies `KEY=VALUE`, with keys such as `LocalPort`, `Wan.Mode` and `Peers.berlin.Endpoint`, to the
/// text of a profile. An empty value removes the field. Whether a profile results is not checked.
///
/// # Errors
/// An assignment names an unknown field, or its value has the wrong shape.
pub fn edit(text: &str, assignments: &[impl AsRef<str>]) -> Result<String, EditError> {
    let root = CstRootNode::parse(text, &STRICT).map_err(|_| EditError::NotAnObject)?;
    let top = root.object_value().ok_or(EditError::NotAnObject)?;
    for assignment in assignments {
        assign(&top, Assignment::parse(assignment.as_ref())?)?;
    }
    Ok(root.to_string())
}

/// Whether [`edit`] understands this assignment; whether there is the peer that it names is not checked.
///
/// # Errors
/// It names an unknown field, or its value has the wrong shape.
pub fn check_assignment(text: &str) -> Result<(), EditError> {
    Assignment::parse(text).map(drop)
}

/// Appends a peer to `Peers` in the text of a profile. Whether a profile results is not checked.
///
/// # Errors
/// The text is not a JSON object.
pub fn add_peer(text: &str, peer: Value) -> Result<String, EditError> {
    let root = CstRootNode::parse(text, &STRICT).map_err(|_| EditError::NotAnObject)?;
    let top = root.object_value().ok_or(EditError::NotAnObject)?;
    top.array_value_or_set("Peers").append(input(peer));
    Ok(root.to_string())
}

/// `KEY=VALUE`, taken apart.
struct Assignment<'a> {
    key: &'a str,
    /// The peer, if it is about one.
    peer: Option<&'a str>,
    /// The field's keys, from the top or within the peer.
    path: &'a [&'a str],
    value: Value,
}

impl<'a> Assignment<'a> {
    fn parse(text: &'a str) -> Result<Self, EditError> {
        let parts = text.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, text) = parts.ok_or_else(|| EditError::NotAnAssignment(text.to_owned()))?;
        let of_peer = key.strip_prefix("Peers.").and_then(|rest| rest.rsplit_once('.'));
        let (peer, path, shape) = match of_peer {
            Some((peer, name)) => {
                let field = PEER_FIELDS.iter().find(|(field, _)| field[0] == name);
                let (path, shape) = field.ok_or_else(|| {
                    let known: Vec<&str> = PEER_FIELDS.iter().map(|(field, _)| field[0]).collect();
                    EditError::unknown_field(key, closest(name, &known))
                })?;
                (Some(peer), path.as_slice(), *shape)
            }
            None => {
                let field = FIELDS.iter().find(|field| field.path.join(".") == key).ok_or_else(|| {
                    let known: Vec<String> = FIELDS.iter().map(|field| field.path.join(".")).collect();
                    EditError::unknown_field(key, closest(key, &known.iter().map(String::as_str).collect::<Vec<_>>()))
                })?;
                (None, field.path, field.shape)
            }
        };
        let value = shape.value(text).map_err(|sentence| EditError::Value { field: key.to_owned(), sentence })?;
        Ok(Self { key, peer, path, value })
    }
}

fn assign(top: &CstObject, assignment: Assignment<'_>) -> Result<(), EditError> {
    let Assignment { key, peer, path, value } = assignment;
    let of_peer = peer.map(|peer| find_peer(top, peer).ok_or_else(|| EditError::UnknownPeer(peer.to_owned())));
    let object = of_peer.transpose()?.unwrap_or_else(|| top.clone());
    match path {
        [name] => put(&object, name, key, value),
        [outer, name] => put(&object.object_value_or_set(outer), name, key, value),
        _ => return Err(EditError::unknown_field(key, None)),
    }
    Ok(())
}

fn put(object: &CstObject, name: &str, key: &str, value: Value) {
    let value = match value {
        // A single address is written as a string, as is usual, and not as a list.
        Value::Array(list) if key == "VirtualAddress" && list.len() == 1 => list[0].clone(),
        value => value,
    };
    match (object.get(name), value) {
        (Some(property), Value::Null) => property.remove(),
        (None, Value::Null) => {}
        (Some(property), value) => property.set_value(input(value)),
        (None, value) => {
            object.append(name, input(value));
        }
    }
}

fn find_peer(top: &CstObject, name: &str) -> Option<CstObject> {
    top.array_value("Peers")?
        .elements()
        .into_iter()
        .filter_map(|element| element.as_object())
        .find(|peer| text_of(peer, "Name").is_some_and(|text| text == name))
}

/// The text of a field, if it is one.
pub(super) fn text_of(object: &CstObject, field: &str) -> Option<String> {
    object.get(field)?.value()?.as_string_lit()?.decoded_value().ok()
}

pub(super) fn input(value: Value) -> CstInputValue {
    match value {
        Value::Null => CstInputValue::Null,
        Value::Bool(value) => CstInputValue::Bool(value),
        Value::Number(number) => CstInputValue::Number(number.to_string()),
        Value::String(text) => CstInputValue::String(text),
        Value::Array(list) => CstInputValue::Array(list.into_iter().map(input).collect()),
        Value::Object(object) => {
            CstInputValue::Object(object.into_iter().map(|(key, value)| (key, input(value))).collect())
        }
    }
}
