//! JSON Schemas of what kiln reads and prints.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

/// The JSON Schema of what is read or printed as JSON, with nothing but itself in it.
pub fn schema<T: JsonSchema>() -> Schema {
    inlined::<T>(SchemaSettings::draft2020_12())
}

/// The JSON Schema of what is written: keys that are always there are required, whether or not a reader does without.
pub fn written<T: JsonSchema>() -> Schema {
    inlined::<T>(SchemaSettings::draft2020_12().for_serialize())
}

fn inlined<T: JsonSchema>(settings: SchemaSettings) -> Schema {
    let settings = settings.with(|s| s.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>()
}
