//! Errors of serde in an administrator's words.

/// What a reader found wrong, without the names of Rust's types and what only programmers say.
#[must_use]
pub fn plain(text: &str) -> String {
    if let Some((found, wanted)) = text.rsplit_once(", expected ")
        && let Some(found) = found_instead(found, wanted)
    {
        return format!("expected {}, not {found}", wanted_there(wanted));
    }
    text.replace('`', "").replace("invalid socket address syntax", &format!("not {ADDRESS_WITH_PORT}"))
}

/// What an address is to look like where it has a port.
pub const ADDRESS_WITH_PORT: &str = "an address with a port, such as 127.0.0.1:9586";

/// What was found where something of another type or size is expected; `None` if the error is about something else.
fn found_instead<'a>(found: &'a str, wanted: &str) -> Option<&'a str> {
    // A list in an object's place is taken for its fields in order.
    if found.starts_with("invalid length ") && wanted.starts_with("struct ") {
        return Some("a list");
    }
    let found = found.strip_prefix("invalid type: ").or(found.strip_prefix("invalid value: "))?;
    let kinds = ["integer ", "floating point ", "boolean ", "string ", "character "];
    Some(match kinds.iter().find_map(|kind| found.strip_prefix(kind)) {
        Some(value) => value.trim_matches('`'),
        None if found == "map" => "an object",
        None if found == "sequence" => "a list",
        None => found,
    })
}

fn wanted_there(wanted: &str) -> &str {
    match wanted {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0",
        "a sequence" => "a list",
        "a boolean" => "true or false",
        "string or map" => "a string",
        "path string" => "a path",
        "socket address" => ADDRESS_WITH_PORT,
        wanted if wanted.starts_with("struct ") => "an object",
        wanted => wanted,
    }
}

/// What keeps a text from being JSON, without line and column.
#[must_use]
pub fn syntax(error: &serde_json::Error) -> String {
    let text = without_place(error);
    match text.as_str() {
        "EOF while parsing a value" => "it ends where a value should be".to_owned(),
        "expected ident" => "a word that is neither true, false nor null".to_owned(),
        "expected value" => "expected a value".to_owned(),
        text => text.replace("EOF while parsing", "it ends within"),
    }
}

/// What serde found wrong, without the line and column that it appends.
#[must_use]
pub fn without_place(error: &serde_json::Error) -> String {
    let mut text = error.to_string();
    if let Some(end) = text.rfind(" at line ") {
        text.truncate(end);
    }
    text
}

/// A hint for repairing the text at a line and column that is not JSON; empty if the cause is unclear.
#[must_use]
pub fn hint(text: &[u8], (line, column): (usize, usize)) -> &'static str {
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
        return "; the file is in UTF-16, and has to be saved as UTF-8";
    }
    let line = text.split(|byte| *byte == b'\n').nth(line.saturating_sub(1)).unwrap_or_default();
    let rest = String::from_utf8_lossy(line.get(column.saturating_sub(1)..).unwrap_or_default());
    match rest.chars().next() {
        Some('/' | '#') => "; JSON has no comments",
        Some('\'' | '‘' | '’' | '“' | '”' | '„') => "; JSON has only the quotation mark \"",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_names_a_type_of_rust() {
        for (text, expected) in [
            ("invalid value: integer `-1`, expected u32", "expected a whole number from 0 to 4294967295, not -1"),
            ("invalid type: string \"x\", expected struct PageDocument", "expected an object, not \"x\""),
            ("invalid length 0, expected struct Acme with 4 elements", "expected an object, not a list"),
            ("invalid type: map, expected a sequence", "expected a list, not an object"),
            ("invalid type: integer `5`, expected string or map", "expected a string, not 5"),
            ("invalid type: floating point `1.5`, expected u16", "expected a whole number from 0 to 65535, not 1.5"),
            ("invalid type: null, expected a string", "expected a string, not null"),
            (
                "invalid type: string \"a, expected b\", expected a boolean",
                "expected true or false, not \"a, expected b\"",
            ),
            ("unknown field `a`, expected `b`", "unknown field a, expected b"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }

    #[test]
    fn what_is_not_json_is_told_without_a_parsers_words() {
        for (text, expected) in [
            ("", "it ends where a value should be"),
            ("{ \"a\": ", "it ends where a value should be"),
            ("{ ", "it ends within an object"),
            ("[1", "it ends within a list"),
            ("\"a", "it ends within a string"),
            ("none", "a word that is neither true, false nor null"),
            ("x", "expected a value"),
        ] {
            let error = serde_json::from_str::<serde_json::Value>(text).unwrap_err();
            assert_eq!(syntax(&error), expected, "{text}");
        }
    }

    #[test]
    fn what_editors_and_habits_leave_behind_is_named() {
        assert_eq!(hint(b"{\n  // x\n}", (2, 3)), "; JSON has no comments");
        assert!(hint("{ “a”: 1 }".as_bytes(), (1, 3)).ends_with("mark \""));
        assert!(hint(b"\xff\xfe{\0", (1, 1)).ends_with("saved as UTF-8"));
        assert_eq!(hint(b"{ a", (1, 3)), "");
        assert_eq!(hint(b"", (0, 0)), "");
    }
}
