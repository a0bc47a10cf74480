//! The output folder: written aside, then renamed, so that there is a whole bundle or none.

pub mod about;
mod error;
mod files;
mod keep;

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use regex::Regex;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::nvidia::driver;
use crate::runtime::{DeviceChoice, DeviceRequest};
use crate::scratch::{self, Held};

pub use error::BundleError;
use error::io_error;
pub use files::{CUDA_MODEL, ENGINE, MANIFEST, MODEL, PROOF, REPORT, REPORT_PAGE, ROLES};
pub use keep::{Over, spares};

/// The ONNX file of a bundle, or the path itself if it is no folder.
pub fn model_path(path: &Path) -> PathBuf {
    match path.is_dir() {
        true => path.join(MODEL),
        false => path.to_path_buf(),
    }
}

/// As [`model_path`], of a folder that is a bundle.
///
/// # Errors
/// When a folder is none, with the models that it holds.
pub fn find_model(path: &Path) -> Result<PathBuf, BundleError> {
    let model = model_path(path);
    if !path.is_dir() || model.exists() {
        return Ok(model);
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    let mut models: Vec<String> = names.filter(|n| n.ends_with(".onnx")).collect();
    models.sort();
    Err(BundleError::NoBundle {
        path: path.to_path_buf(),
        models,
    })
}

/// As [`find_model`], the one that was written for where it is to run.
///
/// # Errors
/// As [`find_model`].
pub fn find_model_for(path: &Path, device: DeviceRequest) -> Result<PathBuf, BundleError> {
    let model = find_model(path)?;
    let on_cuda = match device.choice {
        DeviceChoice::Cuda(_) => true,
        DeviceChoice::Auto => driver::probe().is_ok(),
        DeviceChoice::Cpu | DeviceChoice::Rtx(_) => false,
    };
    let other = path.join(CUDA_MODEL);
    match on_cuda && other.is_file() {
        true => Ok(other),
        false => Ok(model),
    }
}

/// The engine of a bundle.
///
/// # Errors
/// When it is no bundle, or has no engine.
pub fn find_engine(bundle: &Path) -> Result<PathBuf, BundleError> {
    if bundle.is_file() {
        return Err(BundleError::NoFolder(bundle.to_path_buf()));
    }
    find_model(bundle)?;
    let engine = bundle.join(ENGINE);
    match engine.is_file() {
        true => Ok(engine),
        false => Err(BundleError::NoEngine(bundle.to_path_buf())),
    }
}

/// Where the bundle of a model goes unless told: `dir/model.onnx` → `dir/model.kiln`.
pub fn default_path(model: &Path) -> PathBuf {
    model.with_extension("kiln")
}

/// A bundle being written. Dropping it without [`Partial::finish`] removes what was written; so does stopping the process
/// by a signal that it can catch. What a killed process left is removed by the next one that writes the same bundle: a
/// folder belongs to a living process as long as that holds its lock.
#[derive(Debug)]
pub struct Partial {
    target: PathBuf,
    folder: PathBuf,
    /// Folders of killed processes that were removed, and older bundles that such processes had moved aside.
    pub swept: Vec<Swept>,
    over: Over,
    done: bool,
    held: Held,
    _lock: Option<File>,
}

/// What a killed process had left, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swept {
    Removed(PathBuf),
    /// An older bundle, now where it was.
    Restored(PathBuf),
    Kept {
        path: PathBuf,
        why: String,
    },
}

impl std::fmt::Display for Swept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Swept::Removed(path) => write!(
                f,
                "removed {}, which a compilation that was killed had left",
                path.display()
            ),
            Swept::Restored(path) => write!(
                f,
                "put back {}, which a compilation that was killed had moved aside",
                path.display()
            ),
            Swept::Kept { path, why } => write!(
                f,
                "{} is left from a compilation that was killed and cannot be removed: {why}",
                path.display()
            ),
        }
    }
}

