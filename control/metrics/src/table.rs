//! Reads back what a page serves and what its documentation says, for tests that compare the two.

/// Name, type, labels and meaning of a family.
pub type Row = [String; 4];

/// A page's families. The labels are those of the samples, whose values must not contain a brace.
///
/// # Panics
/// The page is not one of ours.
#[must_use]
pub fn served(page: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a name and a help");
            rows.push([name.to_owned(), String::new(), String::new(), help.to_owned()]);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let row = rows.last_mut().expect("HELP comes first");
            let (name, kind) = kind.split_once(' ').expect("a name and a type");
            assert_eq!(name, row[0]);
            kind.clone_into(&mut row[1]);
        } else if !line.starts_with('#') {
            let row = rows.last_mut().expect("a family comes first");
            let name = line.split(['{', ' ']).next().expect("a name");
            let suffix = name.strip_prefix(row[0].as_str()).unwrap_or_else(|| panic!("{name} is not of {}", row[0]));
            let suffixes: &[&str] = match row[1].as_str() {
                "counter" => &["_total"],
                "info" => &["_info"],
                "histogram" => &["_sum", "_count", "_bucket"],
                _ => &[""],
            };
            assert!(suffixes.contains(&suffix), "{name}");
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.split_once('}').expect("an end").0);
            let names = labels.split("\",").filter_map(|label| label.split_once('=')).map(|label| label.0);
            // A bucket's bound is not a label of the family.
            row[2] = names.filter(|name| *name != "le").collect::<Vec<_>>().join(", ");
        }
    }
    rows
}

/// The rows of the table in a documentation file: those whose first cell is code. Its names are those of the samples.
///
/// # Panics
/// A row does not have four cells.
#[must_use]
pub fn documented(text: &str) -> Vec<Row> {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let plain = |row: &str| -> Row {
        let cells: Vec<String> = row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
        cells.try_into().expect("four cells")
    };
    let family = |[name, kind, labels, help]: Row| {
        let name = name.trim_end_matches("_total").trim_end_matches("_info").to_owned();
        [name, kind, labels, help.trim_end_matches('.').to_owned()]
    };
    rows.map(plain).map(family).collect()
}
