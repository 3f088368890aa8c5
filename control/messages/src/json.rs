//! Errors of serde in an administrator's words.

/// What a reader found wrong, without the names of Rust's types.
#[must_use]
pub fn plain(text: &str) -> String {
    // A list in an object's place is taken for its fields in order.
    let (text, end) = match text.split_once("expected struct ") {
        Some((before, _)) if before.starts_with("invalid length") => ("invalid type: list, ", "expected an object"),
        Some((before, _)) => (before, "expected an object"),
        None => (text, ""),
    };
    let words = [
        ("expected u16", "expected a whole number from 0 to 65535"),
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected a sequence", "expected a list"),
        ("expected a boolean", "expected true or false"),
        ("expected string or map", "expected a string"),
        ("expected path string", "expected a path"),
        ("expected socket address", "expected an address with a port, such as 127.0.0.1:9586"),
        ("invalid socket address syntax", "not an address with a port, such as 127.0.0.1:9586"),
        ("invalid type: map", "invalid type: object"),
        ("invalid type: sequence", "invalid type: list"),
        ("`", ""),
    ];
    words.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to)) + end
}

/// What serde found wrong, without the line and column that it puts behind.
#[must_use]
pub fn without_place(error: &serde_json::Error) -> String {
    let mut text = error.to_string();
    if let Some(end) = text.rfind(" at line ") {
        text.truncate(end);
    }
    text
}

/// What has to be known to mend what stands at a line and column that is not JSON; empty if that is unclear.
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
            (
                "invalid value: integer `-1`, expected u32",
                "invalid value: integer -1, expected a whole number from 0 to 4294967295",
            ),
            (
                "invalid type: string \"x\", expected struct PageDocument",
                "invalid type: string \"x\", expected an object",
            ),
            ("invalid length 0, expected struct Acme with 4 elements", "invalid type: list, expected an object"),
            ("invalid type: map, expected a sequence", "invalid type: object, expected a list"),
            ("invalid type: integer `5`, expected string or map", "invalid type: integer 5, expected a string"),
        ] {
            assert_eq!(plain(text), expected);
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