/// `NAME.PID.COUNT.SUFFIX`: two bundles written at once never share it.
fn beside(target: &Path, suffix: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.{count}.{suffix}", std::process::id()));
    target.with_file_name(name)
}

/// Whether a name is one that [`beside`] gives for a target of the name `of`, and for an older bundle moved aside.
fn is_beside(name: &str, of: &str) -> Option<bool> {
    let rest = name.strip_prefix(of)?.strip_prefix('.')?;
    let (numbers, suffix) = rest.rsplit_once('.')?;
    let plain = numbers.chars().all(|c| c.is_ascii_digit() || c == '.') && !numbers.is_empty();
    match suffix {
        PART if plain => Some(false),
        OLD if plain => Some(true),
        _ => None,
    }
}

const PART: &str = "part";
const OLD: &str = "old";

/// A text for users, who know a bundle by its name and not by that of the folder in which it is written.
pub fn public(text: &str) -> Cow<'_, str> {
    static NAME: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(&format!(r"\.\d+\.\d+\.{PART}\b")).ok());
    match NAME.as_ref() {
        Some(name) => name.replace_all(text, ""),
        None => Cow::Borrowed(text),
    }
}

/// Locks a folder for this process, until the result is dropped or the process ends, however it ends. An error may mean
/// that the file system has no locks.
fn lock(folder: &Path) -> Result<File, TryLockError> {
    let open = File::open(folder).map_err(TryLockError::Error)?;
    open.try_lock()?;
    // Someone else may have taken the folder for a dead process's before it was locked.
    let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let there = open
        .metadata()
        .and_then(|m| Ok(same(m, fs::metadata(folder)?)));
    match there.map_err(TryLockError::Error)? {
        true => Ok(open),
        false => Err(TryLockError::WouldBlock),
    }
}

/// Cleans up after killed processes that wrote the same bundle.
fn sweep(target: &Path) -> Vec<Swept> {
    let (Some(name), Some(folder)) = (target.file_name(), target.parent()) else {
        return Vec::new();
    };
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut swept = Vec::new();
    for entry in entries.flatten() {
        let found = entry.file_name();
        let (Some(found), Some(name)) = (found.to_str(), name.to_str()) else {
            continue;
        };
        let Some(old) = is_beside(found, name) else {
            continue;
        };
        // With the lock nobody else sweeps it. Without one, it is another process's, or nobody can tell.
        let Ok(_lock) = lock(&entry.path()) else {
            continue;
        };
        if old && !target.exists() && fs::rename(entry.path(), target).is_ok() {
            swept.push(Swept::Restored(target.to_path_buf()));
            continue;
        }
        match fs::remove_dir_all(entry.path()) {
            Ok(()) => swept.push(Swept::Removed(entry.path())),
            // Another compilation was faster.
            Err(_) if !entry.path().exists() => {}
            Err(e) => swept.push(Swept::Kept {
                path: entry.path(),
                why: e.to_string(),
            }),
        }
    }
    swept
}

