//! Where a cache keeps its entries: a folder, or a server.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::remote::{Remote, RemoteError};
use super::{ENTRY, Entry, Key};
use crate::scratch;

/// A cache, by what the user calls it.
#[derive(Clone, Debug)]
pub enum Store {
    Folder(PathBuf),
    Remote(Remote),
}

/// What is wrong with a cache or with one of its entries.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{name}: {source}")]
    File { name: String, source: io::Error },
    #[error("{ENTRY}: {0}")]
    Entry(#[from] serde_json::Error),
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

impl StoreError {
    fn file(name: &str) -> impl FnOnce(io::Error) -> StoreError {
        let name = name.to_string();
        move |source| StoreError::File { name, source }
    }

    /// Whether the cache as a whole is at fault, and not one entry.
    pub(super) fn is_everywhere(&self) -> bool {
        matches!(self, StoreError::Remote(e) if e.is_everywhere())
    }
}

impl Store {
    /// A URL or a folder.
    ///
    /// # Errors
    /// When a URL is none that a cache can have.
    pub fn at(text: OsString) -> Result<Store, String> {
        match text.to_str().filter(|t| t.contains("://")) {
            Some(url) => Remote::at(url).map(Store::Remote),
            None => Ok(Store::Folder(text.into())),
        }
    }

    /// A folder is one of this folder, unless it is absolute.
    #[must_use]
    pub fn within(self, folder: &Path) -> Store {
        match self {
            Store::Folder(path) => Store::Folder(folder.join(path)),
            remote @ Store::Remote(_) => remote,
        }
    }

    /// The entry of a key; `None` where there is none.
    pub(super) fn find(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        match self {
            Store::Remote(remote) => Ok(remote.find(&key.sha256)?),
            Store::Folder(cache) => {
                let place = place(cache, key);
                if !place.is_dir() {
                    return Ok(None);
                }
                let text = fs::read(place.join(ENTRY)).map_err(StoreError::file(ENTRY))?;
                Ok(Some(serde_json::from_slice(&text)?))
            }
        }
    }

    /// Writes a file of an entry. What is written must be verified.
    pub(super) fn fetch(
        &self,
        key: &Key,
        name: &str,
        hash: &str,
        to: &Path,
    ) -> Result<(), StoreError> {
        match self {
            Store::Remote(remote) => Ok(remote.fetch(hash, to)?),
            Store::Folder(cache) => {
                let copied = fs::copy(place(cache, key).join(name), to);
                copied.map(drop).map_err(StoreError::file(name))
            }
        }
    }

    /// Keeps a bundle's files. Of several that are kept at once, one stays. `anew`: what the cache has of it is not to be trusted.
    pub(super) fn keep(
        &self,
        bundle: &Path,
        names: &[String],
        key: &Key,
        anew: bool,
    ) -> Result<(), StoreError> {
        match self {
            Store::Remote(remote) => Ok(remote.keep(bundle, names, key, anew)?),
            Store::Folder(cache) => {
                let place = place(cache, key);
                keep(bundle, names, &place, key).map_err(StoreError::file(&key.sha256))
            }
        }
    }

    /// Throws an entry away, where that can be done.
    pub(super) fn discard(&self, key: &Key) {
        if let Store::Folder(cache) = self {
            // Another process may be doing the same.
            let _ = fs::remove_dir_all(place(cache, key));
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Store::Folder(path) => path.display().fmt(f),
            Store::Remote(remote) => remote.fmt(f),
        }
    }
}

fn place(cache: &Path, key: &Key) -> PathBuf {
    cache.join(&key.sha256[..2]).join(&key.sha256)
}

fn keep(bundle: &Path, names: &[String], place: &Path, key: &Key) -> io::Result<()> {
    let part = place.with_extension(format!("{}.part", std::process::id()));
    let _held = scratch::hold(&part);
    fs::create_dir_all(&part)?;
    let kept = fill(bundle, names, &part, key).and_then(|()| fs::rename(&part, place));
    if let Err(e) = kept {
        let _ = fs::remove_dir_all(&part);
        // Another process was faster.
        return if place.is_dir() { Ok(()) } else { Err(e) };
    }
    Ok(())
}

fn fill(bundle: &Path, names: &[String], part: &Path, key: &Key) -> io::Result<()> {
    for name in names {
        fs::copy(bundle.join(name), part.join(name))?;
    }
    let entry = Entry::of(part, names, key)?;
    fs::write(part.join(ENTRY), serde_json::to_vec_pretty(&entry)?)
}
