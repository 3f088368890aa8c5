//! Edits of the profile's text that leave everything else as written.

use jsonc_parser::cst::{CstInputValue, CstObject, CstRootNode};
use serde_json::Value;

use super::environment::{FIELDS, Shape};
use super::position::STRICT;

/// Fields of one of `Peers` that can be edited, by `Peers.NAME.FIELD`.
const PEER_FIELDS: &[(&str, Shape)] = &[
    ("Name", Shape::Text),
    ("PublicKey", Shape::Text),
    ("PresharedKeyFile", Shape::Text),
    ("Endpoint", Shape::Text),
    ("AllowedIPs", Shape::List),
    ("Tags", Shape::List),
    ("PersistentKeepalive", Shape::Number),
    ("Suite", Shape::Text),
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
    #[error("there is no field {0}; `penstock list-config` shows them")]
    UnknownField(String),
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

/// Applies `KEY=VALUE`, with keys such as `LocalPort`, `Wan.Mode` and `Peers.berlin.Endpoint`, to the
/// text of a profile. An empty value removes the field. Whether a profile results is not checked.
///
/// # Errors
/// An assignment names an unknown field, or its value has the wrong shape.
pub fn edit(text: &str, assignments: &[impl AsRef<str>]) -> Result<String, EditError> {
    let root = CstRootNode::parse(text, &STRICT).map_err(|_| EditError::NotAnObject)?;
    let top = root.object_value().ok_or(EditError::NotAnObject)?;
    for assignment in assignments {
        let assignment = assignment.as_ref();
        let (key, value) =
            assignment.split_once('=').ok_or_else(|| EditError::NotAnAssignment(assignment.to_owned()))?;
        assign(&top, key, value)?;
    }
    Ok(root.to_string())
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

fn assign(top: &CstObject, key: &str, text: &str) -> Result<(), EditError> {
    if let Some((peer, name)) = key.strip_prefix("Peers.").and_then(|rest| rest.rsplit_once('.')) {
        let shape = PEER_FIELDS.iter().find(|(field, _)| *field == name).map(|(_, shape)| *shape);
        let shape = shape.ok_or_else(|| EditError::UnknownField(key.to_owned()))?;
        let object = find_peer(top, peer).ok_or_else(|| EditError::UnknownPeer(peer.to_owned()))?;
        return put(&object, name, key, shape, text);
    }
    let field = FIELDS
        .iter()
        .find(|field| field.path.join(".") == key)
        .ok_or_else(|| EditError::UnknownField(key.to_owned()))?;
    match field.path {
        [name] => put(top, name, key, field.shape, text),
        [outer, name] => put(&top.object_value_or_set(outer), name, key, field.shape, text),
        _ => Err(EditError::UnknownField(key.to_owned())),
    }
}

fn put(object: &CstObject, name: &str, key: &str, shape: Shape, text: &str) -> Result<(), EditError> {
    let wrong = |sentence| EditError::Value { field: key.to_owned(), sentence };
    let value = match shape.value(text).map_err(wrong)? {
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
    Ok(())
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
