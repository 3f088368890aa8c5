//! What is wrong with a profile, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use super::position::FieldPath;

/// The first thing that is wrong with a profile; shown as one line.
#[derive(Debug)]
pub struct ProfileError {
    place: Place,
    field: FieldPath,
    sentence: String,
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    Line { file: PathBuf, line: usize, column: usize },
    Variable(String),
}

impl ProfileError {
    /// About the file as a whole.
    pub(super) fn file(file: &Path, sentence: impl fmt::Display) -> Self {
        Self { place: Place::File(file.to_owned()), field: FieldPath::default(), sentence: sentence.to_string() }
    }

    /// About something at a line and column of the file; `field` may be empty.
    pub(super) fn line(
        file: &Path,
        (line, column): (usize, usize),
        field: FieldPath,
        sentence: impl fmt::Display,
    ) -> Self {
        let place = Place::Line { file: file.to_owned(), line, column };
        Self { place, field, sentence: sentence.to_string() }
    }

    /// About a field that an environment variable gave.
    pub(super) fn variable(variable: &str, field: FieldPath, sentence: impl fmt::Display) -> Self {
        Self { place: Place::Variable(variable.to_owned()), field, sentence: sentence.to_string() }
    }

    /// The line in the file, if there is one to blame.
    #[must_use]
    pub fn line_number(&self) -> Option<usize> {
        match self.place {
            Place::Line { line, .. } => Some(line),
            Place::File(_) | Place::Variable(_) => None,
        }
    }

    /// The field, such as `Peers[2].AllowedIPs[0]`; empty if it is about none.
    #[must_use]
    pub fn field(&self) -> String {
        self.field.to_string()
    }
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File(file) => write!(f, "{}: ", file.display())?,
            Place::Line { file, line, column } => write!(f, "{}:{line}:{column}: ", file.display())?,
            Place::Variable(variable) => write!(f, "{variable}: ")?,
        }
        if !self.field.0.is_empty() {
            write!(f, "field {}: ", self.field)?;
        }
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for ProfileError {}
