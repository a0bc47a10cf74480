//! JSON Schemas of what kiln reads and prints.

/// The JSON Schema of what is read or printed as JSON, with nothing but itself in it.
pub fn schema<T: schemars::JsonSchema>() -> schemars::Schema {
    let settings = schemars::generate::SchemaSettings::draft2020_12();
    let settings = settings.with(|s| s.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>()
}