impl Partial {
    /// Makes an empty folder beside `target`.
    ///
    /// # Errors
    /// When the place cannot be written, or what is at `target` must stay.
    pub fn new(target: &Path, over: Over) -> Result<Partial, BundleError> {
        let swept = sweep(target);
        keep::allows(over, target)?;
        let failed =
            |folder: &Path, source| io_error(folder, "the bundle cannot be made here")(source);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
        }
        loop {
            let folder = beside(target, PART);
            let held = scratch::hold(&folder);
            let lock = match fs::create_dir(&folder).map(|()| lock(&folder)) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(failed(&folder, e)),
                // Swept in the moment before it was locked.
                Ok(Err(TryLockError::WouldBlock)) => continue,
                Ok(Err(TryLockError::Error(e))) if e.kind() == io::ErrorKind::NotFound => continue,
                // A file system without locks: nobody sweeps there.
                Ok(Err(TryLockError::Error(_))) => None,
                Ok(Ok(lock)) => Some(lock),
            };
            return Ok(Partial {
                target: target.to_path_buf(),
                folder,
                swept,
                over,
                done: false,
                held,
                _lock: lock,
            });
        }
    }

    /// Where a file of the bundle is written for now.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes one file.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, name: &str, data: &[u8]) -> Result<(), BundleError> {
        let path = self.file(name);
        fs::write(&path, data).map_err(io_error(&path, "cannot be written"))
    }

    /// Puts the bundle in its place; an older one is replaced at once, if the file system can exchange two folders, and what
    /// others put into it stays. Of several that are written at the same time, the last to finish stays. Gives the place, and
    /// the names of others' files in it.
    ///
    /// # Errors
    /// When a rename fails, or a file cannot be kept; the older bundle is then where it was.
    pub fn finish(mut self) -> Result<(PathBuf, Vec<OsString>), BundleError> {
        let kept = keep::take_along(&self.target, &self.folder)?;
        let placed = self
            .held
            .whole(|| place(&self.folder, &self.target, self.over));
        self.done = placed.is_ok();
        if let Some(old) = placed? {
            keep::remove(&old);
        }
        Ok((self.target.clone(), kept))
    }
}

