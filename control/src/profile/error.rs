//! What is wrong with a profile, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use super::position::FieldPath;

/// The first error in a profile; shown as one line.
#[derive(Debug)]
pub struct ProfileError {
    location: Location,
    field: FieldPath,
    sentence: String,
    can_wait: bool,
}

#[derive(Debug)]
enum Location {
    File(PathBuf),
    Line { file: PathBuf, line: usize, column: usize },
    Variable(String),
}

impl ProfileError {
    /// About the file as a whole.
    pub(super) fn file(file: &Path, sentence: impl fmt::Display) -> Self {
        Self::new(Location::File(file.to_owned()), FieldPath::default(), sentence)
    }

    /// About a line and column of the file; `field` may be empty.
    pub(super) fn line(
        file: &Path,
        (line, column): (usize, usize),
        field: FieldPath,
        sentence: impl fmt::Display,
    ) -> Self {
        Self::new(Location::Line { file: file.to_owned(), line, column }, field, sentence)
    }

    /// About a field that was set by an environment variable.
    pub(super) fn variable(variable: &str, field: FieldPath, sentence: impl fmt::Display) -> Self {
        Self::new(Location::Variable(variable.to_owned()), field, sentence)
    }

    fn new(location: Location, field: FieldPath, sentence: impl fmt::Display) -> Self {
        Self { location, field, sentence: sentence.to_string(), can_wait: false }
    }

    /// The same, about a file that cannot be read.
    pub(super) fn unreadable(self, error: &std::io::Error) -> Self {
        Self { can_wait: error.kind() != std::io::ErrorKind::PermissionDenied, ..self }
    }

    /// Whether the profile may become valid by itself: a file that is missing now may be there later.
    #[must_use]
    pub fn can_wait(&self) -> bool {
        self.can_wait
    }

    /// The line in the file, if the error is about one.
    #[must_use]
    pub fn line_number(&self) -> Option<usize> {
        match self.location {
            Location::Line { line, .. } => Some(line),
            Location::File(_) | Location::Variable(_) => None,
        }
    }

    /// The field, such as `Peers[2].AllowedIPs[0]`; empty if the error is not about one.
    #[must_use]
    pub fn field(&self) -> String {
        self.field.to_string()
    }
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Location::File(file) => write!(f, "{}: ", file.display())?,
            Location::Line { file, line, column } => write!(f, "{}:{line}:{column}: ", file.display())?,
            Location::Variable(variable) => write!(f, "{variable}: ")?,
        }
        if !self.field.0.is_empty() {
            write!(f, "field {}: ", self.field)?;
        }
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for ProfileError {}
