//! Where TensorRT is installed.

use std::env;
use std::path::{Path, PathBuf};

use super::product::{CORE, ENV_DIR, PACKAGE, PARSER};
use super::{AVAILABLE, EngineError};
use kiln_runtime::loader;
use kiln_runtime::pysite;

/// The two shared libraries of TensorRT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libraries {
    /// `libtensorrt_rtx.so.1`, or `libnvinfer.so.11`
    pub core: PathBuf,
    /// `libtensorrt_onnxparser_rtx.so.1`, or `libnvonnxparser.so.11`
    pub parser: PathBuf,
}

/// Finds the libraries: at `explicit` (a folder, or the core library), else where `KILN_TENSORRT_RTX_DIR` says, else in
/// the Python environments at hand (see [`pysite::site_packages`]), in those of `python3`, and in the folders of the
/// dynamic loader. A place that was named is the only one looked at.
///
/// # Errors
/// [`EngineError::NotFound`] lists the places.
pub fn locate(explicit: Option<&Path>) -> Result<Libraries, EngineError> {
    if !AVAILABLE {
        return Err(EngineError::Absent);
    }
    let named = explicit.map(Path::to_owned).or_else(|| {
        env::var_os(ENV_DIR)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    });
    if let Some(place) = named {
        let folders = named_folders(&place);
        return search(folders).map_err(|looked| EngineError::NotFound { looked });
    }
    let mut looked = Vec::new();
    let stages: [fn() -> Vec<PathBuf>; 3] = [
        || in_packages(pysite::site_packages()),
        || in_packages(pysite::interpreter_site_packages()),
        loader::folders,
    ];
    for stage in stages {
        match search(stage()) {
            Ok(found) => return Ok(found),
            Err(places) => looked.extend(places),
        }
    }
    Err(EngineError::NotFound { looked })
}

fn search(folders: Vec<PathBuf>) -> Result<Libraries, Vec<PathBuf>> {
    folders.iter().find_map(|f| both_in(f)).ok_or(folders)
}

fn both_in(folder: &Path) -> Option<Libraries> {
    let first = |names: &[&str]| {
        names
            .iter()
            .map(|n| folder.join(n))
            .find(|path| path.is_file())
    };
    Some(Libraries {
        core: first(CORE)?,
        parser: first(PARSER)?,
    })
}

/// NVIDIA's archive keeps the libraries in `lib`; a virtual environment keeps them in its package.
fn named_folders(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.parent().unwrap_or(Path::new("")).to_owned()];
    }
    let mut folders = vec![place.to_owned(), place.join("lib")];
    folders.extend(in_packages(pysite::of_venv(place)));
    folders
}

/// The package folders in each `site-packages`; where there is none, the place where it would be.
fn in_packages(site_packages: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for site in site_packages {
        let found = pysite::packages(&site, PACKAGE);
        if found.is_empty() {
            folders.push(site.join(format!("{}_libs", PACKAGE.trim_end_matches("_libs"))));
        }
        folders.extend(found.into_iter().filter(|f| !is_metadata(f)));
    }
    folders
}

fn is_metadata(folder: &Path) -> bool {
    folder.extension().is_some_and(|e| e == "dist-info")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, files: &[&str]) -> Self {
            let root = env::temp_dir().join(format!("kiln-locate-{name}-{}", std::process::id()));
            for file in files {
                let path = root.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[cfg(feature = "tensorrt")]
    const BOTH: [&str; 2] = ["libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"];

    #[test]
    #[cfg(feature = "tensorrt")]
    fn a_named_place_may_be_a_folder_an_archive_a_venv_or_the_library() {
        let venv = "lib/python3.12/site-packages/tensorrt_rtx_libs";
        for (name, folder, place) in [
            ("flat", "", ""),
            ("archive", "lib", ""),
            ("venv", venv, ""),
            ("file", "", BOTH[0]),
        ] {
            let files = BOTH.map(|f| Path::new(folder).join(f).display().to_string());
            let scratch = Scratch::new(name, &files.each_ref().map(String::as_str));
            let found = locate(Some(&scratch.0.join(place))).unwrap();
            assert_eq!(found.core, scratch.0.join(&files[0]), "{name}");
            assert_eq!(found.parser, scratch.0.join(&files[1]), "{name}");
        }
    }

    #[test]
    #[cfg(feature = "tensorrt")]
    fn a_named_place_without_the_parser_is_not_enough() {
        let scratch = Scratch::new("half", &BOTH[..1]);
        let error = locate(Some(&scratch.0)).unwrap_err();
        assert!(matches!(&error, EngineError::NotFound { looked } if looked.contains(&scratch.0)));
        assert!(error.to_string().contains("kiln-locate-half"));
        assert!(error.hint().unwrap().contains("pip install tensorrt-rtx"));
    }

    #[test]
    fn the_metadata_of_a_wheel_is_not_its_folder() {
        let scratch = Scratch::new("meta", &["tensorrt_rtx_cu13_libs-1.dist-info/RECORD"]);
        assert!(in_packages(vec![scratch.0.clone()]).is_empty());
    }
}