/// Renames `folder` to `target`. Gives the place of the bundle that was there.
fn place(folder: &Path, target: &Path, over: Over) -> Result<Option<PathBuf>, BundleError> {
    let failed = io_error(target, "the bundle cannot be put in its place");
    // Another compilation may put its bundle there, or take one away, between any two of these steps.
    for _ in 0..100 {
        match fs::rename(folder, target) {
            Ok(()) => return Ok(None),
            Err(_) if target.exists() => {}
            Err(e) => return Err(failed(e)),
        }
        keep::allows(over, target)?;
        match renameat_with(CWD, folder, CWD, target, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(Some(folder.to_path_buf())),
            Err(Errno::NOENT) if folder.exists() => continue,
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(e) => return Err(failed(e.into())),
        }
        let old = beside(target, OLD);
        match fs::rename(target, &old) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(io_error(target, "the older bundle cannot be moved away")(e)),
            Ok(()) => {}
        }
        match fs::rename(folder, target) {
            Ok(()) => return Ok(Some(old)),
            Err(e) => {
                // Back to what was; if that fails as well, the next compilation puts it back.
                let _ = fs::rename(&old, target);
                return Err(failed(e));
            }
        }
    }
    Err(failed(io::Error::other(
        "other compilations kept replacing it",
    )))
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            // Nothing more can be done about a folder that cannot be removed either.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_read_the_bundles_name() {
        let text = "no room for out/m.kiln.4711.0.part/model.onnx in part 3.part";
        assert_eq!(
            public(text),
            "no room for out/m.kiln/model.onnx in part 3.part"
        );
        let folder = beside(Path::new("m.kiln"), PART);
        assert_eq!(public(&folder.display().to_string()), "m.kiln");
    }

    #[test]
    fn a_bundle_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.kiln");
        let partial = Partial::new(&target, Over::Bundles).unwrap();
        partial.write(MODEL, b"x").unwrap();
        drop(partial);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        for round in ["one", "two"] {
            let partial = Partial::new(&target, Over::Bundles).unwrap();
            partial.write(MANIFEST, round.as_bytes()).unwrap();
            partial.finish().unwrap();
            assert_eq!(fs::read_to_string(target.join(MANIFEST)).unwrap(), round);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_folder_that_is_no_bundle_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("precious");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("thesis.txt"), "").unwrap();
        assert!(matches!(
            Partial::new(&target, Over::Bundles),
            Err(BundleError::NotOurs(_))
        ));
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.kiln");
        let living = Partial::new(&target, Over::Bundles).unwrap();
        living.write(MODEL, b"x").unwrap();
        for left in ["m.kiln.4.part", "m.kiln.4.0.part"] {
            fs::create_dir(dir.path().join(left)).unwrap();
            fs::write(dir.path().join(left).join(MODEL), b"half").unwrap();
        }
        let foreign = [
            "m.kiln.part",
            "m.kiln.x.part",
            "n.kiln.4.part",
            "m.kiln.4.parts",
        ];
        for other in foreign {
            fs::create_dir(dir.path().join(other)).unwrap();
        }
        let partial = Partial::new(&target, Over::Bundles).unwrap();
        assert_eq!(partial.swept.len(), 2, "{:?}", partial.swept);
        assert!(living.file(MODEL).exists());
        drop((partial, living));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), foreign.len());
    }

    #[test]
    fn an_older_bundle_that_was_moved_aside_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.kiln");
        let aside = dir.path().join("m.kiln.4.0.old");
        fs::create_dir(&aside).unwrap();
        fs::write(aside.join(MANIFEST), "one").unwrap();
        let partial = Partial::new(&target, Over::Bundles).unwrap();
        assert_eq!(partial.swept, [Swept::Restored(target.clone())]);
        drop(partial);
        assert_eq!(fs::read_to_string(target.join(MANIFEST)).unwrap(), "one");
    }

    #[test]
    fn of_bundles_written_at_once_one_stays_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.kiln");
        std::thread::scope(|s| {
            for writer in 0..8 {
                let target = &target;
                s.spawn(move || {
                    for _ in 0..20 {
                        let partial = Partial::new(target, Over::Bundles).unwrap();
                        let mark = writer.to_string();
                        partial.write(MODEL, mark.as_bytes()).unwrap();
                        partial.write(MANIFEST, mark.as_bytes()).unwrap();
                        partial.finish().unwrap();
                    }
                });
            }
        });
        let read = |name| fs::read_to_string(target.join(name)).unwrap();
        assert_eq!(read(MODEL), read(MANIFEST));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_others_put_into_a_bundle_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.kiln");
        let write = |over, mark: &str| {
            let partial = Partial::new(&target, over).unwrap();
            partial.write(MANIFEST, mark.as_bytes()).unwrap();
            partial.finish().unwrap().1
        };
        fs::create_dir(&target).unwrap();
        assert!(write(Over::Bundles, "one").is_empty());
        fs::write(target.join(ENGINE), "an engine").unwrap();
        fs::write(target.join("notes.txt"), "mine").unwrap();
        fs::create_dir(target.join("data")).unwrap();
        fs::write(target.join("data/x.npz"), "x").unwrap();
        std::os::unix::fs::symlink("nowhere", target.join("link")).unwrap();
        assert_eq!(write(Over::Bundles, "two"), ["data", "link", "notes.txt"]);
        let read = |name: &str| fs::read_to_string(target.join(name)).unwrap();
        assert_eq!(
            (read("notes.txt"), read("data/x.npz")),
            ("mine".into(), "x".into())
        );
        assert!(target.join("link").is_symlink() && !target.join(ENGINE).exists());
        let again = Partial::new(&target, Over::Nothing);
        assert!(matches!(again, Err(BundleError::Exists(_))));

        fs::remove_file(target.join(MANIFEST)).unwrap();
        assert_eq!(
            write(Over::Anything, "three"),
            ["data", "link", "notes.txt"]
        );
        fs::remove_dir_all(&target).unwrap();
        fs::write(&target, "a file").unwrap();
        write(Over::Anything, "four");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_read_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.kiln");
        let model = target.join(MODEL);
        assert!(spares(&target, [model.as_path()]).is_ok());
        fs::create_dir(&target).unwrap();
        fs::write(&model, "").unwrap();
        let roundabout = dir.path().join("m.kiln/../m.kiln");
        let refused = spares(&roundabout, [dir.path(), model.as_path()]).unwrap_err();
        assert!(matches!(&refused, BundleError::Input { file, .. } if *file == model));
        assert!(spares(&target, [dir.path()]).is_ok());
    }
}
