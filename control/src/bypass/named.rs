//! Named sets and maps of nftables: where a rule names one whose elements stay as they are listed, they are put in the
//! name's place, as if the rule had them itself. So the verdict maps in which Docker keeps its bridges are as good as rules.
//!
//! A set that changes by itself (elements that time out, that rules add or remove) is left alone, and so is a large one;
//! then the rule's condition is unknown.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// The most sets that are listed.
const LISTED: usize = 64;
/// The most elements that are put into rules, those of a set once for each rule that names it.
const WRITTEN_OUT: usize = 1 << 16;

/// Which set or map it is, in the words of nft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub family: &'a str,
    pub table: &'a str,
    pub kind: &'static str,
    pub name: &'a str,
}

/// Family, table, name: of one table, sets and maps have different names.
type Key = (String, String, String);

/// The named sets and maps of a ruleset.
pub(super) struct Sets<F> {
    /// Those that change only by commands.
    kinds: BTreeMap<Key, &'static str>,
    /// Those that were listed; `None`: they are too large or not understood.
    listed: BTreeMap<Key, Option<Vec<Value>>>,
    /// How many elements may still be put into rules.
    left: usize,
    list: F,
}

impl<F: FnMut(&Named<'_>) -> Option<Vec<u8>>> Sets<F> {
    /// Those among the objects of a listing.
    pub(super) fn new(objects: &[Value], list: F) -> Self {
        let mut kinds = BTreeMap::new();
        for (kind, object) in ["set", "map"].into_iter().flat_map(|kind| objects.iter().map(move |o| (kind, o))) {
            let Some(set) = object.get(kind) else { continue };
            let changes = |flag: &Value| matches!(flag.as_str(), Some("timeout" | "dynamic"));
            let flags =
                set.get("flags").map(|flags| flags.as_array().map_or(std::slice::from_ref(flags), Vec::as_slice));
            if !flags.is_some_and(|flags| flags.iter().any(changes)) {
                kinds.extend(key(set, set.get("name")).map(|key| (key, kind)));
            }
        }
        let rules = objects.iter().filter_map(|object| object.get("rule"));
        let changed: BTreeSet<Key> = rules.flat_map(changed_by).collect();
        kinds.retain(|key, _| !changed.contains(key));
        Self { kinds, listed: BTreeMap::new(), left: WRITTEN_OUT, list }
    }

    /// Whether one was listed.
    pub(super) fn looked_into(&self) -> bool {
        !self.listed.is_empty()
    }

    /// The expression of a rule, with the elements in the place of a set's name.
    pub(super) fn write_out(&mut self, family: &str, table: &str, expression: &Value) -> Value {
        let mut expression = expression.clone();
        for (statement, place, of) in [("match", "right", "left"), ("vmap", "data", "key")] {
            let Some(statement) = expression.get_mut(statement) else { continue };
            // Several properties at once are no condition that we know.
            let single = statement.get(of).is_some_and(|of| of.get("concat").is_none());
            let Some(set) = statement.get_mut(place).filter(|_| single) else { continue };
            let Some(name) = set.as_str().and_then(|text| text.strip_prefix('@')) else { continue };
            if let Some(elements) = self.elements((family.to_owned(), table.to_owned(), name.to_owned())) {
                *set = json!({ "set": elements });
            }
        }
        expression
    }

    fn elements(&mut self, key: Key) -> Option<Vec<Value>> {
        if !self.listed.contains_key(&key) {
            if self.listed.len() >= LISTED {
                return None;
            }
            let (family, table, name) = &key;
            let named = Named { family, table, kind: self.kinds.get(&key)?, name };
            let elements = (self.list)(&named).and_then(|listing| elements(&listing, &named));
            self.listed.insert(key.clone(), elements);
        }
        let elements = self.listed.get(&key)?.as_ref()?;
        self.left = self.left.checked_sub(elements.len())?;
        Some(elements.clone())
    }
}

fn key(object: &Value, name: Option<&Value>) -> Option<Key> {
    let text = |value: Option<&Value>| Some(value?.as_str()?.trim_start_matches('@').to_owned());
    Some((text(object.get("family"))?, text(object.get("table"))?, text(name)?))
}

/// The sets and maps that a rule adds to, or removes from.
fn changed_by(rule: &Value) -> impl Iterator<Item = Key> + '_ {
    let expressions = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
    let names = |expression: &'_ Value| {
        ["/set/set", "/map/map"].map(|place| expression.pointer(place).and_then(|name| key(rule, Some(name))))
    };
    expressions.flat_map(names).flatten()
}

/// The elements of a set or map in a listing; `None` if one is not understood.
fn elements(listing: &[u8], named: &Named<'_>) -> Option<Vec<Value>> {
    let value: Value = serde_json::from_slice(listing).ok()?;
    let mut sets = value.get("nftables")?.as_array()?.iter().filter_map(|object| object.get(named.kind));
    let is_it = |set: &&Value| {
        let is = |field, text| set.get(field).and_then(Value::as_str) == Some(text);
        is("family", named.family) && is("table", named.table) && is("name", named.name)
    };
    let Some(elements) = sets.find(is_it)?.get("elem") else { return Some(Vec::new()) };
    let of_map = |element: &Value| match element.as_array().map(Vec::as_slice) {
        Some([element, to]) => Some(json!([plain(element)?, to])),
        _ => None,
    };
    let elements = elements.as_array()?.iter();
    elements.map(|element| if named.kind == "map" { of_map(element) } else { plain(element).cloned() }).collect()
}

/// The element without its comment; `None` if it does more than exist: it counts, limits, or times out.
fn plain(element: &Value) -> Option<&Value> {
    let Some(described) = element.get("elem") else { return Some(element) };
    let more = described.as_object()?.keys().any(|field| !matches!(field.as_str(), "val" | "comment"));
    described.get("val").filter(|_| !more)
}
