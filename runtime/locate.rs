use std::env;
use std::fmt;
use std::iter;
use std::path::{Path, PathBuf};

use super::setting::ORT_LIB;
use crate::pysite;

/// A file that looks like ONNX Runtime's library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Absolute, with links resolved.
    pub path: PathBuf,
    pub origin: Origin,
}

/// What led to a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller named it.
    Named,
    /// `ORT_DYLIB_PATH` names it.
    Variable,
    /// The Python package `onnxruntime`.
    Python,
    /// A library folder of the system.
    System,
}

/// No library was found. The message lists every place searched and how to install one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct NotFound {
    /// The places searched, in order.
    pub searched: Vec<String>,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "ONNX Runtime (libonnxruntime.so) is not found; searched:"
        )?;
        for place in &self.searched {
            writeln!(f, "  {place}")?;
        }
        write!(
            f,
            "install it with `{INSTALL}`, or name the library with {ORT_LIB} or {VARIABLE}"
        )
    }
}

const INSTALL: &str = "pip install onnxruntime==1.31.1";
const VARIABLE: &str = "ORT_DYLIB_PATH";

const SYSTEM: &[&str] = &[
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/opt/onnxruntime/lib",
];

impl Found {
    /// The version by the file's name: `1.31.1` of `libonnxruntime.so.1.31.1`.
    pub fn version(&self) -> Option<&str> {
        let (_, version) = self.path.file_name()?.to_str()?.split_once(".so.")?;
        version_of(version).map(|_| version)
    }
}

/// Finds ONNX Runtime's library.
///
/// `named` (a file or a folder) and then the variable `ORT_DYLIB_PATH` are binding: where one is given, nothing else
/// is searched. Else the order is: the Python package in the active virtual environment, in a `.venv` of the current
/// folder or above the executable, of the `python3` on the path; `LD_LIBRARY_PATH`; the system's library folders. Of
/// several versions in a folder the highest is taken.
///
/// # Errors
/// [`NotFound`], with the places searched.
pub fn locate(named: Option<&Path>) -> Result<Found, NotFound> {
    if let Some(path) = named {
        return binding(path, Origin::Named, "named");
    }
    if let Some(path) = env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
        return binding(Path::new(&path), Origin::Variable, VARIABLE);
    }
    let mut searched = Vec::new();
    // Lazy: asking the interpreter starts a process.
    let interpreter = iter::once(()).flat_map(|()| pysite::interpreter_site_packages());
    let python = pysite::site_packages()
        .into_iter()
        .chain(interpreter)
        .map(|site| (site.join("onnxruntime/capi"), Origin::Python));
    let loader = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let system = env::split_paths(&loader)
        .filter(|p| !p.as_os_str().is_empty())
        .chain(SYSTEM.iter().map(PathBuf::from))
        .map(|p| (p, Origin::System));
    first_of(python.chain(system), &mut searched).ok_or(NotFound { searched })
}

fn binding(path: &Path, origin: Origin, why: &str) -> Result<Found, NotFound> {
    let library = if path.is_dir() {
        let package = path.join("onnxruntime/capi");
        library_in(path).or_else(|| library_in(&package))
    } else {
        Some(path.to_path_buf())
    };
    library
        .and_then(|p| p.canonicalize().ok())
        .map(|path| Found { path, origin })
        .ok_or_else(|| NotFound {
            searched: vec![format!("{} ({why})", path.display())],
        })
}

fn first_of(
    folders: impl Iterator<Item = (PathBuf, Origin)>,
    searched: &mut Vec<String>,
) -> Option<Found> {
    for (folder, origin) in folders {
        let path = library_in(&folder).and_then(|p| p.canonicalize().ok());
        if let Some(path) = path {
            return Some(Found { path, origin });
        }
        let place = folder.display().to_string();
        if !searched.contains(&place) {
            searched.push(place);
        }
    }
    None
}

/// The highest version of ONNX Runtime's library in `folder`; a name without version counts as the lowest.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = folder.read_dir().ok()?.flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let rest = name.to_str()?.strip_prefix("libonnxruntime.so")?;
            let version = match rest.strip_prefix('.') {
                Some(version) => version_of(version)?,
                None if rest.is_empty() => Vec::new(),
                None => return None,
            };
            Some((version, entry.path()))
        })
        .max()
        .map(|(_, path)| path)
}

fn version_of(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder_with(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    #[test]
    fn the_highest_version_is_taken_and_providers_are_not_the_library() {
        let folder = folder_with(&[
            "libonnxruntime_providers_shared.so",
            "libonnxruntime.so",
            "libonnxruntime.so.1.9.0",
            "libonnxruntime.so.1.31.1",
            "libonnxruntime.so.1.31.1.bak",
        ]);
        let found = locate(Some(folder.path())).unwrap();
        assert!(found.path.ends_with("libonnxruntime.so.1.31.1"));
        assert_eq!(found.origin, Origin::Named);
        assert_eq!(found.version(), Some("1.31.1"));
    }

    #[test]
    fn a_folder_may_be_site_packages() {
        let folder = folder_with(&["onnxruntime/capi/libonnxruntime.so"]);
        let found = locate(Some(folder.path())).unwrap();
        assert!(found.path.ends_with("onnxruntime/capi/libonnxruntime.so"));
        assert_eq!(found.version(), None);
    }

    #[test]
    fn a_named_library_that_is_not_there_is_not_replaced_by_another() {
        let err = locate(Some(Path::new("/no/such/libonnxruntime.so"))).unwrap_err();
        assert_eq!(err.searched, ["/no/such/libonnxruntime.so (named)"]);
        assert!(err.to_string().contains(INSTALL), "{err}");
    }

    #[test]
    fn every_folder_searched_is_listed() {
        let empty = folder_with(&[]);
        let folders = [empty.path().to_path_buf(), PathBuf::from("/no/such/lib")];
        let mut searched = Vec::new();
        let found = first_of(
            folders.clone().into_iter().map(|p| (p, Origin::System)),
            &mut searched,
        );
        assert_eq!(found, None);
        assert_eq!(searched, folders.map(|p| p.display().to_string()));
    }
}
