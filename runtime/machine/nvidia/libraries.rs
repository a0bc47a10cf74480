//! CUDA's libraries: where they are, which of them another library needs, and loading them before it.
//!
//! A library is loaded by the name that is in what needs it (`libcublas.so.13`), and the loader looks for that name among
//! what is loaded already before it looks anywhere else. So libraries from wheels, whose folders the loader does not know,
//! are loaded by their paths first, each after those that it needs itself.

#![allow(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY, RTLD_LOCAL, RTLD_NOW};
use serde::Serialize;

use super::elf::{self, ElfError};
use super::{packages, told};
use crate::loader;
use crate::pysite;

/// Folders to look for libraries in, best first.
#[derive(Clone, Debug, Default)]
pub struct Places {
    pub folders: Vec<PathBuf>,
}

/// A library and what it is needed for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// `libcublas.so.13`
    pub name: String,
    pub needed_by: PathBuf,
}

/// What a library needs of CUDA, of the driver and of the system, with what those need in turn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Needs {
    /// CUDA's libraries, each after those that it needs.
    pub found: Vec<PathBuf>,
    /// CUDA's libraries that are in none of the places.
    pub missing: Vec<Missing>,
    /// Those of the driver and of the system that the loader does not find.
    pub unloadable: Vec<Missing>,
    /// Files that are no libraries.
    pub broken: Vec<String>,
}

impl Needs {
    /// Whether everything is there.
    pub fn met(&self) -> bool {
        self.missing.is_empty() && self.unloadable.is_empty() && self.broken.is_empty()
    }

    /// The file that has this name.
    pub fn path(&self, name: &str) -> Option<&Path> {
        let mut found = self.found.iter();
        let path = found.find(|p| p.file_name().is_some_and(|f| f == name));
        path.map(PathBuf::as_path)
    }
}

impl Places {
    /// Where what a library wants may be: the wheels beside it, those of the Python environments at hand, what the loader
    /// knows, and the toolkits in /usr/local.
    pub fn around(library: &Path) -> Places {
        let mut folders = Vec::new();
        let own = pysite::around(library);
        let active = pysite::site_packages();
        for site in own.into_iter().chain(active) {
            folders.extend(wheel_folders(&site));
        }
        folders.extend(loader::folders());
        folders.extend(toolkits(Path::new("/usr/local")));
        let mut places = Places::default();
        for folder in folders {
            if !places.folders.contains(&folder) {
                places.folders.push(folder);
            }
        }
        places
    }

    /// The file of this name; or, as a wheel without links has it, of this name and further numbers.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let mut paths = self.folders.iter().map(|f| f.join(name));
        let exact = paths.find(|p| p.is_file());
        exact.or_else(|| self.folders.iter().find_map(|f| numbered(f, name)))
    }
}

/// `libtensorrt_rtx.so.1.7.1` for `libtensorrt_rtx.so.1`; of several, the last by name.
fn numbered(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = folder.read_dir().ok()?.flatten();
    let longer = entries.filter(|e| {
        let rest = e
            .file_name()
            .to_str()
            .and_then(|f| f.strip_prefix(name)?.strip_prefix('.').map(str::to_string));
        rest.is_some_and(|r| !r.is_empty() && r.chars().all(|c| c.is_ascii_digit() || c == '.'))
    });
    longer.map(|e| e.path()).max()
}

/// Where the wheels of CUDA keep their libraries: `nvidia/cu13/lib`, and before CUDA 13 `nvidia/cublas/lib` and so on.
pub fn wheel_folders(site_packages: &Path) -> Vec<PathBuf> {
    let parts = pysite::packages(&site_packages.join("nvidia"), "");
    let folders = parts.into_iter().map(|p| p.join("lib"));
    folders.filter(|f| f.is_dir()).collect()
}

/// `cuda-13.0/lib64` and the like, the highest version first.
fn toolkits(root: &Path) -> Vec<PathBuf> {
    let mut found = pysite::packages(root, "cuda");
    found.reverse();
    let folders = found.into_iter().map(|p| p.join("lib64"));
    folders.filter(|f| f.is_dir()).collect()
}

/// What a library needs, found in these places. Nothing is loaded but what is the system's or the driver's.
///
/// # Errors
/// When the library itself cannot be read.
pub fn needs(library: &Path, places: &Places) -> Result<Needs, ElfError> {
    let mut needs = Needs::default();
    let dynamic = elf::dynamic(library)?;
    collect(library, &dynamic.needed, places, &mut needs);
    Ok(needs)
}

/// As [`needs`], of libraries that are not linked but loaded by their names. Those that are in none of the places are
/// missing.
pub fn needs_of(names: &[String], by: &Path, places: &Places) -> Needs {
    let mut needs = Needs::default();
    collect(by, names, places, &mut needs);
    needs
}

