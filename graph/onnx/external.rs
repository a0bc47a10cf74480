//! External data: files beside the model, each mapped once and sliced.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use super::error::{ReadErrorKind, Result};
use super::source::{self, SourceFile};
use super::tensor::ExternalRef;

/// The external files of one model.
pub(super) struct External {
    /// The model's folder; without one, external data cannot be read.
    folder: Option<PathBuf>,
    files: HashMap<String, Bytes>,
    /// `(location, offset, end, tensor)` of what was read.
    ranges: Vec<(String, u64, u64, String)>,
    /// What was mapped.
    pub sources: Vec<SourceFile>,
}

impl External {
    pub fn new(folder: Option<PathBuf>) -> External {
        External {
            folder,
            files: HashMap::new(),
            ranges: Vec::new(),
            sources: Vec::new(),
        }
    }

    pub fn fetch(&mut self, tensor: &str, at: ExternalRef<'_>, length: usize) -> Result<Bytes> {
        let bad = |why: String| ReadErrorKind::External {
            tensor: tensor.to_string(),
            location: at.location.to_string(),
            why,
        };
        if let Some(stated) = at.length
            && stated != length as u64
        {
            return Err(bad(format!(
                "the entry says {stated} bytes, but the tensor's shape and type need {length}"
            )));
        }
        if !self.files.contains_key(at.location) {
            let data = self.open(at.location).map_err(&bad)?;
            self.files.insert(at.location.to_string(), data);
        }
        let data = &self.files[at.location];
        let end = (at.offset.checked_add(length as u64))
            .filter(|&end| end <= data.len() as u64)
            .ok_or_else(|| {
                bad(format!(
                    "bytes {} to {} are wanted, but the file has {}: it is truncated or belongs to another model",
                    at.offset,
                    u128::from(at.offset) + length as u128,
                    data.len()
                ))
            })?;
        let range = (at.location.to_string(), at.offset, end, tensor.to_string());
        self.ranges.push(range);
        Ok(data.slice(at.offset as usize..end as usize))
    }

    fn open(&mut self, location: &str) -> Result<Bytes, String> {
        let folder = (self.folder.as_deref())
            .ok_or("the model was not read from a file, so it has no folder")?;
        let relative = Path::new(location);
        let plain =
            (relative.components()).all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || location.contains('\0') || !plain {
            return Err(
                "external data must lie in the model's folder, by a relative path without '..'"
                    .into(),
            );
        }
        let path = folder.join(relative);
        let file = source::open(&path).map_err(|e| {
            format!(
                "cannot open {}: {e}; it belongs beside the model",
                path.display()
            )
        })?;
        let root = folder.canonicalize().map_err(|e| e.to_string())?;
        let real = source::place(&file, &path).map_err(|e| e.to_string())?;
        if !real.starts_with(&root) {
            return Err(format!(
                "it is a link to {}, outside the model's folder",
                real.display()
            ));
        }
        let (data, source) = source::map_file(&file, &real)
            .map_err(|e| format!("cannot map {}: {e}", real.display()))?;
        self.sources.push(source);
        Ok(data)
    }

    /// Tensors may share a range, but two that overlap in part are damage.
    pub fn check_overlaps(&mut self) -> Result<()> {
        self.ranges.retain(|r| r.1 < r.2);
        self.ranges.sort();
        for pair in self.ranges.windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            if a.0 == b.0 && b.1 < a.2 && (a.1, a.2) != (b.1, b.2) {
                return Err(ReadErrorKind::External {
                    tensor: b.3.clone(),
                    location: b.0.clone(),
                    why: format!(
                        "its bytes {}..{} overlap those of tensor '{}' ({}..{})",
                        b.1, b.2, a.3, a.1, a.2
                    ),
                });
            }
        }
        Ok(())
    }
}
