//! Where the dynamic loader looks for libraries.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders that exist: of `LD_LIBRARY_PATH`, of the loader's configuration, and those it has built in.
pub fn folders() -> Vec<PathBuf> {
    let from_env = env::var_os("LD_LIBRARY_PATH")
        .map(|v| env::split_paths(&v).collect::<Vec<_>>())
        .unwrap_or_default();
    let from_config = configured_folders(Path::new("/etc/ld.so.conf.d"));
    let built_in = [
        "/usr/local/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ];
    let all = from_env
        .into_iter()
        .chain(from_config)
        .chain(built_in.map(PathBuf::from));
    let mut folders = Vec::new();
    for folder in all {
        if folder.is_dir() && !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

fn configured_folders(config: &Path) -> Vec<PathBuf> {
    let Ok(entries) = config.read_dir() else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    files.sort();
    files
        .iter()
        .filter_map(|f| fs::read_to_string(f).ok())
        .flat_map(|text| {
            text.lines()
                .map(str::trim)
                .filter(|l| l.starts_with('/'))
                .map(PathBuf::from)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_configuration_is_read() {
        let config = tempfile::tempdir().unwrap();
        let file = config.path().join("a.conf");
        fs::write(file, "# comment\n/opt/rtx/lib\n\n").unwrap();
        let folders = configured_folders(config.path());
        assert_eq!(folders, [PathBuf::from("/opt/rtx/lib")]);
    }
}