fn collect(by: &Path, names: &[String], places: &Places, needs: &mut Needs) {
    for name in names {
        let known = |m: &Missing| m.name == *name;
        let seen =
            needs.path(name).is_some() || needs.missing.iter().chain(&needs.unloadable).any(known);
        if seen {
            continue;
        }
        let missing = || Missing {
            name: name.clone(),
            needed_by: by.to_path_buf(),
        };
        if !packages::is_wheeled(name) {
            if !loads(name) {
                needs.unloadable.push(missing());
            }
            continue;
        }
        let Some(path) = places.find(name) else {
            // The loader may have a place of its own, which no file of its configuration names.
            if !loads(name) {
                needs.missing.push(missing());
            }
            continue;
        };
        match elf::dynamic(&path) {
            Ok(dynamic) => collect(&path, &dynamic.needed, places, needs),
            Err(e) => needs.broken.push(e.to_string()),
        }
        needs.found.push(path);
    }
}

/// Whether the loader finds a library by its name.
fn loads(name: &str) -> bool {
    // SAFETY: these are libraries of the system and of the driver, whose initializers any program may run.
    match unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_LOCAL) } {
        Ok(library) => {
            // Unloading what other libraries may be tied to is not worth a risk.
            std::mem::forget(library);
            true
        }
        Err(_) => false,
    }
}

static LOADED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Loads libraries in this order for as long as the process lives, each once.
///
/// # Errors
/// The loader's words for the first that it refuses: they name the library that is missing.
pub fn preload(paths: &[PathBuf]) -> Result<(), String> {
    let mut loaded = LOADED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for path in paths {
        if loaded.contains(path) {
            continue;
        }
        // SAFETY: the files are those that the user installed to be loaded by a runtime.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
        std::mem::forget(library.map_err(|e| told(&e))?);
        loaded.push(path.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A shared library that needs others, as a compiler makes it.
    fn library(folder: &Path, name: &str, needs: &[&str]) -> Option<PathBuf> {
        fs::create_dir_all(folder).unwrap();
        let source = folder.join("empty.c");
        fs::write(&source, "").unwrap();
        let path = folder.join(name);
        let made = std::process::Command::new("cc")
            .args(["-shared", "-nostdlib", "-Wl,--no-as-needed", "-o"])
            .arg(&path)
            .arg(&source)
            .arg(format!("-Wl,-soname,{name}"))
            .args(needs.iter().map(|n| folder.join(n)))
            .status();
        match made {
            Ok(status) if status.success() => Some(path),
            _ => {
                println!("skipped: no C compiler");
                None
            }
        }
    }

    #[test]
    fn what_is_needed_is_found_in_wheels_and_comes_before_what_needs_it() {
        let site = tempfile::tempdir().unwrap();
        let lib = site.path().join("nvidia/cu13/lib");
        let cudnn = site.path().join("nvidia/cudnn/lib");
        fs::create_dir_all(&cudnn).unwrap();
        for (name, needs) in [
            ("libcublasLt_of_test.so.13", &[][..]),
            ("libcudart_of_test.so.13", &[]),
            ("libcublas_of_test.so.13", &["libcublasLt_of_test.so.13"]),
            (
                "provider.so",
                &["libcublas_of_test.so.13", "libcudart_of_test.so.13"],
            ),
        ] {
            if library(&lib, name, needs).is_none() {
                return;
            }
        }
        let places = Places {
            folders: wheel_folders(site.path()),
        };
        assert_eq!(places.folders, [lib.clone(), cudnn]);
        let provider = lib.join("provider.so");
        let found = needs(&provider, &places).unwrap();
        let order = [
            "libcublasLt_of_test.so.13",
            "libcublas_of_test.so.13",
            "libcudart_of_test.so.13",
        ];
        assert_eq!(found.found, order.map(|n| lib.join(n)));
        assert!(found.met());

        let lt = lib.join("libcublasLt_of_test.so.13");
        let kept = fs::read(&lt).unwrap();

        // Each that is missing is named once, with what needs it.
        fs::remove_file(lib.join("libcublasLt_of_test.so.13")).unwrap();
        let missing = needs(&provider, &places).unwrap();
        let name = "libcublasLt_of_test.so.13".to_string();
        assert_eq!(
            missing.missing,
            [Missing {
                name,
                needed_by: lib.join("libcublas_of_test.so.13")
            }]
        );
        assert!(!missing.met());

        fs::write(lib.join("libcublasLt_of_test.so.13"), "text").unwrap();
        let broken = needs(&provider, &places).unwrap();
        assert!(
            broken.broken[0].contains("libcublasLt_of_test.so.13"),
            "{broken:?}"
        );

        // The loader takes them in this order, though it does not know their folder.
        fs::write(lt, kept).unwrap();
        preload(&found.found).unwrap();
    }

    #[test]
    fn libraries_of_the_system_are_asked_of_the_loader() {
        let names = ["libc.so.6", "libkiln-no-such.so.1"].map(String::from);
        let needs = needs_of(&names, Path::new("test"), &Places::default());
        assert_eq!(needs.unloadable.len(), 1);
        assert_eq!(needs.unloadable[0].name, "libkiln-no-such.so.1");
    }

    #[test]
    fn the_newest_toolkit_comes_first() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["cuda-12.9/lib64", "cuda-13.0/lib64", "cuda-11.8/bin"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let found = ["cuda-13.0/lib64", "cuda-12.9/lib64"];
        assert_eq!(toolkits(root.path()), found.map(|f| root.path().join(f)));
    }
}
