//! Paths of a recipe: text, or `{bytes: [109, 255]}` where a name is no UTF-8.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserializer, Serializer};

const BYTES: &str = "bytes";

pub(super) fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    let Some(path) = path else {
        return to.serialize_none();
    };
    match path.to_str() {
        Some(text) => to.serialize_str(text),
        None => {
            let mut map = to.serialize_map(Some(1))?;
            map.serialize_entry(BYTES, path.as_os_str().as_bytes())?;
            map.end()
        }
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    from.deserialize_any(Written)
}

struct Written;

impl<'de> Visitor<'de> for Written {
    type Value = Option<PathBuf>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut path = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != BYTES || path.is_some() {
                return Err(A::Error::unknown_field(&key, &[BYTES]));
            }
            path = Some(OsString::from_vec(map.next_value()?).into());
        }
        match path {
            Some(path) => Ok(Some(path)),
            None => Err(A::Error::missing_field(BYTES)),
        }
    }
}
