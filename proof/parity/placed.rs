//! Where the nodes of a comparison ran.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Side;
use kiln_runtime::Placement;

/// Where the nodes of one side ran.
#[derive(Clone, Debug, Serialize, JsonSchema, Deserialize)]
pub struct Placed {
    pub side: Side,
    #[serde(flatten)]
    pub placement: Placement,
}

/// What of both sides did not run where it should, in one sentence; `None` if everything did.
pub fn fallen(placements: &[Placed]) -> Option<String> {
    let fallen = placements.iter().filter(|p| !p.placement.pass());
    let fallen = fallen.map(|p| format!("{}: {}", p.side, p.placement.describe()));
    let fallen: Vec<String> = fallen.collect();
    (!fallen.is_empty()).then(|| fallen.join("; "))
}
