//! What is at fault where something fails.

/// What is at fault, whatever the error says of it. The command line has an exit code for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The result: it differs from the original, or fails a gate.
    Result,
    /// What was asked for: options, recipes, data and places to write to.
    Request,
    /// The model: it cannot be read, rewritten or run.
    Model,
    /// The target: it does not take the model.
    Target,
    /// The machine: a runtime, a driver or a GPU is missing.
    Machine,
    /// kiln.
    Defect,
    /// The search for nodes that keep their precision, which stopped.
    Search,
    /// A measurement, which failed.
    Timing,
}
