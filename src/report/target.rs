//! Where a report goes, and in which form.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::junit::{self, Case};

/// A report that can be written in every form.
pub trait Document {
    /// The name of the suite in JUnit: `check` or `bench`.
    fn suite(&self) -> &'static str;
    /// The verdicts.
    fn cases(&self) -> Vec<Case>;
    fn json(&self) -> serde_json::Result<String>;
    fn markdown(&self) -> String;
    /// One file that needs no other.
    fn html(&self) -> String;
}

/// A file, whose extension says the form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    path: PathBuf,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Markdown,
    Html,
    Json,
    Junit,
}

impl Target {
    /// The form that the extension says.
    ///
    /// # Errors
    /// When the extension says none.
    pub fn at(path: PathBuf) -> Result<Target, &'static str> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let form = match extension.to_str() {
            Some("md" | "markdown") => Form::Markdown,
            Some("html" | "htm") => Form::Html,
            Some("json") => Form::Json,
            Some("xml") => Form::Junit,
            _ => {
                return Err("the extension says the form: .md, .html, .json, or .xml (JUnit)");
            }
        };
        Ok(Target { path, form })
    }
}

/// A report was not written.
#[derive(Debug, thiserror::Error)]
#[error("{}: the report cannot be written: {reason}", path.display())]
pub struct WriteError {
    path: PathBuf,
    reason: String,
}

impl Target {
    /// Writes the report that a bundle holds, where it has one of this form.
    ///
    /// # Errors
    /// When it has none, or the file cannot be written.
    pub fn copy_of(&self, bundle: &Path) -> Result<(), WriteError> {
        let fail = |reason: String| WriteError {
            path: self.path.clone(),
            reason,
        };
        let name = match self.form {
            Form::Markdown => crate::bundle::REPORT,
            Form::Html => crate::bundle::REPORT_PAGE,
            Form::Json => crate::bundle::MANIFEST,
            Form::Junit => {
                return Err(fail(
                    "a bundle that comes from the cache has no JUnit file".into(),
                ));
            }
        };
        let copied = std::fs::copy(bundle.join(name), &self.path);
        copied.map(drop).map_err(|e| fail(e.to_string()))
    }

    /// Writes the whole file or nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, document: &dyn Document) -> Result<(), WriteError> {
        let fail = |reason: String| WriteError {
            path: self.path.clone(),
            reason,
        };
        let text = match self.form {
            Form::Markdown => document.markdown(),
            Form::Html => document.html(),
            Form::Json => document.json().map_err(|e| fail(e.to_string()))? + "\n",
            Form::Junit => junit::xml(document.suite(), &document.cases()).map_err(fail)?,
        };
        place(&self.path, text.as_bytes()).map_err(|e| fail(e.to_string()))
    }
}

/// Writes text into a file, whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, text: &str) -> Result<(), WriteError> {
    place(path, text.as_bytes()).map_err(|e| WriteError {
        path: path.to_path_buf(),
        reason: e.to_string(),
    })
}

/// Writes beside the file and renames.
fn place(path: &Path, data: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let mut part = tempfile::Builder::new()
        .permissions(permissions())
        .tempfile_in(folder.unwrap_or(Path::new(".")))?;
    part.write_all(data)?;
    part.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// A temporary file is its owner's alone; a report is for others too, as far as the umask allows.
fn permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o666)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_says_the_form() {
        let form = |text: &str| Target::at(text.into()).map(|t| t.form);
        assert_eq!(form("a/b.md"), Ok(Form::Markdown));
        assert_eq!(form("b.HTML"), Ok(Form::Html));
        assert_eq!(form("b.json"), Ok(Form::Json));
        assert_eq!(form("b.xml"), Ok(Form::Junit));
        assert!(form("b.txt").is_err() && form("b").is_err());
    }
}
