//! What a proof of a generation found.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One step, both models given the original's tokens.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    pub position: usize,
    /// Of the scores without the mean of each row, as the cosine.
    pub relative_l2: f64,
    pub cosine: f64,
    /// Kullback-Leibler divergence of the result's distribution of tokens from the original's, in nats.
    pub kl: f64,
    /// The tokens of the largest scores.
    pub original: i64,
    pub result: i64,
    /// How far the original's largest score is above its second, over the root of the mean square of all, without their mean.
    pub margin: f64,
    /// That root.
    pub rms: f64,
}

/// A statement about the result.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    pub name: String,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The number that decided it, in words.
    pub details: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "why")]
pub enum Outcome {
    Holds,
    Fails(String),
    NotRun(String),
}

/// What the proof found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Proof {
    pub original: String,
    pub result: String,
    pub tolerance: String,
    pub prompt: Vec<i64>,
    /// What the original generates.
    pub tokens: Vec<i64>,
    pub result_tokens: Vec<i64>,
    pub steps: Vec<Step>,
    pub claims: Vec<Claim>,
}

impl Proof {
    pub fn failed(&self) -> bool {
        let failed = |c: &Claim| matches!(c.outcome, Outcome::Fails(_));
        self.claims.iter().any(failed)
    }
}
